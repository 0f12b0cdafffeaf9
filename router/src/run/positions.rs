//! How far the group has committed each assigned partition.
//!
//! A position is not always right behind a record: a partition may end with a commit marker or an aborted
//! record. Such positions are committed too, so that no tool shows a lag where nothing waits, and
//! retention that passes the last record does not leave a committed offset outside the log.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::subscription::Subscription;
use tokio::time::Instant;

/// How often positions are compared with the committed offsets.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// The group's committed offsets, and when to compare the positions with them.
pub(super) struct Positions {
    /// By partition; a partition for which nothing is committed yet has no entry.
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

    /// These are the committed offsets now, by partition.
    pub(super) fn committed(&mut self, offsets: impl IntoIterator<Item = (i32, i64)>) {
        self.committed.extend(offsets);
    }

    /// The positions that are not committed. Only to be called while every record that was handed out is committed
    /// or about to be.
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

/// Offsets of a topic by partition, as Kafka's clients take them.
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
