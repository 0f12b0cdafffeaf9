//! A member of a consumer group as one ordered stream of records, assignments and revocations.
//!
//! librdkafka tells of a rebalance while it is polled and waits until the assignment is changed;
//! nothing says that this has to happen inside the callback. So the callback only notes what is
//! asked, and [`Subscription::next`] hands it on as the next item: the owner can look up offsets,
//! finish a transaction, and only then [`assign`](Subscription::assign) or
//! [`release`](Subscription::release).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::Context;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::task::coop::consume_budget;

use crate::client_log;
use crate::exit::{NeedsAttention, StartOver};
use crate::health::{Health, Reading};
use crate::held_back::{Ends, HeldBack};
use crate::kafka::{KafkaOptions, wrong_settings};
use crate::offset_commit::OffsetCommit;
use crate::repeats;
use crate::rival::Fenced;
use crate::telemetry::names;
use crate::threads::blocking;
use crate::throttling::Throttling;
use crate::topic_id::{TopicId, TopicIdAnswer, topic_id};
use crate::transaction::transaction_timeout;
use crate::warn_of_change;

/// Settings that exactly-once rests on.
const FIXED: &[(&str, &str)] = &[
    // Aborted records are never seen.
    ("isolation.level", "read_committed"),
    // Where to start is decided on assignment; offsets are committed with the work.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // A start that the log does not hold is an error, never a silent jump.
    ("auto.offset.reset", "error"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("allow.auto.create.topics", "false"),
    ("check.crcs", "true"),
    client_log::FIXED,
    // Longer than a router trusts an answer about the topic's id: see its `topic_ids`.
    ("fetch.error.backoff.ms", "500"),
];

/// Tuning, as measured.
const DEFAULTS: &[(&str, &str)] = &[
    // The default parks a partition for a second when its queue is full: a factor of four.
    ("fetch.queue.backoff.ms", "2"),
    // Bounds memory without costing throughput.
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "16384"),
    // The largest answer to a fetch, whatever the number of partitions. It waits decompressed, several times as large:
    // half of the memory of a program that has a backlog.
    ("fetch.max.bytes", "2097152"),
    // So that an answer, and what is stored at once, is of several partitions: PostgreSQL works on two halves of it.
    // Of a partition whose next batch is larger a broker sends nothing, unless it is the first: batches of a busy
    // router take 200 to 350 KB.
    ("fetch.message.max.bytes", "524288"),
    ("statistics.interval.ms", "1000"),
    // How long the partitions of a crashed member, or of a static one that stopped, stand still:
    // 10 s rather than Kafka's 45, since nothing in here pauses for garbage.
    ("session.timeout.ms", "10000"),
    // How long partitions that were added to the topic may go unnoticed: Kafka's default is 5 min.
    ("topic.metadata.refresh.interval.ms", "30000"),
];

/// What librdkafka logs before it fetches from a topic under a new id, at level 7: the consumer's context
/// reads it there, since the client keeps the id to itself.
const LOGS: &str = "metadata";

/// How often the topic's id is asked for where librdkafka does not say that it has changed.
const ID_EVERY: Duration = Duration::from_secs(5);

/// How long a question to the brokers may take.
const ASK: Duration = Duration::from_secs(10);
/// How long the broker may withhold committed offsets before it is asked why.
const ASK_STABLE: Duration = Duration::from_secs(3);

/// After how long without a sign of life a member is put out of its group.
pub(crate) fn session_timeout(options: &KafkaOptions) -> anyhow::Result<Duration> {
    let config = options.client_config(DEFAULTS, FIXED)?;
    let milliseconds = config.get("session.timeout.ms").unwrap_or_default();
    let milliseconds = milliseconds.parse().context("session.timeout.ms")?;
    Ok(Duration::from_millis(milliseconds))
}

/// What happens to a member of a consumer group.
#[derive(Debug)]
pub enum Next<'a> {
    /// A record.
    Record(BorrowedMessage<'a>),
    /// Partitions to begin with: answer with [`Subscription::assign`].
    Assigned(TopicPartitionList),
    /// Partitions to let go: answer with [`Subscription::release`].
    Revoked {
        /// Which.
        partitions: TopicPartitionList,
        /// Whether they are already somebody else's (e.g. after a pause past the session's
        /// timeout), so that nothing can be committed for them any more.
        lost: bool,
    },
}

