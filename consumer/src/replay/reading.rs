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

/// The topic's reader, on a thread of its own, so that the next batch is read while one is written.
/// There are at most three: one that is filled, one handed over, one being written.
pub(super) struct Reading {
    pub(super) topic: String,
    pub(super) schemas: SchemaSource,
    pub(super) max_events: usize,
    pub(super) max_bytes: usize,
    /// Of each partition the offset after the last record that was read.
    pub(super) next: BTreeMap<i32, i64>,
    /// Of each partition the first offset in this batch that no record has.
    pub(super) first_gap: BTreeMap<i32, i64>,
    pub(super) batch: Batch,
    pub(super) batches: mpsc::Sender<Batch>,
}

impl Reading {
    /// Reads the ranges, or until it is stopped; hands over everything that was read.
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
        // The end of each range too: behind its last record there may have been more.
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
            // It is not to be handed over later either.
            self.batch.clear();
            return Err(error);
        }
        self.batches
            .blocking_send(std::mem::take(&mut self.batch))
            .map_err(|_| anyhow!("what was read is not taken any more"))
    }

    /// Offsets that no record has are those of commit markers and aborted records; unless the log
    /// begins behind them now: then retention may have been faster than we were.
    fn is_whole(&mut self, reader: &Reader) -> anyhow::Result<()> {
        for (partition, gap) in std::mem::take(&mut self.first_gap) {
            let log = reader.bounds(&self.topic, partition, End::Stable)?;
            if log.start > gap {
                return Err(wrong(format!(
                    "{} partition {partition} begins at offset {} now: retention removed events from offset {gap} on, it may \
                     be before they were read. Of these nothing was stored. Start again into an empty database, with a \
                     later --from",
                    self.topic, log.start
                )));
            }
        }
        Ok(())
    }
}
