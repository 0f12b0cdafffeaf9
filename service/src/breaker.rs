//! Few bad records are bad records; many in a row are the wrong topic, or the wrong schema.
//!
//! Every record is judged before anything about it is committed. Where a run of rejects reaches a
//! limit the service stops, and whoever corrects the cause and starts it again has lost nothing: the
//! run was not committed.

use std::collections::VecDeque;
use std::time::Duration;

/// Over so many records the share of rejects is judged.
const WINDOW: usize = 1_000;

/// Options of a service that sets bad records aside.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(next_help_heading = "Circuit breaker")]
pub struct BreakerOptions {
    /// Stop, with nothing of them committed, when so many records in a row are unusable; 0: never
    #[arg(
        long,
        env = "MAX_REJECTS_IN_A_ROW",
        value_name = "N",
        default_value_t = 100
    )]
    pub max_rejects_in_a_row: u32,

    /// Stop when so many of the last 1000 records are unusable; 0: never
    #[arg(
        long,
        env = "MAX_REJECTS_PER_1000",
        value_name = "N",
        default_value_t = 500
    )]
    pub max_rejects_per_1000: u32,
}

/// Counts rejects.
#[derive(Debug)]
pub struct Breaker {
    options: BreakerOptions,
    in_a_row: u32,
    /// Of the last records, whether each was a reject.
    window: VecDeque<bool>,
    in_window: u32,
}

impl Breaker {
    /// A run of rejects is held back for so long for the record that ends it, or for more of them.
    pub const PATIENCE: Duration = Duration::from_secs(1);

    /// Nothing counted yet.
    pub fn new(options: BreakerOptions) -> Self {
        Self {
            options,
            in_a_row: 0,
            window: VecDeque::with_capacity(WINDOW),
            in_window: 0,
        }
    }

    /// Counts a record that can be used.
    pub fn accept(&mut self) {
        self.count(false);
        self.in_a_row = 0;
    }

    /// A record that was counted before is no reject on a second look either.
    pub fn ends_run(&mut self) {
        self.in_a_row = 0;
    }

    /// Counts one that cannot.
    ///
    /// # Errors
    /// If it is one too many: what was counted, for a person, to be followed by what the last one was.
    pub fn reject(&mut self) -> Result<(), String> {
        self.count(true);
        self.in_a_row += 1;
        let BreakerOptions {
            max_rejects_in_a_row,
            max_rejects_per_1000,
        } = self.options;
        if max_rejects_in_a_row > 0 && self.in_a_row >= max_rejects_in_a_row {
            return Err(format!(
                "{} records in a row are unusable (--max-rejects-in-a-row)",
                self.in_a_row
            ));
        }
        if max_rejects_per_1000 > 0 && self.in_window >= max_rejects_per_1000 {
            return Err(format!(
                "{} of the last {} records are unusable (--max-rejects-per-1000)",
                self.in_window,
                self.window.len()
            ));
        }
        Ok(())
    }

    fn count(&mut self, rejected: bool) {
        if self.window.len() == WINDOW && self.window.pop_front() == Some(true) {
            self.in_window -= 1;
        }
        self.window.push_back(rejected);
        self.in_window += u32::from(rejected);
    }

    /// Whether the last record was a reject, so that the next ones have to tell whether it is one of
    /// few or of many.
    pub fn undecided(&self) -> bool {
        self.in_a_row > 0 && self.options.max_rejects_in_a_row > 0
    }

    /// Forgets what was counted, since it is going to be read again.
    pub fn reset(&mut self) {
        *self = Self::new(self.options);
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
        let said = breaker.reject().unwrap_err();
        assert!(said.contains("3 records in a row"), "{said}");
        breaker.reset();
        assert_eq!(breaker.reject(), Ok(()));
    }

    #[test]
    fn a_share_is_judged_over_the_last_thousand_only() {
        let mut breaker = breaker(0, 400);
        // 399 of any 1000 in a row are no harm, however often.
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
        let said = breaker.reject().unwrap_err();
        assert!(said.contains("400 of the last 1000"), "{said}");
    }

    #[test]
    fn zero_means_never() {
        let mut breaker = breaker(0, 0);
        assert!((0..5_000).all(|_| breaker.reject().is_ok() && !breaker.undecided()));
    }
}