/// The log does not hold what is to be read next: found in the chain of an error of [`Subscription::next`].
/// That partition is not read any more until [`Subscription::seek`] begins it anew.
#[derive(Debug, thiserror::Error)]
#[error("reading {0}")]
pub struct OutsideTheLog(String);

/// Why the group's committed offsets are not known.
#[derive(Debug, thiserror::Error)]
pub enum NoCommitted {
    /// Kafka does not answer.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// A transaction that commits offsets of the group is open, and its outcome is waited for.
    #[error(
        "an open transaction of another member of group {group} may commit offsets, and Kafka withholds them until it ends: \
         when that member commits or aborts, or up to 10 s after its transaction.timeout.ms ({} s, unless that member has \
         another)",
        .longest.as_secs()
    )]
    OpenTransaction {
        /// Whose offsets.
        group: String,
        /// `transaction.timeout.ms` as this program has it.
        longest: Duration,
    },
}

/// A member of a consumer group.
pub struct Subscription {
    consumer: StreamConsumer<Member>,
    options: KafkaOptions,
    topic: String,
    group: String,
    /// What [`Subscription::next`] handed out last and nobody has answered yet.
    unanswered: Mutex<Option<Rebalance>>,
}

impl Subscription {
    /// Joins `group` for `topic`; with an instance id as a static member.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub fn join(
        options: &KafkaOptions,
        topic: &str,
        group: &str,
        instance_id: Option<&str>,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        let mut config: ClientConfig = options.client_config(DEFAULTS, FIXED)?;
        config.set("group.id", group);
        if let Some(instance_id) = instance_id {
            config.set("group.instance.id", instance_id);
        }
        let logs = config.get("debug").map(|asked| format!("{asked},{LOGS}"));
        config.set("debug", logs.as_deref().unwrap_or(LOGS));
        config.set_log_level(RDKafkaLogLevel::Debug);
        let member = Member {
            topic: topic.to_owned(),
            ids: Mutex::default(),
            assigned: Mutex::default(),
            rebalances: Mutex::default(),
            leaving: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            health,
            throttling: Throttling::default(),
            held_back: HeldBack::default(),
        };
        let consumer: StreamConsumer<Member> =
            config.create_with_context(member).map_err(wrong_settings)?;
        consumer
            .subscribe(&[topic])
            .with_context(|| format!("subscribing to {topic}"))?;
        Ok(Self {
            consumer,
            options: options.clone(),
            topic: topic.to_owned(),
            group: group.to_owned(),
            unanswered: Mutex::default(),
        })
    }

    /// The next thing that happens. Cancel safe. Must be awaited at least every
    /// `max.poll.interval.ms` (5 minutes), or the member is put out of the group.
    ///
    /// Errors that librdkafka recovers from by itself are logged and waited out.
    ///
    /// # Errors
    /// Errors that it does not recover from.
    pub async fn next(&self) -> anyhow::Result<Next<'_>> {
        // While records are waiting nothing else makes the runtime look at its sockets, such as a database's. It comes
        // before a record is taken, lest that be lost where this is dropped.
        consume_budget().await;
        self.met().await
    }

    /// As [`next`](Self::next), at once while there is something, however often it is asked.
    async fn met(&self) -> anyhow::Result<Next<'_>> {
        let mut recv = pin!(self.consumer.recv());
        loop {
            let polled = poll_fn(|cx| {
                if let Some(rebalance) = self.rebalance() {
                    return Poll::Ready(Ok(rebalance));
                }
                match recv.as_mut().poll(cx) {
                    Poll::Ready(record) => Poll::Ready(record.map(Next::Record)),
                    // The poll itself may have noted a rebalance.
                    Poll::Pending => match self.rebalance() {
                        Some(rebalance) => Poll::Ready(Ok(rebalance)),
                        None => Poll::Pending,
                    },
                }
            })
            .await;
            match polled {
                Ok(next) => return Ok(next),
                Err(error) => {
                    self.explain(error)?;
                    recv.set(self.consumer.recv());
                }
            }
        }
    }

    /// What [`next`](Self::next) would give at once, without the price of waiting for it.
    ///
    /// # Errors
    /// Errors that librdkafka does not recover from.
    pub fn waiting(&self) -> anyhow::Result<Option<Next<'_>>> {
        match pin!(self.met()).poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(next) => next.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Whether another process has joined the group with this one's instance id, as far as this one has been told.
    pub fn is_fenced(&self) -> bool {
        let fatal = self.consumer.client().fatal_error();
        matches!(fatal, Some((RDKafkaErrorCode::FencedInstanceId, _)))
    }

    /// A noted rebalance, if there is one, to be handed out.
    fn rebalance(&self) -> Option<Next<'_>> {
        let rebalance = self.consumer.context().take()?;
        *lock(&self.unanswered) = Some(rebalance.clone());
        Some(rebalance.into())
    }

    /// Logs an error that passes; returns one that does not.
    fn explain(&self, error: KafkaError) -> anyhow::Result<()> {
        use RDKafkaErrorCode::{
            AutoOffsetReset, FencedInstanceId, GroupAuthorizationFailed, TopicAuthorizationFailed,
            UnknownTopicOrPartition,
        };
        let topic = &self.topic;
        match error.rdkafka_error_code() {
            Some(AutoOffsetReset) => Err(anyhow::Error::from(NeedsAttention(format!(
                "the position is not in the log of {topic} any more (or not yet): {}; \
                 retention may have passed it, or the topic was made anew. Nothing was skipped. \
                 Compare with: kafka-get-offsets.sh --topic {topic}",
                self.outside_the_log().unwrap_or_else(|| error.to_string())
            )))
            .context(OutsideTheLog(topic.clone()))),
            // Also what a static member meets that stood still past its session and comes back while
            // the broker does: a restart cures that.
            Some(FencedInstanceId) => Err(anyhow::Error::from(error).context(Fenced(format!(
                "put out of the group of {topic}: either another member runs with this --instance-id \
                 (give each its own), or this process or the broker stood still past session.timeout.ms"
            )))),
            Some(TopicAuthorizationFailed) => {
                let allow = self.options.allow(&format!("--topic {topic}"), "Read");
                Err(NeedsAttention(format!("reading {topic}: {error}; {allow}")).into())
            }
            Some(GroupAuthorizationFailed) => {
                let group = &self.group;
                let allow = self.options.allow(&format!("--group {group}"), "Read");
                Err(NeedsAttention(format!("joining group {group}: {error}; {allow}")).into())
            }
            Some(UnknownTopicOrPartition) => {
                Err(NeedsAttention(format!("topic {topic} is gone: {error}")).into())
            }
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                Err(error).with_context(|| format!("reading {topic}"))
            }
            _ => {
                warn_of_change!("reading {topic}, going on: {error}");
                Ok(())
            }
        }
    }

    /// The partitions whose position the log does not hold, with the numbers; the client does not
    /// say which one it met.
    fn outside_the_log(&self) -> Option<String> {
        let positions = self.positions().ok()?;
        let mut found = Vec::new();
        for (partition, position) in positions {
            let asked = || self.consumer.fetch_watermarks(&self.topic, partition, ASK);
            let Ok((start, end)) = blocking(asked) else {
                continue;
            };
            if !(start..=end).contains(&position) {
                found.push(format!(
                    "partition {partition} is to be read from offset {position}, and its log goes from {start} to {end}"
                ));
            }
        }
        (!found.is_empty()).then(|| found.join("; "))
    }

    /// Begins with the partitions of [`Next::Assigned`], each at the offset set in the list.
    ///
    /// # Errors
    /// If the member has lost its group meanwhile.
    pub fn assign(&self, partitions: &TopicPartitionList) -> anyhow::Result<()> {
        lock(&self.unanswered).take();
        let elements = partitions.elements();
        let starts = elements.iter().map(|p| (p.partition(), p.offset()));
        self.member().begin(starts);
        self.consumer
            .incremental_assign(partitions)
            .context("taking the assigned partitions")
    }

    /// Lets go of the partitions of [`Next::Revoked`].
    ///
    /// # Errors
    /// If the member has lost its group meanwhile.
    pub fn release(&self, partitions: &TopicPartitionList) -> anyhow::Result<()> {
        lock(&self.unanswered).take();
        if self.member().paused.load(Ordering::Acquire) {
            // One that is given up paused would still be paused when it comes back.
            self.consumer.resume(partitions).context("resuming")?;
        }
        let elements = partitions.elements();
        self.member().end(elements.iter().map(|p| p.partition()));
        self.consumer
            .incremental_unassign(partitions)
            .context("letting go of the revoked partitions")
    }

    /// The group's committed offsets of these partitions, with their metadata; asked once.
    ///
    /// # Errors
    /// If Kafka is away, or an earlier owner's transaction is not settled yet: ask again.
    pub fn committed(
        &self,
        partitions: &TopicPartitionList,
    ) -> Result<TopicPartitionList, NoCommitted> {
        type Ask<'a> = &'a dyn Fn(Duration) -> KafkaResult<TopicPartitionList>;
        let ask = |asked: Ask<'_>, within| -> KafkaResult<TopicPartitionList> {
            let offsets = blocking(|| asked(within))?;
            for partition in offsets.elements() {
                partition.error()?;
            }
            Ok(offsets)
        };
        let stable = |within| self.consumer.committed_offsets(partitions.clone(), within);
        let error: KafkaError = match ask(&stable, ASK_STABLE) {
            Ok(offsets) => return Ok(offsets),
            Err(error) => error,
        };
        // While a transaction that commits offsets is open, the broker withholds them, and librdkafka asks again until
        // the time is up: it does not say why. A reader of uncommitted ones is answered at once.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::OperationTimedOut) {
            return Err(error.into());
        }
        let uncommitted: BaseConsumer<Quiet> = self
            .options
            .client_config(&[("enable.auto.commit", "false")], &[])
            .and_then(|mut config| {
                config.set("group.id", &self.group);
                config.set("isolation.level", "read_uncommitted");
                Ok(config.create_with_context(Quiet)?)
            })
            .map_err(|_| error.clone())?;
        let unstable = |within| uncommitted.committed_offsets(partitions.clone(), within);
        ask(&unstable, ASK)?;
        // That was no outage, unless the brokers have come back meanwhile.
        match ask(&stable, ASK_STABLE) {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OperationTimedOut) =>
            {
                Err(NoCommitted::OpenTransaction {
                    group: self.group.clone(),
                    longest: transaction_timeout(&self.options),
                })
            }
            asked => Ok(asked?),
        }
    }

    /// Commits these offsets for the group, without waiting for the answer.
    ///
    /// # Errors
    /// If the client is done for. What the coordinator refuses is in the [answer](OffsetCommit::answer).
    pub fn commit(&self, offsets: &TopicPartitionList) -> KafkaResult<OffsetCommit<'_>> {
        OffsetCommit::send(self.consumer.client(), offsets)
    }

    /// Goes to these offsets (by partition), where the partitions are still assigned.
    ///
    /// # Errors
    /// If that cannot be done: reading on from where it is would lose what lies between.
    pub fn seek(&self, offsets: &BTreeMap<i32, Offset>) -> anyhow::Result<()> {
        let topic = &self.topic;
        let assigned = self.assignment()?;
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (partition, offset) in offsets {
            if assigned.find_partition(topic, *partition).is_some() {
                list.add_partition_offset(topic, *partition, *offset)?;
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        let failed = |error: KafkaError, which: &str| {
            StartOver(format!("going back in {topic}{which}: {error}"))
        };
        let sought = blocking(|| self.consumer.seek_partitions(list, ASK))
            .map_err(|error| failed(error, ""))?;
        let mut stalled = TopicPartitionList::new();
        for partition in sought.elements() {
            let number = partition.partition();
            match partition.error() {
                // The client gave it up with the error that the log does not hold its position.
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::State) => {
                    let offset = offsets.get(&number).copied().unwrap_or(Offset::Beginning);
                    stalled.add_partition_offset(topic, number, offset)?;
                }
                other => other.map_err(|error| failed(error, &format!(" partition {number}")))?,
            }
        }
        if stalled.count() > 0 {
            let begun = self.consumer.incremental_unassign(&stalled);
            begun
                .and_then(|()| self.consumer.incremental_assign(&stalled))
                .map_err(|error| failed(error, ""))?;
        }
        let elements = sought.elements();
        let starts = elements
            .iter()
            .filter_map(|p| Some((p.partition(), *offsets.get(&p.partition())?)));
        self.member().begin(starts);
        Ok(())
    }

    /// The offset that each assigned partition is read from next. It passes commit markers and aborted
    /// records as soon as they are read, and stops at the last stable offset: a partition is read to its
    /// end where this is the end that a committed reader is told. A partition whose position is not known
    /// (yet) is left out. Asks no broker.
    ///
    /// # Errors
    /// If the client is done for.
    pub fn positions(&self) -> anyhow::Result<BTreeMap<i32, i64>> {
        let positions = self.consumer.position().context("asking for positions")?;
        let assigned = lock(&self.member().assigned);
        let known = positions.elements().into_iter().filter_map(|position| {
            let partition = position.partition();
            let start = assigned.starts.get(&partition)?;
            let read = position.offset().to_raw().filter(|read| *read >= 0);
            Some((partition, read.or(*start)?))
        });
        Ok(known.collect())
    }

    /// The first record of each partition that was handed out and is not done with: until the next call
    /// the lag counts from there. Where none is named, it counts from the [position](Self::positions).
    pub fn set_unfinished(&self, unfinished: BTreeMap<i32, i64>) {
        lock(&self.member().assigned).unfinished = unfinished;
    }

    /// Everything before these offsets (by partition) is done with: what is
    /// [unfinished](Self::set_unfinished) begins there at the earliest.
    pub fn set_finished(&self, finished: impl IntoIterator<Item = (i32, i64)>) {
        let unfinished = &mut lock(&self.member().assigned).unfinished;
        if unfinished.is_empty() {
            return;
        }
        for (partition, next) in finished {
            if let Some(first) = unfinished.get_mut(&partition) {
                *first = next.max(*first);
            }
        }
    }

    fn member(&self) -> &Member {
        self.consumer.context()
    }

    /// Stops reading of all assigned partitions, without giving them up: the member stays in its
    /// group as long as [`next`](Self::next) is awaited, which then tells of rebalances only.
    ///
    /// # Errors
    /// If the client is done for.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.member().paused.store(true, Ordering::Release);
        self.consumer.pause(&self.assignment()?).context("pausing")
    }

    /// Reads on where it was [paused](Self::pause).
    ///
    /// # Errors
    /// If the client is done for.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.member().paused.store(false, Ordering::Release);
        self.consumer
            .resume(&self.assignment()?)
            .context("resuming")
    }

    /// The assigned partitions.
    ///
    /// # Errors
    /// If the client is done for.
    pub fn assignment(&self) -> anyhow::Result<TopicPartitionList> {
        self.consumer
            .assignment()
            .context("asking for the assignment")
    }

    /// The topic's id now. May be asked while [`next`](Self::next) is awaited. Of other topics too:
    /// [`topic_ids`](crate::topic_id::topic_ids) over [`consumer`](Self::consumer)'s client.
    ///
    /// # Errors
    /// If there is no answer in time, or an error of the broker that may pass: ask again.
    pub async fn topic_id(&self, within: Duration) -> KafkaResult<TopicIdAnswer> {
        let answer = topic_id(self.consumer.client(), &self.topic, within).await?;
        if let TopicIdAnswer::Id(id) = answer {
            self.member().note(id);
        }
        Ok(answer)
    }

    /// An id other than this one that the topic has been known by since the member joined: it was deleted
    /// and created again. Asks no broker. Where the brokers let topics be fetched by their ids (Kafka 3.1), the
    /// id is known here before a record of the new topic is handed out; else within seconds, as long as
    /// [`watch_topic_id`](Self::watch_topic_id) is awaited.
    pub fn other_topic_id(&self, expected: TopicId) -> Option<TopicId> {
        let ids = lock(&self.member().ids);
        ids.iter().find(|id| **id != expected).copied()
    }

    /// Asks for the topic's id every few seconds, for [`other_topic_id`](Self::other_topic_id). Cancel safe.
    pub async fn watch_topic_id(&self) -> Infallible {
        loop {
            tokio::time::sleep(ID_EVERY).await;
            if let Err(error) = self.topic_id(ASK).await {
                tracing::debug!("asking for the id of {}: {error}", self.topic);
            }
        }
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The underlying consumer: for offsets and the group's metadata. Never poll
    /// it, and leave its assignment alone.
    pub fn consumer(&self) -> &StreamConsumer<impl ConsumerContext + use<>> {
        &self.consumer
    }

    /// Leaves the group (a static member stays until its session times out, as Kafka has it) and
    /// waits until the broker knows, at most 15 s. What was read and not committed is read again by
    /// the next owner.
    pub async fn leave(self) {
        let member = self.consumer.context();
        member.leaving.store(true, Ordering::Release);
        // The client does not close while it waits for an answer to a rebalance.
        let unanswered = lock(&self.unanswered).take();
        for rebalance in unanswered
            .into_iter()
            .chain(std::iter::from_fn(|| member.take()))
        {
            rebalance.answer(&self.consumer);
        }
        // Dropping blocks until the group has been left. A thread of its own, since the runtime
        // would wait for one of its blocking tasks however long that takes.
        let (left, wait) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            drop(self);
            let _ = left.send(());
        });
        if tokio::time::timeout(Duration::from_secs(15), wait)
            .await
            .is_err()
        {
            tracing::warn!("no broker answered while leaving the group; its session will time out");
        }
    }
}

