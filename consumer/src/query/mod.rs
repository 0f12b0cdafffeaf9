//! What the tables say, now or as of an earlier time: for `consumer tasks`, `consumer task` and whatever else shows it.
//!
//! ```text
//! Reader::open ──▶ one snapshot ──▶ tasks(filter, at, limit) ──▶ TaskList
//!                               ──▶ task(exec_id, at, limit) ──▶ TaskDetails
//! ```
//!
//! A [`Reader`] returns values and typed errors. It prints nothing, logs nothing and keeps no state beside its connection.

mod model;
mod reader;
mod row;
mod sql;
mod watermark;

pub(crate) use model::{TaskDetails, TaskFilter, TaskList};
pub(crate) use reader::{QueryError, Reader};
pub(crate) use watermark::Watermark;
