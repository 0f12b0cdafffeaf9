//! Start offsets of assigned partitions: the group's committed offset, or else the result of [`resume`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::backoff::Backoff;
use service::exit::{NeedsAttention, StartOver};
use service::subscription::Subscription;
use service::warn_of_change;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::sleep;

use super::resume;
use super::router::Router;
use crate::topic_ids::NotTheSame;

/// Polling interval of the member during a search for start offsets.
const POLL: Duration = Duration::from_millis(20);

impl Router<'_> {
    /// Starts reading these partitions. Returns without that on shutdown.
    pub(super) async fn begin_partitions(
        &mut self,
        subscription: &Subscription,
        partitions: TopicPartitionList,
    ) -> anyhow::Result<()> {
        let Some(mut starts) = self.ask_committed(subscription, &partitions).await? else {
            return Ok(());
        };
        self.topic_ids
            .are_of_the_source(&self.config.group, &starts)?;
        let mut without_offset = BTreeSet::new();
        for partition in partitions.elements() {
            let (topic, id) = (partition.topic(), partition.partition());
            let start = starts
                .find_partition(topic, id)
                .context("the broker left out a partition")?;
            self.positions.forget(id);
            match start.offset() {
                Offset::Invalid => _ = without_offset.insert(id),
                committed => self
                    .positions
                    .committed(committed.to_raw().map(|raw| (id, raw))),
            }
        }
        if !without_offset.is_empty() {
            let Some(found) = self.find_starts(subscription, &without_offset).await? else {
                return Ok(());
            };
            for (partition, start) in found {
                starts.set_partition_offset(&self.config.source_topic, partition, start)?;
            }
        }
        tracing::info!("assigned {}", listed(&starts));
        subscription.assign(&starts)
    }

    /// The group's committed offsets. Waits while Kafka is unavailable or an earlier owner's transaction is
    /// open; `None` on shutdown.
    async fn ask_committed(
        &self,
        subscription: &Subscription,
        partitions: &TopicPartitionList,
    ) -> anyhow::Result<Option<TopicPartitionList>> {
        let (mut backoff, mut has_waited) = (Backoff::default(), false);
        loop {
            let committed = match subscription.committed(partitions) {
                Ok(offsets) => {
                    // Compared after the offsets were read, so they belong to this topic or an earlier one.
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
                    if has_waited {
                        self.health.answered();
                    }
                    return Ok(Some(offsets));
                }
                Err(why) => {
                    has_waited = true;
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

    /// Start offsets of partitions without a committed offset. Waits while Kafka is unavailable; `None` on
    /// shutdown.
    async fn find_starts(
        &self,
        subscription: &Subscription,
        partitions: &BTreeSet<i32>,
    ) -> anyhow::Result<Option<BTreeMap<i32, Offset>>> {
        self.health.waiting_for(format!(
            "where to begin partitions {partitions:?}, for which the group has no committed offset"
        ));
        let mut backoff = Backoff::default();
        loop {
            match self.search_as_member(subscription, partitions) {
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
                        "searching for where to begin partitions {partitions:?}, trying again: {error:#}"
                    );
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(None),
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Searches on a separate thread and polls meanwhile, because the group removes a member that does not
    /// poll.
    fn search_as_member(
        &self,
        subscription: &Subscription,
        partitions: &BTreeSet<i32>,
    ) -> anyhow::Result<BTreeMap<i32, Offset>> {
        let has_others = subscription.assignment()?.count() > 0;
        if has_others {
            subscription.pause()?;
        }
        let (config, codec) = (self.config, self.transform.codec);
        let max_event_bytes = self.limits.event_bytes;
        let source_topic_id = self.transform.source_topic_id.as_deref();
        let (runtime, stop) = (Handle::current(), self.shutdown.child_token());
        let found = block_in_place(|| {
            std::thread::scope(|scope| {
                let searching = scope.spawn(|| {
                    runtime.block_on(resume::starts(
                        config,
                        codec,
                        max_event_bytes,
                        source_topic_id,
                        partitions,
                        &stop,
                    ))
                });
                while !searching.is_finished() {
                    match subscription.try_next() {
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
}

/// Partitions and their offsets, for the log.
fn listed(partitions: &TopicPartitionList) -> String {
    let each = partitions.elements();
    let each: Vec<String> = each
        .iter()
        .map(|p| format!("{}@{:?}", p.partition(), p.offset()))
        .collect();
    each.join(", ")
}
