//! Which tasks are silent and which are stalled: as SQL for filters, and in Rust for the rows of a list.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::filter::{TaskQuery, Thresholds};
use super::sql;
use crate::store::Dialect;

/// A task is not silent by its own interval before its last report is so long ago.
pub(super) const SHORTEST_SILENCE: Duration = Duration::from_secs(60);
/// Usual intervals after which a task is silent.
const SILENT_INTERVALS: i64 = 5;

/// Judges tasks at a moment.
pub(super) struct Judge<'a> {
    pub(super) moment: Timestamp,
    pub(super) thresholds: &'a Thresholds,
    /// Only what was known at this time counts.
    pub(super) at: Option<Timestamp>,
}

/// What is wrong with a task, and for how many microseconds.
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

    /// So long before the moment, or the first moment of all.
    pub(super) fn ago(&self, duration: Duration) -> Timestamp {
        SignedDuration::try_from(duration)
            .ok()
            .and_then(|duration| self.moment.checked_sub(duration).ok())
            .unwrap_or(Timestamp::MIN)
    }

    /// The marks of a task whose last report was at `reported`, usual interval is `usual` and state the same since
    /// `unchanged` (`None`: it tells no progress), all in microseconds.
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

    /// The condition that the task `task` is silent.
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
                sql::usual_interval(dialect, self.at)
            ),
        }
    }

    /// The condition that the task `task` is stalled.
    pub(super) fn stalled(&self, dialect: &dyn Dialect) -> String {
        let latest = self.ago(self.thresholds.stalled_after).as_microsecond();
        let reported = dialect.epoch_micros("task.reported_at");
        format!(
            "(NOT task.is_final AND task.progress IS NOT NULL AND NOT {} AND {} <= \
             CASE WHEN {reported} <= {latest} THEN {reported} - 1 ELSE {latest} END)",
            self.silent(dialect),
            sql::unchanged_since(dialect, self.at)
        )
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
