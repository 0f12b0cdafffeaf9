//! Names of topics.

/// What engines say: one `TaskRunningInfo` a record, key `execId`.
pub const TASK_RUNNING_INFO: &str = "task-running-info";
/// What the router made of it: one `TaskRunningInfoEvent` a record, same key.
pub const TASK_RUNNING_INFO_EVENTS: &str = "task-running-info-events";
/// Records that could not be used: original key and value, and the headers of [`DeadLetter`](crate::DeadLetter).
pub const TASK_RUNNING_INFO_DEAD_LETTERS: &str = "task-running-info-dead-letters";
