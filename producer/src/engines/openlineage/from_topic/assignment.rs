//! Where assigned partitions begin.

use jiff::Timestamp;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::backoff::Backoff;
use service::exit::NeedsAttention;
use service::range::End;
use service::subscription::Subscription;
use service::threads::blocking;
use service::warn_of_change;
use tokio::time::sleep;

use super::adapter::Adapter;
use super::partition::{Noted, Partition};
use crate::engines::openlineage::options::OnNoOffset;
use crate::engines::openlineage::runs::Runs;

/// Gauge: runs that are remembered.
pub(crate) const REMEMBERED: &str = "taskrunning_remembered_runs";

/// Offsets before the committed one that are read again at most.
const REMEMBERED_OFFSETS_MAX: i64 = 1_000_000;

impl Adapter<'_> {
    /// Starts reading these partitions: each from where its runs are to be remembered. Returns without that on shutdown.
    pub(super) async fn begin_partitions(
        &mut self,
        subscription: &Subscription,
        partitions: TopicPartitionList,
    ) -> anyhow::Result<()> {
        let Some(mut starts) = self.ask_committed(subscription, &partitions).await? else {
            return Ok(());
        };
        let mut found = Vec::new();
        for committed in starts.elements() {
            let partition = committed.partition();
            let noted = Noted::of(committed.metadata());
            let report_from = match committed.offset().to_raw().filter(|offset| *offset >= 0) {
                Some(offset) => {
                    self.is_of_this_topic(partition, offset, &noted)?;
                    Some(offset)
                }
                None if self.options.on_no_offset == OnNoOffset::Fail => {
                    return Err(self.no_offset(partition).into());
                }
                None => None,
            };
            let start = match report_from {
                Some(offset) => {
                    let Some(start) = self.remembered_from(partition, offset, &noted).await? else {
                        return Ok(());
                    };
                    start
                }
                None => Offset::Beginning,
            };
            found.push((partition, start, report_from.unwrap_or(0), noted.newest_ms));
        }
        for (partition, start, report_from, newest_ms) in found {
            starts.set_partition_offset(&self.options.from_topic, partition, start)?;
            tracing::info!(
                "assigned partition {partition}: read from {start:?}, reported from offset {report_from} on"
            );
            let begun = Partition {
                runs: Runs::new(self.options.runs as usize),
                report_from,
                newest_ms,
            };
            self.partitions.insert(partition, begun);
        }
        subscription.assign(&starts)
    }

    /// Gives partitions up, and forgets their runs.
    pub(super) fn release(
        &mut self,
        subscription: &Subscription,
        partitions: &TopicPartitionList,
    ) -> anyhow::Result<()> {
        subscription.release(partitions)?;
        for partition in partitions.elements() {
            self.partitions.remove(&partition.partition());
        }
        self.count_runs();
        Ok(())
    }

    pub(super) fn count_runs(&self) {
        let runs = self
            .partitions
            .values()
            .map(|partition| partition.runs.len());
        metrics::gauge!(REMEMBERED).set(runs.sum::<usize>() as f64);
    }

    /// The group's committed offsets. Waits while Kafka is unavailable or an earlier owner's transaction is open; `None` on
    /// shutdown.
    async fn ask_committed(
        &self,
        subscription: &Subscription,
        partitions: &TopicPartitionList,
    ) -> anyhow::Result<Option<TopicPartitionList>> {
        let mut backoff = Backoff::default();
        loop {
            match subscription.committed(partitions) {
                Ok(offsets) => {
                    self.health.answered();
                    return Ok(Some(offsets));
                }
                Err(error) => {
                    warn_of_change!("waiting for the committed offsets: {error}");
                    let what = format!("the committed offsets: {error}");
                    self.health.waiting_for(what);
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(None),
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    /// Where to begin to remember the runs before this offset. Waits while Kafka is unavailable; `None` on shutdown.
    async fn remembered_from(
        &self,
        partition: i32,
        offset: i64,
        noted: &Noted,
    ) -> anyhow::Result<Option<Offset>> {
        let mut backoff = Backoff::default();
        loop {
            match blocking(|| self.find_remembered(partition, offset, noted)) {
                Ok(start) => return Ok(Some(start)),
                Err(error) if error.chain().any(|cause| cause.is::<NeedsAttention>()) => {
                    return Err(error);
                }
                Err(error) => {
                    warn_of_change!("looking for where to begin, trying again: {error:#}")
                }
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Ok(None),
                () = sleep(backoff.pause()) => {}
            }
        }
    }

    fn find_remembered(
        &self,
        partition: i32,
        offset: i64,
        noted: &Noted,
    ) -> anyhow::Result<Offset> {
        let topic = &self.options.from_topic;
        let log = self.reader.bounds(topic, partition, End::Stable)?;
        if !log.contains(&offset) && offset != log.end {
            // The subscription's error names both numbers.
            return Ok(Offset::Offset(offset));
        }
        // After a long stop, the events before the committed offset are older than the time asks for.
        let now = Timestamp::now().as_millisecond();
        let newest = noted.newest_ms.map_or(now, |newest| newest.min(now));
        let remember = i64::try_from(self.options.remember.as_millis()).unwrap_or(i64::MAX);
        let since = newest.saturating_sub(remember);
        let found = self.reader.since(topic, &[partition].into(), since)?;
        let start = found.get(&partition).copied().unwrap_or(offset);
        let start = start.clamp(offset.saturating_sub(REMEMBERED_OFFSETS_MAX), offset);
        // Retention may pass the log's start before it is read.
        Ok(match start <= log.start && log.start < offset {
            true => Offset::Beginning,
            false => Offset::Offset(start.max(log.start)),
        })
    }

    fn is_of_this_topic(
        &self,
        partition: i32,
        offset: i64,
        noted: &Noted,
    ) -> Result<(), NeedsAttention> {
        match (self.topic_id, noted.topic_id) {
            (Some(id), Some(of)) if id != of => {
                let (topic, group) = (&self.options.from_topic, &self.options.group);
                Err(NeedsAttention(format!(
                    "topic {topic} partition {partition}: group {group} has committed offset {offset} of the topic with \
                     the id {of}, and the topic has the id {id}: it was deleted and created again. Nothing of it was \
                     reported. To report it from its beginning: kafka-consumer-groups.sh --reset-offsets --to-earliest \
                     --group {group} --topic {topic} --execute"
                )))
            }
            _ => Ok(()),
        }
    }

    fn no_offset(&self, partition: i32) -> NeedsAttention {
        let (topic, group) = (&self.options.from_topic, &self.options.group);
        NeedsAttention(format!(
            "group {group} has no committed offset for {topic} partition {partition}. Set one: kafka-consumer-groups.sh \
             --reset-offsets --group {group} --topic {topic} --execute with --to-earliest, --to-latest or \
             --to-datetime; or report from the beginning: --on-no-offset beginning"
        ))
    }
}
