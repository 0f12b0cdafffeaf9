//! How many tasks there are and how they fare, as the gauges counted last: for who shows it without asking the database
//! again.

use jiff::Timestamp;
use schemas::TaskStatus;

use crate::query::{Level, status_named};

/// Of all tasks that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fares {
    /// `None`: not counted yet, or the database is away.
    pub(crate) levels: Option<Counted<Levels>>,
    /// How many are stalled; `None` as for `levels`.
    pub(crate) stalled: Option<Counted<u64>>,
}

/// What was counted, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counted<T> {
    pub(crate) value: T,
    pub(crate) at: Timestamp,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Levels {
    /// All but those whose status is `Unknown`.
    pub(crate) running: u64,
    /// Those of them that do not run yet.
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
