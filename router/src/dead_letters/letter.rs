//! Records of a dead letter topic: letters, and notes that a letter was redriven.

use std::collections::HashSet;
use std::sync::Arc;

use rdkafka::message::{BorrowedMessage, Message};
use schemas::dead_letter::{self, First};
use service::kafka::header;
use service::range::Position;

use super::topic::DeadLetterTopic;
use crate::outputs::{number, position};

/// Bytes of a key that are kept for a table.
const KEY_SHOWN_BYTES: usize = 256;
/// Maximum number of strings that letters share; further ones are copied.
const MAX_SHARED: usize = 1_000;

/// How much of each letter is held in memory.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Detail {
    /// What a table or a redrive needs: no message, and only the beginning of a long key.
    Row,
    /// Everything except the value.
    Whole,
}

/// A letter without its value.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) position: Position,
    /// When it was written, milliseconds since 1970.
    pub(super) written_ms: i64,
    /// The source of its record. `None` if the headers do not name it, so neither router nor consumer wrote
    /// the letter.
    pub(super) source: Option<SourceRecord>,
    /// The original record's timestamp, milliseconds since 1970, if it had one.
    pub(super) original_ms: Option<i64>,
    /// Position and timestamp of its record before the first redrive; `None` if it was never redriven.
    first: Option<(SourceRecord, Option<i64>)>,
    /// `router` or `consumer`.
    pub(super) service: Arc<str>,
    /// The kind of fault.
    pub(super) kind: Arc<str>,
    /// The error message.
    pub(super) message: Box<str>,
    /// The record's key; see [`Detail`]. Complete if the letter omits the value.
    pub(super) key: Option<Box<[u8]>>,
    /// Bytes of the original value; `None`: it had no value.
    pub(super) value_bytes: Option<usize>,
    /// Whether the letter omits the value because of its size.
    pub(super) omitted: bool,
    /// `None` if there is no note about it.
    pub(super) redriven: Option<Redrives>,
    /// Positions of other letters about the same record, which are noted with this one.
    pub(super) duplicates: Vec<Position>,
}

/// Source of a letter's record.
#[derive(Clone, Debug)]
pub(super) struct SourceRecord {
    pub(super) topic: Arc<str>,
    pub(super) position: Position,
}

/// The redrives of a letter, by its notes.
#[derive(Clone, Debug)]
pub(super) struct Redrives {
    /// The newest note's time, RFC 3339.
    pub(super) at: Box<str>,
    pub(super) times: u32,
}

impl Redrives {
    /// Adds a note.
    pub(super) fn again(before: Option<&Self>, at: &str) -> Self {
        Self {
            at: at.into(),
            times: before.map_or(0, |before| before.times) + 1,
        }
    }
}

/// The letter that a record on the dead letter topic notes as redriven, and when; `None` for a letter.
pub(super) fn note(record: &impl Message) -> Option<(Position, &str)> {
    if header(record, dead_letter::TOPIC).is_some() {
        return None;
    }
    let position = Position {
        partition: number(record, dead_letter::REDRIVEN_PARTITION)?,
        offset: number(record, dead_letter::REDRIVEN_OFFSET)?,
    };
    Some((
        position,
        header(record, dead_letter::REDRIVEN_AT).unwrap_or("-"),
    ))
}

fn first(source: &SourceRecord, timestamp_ms: Option<i64>) -> First<'_> {
    First {
        topic: &source.topic,
        partition: source.position.partition,
        offset: source.position.offset,
        timestamp_ms,
    }
}

/// Key and value of a letter's record, which may be null, or why they are not available.
pub(super) type Original = Result<(Option<Vec<u8>>, Option<Vec<u8>>), String>;

