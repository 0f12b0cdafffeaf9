//! Maximum record size of each topic, read again while a program runs: `max.message.bytes` can change at any
//! time, and a broker that does not answer at the start may answer later.
//!
//! The verdict "too large" is final for a record, so it requires a limit read within the last few seconds. A
//! lowered limit shows in the broker's refusals.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::error::NeedsAttention;
use crate::kafka::KafkaOptions;
use crate::transaction::Failed;
use crate::warn_of_change;

pub use crate::producer::CLIENT_MESSAGE_MAX_BYTES;

/// Overhead of a batch of one record, besides key, value and headers, in bytes: at most 61 + 21 in Kafka's
/// message format 2, rounded up.
const BATCH_OVERHEAD_BYTES: usize = 128;
/// Maximum record size under Kafka's default `max.message.bytes`; assumed for a topic whose limit is unknown.
pub const DEFAULT_RECORD_BYTES: usize = 1_048_588 - BATCH_OVERHEAD_BYTES;
/// A limit older than this is read again before a record counts as too large.
pub const FRESH: Duration = Duration::from_secs(5);

/// Whether this error is a broker's permanent refusal of a whole batch: because of one of its records, or
/// because of the total size.
pub fn refuses_batch(error: &KafkaError) -> bool {
    let for_a_fault = matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::InvalidMessage
                | RDKafkaErrorCode::InvalidMessageSize
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidTimestamp
        )
    );
    for_a_fault || is_too_large(error)
}

/// Whether a record or batch was refused because of its size.
pub fn is_too_large(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge)
    )
}

impl KafkaOptions {
    /// Maximum size of an uncompressed record (key, value and headers), in bytes, from the topic's
    /// `max.message.bytes`.
    ///
    /// # Errors
    /// As [`topic_setting`](Self::topic_setting).
    pub async fn max_record_bytes(&self, topic: &str) -> anyhow::Result<usize> {
        let setting = self.topic_setting(topic, "max.message.bytes").await?;
        let max_message_bytes: usize = setting.parse()?;
        Ok(max_message_bytes.saturating_sub(BATCH_OVERHEAD_BYTES))
    }
}

/// Limits of the topics that a program writes.
pub struct SizeLimits {
    options: KafkaOptions,
    /// `None`: the cluster has not answered yet.
    record_bytes: BTreeMap<String, Option<usize>>,
    read_at: Instant,
}

impl SizeLimits {
    /// Reads the limits of these topics. Assumes Kafka's default until the cluster answers.
    ///
    /// # Errors
    /// If this user may not describe the topics' settings.
    pub async fn read(options: &KafkaOptions, topics: &[&str]) -> anyhow::Result<Self> {
        let unread = topics.iter().map(|topic| ((*topic).to_owned(), None));
        let mut limits = Self {
            options: options.clone(),
            record_bytes: unread.collect(),
            read_at: Instant::now(),
        };
        match limits.read_again().await {
            Err(error) if !error.is::<KafkaError>() => Err(error),
            _ => Ok(limits),
        }
    }

    /// Maximum size of a record of a topic: key, value and headers, in bytes.
    pub fn record_bytes(&self, topic: &str) -> usize {
        let read = self.record_bytes.get(topic).copied().flatten();
        read.unwrap_or(DEFAULT_RECORD_BYTES)
    }

    /// The smallest of the limits.
    pub fn smallest(&self) -> usize {
        let each = self.record_bytes.values();
        let each = each.map(|read| read.unwrap_or(DEFAULT_RECORD_BYTES));
        each.min().unwrap_or(DEFAULT_RECORD_BYTES)
    }

    /// Reads the limits again; returns whether one has changed.
    ///
    /// # Errors
    /// As [`KafkaOptions::max_record_bytes`].
    pub async fn read_again(&mut self) -> anyhow::Result<bool> {
        let mut changed = false;
        for (topic, known) in &mut self.record_bytes {
            let read = match self.options.max_record_bytes(topic).await {
                Ok(read) => read,
                Err(error) => {
                    if error.is::<KafkaError>() {
                        warn_of_change!(
                            "topic {topic}: cannot ask for max.message.bytes, asking again before a record counts as \
                             too large: {error:#}"
                        );
                    }
                    return Err(error);
                }
            };
            if let Some(before) = known.filter(|before| *before != read) {
                tracing::info!(
                    "topic {topic} takes records of at most {read} bytes now, {before} before"
                );
            }
            changed |= known.unwrap_or(DEFAULT_RECORD_BYTES) != read;
            *known = Some(read);
        }
        self.read_at = Instant::now();
        Ok(changed)
    }

    /// Call before a record counts as too large. Reads the limits again unless they were read within the last
    /// seconds; returns whether one has changed.
    ///
    /// # Errors
    /// As [`KafkaOptions::max_record_bytes`].
    pub async fn confirm(&mut self) -> anyhow::Result<bool> {
        let read = self.record_bytes.values().all(Option::is_some);
        if read && self.read_at.elapsed() < FRESH {
            return Ok(false);
        }
        self.read_again().await
    }

    /// Calls `fit` with the maximum size of a record of `topic`. `fit` returns the record, its bytes, and
    /// whether it is complete. An incomplete record is based on a limit read within the last seconds.
    ///
    /// # Errors
    /// If the limit cannot be read, or even the smallest result of `fit` is too large.
    pub async fn fit<T>(
        &mut self,
        topic: &str,
        fit: impl Fn(usize) -> (T, usize, bool),
    ) -> Result<T, Failed> {
        let (fitted, _, whole) = fit(self.record_bytes(topic));
        if whole {
            return Ok(fitted);
        }
        self.confirm().await.map_err(Failed::unread_limit)?;
        let room = self.record_bytes(topic);
        let (fitted, bytes, _) = fit(room);
        if bytes > room {
            let why = format!(
                "topic {topic} takes records of at most {room} bytes, and {bytes} are needed; raise its \
                 max.message.bytes"
            );
            return Err(Failed::Exit(NeedsAttention(why).into()));
        }
        Ok(fitted)
    }
}
