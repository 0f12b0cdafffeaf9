//! The audited topic, and access to single records.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use service::range::{End, Ranges, Reader};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use super::spans::join;
use crate::rows::Rows;
use crate::schema_source::SchemaSource;

/// Records at most this far apart are read in one scan: starting another scan takes longer than reading what is between
/// them.
const NEAR_RECORDS: i64 = 32_768;

/// The events topic, with what is needed to read it.
pub(crate) struct Topic<'a> {
    pub(crate) name: &'a str,
    /// The topic id (KIP-516); `None` if the broker does not provide it.
    pub(crate) id: Option<String>,
    /// Number of partitions.
    pub(crate) partitions: i32,
    pub(crate) reader: &'a Reader,
    pub(crate) schemas: &'a SchemaSource,
    pub(crate) stop: &'a CancellationToken,
    /// `consumer expire` removed older reports from the histories: they are not compared.
    pub(crate) expired_before: Option<Timestamp>,
}

impl Topic<'_> {
    /// Whether an event's rows in the histories are not compared.
    pub(crate) fn is_expired(&self, event: &Rows<'_>) -> bool {
        let before = self.expired_before.map(Timestamp::as_microsecond);
        before.is_some_and(|before| event.info.reported_at < before)
    }

    /// Reads events, each after its writer's schema is known.
    pub(super) fn scan(
        &self,
        ranges: &Ranges,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.reader.scan(self.name, ranges, self.stop, |record| {
            let schema = |id| self.schemas.schema_soon(id, self.stop);
            self.schemas.decoder.learn(record.payload(), schema)?;
            each(record)
        })
    }
}

/// The records at these places; places without a record are skipped.
///
/// # Errors
/// If the topic cannot be read.
pub(crate) fn records(
    topic: &Topic<'_>,
    places: impl IntoIterator<Item = (i32, i64)>,
) -> anyhow::Result<Vec<OwnedMessage>> {
    let mut records = Vec::new();
    each_record(topic, places, Isolation::Committed, |record| {
        records.push(record.detach());
        Ok(())
    })?;
    Ok(records)
}

/// Which records are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    Committed,
    /// Includes records of aborted transactions.
    All,
}

/// Passes the records at these places to `each`; places without a record are skipped.
///
/// # Errors
/// If the topic cannot be read, or `each` fails.
pub(crate) fn each_record(
    topic: &Topic<'_>,
    places: impl IntoIterator<Item = (i32, i64)>,
    isolation: Isolation,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut wanted: BTreeMap<i32, BTreeSet<i64>> = BTreeMap::new();
    for (partition, offset) in places {
        wanted.entry(partition).or_default().insert(offset);
    }
    wanted.retain(|partition, _| (0..topic.partitions).contains(partition));
    block_in_place(|| {
        let mut places: BTreeMap<i32, VecDeque<Range<i64>>> = BTreeMap::new();
        for (partition, offsets) in &wanted {
            let log = topic.reader.bounds(topic.name, *partition, End::Stable)?;
            let of_partition: Vec<Range<i64>> = offsets
                .iter()
                .filter(|offset| log.contains(offset))
                .map(|offset| *offset..offset + 1)
                .collect();
            places.insert(*partition, join(&of_partition, NEAR_RECORDS).into());
        }
        // One place of each partition at a time: every scan starts a client of its own.
        loop {
            let next = places.iter_mut();
            let ranges: Ranges = next
                .filter_map(|(partition, places)| Some((*partition, places.pop_front()?)))
                .collect();
            if ranges.is_empty() {
                return Ok(());
            }
            let read = |record: &BorrowedMessage<'_>| match wanted[&record.partition()]
                .contains(&record.offset())
            {
                true => each(record),
                false => Ok(()),
            };
            match isolation {
                Isolation::Committed => topic.scan(&ranges, read)?,
                Isolation::All => {
                    let reader = topic.reader;
                    reader.scan_with_aborted(topic.name, &ranges, topic.stop, read)?;
                }
            }
        }
    })
}