impl Letter {
    /// The record's position before any redrive; `None` if the headers do not name it.
    pub(super) fn first(&self) -> Option<First<'_>> {
        let latest = || Some(first(self.source.as_ref()?, self.original_ms));
        self.first_before_redrives().or_else(latest)
    }

    /// The record's position before its first redrive, if there was one.
    pub(super) fn first_before_redrives(&self) -> Option<First<'_>> {
        let (source, timestamp_ms) = self.first.as_ref()?;
        Some(first(source, *timestamp_ms))
    }

    /// The original record's key and value: those of the letter, or, if it omits the value, those of the
    /// record that it points to.
    pub(super) fn original(
        &self,
        record: &impl Message,
        letters: &DeadLetterTopic<'_>,
    ) -> anyhow::Result<Original> {
        let owned = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
        if !self.omitted {
            return Ok(Ok((owned(record.key()), owned(record.payload()))));
        }
        let Some(SourceRecord { topic, position }) = &self.source else {
            return Ok(Err(
                "the letter omits the value and does not name the position of its record"
                    .to_owned(),
            ));
        };
        let original = match letters.reader.record(topic, *position, letters.stop)? {
            Ok(original) => original,
            Err(why) => {
                return Ok(Err(format!(
                    "the letter omits the value, and its record is gone: {why}"
                )));
            }
        };
        // A topic that was deleted and created again may hold another record there.
        let same = original.payload().map_or(0, <[u8]>::len) == self.value_bytes.unwrap_or(0)
            && original.timestamp().to_millis() == self.original_ms
            && self
                .key
                .as_deref()
                .is_none_or(|key| original.key() == Some(key));
        if !same {
            return Ok(Err(format!(
                "the letter omits the value, and {topic} {position} now holds another record \
                 (size, time or key differ): the topic was created again"
            )));
        }
        Ok(Ok((owned(original.key()), owned(original.payload()))))
    }
}

/// Shared strings: topics, services and kinds of fault, which thousands of letters have in common.
#[derive(Default)]
pub(super) struct SharedStrings(HashSet<Arc<str>>);

impl SharedStrings {
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(shared) = self.0.get(text) {
            return shared.clone();
        }
        let shared: Arc<str> = text.into();
        if self.0.len() < MAX_SHARED {
            self.0.insert(shared.clone());
        }
        shared
    }

    /// Parses a letter.
    pub(super) fn letter(&mut self, record: &BorrowedMessage<'_>, detail: Detail) -> Letter {
        let place = || {
            Some(Position {
                partition: number(record, dead_letter::PARTITION)?,
                offset: number(record, dead_letter::OFFSET)?,
            })
        };
        let mut shared = |name| self.shared(header(record, name).unwrap_or("-"));
        let topic = header(record, dead_letter::TOPIC).map(|_| shared(dead_letter::TOPIC));
        let (service, kind) = (
            shared(dead_letter::CONNECTOR_NAME),
            shared(dead_letter::EXCEPTION_CLASS_NAME),
        );
        let first = First::of(|name| header(record, name)).map(|first| {
            let position = Position {
                partition: first.partition,
                offset: first.offset,
            };
            let topic = self.shared(first.topic);
            (SourceRecord { topic, position }, first.timestamp_ms)
        });
        let omitted = number(record, dead_letter::OMITTED_VALUE_BYTES);
        let (message, key_bytes) = match detail {
            Detail::Row if omitted.is_none() => ("", KEY_SHOWN_BYTES),
            Detail::Row => ("", usize::MAX),
            Detail::Whole => {
                let message = header(record, dead_letter::EXCEPTION_MESSAGE);
                (message.unwrap_or("-"), usize::MAX)
            }
        };
        Letter {
            position: position(record),
            written_ms: record.timestamp().to_millis().unwrap_or(-1),
            source: topic
                .zip(place())
                .map(|(topic, position)| SourceRecord { topic, position }),
            original_ms: number(record, dead_letter::TIMESTAMP_MS),
            first,
            service,
            kind,
            message: message.into(),
            key: record
                .key()
                .map(|key| key[..key.len().min(key_bytes)].into()),
            value_bytes: omitted.or(record.payload().map(<[u8]>::len)),
            omitted: omitted.is_some(),
            redriven: None,
            duplicates: Vec::new(),
        }
    }
}
