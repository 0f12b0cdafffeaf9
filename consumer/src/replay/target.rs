//! Whether a database holds a beginning of the range that is to be replayed, and what is left of it.
//!
//! | Found, of a partition | Done |
//! | --- | --- |
//! | what a topic of another id (KIP-516) was stored as | stop |
//! | nothing | replay the range from its start |
//! | it begins with the range's first record, its last record stands where it stood, and it ends inside the range | go on from there |
//! | it begins before an `earliest` that retention has moved on, and the log still has what comes next | go on from there |
//! | anything else: another topic, cluster, group, beginning or end; a partition outside the range | stop |
//! | the log begins after what comes next | stop |

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::bail;
use rdkafka::message::Message;
use service::lookup::Lookup;
use service::range::{Bound, Ranges, Reader};
use service::topic_id::TopicId;
use tokio_util::sync::CancellationToken;

use super::{GROUP, wrong};
use crate::failure::Failure;
use crate::positions::Positions;
use crate::rows::Part;
use crate::store::StoredOffset;
use crate::topic_identity::{check_anchors, check_topic_id};

/// A database, as a replay meets it.
pub(super) struct Target<'a> {
    /// Where it is.
    pub(super) place: &'a str,
    pub(super) topic: &'a str,
    pub(super) cluster_id: &'a str,
    /// The topic's id now, if it is told.
    pub(super) topic_id: Option<TopicId>,
    pub(super) from: &'a Bound,
    /// What the topic holds, up to the end that a committed reader sees.
    pub(super) logs: &'a Ranges,
    /// What is to be replayed in all.
    pub(super) range: &'a Ranges,
    pub(super) stored: &'a [StoredOffset],
}

/// What is stored of a partition: the same of all its parts.
#[derive(Clone, Copy)]
struct Held {
    first: i64,
    next: i64,
}

