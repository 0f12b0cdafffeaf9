//! The records of the two output topics, and the source records that they are about.

use std::str::FromStr;

use anyhow::bail;
use rdkafka::message::Message;
use schemas::{DecodeError, Decoder, PlainSource, dead_letter};
use service::kafka::header;
use service::range::Position;

/// What a record of an output topic is.
pub(crate) enum OutputRecord {
    /// The event of a source record, with that one's Kafka timestamp.
    Event(Position, i64),
    /// The router's letter about a source record, with its kind of fault.
    Letter(Position, String),
    /// Of an earlier topic that had the source topic's name, by its id.
    Earlier,
    /// A copy of an event, which a redrive of a consumer's letter wrote. Routers write no headers.
    Redriven,
    /// Of another source topic or service, or a note that a letter was redriven.
    Foreign,
    /// No router writes such a record; why.
    Unreadable(String),
}

impl OutputRecord {
    /// The source record that it is about.
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
    /// `None` where the cluster does not tell.
    pub(crate) id: Option<String>,
}

impl SourceTopic {
    /// What an output is that names this topic and its id; without an id, as those of an older version, it counts as
    /// one of the topic that there is.
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

/// Reads a record of the events topic.
///
/// # Errors
/// If its schema is unknown here: then its source record is unknown too.
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

/// Reads a record of the dead letter topic.
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

/// A header's number.
pub(crate) fn number<N: FromStr>(record: &impl Message, name: &str) -> Option<N> {
    header(record, name)?.parse().ok()
}

/// Where a record stands in its topic.
pub(crate) fn position(record: &impl Message) -> Position {
    Position {
        partition: record.partition(),
        offset: record.offset(),
    }
}
