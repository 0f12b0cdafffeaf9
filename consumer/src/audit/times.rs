//! When tasks were first heard of and when they ended: the least times of all their reports, as far as `task_progress` tells
//! them.

use jiff::Timestamp;

use crate::row_format::POSTGRES_EPOCH_MICROS;
use crate::tables::LeastTimes;

/// What the history of a task does not tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Untold {
    /// `consumer expire` removed reports from before this time, in PostgreSQL's microseconds.
    expired_before: Option<i64>,
    /// Reports may be missing from it: other parts are stored further than `task_progress`, or there are more findings
    /// than are held.
    has_gaps: bool,
}

impl Untold {
    pub(super) fn new(expired_before: Option<Timestamp>, has_gaps: bool) -> Self {
        let micros = |time: Timestamp| time.as_microsecond() - POSTGRES_EPOCH_MICROS;
        Self {
            expired_before: expired_before.map(micros),
            has_gaps,
        }
    }

    /// Of a task that may have reports which its history does not tell of.
    pub(super) fn with_gaps(self) -> Self {
        Self {
            has_gaps: true,
            ..self
        }
    }

    /// The times that a task should have, whose row has `held` and whose reports have `of_history`. No time is greater than
    /// that of a report; a lower one is right where it may be that of a report that the history does not tell of.
    pub(super) fn expected(self, held: LeastTimes, of_history: LeastTimes) -> LeastTimes {
        let expected = |held: Option<i64>, of_history: Option<i64>| {
            let untold = held.filter(|held| {
                let is_expired = self.expired_before.is_some_and(|before| *held < before);
                (self.has_gaps || is_expired) && of_history.is_none_or(|least| *held < least)
            });
            untold.or(of_history)
        };
        LeastTimes {
            first_reported_at: expected(held.first_reported_at, of_history.first_reported_at),
            ended_at: expected(held.ended_at, of_history.ended_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(first_reported_at: i64, ended_at: Option<i64>) -> LeastTimes {
        LeastTimes {
            first_reported_at: Some(first_reported_at),
            ended_at,
        }
    }

    #[test]
    fn only_a_report_that_may_be_gone_explains_a_lower_time() {
        let history = times(20, Some(50));
        let all = Untold {
            expired_before: None,
            has_gaps: false,
        };
        for held in [times(10, Some(40)), times(30, None), times(20, Some(60))] {
            assert_eq!(all.expected(held, history), history, "{held:?}");
        }
        let expired = Untold {
            expired_before: Some(15),
            ..all
        };
        assert_eq!(
            expired.expected(times(10, Some(40)), history),
            times(10, Some(50))
        );
        assert_eq!(expired.expected(times(16, Some(50)), history), history);
        let gaps = Untold {
            has_gaps: true,
            ..all
        };
        let lower = times(16, Some(40));
        assert_eq!(gaps.expected(lower, history), lower);
        assert_eq!(gaps.expected(times(21, None), history), history);
    }
}
