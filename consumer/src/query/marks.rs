//! Silent and stalled tasks: as SQL for filters, and in Rust for the rows of a list.

use std::time::Duration;

use jiff::Timestamp;

use super::filter::{TaskQuery, Thresholds};
use super::sql;
use super::time::earlier;
use crate::store::{Dialect, micros};
use crate::tables::Kind;

/// Minimum age of the last report of a silent task, if the threshold depends on its interval.
const SHORTEST_SILENCE: Duration = Duration::from_secs(60);
/// A task is silent after this many usual intervals.
const SILENT_INTERVALS: i64 = 5;

/// Judges tasks at a moment.
pub(super) struct Judge<'a> {
    pub(super) moment: Timestamp,
    pub(super) thresholds: &'a Thresholds,
    /// Only reports up to this time count.
    pub(super) at: Option<Timestamp>,
}

/// Whether a task is silent or stalled, and for how many microseconds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    pub(super) silent_micros: Option<i64>,
    pub(super) stalled_micros: Option<i64>,
}

impl<'a> Judge<'a> {
    pub(super) fn of(query: &'a TaskQuery, moment: Timestamp) -> Self {
        Self {
            moment,
            thresholds: &query.thresholds,
            at: query.at,
        }
    }

    /// This long before the moment, or `Timestamp::MIN`.
    pub(super) fn ago(&self, duration: Duration) -> Timestamp {
        earlier(self.moment, duration)
    }

    /// The marks of a task from the time of its last report, its usual interval, and the time since which its state is
    /// unchanged (`None`: it reports no progress); all in microseconds.
    pub(super) fn marks(
        &self,
        has_ended: bool,
        reported: i64,
        usual: Option<i64>,
        unchanged: Option<i64>,
    ) -> Marks {
        if has_ended {
            return Marks::default();
        }
        let quiet = self.moment.as_microsecond().saturating_sub(reported);
        let silent_after = match self.thresholds.silent_after {
            Some(after) => micros(after),
            None => {
                let by_interval = usual.unwrap_or(0).saturating_mul(SILENT_INTERVALS);
                by_interval.max(micros(SHORTEST_SILENCE))
            }
        };
        if quiet >= silent_after {
            return Marks {
                silent_micros: Some(quiet),
                stalled_micros: None,
            };
        }
        let latest = self.ago(self.thresholds.stalled_after).as_microsecond();
        let stalled = unchanged.filter(|&since| since <= latest && since < reported);
        Marks {
            silent_micros: None,
            stalled_micros: stalled.map(|since| self.moment.as_microsecond().saturating_sub(since)),
        }
    }

    /// SQL: the task's usual interval if the task may be silent by it, else null.
    pub(super) fn deciding_interval(&self, dialect: &dyn Dialect, relation: &str) -> String {
        match self.thresholds.silent_after {
            Some(_) => dialect.cast("NULL", Kind::I64),
            None => format!(
                "CASE WHEN NOT task.is_final AND task.reported_at <= {} THEN {} END",
                dialect.time(self.ago(SHORTEST_SILENCE)),
                sql::usual_interval(dialect, relation, self.at)
            ),
        }
    }

    /// The tasks that have not ended and have been quiet for as long as any silent task.
    fn quiet(&self, dialect: &dyn Dialect) -> String {
        let latest = dialect.time(self.ago(SHORTEST_SILENCE));
        let quiet = format!("AND task.reported_at <= {latest}");
        sql::open_tasks(dialect, self.at, &quiet)
    }

    /// SQL condition: the task is silent.
    pub(super) fn silent(&self, dialect: &dyn Dialect) -> String {
        let reported_by = |duration| {
            let latest = dialect.time(self.ago(duration));
            format!("NOT task.is_final AND task.reported_at <= {latest}")
        };
        match self.thresholds.silent_after {
            Some(after) => format!("({})", reported_by(after)),
            None => format!(
                "({} AND {} - {} >= {SILENT_INTERVALS} * coalesce({}, 0))",
                reported_by(SHORTEST_SILENCE),
                self.moment.as_microsecond(),
                dialect.epoch_micros("task.reported_at"),
                sql::usual_interval(dialect, &self.quiet(dialect), self.at)
            ),
        }
    }

