//! Reports and the checkpoints of their source in one Kafka transaction: after a restart, the source goes on behind the
//! last committed report.
//!
//! 1. The transactional id is the name of the topic of checkpoints. A producer that starts fences an earlier one and
//!    settles its open transaction; only then does it read the checkpoints. So they cover exactly the reports of
//!    the earlier one that will ever be visible.
//! 2. A report and the checkpoint behind it are committed together, or not at all.
//! 3. Where the outcome of a commit is unknown, a new producer settles it (1); the checkpoints show what it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::BaseRecord;
use schemas::{Framing, TaskRunningInfo, topics};
use service::backoff::Backoff;
use service::exit::{self, NeedsAttention};
use service::health::{Health, Reading};
use service::kafka::{KafkaOptions, NewTopic};
use service::limits::{SizeLimits, is_too_large};
use service::range::{End, Ranges, Reader};
use service::rival::Fenced;
use service::telemetry::{messaging, names};
use service::transaction::{Failed, TransactionalProducer};
use service::warn_of_change;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;

/// All checkpoints are in one partition, so that the newest of a key is the last one, however many partitions there are.
const PARTITION: i32 = 0;
/// How long an open transaction may take after a signal. A call to Kafka takes up to 5 s more.
const LAST_COMMIT: Duration = Duration::from_secs(2);
/// Bytes and reports of a transaction; one step of the source may exceed them.
const BATCH_MAX_BYTES: usize = 8 << 20;
const BATCH_MAX_REPORTS: usize = 5_000;
/// Characters of a key in a message.
const KEY_SHOWN: usize = 64;

/// Reports and checkpoints that belong together.
#[derive(Default)]
pub(crate) struct Batch {
    /// Key and value of each.
    reports: Vec<(String, Vec<u8>)>,
    bytes: usize,
    /// The newest of each key; `None` removes it.
    checkpoints: BTreeMap<String, Option<Vec<u8>>>,
}

impl Batch {
    pub(crate) fn is_full(&self) -> bool {
        self.bytes >= BATCH_MAX_BYTES || self.reports.len() >= BATCH_MAX_REPORTS
    }

    /// Sets the checkpoint of a key.
    pub(crate) fn checkpoint(&mut self, key: String, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.checkpoints.insert(key, value);
    }
}

impl Batch {
    /// The key and the bytes of the largest checkpoint.
    fn largest_checkpoint(&self) -> Option<(&str, usize)> {
        let bytes = |value: &Option<Vec<u8>>| value.as_ref().map_or(0, Vec::len);
        let each = self.checkpoints.iter();
        each.map(|(key, value)| (key.as_str(), key.len() + bytes(value)))
            .max_by_key(|(_, bytes)| *bytes)
    }
}

/// A checkpoint in the topic.
pub(crate) struct Stored {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// When it was written, in milliseconds since 1970.
    pub(crate) written_ms: i64,
}

/// A transactional producer of reports and checkpoints.
pub(crate) struct Checkpointed {
    producer: TransactionalProducer,
    kafka: KafkaOptions,
    topic: String,
    checkpoints: String,
    framing: Framing,
    limits: SizeLimits,
    health: Arc<Health>,
    shutdown: CancellationToken,
    backoff: Backoff,
    sent: u64,
    refused: u64,
    metric: metrics::Counter,
}

impl Checkpointed {
    /// Waits while Kafka is unavailable. `None` if a signal comes meanwhile.
    ///
    /// # Errors
    /// If a setting is wrong, the topic of checkpoints is missing or not compacted, or a right is missing.
    pub(crate) async fn start(
        connection: Connection,
        kafka: &KafkaOptions,
        topic: &str,
        checkpoints: &str,
        health: Arc<Health>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let cluster = &connection.cluster;
        let mut new_topic = NewTopic::with(topics::CHECKPOINTS_SETTINGS);
        new_topic.partitions = 1;
        cluster
            .require_topic(checkpoints, "Write", Some(new_topic))
            .await?;
        let policy = cluster.topic_setting(checkpoints, "cleanup.policy").await?;
        if policy != "compact" {
            return Err(NeedsAttention(format!(
                "{checkpoints} has cleanup.policy={policy}: Kafka deletes checkpoints that are needed, and after a restart \
                 their reports would be sent again. Set it with: kafka-configs.sh --bootstrap-server {} --alter \
                 --entity-type topics --entity-name {checkpoints} --add-config cleanup.policy=compact",
                kafka.servers()
            ))
            .into());
        }
        let limits = SizeLimits::read(kafka, &[topic, checkpoints]).await?;
        let topics = [topic, checkpoints];
        let bytes = limits.smallest();
        let started = TransactionalProducer::start(kafka, checkpoints, &topics, bytes, &shutdown);
        let Some(producer) = started.await? else {
            return Ok(None);
        };
        health.answered();
        Ok(Some(Self {
            producer,
            kafka: kafka.clone(),
            topic: topic.to_owned(),
            checkpoints: checkpoints.to_owned(),
            framing: connection.framing,
            limits,
            health,
            shutdown,
            backoff: Backoff::default(),
            sent: 0,
            refused: 0,
            metric: metrics::counter!(names::SENT, &messaging("send", topic)),
        }))
    }

