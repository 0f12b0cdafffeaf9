//! The counts of a delivery, and the error of one that did not finish.

use std::time::Duration;

use service::words::counted;

/// What became of the reports made so far.
/// `made = delivered + replaced + dropped + lost + refused + waiting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reports made; a task's `sequence` counts them.
    pub made: u64,
    /// Acknowledged by all in-sync replicas.
    pub delivered: u64,
    /// Never sent: a newer report of the same task took their place while Kafka was away.
    pub replaced: u64,
    /// Never sent: not final, and there was no room.
    pub dropped: u64,
    /// Never sent although final: the queue was full of final ones. Logged as an error.
    pub lost: u64,
    /// Refused for good, e.g. as too large. Logged as an error.
    pub refused: u64,
    /// In the queue or on their way.
    pub waiting: u64,
    /// Parts that were null because their fetch failed.
    pub parts_failed: u64,
}

/// Reports that did not reach Kafka.
#[derive(Clone, Debug)]
pub struct Undelivered {
    /// What became of all of them.
    pub stats: Stats,
    /// How many of those in the queue have a final status.
    pub finals: usize,
    /// How long the last ones were waited for.
    pub waited: Duration,
    /// The last error known.
    pub reason: String,
}

impl std::error::Error for Undelivered {}

impl std::fmt::Display for Undelivered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stats {
            made,
            waiting,
            lost,
            refused,
            ..
        } = self.stats;
        if waiting > 0 {
            write!(
                f,
                "{waiting} of {} ({} of them final) could not be delivered within {:?}: {}",
                counted(made, "report"),
                self.finals,
                self.waited,
                self.reason
            )?;
        }
        if lost + refused > 0 {
            let and = if waiting > 0 { "; " } else { "" };
            write!(
                f,
                "{and}{lost} final reports found no room in the queue and {refused} were refused (see the log)"
            )?;
        }
        Ok(())
    }
}
