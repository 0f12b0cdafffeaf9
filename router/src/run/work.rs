//! Content of a transaction, and its metrics after the commit.

use std::collections::BTreeMap;

use rdkafka::topic_partition_list::Offset;
use schemas::{Adjustment, Reject};
use service::telemetry::{Help, messaging, names};

use crate::config::Config;

/// Counter: repairs made, by kind. Label `adjustment`.
const ADJUSTMENTS: &str = "taskrunning_adjustments_total";
/// Counter: dead letters written, by kind. Label `reason`.
const DEAD_LETTERS: &str = "taskrunning_dead_letters_total";

/// Descriptions of the router's own metrics at `/metrics`.
pub const HELP: &[Help] = &[
    (ADJUSTMENTS, "Repairs of reports out of range, by kind."),
    (DEAD_LETTERS, "Dead letters written, by kind of fault."),
];

/// Content of a transaction.
#[derive(Default)]
pub(super) struct Work {
    pub(super) records: u32,
    pub(super) events: u64,
    /// Partition and offset of each dead letter's record, with the reason.
    pub(super) rejects: Vec<(i32, i64, Reject)>,
    pub(super) adjustments: Vec<Adjustment>,
    /// The first offset read of each partition; an abort rewinds to it.
    pub(super) first: BTreeMap<i32, Offset>,
    /// The next offset to read of each partition; the transaction commits it.
    pub(super) next: BTreeMap<i32, i64>,
}

impl Work {
    /// Counts a record that was read.
    pub(super) fn read(&mut self, partition: i32, offset: i64) {
        self.records += 1;
        self.read_again_from(partition, offset);
        self.next.insert(partition, offset + 1);
    }

    /// After an abort, the partition is read from this offset or an earlier one.
    pub(super) fn read_again_from(&mut self, partition: i32, offset: i64) {
        self.first
            .entry(partition)
            .or_insert(Offset::Offset(offset));
    }

    /// Updates log and metrics after the commit.
    pub(super) fn count(&self, config: &Config) {
        metrics::counter!(names::CONSUMED, &messaging("poll", &config.source_topic))
            .increment(self.records.into());
        metrics::counter!(names::SENT, &messaging("send", &config.events_topic))
            .increment(self.events);
        metrics::counter!(names::SENT, &messaging("send", &config.dead_letters_topic))
            .increment(self.rejects.len() as u64);
        for (partition, offset, reject) in &self.rejects {
            metrics::counter!(DEAD_LETTERS, "reason" => reject.kind).increment(1);
            tracing::warn!(
                topic = config.source_topic,
                partition,
                offset,
                reason = reject.kind,
                "dead letter: {}",
                reject.message
            );
        }
        for adjustment in &self.adjustments {
            metrics::counter!(ADJUSTMENTS, "adjustment" => adjustment.as_str()).increment(1);
        }
    }
}
