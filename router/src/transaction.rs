//! One Kafka transaction: events, dead letters and consumed offsets, all or nothing.
//!
//! [`Output::begin`] lends the producer to a [`Transaction`], so that no second one is begun beside
//! it; one that did not [`commit`](Transaction::commit) is [aborted](Transaction::abort).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::topic_partition_list::TopicPartitionList;
use service::exit::NeedsAttention;
use service::kafka::KafkaOptions;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

/// How long one call may take before it is made again.
const CALL: Duration = Duration::from_secs(5);

/// How long a call is made again before it counts as failed: as long as the broker keeps a
/// transaction open.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Settings that exactly-once, and the place of a key, rest on.
const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("partitioner", "murmur2_random"),
];

const DEFAULTS: &[(&str, &str)] = &[
    ("linger.ms", "2"),
    ("compression.type", "lz4"),
    ("queue.buffering.max.kbytes", "65536"),
    // A crashed router holds readers of what came after it at most for so long.
    ("transaction.timeout.ms", "30000"),
];

/// The transactional producer.
pub(crate) struct Output {
    producer: ThreadedProducer<Deliveries>,
    /// The id that fences a predecessor.
    transactional_id: String,
}

/// Why a transaction did not commit.
#[derive(Debug)]
pub(crate) enum Failed {
    /// This transaction cannot be committed, the next one can: abort, rewind, go on.
    Abort(KafkaError),
    /// This producer is done for: exit.
    Exit(anyhow::Error),
}

impl Output {
    /// Connects and initialises: an earlier producer of the same id is fenced, and what it left
    /// open is aborted. Waits while Kafka is away, until `stop`.
    ///
    /// # Errors
    /// If a setting is wrong, or the right to the transactional id is missing.
    pub(crate) async fn start(
        options: &KafkaOptions,
        transactional_id: &str,
        message_max_bytes: usize,
        stop: &tokio_util::sync::CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let mut config = options.client_config(DEFAULTS, FIXED)?;
        config.set("transactional.id", transactional_id);
        config.set("message.max.bytes", message_max_bytes.to_string());
        let producer: ThreadedProducer<Deliveries> = config
            .create_with_context(Deliveries::default())
            .map_err(|error| NeedsAttention(format!("Kafka settings: {error}")))?;
        while let Err(error) = block_in_place(|| producer.init_transactions(CALL)) {
            let code = error.rdkafka_error_code();
            if matches!(&error, KafkaError::Transaction(e) if e.is_fatal())
                || code == Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed)
            {
                return Err(NeedsAttention(format!(
                    "transactional.id {transactional_id}: {error}"
                ))
                .into());
            }
            tracing::warn!("starting transactions as {transactional_id}, trying again: {error}");
            if stop.is_cancelled() {
                return Ok(None);
            }
            sleep(Duration::from_millis(500)).await;
        }
        Ok(Some(Self {
            producer,
            transactional_id: transactional_id.to_owned(),
        }))
    }

    pub(crate) fn begin(&mut self) -> anyhow::Result<Transaction<'_>> {
        // What an aborted transaction left behind.
        self.producer.context().first_error();
        self.producer
            .begin_transaction()
            .map_err(|error| self.exit(error))?;
        Ok(Transaction { output: self })
    }

    /// The error that ends the program, with what it means.
    fn exit(&self, error: KafkaError) -> anyhow::Error {
        let fenced = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::Fenced
                    | RDKafkaErrorCode::ProducerFenced
                    | RDKafkaErrorCode::InvalidProducerEpoch
            )
        );
        let id = &self.transactional_id;
        if fenced {
            anyhow!(error).context(format!(
                "transactional.id {id} was fenced: either another router runs with it (give each its own --instance-id), \
                 or this process stood still past transaction.timeout.ms; nothing of the open transaction was committed"
            ))
        } else {
            anyhow!(error).context(format!("the transactional producer {id} cannot go on"))
        }
    }
}

/// An open transaction.
pub(crate) struct Transaction<'a> {
    output: &'a Output,
}

impl Transaction<'_> {
    /// Hands a record to the producer; waits while its queue is full.
    pub(crate) async fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), Failed> {
        loop {
            match self.output.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    record = unsent;
                    sleep(Duration::from_millis(1)).await;
                }
                Err((error, _)) => return Err(self.judge(error)),
            }
        }
    }

    /// Commits what was sent, and `offsets` (the next to read) on behalf of `group`.
    pub(crate) async fn commit(
        &self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), Failed> {
        let producer = &self.output.producer;
        // rust-rdkafka's commit_transaction flushes first, which takes 100 ms unless nothing is in
        // flight. Bounded: of a transaction that has failed, librdkafka sends no more, and what waits
        // is in flight until it is aborted.
        let begun = Instant::now();
        while producer.in_flight_count() > 0 && begun.elapsed() < CALL {
            sleep(Duration::from_millis(1)).await;
        }
        if let Some(error) = producer.context().first_error() {
            return Err(self.judge(error));
        }
        self.repeat(|| producer.send_offsets_to_transaction(offsets, group, CALL))
            .await?;
        self.repeat(|| producer.commit_transaction(CALL)).await
    }

    /// Takes back what was sent.
    pub(crate) async fn abort(self) -> anyhow::Result<()> {
        let aborted = self
            .repeat(|| self.output.producer.abort_transaction(CALL))
            .await;
        match aborted {
            Ok(()) => Ok(()),
            Err(Failed::Exit(error)) => Err(error),
            Err(Failed::Abort(error)) => Err(error).context("aborting the transaction"),
        }
    }

    /// Calls until the call succeeds or cannot: a call that ran out of time is taken up where it
    /// was. What cannot be finished within [`GIVE_UP`] ends the program, since nobody here can tell
    /// whether a commit took place: a new start aborts what is open and reads on from what was
    /// committed.
    async fn repeat(&self, call: impl Fn() -> Result<(), KafkaError>) -> Result<(), Failed> {
        let begun = Instant::now();
        let mut told = String::new();
        loop {
            let error = match block_in_place(&call) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let passes = matches!(&error, KafkaError::Transaction(e)
                if e.is_retriable() && !e.is_fatal() && !e.txn_requires_abort());
            if !passes {
                return Err(self.judge(error));
            }
            if begun.elapsed() > GIVE_UP {
                return Err(Failed::Exit(self.output.exit(error)));
            }
            let reason = error.to_string();
            if reason != told {
                tracing::warn!("Kafka does not finish the transaction, trying again: {reason}");
                told = reason;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn judge(&self, error: KafkaError) -> Failed {
        // A delivery error of a fenced producer arrives without the transaction's flags.
        if let Some((_, reason)) = self.output.producer.client().fatal_error() {
            return Failed::Exit(self.output.exit(error).context(reason));
        }
        match &error {
            KafkaError::Transaction(e) if !e.txn_requires_abort() => {
                Failed::Exit(self.output.exit(error))
            }
            _ => Failed::Abort(error),
        }
    }
}

/// Notes the first record that was not delivered.
#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<Option<KafkaError>>>);

impl Deliveries {
    /// Takes the noted error.
    fn first_error(&self) -> Option<KafkaError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        service::subscription::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_or_insert_with(|| error.clone());
        }
    }
}