#[derive(Clone)]
enum Rebalance {
    Assigned(TopicPartitionList),
    Revoked {
        partitions: TopicPartitionList,
        lost: bool,
    },
}

impl Rebalance {
    /// Does what is asked, for a member that is leaving anyway.
    fn answer(&self, consumer: &impl Consumer<Member>) {
        let answered = match self {
            Self::Assigned(partitions) => consumer.incremental_assign(partitions),
            Self::Revoked { partitions, .. } => consumer.incremental_unassign(partitions),
        };
        if let Err(error) = answered {
            tracing::debug!("answering a rebalance while leaving: {error}");
        }
    }
}

impl From<Rebalance> for Next<'_> {
    fn from(rebalance: Rebalance) -> Self {
        match rebalance {
            Rebalance::Assigned(partitions) => Next::Assigned(partitions),
            Rebalance::Revoked { partitions, lost } => Next::Revoked { partitions, lost },
        }
    }
}

/// The partitions of a member.
#[derive(Default)]
struct Assigned {
    /// Where each was begun last; `None`: at the beginning of its log.
    starts: BTreeMap<i32, Option<i64>>,
    /// See [`Subscription::set_unfinished`].
    unfinished: BTreeMap<i32, i64>,
}

/// The consumer's context: notes rebalances, tells the health and the lag.
struct Member {
    topic: String,
    /// The first two ids that the topic was known by.
    ids: Mutex<BTreeSet<TopicId>>,
    assigned: Mutex<Assigned>,
    rebalances: Mutex<VecDeque<Rebalance>>,
    leaving: AtomicBool,
    /// Whether the partitions are paused.
    paused: AtomicBool,
    health: Arc<Health>,
    throttling: Throttling,
    held_back: HeldBack,
}