    /// SQL condition: the task may be stalled, decided without its history.
    pub(super) fn may_be_stalled(&self, dialect: &dyn Dialect) -> String {
        let latest = dialect.time(self.ago(self.thresholds.stalled_after));
        format!(
            "NOT task.is_final AND task.progress IS NOT NULL AND task.first_reported_at <= {latest}"
        )
    }

    /// SQL condition: the task is stalled.
    pub(super) fn stalled(&self, dialect: &dyn Dialect) -> String {
        let may_be_stalled = format!("AND {}", self.may_be_stalled(dialect));
        let may_be_stalled = sql::open_tasks(dialect, self.at, &may_be_stalled);
        let latest = self.ago(self.thresholds.stalled_after).as_microsecond();
        let reported = dialect.epoch_micros("task.reported_at");
        format!(
            "({} AND NOT {} AND {} AND {} <= CASE WHEN {reported} <= {latest} THEN {reported} - 1 ELSE {latest} END)",
            self.may_be_stalled(dialect),
            self.silent(dialect),
            sql::unchanged_from(dialect, self.ago(self.thresholds.stalled_after), self.at),
            sql::unchanged_since(dialect, &may_be_stalled, self.at)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    /// Silent and stalled seconds of a task that has not ended, from the age of its last report, its usual interval,
    /// and the age of its state, in seconds.
    fn judged(
        silent_after: Option<u64>,
        reported: i64,
        usual: Option<i64>,
        unchanged: Option<i64>,
    ) -> (Option<i64>, Option<i64>) {
        let thresholds = Thresholds {
            silent_after: silent_after.map(Duration::from_secs),
            ..Thresholds::default()
        };
        let judge = Judge {
            moment: Timestamp::UNIX_EPOCH,
            thresholds: &thresholds,
            at: None,
        };
        let marks = judge.marks(
            false,
            -reported * SECOND,
            usual.map(|usual| usual * SECOND),
            unchanged.map(|unchanged| -unchanged * SECOND),
        );
        let seconds = |micros: Option<i64>| micros.map(|micros| micros / SECOND);
        (seconds(marks.silent_micros), seconds(marks.stalled_micros))
    }

    #[test]
    fn a_task_is_silent_after_a_minute_or_five_usual_intervals() {
        let silent = |reported, usual| judged(None, reported, usual, None).0;
        assert_eq!(silent(59, None), None);
        assert_eq!(silent(60, None), Some(60));
        assert_eq!(silent(60, Some(12)), Some(60));
        assert_eq!(silent(60, Some(13)), None);
        assert_eq!(silent(65, Some(13)), Some(65));
        assert_eq!(judged(Some(5), 4, Some(13), None).0, None);
        assert_eq!(judged(Some(5), 5, Some(13), None).0, Some(5));
        assert_eq!(silent(-5, None), None, "an engine's clock may be ahead");
    }

    #[test]
    fn a_task_is_stalled_while_its_reports_say_the_same_for_a_quarter_of_an_hour() {
        let stalled = |reported, unchanged| judged(None, reported, None, unchanged).1;
        assert_eq!(stalled(1, Some(899)), None);
        assert_eq!(stalled(1, Some(900)), Some(900));
        assert_eq!(stalled(1, None), None, "no progress");
        assert_eq!(
            judged(None, 60, None, Some(900)),
            (Some(60), None),
            "it is silent"
        );
        let one_report = judged(Some(3600), 900, None, Some(900));
        assert_eq!(one_report, (None, None), "a single report");
    }

    #[test]
    fn ended_tasks_have_no_marks_and_thresholds_may_be_huge() {
        let thresholds = Thresholds {
            silent_after: Some(Duration::MAX),
            stalled_after: Duration::MAX,
        };
        let judge = Judge {
            moment: Timestamp::MAX,
            thresholds: &thresholds,
            at: None,
        };
        assert_eq!(judge.ago(Duration::MAX), Timestamp::MIN);
        let first = Some(Timestamp::MIN.as_microsecond());
        for has_ended in [false, true] {
            let marks = judge.marks(has_ended, i64::MIN, first, first);
            assert_eq!(marks.stalled_micros, None, "{marks:?}");
            assert_eq!(marks.silent_micros.is_some(), !has_ended, "{marks:?}");
        }
    }
}
