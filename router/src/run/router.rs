//! The loop between transactions: waits for what comes next, answers rebalances, transacts.

use rdkafka::topic_partition_list::TopicPartitionList;
use service::backoff::Backoff;
use service::breaker::Breaker;
use service::health::Health;
use service::subscription::{Next, Subscription};
use service::transaction::TransactionalProducer;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::commit_pause::CommitPause;
use super::limits::Limits;
use super::positions::Positions;
use super::prepared_events::PreparedEvents;
use crate::config::Config;
use crate::topic_ids::{NotTheSame, TopicIds};
use crate::transform::{Codec, Transform};

/// State of routing between transactions.
pub(super) struct Router<'a> {
    pub(super) config: &'a Config,
    /// This process's name in dead letters.
    pub(super) instance: String,
    pub(super) transform: Transform<'a>,
    pub(super) limits: Limits,
    pub(super) topic_ids: &'a TopicIds,
    pub(super) health: &'a Health,
    pub(super) shutdown: &'a CancellationToken,
    pub(super) breaker: Breaker,
    /// Back-off after aborted transactions; `None` after a commit.
    pub(super) abort_backoff: Option<Backoff>,
    pub(super) commit_pause: CommitPause,
    pub(super) positions: Positions,
    /// During an outage, the partitions are paused at the first record that cannot be decoded.
    pub(super) outage: Option<Outage>,
    /// Events with which the next transaction begins.
    pub(super) prepared: PreparedEvents,
}

/// An unanswered request to the schema registry.
pub(super) struct Outage {
    pub(super) schema_id: u32,
    /// Reason for the health endpoint.
    pub(super) waiting_for: String,
    pub(super) backoff: Backoff,
    pub(super) next_try: Instant,
}

impl<'a> Router<'a> {
    /// # Errors
    /// If this process has no name.
    pub(super) fn new(
        config: &'a Config,
        codec: &'a Codec,
        limits: Limits,
        topic_ids: &'a TopicIds,
        health: &'a Health,
        shutdown: &'a CancellationToken,
    ) -> anyhow::Result<Self> {
        let source_topic_id = topic_ids.source().map(|id| id.to_string());
        Ok(Self {
            config,
            instance: config.instance()?,
            transform: Transform::new(codec, source_topic_id),
            limits,
            topic_ids,
            health,
            shutdown,
            breaker: Breaker::new(config.breaker),
            abort_backoff: None,
            commit_pause: CommitPause::default(),
            positions: Positions::default(),
            outage: None,
            prepared: PreparedEvents::default(),
        })
    }

    pub(super) async fn route_until_shutdown(
        &mut self,
        subscription: &Subscription,
        producer: &mut TransactionalProducer,
    ) -> anyhow::Result<()> {
        let mut next = None;
        while !self.shutdown.is_cancelled() {
            next = match next {
                None if self.prepared.is_empty() => self.wait(subscription, producer).await?,
                Some(Next::Assigned(partitions)) if self.prepared.is_empty() => {
                    self.begin_partitions(subscription, partitions).await?;
                    self.pause_in_outage(subscription)?;
                    None
                }
                Some(Next::Revoked { partitions, .. }) if self.prepared.is_empty() => {
                    self.release(subscription, &partitions)?;
                    None
                }
                first => self.transact(subscription, producer, first).await?,
            };
        }
        if self.prepared.is_empty() && next.is_none() && self.outage.is_none() {
            self.commit_positions(subscription, producer).await?;
        }
        Ok(())
    }

    /// Waits for the next record or rebalance. `None` on shutdown, and after a task that is due while idle.
    async fn wait<'s>(
        &mut self,
        subscription: &'s Subscription,
        producer: &mut TransactionalProducer,
    ) -> anyhow::Result<Option<Next<'s>>> {
        let next_try = self.outage.as_ref().map(|outage| outage.next_try);
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => {}
            () = sleep_until(next_try.unwrap_or_else(Instant::now)), if next_try.is_some() => {
                self.ask_registry_again(subscription).await?;
            }
            // Also awaited during an outage, to keep the member in its group.
            next = subscription.next() => return next.map(Some),
            () = sleep_until(self.positions.compare_at), if next_try.is_none() => {
                self.commit_positions(subscription, producer).await?;
                if self.topic_ids.is_idle_check_due() {
                    self.compare_topics_unless_away(producer).await?;
                }
            }
        }
        Ok(None)
    }

    fn release(
        &mut self,
        subscription: &Subscription,
        partitions: &TopicPartitionList,
    ) -> anyhow::Result<()> {
        subscription.release(partitions)?;
        for partition in partitions.elements() {
            self.positions.forget(partition.partition());
        }
        Ok(())
    }

    /// Compares the topics' ids; ignores an unavailable Kafka, since a later comparison finds a change.
    pub(super) async fn compare_topics_unless_away(
        &self,
        producer: &TransactionalProducer,
    ) -> anyhow::Result<()> {
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            compared = self.topic_ids.compare(producer.client()) => match compared {
                Err(error @ NotTheSame::Changed(_)) => Err(error.into()),
                Ok(()) | Err(NotTheSame::Unanswered(_)) => Ok(()),
            },
        }
    }
}
