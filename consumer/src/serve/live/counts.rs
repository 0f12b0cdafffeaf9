//! The latest counts of tasks, taken by the gauges, so that pages need not query them.

use jiff::Timestamp;
use schemas::TaskStatus;

use crate::query::{Level, status_named};

/// Counts of all tasks that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct TaskCounts {
    /// `None` before the first count and while the database is unavailable.
    pub(crate) levels: Option<Counted<Levels>>,
    /// Number of stalled tasks; `None` as for `levels`.
    pub(crate) stalled: Option<Counted<u64>>,
}

/// A count and its time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counted<T> {
    pub(crate) value: T,
    pub(crate) at: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Levels {
    /// Without those whose status is `Unknown`.
    pub(crate) running: u64,
    /// Those of `running` that have not started to run.
    pub(crate) waiting: u64,
    pub(crate) silent: u64,
}

impl<T> Counted<T> {
    pub(super) fn now(value: T) -> Self {
        let at = Timestamp::now();
        Self { value, at }
    }
}

impl Levels {
    pub(super) fn of(levels: &[Level]) -> Self {
        levels.iter().fold(Self::default(), |mut sum, level| {
            let tasks = level.tasks.unsigned_abs();
            sum.silent += level.silent.unsigned_abs();
            match status_named(&level.status) {
                None | Some(TaskStatus::Unknown) => {}
                Some(TaskStatus::Running) => sum.running += tasks,
                Some(_) => {
                    sum.running += tasks;
                    sum.waiting += tasks;
                }
            }
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_of_every_engine_type_count() {
        let level = |engine_type: &str, status: &str, tasks, silent| Level {
            engine_type: engine_type.to_owned(),
            status: status.to_owned(),
            tasks,
            silent,
            oldest_report_seconds: None,
        };
        let levels = [
            level("spark", "Running", 7, 2),
            level("hive", "Running", 1, 0),
            level("hive", "Scheduled", 20, 1),
            level("hive", "Unknown", 300, 0),
        ];
        let sums = Levels {
            running: 28,
            waiting: 20,
            silent: 3,
        };
        assert_eq!(Levels::of(&levels), sums);
    }
}
