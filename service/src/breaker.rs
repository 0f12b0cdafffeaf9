//! Circuit breaker: a few bad records are set aside; many mean a wrong topic, schema or table, and stop the
//! service.
//!
//! Each record counts once, in reading order, when its outcome is known: accepted or rejected. Two rules stop
//! the service: a number of rejects in a row, or a number of rejects among the last 1000 records.
//!
//! Counts are tentative until the transaction ends: [`settle`](Breaker::settle) keeps them after a commit,
//! [`take_back`](Breaker::take_back) drops them before the records are read again. Every record of a
//! transaction is counted before the commit, so a reject that trips the breaker, and all others of its
//! transaction, have no dead letter yet.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::words::{agreed, counted};

/// Number of records over which the share of rejects is computed.
const WINDOW: usize = 1_000;

/// Options of a service that sets bad records aside.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Circuit breaker")]
pub struct BreakerOptions {
    /// Stop when this many records in a row are unusable, before they are set aside; 0: never
    #[arg(
        long,
        env = "MAX_REJECTS_IN_A_ROW",
        value_name = "N",
        default_value_t = 100
    )]
    pub max_rejects_in_a_row: u32,

    /// Stop when this many of the last 1000 records are unusable; 0: never
    #[arg(
        long,
        env = "MAX_REJECTS_PER_1000",
        value_name = "N",
        default_value_t = 500,
        value_parser = clap::value_parser!(u32).range(..=WINDOW as i64)
    )]
    pub max_rejects_per_1000: u32,
}

/// Counts rejects.
#[derive(Debug)]
pub struct Breaker {
    options: BreakerOptions,
    /// Includes unsettled records.
    counts: Counts,
    settled: Counts,
    /// Number of records counted since the last settle.
    unsettled: usize,
}

#[derive(Debug, Default)]
struct Counts {
    in_a_row: u32,
    /// For each of the last records, whether it was a reject.
    window: VecDeque<bool>,
    in_window: u32,
}

impl Counts {
    fn count(&mut self, rejected: bool) {
        if self.window.len() == WINDOW && self.window.pop_front() == Some(true) {
            self.in_window -= 1;
        }
        self.window.push_back(rejected);
        self.in_window += u32::from(rejected);
        self.in_a_row = if rejected { self.in_a_row + 1 } else { 0 };
    }

    fn copy_from(&mut self, other: &Self) {
        self.in_a_row = other.in_a_row;
        self.window.clone_from(&other.window);
        self.in_window = other.in_window;
    }
}

/// The limit that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tripped {
    rule: Rule,
    rejects: u32,
    /// Number of these rejects that were settled before, so that they have dead letters.
    pub settled: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    InARow,
    /// Rejects among this number of records.
    Share(usize),
}

impl fmt::Display for Tripped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rejects = self.rejects;
        match self.rule {
            Rule::InARow => write!(
                f,
                "{} in a row {} unusable",
                counted(rejects, "record"),
                agreed(rejects, "is", "are")
            ),
            Rule::Share(of) => write!(
                f,
                "{rejects} of the last {} {} unusable",
                counted(of, "record"),
                agreed(rejects, "is", "are")
            ),
        }
    }
}

impl Tripped {
    /// The option of [`BreakerOptions`] whose limit was reached.
    pub fn option(&self) -> &'static str {
        match self.rule {
            Rule::InARow => "--max-rejects-in-a-row",
            Rule::Share(_) => "--max-rejects-per-1000",
        }
    }

    /// How many of the rejects have dead letters in this topic.
    pub fn letters(&self, topic: &str) -> String {
        match self.settled {
            0 => format!("None of them became a dead letter in {topic}"),
            settled => format!(
                "{settled} of them became {} in {topic}, the other {} did not",
                agreed(settled, "a dead letter", "dead letters"),
                self.rejects - settled
            ),
        }
    }
}

impl Breaker {
    /// How long a run of rejects is held back, waiting for the record that ends it or for more rejects.
    pub const PATIENCE: Duration = Duration::from_secs(1);

