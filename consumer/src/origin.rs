//! Whether the topic is still the one that the stored offsets came from, and holds what comes next.
//!
//! | Found | Done |
//! | --- | --- |
//! | the last stored record stands where it stood, and the next offset is in the log | read on |
//! | another record stands there, or none: the topic was deleted and made anew | stop |
//! | the log ends before the stored offset: made anew, or cut | stop |
//! | the log begins after the stored offset: retention was faster | stop, or with `--on-gap continue` read on at its beginning |
//! | the group told Kafka a later offset than is stored: the database went back, as to a backup | say so, read on from what is stored |

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::exit::NeedsAttention;
use service::lookup::Lookup;
use service::subscription::Subscription;
use service::threads::blocking;

use crate::batch::Anchor;
use crate::run::Trouble;
use crate::store::StoredOffset;

/// How long Kafka may take to tell the ends of a partition.
const ASK: Duration = Duration::from_secs(10);

/// What to do where retention removed events before they were stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnGap {
    /// Stop, with nothing skipped.
    Fail,
    /// Say how much is lost, and go on at the beginning of the log.
    Continue,
}

/// The topic, as a consumer meets it on assignment.
pub(crate) struct Origin<'a> {
    pub(crate) subscription: &'a Subscription,
    pub(crate) lookup: &'a Lookup,
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

impl Origin<'_> {
    /// Compares the topic with what is stored of these partitions.
    ///
    /// # Errors
    /// If it is another one, or does not hold what comes next: with the numbers and the choices.
    pub(crate) fn recognise(
        &self,
        partitions: &BTreeSet<i32>,
        stored: &[StoredOffset],
    ) -> Result<Recognised, Trouble> {
        let topic = self.subscription.topic();
        let mut asked = TopicPartitionList::new();
        let mut low = BTreeMap::new();
        let mut anchors = BTreeMap::new();
        for &partition in partitions {
            asked.add_partition(topic, partition);
            let consumer = self.subscription.consumer();
            let (first, end) = blocking(|| consumer.fetch_watermarks(topic, partition, ASK))
                .map_err(Trouble::kafka)?;
            low.insert(partition, first);
            for offset in stored.iter().filter(|stored| stored.partition == partition) {
                self.is_in_log(offset, first, end)?;
                if offset.anchor.offset >= first {
                    anchors.insert((partition, offset.anchor.offset), offset.anchor);
                }
            }
        }
        are_the_same(self.lookup, topic, &anchors, self.place, "--database-url")?;
        let committed = self
            .subscription
            .committed(&asked)
            .map_err(Trouble::kafka)?;
        self.tell_of_a_step_back(stored, &committed);
        Ok(Recognised { low, committed })
    }

    fn is_in_log(&self, stored: &StoredOffset, low: i64, end: i64) -> Result<(), Trouble> {
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
        if next_offset >= low {
            return Ok(());
        }
        let lost = low - next_offset;
        match self.on_gap {
            OnGap::Fail => Err(stop(format!(
                "{topic} partition {partition} begins at offset {low}, but {place} has stored its {part} part up to \
                 {next_offset} only: retention removed the {lost} offsets between before they were stored. Nothing was \
                 skipped. To go on without them start with --on-gap continue"
            ))),
            OnGap::Continue => {
                tracing::error!(
                    topic,
                    partition,
                    part,
                    "a gap: offsets {next_offset} to {low} were removed by retention before they were stored; going on \
                     without these {lost}, as --on-gap continue says"
                );
                Ok(())
            }
        }
    }

    fn tell_of_a_step_back(&self, stored: &[StoredOffset], committed: &TopicPartitionList) {
        for element in committed.elements() {
            let partition = element.partition();
            let of_partition = stored.iter().filter(|stored| stored.partition == partition);
            let next = of_partition.map(|stored| stored.next_offset).min();
            if let (Some(next), Offset::Offset(told)) = (next, element.offset())
                && next < told
            {
                tracing::warn!(
                    topic = self.subscription.topic(),
                    partition,
                    "{} has stored up to {next}, but this group had told Kafka {told}: the database went back, as to a backup \
                     or a replica that lagged. Reading on from {next}: nothing is lost, and dead letters are not repeated",
                    self.place
                );
            }
        }
    }
}

/// Compares the records at these places (partition, offset) of the topic with what is stored from
/// there in the database, which the option gives.
///
/// # Errors
/// If one is another record, or none.
pub(crate) fn are_the_same(
    lookup: &Lookup,
    topic: &str,
    anchors: &BTreeMap<(i32, i64), Anchor>,
    place: &str,
    option: &str,
) -> Result<(), Trouble> {
    let records = lookup
        .records(anchors.keys().copied())
        .map_err(Trouble::kafka)?;
    let found: BTreeMap<(i32, i64), Anchor> = records
        .iter()
        .map(|record| ((record.partition(), record.offset()), Anchor::of(record)))
        .collect();
    let told = |anchor: &Anchor| {
        format!(
            "a record of timestamp {} ms and checksum {:08x}",
            anchor.timestamp_ms, anchor.crc32
        )
    };
    for (at, stored) in anchors {
        let found = found.get(at);
        if found == Some(stored) {
            continue;
        }
        let (partition, offset) = at;
        return Err(stop(format!(
            "{topic} partition {partition} has at offset {offset} {}, but {place} stored from there {}: the topic was \
             deleted and made anew, or compacted, or the database belongs to another topic. Nothing was stored. Give the \
             database of this topic, or an empty one, by {option}",
            found.map_or("no record".to_owned(), told),
            told(stored),
        )));
    }
    Ok(())
}

fn stop(message: String) -> Trouble {
    Trouble::Lasting(NeedsAttention(message).into())
}
