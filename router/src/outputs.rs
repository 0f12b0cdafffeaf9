//! Parsing of the output topics' records, and of their source positions.

use std::str::FromStr;

use anyhow::bail;
use rdkafka::message::Message;
use schemas::{DecodeError, Decoder, PlainSource, dead_letter};
use service::kafka::header;
use service::range::Position;

/// A record of an output topic.
pub(crate) enum OutputRecord {
    /// The event of a source record, with the source record's Kafka timestamp.
    Event(Position, i64),
    /// The router's dead letter of a source record, with its kind of fault.
    Letter(Position, String),
    /// An output of an earlier topic with the source topic's name, recognised by its id.
    Earlier,
    /// A copy of an event, written by a redrive of a consumer's letter. (Events of routers have no headers.)
    Redriven,
    /// An output of another source topic or service, or a note that a letter was redriven.
    Foreign,
    /// A record that no router writes; why.
    Unreadable(String),
}

impl OutputRecord {
    /// The position of its source record.
    pub(crate) fn about(&self) -> Option<Position> {
        match self {
            Self::Event(about, _) | Self::Letter(about, _) => Some(*about),
            Self::Earlier | Self::Redriven | Self::Foreign | Self::Unreadable(_) => None,
        }
    }
}

/// The source topic.
#[derive(Debug)]
pub(crate) struct SourceTopic {
    pub(crate) topic: String,
    /// `None` if it is unavailable.
    pub(crate) id: Option<String>,
}

impl SourceTopic {
    /// Classifies an output by its source topic and id. An output without an id (of an older version) counts
    /// as one of the present topic.
    fn output(
        &self,
        topic: &str,
        id: Option<&str>,
        output: impl FnOnce() -> OutputRecord,
    ) -> OutputRecord {
        match (self.id.as_deref(), id) {
            _ if topic != self.topic => OutputRecord::Foreign,
            (Some(present), Some(id)) if id != present => OutputRecord::Earlier,
            _ => output(),
        }
    }
}

/// Parses a record of the events topic.
///
/// # Errors
/// If its schema is unknown here, so its source record is unknown, too.
pub(crate) fn event(
    decoder: &Decoder,
    source: &SourceTopic,
    record: &impl Message,
) -> anyhow::Result<OutputRecord> {
    if header(record, dead_letter::REDRIVEN_TOPIC).is_some() {
        return Ok(OutputRecord::Redriven);
    }
    let of = |topic: &str, id: Option<&str>, partition, offset, timestamp| {
        let about = Position { partition, offset };
        source.output(topic, id, || OutputRecord::Event(about, timestamp))
    };
    let plain = |value| decoder.plain_event(value);
    if let Some(event) = record.payload().and_then(plain) {
        let PlainSource {
            topic,
            partition,
            offset,
            timestamp,
            topic_id,
        } = event.source;
        return Ok(of(topic, topic_id, partition, offset, timestamp));
    }
    match decoder.event(record.payload()) {
        Ok(event) => Ok(of(
            &event.source.topic,
            event.source.topic_id.as_deref(),
            event.source.partition,
            event.source.offset,
            event.source.timestamp,
        )),
        Err(
            error @ (DecodeError::UnknownSchema { .. }
            | DecodeError::NoSchemaRegistry { .. }
            | DecodeError::UnknownSchemaId { .. }),
        ) => bail!(
            "{} partition {} offset {}: {error}",
            record.topic(),
            record.partition(),
            record.offset()
        ),
        Err(error) => Ok(OutputRecord::Unreadable(format!("no event: {error}"))),
    }
}

/// Parses a record of the dead letter topic.
pub(crate) fn letter(source: &SourceTopic, record: &impl Message) -> OutputRecord {
    match header(record, dead_letter::TOPIC) {
        Some(topic) if header(record, dead_letter::CONNECTOR_NAME) == Some("router") => {
            let id = header(record, dead_letter::TOPIC_ID);
            source.output(topic, id, || letter_of_source(record))
        }
        _ => OutputRecord::Foreign,
    }
}

fn letter_of_source(record: &impl Message) -> OutputRecord {
    let partition = number(record, dead_letter::PARTITION);
    match (partition, number(record, dead_letter::OFFSET)) {
        (Some(partition), Some(offset)) => {
            let kind = header(record, dead_letter::EXCEPTION_CLASS_NAME).unwrap_or("-");
            OutputRecord::Letter(Position { partition, offset }, kind.to_owned())
        }
        _ => OutputRecord::Unreadable(
            "a letter that does not say which partition and offset it is about".to_owned(),
        ),
    }
}

/// The number in a header.
pub(crate) fn number<N: FromStr>(record: &impl Message, name: &str) -> Option<N> {
    header(record, name)?.parse().ok()
}

/// The position of a record.
pub(crate) fn position(record: &impl Message) -> Position {
    Position {
        partition: record.partition(),
        offset: record.offset(),
    }
}
