//! The stored offset of each part and partition, and the steps that move it.

use std::collections::HashMap;

use ahash::RandomState;
use rdkafka::message::Message;

use crate::rows::Part;

/// The next offset of each part and partition, as last read from or written to the database. Absent until something of
/// the partition is stored.
pub(crate) type Positions = HashMap<(Part, i32), i64, RandomState>;

/// Identifies the last record read from a partition. If the topic is deleted and recreated, this offset has another
/// record or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) offset: i64,
    /// Milliseconds since the epoch; -1 if the record has no timestamp.
    pub(crate) timestamp_ms: i64,
    /// CRC-32 (IEEE) of the value; 0, the checksum of no bytes, if the record has no value.
    pub(crate) crc32: u32,
}

impl Anchor {
    /// No record has been stored yet.
    pub(crate) const NONE: Self = Self {
        offset: -1,
        timestamp_ms: -1,
        crc32: 0,
    };

    pub(crate) fn of(record: &impl Message) -> Self {
        Self {
            offset: record.offset(),
            timestamp_ms: record.timestamp().to_millis().unwrap_or(-1),
            crc32: crc32fast::hash(record.payload().unwrap_or_default()),
        }
    }
}

/// One step of a stored offset. The database accepts it only if the stored offset is still the expected one: this is
/// the fence between two consumers that both believe they own the partition.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advance {
    pub(crate) part: Part,
    pub(crate) partition: i32,
    /// The offset that must be stored; `None`: there must be none.
    pub(crate) expected: Option<i64>,
    /// The first offset of the records that the step covers.
    pub(crate) first: i64,
    /// The next offset after the step.
    pub(crate) next: i64,
    /// `None`: the step covers no record, and the stored anchor is kept.
    pub(crate) anchor: Option<Anchor>,
}
