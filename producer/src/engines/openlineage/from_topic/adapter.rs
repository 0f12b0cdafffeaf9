//! The loop: waits for what comes next, answers rebalances, transacts.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::consumer::Consumer;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::Offset;
use schemas::dead_letter::First;
use schemas::{DeadLetter, Framing, Reject};
use service::backoff::Backoff;
use service::breaker::{Breaker, Tripped};
use service::exit::{NeedsAttention, StartOver};
use service::health::Health;
use service::kafka::header;
use service::limits::{SizeLimits, is_too_large};
use service::range::Reader;
use service::subscription::{Next, Subscription};
use service::telemetry::{messaging, names};
use service::topic_id::TopicId;
use service::transaction::{Failed, Transaction, TransactionalProducer};
use service::words::counted;
use service::{repeats, warn_of_change};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::partition::{Partition, offset_list};
use crate::engines::openlineage::event::Refused;
use crate::engines::openlineage::options::Options;
use crate::engines::openlineage::runs::Taken;
use crate::session::Setup;

/// Counter: dead letters written, by kind. Label `reason`.
pub(crate) const DEAD_LETTERS: &str = "taskrunning_dead_letters_total";

/// Maximum age of a transaction.
const AGE_MAX: Duration = Duration::from_millis(500);
/// Maximum number of events in a transaction.
const EVENTS_MAX: u32 = 10_000;
/// How long a transaction waits for another event.
const PATIENCE: Duration = Duration::from_millis(10);

/// Reports on the partitions of one member.
pub(super) struct Adapter<'a> {
    pub(super) options: &'a Options,
    pub(super) health: &'a Health,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) topic_id: Option<TopicId>,
    pub(super) partitions: BTreeMap<i32, Partition>,
    pub(super) reader: Reader,
    /// The topic of reports.
    topic: &'a str,
    framing: Framing,
    limits: SizeLimits,
    /// This process's name in dead letters.
    instance: String,
    breaker: Breaker,
    /// Back-off after aborted transactions; `None` after a commit.
    abort_backoff: Option<Backoff>,
    counts: &'a mut Counts,
    /// Buffer for a report's bytes, reused.
    value: Vec<u8>,
}

/// What was committed.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) reports: u64,
    pub(super) letters: u64,
}

/// Content of a transaction.
#[derive(Default)]
struct Work {
    events: u32,
    reports: u64,
    /// The kinds of the dead letters.
    letters: Vec<&'static str>,
    /// The first offset of each partition; an abort rewinds to it.
    first: BTreeMap<i32, Offset>,
    /// The next offset to read of each partition.
    next: BTreeMap<i32, i64>,
}

