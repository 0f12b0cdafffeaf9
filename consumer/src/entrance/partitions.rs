//! The assigned partitions and their state.

use std::collections::{BTreeMap, BTreeSet};

use crate::rows::Part;

/// The state of an assigned partition.
pub(super) enum Partition {
    /// Where to start is not known, because Kafka or the database did not answer or because the position must be read
    /// again. Its records are ignored.
    Unstarted,
    /// Its records are accepted from the stored position on.
    Started {
        /// The first offset of its log when it was started: the start of a part that has stored nothing.
        log_start: i64,
        /// The parts whose stored offset lacks the topic's id, which is known by now.
        without_topic_id: BTreeSet<Part>,
    },
}

/// The assigned partitions, by number.
#[derive(Default)]
pub(super) struct Partitions(BTreeMap<i32, Partition>);

impl Partitions {
    pub(super) fn is_started(&self, partition: i32) -> bool {
        matches!(self.0.get(&partition), Some(Partition::Started { .. }))
    }

    /// The log's first offset of each partition that is started.
    pub(super) fn log_starts(&self) -> impl Iterator<Item = (i32, i64)> {
        let started = self.0.iter();
        started.filter_map(|(&partition, state)| match state {
            Partition::Started { log_start, .. } => Some((partition, *log_start)),
            Partition::Unstarted => None,
        })
    }

    pub(super) fn unstarted(&self) -> BTreeSet<i32> {
        let unstarted = self.0.iter();
        unstarted
            .filter(|(_, state)| matches!(state, Partition::Unstarted))
            .map(|(&partition, _)| partition)
            .collect()
    }

    /// Whether the stored offset of this part lacks the topic's id.
    pub(super) fn lacks_topic_id(&self, partition: i32, part: Part) -> bool {
        match self.0.get(&partition) {
            Some(Partition::Started {
                without_topic_id, ..
            }) => without_topic_id.contains(&part),
            _ => false,
        }
    }

    /// The topic's id is stored with the offset of this part.
    pub(super) fn has_topic_id(&mut self, partition: i32, part: Part) {
        if let Some(Partition::Started {
            without_topic_id, ..
        }) = self.0.get_mut(&partition)
        {
            without_topic_id.remove(&part);
        }
    }

    pub(super) fn start(&mut self, started: BTreeMap<i32, Partition>) {
        self.0.extend(started);
    }

    /// Marks partitions whose start must be determined again.
    pub(super) fn unstart(&mut self, partitions: impl IntoIterator<Item = i32>) {
        let unstarted = partitions.into_iter();
        self.0
            .extend(unstarted.map(|partition| (partition, Partition::Unstarted)));
    }

    /// Drops the state of partitions that go to another owner.
    pub(super) fn forget(&mut self, partitions: &[i32]) {
        self.0
            .retain(|partition, _| !partitions.contains(partition));
    }
}