    /// A breaker with all counts at zero.
    pub fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            counts: Counts::default(),
            settled: Counts::default(),
            unsettled: 0,
        }
    }

    /// Counts a usable record.
    pub fn accept(&mut self) {
        self.counts.count(false);
        self.unsettled += 1;
    }

    /// Counts a reject.
    ///
    /// # Errors
    /// If it reaches a limit.
    pub fn reject(&mut self) -> Result<(), Tripped> {
        self.counts.count(true);
        self.unsettled += 1;
        let BreakerOptions {
            max_rejects_in_a_row,
            max_rejects_per_1000,
        } = self.options;
        let Counts {
            in_a_row,
            ref window,
            in_window,
        } = self.counts;
        let unsettled = self.unsettled.min(window.len());
        if max_rejects_in_a_row > 0 && in_a_row >= max_rejects_in_a_row {
            return Err(Tripped {
                rule: Rule::InARow,
                rejects: in_a_row,
                settled: in_a_row.saturating_sub(self.unsettled as u32),
            });
        }
        if max_rejects_per_1000 > 0 && in_window >= max_rejects_per_1000 {
            let settled = window.range(..window.len() - unsettled);
            return Err(Tripped {
                rule: Rule::Share(window.len()),
                rejects: in_window,
                settled: settled.filter(|rejected| **rejected).count() as u32,
            });
        }
        Ok(())
    }

    /// Keeps the counts: the transaction was committed.
    pub fn settle(&mut self) {
        if self.unsettled > 0 {
            self.settled.copy_from(&self.counts);
            self.unsettled = 0;
        }
    }

    /// Drops unsettled counts: the records will be read again.
    pub fn take_back(&mut self) {
        if self.unsettled > 0 {
            self.counts.copy_from(&self.settled);
            self.unsettled = 0;
        }
    }

    /// Whether a run of rejects is open: the last record was a reject, and the next ones decide whether it is
    /// one of few or of many.
    pub fn undecided(&self) -> bool {
        self.counts.in_a_row > 0 && self.options.max_rejects_in_a_row > 0
    }

    /// The same for records that are not counted yet: the last `rejects` of them are rejects, preceded by a
    /// usable record unless they are `all` unsettled records. False if they reach the limit.
    pub fn would_be_undecided(&self, rejects: usize, all: bool) -> bool {
        let before = if all { self.settled.in_a_row } else { 0 };
        let in_a_row = rejects + before as usize;
        rejects > 0 && in_a_row < self.options.max_rejects_in_a_row as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(max_rejects_in_a_row: u32, max_rejects_per_1000: u32) -> Breaker {
        Breaker::new(BreakerOptions {
            max_rejects_in_a_row,
            max_rejects_per_1000,
        })
    }

    #[test]
    fn a_run_that_reaches_the_limit_opens_it_and_one_that_ends_before_does_not() {
        let mut breaker = breaker(3, 0);
        for rejected in [true, true, false, true, true] {
            if rejected {
                assert_eq!(breaker.reject(), Ok(()));
            } else {
                breaker.accept();
            }
            assert_eq!(breaker.undecided(), rejected);
        }
        let message = breaker.reject().unwrap_err().to_string();
        assert!(message.contains("3 records in a row"), "{message}");
        breaker.take_back();
        assert_eq!(breaker.reject(), Ok(()));
    }

    #[test]
    fn a_share_is_judged_over_the_last_thousand_only() {
        let mut breaker = breaker(0, 400);
        // 399 of any 1000 in a row are below the limit, however often.
        for i in 0..3_000 {
            if i % 1_000 < 399 {
                assert_eq!(breaker.reject(), Ok(()));
            } else {
                breaker.accept();
            }
        }
        assert!(!breaker.undecided());
        for _ in 0..399 {
            assert_eq!(breaker.reject(), Ok(()));
        }
        let message = breaker.reject().unwrap_err().to_string();
        assert!(message.contains("400 of the last 1000"), "{message}");
    }

    /// However often records are judged again, they count once.
    #[test]
    fn taken_back_rejects_do_not_count_and_settled_ones_are_set_aside() {
        let mut breaker = breaker(10, 5);
        for _ in 0..3 {
            for _ in 0..4 {
                breaker.accept();
                assert_eq!(breaker.reject(), Ok(()));
            }
            breaker.take_back();
        }
        breaker.accept();
        assert_eq!((breaker.reject(), breaker.reject()), (Ok(()), Ok(())));
        breaker.settle();
        assert_eq!((breaker.reject(), breaker.reject()), (Ok(()), Ok(())));
        breaker.take_back();
        assert_eq!((breaker.reject(), breaker.reject()), (Ok(()), Ok(())));
        let tripped = breaker.reject().unwrap_err();
        assert_eq!(
            (tripped.to_string(), tripped.settled),
            ("5 of the last 6 records are unusable".to_owned(), 2)
        );
        let message = tripped.letters("letters");
        assert!(message.starts_with("2 of them became dead letters in letters"));
    }

    #[test]
    fn a_run_is_held_back_only_while_more_may_follow() {
        let mut breaker = breaker(3, 0);
        assert!(!breaker.would_be_undecided(0, true));
        assert!(breaker.would_be_undecided(2, true));
        assert!(!breaker.would_be_undecided(3, false));
        assert_eq!((breaker.reject(), breaker.reject()), (Ok(()), Ok(())));
        breaker.settle();
        assert!(!breaker.would_be_undecided(0, true));
        assert!(!breaker.would_be_undecided(1, true));
        assert!(breaker.would_be_undecided(1, false));
        let tripped = breaker.reject().unwrap_err();
        assert_eq!(tripped.settled, 2);
    }

    #[test]
    fn zero_means_never() {
        let mut breaker = breaker(0, 0);
        assert!((0..5_000).all(|_| breaker.reject().is_ok() && !breaker.undecided()));
        assert!(!breaker.would_be_undecided(7, true));
    }
}