    /// Every checkpoint, the newest of each key. Waits while Kafka is unavailable; `None` if a signal comes meanwhile.
    ///
    /// # Errors
    /// If a right is missing, or the topic has gone.
    pub(crate) async fn stored(&self) -> anyhow::Result<Option<Vec<Stored>>> {
        let mut backoff = Backoff::default();
        loop {
            let (kafka, topic, stop) = (
                self.kafka.clone(),
                self.checkpoints.clone(),
                self.shutdown.clone(),
            );
            let _waiting = exit::waiting(format!("Kafka, to read {topic}"));
            match spawn_blocking(move || read(&kafka, &topic, &stop)).await? {
                Ok(stored) => return Ok(Some(stored)),
                Err(_) if self.shutdown.is_cancelled() => return Ok(None),
                Err(error) if error.is::<NeedsAttention>() => return Err(error),
                Err(error) => {
                    warn_of_change!("reading {}, trying again: {error:#}", self.checkpoints);
                    self.health.waiting_for(format!("Kafka: {error:#}"));
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(None),
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Adds a report to a batch, unless it is larger than the topic takes; that is logged and counted.
    ///
    /// # Errors
    /// If this user may not ask for the topic's limit.
    pub(crate) async fn add(
        &mut self,
        batch: &mut Batch,
        info: &TaskRunningInfo,
    ) -> anyhow::Result<()> {
        let mut value = Vec::new();
        schemas::write_info(info, self.framing, &mut value);
        let bytes = info.exec_id.len() + value.len();
        if bytes > self.limits.record_bytes(&self.topic) {
            match self.limits.confirm().await {
                Err(error) if !error.is::<KafkaError>() => return Err(error),
                _ => {}
            }
            let limit = self.limits.record_bytes(&self.topic);
            if bytes > limit {
                self.refuse(&info.exec_id, bytes, limit);
                self.refused += 1;
                return Ok(());
            }
        }
        batch.bytes += bytes;
        batch.reports.push((info.exec_id.clone(), value));
        Ok(())
    }

    /// Commits a batch; tries until it succeeds. Returns whether it was committed: after a signal, it is given 2 s.
    ///
    /// # Errors
    /// If a right is missing, or another process took over.
    pub(crate) async fn commit(&mut self, batch: &mut Batch) -> anyhow::Result<bool> {
        let shutdown = self.shutdown.clone();
        let too_late = async {
            shutdown.cancelled().await;
            sleep(LAST_COMMIT).await;
        };
        let committed = tokio::select! {
            biased;
            committed = self.commit_at_last(batch) => committed?,
            () = too_late => false,
        };
        if committed {
            let reports = batch.reports.len() as u64;
            self.sent += reports;
            self.metric.increment(reports);
            self.health.progressed();
            self.settled();
            self.backoff = Backoff::default();
        }
        Ok(committed)
    }

    async fn commit_at_last(&mut self, batch: &mut Batch) -> anyhow::Result<bool> {
        loop {
            match self.try_to_commit(batch).await {
                Ok(()) => return Ok(true),
                Err(Failed::Abort(error)) => {
                    warn_of_change!("a transaction was aborted, trying again: {error}");
                    self.health.waiting_for(format!("Kafka: {error}"));
                    if is_too_large(&error) {
                        self.adapt(batch).await?;
                    }
                }
                Err(Failed::StartOver(error)) => {
                    warn_of_change!(
                        "a transaction's outcome is not known, starting over: {error:#}"
                    );
                    self.health.waiting_for(format!("Kafka: {error:#}"));
                    if !self.start_over().await? {
                        return Ok(false);
                    }
                    match self.is_committed(batch).await? {
                        Some(false) => {}
                        Some(true) => return Ok(true),
                        None => return Ok(false),
                    }
                }
                Err(Failed::Exit(error)) => return Err(self.explained(error)),
            }
            if self.shutdown.is_cancelled() {
                return Ok(false);
            }
            let pause = self.backoff.pause();
            tokio::select! {
                () = self.shutdown.cancelled() => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn try_to_commit(&mut self, batch: &Batch) -> Result<(), Failed> {
        let transaction = self.producer.begin()?;
        let committed = async {
            for (key, value) in &batch.reports {
                let record = BaseRecord::to(&self.topic).key(key.as_bytes());
                transaction.send(record.payload(value.as_slice())).await?;
            }
            for (key, value) in &batch.checkpoints {
                let record = BaseRecord::to(&self.checkpoints).partition(PARTITION);
                let record = record.key(key.as_bytes());
                let record = match value {
                    Some(value) => record.payload(value.as_slice()),
                    None => record,
                };
                transaction.send(record).await?;
            }
            transaction.commit_records().await
        };
        match committed.await {
            Err(Failed::Abort(error)) => {
                transaction.abort().await?;
                Err(Failed::Abort(error))
            }
            done => done,
        }
    }

    /// Reads the topics' limits again after a refusal, and takes out the reports that no longer fit.
    ///
    /// # Errors
    /// If a checkpoint does not fit: without it, its reports would come twice.
    async fn adapt(&mut self, batch: &mut Batch) -> anyhow::Result<()> {
        match self.limits.read_again().await {
            Err(error) if !error.is::<KafkaError>() => return Err(error),
            _ => {}
        }
        let limit = self.limits.record_bytes(&self.topic);
        let before = batch.reports.len();
        batch.reports.retain(|(exec_id, value)| {
            let bytes = exec_id.len() + value.len();
            let fits = bytes <= limit;
            if !fits {
                self.refuse(exec_id, bytes, limit);
            }
            fits
        });
        self.refused += (before - batch.reports.len()) as u64;
        let limit = self.limits.record_bytes(&self.checkpoints);
        if let Some((key, bytes)) = batch.largest_checkpoint()
            && bytes > limit
        {
            let key: String = key.chars().take(KEY_SHOWN).collect();
            return Err(NeedsAttention(format!(
                "the checkpoint of {key} has {bytes} bytes, more than the {limit} that {} takes; raise the topic's \
                 max.message.bytes",
                self.checkpoints
            ))
            .into());
        }
        let bytes = self.limits.smallest();
        self.producer.fit_batches(bytes, &self.shutdown).await
    }

    fn refuse(&self, exec_id: &str, bytes: usize, limit: usize) {
        tracing::error!(
            "a report of {exec_id} is refused: it has {bytes} bytes, more than the {limit} that {} takes; raise the topic's \
             max.message.bytes",
            self.topic
        );
    }

    /// Replaces the producer. Returns whether it was, before a signal.
    async fn start_over(&mut self) -> anyhow::Result<bool> {
        let bytes = self.limits.smallest();
        let topics = [self.topic.as_str(), &self.checkpoints];
        let id = &self.checkpoints;
        let started = TransactionalProducer::start(&self.kafka, id, &topics, bytes, &self.shutdown);
        match started.await.map_err(|error| self.explained(error))? {
            Some(producer) => {
                self.producer = producer;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Whether the topic holds the batch's checkpoints; `None` on a signal. Only after a new producer has settled the old
    /// one's transaction.
    async fn is_committed(&self, batch: &Batch) -> anyhow::Result<Option<bool>> {
        let Some(stored) = self.stored().await? else {
            return Ok(None);
        };
        let stored: BTreeMap<&str, &[u8]> = stored
            .iter()
            .map(|stored| (stored.key.as_str(), stored.value.as_slice()))
            .collect();
        if batch.checkpoints.is_empty() {
            // Nothing shows whether its reports were committed: rather twice than not at all.
            return Ok(Some(batch.reports.is_empty()));
        }
        let mut all = batch.checkpoints.iter();
        Ok(Some(all.all(|(key, value)| {
            stored.get(key.as_str()).copied() == value.as_deref()
        })))
    }

    fn explained(&self, error: anyhow::Error) -> anyhow::Error {
        if !error.is::<Fenced>() {
            return error;
        }
        NeedsAttention(format!(
            "another producer uses the checkpoints of {} and has taken over: nothing was sent twice. Stop one of the two, \
             or give each its own logs and its own --checkpoints-topic: {error:#}",
            self.checkpoints
        ))
        .into()
    }

    /// Nothing waits to be committed: to be called about once a second while that is so.
    pub(crate) fn settled(&self) {
        let nothing_waits = Reading {
            position: i64::try_from(self.sent).unwrap_or(i64::MAX),
            lag: Some(0),
        };
        self.health
            .observed(true, true, BTreeMap::from([(0, nothing_waits)]));
    }

    /// Reports that were committed.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// Reports that were refused for their size.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }
}

/// The error of a topic that holds something else.
pub(crate) fn foreign(topic: &str, found: &str) -> NeedsAttention {
    NeedsAttention(format!(
        "{topic} holds something else than checkpoints: {found}. Give another topic with --checkpoints-topic"
    ))
}

/// Every checkpoint of a topic that is committed by now.
fn read(
    kafka: &KafkaOptions,
    topic: &str,
    stop: &CancellationToken,
) -> anyhow::Result<Vec<Stored>> {
    let reader = Reader::connect(kafka)?;
    let mut newest: BTreeMap<String, (Vec<u8>, i64)> = BTreeMap::new();
    let mut take = |record: &BorrowedMessage<'_>| {
        let key = std::str::from_utf8(record.key().unwrap_or_default());
        let key = key.map_err(|_| foreign(topic, "keys that are not UTF-8"))?;
        match record.payload() {
            Some(value) => {
                let written_ms = record.timestamp().to_millis().unwrap_or(0);
                newest.insert(key.to_owned(), (value.to_owned(), written_ms));
            }
            None => {
                newest.remove(key);
            }
        }
        Ok(())
    };
    // The transactions of this producer are settled, and nobody else writes this topic.
    let bounds = reader.bounds(topic, PARTITION, End::Stable)?;
    reader.scan(topic, &Ranges::from([(PARTITION, bounds)]), stop, &mut take)?;
    Ok(newest
        .into_iter()
        .map(|(key, (value, written_ms))| Stored {
            key,
            value,
            written_ms,
        })
        .collect())
}
