//! Pause between a commit and the next transaction.

use std::time::Duration;

use service::pause;
use tokio::time::Instant;

const MIN: Duration = Duration::from_millis(1);
/// Upper bound: beyond this, librdkafka's own retry after 20 ms is cheaper.
const MAX: Duration = Duration::from_millis(16);
/// A commit that takes longer had its transaction refused at first.
const REFUSED: Duration = Duration::from_millis(20);

/// The broker answers a commit before it has written the transaction's end into all partitions. Until then it
/// refuses the next transaction (`CONCURRENT_TRANSACTIONS`), and librdkafka 2.12 retries only after 20 ms
/// (`rd_kafka_txn_handle_AddPartitionsToTxn`), without reporting it. That time depends on the cluster, so the
/// pause adapts.
pub(super) struct CommitPause {
    /// The pause between a commit and the next transaction.
    pub(super) duration: Duration,
    /// End of the pause after the last commit; `None` if it has already been waited for.
    until: Option<Instant>,
}

impl Default for CommitPause {
    fn default() -> Self {
        Self {
            duration: MIN,
            until: None,
        }
    }
}

impl CommitPause {
    /// Begins the pause after a commit.
    pub(super) fn begin(&mut self) {
        self.until = Some(Instant::now() + self.duration);
    }

    /// Waits for the end of the pause; returns whether it had not ended yet.
    pub(super) async fn wait(&mut self) -> bool {
        let now = Instant::now();
        let Some(until) = self.until.take().filter(|until| *until > now) else {
            return false;
        };
        pause::until(until).await;
        true
    }

    /// Adapts the pause to the duration of a commit whose transaction began right after a pause. It grows by
    /// 1 ms and shrinks by a 64th.
    pub(super) fn learn(&mut self, commit: Duration) {
        let pause = match commit < REFUSED {
            true => self.duration - self.duration / 64,
            false => self.duration + MIN,
        };
        self.duration = pause.clamp(MIN, MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Number of 1000 transactions that a broker with this delay refuses.
    fn refused(pause: &mut CommitPause, broker: Duration) -> usize {
        let commits = (0..1000).map(|_| {
            let commit = match pause.duration < broker {
                true => REFUSED + MIN,
                false => MIN,
            };
            pause.learn(commit);
            commit
        });
        commits.filter(|commit| *commit > REFUSED).count()
    }

    #[test]
    fn the_pause_adapts_to_the_brokers_delay() {
        let mut pause = CommitPause::default();
        for (broker_ms, at_most) in [(1, 0), (5, 100), (12, 200), (1, 0)] {
            let broker = Duration::from_millis(broker_ms);
            let refused = refused(&mut pause, broker);
            assert!(refused <= at_most, "{broker_ms} ms: {refused} refused");
            let range = broker..=broker + MIN;
            assert!(
                range.contains(&(pause.duration + MIN / 2)),
                "{:?}",
                pause.duration
            );
        }
    }

    #[test]
    fn a_slow_cluster_is_not_waited_for_more_than_a_refusal_costs() {
        let mut pause = CommitPause::default();
        refused(&mut pause, Duration::from_secs(1));
        assert_eq!(pause.duration, MAX);
    }
}
