//! Sends what is read or made as fast as Kafka takes it: waits while librdkafka's queue is full,
//! and counts every acknowledgement. For input that can wait; a live engine's reports go through
//! [`Delivery`](crate::delivery::Delivery), which never waits.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig};
use rdkafka::statistics::Statistics;
use schemas::{CURRENT_INFO, Framing, TaskRunningInfo};
use service::exit::{self, NeedsAttention};
use service::health::{Health, Reading};
use service::kafka::{Cluster, KafkaOptions, wrong_settings};
use service::limits::{
    CLIENT_MESSAGE_MAX_BYTES, DEFAULT_RECORD_BYTES, is_too_large, refuses_batch,
};
use service::producer::PolledProducer;
use service::registry::{Registry, RegistryError, until_answered};
use service::telemetry::{messaging, names};
use service::throttling::Throttling;
use service::warn_of_change;
use service::words::counted;
use tokio::time::{sleep, timeout};
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
/// How long librdkafka may take to give back what is not acknowledged.
const PURGE: Duration = Duration::from_secs(1);

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

/// An idempotent producer with back pressure. The caller numbers its reports, in ascending order.
pub(crate) struct Sender {
    producer: PolledProducer<Acks>,
    acks: Acks,
    topic: String,
    framing: Framing,
    /// Bytes of key and value that the topic takes, as far as is known. A larger report is sent alone, so that it is
    /// known at once, and in order, whether it is refused.
    together_max_bytes: usize,
    sent: u64,
    /// The last report's bytes, used again.
    value: Vec<u8>,
}

/// A report that the topic or the producer's `message.max.bytes` refuses for its size.
pub(crate) struct TooLarge {
    /// Its number.
    pub(crate) number: usize,
    /// What was found, and what to do.
    pub(crate) reason: String,
}

impl Sender {
    /// # Errors
    /// If a setting is wrong.
    pub(crate) async fn connect(
        kafka: &KafkaOptions,
        cluster: &Cluster,
        topic: &str,
        framing: Framing,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        let mut config = kafka.client_config(DEFAULTS, FIXED)?;
        if config.get("message.max.bytes").is_none() {
            config.set("message.max.bytes", CLIENT_MESSAGE_MAX_BYTES);
        }
        // A producer needs no right to ask.
        let limit = cluster.max_record_bytes(topic).await;
        let allow = kafka.allow(&format!("--topic {topic}"), "Write");
        let acks = Acks::new(topic, allow, health);
        let producer = config
            .create_with_context(acks.clone())
            .map_err(wrong_settings)?;
        Ok(Self {
            producer,
            acks,
            topic: topic.to_owned(),
            framing,
            together_max_bytes: limit.unwrap_or(DEFAULT_RECORD_BYTES),
            sent: 0,
            value: Vec::new(),
        })
    }