impl Target<'_> {
    /// What is left to replay of each partition of the range.
    ///
    /// # Errors
    /// If the database holds what is no beginning of it, or the log no longer holds what is left: with
    /// the numbers and what to do. If Kafka does not answer.
    pub(super) fn left(
        &self,
        reader: &Reader,
        lookup: &Lookup,
        stop: &CancellationToken,
    ) -> anyhow::Result<Ranges> {
        self.is_ours()?;
        check_topic_id(self.topic, self.topic_id, self.stored, self.place, "--into")
            .map_err(Failure::into_error)?;
        let held = self.held()?;
        let go_on = self.how_to_go_on(&held);
        for (partition, held) in &held {
            self.ends_inside(*partition, *held, &go_on)?;
        }
        self.is_the_same_topic(lookup)?;
        let mut left = Ranges::new();
        for (&partition, range) in self.range {
            let start = match held.get(&partition) {
                Some(held) => {
                    self.begins_with(partition, *held, reader, stop, &go_on)?;
                    held.next
                }
                None => range.start,
            };
            self.is_in_log(partition, start, held.contains_key(&partition))?;
            left.insert(partition, start..range.end.max(start));
        }
        Ok(left)
    }

    /// What is stored, as the writer has to know it.
    pub(super) fn positions(&self) -> Positions {
        let stored = self.stored.iter();
        stored
            .map(|offset| ((offset.part, offset.partition), offset.next_offset))
            .collect()
    }

    /// Nothing of another cluster, another topic or a consumer.
    fn is_ours(&self) -> anyhow::Result<()> {
        let Self { place, topic, .. } = self;
        for offset in self.stored {
            let (what, theirs, ours) = if offset.cluster_id != self.cluster_id {
                ("the Kafka cluster", &*offset.cluster_id, self.cluster_id)
            } else if offset.topic != *topic {
                ("the topic", &*offset.topic, *topic)
            } else if offset.group_id != GROUP {
                ("the consumer group", &*offset.group_id, GROUP)
            } else {
                continue;
            };
            return Err(wrong(format!(
                "{place} holds what was stored for {what} {theirs}, but this replay is of {ours}. Nothing was stored. Give \
                 an empty database by --into"
            )));
        }
        Ok(())
    }

    /// What is stored of each partition.
    fn held(&self) -> anyhow::Result<BTreeMap<i32, Held>> {
        let partitions: BTreeSet<i32> = self.stored.iter().map(|o| o.partition).collect();
        let mut held = BTreeMap::new();
        for partition in partitions {
            let of_partition = self.stored.iter().filter(|o| o.partition == partition);
            let parts = of_partition.clone().count();
            let offsets: BTreeSet<(Option<i64>, i64)> = of_partition
                .map(|offset| (offset.first_offset, offset.next_offset))
                .collect();
            let mut offsets = offsets.into_iter();
            match (parts == Part::ALL.len(), offsets.next(), offsets.next()) {
                (true, Some((Some(first), next)), None) => {
                    held.insert(partition, Held { first, next });
                }
                _ => {
                    return Err(wrong(format!(
                        "{} holds parts of {} partition {partition} that begin or end unlike one another: no replay stored \
                         them. Nothing was stored now. Give an empty database by --into",
                        self.place, self.topic
                    )));
                }
            }
        }
        Ok(held)
    }

    fn how_to_go_on(&self, held: &BTreeMap<i32, Held>) -> String {
        let firsts = held
            .iter()
            .map(|(partition, held)| (*partition, held.first));
        format!(
            "Nothing was stored. To go on with what it holds give --from {} and a --to behind that; else give an empty \
             database by --into",
            Bound::Offsets(firsts.collect())
        )
    }

    fn ends_inside(&self, partition: i32, held: Held, go_on: &str) -> anyhow::Result<()> {
        let Self { place, topic, .. } = self;
        let Held { first, next } = held;
        let log_end = self.logs.get(&partition).map_or(0, |log| log.end);
        if next > log_end {
            return Err(wrong(format!(
                "{topic} partition {partition} ends at offset {log_end}, but {place} holds its events up to {next}: the \
                 topic was made anew or cut. Nothing was stored. Give an empty database by --into"
            )));
        }
        match self.range.get(&partition) {
            None => Err(wrong(format!(
                "{place} holds {topic} partition {partition}, offsets {first} to {next}, which is no part of the range to \
                 replay. {go_on}"
            ))),
            Some(range) if next > range.end => Err(wrong(format!(
                "{place} holds {topic} partition {partition} up to offset {next}, but the range to replay ends at {}. \
                 {go_on}",
                range.end
            ))),
            Some(_) => Ok(()),
        }
    }

    /// Reads the last stored record of each partition again, where the log still has it.
    fn is_the_same_topic(&self, lookup: &Lookup) -> anyhow::Result<()> {
        let in_log = self.stored.iter().filter(|offset| {
            let log = self.logs.get(&offset.partition);
            log.is_some_and(|log| offset.anchor.offset >= log.start)
        });
        let anchors = in_log
            .map(|offset| {
                let known = self.topic_id.is_some() && offset.topic_id.is_some();
                let at = (offset.partition, offset.anchor.offset);
                (at, (offset.anchor, known))
            })
            .collect();
        check_anchors(lookup, self.topic, &anchors, self.place, "--into")
            .map_err(Failure::into_error)
    }

    /// The database's first record of the partition is the range's.
    fn begins_with(
        &self,
        partition: i32,
        held: Held,
        reader: &Reader,
        stop: &CancellationToken,
        go_on: &str,
    ) -> anyhow::Result<()> {
        let (Some(range), Some(log)) = (self.range.get(&partition), self.logs.get(&partition))
        else {
            return Ok(());
        };
        let (start, first) = (range.start, held.first);
        // What was the earliest at the first start is gone from the log by now, but it is stored.
        if first == start || (first < start && *self.from == Bound::Earliest) {
            return Ok(());
        }
        let missing = if first < start || start < log.start {
            String::new()
        } else {
            // Commit markers and aborted records may stand before the first event.
            match first_record(reader, self.topic, partition, start..first, stop)? {
                None => return Ok(()),
                Some(offset) => format!(" (the event at {offset} would be left out)"),
            }
        };
        Err(wrong(format!(
            "{} holds {} partition {partition} from offset {first} on, but the range to replay begins at {start}{missing}. \
             {go_on}",
            self.place, self.topic
        )))
    }

    /// The log still has what comes next.
    fn is_in_log(&self, partition: i32, next: i64, held: bool) -> anyhow::Result<()> {
        let Self { place, topic, .. } = self;
        let log_start = self.logs.get(&partition).map_or(0, |log| log.start);
        let end = self.range.get(&partition).map_or(0, |range| range.end);
        if next >= log_start || next >= end {
            return Ok(());
        }
        Err(wrong(match held {
            true => format!(
                "{topic} partition {partition} begins at offset {log_start} now, but {place} holds its events up to {next} \
                 only: retention removed those between. Nothing was stored. Start again into an empty database, with \
                 --from {log_start} or later of this partition"
            ),
            false => format!(
                "--from {}: {topic} partition {partition} begins at offset {log_start}, behind offset {next}: retention \
                 removed what was there. Nothing was stored. Give offset {log_start} or a later one",
                self.from
            ),
        }))
    }
}

/// The offset of the first committed record in a range.
fn first_record(
    reader: &Reader,
    topic: &str,
    partition: i32,
    range: Range<i64>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<i64>> {
    let mut found = None;
    let scanned = reader.scan(topic, &[(partition, range)].into(), stop, |record| {
        found = Some(record.offset());
        // Ends the scan.
        bail!("found")
    });
    match found {
        Some(offset) => Ok(Some(offset)),
        None => scanned.map(|()| None),
    }
}
