//! Sends what is read or made as fast as Kafka takes it: waits while librdkafka's queue is full,
//! and counts every acknowledgement. For input that can wait; a live engine's reports go through
//! [`Delivery`](crate::delivery::Delivery), which never waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext};
use rdkafka::statistics::Statistics;
use schemas::{CURRENT_INFO, Framing, TaskRunningInfo};
use service::exit::{self, NeedsAttention};
use service::health::{Health, Reading};
use service::kafka::{KafkaOptions, wrong_settings};
use service::limits::refuses_batch;
use service::producer::PolledProducer;
use service::registry::{Registry, RegistryError, until_answered};
use service::telemetry::{messaging, names};
use service::throttling::Throttling;
use service::warn_of_change;
use service::words::counted;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Settings that the order of a task's reports, and the place of a key, rest on.
pub(crate) const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // As Kafka's Java client has it, so that engines on the JVM and in Rust agree on a key's partition.
    ("partitioner", "murmur2_random"),
];

/// How long a broker may leave a request unanswered (librdkafka: 60 s). While more than five records
/// of a partition are unanswered and others wait, an idempotent client's threads do not sleep
/// (`rd_kafka_toppar_producer_serve` of librdkafka 2.12), so a dead connection is given up sooner.
pub(crate) const SOCKET_TIMEOUT: (&str, &str) = ("socket.timeout.ms", "10000");

/// A report is not held back; while five requests are unanswered, those that follow gather by themselves.
pub(crate) const AT_ONCE: (&str, &str) = ("linger.ms", "0");

/// Of the client, for [`Health`].
pub(crate) const STATISTICS: (&str, &str) = ("statistics.interval.ms", "1000");

const DEFAULTS: &[(&str, &str)] = &[
    AT_ONCE,
    ("compression.type", "lz4"),
    ("queue.buffering.max.kbytes", "65536"),
    SOCKET_TIMEOUT,
    STATISTICS,
];

/// After a signal, unacknowledged records are waited for so long.
pub(crate) const LAST_ACKS: Duration = Duration::from_secs(5);

/// Registers the schema of reports for a topic's values; gives how reports are then written.
pub(crate) async fn register(registry: &Registry, topic: &str) -> Result<Framing, RegistryError> {
    let subject = format!("{topic}-value");
    let id = registry.register(&subject, CURRENT_INFO.avsc).await?;
    tracing::info!(
        "reports have the schema id {id} of {subject} in the schema registry {}",
        registry.shown()
    );
    Ok(Framing::Registry(id))
}

