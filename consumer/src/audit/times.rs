//! When tasks were first reported and when they ended: the earliest times of all their reports, as far as
//! `task_progress` has them.

use jiff::Timestamp;
use schemas::REPORTED_AT_MICROS;

use crate::row_format::POSTGRES_EPOCH_MICROS;
use crate::tables::LeastTimes;

/// Whether a report can have this time, in PostgreSQL's microseconds.
pub(super) fn is_of_a_report(micros: i64) -> bool {
    REPORTED_AT_MICROS.contains(&micros.saturating_add(POSTGRES_EPOCH_MICROS))
}

/// Reports that a task's history may lack.
#[derive(Clone, Copy, Debug)]
pub(super) struct HistoryGaps {
    /// `consumer expire` removed reports before this time, in PostgreSQL's microseconds.
    expired_before: Option<i64>,
    /// Reports may be missing: other parts are stored further than `task_progress`, or not all findings are in memory.
    has_gaps: bool,
}

impl HistoryGaps {
    pub(super) fn new(expired_before: Option<Timestamp>, has_gaps: bool) -> Self {
        let micros = |time: Timestamp| time.as_microsecond() - POSTGRES_EPOCH_MICROS;
        Self {
            expired_before: expired_before.map(micros),
            has_gaps,
        }
    }

    /// The same for a task whose history may lack other reports too.
    pub(super) fn with_gaps(self) -> Self {
        Self {
            has_gaps: true,
            ..self
        }
    }

    /// The times that a task should have, given the times of its row (`held`) and those of its history. No time may be
    /// later than that of a report; an earlier one is right if a report that the history lacks may have it. `is_final`:
    /// the status of the newest report is final.
    pub(super) fn expected(
        self,
        held: LeastTimes,
        of_history: LeastTimes,
        is_final: bool,
    ) -> LeastTimes {
        let expected = |held: Option<i64>, of_history: Option<i64>| {
            let from_gap = held.filter(|held| {
                let is_expired = self.expired_before.is_some_and(|before| *held < before);
                (self.has_gaps || is_expired) && of_history.is_none_or(|least| *held < least)
            });
            from_gap.or(of_history)
        };
        let first_reported_at = expected(held.first_reported_at, of_history.first_reported_at)
            .filter(|first| is_of_a_report(*first))
            .or(of_history.first_reported_at);
        // No report ends a task before its first one, and a task whose state is not final has no end.
        let ended_at = expected(held.ended_at, of_history.ended_at)
            .filter(|ended| is_final && first_reported_at.is_some_and(|first| first <= *ended))
            .or(of_history.ended_at);
        LeastTimes {
            first_reported_at,
            ended_at,
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
        let all = HistoryGaps {
            expired_before: None,
            has_gaps: false,
        };
        for held in [times(10, Some(40)), times(30, None), times(20, Some(60))] {
            assert_eq!(all.expected(held, history, true), history, "{held:?}");
        }
        let expired = HistoryGaps {
            expired_before: Some(15),
            ..all
        };
        assert_eq!(
            expired.expected(times(10, Some(40)), history, true),
            times(10, Some(50))
        );
        assert_eq!(
            expired.expected(times(16, Some(50)), history, true),
            history
        );
        let gaps = HistoryGaps {
            has_gaps: true,
            ..all
        };
        let lower = times(16, Some(40));
        assert_eq!(gaps.expected(lower, history, true), lower);
        assert_eq!(gaps.expected(times(21, None), history, true), history);
        // Whatever is missing, no report can have these times.
        let history = times(20, None);
        let ended = times(10, Some(15));
        assert_eq!(gaps.expected(ended, history, false), times(10, None));
        let before_it_began = times(10, Some(9));
        let history = times(20, Some(50));
        assert_eq!(
            gaps.expected(before_it_began, history, true),
            times(10, Some(50))
        );
        assert_eq!(
            gaps.expected(times(i64::MIN, Some(40)), history, true)
                .first_reported_at,
            Some(20)
        );
    }
}
