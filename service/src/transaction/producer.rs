//! A transactional producer, and its open transaction.

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use rdkafka::client::{Client, ClientContext};
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::deliveries::Deliveries;
use super::settings::{DEFAULTS, FIXED, TRANSACTION_TIMEOUT, timeout_of};
use crate::backoff::Backoff;
use crate::error::{Fenced, NeedsAttention};
use crate::exit;
use crate::kafka::{KafkaOptions, wrong_settings};
use crate::producer::{CLIENT_MESSAGE_MAX_BYTES, PolledProducer};
use crate::threads::blocking;
use crate::warn_of_change;

/// Timeout of a call; it is then repeated.
const CALL: Duration = Duration::from_secs(5);

/// How long a call is repeated before its outcome counts as unknown.
const GIVE_UP: Duration = Duration::from_secs(30);

/// librdkafka's default for `batch.size`.
const LIBRDKAFKA_BATCH_BYTES: usize = 1_000_000;

/// A transactional producer. It fences earlier producers with the same transactional id.
pub struct TransactionalProducer {
    producer: Arc<PolledProducer<Deliveries>>,
    options: KafkaOptions,
    /// The transactional id.
    transactional_id: String,
    /// Those it writes.
    topics: Vec<String>,
    transaction_timeout: Duration,
    /// Maximum size of a batch of several records.
    batch_bytes: usize,
}

/// Why a transaction did not commit.
#[derive(Debug)]
pub enum Failed {
    /// This transaction cannot be committed, but the next one can: abort, rewind, continue.
    Abort(KafkaError),
    /// The outcome of the transaction is unknown, or this producer cannot begin another: create a new
    /// [`TransactionalProducer`] with the same id, which settles open transactions, and read the committed
    /// offsets.
    StartOver(anyhow::Error),
    /// Needs an operator, or another program has fenced this one: exit.
    Exit(anyhow::Error),
}

impl Failed {
    /// A failure to read a topic's limit: abort if the cluster may answer later, otherwise exit.
    pub fn unread_limit(error: anyhow::Error) -> Self {
        match error.downcast::<KafkaError>() {
            Ok(away) => Self::Abort(away),
            Err(denied) => Self::Exit(denied),
        }
    }
}

