//! Routing of Kafka records with this process's schemas, framing and topic id.

use jiff::Timestamp;
use rdkafka::message::Message;
use schemas::{Decoder, Framing, PlainSource};

use crate::route::{Outcome, route};
use service::schema_source::SchemaSource;

/// Decoder of records, and framing of events.
pub(crate) struct Codec {
    pub(crate) schemas: SchemaSource<Decoder>,
    pub(crate) framing: Framing,
}

/// Routes records.
pub(crate) struct Transform<'a> {
    pub(crate) codec: &'a Codec,
    /// The source topic's id, for events.
    pub(crate) source_topic_id: Option<String>,
    /// The last event's bytes; the next event reuses this allocation.
    event: Vec<u8>,
}

impl<'a> Transform<'a> {
    pub(crate) fn new(codec: &'a Codec, source_topic_id: Option<String>) -> Self {
        Self {
            codec,
            source_topic_id,
            event: Vec::new(),
        }
    }

    /// Routes a record. An event larger than `max_event_bytes` (key and value) becomes a dead letter.
    pub(crate) fn apply<'r>(
        &'r mut self,
        record: &'r impl Message,
        max_event_bytes: usize,
    ) -> Outcome<'r> {
        let source = PlainSource {
            topic: record.topic(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp: record.timestamp().to_millis().unwrap_or(-1),
            topic_id: self.source_topic_id.as_deref(),
        };
        route(
            &self.codec.schemas.decoder,
            record.payload(),
            source,
            Timestamp::now().as_microsecond(),
            self.codec.framing,
            max_event_bytes,
            &mut self.event,
        )
    }
}
