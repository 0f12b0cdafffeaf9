//! Events that the topic has and the database has not stored yet. An audit does not compare them.

use std::collections::BTreeSet;

use rdkafka::message::BorrowedMessage;
use serde::Serialize;
use service::range::Ranges;
use service::words::counted;
use tokio::task::block_in_place;

use super::offsets::StoredOffsets;
use super::topic::Topic;
use crate::rows::Part;

/// Events are counted only among at most this many offsets.
const MAX_COUNTED: i64 = 1 << 20;

/// The number of events that are not stored yet.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct NotStored {
    /// Offsets up to the end that read_committed consumers see, including those of transaction markers.
    pub(super) offsets: u64,
    /// `None`: too many to count.
    pub(super) events: Option<u64>,
}

impl std::fmt::Display for NotStored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.events {
            Some(events) => f.write_str(&counted(events, "event")),
            None => write!(f, "up to {}", counted(self.offsets, "event")),
        }
    }
}

/// Counts the events that the topic has and the database has not stored yet.
///
/// # Errors
/// If the topic cannot be read.
pub(super) fn not_stored(
    topic: &Topic<'_>,
    logs: &Ranges,
    stored: &StoredOffsets,
) -> anyhow::Result<NotStored> {
    let parts: BTreeSet<Part> = stored.keys().map(|(part, _)| *part).collect();
    let mut waiting = Ranges::new();
    for (&partition, log) in logs {
        let next = parts.iter().map(|part| {
            let held = stored.get(&(*part, partition));
            held.map_or(log.start, |held| held.next_offset)
        });
        let next = next.min().unwrap_or(log.start).max(log.start);
        waiting.insert(partition, next..log.end.max(next));
    }
    let offsets: i64 = waiting.values().map(|range| range.end - range.start).sum();
    let mut not_stored = NotStored {
        offsets: offsets.unsigned_abs(),
        events: None,
    };
    if offsets <= MAX_COUNTED {
        let mut events = 0;
        let count = |_: &BorrowedMessage<'_>| {
            events += 1;
            Ok(())
        };
        block_in_place(|| topic.reader.scan(topic.name, &waiting, topic.stop, count))?;
        not_stored.events = Some(events);
    }
    Ok(not_stored)
}
