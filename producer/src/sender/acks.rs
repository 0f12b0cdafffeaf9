//! The results of the records that a [`Sender`](super::Sender) sent.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::bail;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::statistics::Statistics;
use service::exit::NeedsAttention;
use service::health::Health;
use service::limits::{is_too_large, refuses_batch};
use service::telemetry::{messaging, names};
use service::throttling::Throttling;
use service::words::counted;

use crate::client::HealthMonitor;

/// A report that exceeds the size limit of the topic or the producer's `message.max.bytes`.
pub(crate) struct TooLarge {
    /// The report's number.
    pub(crate) number: usize,
    /// Its size, the limit, and what to do.
    pub(crate) reason: String,
}

/// Counts acknowledgements and keeps the first error.
#[derive(Clone)]
pub(super) struct Acks(pub(super) Arc<Counted>);

pub(super) struct Counted {
    topic: String,
    pub(super) acknowledged: AtomicU64,
    failed: AtomicU64,
    /// The lowest number of an undelivered record; `usize::MAX` if there is none.
    pub(super) first_failed: AtomicUsize,
    pub(super) refused_for_size: AtomicU64,
    too_large: Mutex<Vec<TooLarge>>,
    first_error: Mutex<Option<KafkaError>>,
    /// Whether records are sent one at a time, so that a refusal concerns the record and not its batch.
    pub(super) alone: AtomicBool,
    pub(super) any_refused: AtomicBool,
    /// Records of refused batches; bounded by librdkafka's queue.
    refused: Mutex<VecDeque<Refused>>,
    /// The command that grants the right to write.
    allow: String,
    sent: metrics::Counter,
    health: HealthMonitor,
    throttling: Throttling,
}

/// A record of a refused batch.
pub(super) struct Refused {
    pub(super) number: usize,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Counted {
    pub(super) fn refused(&self) -> MutexGuard<'_, VecDeque<Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn too_large(&self) -> MutexGuard<'_, Vec<TooLarge>> {
        self.too_large
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failed_at(&self, number: usize) {
        self.first_failed.fetch_min(number, Ordering::AcqRel);
    }
}

impl Acks {
    pub(super) fn new(topic: &str, allow: String, health: Arc<Health>) -> Self {
        Self(Arc::new(Counted {
            topic: topic.to_owned(),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            first_failed: AtomicUsize::new(usize::MAX),
            first_error: Mutex::default(),
            refused_for_size: AtomicU64::new(0),
            too_large: Mutex::default(),
            alone: AtomicBool::new(false),
            any_refused: AtomicBool::new(false),
            refused: Mutex::default(),
            allow,
            sent: metrics::counter!(names::SENT, &messaging("send", topic)),
            health: HealthMonitor::new(health),
            throttling: Throttling::default(),
        }))
    }

    pub(super) fn check(&self, topic: &str) -> anyhow::Result<()> {
        let failed = self.0.failed.load(Ordering::Acquire);
        if failed == 0 {
            return Ok(());
        }
        let first_error = self.0.first_error.lock();
        let first_error = first_error.unwrap_or_else(PoisonError::into_inner);
        let first_error = first_error.as_ref();
        let why = first_error.map_or_else(String::new, ToString::to_string);
        let why = format!(
            "{} not delivered to {topic}; the first: {why}",
            counted(failed, "report")
        );
        let code = first_error.and_then(KafkaError::rdkafka_error_code);
        if code == Some(RDKafkaErrorCode::TopicAuthorizationFailed) {
            return Err(NeedsAttention(format!("{why}; {}", self.0.allow)).into());
        }
        bail!(why)
    }
}

impl ClientContext for Acks {
    fn stats(&self, statistics: Statistics) {
        let acknowledged = self.0.acknowledged.load(Ordering::Relaxed);
        self.0.health.observe(&statistics, acknowledged);
        self.0.throttling.observe(&statistics);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        service::repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ProducerContext for Acks {
    /// The report's number.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let acks = &self.0;
        match result {
            Ok(_) => {
                acks.acknowledged.fetch_add(1, Ordering::Release);
                acks.sent.increment(1);
            }
            Err((error, record)) if refuses_batch(error) && !acks.alone.load(Ordering::Acquire) => {
                let owned = |part: Option<&[u8]>| part.unwrap_or_default().to_vec();
                acks.refused().push_back(Refused {
                    number,
                    key: owned(record.key()),
                    value: owned(record.payload()),
                });
                acks.any_refused.store(true, Ordering::Release);
            }
            Err((error, record)) if is_too_large(error) => {
                let bytes = [record.key(), record.payload()]
                    .into_iter()
                    .flatten()
                    .map(<[u8]>::len)
                    .sum::<usize>();
                acks.too_large().push(TooLarge {
                    number,
                    reason: format!(
                        "the report has {bytes} bytes in Avro, more than {} takes; report less at once, or raise the \
                         topic's max.message.bytes",
                        acks.topic
                    ),
                });
                acks.refused_for_size.fetch_add(1, Ordering::Release);
            }
            // `give_up` has taken it back.
            Err((KafkaError::MessageProduction(code), _)) if is_purge(*code) => {
                acks.failed_at(number);
            }
            Err((error, _)) => {
                acks.failed_at(number);
                acks.first_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert_with(|| error.clone());
                acks.failed.fetch_add(1, Ordering::Release);
            }
        }
    }
}

fn is_purge(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight
    )
}