/// How reports are written: where there is a schema registry, in its framing. While that is away it is
/// waited for; `None` when shut down meanwhile.
///
/// # Errors
/// If a setting is wrong, or the registry refuses the schema.
pub(crate) async fn framing(
    kafka: &KafkaOptions,
    topic: &str,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Framing>> {
    match Registry::of(kafka)? {
        None => Ok(Some(Framing::SingleObject)),
        Some(registry) => until_answered(|| register(&registry, topic), health, shutdown).await,
    }
}

/// An idempotent producer with back pressure.
pub(crate) struct Sender {
    producer: PolledProducer<Acks>,
    acks: Acks,
    topic: String,
    framing: Framing,
    sent: AtomicU64,
    /// The last report's bytes, used again.
    value: Vec<u8>,
}

impl Sender {
    /// # Errors
    /// If a setting is wrong.
    pub(crate) fn connect(
        kafka: &KafkaOptions,
        topic: &str,
        framing: Framing,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        let acks = Acks(Arc::new(Counted {
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            first_error: Mutex::default(),
            alone: AtomicBool::new(false),
            any_refused: AtomicBool::new(false),
            refused: Mutex::default(),
            allow: kafka.allow(&format!("--topic {topic}"), "Write"),
            sent: metrics::counter!(names::SENT, &messaging("send", topic)),
            watch: Watch::new(health),
            throttling: Throttling::default(),
        }));
        let producer = kafka
            .client_config(DEFAULTS, FIXED)?
            .create_with_context(acks.clone())
            .map_err(wrong_settings)?;
        Ok(Self {
            producer,
            acks,
            topic: topic.to_owned(),
            framing,
            sent: AtomicU64::new(0),
            value: Vec::new(),
        })
    }

    /// Hands a report to the producer; waits while its queue is full. Whether it was handed over: a full
    /// queue is not waited for once `shutdown` is cancelled.
    ///
    /// # Errors
    /// If this report or an earlier one cannot be delivered. After that, nothing should be sent: it
    /// would arrive in front of what was not.
    pub(crate) async fn send(
        &mut self,
        info: &TaskRunningInfo,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<bool> {
        if self.acks.0.any_refused.load(Ordering::Acquire) {
            tokio::select! {
                biased;
                sent = self.send_refused() => sent?,
                () = shutdown.cancelled() => return Ok(false),
            }
        }
        self.value.clear();
        schemas::write_info(info, self.framing, &mut self.value);
        let mut record = BaseRecord::to(&self.topic)
            .key(info.exec_id.as_bytes())
            .payload(self.value.as_slice());
        loop {
            self.acks.check(&self.topic)?;
            match self.producer.send(record) {
                Ok(()) => {
                    self.sent.fetch_add(1, Ordering::Relaxed);
                    return Ok(true);
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    if shutdown.is_cancelled() {
                        return Ok(false);
                    }
                    record = unsent;
                    sleep(Duration::from_millis(1)).await;
                }
                Err((error, _)) => {
                    return Err(error).with_context(|| {
                        format!(
                            "sending a report of {} ({} bytes) to {}",
                            info.exec_id,
                            self.value.len(),
                            self.topic
                        )
                    });
                }
            }
        }
    }

    /// Sends the records of refused batches again, one at a time: only one that is refused by itself cannot be
    /// delivered. They arrive behind reports of their tasks that were on their way; `sequence` tells the order.
    async fn send_refused(&self) -> anyhow::Result<()> {
        let acks = &self.acks.0;
        while acks.any_refused.swap(false, Ordering::Acquire) {
            self.until_answered().await;
            let refused = std::mem::take(&mut *acks.refused());
            warn_of_change!(
                "{} has refused a batch of {}; they are sent again one by one",
                self.topic,
                counted(refused.len(), "report")
            );
            acks.alone.store(true, Ordering::Release);
            for (key, value) in &refused {
                let record = BaseRecord::to(&self.topic).key(key).payload(value);
                let sent = self.producer.send(record);
                sent.map_err(|(error, _)| error)
                    .with_context(|| format!("sending a report to {} again", self.topic))?;
                self.until_answered().await;
            }
            acks.alone.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// `message.timeout.ms` bounds it.
    async fn until_answered(&self) {
        while self.producer.in_flight_count() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until every record is acknowledged or has failed (`message.timeout.ms` bounds that; 5 s
    /// once `shutdown` is cancelled), and gives the number of those acknowledged.
    ///
    /// # Errors
    /// If some were not, with their number and the first one's reason.
    pub(crate) async fn finish(&self, shutdown: &CancellationToken) -> anyhow::Result<u64> {
        let mut deadline = None;
        let _waiting = exit::waiting("Kafka's acknowledgement of the last reports");
        while self.producer.in_flight_count() > 0 {
            if shutdown.is_cancelled() {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + LAST_ACKS);
                if Instant::now() > deadline {
                    break;
                }
            }
            sleep(Duration::from_millis(2)).await;
        }
        if self.producer.in_flight_count() == 0 {
            let too_late = async {
                shutdown.cancelled().await;
                sleep_until(deadline.unwrap_or_else(|| Instant::now() + LAST_ACKS)).await;
            };
            tokio::select! {
                biased;
                sent = self.send_refused() => sent?,
                () = too_late => {}
            }
        }
        self.acks.check(&self.topic)?;
        let sent = self.sent.load(Ordering::Relaxed);
        let acknowledged = self.acks.0.acknowledged.load(Ordering::Acquire);
        if acknowledged < sent {
            bail!(
                "Kafka has not acknowledged {} of {} sent to {}",
                sent - acknowledged,
                counted(sent, "report"),
                self.topic
            );
        }
        Ok(acknowledged)
    }
}

/// Counts acknowledgements, and notes the first record that was not delivered.
#[derive(Clone)]
struct Acks(Arc<Counted>);

struct Counted {
    acknowledged: AtomicU64,
    failed: AtomicU64,
    first_error: Mutex<Option<KafkaError>>,
    /// Whether records are sent one at a time, so that a refusal is the record's own.
    alone: AtomicBool,
    any_refused: AtomicBool,
    /// Keys and values of records that the broker refused in a batch; at most as many as the queue holds.
    refused: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    /// The command that gives the right to send.
    allow: String,
    sent: metrics::Counter,
    watch: Watch,
    throttling: Throttling,
}

impl Counted {
    fn refused(&self) -> MutexGuard<'_, Vec<(Vec<u8>, Vec<u8>)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Acks {
    fn check(&self, topic: &str) -> anyhow::Result<()> {
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

/// Tells [`Health`] what the client's statistics say: a producer is ready while it is connected and
/// records are acknowledged or none waits.
pub(crate) struct Watch {
    health: Arc<Health>,
    acknowledged_before: AtomicU64,
}

impl Watch {
    pub(crate) fn new(health: Arc<Health>) -> Self {
        Self {
            health,
            acknowledged_before: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, statistics: &Statistics, acknowledged: u64) {
        let mut brokers = statistics.brokers.values();
        let connected = brokers.any(|broker| broker.state == "UP");
        let before = self
            .acknowledged_before
            .swap(acknowledged, Ordering::Relaxed);
        if acknowledged > before {
            self.health.progressed();
        }
        let waiting = i64::try_from(statistics.msg_cnt).unwrap_or(i64::MAX);
        // There is no group that it could have failed to join.
        let reading = Reading {
            position: i64::try_from(acknowledged).unwrap_or(i64::MAX),
            lag: Some(waiting),
        };
        self.health
            .observed(connected, true, BTreeMap::from([(0, reading)]));
    }
}

impl ClientContext for Acks {
    fn stats(&self, statistics: Statistics) {
        let acknowledged = self.0.acknowledged.load(Ordering::Relaxed);
        self.0.watch.observe(&statistics, acknowledged);
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
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        match result {
            Ok(_) => {
                self.0.acknowledged.fetch_add(1, Ordering::Release);
                self.0.sent.increment(1);
            }
            Err((error, record))
                if refuses_batch(error) && !self.0.alone.load(Ordering::Acquire) =>
            {
                let owned = |part: Option<&[u8]>| part.unwrap_or_default().to_vec();
                let record = (owned(record.key()), owned(record.payload()));
                self.0.refused().push(record);
                self.0.any_refused.store(true, Ordering::Release);
            }
            Err((error, _)) => {
                self.0
                    .first_error
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert_with(|| error.clone());
                self.0.failed.fetch_add(1, Ordering::Release);
            }
        }
    }
}
