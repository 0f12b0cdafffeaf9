//! Where each assigned partition begins, and how far the group has committed it.
//!
//! A position is not always behind a record: a commit marker or an aborted record may stand at the end of a
//! partition. Such positions are committed too, so that no tool shows a lag where nothing waits, and
//! retention that passes the last record does not leave a committed offset outside the log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::backoff::Backoff;
use service::exit::{NeedsAttention, StartOver};
use service::subscription::Subscription;
use service::transaction::{Failed, TransactionalProducer};
use service::warn_of_change;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep};

use crate::topic_ids::NotTheSame;
use crate::{Router, commit, done_for, listed, offsets, resume, same_topics};

/// How often positions are compared with what is committed.
pub(crate) const COMPARE_EVERY: Duration = Duration::from_secs(1);
/// How often the member is polled while it searches for where to begin.
const POLL: Duration = Duration::from_millis(20);

impl Router<'_> {
    /// Starts each partition at the group's committed offset; where there is none, where [`resume`] says.
    pub(crate) async fn begin_partitions(
        &mut self,
        subscription: &Subscription,
        partitions: TopicPartitionList,
    ) -> anyhow::Result<()> {
        let Some(mut starts) = self.ask_committed(subscription, &partitions).await? else {
            return Ok(());
        };
        self.topic_ids
            .are_of_the_source(&self.config.group, &starts)?;
        let mut lost = BTreeSet::new();
        for partition in partitions.elements() {
            let (topic, id) = (partition.topic(), partition.partition());
            let start = starts
                .find_partition(topic, id)
                .context("the broker left out a partition")?;
            self.committed.remove(&id);
            match start.offset() {
                Offset::Invalid => _ = lost.insert(id),
                committed => self
                    .committed
                    .extend(committed.to_raw().map(|raw| (id, raw))),
            }
        }
        if !lost.is_empty() {
            let Some(found) = self.find_starts(subscription, &lost).await? else {
                return Ok(());
            };
            for (partition, start) in found {
                starts.set_partition_offset(&self.config.source_topic, partition, start)?;
            }
        }
        tracing::info!("assigned {}", listed(&starts));
        subscription.assign(&starts)
    }

    /// The group's committed offsets, waited for while Kafka is away or an earlier owner's
    /// transaction is not settled; `None` when shut down meanwhile.
    async fn ask_committed(
        &self,
        subscription: &Subscription,
        partitions: &TopicPartitionList,
    ) -> anyhow::Result<Option<TopicPartitionList>> {
        let (mut backoff, mut waits) = (Backoff::default(), false);
        loop {
            let committed = match subscription.committed(partitions) {
                Ok(offsets) => {
                    // Asked later than the offsets: they are of this topic or an earlier one.
                    let client = subscription.consumer().client();
                    let compared = tokio::select! {
                        () = self.shutdown.cancelled() => return Ok(None),
                        compared = self.topic_ids.compare(client) => compared,
                    };
                    match compared {
                        Ok(()) => Ok(offsets),
                        Err(NotTheSame::Unanswered(error)) => Err(error.to_string()),
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => Err(error.to_string()),
            };
            match committed {
                Ok(offsets) => {
                    if waits {
                        self.health.answered();
                    }
                    return Ok(Some(offsets));
                }
                Err(why) => {
                    waits = true;
                    warn_of_change!("waiting for the committed offsets: {why}");
                    self.health
                        .waiting_for(format!("the committed offsets: {why}"));
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(None),
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Where to begin partitions without a committed offset; waits while Kafka is away. `None` when shut
    /// down meanwhile.
    async fn find_starts(
        &self,
        subscription: &Subscription,
        lost: &BTreeSet<i32>,
    ) -> anyhow::Result<Option<BTreeMap<i32, Offset>>> {
        self.health.waiting_for(format!(
            "where to begin partitions {lost:?}, for which the group has no committed offset"
        ));
        let mut backoff = Backoff::default();
        loop {
            match self.search_as_member(subscription, lost) {
                Ok(starts) => {
                    self.health.answered();
                    return Ok(Some(starts));
                }
                Err(_) if self.shutdown.is_cancelled() => return Ok(None),
                Err(error) => {
                    let ends = |cause: &(dyn std::error::Error + 'static)| {
                        cause.is::<NeedsAttention>() || cause.is::<StartOver>()
                    };
                    if error.chain().any(ends) {
                        return Err(error);
                    }
                    warn_of_change!(
                        "searching for where to begin partitions {lost:?}, trying again: {error:#}"
                    );
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(None),
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Searches on a thread of its own, and polls meanwhile: a member that is silent for long is put out of
    /// its group.
    fn search_as_member(
        &self,
        subscription: &Subscription,
        lost: &BTreeSet<i32>,
    ) -> anyhow::Result<BTreeMap<i32, Offset>> {
        let has_others = subscription.assignment()?.count() > 0;
        if has_others {
            subscription.pause()?;
        }
        let (config, schemas, limits) = (self.config, self.schemas, &self.limits);
        let source_id = self.source_id.as_deref();
        let (runtime, stop) = (Handle::current(), self.shutdown.child_token());
        let found = block_in_place(|| {
            std::thread::scope(|scope| {
                let searching = scope.spawn(|| {
                    runtime.block_on(resume::starts(
                        config, schemas, limits, source_id, lost, &stop,
                    ))
                });
                while !searching.is_finished() {
                    match subscription.waiting() {
                        Ok(None) => std::thread::sleep(POLL),
                        Ok(Some(_)) => {
                            stop.cancel();
                            let why = "the group changed while its partitions were being begun";
                            return Err(StartOver(why.to_owned()).into());
                        }
                        Err(error) => {
                            stop.cancel();
                            return Err(error);
                        }
                    }
                }
                let found = searching.join();
                found.map_err(|_| anyhow!("the search panicked"))?
            })
        });
        if has_others {
            subscription.resume()?;
        }
        found
    }

    /// The positions that are not committed, if it is time to compare them again. Only to be asked while no
    /// record is handed out that is neither committed nor about to be.
    pub(crate) fn uncommitted(
        &mut self,
        subscription: &Subscription,
    ) -> anyhow::Result<BTreeMap<i32, i64>> {
        self.compare_at = Instant::now() + COMPARE_EVERY;
        let mut positions = subscription.positions()?;
        positions.retain(|partition, position| {
            let committed = self.committed.get(partition);
            committed.is_none_or(|committed| *position > *committed)
        });
        Ok(positions)
    }

    /// Commits positions that no record's transaction has committed.
    pub(crate) async fn commit_positions(
        &mut self,
        subscription: &Subscription,
        output: &mut TransactionalProducer,
    ) -> anyhow::Result<()> {
        let positions = self.uncommitted(subscription)?;
        if positions.is_empty() {
            return Ok(());
        }
        let group = subscription.consumer().group_metadata();
        let group = group.context("no group metadata")?;
        let mut list = offsets(&self.config.source_topic, &positions)?;
        self.topic_ids.note(&mut list)?;
        let transaction = output.begin().map_err(done_for)?;
        let same_topics = same_topics(self.topic_ids, &transaction);
        match commit(&transaction, &list, &group, same_topics).await {
            Ok(()) => {
                self.committed.extend(positions);
                self.settled = Some(Instant::now() + self.settling.pause);
            }
            Err(Failed::Abort(error)) => {
                // As while the group rebalances: there is another look.
                tracing::debug!("committing positions {positions:?}: {error}");
                transaction.abort().await.map_err(done_for)?;
            }
            Err(failed) => {
                let _ = transaction.abort().await;
                return Err(done_for(failed));
            }
        }
        Ok(())
    }
}
