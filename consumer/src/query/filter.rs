//! Selects and orders a list of tasks: filters, order, thresholds, page size.

use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use schemas::TaskStatus;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::reader::{QueryError, is_no_text};
use super::sql::Statement;
use crate::store::{Dialect, Value};

/// Default page size, in tasks.
pub(crate) const DEFAULT_LIMIT: u32 = 100;
/// Maximum page size, in tasks.
pub(crate) const LARGEST_LIMIT: u32 = 1_000;

/// All statuses of the Avro schema.
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

/// The status with this name; `None` if there is none.
pub(crate) fn status_named(name: &str) -> Option<TaskStatus> {
    STATUSES.into_iter().find(|status| status.as_str() == name)
}

/// Selects tasks that satisfy every given condition. Text is compared bytewise. `after` includes the given time,
/// `before` excludes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TaskFilter {
    /// One of these statuses; empty: any.
    pub(crate) status: Vec<String>,
    /// Neither a final status nor `Unknown`, which means that the engine disappeared without reporting an end.
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

/// Sort key of a list of tasks. Tasks without a value come last in either direction; equal ones are sorted by the bytes
/// of their exec ids.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TaskOrder {
    /// Time of the first report.
    Started,
    /// Time of the last report.
    #[default]
    Reported,
    /// Running time.
    Duration,
    Progress,
    /// Memory held.
    Memory,
    /// Cores held.
    Cores,
}

/// When a task is marked silent or stalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Thresholds {
    /// A task that has not ended is silent if its last report is at least this old. `None`: 60 s or five times the
    /// task's usual interval, whichever is longer. The usual interval is the median of its last nine intervals.
    pub(crate) silent_after: Option<Duration>,
    /// A task that has not ended and is not silent is stalled if all its reports have had the same status, progress and
    /// counts for at least this long. A task whose newest report has no progress, such as a stream, is never stalled.
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

/// A query for a list of tasks. The serialized fields must be the same for each page.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TaskQuery {
    pub(crate) filter: TaskFilter,
    pub(crate) order: TaskOrder,
    /// Largest first.
    pub(crate) descending: bool,
    /// As known at this time; `None`: now.
    pub(crate) at: Option<Timestamp>,
    /// From 1 to [`LARGEST_LIMIT`].
    #[serde(skip)]
    pub(crate) limit: u32,
    /// `next` of the previous page, which must have had the same filters, order, time and thresholds.
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
/// If the limit is out of range.
pub(super) fn check_limit(limit: u32, largest: u32) -> Result<(), QueryError> {
    match (1..=largest).contains(&limit) {
        true => Ok(()),
        false => Err(QueryError::Parameter {
            name: "limit",
            why: format!("{limit} is out of range; expected 1 to {largest}"),
        }),
    }
}

/// # Errors
/// If the text contains NUL, which PostgreSQL refuses in a parameter.
pub(super) fn check_text(name: &'static str, text: Option<&str>) -> Result<(), QueryError> {
    match text.is_some_and(is_no_text) {
        false => Ok(()),
        true => Err(QueryError::Parameter {
            name,
            why: "it contains the character U+0000, which stored text never does".to_owned(),
        }),
    }
}

impl TaskFilter {
    /// Whether it matches every task.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it matches exactly the running tasks.
    pub(crate) fn is_only_running(&self) -> bool {
        let running = true;
        *self
            == Self {
                running,
                ..Self::default()
            }
    }

    /// Rejects misspelt statuses.
    pub(super) fn check(&self) -> Result<(), QueryError> {
        for status in &self.status {
            if status_named(status).is_none() {
                let all = STATUSES.map(TaskStatus::as_str);
                let why = format!(
                    "unknown status {status:?}; expected one of {}",
                    all.join(", ")
                );
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

    /// Whether it matches only ended tasks (`true`) or only others (`false`); `None`: both.
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

    /// Conditions on the columns of `task`.
    pub(super) fn conditions(
        &self,
        statement: &mut Statement,
        dialect: &dyn Dialect,
    ) -> Vec<String> {
        let mut conditions = Vec::new();
        // Redundant, but cheap to check, and lets the partial indexes be used.
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
            // Reports have microsecond precision, so rounding up keeps the meaning of both `after` and `before`.
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

/// To a whole microsecond, unless that would overflow.
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
