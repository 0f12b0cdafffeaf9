//! Dead letters of the consumer: written and acknowledged before the offset moves on.

use std::time::Duration;

use anyhow::Context;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use schemas::{DeadLetter, Reject};
use service::exit::NeedsAttention;
use service::kafka::{BATCH_OVERHEAD_BYTES, Cluster, KafkaOptions};

const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("partitioner", "murmur2_random"),
];

pub(crate) struct Letters {
    producer: FutureProducer<Quiet>,
    topic: String,
    instance: String,
    max_bytes: usize,
}

impl Letters {
    /// # Errors
    /// If the topic does not exist or a setting is wrong.
    pub(crate) async fn connect(
        options: &KafkaOptions,
        cluster: &Cluster,
        topic: &str,
        instance: String,
    ) -> anyhow::Result<Self> {
        cluster.require_topic(topic).await?;
        let max_bytes = cluster.max_record_bytes(topic).await;
        let mut config = options.client_config(&[("compression.type", "lz4")], FIXED)?;
        config.set(
            "message.max.bytes",
            (max_bytes + BATCH_OVERHEAD_BYTES).to_string(),
        );
        let producer = config
            .create_with_context(Quiet)
            .map_err(|error| NeedsAttention(format!("Kafka settings: {error}")))?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
            instance,
            max_bytes,
        })
    }

    /// Sets a record aside and waits until the brokers have the letter. A repeat after a crash is
    /// recognised by the coordinates in its headers.
    ///
    /// # Errors
    /// If the brokers refuse it, or are away for longer than `message.timeout.ms` (5 minutes).
    pub(crate) async fn send(
        &self,
        record: &BorrowedMessage<'_>,
        reject: &Reject,
    ) -> anyhow::Result<()> {
        let letter = DeadLetter {
            topic: record.topic(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp().to_millis(),
            service: "consumer",
            instance: &self.instance,
            reject,
        };
        let letter = letter.letter(record.key(), record.payload(), self.max_bytes);
        let sent = FutureRecord::<[u8], [u8]> {
            topic: &self.topic,
            partition: None,
            payload: letter.value,
            key: letter.key,
            timestamp: None,
            headers: Some(service::kafka::headers(&letter.headers)),
        };
        self.producer.send(sent, Timeout::After(Duration::from_secs(30))).await.map_err(|(error, _)| error).with_context(|| {
            format!(
                "writing the dead letter of {} partition {} offset {} to {}; the offset was not moved past it",
                record.topic(),
                record.partition(),
                record.offset(),
                self.topic
            )
        })?;
        Ok(())
    }
}

/// Logs through our own logs.
#[derive(Clone)]
struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        service::subscription::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}