impl Member {
    fn take(&self) -> Option<Rebalance> {
        lock(&self.rebalances).pop_front()
    }

    fn note(&self, id: TopicId) {
        let mut ids = lock(&self.ids);
        if ids.len() < 2 {
            ids.insert(id);
        }
    }

    /// These partitions are read from these offsets.
    fn begin(&self, starts: impl Iterator<Item = (i32, Offset)>) {
        let starts = starts.map(|(partition, start)| match start {
            Offset::Offset(start) => (partition, Some(start)),
            _ => (partition, None),
        });
        lock(&self.assigned).starts.extend(starts);
    }

    /// These partitions are not read any more: nothing of them waits for this member.
    fn end(&self, partitions: impl Iterator<Item = i32>) {
        let mut assigned = lock(&self.assigned);
        for partition in partitions {
            assigned.starts.remove(&partition);
            assigned.unfinished.remove(&partition);
            self.gauge(names::LAG, partition, 0);
            self.gauge(names::HELD_BACK, partition, 0);
        }
    }

    fn gauge(&self, name: &'static str, partition: i32, value: i64) {
        metrics::gauge!(name, "messaging_destination_name" => self.topic.clone(),
            "messaging_destination_partition_id" => partition.to_string())
        .set(value as f64);
    }
}

impl Assigned {
    /// How far a partition is read by these statistics; `None`: it is not this member's.
    fn reading(&self, partition: &Partition) -> Option<Reading> {
        let start = self.starts.get(&partition.partition)?;
        let known = |offset: i64| (offset >= 0).then_some(offset);
        // Before a first record, marker or aborted record was read, the client has no position.
        let position = known(partition.app_offset)
            .or(*start)
            .or(known(partition.lo_offset));
        let position = match (position, self.unfinished.get(&partition.partition)) {
            (Some(position), Some(unfinished)) => Some(position.min(*unfinished)),
            (position, _) => position,
        };
        // The last stable offset is where a committed reader ends: what stands behind it waits for a
        // producer's open transaction, not for this member.
        let lag = known(partition.ls_offset)
            .zip(position)
            .map(|(end, position)| (end - position).max(0));
        Some(Reading {
            position: position.unwrap_or(-1),
            lag,
        })
    }
}

