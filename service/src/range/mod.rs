//! A part of a topic that ends, read outside any group: from where, to where, and each record of it.

mod bound;
mod reader;

pub use bound::{Bound, Position};
pub use reader::{End, Ranges, Reader};
