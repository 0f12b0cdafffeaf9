//! Whether the topic is still the one that the stored offsets came from, and holds what comes next.
//!
//! | Found | Done |
//! | --- | --- |
//! | the topic has another id (KIP-516) than what is stored came from, or fewer partitions | stop |
//! | the last stored record stands where it stood, and the next offset is in the log | read on |
//! | no record stands there: compacted, where the id is the stored one; else the topic may be another one | read on; stop |
//! | another record stands there: made anew, or, where the id is the stored one, cut and written again | stop |
//! | the log ends before the stored offset: made anew, or cut | stop |
//! | the log begins after the stored offset | stop, or with `--on-gap continue` read on at its beginning |
//! | the group told Kafka a later offset than is stored: the database went back, as to a backup | say so, read on from what is stored |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::exit::NeedsAttention;
use service::lookup::Lookup;
use service::subscription::Subscription;
use service::threads::blocking;
use service::topic_id::{TopicId, TopicIdAnswer};
use service::words::counted;

use crate::failure::Failure;
use crate::positions::Anchor;
use crate::rows::Part;
use crate::store::StoredOffset;

/// How long Kafka may take to tell the ends of a partition.
const ASK: Duration = Duration::from_secs(10);

/// What to do where retention removed offsets before they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnGap {
    /// Stop, with nothing skipped.
    Fail,
    /// Say which offsets are gone, and go on at the beginning of the log.
    Continue,
}

/// The topic, as a consumer meets it on assignment.
pub(crate) struct TopicIdentity<'a> {
    pub(crate) subscription: &'a Subscription,
    pub(crate) lookup: &'a Lookup,
    /// What is stored by this consumer.
    pub(crate) parts: &'a [Part],
    /// The topic's id now, if it is told.
    pub(crate) id: Option<TopicId>,
    /// Where the database is.
    pub(crate) place: &'a str,
    pub(crate) on_gap: OnGap,
}

/// A topic that was recognised.
pub(crate) struct Recognised {
    /// The first offset of each partition.
    pub(crate) low: BTreeMap<i32, i64>,
    /// What the group has committed.
    pub(crate) committed: TopicPartitionList,
}

impl TopicIdentity<'_> {
    /// Compares the topic with what is stored of it: the id with all of that, the logs with what this consumer
    /// has stored of these partitions.
    ///
    /// # Errors
    /// If it is another one, or does not hold what comes next: with the numbers and the choices.
    pub(crate) fn recognise(
        &self,
        partitions: &BTreeSet<i32>,
        stored: &[StoredOffset],
    ) -> Result<Recognised, Failure> {
        let topic = self.subscription.topic();
        has_the_stored_id(topic, self.id, stored, self.place, "--database-url")?;
        if self.id.is_none() || stored.iter().any(|offset| offset.topic_id.is_none()) {
            self.has_the_stored_partitions(stored)?;
        }
        let mut asked = TopicPartitionList::new();
        let mut low = BTreeMap::new();
        let mut anchors = BTreeMap::new();
        for &partition in partitions {
            asked.add_partition(topic, partition);
            let consumer = self.subscription.consumer();
            let (first, end) = blocking(|| consumer.fetch_watermarks(topic, partition, ASK))
                .map_err(Failure::kafka)?;
            low.insert(partition, first);
            let of_partition = stored.iter().filter(|stored| stored.partition == partition);
            let ours = |offset: &&StoredOffset| self.parts.contains(&offset.part);
            for offset in of_partition.filter(ours) {
                self.is_in_log(offset, first, end)?;
                if offset.anchor.offset >= first {
                    let known = self.id.is_some() && offset.topic_id.is_some();
                    anchors.insert((partition, offset.anchor.offset), (offset.anchor, known));
                }
            }
        }
        are_the_same(self.lookup, topic, &anchors, self.place, "--database-url")?;
        let committed = self
            .subscription
            .committed(&asked)
            .map_err(Failure::kafka)?;
        self.tell_of_a_step_back(stored, &committed);
        Ok(Recognised { low, committed })
    }

    /// A topic's partitions are never taken away, but one that was made anew may have fewer.
    fn has_the_stored_partitions(&self, stored: &[StoredOffset]) -> Result<(), Failure> {
        let (topic, place) = (self.subscription.topic(), self.place);
        let Some(last) = stored.iter().map(|offset| offset.partition).max() else {
            return Ok(());
        };
        let consumer = self.subscription.consumer();
        let metadata =
            blocking(|| consumer.fetch_metadata(Some(topic), ASK)).map_err(Failure::kafka)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let count = found.map_or(0, |found| found.partitions().len());
        // Without any, the brokers do not know (yet): no partition is read meanwhile.
        if count == 0 || last < count as i32 {
            return Ok(());
        }
        Err(stop(format!(
            "{topic} has {}, but {place} has stored its partition {last}: the topic was deleted and made \
             anew, or the database belongs to another topic. Nothing was stored. Give the database of this topic, or an \
             empty one, by --database-url",
            counted(count, "partition")
        )))
    }

    fn is_in_log(&self, stored: &StoredOffset, low: i64, end: i64) -> Result<(), Failure> {
        let (topic, place) = (self.subscription.topic(), self.place);
        let StoredOffset {
            part,
            partition,
            next_offset,
            ..
        } = *stored;
        let part = part.as_str();
        if next_offset > end {
            return Err(stop(format!(
                "{topic} partition {partition} ends at offset {end}, but {place} has stored its {part} part up to \
                 {next_offset}: the topic was made anew or cut, or the database belongs to another topic. Nothing was \
                 stored. Give the database of this topic, or an empty one, by --database-url"
            )));
        }
        // (What another part has stored is no evidence: it may have begun behind the gap, or skipped it.)
        if next_offset >= low {
            return Ok(());
        }
        let removed = low - next_offset;
        match self.on_gap {
            OnGap::Fail => Err(stop(format!(
                "{topic} partition {partition} begins at offset {low}, but {place} has stored its {part} part up to \
                 {next_offset} only: retention removed {} between before they were read, and whether they \
                 were records, or only commit markers and aborted records, cannot be told any more. Nothing was \
                 skipped. To go on without them start with --on-gap continue",
                counted(removed, "offset")
            ))),
            OnGap::Continue => {
                tracing::error!(
                    topic,
                    partition,
                    part,
                    "a gap: offsets {next_offset} to {low} were removed by retention before they were read, be they records \
                     or commit markers; going on without them ({}), as --on-gap continue says",
                    counted(removed, "offset")
                );
                Ok(())
            }
        }
    }

    fn tell_of_a_step_back(&self, stored: &[StoredOffset], committed: &TopicPartitionList) {
        for element in committed.elements() {
            let partition = element.partition();
            let of_partition = stored.iter().filter(|stored| {
                stored.partition == partition && self.parts.contains(&stored.part)
            });
            let next = of_partition.map(|stored| stored.next_offset).min();
            if let (Some(next), Offset::Offset(told)) = (next, element.offset())
                && next < told
            {
                tracing::warn!(
                    topic = self.subscription.topic(),
                    partition,
                    "{} has stored up to {next}, but this group had told Kafka {told}: the database went back, as to a backup \
                     or a replica that lagged. Reading on from {next}: nothing is lost, but \
                     what became a dead letter between {next} and {told} becomes one again",
                    self.place
                );
            }
        }
    }
}

