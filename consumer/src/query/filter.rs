//! What a list of tasks is asked for: filters, order, thresholds, how much.

use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use schemas::TaskStatus;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::reader::{QueryError, is_no_text};
use super::sql::Statement;
use crate::store::{Dialect, Value};

/// Tasks of a page, if not asked otherwise.
pub(crate) const DEFAULT_LIMIT: u32 = 100;
/// Tasks of the largest page.
pub(crate) const LARGEST_LIMIT: u32 = 1_000;

/// All statuses of the contract.
pub(crate) const STATUSES: [TaskStatus; 9] = [
    TaskStatus::Unknown,
    TaskStatus::Inited,
    TaskStatus::WaitForRetry,
    TaskStatus::Scheduled,
    TaskStatus::Running,
    TaskStatus::Succeed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
    TaskStatus::Timeout,
];

/// The status of this name; `None`: the contract has none.
pub(crate) fn status_named(name: &str) -> Option<TaskStatus> {
    STATUSES.into_iter().find(|status| status.as_str() == name)
}

/// Which tasks a list holds: those that satisfy every condition given. Texts are equal byte for byte. Of times, `after` is
/// at that time or later, `before` is earlier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TaskFilter {
    /// One of these statuses; empty: any.
    pub(crate) status: Vec<String>,
    /// Neither a final status nor `Unknown`, whose engine went away without reporting an end.
    pub(crate) running: bool,
    pub(crate) user: Option<String>,
    pub(crate) engine_type: Option<String>,
    pub(crate) engine_instance: Option<String>,
    pub(crate) job_id: Option<String>,
    pub(crate) exec_id_prefix: Option<String>,
    /// Marked silent: see [`Thresholds`].
    pub(crate) silent: bool,
    /// Marked stalled: see [`Thresholds`].
    pub(crate) stalled: bool,
    pub(crate) started_after: Option<Timestamp>,
    pub(crate) started_before: Option<Timestamp>,
    pub(crate) reported_after: Option<Timestamp>,
    pub(crate) reported_before: Option<Timestamp>,
    pub(crate) ended_after: Option<Timestamp>,
    pub(crate) ended_before: Option<Timestamp>,
}

/// What tasks are ordered by. Tasks that have no such value are last, in either direction; equal ones are ordered by
/// the bytes of their exec ids.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TaskOrder {
    /// When the task was first heard of.
    Started,
    /// When it reported last.
    #[default]
    Reported,
    /// How long it runs or ran.
    Duration,
    Progress,
    /// The memory that it holds.
    Memory,
    /// The cores that it holds.
    Cores,
}

/// When a task counts as silent or stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Thresholds {
    /// A task that has not ended is silent once its last report is this long ago; `None`: the larger of 60 s and five
    /// times the task's usual interval, which is the median of its last nine.
    pub(crate) silent_after: Option<Duration>,
    /// A task that has not ended and is not silent is stalled once all its reports have had the same status, progress
    /// and counts for so long. One whose newest report tells no progress, as a stream's, is never stalled.
    pub(crate) stalled_after: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            silent_after: None,
            stalled_after: Duration::from_secs(15 * 60),
        }
    }
}

/// A list of tasks that is asked for. What is serialized has to be the same on each page.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TaskQuery {
    pub(crate) filter: TaskFilter,
    pub(crate) order: TaskOrder,
    /// The largest first.
    pub(crate) descending: bool,
    /// As it was known at this time; `None`: now.
    pub(crate) at: Option<Timestamp>,
    /// From 1 to [`LARGEST_LIMIT`].
    #[serde(skip)]
    pub(crate) limit: u32,
    /// `next` of the page before, which was asked for with the same filters, order, time and thresholds.
    #[serde(skip)]
    pub(crate) cursor: Option<String>,
    pub(crate) thresholds: Thresholds,
}

impl Default for TaskQuery {
    fn default() -> Self {
        Self {
            filter: TaskFilter::default(),
            order: TaskOrder::default(),
            descending: true,
            at: None,
            limit: DEFAULT_LIMIT,
            cursor: None,
            thresholds: Thresholds::default(),
        }
    }
}

/// # Errors
/// If a page of this size is not to be had.
pub(super) fn check_limit(limit: u32, largest: u32) -> Result<(), QueryError> {
    match (1..=largest).contains(&limit) {
        true => Ok(()),
        false => Err(QueryError::Parameter {
            name: "limit",
            why: format!("{limit} is not from 1 to {largest}"),
        }),
    }
}

