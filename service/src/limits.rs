//! How large a record each topic takes, read again while a program runs: `max.message.bytes` of a topic can be
//! altered at any time, and a broker that does not answer at start may answer later.
//!
//! A verdict that a record is too large is final for the record, so it rests on a reading of the last few
//! seconds. A limit that was lowered shows in the broker's refusals.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use crate::error::NeedsAttention;
use crate::kafka::KafkaOptions;
use crate::transaction::Failed;
use crate::warn_of_change;

pub use crate::producer::CLIENT_MESSAGE_MAX_BYTES;

/// Bytes that a batch of one record takes beside key, value and headers: at most 61 + 21 in Kafka's
/// message format 2, rounded up.
const BATCH_OVERHEAD_BYTES: usize = 128;
/// The largest record under Kafka's default of `max.message.bytes`: assumed of a topic that was not read yet.
pub const DEFAULT_RECORD_BYTES: usize = 1_048_588 - BATCH_OVERHEAD_BYTES;
/// A reading of this age is read again before a record counts as too large.
pub const FRESH: Duration = Duration::from_secs(5);

/// Whether a broker refuses a whole batch with this error, for good: for the fault of one of its records, or for
/// the size of them all.
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

/// Whether a record or a batch was refused for its size.
pub fn is_too_large(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::MessageBatchTooLarge)
    )
}

impl KafkaOptions {
    /// The largest record, in bytes of key, value and headers, that a topic takes uncompressed: from its
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

/// The limits of the topics that a program writes.
pub struct SizeLimits {
    options: KafkaOptions,
    /// `None`: the cluster has not answered yet.
    record_bytes: BTreeMap<String, Option<usize>>,
    read_at: Instant,
}

impl SizeLimits {
    /// Reads the limits of these topics. Where the cluster does not answer, Kafka's default is assumed until
    /// it does.
    ///
    /// # Errors
    /// If this user may not ask.
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

    /// The largest record, in bytes of key, value and headers, that one of the topics takes.
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

    /// Reads the limits again; gives whether one has changed.
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

    /// Before a record counts as too large: reads the limits again unless they were read in the last seconds;
    /// gives whether one has changed.
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

    /// What `fit` makes of the room in a record of `topic`: the record, its bytes, and whether it is whole. One
    /// that is not whole rests on a limit read in the last seconds.
    ///
    /// # Errors
    /// If the limit cannot be read, or even the least that `fit` makes is too large.
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