/// The topic's id, by this answer; `None`: the cluster does not tell it, for this reason.
///
/// # Errors
/// If there is no topic, or no answer: either may pass.
pub(crate) fn id_of(
    topic: &str,
    answer: KafkaResult<TopicIdAnswer>,
) -> Result<Result<TopicId, &'static str>, Failure> {
    match answer.map_err(Failure::kafka)? {
        TopicIdAnswer::Id(id) => Ok(Ok(id)),
        TopicIdAnswer::NotTold { reason } => Ok(Err(reason)),
        TopicIdAnswer::NoSuchTopic => Err(Failure::kafka(format!("there is no topic {topic}"))),
    }
}

/// Compares the topic's id with that of the topic that was stored, where both are known.
///
/// # Errors
/// If it is another one.
pub(crate) fn has_the_stored_id(
    topic: &str,
    id: Option<TopicId>,
    stored: &[StoredOffset],
    place: &str,
    option: &str,
) -> Result<(), Failure> {
    let Some(id) = id.map(|id| id.to_string()) else {
        return Ok(());
    };
    let mut known = stored
        .iter()
        .filter_map(|offset| offset.topic_id.as_deref());
    match known.find(|stored| *stored != id) {
        None => Ok(()),
        Some(stored) => Err(made_anew(topic, &id, stored, place, option)),
    }
}

/// The topic was deleted and created again: it has this id now, and what is stored came from another.
pub(crate) fn made_anew(topic: &str, id: &str, stored: &str, place: &str, option: &str) -> Failure {
    stop(format!(
        "{topic} has the topic id {id}, but {place} was filled from a topic of this name with the id {stored}: the topic was \
         deleted and made anew. Nothing was stored of the new one. Give an empty database by {option}"
    ))
}

/// Compares the records at these places (partition, offset) of the topic with what is stored from there in
/// the database, which the option gives; with each, whether the topic's id says that it is the same topic.
///
/// # Errors
/// If one is another record; or none, unless the id is the same.
pub(crate) fn are_the_same(
    lookup: &Lookup,
    topic: &str,
    anchors: &BTreeMap<(i32, i64), (Anchor, bool)>,
    place: &str,
    option: &str,
) -> Result<(), Failure> {
    let records = lookup
        .records(anchors.keys().copied())
        .map_err(Failure::kafka)?;
    let found: BTreeMap<(i32, i64), Anchor> = records
        .iter()
        .map(|record| ((record.partition(), record.offset()), Anchor::of(record)))
        .collect();
    let shown = |anchor: &Anchor| {
        format!(
            "a record of timestamp {} ms and checksum {:08x}",
            anchor.timestamp_ms, anchor.crc32
        )
    };
    for (at, (stored, same_id)) in anchors {
        let found = found.get(at);
        // Of the same topic, compaction has taken it.
        if found == Some(stored) || (found.is_none() && *same_id) {
            continue;
        }
        let (partition, offset) = at;
        let why = match same_id {
            true => {
                "the topic is the same by its id, so its log was cut and written again, as by an unclean leader election"
            }
            false => {
                "the topic was deleted and made anew, or compacted, or the database belongs to another topic"
            }
        };
        return Err(stop(format!(
            "{topic} partition {partition} has at offset {offset} {}, but {place} stored from there {}: {why}. Nothing was \
             stored. Give the database of this topic, or an empty one, by {option}",
            found.map_or("no record".to_owned(), shown),
            shown(stored),
        )));
    }
    Ok(())
}

fn stop(message: String) -> Failure {
    Failure::Exit(NeedsAttention(message).into())
}
