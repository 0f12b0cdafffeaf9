//! One transaction, from its first record to its commit or its abort.

use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::TopicPartitionList;
use schemas::dead_letter::First;
use schemas::{DeadLetter, Reject};
use service::breaker::{Breaker, Tripped};
use service::exit::NeedsAttention;
use service::kafka::header;
use service::limits::is_too_large;
use service::subscription::{Next, Subscription};
use service::transaction::{Failed, Transaction, TransactionalProducer};
use service::words::counted;
use service::{pause, repeats, warn_of_change};
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use super::commit::{commit, producer_error};
use super::positions::offset_list;
use super::router::Router;
use super::work::Work;
use crate::route::Outcome;

/// Maximum age of a transaction under backlog. Larger transactions amortise the commit. Each of eight routers
/// on one core fills a transaction in about this time.
pub const BACKLOG_INTERVAL: Duration = Duration::from_millis(500);
/// Under backlog, number of records between two checks of the clock.
const LOOK_EVERY: u32 = 64;

/// Why a transaction takes no more records.
enum End<'s> {
    /// It is full or old enough, and more records may be waiting. Also on shutdown.
    Full,
    /// No record is waiting.
    Drained,
    /// The partitions are paused: an outage of the schema registry.
    Paused,
    /// A rebalance, to be answered after the transaction.
    Rebalance(Next<'s>),
    /// A revocation of partitions that other members already own: nothing can be committed.
    Lost(Next<'s>),
    /// The circuit breaker opened, and why: nothing may be committed.
    Tripped(String),
    /// A record could not be sent; and what was read and not tried.
    Failed(Failed, Option<Next<'s>>),
}

impl Router<'_> {
    /// Runs one transaction with the prepared events, `first`, and the following records, up to its commit or
    /// abort. A rebalance ends it, also as `first`. Returns an item that was read and must be handled next.
    pub(super) async fn transact<'s>(
        &mut self,
        subscription: &'s Subscription,
        producer: &mut TransactionalProducer,
        mut first: Option<Next<'s>>,
    ) -> anyhow::Result<Option<Next<'s>>> {
        if let Some(Next::Record(record)) = &first
            && !self.can_decode(record).await?
        {
            self.pause_at(subscription, record)?;
            first = None;
        }
        if first.is_none() && self.prepared.is_empty() {
            return Ok(None);
        }
        let begun = Instant::now();
        let has_paused = self.commit_pause.wait().await;
        let transaction = producer.begin().map_err(producer_error)?;
        let mut work = Work::default();
        let end = self
            .fill(subscription, &transaction, begun, first, &mut work)
            .await?;
        let is_drained = matches!(end, End::Drained);

        let (committed, next) = match end {
            End::Tripped(why) => {
                // If this fails, the broker or the next start aborts the transaction.
                if let Err(failed) = transaction.abort().await {
                    tracing::warn!("{:#}", producer_error(failed));
                }
                return Err(NeedsAttention(why).into());
            }
            End::Failed(failed, next) => (Err(failed), next),
            End::Lost(revocation) => {
                transaction.abort().await.map_err(producer_error)?;
                return self
                    .read_again(subscription, producer, false, work, Some(revocation))
                    .await;
            }
            End::Full if !self.shutdown.is_cancelled() => {
                self.commit_and_route_ahead(subscription, &transaction, &mut work)?
            }
            End::Full | End::Drained | End::Paused => {
                let committed = self.commit(subscription, &transaction, &mut work, has_paused);
                (committed.await?, None)
            }
            End::Rebalance(rebalance) => {
                let committed = self.commit(subscription, &transaction, &mut work, has_paused);
                (committed.await?, Some(rebalance))
            }
        };

        match committed {
            Ok(()) => {
                self.committed(work, is_drained);
                // The commit was progress, but the outage continues.
                self.pause_in_outage(subscription)?;
                Ok(next)
            }
            Err(Failed::Abort(error)) => {
                warn_of_change!(
                    "transaction of {} aborted, reading its records again until one commits: {error}",
                    counted(work.records, "record")
                );
                self.health.waiting_for(format!("Kafka: {error}"));
                transaction.abort().await.map_err(producer_error)?;
                self.read_again(subscription, producer, is_too_large(&error), work, next)
                    .await
            }
            Err(failed @ (Failed::Exit(_) | Failed::StartOver(_))) => {
                let error = producer_error(failed);
                if error.is::<NeedsAttention>() {
                    // So readers need not wait for the transaction's timeout; if this fails, the broker
                    // aborts it then.
                    let _ = transaction.abort().await;
                }
                Err(error)
            }
        }
    }

    /// Sends the prepared events, `first`, and the following records until the transaction ends.
    async fn fill<'s>(
        &mut self,
        subscription: &'s Subscription,
        transaction: &Transaction<'_>,
        begun: Instant,
        first: Option<Next<'s>>,
        work: &mut Work,
    ) -> anyhow::Result<End<'s>> {
        let events_topic = &self.config.events_topic;
        let sent = self
            .prepared
            .send(transaction, events_topic, &mut self.breaker, work);
        if let Err(failed) = sent.await {
            return Ok(End::Failed(failed, first));
        }
        match first {
            Some(Next::Record(record)) => {
                if let Err(end) = self.send(transaction, &record, work).await {
                    return Ok(end);
                }
            }
            Some(rebalance) => return Ok(End::of(rebalance)),
            None if self.outage.is_some() => return Ok(End::Paused),
            None => {}
        }
        let commit_interval = Duration::from_millis(self.config.commit_interval_ms);
        // A full transaction does not cut a run of rejects, which the breaker's limit bounds.
        while work.records < self.config.max_records || self.breaker.undecided() {
            // An open run of rejects is not committed.
            let patience = match self.breaker.undecided() {
                true => commit_interval.max(Breaker::PATIENCE),
                false => commit_interval,
            };
            let max_age = patience.max(BACKLOG_INTERVAL);
            if work.records.is_multiple_of(LOOK_EVERY)
                && (self.shutdown.is_cancelled() || begun.elapsed() >= max_age)
            {
                break;
            }
            let next = match subscription.try_next()? {
                Some(next) => next,
                None if begun.elapsed() >= patience => return Ok(End::Drained),
                None => tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => break,
                    () = pause::until(begun + patience) => continue,
                    next = subscription.next() => next?,
                },
            };
            match next {
                Next::Record(record) => {
                    if !self.can_decode(&record).await? {
                        self.pause_at(subscription, &record)?;
                        return Ok(End::Paused);
                    }
                    if let Err(end) = self.send(transaction, &record, work).await {
                        return Ok(end);
                    }
                }
                rebalance => return Ok(End::of(rebalance)),
            }
        }
        Ok(End::Full)
    }

    /// Routes one record into the transaction.
    async fn send(
        &mut self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        work: &mut Work,
    ) -> Result<(), End<'static>> {
        work.read(record.partition(), record.offset());
        let mut outcome = self.transform.apply(record, self.limits.event_bytes);
        if outcome.is_too_large() {
            // A dead letter is final, and the limit may have been raised since it was read.
            drop(outcome);
            self.limits.confirm().await?;
            outcome = self.transform.apply(record, self.limits.event_bytes);
        }
        match outcome {
            Outcome::Event {
                key,
                value,
                adjustments,
            } => {
                self.breaker.accept();
                work.events += 1;
                work.adjustments.extend(adjustments);
                let event = BaseRecord::to(&self.config.events_topic)
                    .key(key.as_bytes())
                    .payload(value);
                transaction.send(event).await?;
            }
            Outcome::DeadLetter(reject) => {
                if let Err(tripped) = self.breaker.reject() {
                    return Err(End::Tripped(self.tripped(tripped, record, &reject)));
                }
                self.send_letter(transaction, record, &reject).await?;
                work.rejects
                    .push((record.partition(), record.offset(), reject));
            }
        }
        Ok(())
    }

    /// The error of an open circuit breaker.
    fn tripped(&self, tripped: Tripped, record: &BorrowedMessage<'_>, reject: &Reject) -> String {
        format!(
            "{tripped} ({}), the last one {} partition {} offset {}: {}. {}; nothing of the transaction that \
             holds the last one was committed. Is it the wrong --source-topic, or do engines write with \
             another schema? Correct it and start again, or let them become dead letters with a higher limit",
            tripped.option(),
            record.topic(),
            record.partition(),
            record.offset(),
            reject.message,
            tripped.letters(&self.config.dead_letters_topic),
        )
    }

    /// Sends the dead letter of a record: its key, value and reason.
    async fn send_letter(
        &mut self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        reject: &Reject,
    ) -> Result<(), Failed> {
        let letter = DeadLetter {
            topic: record.topic(),
            topic_id: self.transform.source_topic_id.as_deref(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp().to_millis(),
            first: First::of(|name| header(record, name)),
            service: "router",
            instance: &self.instance,
            reject,
        };
        let letter = self.limits.fit(&letter, record.key(), record.payload());
        let letter = letter.await?;
        let mut sent = BaseRecord::to(&self.config.dead_letters_topic)
            .headers(service::kafka::headers(&letter.headers));
        (sent.key, sent.payload) = (letter.key, letter.value);
        transaction.send(sent).await
    }

    /// The offsets that a transaction commits, and on whose behalf.
    fn offsets(
        &mut self,
        subscription: &Subscription,
        work: &mut Work,
    ) -> anyhow::Result<(TopicPartitionList, ConsumerGroupMetadata)> {
        let group = subscription.consumer().group_metadata();
        let group = group.context("no group metadata")?;
        // In an outage, one delivered record is not in a transaction.
        if Instant::now() >= self.positions.compare_at && self.outage.is_none() {
            work.next.extend(self.positions.uncommitted(subscription)?);
        }
        let mut offsets = offset_list(&self.config.source_topic, &work.next)?;
        self.topic_ids.note(&mut offsets)?;
        Ok((offsets, group))
    }

    /// Commits. If the transaction began right after a pause, adapts the pause.
    async fn commit(
        &mut self,
        subscription: &Subscription,
        transaction: &Transaction<'_>,
        work: &mut Work,
        has_paused: bool,
    ) -> anyhow::Result<Result<(), Failed>> {
        let (offsets, group) = self.offsets(subscription, work)?;
        let begun = Instant::now();
        let committed = commit(transaction, &offsets, &group, self.topic_ids).await;
        if has_paused {
            self.commit_pause.learn(begun.elapsed());
        }
        Ok(committed)
    }

    /// Commits on a separate thread, and prepares events meanwhile. Also returns an item that is not an
    /// event.
    fn commit_and_route_ahead<'s>(
        &mut self,
        subscription: &'s Subscription,
        transaction: &Transaction<'_>,
        work: &mut Work,
    ) -> anyhow::Result<(Result<(), Failed>, Option<Next<'s>>)> {
        let (offsets, group) = self.offsets(subscription, work)?;
        let runtime = Handle::current();
        let (pause, topic_ids) = (self.commit_pause.duration, self.topic_ids);
        block_in_place(|| {
            std::thread::scope(|scope| {
                let committing = scope.spawn(|| {
                    let committed = commit(transaction, &offsets, &group, topic_ids);
                    let committed = runtime.block_on(committed);
                    if committed.is_ok() {
                        // Only sending in the next transaction has to wait.
                        std::thread::sleep(pause);
                    }
                    committed
                });
                let next = self.prepared.fill(
                    subscription,
                    &mut self.transform,
                    self.limits.event_bytes,
                    self.config.max_records as usize,
                    || committing.is_finished(),
                );
                let committed = committing.join();
                let committed = committed.map_err(|_| anyhow!("the commit panicked"))?;
                Ok((committed, next?))
            })
        })
    }

    /// Updates the state after a commit.
    fn committed(&mut self, work: Work, is_drained: bool) {
        if self.abort_backoff.take().is_some() {
            let after = repeats::end(module_path!());
            tracing::info!("transactions commit again, {after}");
        }
        // Under backlog, the preparation of events has waited for the broker, or the next transaction is soon
        // full.
        if is_drained {
            self.commit_pause.begin();
        }
        self.health.progressed();
        self.breaker.settle();
        work.count(self.config);
        self.positions.committed(work.next);
    }

    /// After an abort and a pause, rewinds to the first record of the transaction. Returns a rebalance that
    /// must still be answered.
    async fn read_again<'s>(
        &mut self,
        subscription: &Subscription,
        producer: &mut TransactionalProducer,
        too_large: bool,
        mut work: Work,
        next: Option<Next<'s>>,
    ) -> anyhow::Result<Option<Next<'s>>> {
        let adapted = too_large && self.limits.adapt(producer, self.shutdown).await?;
        // An output topic that is gone makes every transaction fail.
        self.compare_topics_unless_away(producer).await?;
        // Back-off.
        let pause = self.abort_backoff.get_or_insert_default().pause();
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = sleep(if adapted { Duration::ZERO } else { pause }) => {}
        }
        self.breaker.take_back();
        // In reading order.
        self.prepared.give_back(&mut work);
        let next = match next {
            Some(Next::Record(record)) => {
                work.read_again_from(record.partition(), record.offset());
                None
            }
            rebalance => rebalance,
        };
        subscription.seek(&work.first)?;
        self.pause_in_outage(subscription)?;
        Ok(next)
    }

    /// Commits positions that no record's transaction has committed.
    pub(super) async fn commit_positions(
        &mut self,
        subscription: &Subscription,
        producer: &mut TransactionalProducer,
    ) -> anyhow::Result<()> {
        let positions = self.positions.uncommitted(subscription)?;
        if positions.is_empty() {
            return Ok(());
        }
        let group = subscription.consumer().group_metadata();
        let group = group.context("no group metadata")?;
        let mut offsets = offset_list(&self.config.source_topic, &positions)?;
        self.topic_ids.note(&mut offsets)?;
        let transaction = producer.begin().map_err(producer_error)?;
        match commit(&transaction, &offsets, &group, self.topic_ids).await {
            Ok(()) => {
                self.positions.committed(positions);
                self.commit_pause.begin();
            }
            Err(Failed::Abort(error)) => {
                // For example during a rebalance; the next comparison tries again.
                tracing::debug!("committing positions {positions:?}: {error}");
                transaction.abort().await.map_err(producer_error)?;
            }
            Err(failed) => {
                let _ = transaction.abort().await;
                return Err(producer_error(failed));
            }
        }
        Ok(())
    }
}

impl<'s> End<'s> {
    /// The end caused by a rebalance.
    fn of(rebalance: Next<'s>) -> Self {
        match rebalance {
            Next::Revoked { lost: true, .. } => Self::Lost(rebalance),
            _ => Self::Rebalance(rebalance),
        }
    }
}

impl From<Failed> for End<'_> {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed, None)
    }
}
