//! What the screen asks, and what it is answered.

use jiff::Timestamp;

use crate::query::{TaskDetails, TaskOrder, TaskPage};

/// What the screen shows, and so what is asked.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    /// How the list is sorted; `None`: the list is frozen, and not asked for.
    pub(super) sort: Option<Sort>,
    /// The task whose details are shown.
    pub(super) exec_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sort {
    pub(super) order: TaskOrder,
    pub(super) descending: bool,
}

/// What the source said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) at: Timestamp,
    pub(super) page: Option<TaskPage>,
    /// Of the task that was asked for; `None` within: there is none.
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
    /// Microseconds since 1970, ascending, and the value then.
    pub(super) points: Vec<(i64, f64)>,
}
