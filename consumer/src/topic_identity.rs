//! Whether the topic is still the one that the stored offsets came from, and still holds the next offsets.
//!
//! | Found | Done |
//! | --- | --- |
//! | the topic has another id (KIP-516) than the stored one, or fewer partitions | stop |
//! | the last stored record stands where it stood, and the next offset is in the log | read on |
//! | no record stands there: compacted, if the id is the stored one; otherwise the topic may be another one | read on; stop |
//! | another record stands there: recreated, or, if the id is the stored one, cut and written again | stop |
//! | the log ends before the stored offset: recreated, or cut | stop |
//! | the log begins after the stored offset | stop, or with `--on-gap continue` read on at its beginning |
//! | the group committed a later offset than is stored: the database went back, as to a backup | warn, read on from the stored offset |

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

/// How long Kafka may take to return the ends of a partition.
const ASK: Duration = Duration::from_secs(10);

/// What to do where retention removed offsets before they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnGap {
    /// Stop, with nothing skipped.
    Fail,
    /// Say which offsets are gone, and go on at the beginning of the log.
    Continue,
}

/// A topic and what identifies it, on assignment of partitions.
pub(crate) struct TopicIdentity<'a> {
    pub(crate) subscription: &'a Subscription,
    pub(crate) lookup: &'a Lookup,
    /// The parts that this consumer stores.
    pub(crate) parts: &'a [Part],
    /// The topic's id now, if the brokers tell it.
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
    /// If it is another one, or does not hold the next offsets: with the numbers and the choices.
    pub(crate) fn recognise(
        &self,
        partitions: &BTreeSet<i32>,
        stored: &[StoredOffset],
    ) -> Result<Recognised, Failure> {
        let topic = self.subscription.topic();
        check_topic_id(topic, self.id, stored, self.place, "--database-url")?;
        if self.id.is_none() || stored.iter().any(|offset| offset.topic_id.is_none()) {
            self.check_partitions(stored)?;
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
                self.check_log(offset, first, end)?;
                if offset.anchor.offset >= first {
                    let known = self.id.is_some() && offset.topic_id.is_some();
                    anchors.insert((partition, offset.anchor.offset), (offset.anchor, known));
                }
            }
        }
        check_anchors(self.lookup, topic, &anchors, self.place, "--database-url")?;
        let committed = self
            .subscription
            .committed(&asked)
            .map_err(Failure::kafka)?;
        self.warn_if_database_went_back(stored, &committed);
        Ok(Recognised { low, committed })
    }

    /// A topic never loses partitions, but one that was recreated may have fewer.
    fn check_partitions(&self, stored: &[StoredOffset]) -> Result<(), Failure> {
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
        Err(needs_attention(format!(
            "{topic} has {}, but {place} has stored its partition {last}: the topic was deleted and made \
             anew, or the database belongs to another topic. Nothing was stored. Give the database of this topic, or an \
             empty one, by --database-url",
            counted(count, "partition")
        )))
    }

    fn check_log(&self, stored: &StoredOffset, low: i64, end: i64) -> Result<(), Failure> {
        let (topic, place) = (self.subscription.topic(), self.place);
        let StoredOffset {
            part,
            partition,
            next_offset,
            ..
        } = *stored;
        let part = part.as_str();
        if next_offset > end {
            return Err(needs_attention(format!(
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
            OnGap::Fail => Err(needs_attention(format!(
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

    fn warn_if_database_went_back(&self, stored: &[StoredOffset], committed: &TopicPartitionList) {
        for element in committed.elements() {
            let partition = element.partition();
            let of_partition = stored.iter().filter(|stored| {
                stored.partition == partition && self.parts.contains(&stored.part)
            });
            let next = of_partition.map(|stored| stored.next_offset).min();
            if let (Some(next), Offset::Offset(committed)) = (next, element.offset())
                && next < committed
            {
                tracing::warn!(
                    topic = self.subscription.topic(),
                    partition,
                    "{} has stored up to {next}, but this group had told Kafka {committed}: the database went back, as to a backup \
                     or a replica that lagged. Reading on from {next}: nothing is lost, but \
                     what became a dead letter between {next} and {committed} becomes one again",
                    self.place
                );
            }
        }
    }
}

/// The topic's id by this answer, or the reason why the brokers do not tell it.
///
/// # Errors
/// [`Failure::Retry`] if there is no topic, or no answer.
pub(crate) fn id_of(
    topic: &str,
    answer: KafkaResult<TopicIdAnswer>,
) -> Result<Result<TopicId, &'static str>, Failure> {
    match answer.map_err(Failure::kafka)? {
        TopicIdAnswer::Id(id) => Ok(Ok(id)),
        TopicIdAnswer::Unavailable { reason } => Ok(Err(reason)),
        TopicIdAnswer::NoSuchTopic => Err(Failure::kafka(format!("there is no topic {topic}"))),
    }
}

/// Compares the topic's id with that of the topic that was stored, where both are known.
///
/// # Errors
/// If it is another one.
pub(crate) fn check_topic_id(
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
        Some(stored) => Err(recreated(topic, &id, stored, place, option)),
    }
}

/// The topic was deleted and recreated: it has this id now, and what is stored came from another.
pub(crate) fn recreated(topic: &str, id: &str, stored: &str, place: &str, option: &str) -> Failure {
    needs_attention(format!(
        "{topic} has the topic id {id}, but {place} was filled from a topic of this name with the id {stored}: the topic was \
         deleted and made anew. Nothing was stored of the new one. Give an empty database by {option}"
    ))
}

/// Compares the records at these partitions and offsets with the anchors stored for them in the database that `option`
/// gives. The flag of each anchor: the topic's id is known to be the stored one.
///
/// # Errors
/// If one is another record, or missing although the id is not known to be the same.
pub(crate) fn check_anchors(
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
        return Err(needs_attention(format!(
            "{topic} partition {partition} has at offset {offset} {}, but {place} stored from there {}: {why}. Nothing was \
             stored. Give the database of this topic, or an empty one, by {option}",
            found.map_or("no record".to_owned(), shown),
            shown(stored),
        )));
    }
    Ok(())
}

/// A failure that an operator has to deal with.
fn needs_attention(message: String) -> Failure {
    Failure::Exit(NeedsAttention(message).into())
}