/// Why a transaction takes no more events.
enum End<'s> {
    /// It is full or old enough, no event is waiting, or on shutdown.
    Enough,
    /// A rebalance, to be answered after the transaction.
    Rebalance(Next<'s>),
    /// A revocation of partitions that other members already own: nothing can be committed.
    Lost(Next<'s>),
    /// Nothing may be committed.
    Stop(anyhow::Error),
    /// A record could not be sent.
    Failed(Failed),
}

impl From<Failed> for End<'_> {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

impl<'a> Adapter<'a> {
    /// # Errors
    /// If a setting is wrong.
    pub(super) fn new(
        options: &'a Options,
        setup: &'a Setup,
        framing: Framing,
        limits: SizeLimits,
        instance: String,
        topic_id: Option<TopicId>,
        counts: &'a mut Counts,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            options,
            health: &setup.health,
            shutdown: &setup.shutdown,
            topic_id,
            partitions: BTreeMap::new(),
            reader: Reader::connect(&setup.kafka)?,
            topic: &setup.topic,
            framing,
            limits,
            instance,
            breaker: Breaker::new(options.breaker),
            abort_backoff: None,
            counts,
            value: Vec::new(),
        })
    }

    /// Reports until shutdown.
    pub(super) async fn report(
        &mut self,
        subscription: &Subscription,
        producer: &mut TransactionalProducer,
    ) -> anyhow::Result<()> {
        let mut next = None;
        while !self.shutdown.is_cancelled() {
            next = match next {
                None => tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => None,
                    next = subscription.next() => Some(next?),
                },
                Some(Next::Assigned(partitions)) => {
                    self.begin_partitions(subscription, partitions).await?;
                    None
                }
                Some(Next::Revoked { partitions, .. }) => {
                    self.release(subscription, &partitions)?;
                    None
                }
                Some(Next::Record(record)) if self.remember(&record) => None,
                Some(Next::Record(record)) => {
                    self.transact(subscription, producer, &record).await?
                }
            };
        }
        Ok(())
    }

    /// Whether an event was reported before: then its run only learns from it.
    fn remember(&mut self, record: &BorrowedMessage<'_>) -> bool {
        let Some(partition) = self.partitions.get_mut(&record.partition()) else {
            return false;
        };
        let reported = record.offset() < partition.report_from;
        if reported {
            // What was refused then is refused now.
            let _ = partition.take(record);
        }
        reported
    }

    /// Runs one transaction with this event and those that follow, up to its commit or abort. Returns a rebalance that
    /// ended it.
    async fn transact<'s>(
        &mut self,
        subscription: &'s Subscription,
        producer: &mut TransactionalProducer,
        first: &BorrowedMessage<'_>,
    ) -> anyhow::Result<Option<Next<'s>>> {
        let transaction = producer.begin().map_err(producer_error)?;
        let mut work = Work::default();
        let end = self
            .fill(subscription, &transaction, first, &mut work)
            .await;
        let (committed, next) = match end {
            End::Stop(error) => {
                // If this fails, the broker or the next start aborts the transaction.
                if let Err(failed) = transaction.abort().await {
                    tracing::warn!("{:#}", producer_error(failed));
                }
                return Err(error);
            }
            End::Failed(failed) => (Err(failed), None),
            End::Lost(revocation) => {
                transaction.abort().await.map_err(producer_error)?;
                self.read_again(subscription, producer, false, work).await?;
                return Ok(Some(revocation));
            }
            End::Enough => (self.commit(subscription, &transaction, &work).await?, None),
            End::Rebalance(next) => (
                self.commit(subscription, &transaction, &work).await?,
                Some(next),
            ),
        };
        match committed {
            Ok(()) => self.committed(work),
            Err(Failed::Abort(error)) => {
                warn_of_change!(
                    "transaction of {} aborted, reading them again until one commits: {error}",
                    counted(work.events, "event")
                );
                self.health.waiting_for(format!("Kafka: {error}"));
                transaction.abort().await.map_err(producer_error)?;
                self.read_again(subscription, producer, is_too_large(&error), work)
                    .await?;
            }
            Err(failed @ (Failed::Exit(_) | Failed::StartOver(_))) => {
                let error = producer_error(failed);
                if error.is::<NeedsAttention>() {
                    // So that readers need not wait for the transaction's timeout.
                    let _ = transaction.abort().await;
                }
                return Err(error);
            }
        }
        Ok(next)
    }

    async fn fill<'s>(
        &mut self,
        subscription: &'s Subscription,
        transaction: &Transaction<'_>,
        first: &BorrowedMessage<'_>,
        work: &mut Work,
    ) -> End<'s> {
        if let Err(end) = self.send(transaction, first, work).await {
            return end;
        }
        let begun = Instant::now();
        // A full transaction does not cut a run of rejects, which the breaker's limit bounds.
        while work.events < EVENTS_MAX || self.breaker.undecided() {
            let (patience, age_max) = match self.breaker.undecided() {
                true => (Breaker::PATIENCE, Breaker::PATIENCE.max(AGE_MAX)),
                false => (PATIENCE, AGE_MAX),
            };
            if begun.elapsed() >= age_max {
                break;
            }
            let next = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                next = subscription.next() => match next {
                    Ok(next) => next,
                    Err(error) => return End::Stop(error),
                },
                () = sleep_until(Instant::now() + patience) => break,
            };
            match next {
                Next::Record(record) if self.remember(&record) => {}
                Next::Record(record) => {
                    if let Err(end) = self.send(transaction, &record, work).await {
                        return end;
                    }
                }
                Next::Revoked { lost: true, .. } => return End::Lost(next),
                rebalance => return End::Rebalance(rebalance),
            }
        }
        End::Enough
    }

    /// Takes one event into the transaction.
    async fn send(
        &mut self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        work: &mut Work,
    ) -> Result<(), End<'static>> {
        let (number, offset) = (record.partition(), record.offset());
        work.events += 1;
        work.first.entry(number).or_insert(Offset::Offset(offset));
        work.next.insert(number, offset + 1);
        let partition = self.partitions.get_mut(&number);
        let partition = partition.ok_or_else(|| {
            let why = format!("a record of partition {number}, which is not assigned");
            End::Stop(StartOver(why).into())
        })?;
        partition.runs.begin();
        match partition.take(record) {
            Ok(Taken::NoRun) => self.breaker.accept(),
            Ok(Taken::Report(info)) => {
                self.breaker.accept();
                work.reports += 1;
                self.value.clear();
                schemas::write_info(&info, self.framing, &mut self.value);
                let report = BaseRecord::to(self.topic)
                    .key(info.exec_id.as_bytes())
                    .payload(self.value.as_slice());
                transaction.send(report).await?;
            }
            Err(Refused { kind, reason }) => {
                let reject = Reject {
                    stage: "TRANSFORMATION",
                    refused_by: "producer::openlineage",
                    kind,
                    message: reason,
                };
                if let Err(tripped) = self.breaker.reject() {
                    let why = self.tripped(tripped, record, &reject);
                    return Err(End::Stop(NeedsAttention(why).into()));
                }
                self.send_letter(transaction, record, &reject).await?;
                tracing::warn!(
                    topic = record.topic(),
                    partition = number,
                    offset,
                    reason = kind,
                    "dead letter: {}",
                    reject.message
                );
                work.letters.push(kind);
            }
        }
        Ok(())
    }

    /// The error of an open circuit breaker.
    fn tripped(&self, tripped: Tripped, record: &BorrowedMessage<'_>, reject: &Reject) -> String {
        format!(
            "{tripped} ({}), the last one {} partition {} offset {}: {}. {}; nothing of the transaction that holds the last \
             one was committed. Is it the wrong --from-topic? Correct it and start again, or let them become dead letters \
             with a higher limit",
            tripped.option(),
            record.topic(),
            record.partition(),
            record.offset(),
            reject.message,
            tripped.letters(&self.options.dead_letters_topic),
        )
    }

    /// Sends the dead letter of an event: its key, value and reason.
    async fn send_letter(
        &mut self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        reject: &Reject,
    ) -> Result<(), Failed> {
        let topic_id = self.topic_id.map(|id| id.to_string());
        let letter = DeadLetter {
            topic: record.topic(),
            topic_id: topic_id.as_deref(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp().to_millis(),
            first: First::of(|name| header(record, name)),
            service: "producer",
            instance: &self.instance,
            reject,
        };
        let topic = &self.options.dead_letters_topic;
        let fit = |room| {
            let letter = letter.letter(record.key(), record.payload(), room);
            letter.measured()
        };
        let letter = self.limits.fit(topic, fit).await?;
        let mut sent = BaseRecord::to(topic).headers(service::kafka::headers(&letter.headers));
        (sent.key, sent.payload) = (letter.key, letter.value);
        transaction.send(sent).await
    }

    async fn commit(
        &self,
        subscription: &Subscription,
        transaction: &Transaction<'_>,
        work: &Work,
    ) -> anyhow::Result<Result<(), Failed>> {
        let topic = &self.options.from_topic;
        if let Some(id) = self.topic_id
            && let Some(other) = subscription.other_topic_id(id)
        {
            let why = format!(
                "topic {topic} had the id {id} and now has the id {other}: it was deleted and created again. Nothing of the \
                 new one was reported. Start again to report it"
            );
            return Ok(Err(Failed::Exit(NeedsAttention(why).into())));
        }
        let group = subscription.consumer().group_metadata();
        let group = group.context("no group metadata")?;
        let offsets = offset_list(topic, self.topic_id, &work.next, &self.partitions)?;
        let begun = Instant::now();
        let committed = transaction.commit(&offsets, &group).await;
        metrics::histogram!(names::OPERATION_DURATION, "messaging_operation_name" => "commit")
            .record(begun.elapsed());
        Ok(committed)
    }

    /// Updates the state after a commit.
    fn committed(&mut self, work: Work) {
        if self.abort_backoff.take().is_some() {
            let after = repeats::end(module_path!());
            tracing::info!("transactions commit again, {after}");
        }
        for partition in self.partitions.values_mut() {
            partition.runs.commit();
        }
        self.health.progressed();
        self.breaker.settle();
        self.counts.reports += work.reports;
        self.counts.letters += work.letters.len() as u64;
        let Options {
            from_topic,
            dead_letters_topic,
            ..
        } = self.options;
        metrics::counter!(names::CONSUMED, &messaging("poll", from_topic))
            .increment(work.events.into());
        metrics::counter!(names::SENT, &messaging("send", self.topic)).increment(work.reports);
        metrics::counter!(names::SENT, &messaging("send", dead_letters_topic))
            .increment(work.letters.len() as u64);
        for kind in work.letters {
            metrics::counter!(DEAD_LETTERS, "reason" => kind).increment(1);
        }
        self.count_runs();
    }

    /// After an abort and a pause, makes the runs what they were, and rewinds to the first event of the transaction.
    async fn read_again(
        &mut self,
        subscription: &Subscription,
        producer: &mut TransactionalProducer,
        too_large: bool,
        work: Work,
    ) -> anyhow::Result<()> {
        if too_large {
            match self.limits.read_again().await.map_err(Failed::unread_limit) {
                Ok(_) => {
                    let smallest = self.limits.smallest();
                    producer.fit_batches(smallest, self.shutdown).await?;
                }
                // The transaction will fail again, and the limits are read again then.
                Err(Failed::Abort(_)) => {}
                Err(Failed::StartOver(error) | Failed::Exit(error)) => return Err(error),
            }
        }
        let pause = self.abort_backoff.get_or_insert_default().pause();
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = sleep(pause) => {}
        }
        self.breaker.take_back();
        for partition in self.partitions.values_mut() {
            partition.runs.roll_back();
        }
        subscription.seek(&work.first)
    }
}

/// The error that ends these clients: this producer cannot begin another transaction.
fn producer_error(failed: Failed) -> anyhow::Error {
    match failed {
        Failed::Exit(error) => error,
        Failed::StartOver(error) => StartOver(format!("{error:#}")).into(),
        Failed::Abort(error) => StartOver(anyhow!(error).to_string()).into(),
    }
}
