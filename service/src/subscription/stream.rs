//! The stream of a group member: records, assignments, revocations.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::Context;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::coop::consume_budget;

use super::member::{Member, Rebalance, lock};
use super::settings::{DEFAULTS, FIXED, statistics_interval};
use crate::error::{Fenced, NeedsAttention, StartOver};
use crate::health::Health;
use crate::held_back::HeldBack;
use crate::kafka::{KafkaOptions, wrong_settings};
use crate::offset_commit::OffsetCommit;
use crate::threads::blocking;
use crate::throttling::Throttling;
use crate::topic_id::{TopicId, TopicIdAnswer, topic_id};
use crate::warn_of_change;

/// Debug context whose lines (level 7) report a topic's new id before librdkafka fetches under it. The
/// consumer's context parses them, because the client has no call for the id.
const LOGS: &str = "metadata";

/// Interval of requests for the topic's id, for brokers with which librdkafka does not report a change.
const ID_EVERY: Duration = Duration::from_secs(5);

/// Timeout of a request to the brokers.
pub(super) const ASK: Duration = Duration::from_secs(10);
/// An item of the stream.
#[derive(Debug)]
pub enum Next<'a> {
    /// A record.
    Record(BorrowedMessage<'a>),
    /// Assigned partitions: answer with [`Subscription::assign`].
    Assigned(TopicPartitionList),
    /// Revoked partitions: answer with [`Subscription::release`].
    Revoked {
        /// The partitions.
        partitions: TopicPartitionList,
        /// Whether they may already belong to another member (e.g. after a pause past the session timeout),
        /// so that nothing can be committed for them any more.
        lost: bool,
    },
}

/// The position is outside the log: a cause of errors of [`Subscription::next`]. The partition is not read
/// until [`Subscription::seek`] sets a new position.
#[derive(Debug, thiserror::Error)]
#[error("reading {0}")]
pub struct OutsideTheLog(String);

/// A member of a consumer group.
pub struct Subscription {
    pub(super) consumer: StreamConsumer<Member>,
    pub(super) options: KafkaOptions,
    topic: String,
    pub(super) group: String,
    /// The rebalance that [`Subscription::next`] returned last and that is not answered yet.
    unanswered: Mutex<Option<Rebalance>>,
}

impl Subscription {
    /// Joins `group` for `topic`, which has this number of partitions; with an instance id as a static member.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub fn join(
        options: &KafkaOptions,
        topic: &str,
        partitions: usize,
        group: &str,
        instance_id: Option<&str>,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        let interval = statistics_interval(partitions).as_millis().to_string();
        let defaults = [DEFAULTS, &[("statistics.interval.ms", interval.as_str())]].concat();
        let mut config: ClientConfig = options.client_config(&defaults, FIXED)?;
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

