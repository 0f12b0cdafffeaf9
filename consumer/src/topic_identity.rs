//! Checks that the topic is still the one that the stored offsets came from, and still has the next offsets.
//!
//! | Found | Action |
//! | --- | --- |
//! | the topic has another id (KIP-516) than the stored one, or fewer partitions | stop |
//! | the last stored record is unchanged, and the next offset is in the log | resume |
//! | its offset has no record: compacted, if the id is the stored one; otherwise the topic may be another one | resume; stop |
//! | its offset has another record: recreated, or, if the id is the stored one, truncated and rewritten | stop |
//! | the log ends before the stored offset: recreated, or truncated | stop |
//! | the log begins after the stored offset | stop, or with `--on-gap continue` resume at its beginning |
//! | the group committed a later offset than is stored: the database went back, as to a backup | warn, resume from the stored offset |

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

/// Timeout for Kafka to return a partition's bounds.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

/// What to do if retention removed offsets before they were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnGap {
    /// Stop without skipping anything.
    Fail,
    /// Log which offsets are gone, and continue at the beginning of the log.
    Continue,
}

/// A topic and what identifies it, when partitions are assigned.
pub(crate) struct TopicIdentity<'a> {
    pub(crate) subscription: &'a Subscription,
    pub(crate) lookup: &'a Lookup,
    /// The parts that this consumer stores.
    pub(crate) parts: &'a [Part],
    /// The topic's current id, if the brokers provide it.
    pub(crate) id: Option<TopicId>,
    /// The database, for messages.
    pub(crate) place: &'a str,
    pub(crate) on_gap: OnGap,
}

/// The result of a successful check.
pub(crate) struct Recognised {
    /// The first offset of each partition.
    pub(crate) low: BTreeMap<i32, i64>,
    /// The group's committed offsets.
    pub(crate) committed: TopicPartitionList,
}

impl TopicIdentity<'_> {
    /// Compares the topic with the stored offsets: its id with all of them, its logs with those of this consumer's
    /// parts of these partitions.
    ///
    /// # Errors
    /// If it is another topic, or does not have the next offsets. The error has the numbers and the choices.
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
            let (first, end) =
                blocking(|| consumer.fetch_watermarks(topic, partition, KAFKA_TIMEOUT))
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

    /// A topic never loses partitions, but a recreated one may have fewer.
    fn check_partitions(&self, stored: &[StoredOffset]) -> Result<(), Failure> {
        let (topic, place) = (self.subscription.topic(), self.place);
        let Some(last) = stored.iter().map(|offset| offset.partition).max() else {
            return Ok(());
        };
        let consumer = self.subscription.consumer();
        let metadata = blocking(|| consumer.fetch_metadata(Some(topic), KAFKA_TIMEOUT))
            .map_err(Failure::kafka)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let count = found.map_or(0, |found| found.partitions().len());
        // No partition: the brokers do not know the topic (yet), and nothing is read meanwhile.
        if count == 0 || last < count as i32 {
            return Ok(());
        }
        Err(needs_attention(format!(
            "{topic} has {}, but {place} has stored its partition {last}: the topic was recreated, or the database belongs \
             to another topic. Nothing was stored. Give the database of this topic, or an empty one, by --database-url",
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
                 {next_offset}: the topic was recreated or truncated, or the database belongs to another topic. Nothing was \
                 stored. Give the database of this topic, or an empty one, by --database-url"
            )));
        }
        // (The stored offset of another part is no evidence: it may have begun after the gap, or skipped it.)
        if next_offset >= low {
            return Ok(());
        }
        let removed = low - next_offset;
        match self.on_gap {
            OnGap::Fail => Err(needs_attention(format!(
                "{topic} partition {partition} begins at offset {low}, but {place} has stored its {part} part only up to \
                 {next_offset}: retention removed {} between before they were read. Whether they were records, or only \
                 commit markers and aborted records, can no longer be determined. Nothing was skipped. To continue without \
                 them, start with --on-gap continue",
                counted(removed, "offset")
            ))),
            OnGap::Continue => {
                tracing::error!(
                    topic,
                    partition,
                    part,
                    "gap: retention removed offsets {next_offset} to {low} before they were read, whether records or commit \
                     markers; continuing without them ({}), because of --on-gap continue",
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
                    "{} has stored up to {next}, but this group had committed {committed} to Kafka: the database went back, as to a \
                     backup or a lagging replica. Resuming from {next}: nothing is lost, but dead letters between {next} and \
                     {committed} are written again",
                    self.place
                );
            }
        }
    }
}

/// The topic's id from this answer, or the reason why the brokers do not provide it.
///
/// # Errors
/// [`Failure::Retry`] if the topic does not exist, or there is no answer.
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

/// Compares the topic's id with that of the stored topic, if both are known.
///
/// # Errors
/// If they differ.
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

/// The error for a recreated topic: it has another id than the stored topic.
pub(crate) fn recreated(topic: &str, id: &str, stored: &str, place: &str, option: &str) -> Failure {
    needs_attention(format!(
        "{topic} has the topic id {id}, but {place} was filled from a topic of this name with the id {stored}: the topic was \
         recreated. Nothing of the new topic was stored. Give an empty database by {option}"
    ))
}

/// Compares the records at these partitions and offsets with their stored anchors in the database that `option` names.
/// Each anchor's flag: the topic's id is known to be the stored one.
///
/// # Errors
/// If one is another record, or is missing and the id is not known to be the same.
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
        // In the same topic, compaction has removed it.
        if found == Some(stored) || (found.is_none() && *same_id) {
            continue;
        }
        let (partition, offset) = at;
        let why = match same_id {
            true => {
                "the topic has the same id, so its log was truncated and rewritten, as by an unclean leader election"
            }
            false => {
                "the topic was recreated, or compacted, or the database belongs to another topic"
            }
        };
        return Err(needs_attention(format!(
            "{topic} partition {partition} has {} at offset {offset}, but {place} stored {} from there: {why}. Nothing was \
             stored. Give the database of this topic, or an empty one, by {option}",
            found.map_or("no record".to_owned(), shown),
            shown(stored),
        )));
    }
    Ok(())
}

/// A failure that needs an operator.
fn needs_attention(message: String) -> Failure {
    Failure::Exit(NeedsAttention(message).into())
}