/// # Errors
/// If the text holds what PostgreSQL refuses in a parameter.
pub(super) fn check_text(name: &'static str, text: Option<&str>) -> Result<(), QueryError> {
    match text.is_some_and(is_no_text) {
        false => Ok(()),
        true => Err(QueryError::Parameter {
            name,
            why: "it holds the character U+0000, which no stored text has".to_owned(),
        }),
    }
}

impl TaskFilter {
    /// Whether it lets every task through.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it lets every running task through, and no other.
    pub(crate) fn is_only_running(&self) -> bool {
        let running = true;
        *self
            == Self {
                running,
                ..Self::default()
            }
    }

    /// Refuses what no task can satisfy because it is misspelt.
    pub(super) fn check(&self) -> Result<(), QueryError> {
        for status in &self.status {
            if status_named(status).is_none() {
                let all = STATUSES.map(TaskStatus::as_str);
                let why = format!("{status:?} is no status; there are {}", all.join(", "));
                return Err(QueryError::Parameter {
                    name: "status",
                    why,
                });
            }
        }
        check_text("user", self.user.as_deref())?;
        check_text("engine_type", self.engine_type.as_deref())?;
        check_text("engine_instance", self.engine_instance.as_deref())?;
        check_text("job_id", self.job_id.as_deref())?;
        check_text("exec_id_prefix", self.exec_id_prefix.as_deref())
    }

    /// Whether it lets only tasks through that have ended, or only others; `None`: both.
    pub(super) fn ended(&self) -> Option<bool> {
        let is_final = |status: &String| status_named(status).is_some_and(TaskStatus::is_final);
        let has_status = !self.status.is_empty();
        let none_final = has_status && !self.status.iter().any(is_final);
        if self.running || self.silent || self.stalled || none_final {
            Some(false)
        } else if self.ended_after.is_some() || self.ended_before.is_some() {
            Some(true)
        } else {
            (has_status && self.status.iter().all(is_final)).then_some(true)
        }
    }

    /// The conditions on the columns that `task` itself has.
    pub(super) fn conditions(
        &self,
        statement: &mut Statement,
        dialect: &dyn Dialect,
    ) -> Vec<String> {
        let mut conditions = Vec::new();
        // Follows from the filters, is found out sooner than they are, and is what the indexes of such tasks ask for.
        match self.ended() {
            Some(false) => conditions.push("NOT task.is_final".to_owned()),
            Some(true) => conditions.push("task.is_final".to_owned()),
            None => {}
        }
        if self.running {
            conditions.push("task.status <> 'Unknown'".to_owned());
        }
        if !self.status.is_empty() {
            let statuses = statement.bind(Value::Texts(self.status.clone()));
            conditions.push(dialect.is_one_of("task.status", &statuses));
        }
        for (column, text) in [
            ("engine_user", &self.user),
            ("engine_type", &self.engine_type),
            ("engine_instance", &self.engine_instance),
            ("job_id", &self.job_id),
        ] {
            if let Some(text) = text {
                let text = statement.bind(text.as_str());
                conditions.push(format!("task.{column} = {text}"));
            }
        }
        if let Some(prefix) = &self.exec_id_prefix {
            let prefix = statement.bind(prefix.as_str());
            conditions.push(dialect.begins_with("task.exec_id", &prefix));
        }
        for (column, after, before) in [
            (
                "task.first_reported_at",
                self.started_after,
                self.started_before,
            ),
            (
                "task.reported_at",
                self.reported_after,
                self.reported_before,
            ),
            ("task.ended_at", self.ended_after, self.ended_before),
        ] {
            // A report's time is a whole microsecond: from the next one on is after, and before is earlier.
            let bound = |time| dialect.time(rounded_up(time));
            if let Some(after) = after {
                conditions.push(format!("{column} >= {}", bound(after)));
            }
            if let Some(before) = before {
                conditions.push(format!("{column} < {}", bound(before)));
            }
        }
        conditions
    }
}

/// To a whole microsecond, if there is a later one.
fn rounded_up(time: Timestamp) -> Timestamp {
    let beyond = time.as_nanosecond().rem_euclid(1_000);
    let missing = (1_000 - beyond) % 1_000;
    Timestamp::from_nanosecond(time.as_nanosecond() + missing).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_between_two_microseconds_is_the_later_one() {
        for (given, bound) in [
            (0, 0),
            (1, 1_000),
            (999, 1_000),
            (1_000, 1_000),
            (-1, 0),
            (-1_001, -1_000),
        ] {
            let time = |nanoseconds| Timestamp::from_nanosecond(nanoseconds).unwrap();
            assert_eq!(rounded_up(time(given)), time(bound), "{given}");
        }
        assert_eq!(rounded_up(Timestamp::MAX), Timestamp::MAX);
    }
}