impl TransactionalProducer {
    /// Creates a producer that writes `topics`; it must be [initialised](Self::initialise) before use.
    /// `batch_max_bytes` is the smallest limit of its topics: records that fit separately must not form a batch
    /// that does not.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub fn create(
        options: &KafkaOptions,
        transactional_id: &str,
        topics: &[&str],
        batch_max_bytes: usize,
    ) -> anyhow::Result<Self> {
        let mut config = options.client_config(DEFAULTS, FIXED)?;
        config.set("transactional.id", transactional_id);
        config.set("message.max.bytes", CLIENT_MESSAGE_MAX_BYTES);
        let chosen = config.get("batch.size").and_then(|size| size.parse().ok());
        let batch_bytes = chosen
            .unwrap_or(LIBRDKAFKA_BATCH_BYTES)
            .min(batch_max_bytes)
            .max(1);
        config.set("batch.size", batch_bytes.to_string());
        let transaction_timeout = timeout_of(&config)?;
        let producer = config
            .create_with_context(Deliveries::default())
            .map_err(wrong_settings)?;
        Ok(Self {
            producer: Arc::new(producer),
            options: options.clone(),
            transactional_id: transactional_id.to_owned(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            transaction_timeout,
            batch_bytes,
        })
    }

    /// Fences earlier producers with the same id and settles their open transactions; tries for 5 s.
    ///
    /// # Errors
    /// [`Failed::Abort`]: Kafka is unavailable or needs more time; the call may be repeated.
    pub fn initialise(&self) -> Result<(), Failed> {
        let _waiting = exit::waiting(format!(
            "Kafka, to start transactions as {}",
            self.transactional_id
        ));
        blocking(|| self.producer.init_transactions(CALL)).map_err(|error| match &error {
            KafkaError::Transaction(e) if e.is_fatal() => {
                let is_fenced = error.rdkafka_error_code().is_some_and(is_fenced);
                let error = self.exit(error);
                Failed::Exit(match is_fenced {
                    true => error.context(self.fenced()),
                    false => error,
                })
            }
            _ if forbidden(&error) => Failed::Exit(self.exit(error)),
            _ => Failed::Abort(error),
        })
    }

    /// [Creates](Self::create) and [initialises](Self::initialise) a producer; waits while Kafka is
    /// unavailable; `None` on `stop`.
    ///
    /// # Errors
    /// If a setting is wrong, or the right to the transactional id is missing.
    pub async fn start(
        options: &KafkaOptions,
        transactional_id: &str,
        topics: &[&str],
        batch_max_bytes: usize,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let producer = Self::create(options, transactional_id, topics, batch_max_bytes)?;
        let mut backoff = Backoff::default();
        loop {
            match producer.initialise() {
                Ok(()) => return Ok(Some(producer)),
                Err(Failed::Abort(error)) => warn_of_change!(
                    "starting transactions as {transactional_id}, trying again: {}",
                    producer.shown(&error)
                ),
                Err(Failed::StartOver(error) | Failed::Exit(error)) => return Err(error),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Starts another producer with the same id if this one's batches may be larger than `batch_max_bytes`,
    /// because a client's `batch.size` is fixed. No transaction may be open.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn fit_batches(
        &mut self,
        batch_max_bytes: usize,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        if self.batch_bytes <= batch_max_bytes.max(1) {
            return Ok(());
        }
        let (options, id) = (&self.options, &self.transactional_id);
        let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        if let Some(smaller) = Self::start(options, id, &topics, batch_max_bytes, stop).await? {
            *self = smaller;
        }
        Ok(())
    }

    /// The client, for requests to the cluster. On a consumer's connections, a request would wait behind a
    /// pending fetch.
    pub fn client(&self) -> &Client<impl ClientContext + use<>> {
        self.producer.client()
    }

    /// # Errors
    /// If the producer cannot begin another one.
    pub fn begin(&mut self) -> Result<Transaction<'_>, Failed> {
        self.producer.context().forget();
        let transaction = Transaction {
            owner: self,
            begun: Instant::now(),
        };
        match transaction.owner.producer.begin_transaction() {
            Ok(()) => Ok(transaction),
            Err(error) => Err(transaction.judge(error)),
        }
    }

    /// The error of a fenced producer.
    fn fenced(&self) -> Fenced {
        Fenced(format!(
            "transactional.id {} was fenced, and nothing of the open transaction was committed: either another process \
             runs with it, or Kafka mistook a repeated request of this process for another one's",
            self.transactional_id
        ))
    }

    /// The text of a temporary error; if it is a concurrent transaction, explains the wait.
    fn shown(&self, error: &KafkaError) -> String {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::ConcurrentTransactions) {
            return error.to_string();
        }
        format!(
            "an earlier transaction of {} is still open or ending; that takes at most its {TRANSACTION_TIMEOUT} \
             ({} s, unless it was begun with another value) and up to 10 s more ({error})",
            self.transactional_id,
            self.transaction_timeout.as_secs()
        )
    }

    /// The error that ends the program, with an explanation.
    fn exit(&self, error: KafkaError) -> anyhow::Error {
        let id = &self.transactional_id;
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed)
        {
            let allow = self
                .options
                .allow(&format!("--transactional-id {id}"), "Write");
            return NeedsAttention(format!("transactional.id {id}: {error}; {allow}")).into();
        }
        if forbidden(&error) {
            // Kafka does not say which topic is meant.
            let topics: Vec<String> = self
                .topics
                .iter()
                .map(|topic| format!("--topic {topic}"))
                .collect();
            let allow = self.options.allow(&topics.join(" "), "Write");
            return NeedsAttention(format!(
                "transactional.id {id}: {error}; this user needs the right to write all topics of the transaction, and, if \
                 it consumes, to read its group and the topic that it reads; {allow}"
            ))
            .into();
        }
        anyhow!(error).context(format!("the transactional producer {id} has failed"))
    }
}

/// Whether the broker knows a later producer with the same id. librdkafka returns the broker's codes or,
/// mostly, its own one.
fn is_fenced(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
    )
}

/// Whether this user lacks a right.
fn forbidden(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
        )
    )
}

/// An open transaction.
pub struct Transaction<'a> {
    owner: &'a TransactionalProducer,
    begun: Instant,
}

