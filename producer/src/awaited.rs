//! Sends reports, and gives each caller the acknowledgement of its report. Never waits for room in the queue: callers
//! bound what is under way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig};
use schemas::{Framing, TaskRunningInfo};
use service::health::Health;
use service::kafka::{KafkaOptions, wrong_settings};
use service::limits::{
    CLIENT_MESSAGE_MAX_BYTES, DEFAULT_RECORD_BYTES, is_too_large, refuses_batch,
};
use service::producer::PolledProducer;
use service::telemetry::{messaging, names};
use service::{repeats, warn_of_change};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::client::{AT_ONCE, FIXED, SOCKET_TIMEOUT, STATISTICS};
use crate::connection::Connection;
use crate::delivery::WAITING;
use crate::observer::{Delivered, Failed, Observer};
use crate::size_limit::{SizeLimit, Verdict};

/// librdkafka's default size of a batch.
const BATCH_BYTES: usize = 1_000_000;

const DEFAULTS: &[(&str, &str)] = &[
    AT_ONCE,
    ("compression.type", "lz4"),
    // Someone waits for the answer. librdkafka then gives the report up, so that it does not arrive after the sender
    // has sent it again.
    ("message.timeout.ms", "10000"),
    ("queue.buffering.max.kbytes", "131072"),
    SOCKET_TIMEOUT,
    STATISTICS,
];

/// Why a report was not sent, or not acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Unsent {
    /// It is larger than the topic takes; with its size, the limit, and what to do.
    TooLarge(String),
    /// Kafka refuses it for another reason.
    Refused(String),
    /// librdkafka's queue is full.
    QueueFull,
    /// Kafka did not accept it in time, with its error.
    Unavailable(String),
}

impl Unsent {
    /// Whether the report may be accepted when it is sent again.
    pub(crate) fn is_retriable(&self) -> bool {
        matches!(self, Self::QueueFull | Self::Unavailable(_))
    }
}

/// A report in librdkafka's queue, counted as waiting until this is dropped: a caller may give it up.
pub(crate) struct Queued {
    /// Its result comes here.
    result: oneshot::Receiver<Delivered>,
    waiting: metrics::Gauge,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.waiting.decrement(1.0);
    }
}

/// A report on its way.
pub(crate) enum Sent {
    /// In a batch with others.
    Together(Queued),
    /// It may be larger than the topic takes, so it has yet to be sent in a batch of its own: key and value.
    Alone(Vec<u8>, Vec<u8>),
    /// Printed by a dry run.
    Printed,
}

/// An idempotent producer that reports each acknowledgement to the sender of the report.
pub(crate) struct AwaitedSender {
    topic: String,
    framing: Framing,
    together: Slot,
    /// Sends each report in a batch of its own, so that a refusal is about the report.
    alone: Slot,
    observer: Observer,
    size_limit: Arc<SizeLimit>,
    watched: AbortHandle,
    /// Nothing is sent any more.
    given_up: AtomicBool,
    /// Since when Kafka has not acknowledged.
    held_up: Mutex<Option<Instant>>,
    /// The command that grants the right to write.
    allow: String,
    sent: metrics::Counter,
    waiting: metrics::Gauge,
}

type Client = PolledProducer<Observer>;

/// A client that is created when it is needed, and again after a fatal error.
struct Slot {
    config: ClientConfig,
    observer: Observer,
    client: Mutex<Option<Arc<Client>>>,
}

impl Slot {
    fn of(config: ClientConfig, observer: Observer) -> Self {
        Self {
            config,
            observer,
            client: Mutex::default(),
        }
    }

    fn client(&self) -> Result<Arc<Client>, KafkaError> {
        let mut slot = lock(&self.client);
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let client = self.config.create_with_context(self.observer.clone());
        Ok(slot.insert(Arc::new(client?)).clone())
    }

