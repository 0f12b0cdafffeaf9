//! The group's committed offset of each assigned partition.
//!
//! A partition may end with a commit marker or an aborted record. Positions behind these are committed, too,
//! so that tools show no lag without waiting records, and retention of the last record does not leave the
//! committed offset outside the log.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::subscription::Subscription;
use tokio::time::Instant;

/// How often positions are compared with the committed offsets.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// The group's committed offsets, and the time of the next comparison.
pub(super) struct Positions {
    /// By partition; partitions without a committed offset have no entry.
    committed: BTreeMap<i32, i64>,
    pub(super) compare_at: Instant,
}

impl Default for Positions {
    fn default() -> Self {
        Self {
            committed: BTreeMap::new(),
            compare_at: Instant::now(),
        }
    }
}

impl Positions {
    pub(super) fn forget(&mut self, partition: i32) {
        self.committed.remove(&partition);
    }

    /// Sets the committed offsets, by partition.
    pub(super) fn committed(&mut self, offsets: impl IntoIterator<Item = (i32, i64)>) {
        self.committed.extend(offsets);
    }

    /// The uncommitted positions. Call only while every delivered record is committed or about to be.
    pub(super) fn uncommitted(
        &mut self,
        subscription: &Subscription,
    ) -> anyhow::Result<BTreeMap<i32, i64>> {
        self.compare_at = Instant::now() + COMPARE_EVERY;
        let mut positions = subscription.positions()?;
        positions.retain(|partition, position| {
            let committed = self.committed.get(partition);
            committed.is_none_or(|committed| *position > *committed)
        });
        Ok(positions)
    }
}

/// Offsets of a topic by partition, in the type of Kafka's clients.
pub(super) fn offset_list(
    topic: &str,
    by_partition: &BTreeMap<i32, i64>,
) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(by_partition.len());
    for (partition, offset) in by_partition {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}
