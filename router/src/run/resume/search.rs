//! Reads the outputs, and keeps the newest of each source partition.

use std::collections::BTreeMap;

use rdkafka::message::{BorrowedMessage, Message};
use schemas::dead_letter;
use service::exit::NeedsAttention;
use service::range::{Ranges, Reader};
use service::words::counted;
use tokio_util::sync::CancellationToken;

use super::tails::OutputTopic;
use crate::config::Config;
use crate::outputs::{self, OutputRecord, SourceTopic, number};
use crate::transform::Codec;

/// Maximum number of kept keys of unreadable records.
const MAX_UNREADABLE: usize = 1_000;

/// The newest output found of a source partition.
#[derive(Clone, Copy)]
pub(super) struct Newest {
    /// The source record's offset and Kafka timestamp.
    pub(super) offset: i64,
    pub(super) timestamp_ms: i64,
    /// The output's own timestamp, if it has one.
    pub(super) written_ms: Option<i64>,
}

/// Meaning of an output topic's record for the search.
enum Found {
    /// An output of this source partition.
    Output(i32, Newest),
    /// An output of an earlier topic with the source topic's name.
    Earlier,
    /// A record of the events topic whose schema is unknown, and why.
    Unreadable(String),
    Nothing,
}

/// State of a search for the start offsets of some source partitions.
pub(super) struct Search<'a> {
    pub(super) config: &'a Config,
    pub(super) codec: &'a Codec,
    pub(super) max_event_bytes: usize,
    pub(super) source: SourceTopic,
    pub(super) reader: &'a Reader,
    pub(super) latest_stamp_ms: Option<i64>,
    /// The source partitions, with the first offsets of their logs.
    pub(super) searched: &'a BTreeMap<i32, i64>,
    pub(super) newest: BTreeMap<i32, Newest>,
    /// By key, why a record of the events topic cannot be decoded. Such records are foreign, or events of a
    /// newer router, with the key of their source record or its execId.
    pub(super) unreadable: BTreeMap<Vec<u8>, String>,
    /// Number of outputs read.
    pub(super) read: u64,
    pub(super) stop: &'a CancellationToken,
}

impl Search<'_> {
    /// Reads a topic to the ends of its logs, which includes waiting for the transactions that are open there.
    pub(super) fn read_on(&mut self, topic: &mut OutputTopic) -> anyhow::Result<()> {
        let ranges = topic.unread(self.reader)?;
        self.read(topic, &ranges)
    }

    /// Reads some partitions of a topic farther back.
    pub(super) fn read_back(
        &mut self,
        topic: &mut OutputTopic,
        partitions: &[i32],
    ) -> anyhow::Result<()> {
        let ranges = topic.step_back(partitions)?;
        self.read(topic, &ranges)
    }

    /// The evidence for a start offset: the newest output, and the number of keys of unreadable ones.
    pub(super) fn evidence(&self, partition: i32) -> (Option<i64>, usize) {
        let newest = self.newest.get(&partition).map(|newest| newest.offset);
        (newest, self.unreadable.len())
    }

    /// Why a record of the events topic with one of these keys, which may be the event, is unreadable.
    pub(super) fn unreadable_event(&self, keys: Option<&[Vec<u8>]>) -> Option<&String> {
        match keys {
            Some(keys) => keys.iter().find_map(|key| self.unreadable.get(key)),
            None => self.unreadable.values().next(),
        }
    }

    fn read(&mut self, topic: &mut OutputTopic, ranges: &Ranges) -> anyhow::Result<()> {
        let count: i64 = ranges.values().map(|range| range.end - range.start).sum();
        if count > 0 {
            tracing::info!(
                "reading up to {} of {} to find where to resume",
                counted(count, "record"),
                topic.name
            );
        }
        let OutputTopic { name, tails, .. } = topic;
        let reader = self.reader;
        let stop = self.stop;
        reader.scan(name, ranges, stop, |record| {
            self.read += 1;
            let (source, newest) = match self.source_of(record)? {
                Found::Output(source, newest) => (source, newest),
                Found::Earlier => {
                    // All outputs of the present topic come after it.
                    if let Some(tail) = tails.get_mut(&record.partition()) {
                        tail.seen.extend(self.searched.keys());
                    }
                    return Ok(());
                }
                Found::Unreadable(why) => {
                    let key = record.key().unwrap_or_default().to_vec();
                    self.unreadable.entry(key).or_insert(why);
                    if self.unreadable.len() > MAX_UNREADABLE {
                        return Err(NeedsAttention(format!(
                            "searching for where to resume, more than {MAX_UNREADABLE} records of the events topic cannot be \
                             read, such as: {}. Give their schema by --schemas, or choose --on-no-offset beginning",
                            self.unreadable.values().next().map_or("", String::as_str)
                        ))
                        .into());
                    }
                    return Ok(());
                }
                Found::Nothing => return Ok(()),
            };
            if let Some(tail) = tails.get_mut(&record.partition()) {
                tail.seen.insert(source);
            }
            let known = self.newest.entry(source).or_insert(newest);
            if newest.offset > known.offset {
                *known = newest;
            }
            Ok(())
        })
    }

    /// Classifies a record of an output topic.
    fn source_of(&self, record: &BorrowedMessage<'_>) -> anyhow::Result<Found> {
        let source = &self.source;
        let output = match record.topic() == self.config.events_topic {
            true => {
                let schemas = &self.codec.schemas;
                let schema = |id| schemas.schema_soon(id, self.stop);
                schemas.decoder.learn(record.payload(), schema)?;
                match outputs::event(&schemas.decoder, source, record) {
                    Ok(output) => output,
                    Err(error) => return Ok(Found::Unreadable(format!("{error:#}"))),
                }
            }
            false => outputs::letter(source, record),
        };
        let (about, timestamp_ms) = match output {
            OutputRecord::Event(about, timestamp_ms) => (about, timestamp_ms),
            OutputRecord::Letter(about, _) => {
                let timestamp_ms = number(record, dead_letter::TIMESTAMP_MS);
                (about, timestamp_ms.unwrap_or(-1))
            }
            OutputRecord::Earlier => return Ok(Found::Earlier),
            OutputRecord::Redriven | OutputRecord::Foreign | OutputRecord::Unreadable(_) => {
                return Ok(Found::Nothing);
            }
        };
        let newest = Newest {
            offset: about.offset,
            timestamp_ms,
            written_ms: record.timestamp().to_millis(),
        };
        Ok(match self.searched.contains_key(&about.partition) {
            true => Found::Output(about.partition, newest),
            false => Found::Nothing,
        })
    }
}
