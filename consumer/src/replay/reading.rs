//! Reads the ranges of the topic into batches.

use std::collections::BTreeMap;

use anyhow::anyhow;
use rdkafka::message::{BorrowedMessage, Message};
use service::range::{End, Ranges, Reader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::wrong;
use crate::batch::{Batch, Record};
use crate::schema_source::SchemaSource;

/// Reads the topic on a thread of its own, so that the next batch is read while one is written. At most three batches
/// exist: one being filled, one in the channel, one being written.
pub(super) struct Reading {
    pub(super) topic: String,
    pub(super) schemas: SchemaSource,
    pub(super) max_events: usize,
    pub(super) max_bytes: usize,
    /// The offset after the last record read, by partition.
    pub(super) next: BTreeMap<i32, i64>,
    /// The first offset without a record in this batch, by partition.
    pub(super) first_gap: BTreeMap<i32, i64>,
    pub(super) batch: Batch,
    pub(super) batches: mpsc::Sender<Batch>,
}

impl Reading {
    /// Reads the ranges, or until stopped; sends everything that was read.
    pub(super) fn read(
        mut self,
        reader: &Reader,
        ranges: &Ranges,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let topic = self.topic.clone();
        let scanned = reader.scan(&topic, ranges, stop, |record| {
            let schema = |id| self.schemas.schema_eventually(id, stop);
            self.schemas.decoder.learn(record.payload(), schema)?;
            self.take(reader, record)
        });
        self.hand_over(reader)?;
        scanned?;
        // Also check the end of each range: records may have existed after the last one read.
        for (partition, range) in ranges {
            let next = self.next.get(partition).copied().unwrap_or(range.start);
            if next < range.end {
                self.first_gap.insert(*partition, next);
            }
        }
        self.is_whole(reader)
    }

    fn take(&mut self, reader: &Reader, record: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        let (partition, offset) = (record.partition(), record.offset());
        if let Some(expected) = self.next.insert(partition, offset + 1)
            && expected < offset
        {
            self.first_gap.entry(partition).or_insert(expected);
        }
        self.batch.push(Record::read(&self.schemas.decoder, record));
        if self.batch.records().len() >= self.max_events || self.batch.bytes() >= self.max_bytes {
            self.hand_over(reader)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, reader: &Reader) -> anyhow::Result<()> {
        if self.batch.records().is_empty() {
            return Ok(());
        }
        if let Err(error) = self.is_whole(reader) {
            // This batch must not be sent later either.
            self.batch.clear();
            return Err(error);
        }
        self.batches
            .blocking_send(std::mem::take(&mut self.batch))
            .map_err(|_| anyhow!("the writing half has stopped"))
    }

    /// Offsets without a record are those of commit markers and aborted records, unless the log now begins after them:
    /// retention may then have removed records before they were read.
    fn is_whole(&mut self, reader: &Reader) -> anyhow::Result<()> {
        for (partition, gap) in std::mem::take(&mut self.first_gap) {
            let log = reader.bounds(&self.topic, partition, End::Stable)?;
            if log.start > gap {
                return Err(wrong(format!(
                    "{} partition {partition} now begins at offset {}: retention removed events from offset {gap} on, possibly \
                     before they were read. None of them was stored. Start again into an empty database, with a later \
                     --from",
                    self.topic, log.start
                )));
            }
        }
        Ok(())
    }
}