    /// Hands a report to the producer; waits while its queue is full. Whether it was handed over: a full
    /// queue is not waited for once `shutdown` is cancelled. One that is refused for its size is among
    /// [`take_too_large`](Self::take_too_large), at once where the topic's limit is known.
    ///
    /// # Errors
    /// If this report or an earlier one cannot be delivered. After that, nothing should be sent: it
    /// would arrive in front of what was not.
    pub(crate) async fn send(
        &mut self,
        info: &TaskRunningInfo,
        number: usize,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<bool> {
        self.value.clear();
        schemas::write_info(info, self.framing, &mut self.value);
        let alone = info.exec_id.len() + self.value.len() > self.together_max_bytes;
        if alone || self.acks.0.any_refused.load(Ordering::Acquire) {
            let settled = async {
                self.send_refused().await?;
                if alone {
                    self.until_answered().await;
                    self.send_refused().await?;
                }
                anyhow::Ok(())
            };
            tokio::select! {
                biased;
                settled = settled => settled?,
                () = shutdown.cancelled() => return Ok(false),
            }
        }
        self.acks.0.alone.store(alone, Ordering::Release);
        let mut record = BaseRecord::with_opaque_to(&self.topic, number)
            .key(info.exec_id.as_bytes())
            .payload(self.value.as_slice());
        loop {
            self.acks.check(&self.topic)?;
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    if shutdown.is_cancelled() {
                        return Ok(false);
                    }
                    record = unsent;
                    sleep(Duration::from_millis(1)).await;
                }
                Err((error, unsent)) if is_too_large(&error) => {
                    let bytes = info.exec_id.len() + self.value.len();
                    self.acks.0.too_large().push(TooLarge {
                        number: unsent.delivery_opaque,
                        reason: format!(
                            "the report has {bytes} bytes in Avro, more than the producer's message.max.bytes takes; \
                             report less at once, or set it higher"
                        ),
                    });
                    return Ok(true);
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
        self.sent += 1;
        if alone {
            tokio::select! {
                biased;
                () = self.until_answered() => self.acks.0.alone.store(false, Ordering::Release),
                () = shutdown.cancelled() => {}
            }
        }
        Ok(true)
    }

    /// The reports that were refused for their size since this was asked last.
    pub(crate) fn take_too_large(&self) -> Vec<TooLarge> {
        std::mem::take(&mut *self.acks.0.too_large())
    }

    /// Reports that Kafka has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acks.0.acknowledged.load(Ordering::Acquire)
    }

    /// The first report, by its number, of those that failed or, after [`finish`](Self::finish), were not
    /// acknowledged.
    pub(crate) fn first_failed(&self) -> Option<usize> {
        let first = self.acks.0.first_failed.load(Ordering::Acquire);
        (first != usize::MAX).then_some(first)
    }

    /// Sends the records of refused batches again, one at a time: only one that is refused by itself cannot be
    /// delivered. They arrive behind reports of their tasks that were on their way; `sequence` tells the order.
    async fn send_refused(&self) -> anyhow::Result<()> {
        let acks = &self.acks.0;
        if !acks.any_refused.load(Ordering::Acquire) {
            return Ok(());
        }
        self.until_answered().await;
        warn_of_change!(
            "{} has refused a batch of {}; they are sent again one by one",
            self.topic,
            counted(acks.refused().len(), "report")
        );
        acks.alone.store(true, Ordering::Release);
        let next = || acks.refused().pop_front();
        while let Some(Refused { number, key, value }) = next() {
            let record = BaseRecord::with_opaque_to(&self.topic, number)
                .key(&key)
                .payload(&value);
            if let Err((error, _)) = self.producer.send(record) {
                acks.failed_at(number);
                return Err(error)
                    .with_context(|| format!("sending a report to {} again", self.topic));
            }
            self.until_answered().await;
        }
        acks.any_refused.store(false, Ordering::Release);
        acks.alone.store(false, Ordering::Release);
        Ok(())
    }

    /// `message.timeout.ms` bounds it.
    async fn until_answered(&self) {
        while self.producer.in_flight_count() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until every record is acknowledged or has failed (`message.timeout.ms` bounds that; 5 s
    /// once `shutdown` is cancelled), and gives the number of those acknowledged. Those that were refused for their
    /// size count as settled.
    ///
    /// # Errors
    /// If some were not, with their number and the first one's reason.
    pub(crate) async fn finish(&self, shutdown: &CancellationToken) -> anyhow::Result<u64> {
        let _waiting = exit::waiting("Kafka's acknowledgement of the last reports");
        let settled = async {
            self.until_answered().await;
            self.send_refused().await
        };
        let too_late = async {
            shutdown.cancelled().await;
            sleep(LAST_ACKS).await;
        };
        tokio::select! {
            biased;
            settled = settled => if let Err(error) = settled {
                // What of a refused batch is left is not in the order of its numbers.
                self.give_up().await;
                return Err(error);
            },
            () = too_late => self.give_up().await,
        }
        self.acks.check(&self.topic)?;
        let acknowledged = self.acknowledged();
        let settled = acknowledged + self.acks.0.refused_for_size.load(Ordering::Acquire);
        if settled < self.sent {
            bail!(
                "Kafka has not acknowledged {} of {} sent to {}",
                self.sent - settled,
                counted(self.sent, "report"),
                self.topic
            );
        }
        Ok(acknowledged)
    }

    /// Takes back what is not acknowledged, so that [`first_failed`](Self::first_failed) tells of it.
    async fn give_up(&self) {
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        let _ = timeout(PURGE, self.until_answered()).await;
        for refused in self.acks.0.refused().iter() {
            self.acks.0.failed_at(refused.number);
        }
    }
}

/// Counts acknowledgements, and notes the first record that was not delivered.
#[derive(Clone)]
struct Acks(Arc<Counted>);

struct Counted {
    topic: String,
    acknowledged: AtomicU64,
    failed: AtomicU64,
    /// The lowest number of a record that was not delivered.
    first_failed: AtomicUsize,
    refused_for_size: AtomicU64,
    too_large: Mutex<Vec<TooLarge>>,
    first_error: Mutex<Option<KafkaError>>,
    /// Whether records are sent one at a time, so that a refusal is the record's own.
    alone: AtomicBool,
    any_refused: AtomicBool,
    /// Records that the broker refused in a batch; at most as many as the queue holds.
    refused: Mutex<VecDeque<Refused>>,
    /// The command that gives the right to send.
    allow: String,
    sent: metrics::Counter,
    watch: Watch,
    throttling: Throttling,
}

/// A record that was refused with its batch.
struct Refused {
    number: usize,
    key: Vec<u8>,
    value: Vec<u8>,
}

impl Counted {
    fn refused(&self) -> MutexGuard<'_, VecDeque<Refused>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn too_large(&self) -> MutexGuard<'_, Vec<TooLarge>> {
        self.too_large
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn failed_at(&self, number: usize) {
        self.first_failed.fetch_min(number, Ordering::AcqRel);
    }
}

impl Acks {
    fn new(topic: &str, allow: String, health: Arc<Health>) -> Self {
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
            watch: Watch::new(health),
            throttling: Throttling::default(),
        }))
    }

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

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;

    use super::*;

    #[tokio::test]
    async fn where_sending_again_fails_the_first_that_was_not_sent_is_named() {
        const BYTES_MAX: usize = 1_000;
        let acks = Acks::new("reports", String::new(), Arc::default());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:9");
        config.set("message.max.bytes", BYTES_MAX.to_string());
        let sender = Sender {
            producer: config.create_with_context(acks.clone()).unwrap(),
            acks,
            topic: "reports".to_owned(),
            framing: Framing::SingleObject,
            together_max_bytes: BYTES_MAX,
            sent: 3,
            value: Vec::new(),
        };
        // In the order in which their refusals came; the client takes none of them again.
        for number in [7, 9, 3] {
            sender.acks.0.refused().push_back(Refused {
                number,
                key: Vec::new(),
                value: vec![0; 2 * BYTES_MAX],
            });
        }
        sender.acks.0.any_refused.store(true, Ordering::Release);
        let finished = sender.finish(&CancellationToken::new()).await;
        let error = finished.unwrap_err().to_string();
        assert_eq!(error, "sending a report to reports again");
        assert_eq!(sender.first_failed(), Some(3));
    }
}
