//! What the records of the two output topics say of which source record.

use anyhow::bail;
use rdkafka::message::Message;
use schemas::{DecodeError, Decoder, PlainSource, dead_letter};
use service::range::Position;

use crate::dead_letters::{header, number};

/// What a record of an output topic is.
pub(crate) enum Output {
    /// The event of a source record, with that one's Kafka timestamp.
    Event(Position, i64),
    /// The router's letter about a source record, with its kind of fault.
    Letter(Position, String),
    /// Of another source topic or service, or a note that a letter was redriven.
    Foreign,
    /// No router wrote it so; why.
    Unreadable(String),
}

impl Output {
    /// The source record that it is about.
    pub(super) fn about(&self) -> Option<Position> {
        match self {
            Self::Event(about, _) | Self::Letter(about, _) => Some(*about),
            Self::Foreign | Self::Unreadable(_) => None,
        }
    }
}

/// Reads a record of the events topic.
///
/// # Errors
/// If it is of a schema that is not known here: then nothing can be said of its source record.
pub(crate) fn event(
    decoder: &Decoder,
    source_topic: &str,
    record: &impl Message,
) -> anyhow::Result<Output> {
    let of = |topic: &str, partition, offset, timestamp| match topic == source_topic {
        true => Output::Event(Position { partition, offset }, timestamp),
        false => Output::Foreign,
    };
    let plain = |value| decoder.plain_event(value);
    if let Some(event) = record.payload().and_then(plain) {
        let PlainSource {
            topic,
            partition,
            offset,
            timestamp,
            ..
        } = event.source;
        return Ok(of(topic, partition, offset, timestamp));
    }
    match decoder.event(record.payload()) {
        Ok(event) => Ok(of(
            &event.source.topic,
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
        Err(error) => Ok(Output::Unreadable(format!("no event: {error}"))),
    }
}

/// Reads a record of the dead letter topic.
pub(crate) fn letter(source_topic: &str, record: &impl Message) -> Output {
    let of_router = header(record, dead_letter::CONNECTOR_NAME) == Some("router");
    if !of_router || header(record, dead_letter::TOPIC) != Some(source_topic) {
        return Output::Foreign;
    }
    let partition = number(record, dead_letter::PARTITION);
    match (partition, number(record, dead_letter::OFFSET)) {
        (Some(partition), Some(offset)) => {
            let kind = header(record, dead_letter::EXCEPTION_CLASS_NAME).unwrap_or("-");
            Output::Letter(Position { partition, offset }, kind.to_owned())
        }
        _ => Output::Unreadable(
            "a letter that does not say which partition and offset it is about".to_owned(),
        ),
    }
}