    /// Drops a client that has had a fatal error: it refuses everything from then on.
    fn drop_failed(&self) {
        let mut slot = lock(&self.client);
        let fatal = slot
            .as_ref()
            .and_then(|client| client.client().fatal_error());
        if let Some((code, reason)) = fatal {
            // Unacknowledged reports may have arrived, so they can end up in the topic twice.
            tracing::error!("Kafka's client cannot go on, starting another: {code}: {reason}");
            *slot = None;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AwaitedSender {
    /// # Errors
    /// If a setting is wrong.
    pub(crate) async fn connect(
        connection: Connection,
        kafka: KafkaOptions,
        topic: String,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        let mut config = kafka.client_config(DEFAULTS, FIXED)?;
        let size_limit = Arc::new(SizeLimit::of(&config));
        if config.get("message.max.bytes").is_none() {
            config.set("message.max.bytes", CLIENT_MESSAGE_MAX_BYTES);
        }
        if config.get("batch.size").is_none() {
            // Fails if this user may not describe the topic; a producer does not need that right.
            let limit = connection.cluster.max_record_bytes(&topic).await;
            let bytes = limit.unwrap_or(DEFAULT_RECORD_BYTES).clamp(1, BATCH_BYTES);
            config.set("batch.size", bytes.to_string());
        }
        let observer = Observer::new(Some(health));
        let together = Slot::of(config.clone(), observer.clone());
        together.client().map_err(wrong_settings)?;
        config.set("batch.num.messages", "1");
        let alone = Slot::of(config, Observer::new(None));
        let allow = kafka.allow(&format!("--topic {topic}"), "Write");
        let (limit, watched_topic) = (size_limit.clone(), topic.clone());
        let watched = tokio::spawn(async move { limit.watch(&kafka, &watched_topic).await });
        Ok(Self {
            framing: connection.framing,
            together,
            alone,
            observer,
            size_limit,
            watched: watched.abort_handle(),
            given_up: AtomicBool::new(false),
            held_up: Mutex::default(),
            allow,
            sent: metrics::counter!(names::SENT, &messaging("send", &topic)),
            waiting: metrics::gauge!(WAITING),
            topic,
        })
    }

    /// As [`AwaitedReports::send`](crate::session::AwaitedReports::send).
    pub(crate) fn send(&self, info: &TaskRunningInfo) -> Result<Sent, Unsent> {
        let mut value = Vec::new();
        schemas::write_info(info, self.framing, &mut value);
        let bytes = info.exec_id.len() + value.len();
        match self.size_limit.judge(bytes, &self.topic) {
            Verdict::Fits => {}
            Verdict::Unsure => return Ok(Sent::Alone(info.exec_id.clone().into_bytes(), value)),
            Verdict::TooLarge(reason) => return Err(Unsent::TooLarge(reason)),
        }
        let sent = self.hand_over(&self.together, info.exec_id.as_bytes(), &value);
        sent.map(Sent::Together)
            .map_err(|error| self.judge(&self.together, &error, bytes))
    }

    fn hand_over(&self, slot: &Slot, key: &[u8], value: &[u8]) -> Result<Queued, KafkaError> {
        if self.given_up.load(Ordering::Acquire) {
            return Err(KafkaError::Canceled);
        }
        let (give, result) = oneshot::channel();
        let record = BaseRecord::with_opaque_to(&self.topic, Box::new(give))
            .key(key)
            .payload(value);
        slot.client()?.send(record).map_err(|(error, _)| error)?;
        self.waiting.increment(1.0);
        Ok(Queued {
            result,
            waiting: self.waiting.clone(),
        })
    }

    /// As [`AwaitedReports::acknowledged`](crate::session::AwaitedReports::acknowledged).
    pub(crate) async fn acknowledged(&self, sent: Sent) -> Result<(), Unsent> {
        let (key, value) = match sent {
            Sent::Printed => return Ok(()),
            Sent::Alone(key, value) => (key, value),
            Sent::Together(queued) => match self.outcome(queued).await {
                Ok(()) => return Ok(()),
                Err(failed) => match failed.record {
                    None => return Err(self.judge(&self.together, &failed.error, 0)),
                    Some(record) => {
                        warn_of_change!(
                            "{} has refused a batch of reports; they are sent again one by one",
                            self.topic
                        );
                        self.size_limit.doubt();
                        record
                    }
                },
            },
        };
        let bytes = key.len() + value.len();
        let failed = match self.hand_over(&self.alone, &key, &value) {
            Ok(queued) => match self.outcome(queued).await {
                Ok(()) => return Ok(()),
                Err(failed) => failed.error,
            },
            Err(error) => error,
        };
        Err(self.judge(&self.alone, &failed, bytes))
    }

    async fn outcome(&self, mut queued: Queued) -> Delivered {
        let delivered = (&mut queued.result).await.unwrap_or_else(|_| {
            // Its client was replaced.
            Err(Box::new(Failed {
                error: KafkaError::Canceled,
                record: None,
            }))
        });
        drop(queued);
        if delivered.is_ok() {
            self.sent.increment(1);
            self.observer.0.delivered.fetch_add(1, Ordering::Relaxed);
            if let Some(since) = lock(&self.held_up).take() {
                let after = repeats::end_since(module_path!(), since);
                tracing::info!("Kafka takes reports again, {after}");
            }
        }
        delivered
    }

    /// What an error means for the sender. Replaces a client that cannot go on.
    fn judge(&self, slot: &Slot, error: &KafkaError, bytes: usize) -> Unsent {
        match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => Unsent::QueueFull,
            error if is_too_large(error) => {
                self.size_limit.doubt();
                Unsent::TooLarge(format!(
                    "it has {bytes} bytes in Avro, more than {} takes; report less at once, or raise the topic's \
                     max.message.bytes",
                    self.topic
                ))
            }
            error if refuses_batch(error) => Unsent::Refused(error.to_string()),
            error => {
                slot.drop_failed();
                self.unavailable(error)
            }
        }
    }

    fn unavailable(&self, error: &KafkaError) -> Unsent {
        let code = error.rdkafka_error_code();
        if !self.given_up.load(Ordering::Acquire) {
            lock(&self.held_up).get_or_insert_with(Instant::now);
            let allow = match code {
                Some(RDKafkaErrorCode::TopicAuthorizationFailed) => format!("; {}", self.allow),
                _ => String::new(),
            };
            warn_of_change!("{} takes no reports: {error}{allow}", self.topic);
        }
        let what = code.map_or_else(|| error.to_string(), |code| code.to_string());
        Unsent::Unavailable(what)
    }

    /// Gives up what is not acknowledged yet; its senders get an error.
    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
        for slot in [&self.together, &self.alone] {
            if let Some(client) = &*lock(&slot.client) {
                client.purge(PurgeConfig::default().queue().inflight());
            }
        }
    }

    pub(crate) fn acknowledged_count(&self) -> u64 {
        self.observer.0.delivered.load(Ordering::Relaxed)
    }
}

impl Drop for AwaitedSender {
    fn drop(&mut self) {
        self.watched.abort();
    }
}