impl ConsumerContext for Member {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        asked: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let rebalance = match asked {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Rebalance::Assigned(partitions.clone())
            }
            _ => Rebalance::Revoked {
                partitions: partitions.clone(),
                lost: consumer.assignment_lost(),
            },
        };
        if self.leaving.load(Ordering::Acquire) {
            // Nobody takes items any more.
            return rebalance.answer(consumer);
        }
        lock(&self.rebalances).push_back(rebalance);
    }
}

impl ClientContext for Member {
    fn stats(&self, statistics: Statistics) {
        self.throttling.observe(&statistics);
        let connected = statistics
            .brokers
            .values()
            .any(|broker| broker.state == "UP");
        let joined = statistics
            .cgrp
            .is_some_and(|group| group.join_state == "steady");
        let (mut partitions, mut ends) = (BTreeMap::new(), BTreeMap::new());
        let topic = statistics.topics.get(&self.topic);
        let assigned = lock(&self.assigned);
        for partition in topic.iter().flat_map(|topic| topic.partitions.values()) {
            let Some(reading) = assigned.reading(partition) else {
                continue;
            };
            partitions.insert(partition.partition, reading);
            if let Some(lag) = reading.lag {
                self.gauge(names::LAG, partition.partition, lag);
                // While nothing is fetched, because the partition is paused or enough of it is queued, both
                // are those of the last answer.
                if lag == 0 && !self.paused.load(Ordering::Acquire) {
                    let (stable, high) = (partition.ls_offset, partition.hi_offset);
                    ends.insert(partition.partition, Ends { stable, high });
                }
                let held_back = (partition.hi_offset - partition.ls_offset).max(0);
                self.gauge(names::HELD_BACK, partition.partition, held_back);
            }
        }
        drop(assigned);
        self.held_back.observe(&self.topic, &ends);
        self.health.observed(connected, joined, partitions);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(id) = client_log::changed_id(message, &self.topic) {
            self.note(id);
        }
        repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

/// The context of a client that only logs, through our own logs.
#[derive(Clone, Copy)]
pub struct Quiet;

impl ConsumerContext for Quiet {}

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

/// Nothing panics while it holds one of these locks, so what is behind a poisoned one is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
