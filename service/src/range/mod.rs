//! Reading a bounded range of a topic, outside any group.

mod bound;
mod reader;

pub use bound::{Bound, Position};
pub use reader::{End, Ranges, Reader};