impl Transaction<'_> {
    /// The client, as [`TransactionalProducer::client`].
    pub fn client(&self) -> &Client<impl ClientContext + use<>> {
        self.owner.client()
    }

    /// Passes a record to the producer; waits while its queue is full.
    ///
    /// # Errors
    /// If the transaction has failed.
    pub async fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), Failed> {
        let mut waiting = None;
        loop {
            match self.owner.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((
                    error @ KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull),
                    unsent,
                )) => {
                    if waiting.get_or_insert_with(Instant::now).elapsed() > GIVE_UP {
                        return Err(Failed::Abort(error));
                    }
                    record = unsent;
                    sleep(Duration::from_millis(1)).await;
                }
                Err((error, unsent)) => {
                    tracing::warn!("cannot send to {}: {error}", unsent.topic);
                    return Err(self.judge(error));
                }
            }
        }
    }

    /// Commits the records and `offsets` (the next to read) on behalf of `group`.
    ///
    /// # Errors
    /// If the commit is not confirmed.
    pub async fn commit(
        &self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> Result<(), Failed> {
        self.commit_if(offsets, group, std::future::ready(Ok(())))
            .await
    }

    /// Commits the records of a program that consumes nothing.
    ///
    /// # Errors
    /// If the commit is not confirmed.
    pub async fn commit_records(&self) -> Result<(), Failed> {
        let producer = self.owner.producer.clone();
        // If this flush times out, the commit flushes the rest.
        let _ = spawn_blocking(move || producer.flush_now(CALL)).await;
        let producer = &self.owner.producer;
        if let Some(error) = producer.context().first_error() {
            return Err(self.judge(error));
        }
        self.repeat(|| producer.commit_transaction(CALL)).await
    }

    /// [`commit`](Self::commit), unless `condition` fails, which is awaited while the records are sent.
    ///
    /// # Errors
    /// If the condition fails, or the commit is not confirmed.
    pub async fn commit_if(
        &self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        condition: impl Future<Output = Result<(), Failed>>,
    ) -> Result<(), Failed> {
        let producer = &self.owner.producer;
        let flushed = producer.clone();
        let mut flushing = spawn_blocking(move || flushed.flush_now(CALL));
        // The broker acknowledges the records of one partition after the other; meanwhile the offsets go over
        // other connections. Before the first acknowledgement, the broker may not have finished the last
        // transaction: it would refuse the offsets, and `repeat` would pause.
        let answered = tokio::select! {
            () = producer.context().first_answer() => true,
            _ = &mut flushing => false,
        };
        let sent = self.repeat(|| producer.send_offsets_to_transaction(offsets, group, CALL));
        // Sends the condition's request before this thread waits for the offsets.
        let (holds, sent) = tokio::join!(biased; condition, sent);
        if answered {
            // If this flush timed out, the commit flushes the rest.
            let _ = flushing.await;
        }
        if matches!(holds, Err(Failed::Exit(_))) {
            return holds;
        }
        if let Some(error) = producer.context().first_error() {
            return Err(self.judge(error));
        }
        sent?;
        holds?;
        self.repeat(|| producer.commit_transaction(CALL)).await
    }

    /// Aborts the transaction.
    ///
    /// # Errors
    /// [`Failed::StartOver`] or [`Failed::Exit`] only.
    pub async fn abort(self) -> Result<(), Failed> {
        let aborted = self
            .repeat(|| self.owner.producer.abort_transaction(CALL))
            .await;
        aborted.map_err(|failed| match failed {
            Failed::Abort(error) => {
                Failed::StartOver(anyhow!(error).context("aborting the transaction"))
            }
            failed => failed,
        })
    }

    /// Repeats a call until it succeeds or fails permanently; a call that timed out is resumed. After
    /// [`GIVE_UP`], the result is [`Failed::StartOver`], because the outcome of a commit is unknown.
    async fn repeat(&self, call: impl Fn() -> Result<(), KafkaError>) -> Result<(), Failed> {
        let begun = Instant::now();
        let _waiting = exit::waiting(format!(
            "Kafka, to end a transaction of {}",
            self.owner.transactional_id
        ));
        loop {
            let error = match blocking(&call) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let passes = matches!(&error, KafkaError::Transaction(e)
                if e.is_retriable() && !e.is_fatal() && !e.txn_requires_abort());
            if !passes {
                return Err(self.judge(error));
            }
            if begun.elapsed() > GIVE_UP {
                return Err(Failed::StartOver(self.owner.exit(error)));
            }
            warn_of_change!(
                "Kafka does not finish the transaction, trying again: {}",
                self.owner.shown(&error)
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The cause of a failed transaction. `reported` may only be the consequence for one record (such as being
    /// purged); in a failed transaction, librdkafka answers every call with the cause.
    fn cause(&self, reported: KafkaError) -> KafkaError {
        if matches!(reported, KafkaError::Transaction(_)) {
            return reported;
        }
        match self.owner.producer.begin_transaction() {
            Err(KafkaError::Transaction(e)) if e.txn_requires_abort() => KafkaError::Transaction(e),
            _ => reported,
        }
    }

    fn judge(&self, error: KafkaError) -> Failed {
        let error = self.cause(error);
        if forbidden(&error) {
            return Failed::Exit(self.owner.exit(error));
        }
        // A fenced producer's delivery error lacks the transaction's flags.
        let fatal = self.owner.producer.client().fatal_error();
        let abort = match &error {
            KafkaError::Transaction(e) => e.txn_requires_abort(),
            _ => true,
        };
        if abort && fatal.is_none() {
            return Failed::Abort(error);
        }
        let codes = [
            error.rdkafka_error_code(),
            fatal.as_ref().map(|(code, _)| *code),
        ];
        let cause = self.owner.exit(error);
        let cause = match fatal {
            Some((_, reason)) => cause.context(reason),
            None => cause,
        };
        if !codes.into_iter().flatten().any(is_fenced) {
            return Failed::StartOver(cause);
        }
        // The broker uses the same error for a transaction that timed out and for a fenced producer.
        let open = self.begun.elapsed();
        if open >= self.owner.transaction_timeout {
            return Failed::StartOver(cause.context(format!(
                "the transaction was open for {} s, longer than {TRANSACTION_TIMEOUT}",
                open.as_secs()
            )));
        }
        Failed::Exit(cause.context(self.owner.fenced()))
    }
}
