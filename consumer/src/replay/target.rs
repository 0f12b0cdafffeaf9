//! Decides whether a database holds a beginning of the range to be replayed, and what remains.
//!
//! | Stored for a partition | Action |
//! | --- | --- |
//! | rows of a topic with another id (KIP-516) | stop |
//! | nothing | replay the range from its start |
//! | it begins with the range's first record, its last record is unchanged in the log, and it ends inside the range | resume there |
//! | it begins before an `earliest` that retention has moved forward, and the log still has the next offset | resume there |
//! | anything else: another topic, cluster, group, beginning or end; a partition outside the range | stop |
//! | the log begins after the next offset | stop |

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

/// The database of a replay, and the range to compare it with.
pub(super) struct Target<'a> {
    /// The database, for messages.
    pub(super) place: &'a str,
    pub(super) topic: &'a str,
    pub(super) cluster_id: &'a str,
    /// The topic's current id, if available.
    pub(super) topic_id: Option<TopicId>,
    pub(super) from: &'a Bound,
    /// The logs, up to the end for read_committed readers.
    pub(super) logs: &'a Ranges,
    /// The whole range of the replay.
    pub(super) range: &'a Ranges,
    pub(super) stored: &'a [StoredOffset],
}

/// What is stored of a partition, the same for all its parts.
#[derive(Clone, Copy)]
struct Held {
    first: i64,
    next: i64,
}

impl Target<'_> {
    /// What remains to be replayed of each partition.
    ///
    /// # Errors
    /// If the database holds anything other than a beginning of the range, or the log no longer holds the rest; the
    /// error has the numbers and what to do. If Kafka does not answer.
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

    /// The stored offsets, as the writer's positions.
    pub(super) fn positions(&self) -> Positions {
        let stored = self.stored.iter();
        stored
            .map(|offset| ((offset.part, offset.partition), offset.next_offset))
            .collect()
    }

    /// Checks that nothing is stored of another cluster or topic, or by a consumer.
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
                "{place} was stored for {what} {theirs}, but this replay is of {ours}. Nothing was stored. Give an empty \
                 database by --into"
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
                        "{} holds parts of {} partition {partition} that begin or end at different offsets, so no replay stored \
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
            "Nothing was stored. To continue what it holds, give --from {} and a --to after its end; otherwise give an \
             empty database by --into",
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
                 topic was recreated or truncated. Nothing was stored. Give an empty database by --into"
            )));
        }
        match self.range.get(&partition) {
            None => Err(wrong(format!(
                "{place} holds {topic} partition {partition}, offsets {first} to {next}, which the range to replay does not \
                 include. {go_on}"
            ))),
            Some(range) if next > range.end => Err(wrong(format!(
                "{place} holds {topic} partition {partition} up to offset {next}, but the range to replay ends at {}. \
                 {go_on}",
                range.end
            ))),
            Some(_) => Ok(()),
        }
    }

    /// Compares the last stored record of each partition with the log, if the log still has it.
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

    /// Checks that the partition's first stored record is the first of the range.
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
        // The `earliest` record of the first start may be gone from the log by now, but it is stored.
        if first == start || (first < start && *self.from == Bound::Earliest) {
            return Ok(());
        }
        let missing = if first < start || start < log.start {
            String::new()
        } else {
            // Commit markers and aborted records may precede the first event.
            match first_record(reader, self.topic, partition, start..first, stop)? {
                None => return Ok(()),
                Some(offset) => format!(" (the event at {offset} would be missing)"),
            }
        };
        Err(wrong(format!(
            "{} holds {} partition {partition} from offset {first} on, but the range to replay begins at {start}{missing}. \
             {go_on}",
            self.place, self.topic
        )))
    }

    /// Checks that the log still has the next offset.
    fn is_in_log(&self, partition: i32, next: i64, held: bool) -> anyhow::Result<()> {
        let Self { place, topic, .. } = self;
        let log_start = self.logs.get(&partition).map_or(0, |log| log.start);
        let end = self.range.get(&partition).map_or(0, |range| range.end);
        if next >= log_start || next >= end {
            return Ok(());
        }
        Err(wrong(match held {
            true => format!(
                "{topic} partition {partition} now begins at offset {log_start}, but {place} holds its events only up to \
                 {next}: retention removed those between. Nothing was stored. Start again into an empty database, with \
                 --from {log_start} or later for this partition"
            ),
            false => format!(
                "--from {}: {topic} partition {partition} begins at offset {log_start}, after offset {next}: retention \
                 removed the earlier events. Nothing was stored. Give offset {log_start} or a later one",
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
        // Stops the scan.
        bail!("found")
    });
    match found {
        Some(offset) => Ok(Some(offset)),
        None => scanned.map(|()| None),
    }
}
