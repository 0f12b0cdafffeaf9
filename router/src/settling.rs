//! How long to leave the broker alone after a commit.

use std::time::Duration;

const LEAST: Duration = Duration::from_millis(1);
/// More than this is not better than to be refused.
const MOST: Duration = Duration::from_millis(16);
/// So much longer takes a commit whose transaction was refused at first.
const REFUSED: Duration = Duration::from_millis(20);

/// The broker answers a commit before it has written the transaction's end into all partitions. Meanwhile
/// it refuses the next transaction (`CONCURRENT_TRANSACTIONS`), and librdkafka 2.12 tries again only after
/// 20 ms (`rd_kafka_txn_handle_AddPartitionsToTxn`) without telling. How long the broker takes depends on
/// the cluster, so it is learnt.
pub(crate) struct Settling {
    /// To be made between a commit and the next transaction.
    pub(crate) pause: Duration,
}

impl Default for Settling {
    fn default() -> Self {
        Self { pause: LEAST }
    }
}

impl Settling {
    /// Learns from how long a commit took whose transaction began after such a pause. It grows by steps
    /// of 1 ms, and falls again by a 64th of it.
    pub(crate) fn learn(&mut self, commit: Duration) {
        let pause = match commit < REFUSED {
            true => self.pause - self.pause / 64,
            false => self.pause + LEAST,
        };
        self.pause = pause.clamp(LEAST, MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 1000 transactions a broker refuses that takes so long.
    fn refused(settling: &mut Settling, broker: Duration) -> usize {
        let commits = (0..1000).map(|_| {
            let commit = match settling.pause < broker {
                true => REFUSED + LEAST,
                false => LEAST,
            };
            settling.learn(commit);
            commit
        });
        commits.filter(|commit| *commit > REFUSED).count()
    }

    #[test]
    fn the_pause_becomes_what_the_broker_takes() {
        let mut settling = Settling::default();
        for (broker_ms, at_most) in [(1, 0), (5, 100), (12, 200), (1, 0)] {
            let broker = Duration::from_millis(broker_ms);
            let refused = refused(&mut settling, broker);
            assert!(refused <= at_most, "{broker_ms} ms: {refused} refused");
            let range = broker..=broker + LEAST;
            assert!(
                range.contains(&(settling.pause + LEAST / 2)),
                "{:?}",
                settling.pause
            );
        }
    }

    #[test]
    fn a_slow_cluster_is_not_waited_for_more_than_a_refusal_costs() {
        let mut settling = Settling::default();
        refused(&mut settling, Duration::from_secs(1));
        assert_eq!(settling.pause, MOST);
    }
}
