//! The screen's query and the source's answer.

use jiff::Timestamp;

use crate::query::{TaskDetails, TaskOrder, TaskPage};

/// What the screen shows, and so what to query.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    /// The list's order; `None`: the list is frozen, do not query it.
    pub(super) sort: Option<Sort>,
    /// The task whose details are shown.
    pub(super) exec_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sort {
    pub(super) order: TaskOrder,
    pub(super) descending: bool,
}

/// The source's answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) at: Timestamp,
    pub(super) page: Option<TaskPage>,
    /// Details of the requested task; an inner `None` means that it does not exist.
    pub(super) details: Option<Option<Details>>,
}

/// Everything about a task.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) task: TaskDetails,
    pub(super) curves: Vec<Curve>,
}

/// A value of a task over time.
#[derive(Debug)]
pub(super) struct Curve {
    pub(super) name: &'static str,
    /// Time in microseconds since 1970, ascending, and value.
    pub(super) points: Vec<(i64, f64)>,
}