    /// Returns the next item. Cancel safe. Must be awaited at least every `max.poll.interval.ms` (5 minutes),
    /// or the member is removed from the group.
    ///
    /// Logs errors from which librdkafka recovers by itself, and continues.
    ///
    /// # Errors
    /// Errors that it does not recover from.
    pub async fn next(&self) -> anyhow::Result<Next<'_>> {
        // While records are waiting, only this yields to the runtime, so that it polls other sockets, such as
        // a database's. It precedes the poll, so that a cancellation here loses no record.
        consume_budget().await;
        self.next_event().await
    }

    /// As [`next`](Self::next), but without yielding while items are waiting.
    async fn next_event(&self) -> anyhow::Result<Next<'_>> {
        let mut recv = pin!(self.consumer.recv());
        loop {
            let polled = poll_fn(|cx| {
                if let Some(rebalance) = self.rebalance() {
                    return Poll::Ready(Ok(rebalance));
                }
                match recv.as_mut().poll(cx) {
                    Poll::Ready(record) => Poll::Ready(record.map(Next::Record)),
                    // The poll itself may have recorded a rebalance.
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

    /// Returns the next item if one is waiting, without registering a waker.
    ///
    /// # Errors
    /// Errors that librdkafka does not recover from.
    pub fn try_next(&self) -> anyhow::Result<Option<Next<'_>>> {
        match pin!(self.next_event()).poll(&mut TaskContext::from_waker(Waker::noop())) {
            Poll::Ready(next) => next.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// Whether this process knows that another one has joined the group with its instance id.
    pub fn is_fenced(&self) -> bool {
        let fatal = self.consumer.client().fatal_error();
        matches!(fatal, Some((RDKafkaErrorCode::FencedInstanceId, _)))
    }

    /// Takes the recorded rebalance, if there is one.
    fn rebalance(&self) -> Option<Next<'_>> {
        let rebalance = self.consumer.context().take()?;
        *lock(&self.unanswered) = Some(rebalance.clone());
        Some(rebalance.into())
    }

    /// Logs a temporary error; returns a permanent one.
    fn explain(&self, error: KafkaError) -> anyhow::Result<()> {
        use RDKafkaErrorCode::{
            AutoOffsetReset, FencedInstanceId, GroupAuthorizationFailed, TopicAuthorizationFailed,
            UnknownTopicOrPartition,
        };
        let topic = &self.topic;
        match error.rdkafka_error_code() {
            Some(AutoOffsetReset) => Err(anyhow::Error::from(NeedsAttention(format!(
                "the position is not in the log of {topic} any more (or not yet): {}; \
                 retention may have passed it, or the topic was created again. Nothing was skipped. \
                 Compare with: kafka-get-offsets.sh --topic {topic}",
                self.outside_the_log().unwrap_or_else(|| error.to_string())
            )))
            .context(OutsideTheLog(topic.clone()))),
            // Also happens to a static member that was suspended past its session and resumes at the same
            // time as the broker: a restart cures that.
            Some(FencedInstanceId) => Err(anyhow::Error::from(error).context(Fenced(format!(
                "removed from the group of {topic}: either another member runs with this --instance-id \
                 (give each its own), or this process or the broker was suspended past session.timeout.ms"
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
                warn_of_change!("reading {topic}, continuing: {error}");
                Ok(())
            }
        }
    }

    /// The partitions whose position is outside the log, with the offsets; the client's error does not name
    /// the partition.
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

    /// Starts reading the partitions of [`Next::Assigned`], each at the offset in the list.
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

    /// Gives up the partitions of [`Next::Revoked`].
    ///
    /// # Errors
    /// If the member has lost its group meanwhile.
    pub fn release(&self, partitions: &TopicPartitionList) -> anyhow::Result<()> {
        lock(&self.unanswered).take();
        if self.member().paused.load(Ordering::Acquire) {
            // A partition that is given up while paused would still be paused when it is assigned again.
            self.consumer.resume(partitions).context("resuming")?;
        }
        let elements = partitions.elements();
        self.member().end(elements.iter().map(|p| p.partition()));
        self.consumer
            .incremental_unassign(partitions)
            .context("letting go of the revoked partitions")
    }

    /// Commits these offsets for the group; does not wait for the answer.
    ///
    /// # Errors
    /// If the client has failed. Refusals of the coordinator are in the [answer](OffsetCommit::answer).
    pub fn commit(&self, offsets: &TopicPartitionList) -> KafkaResult<OffsetCommit<'_>> {
        OffsetCommit::send(self.consumer.client(), offsets)
    }

    /// Sets the positions to these offsets (by partition), for partitions that are still assigned.
    ///
    /// # Errors
    /// If a seek fails: continuing at the old position would lose records.
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
                // The client dropped the partition when its position was outside the log.
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

    /// The next offset to read of each assigned partition. It moves past commit markers and aborted records
    /// when they are read, and stops at the last stable offset; a partition is read to its end if both are
    /// equal. Partitions with an unknown position are omitted. Sends no request.
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

    /// Sets the first unfinished record of each partition: until the next call, the lag counts from there.
    /// Without one, it counts from the [position](Self::positions).
    pub fn set_unfinished(&self, unfinished: BTreeMap<i32, i64>) {
        lock(&self.member().assigned).unfinished = unfinished;
    }

    /// Marks everything before these offsets (by partition) as finished: [unfinished](Self::set_unfinished)
    /// records begin there at the earliest.
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

    /// Pauses all assigned partitions without giving them up: the member stays in its group while
    /// [`next`](Self::next) is awaited, which then returns only rebalances.
    ///
    /// # Errors
    /// If the client is done for.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.member().paused.store(true, Ordering::Release);
        self.consumer.pause(&self.assignment()?).context("pausing")
    }

    /// Resumes reading after [`pause`](Self::pause).
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

    /// The topic's current id. May be called while [`next`](Self::next) is awaited. For other topics, use
    /// [`topic_ids`](crate::topic_id::topic_ids) with [`consumer`](Self::consumer)'s client.
    ///
    /// # Errors
    /// If there is no answer in time, or the broker has a temporary error: try again.
    pub async fn topic_id(&self, within: Duration) -> KafkaResult<TopicIdAnswer> {
        let answer = topic_id(self.consumer.client(), &self.topic, within).await?;
        if let TopicIdAnswer::Id(id) = answer {
            self.member().note(id);
        }
        Ok(answer)
    }

    /// Another id that the topic has had since the member joined: it was deleted and created again. Sends no
    /// request. With brokers that support fetching by topic id (Kafka 3.1), the id is known before a record
    /// of the new topic is delivered; otherwise within seconds, while
    /// [`watch_topic_id`](Self::watch_topic_id) is awaited.
    pub fn other_topic_id(&self, expected: TopicId) -> Option<TopicId> {
        let ids = lock(&self.member().ids);
        ids.iter().find(|id| **id != expected).copied()
    }

    /// Requests the topic's id every few seconds, for [`other_topic_id`](Self::other_topic_id). Cancel safe.
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

    /// The underlying consumer, for offsets and the group's metadata. Do not poll it or change its
    /// assignment.
    pub fn consumer(&self) -> &StreamConsumer<impl ConsumerContext + use<>> {
        &self.consumer
    }

    /// Leaves the group and waits for the broker's answer, at most 15 s. (In Kafka, a static member stays
    /// until its session times out.) The next owner reads uncommitted records again.
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
        // Dropping blocks until the client has left the group. On a separate thread, because the runtime
        // would wait for a blocking task without limit.
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

impl From<Rebalance> for Next<'_> {
    fn from(rebalance: Rebalance) -> Self {
        match rebalance {
            Rebalance::Assigned(partitions) => Next::Assigned(partitions),
            Rebalance::Revoked { partitions, lost } => Next::Revoked { partitions, lost },
        }
    }
}
