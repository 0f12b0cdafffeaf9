//! Checks `consumed_offset`: each row names the last stored record, which the topic must still hold, and a position
//! after it with no record between them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use rdkafka::message::{BorrowedMessage, Message};
use service::exit::NeedsAttention;
use service::range::Ranges;
use tokio::task::block_in_place;

use super::difference::Difference;
use super::finding::{Correction, Fault, Finding, Findings};
use super::fingerprint::Outside;
use super::topic::{Topic, records};
use crate::positions::Anchor;
use crate::rows::Part;
use crate::store::{HeldOffset, Snapshot, Value};
use crate::tables::Table;

/// The table's name.
pub(crate) const TABLE: &str = "consumed_offset";

/// The stored offset of each part and partition.
pub(crate) type StoredOffsets = BTreeMap<(Part, i32), HeldOffset>;

/// Compares the stored offsets with the topic. Returns them corrected.
///
/// # Errors
/// If the topic is not the one that was stored, so that nothing can be compared.
pub(crate) fn check(
    offsets: Vec<HeldOffset>,
    least_rows: &BTreeMap<(Part, i32), i64>,
    cluster_id: &str,
    topic: &Topic<'_>,
    logs: &Ranges,
    findings: &mut Findings,
) -> anyhow::Result<StoredOffsets> {
    let others: BTreeSet<&str> = offsets
        .iter()
        .map(|held| held.cluster_id.as_str())
        .collect();
    if !offsets.is_empty() && !others.contains(cluster_id) {
        return Err(NeedsAttention(format!(
            "the database holds events of the Kafka cluster {}, but this one is {cluster_id}; give another --database-url \
             or --bootstrap-servers",
            others.into_iter().collect::<Vec<_>>().join(", ")
        ))
        .into());
    }
    let other = |held: &&HeldOffset| {
        topic.id.is_some() && held.topic_id.is_some() && held.topic_id != topic.id
    };
    if let Some(held) = offsets.iter().find(other) {
        return Err(NeedsAttention(format!(
            "{} has the topic id {}, but the database was filled from a topic of this name with the id {}: the topic was \
             recreated, so equality cannot be decided",
            topic.name,
            topic.id.as_deref().unwrap_or_default(),
            held.topic_id.as_deref().unwrap_or_default()
        ))
        .into());
    }
    let mut places = BTreeSet::new();
    for held in &offsets {
        places.insert((held.partition, held.anchor.offset));
    }
    places
        .retain(|(partition, offset)| logs.get(partition).is_some_and(|log| log.contains(offset)));
    let records = records(topic, places)?;
    let anchors: BTreeMap<(i32, i64), Anchor> = records
        .iter()
        .map(Anchor::of)
        .zip(&records)
        .map(|(anchor, record)| ((record.partition(), anchor.offset), anchor))
        .collect();
    let skipped = skipped(&offsets, topic, logs)?;
    let sound_firsts: BTreeMap<i32, i64> = offsets
        .iter()
        .filter_map(|held| {
            Some((
                held.partition,
                held.first_offset.filter(|_| held.is_sound())?,
            ))
        })
        .collect();
    let mut stored = StoredOffsets::new();
    for held in offsets {
        let mut right = held.clone();
        right.cluster_id = cluster_id.to_owned();
        let at = |offset: i64| anchors.get(&(held.partition, offset)).copied();
        let recorded = at(held.anchor.offset);
        let low = logs.get(&held.partition).map_or(0, |log| log.start);
        let end = logs
            .get(&held.partition)
            .map_or(held.next_offset, |log| log.end);
        let is_behind = held.next_offset > held.anchor.offset;
        // Past commit markers and aborted records, but not past the read_committed end.
        let follows = held.next_offset == held.anchor.offset.saturating_add(1)
            || (is_behind
                && held.next_offset <= end
                && !skipped.contains_key(&(held.part, held.partition)));
        if follows {
            match recorded {
                Some(recorded) => right.anchor = recorded,
                // A record that retention removed cannot be compared.
                None if held.anchor.offset < low => {}
                // Compaction may have removed it: the topic is the same.
                None if held.topic_id.is_some() && held.topic_id == topic.id => {}
                None => return Err(another_topic(&held, topic, logs)),
            }
            let same_time = right.anchor.timestamp_ms == held.anchor.timestamp_ms;
            let same_value = right.anchor.crc32 == held.anchor.crc32;
            if !same_time && !same_value {
                return Err(another_topic(&held, topic, logs));
            }
        } else if recorded == Some(held.anchor) {
            right.next_offset = held.anchor.offset + 1;
        } else if let Some(behind) = last_before(&held, topic, low..end)?
            && (held.anchor == Anchor::NONE
                || (behind.timestamp_ms == held.anchor.timestamp_ms
                    && behind.crc32 == held.anchor.crc32))
        {
            right.anchor = behind;
        } else {
            return Err(another_topic(&held, topic, logs));
        }
        if !right.is_sound() {
            // The parts of a partition usually begin together, and an event need not have rows of each.
            let of_rows = Part::ALL
                .iter()
                .filter_map(|part| least_rows.get(&(*part, held.partition)).copied())
                .min();
            let first = sound_firsts.get(&held.partition).copied().or(of_rows);
            right.first_offset = Some(first.unwrap_or(low).clamp(0, right.next_offset));
        }
        if let Some(finding) = difference(&held, &right) {
            findings.push(finding);
        }
        stored.insert((right.part, right.partition), right);
    }
    Ok(stored)
}

/// The first record between the anchor and the stored position, by part and partition. There must be none.
fn skipped(
    offsets: &[HeldOffset],
    topic: &Topic<'_>,
    logs: &Ranges,
) -> anyhow::Result<BTreeMap<(Part, i32), i64>> {
    let mut skipped = BTreeMap::new();
    for part in Part::ALL {
        let of_part = offsets.iter().filter(|held| held.part == part);
        let between = of_part.filter_map(|held| {
            let log = logs.get(&held.partition)?;
            let start = held.anchor.offset.saturating_add(1).max(log.start);
            Some((held.partition, start..held.next_offset.min(log.end)))
        });
        let between: Ranges = between.filter(|(_, range)| !range.is_empty()).collect();
        let note = |record: &BorrowedMessage<'_>| {
            let at = (part, record.partition());
            skipped.entry(at).or_insert(record.offset());
            Ok(())
        };
        block_in_place(|| topic.reader.scan(topic.name, &between, topic.stop, note))?;
    }
    Ok(skipped)
}

/// The last record before the stored position, unless it is far before it.
fn last_before(
    held: &HeldOffset,
    topic: &Topic<'_>,
    log: Range<i64>,
) -> anyhow::Result<Option<Anchor>> {
    const FAR: i64 = 1_000;
    let end = held.next_offset.min(log.end);
    let start = end.saturating_sub(FAR).max(log.start);
    let mut last = None;
    let range = Ranges::from([(held.partition, start..end)]);
    let note = |record: &BorrowedMessage<'_>| {
        last = Some(Anchor::of(record));
        Ok(())
    };
    block_in_place(|| topic.reader.scan(topic.name, &range, topic.stop, note))?;
    Ok(last)
}

fn another_topic(held: &HeldOffset, topic: &Topic<'_>, logs: &Ranges) -> anyhow::Error {
    let log = logs.get(&held.partition).cloned().unwrap_or(0..0);
    let why = match held.topic_id.is_some() && held.topic_id == topic.id {
        true => {
            "By its id the topic is the same, so its log was truncated and rewritten, as by an unclean leader election, or \
             consumed_offset was altered"
        }
        false => "The topic was recreated, or this is another database",
    };
    NeedsAttention(format!(
        "{} partition {} is not what was stored: the database holds {} up to offset {}, but the last stored record, at \
         offset {}, is gone or another one (the log goes from {} to {}). {why}; equality cannot be decided",
        topic.name,
        held.partition,
        held.part.as_str(),
        held.next_offset,
        held.anchor.offset,
        log.start,
        log.end
    ))
    .into()
}

/// Finds parts and partitions that have rows but no stored offset: the next consumer would store their events again.
///
/// # Errors
/// If the topic or the database cannot be read.
pub(super) async fn find_missing(
    topic: &Topic<'_>,
    cluster_id: &str,
    snapshot: &mut Snapshot,
    logs: &Ranges,
    stored: &mut StoredOffsets,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    for part in Part::ALL {
        for (&partition, log) in logs {
            if stored.contains_key(&(part, partition)) || log.is_empty() {
                continue;
            }
            let Some(last) = snapshot.last_offset(part, partition).await? else {
                continue;
            };
            let record = records(topic, [(partition, last)])?;
            let Some(anchor) = record.first().map(Anchor::of) else {
                continue; // no event: an extra row
            };
            let first_offset = Part::ALL
                .iter()
                .find_map(|other| stored.get(&(*other, partition))?.first_offset);
            let right = HeldOffset {
                part,
                partition,
                first_offset,
                next_offset: last + 1,
                cluster_id: cluster_id.to_owned(),
                topic_id: Part::ALL
                    .iter()
                    .find_map(|other| stored.get(&(*other, partition))?.topic_id.clone()),
                anchor,
            };
            findings.push(missing(right.clone()));
            stored.insert((part, partition), right);
        }
    }
    Ok(())
}

/// Corrects `first_offset` where rows exist before it. Returns whether it corrected any.
pub(super) fn correct_first(
    logs: &Ranges,
    stored: &mut StoredOffsets,
    outside: &BTreeMap<(Table, i32), Outside>,
    findings: &mut Findings,
) -> bool {
    let mut corrected = false;
    for part in Part::ALL {
        for (&partition, log) in logs {
            let of_table = outside.get(&(part.table(), partition));
            let Some(least) = of_table.and_then(|outside| outside.least) else {
                continue;
            };
            // The parts of a partition usually begin together, and not every event has rows of each.
            let of_others = Part::ALL
                .iter()
                .filter_map(|other| stored.get(&(*other, partition))?.first_offset)
                .filter(|first| *first <= least)
                .max();
            let Some(held) = stored.get_mut(&(part, partition)) else {
                continue;
            };
            if held.first_offset.is_some_and(|first| least < first) && log.contains(&least) {
                let before = held.clone();
                held.first_offset = Some(of_others.unwrap_or(least));
                findings.found.extend(difference(&before, held));
                corrected = true;
            }
        }
    }
    corrected
}

/// Corrects `next_offset` where rows of records exist after it: it went back, and consumers would store them again.
/// Returns whether it corrected any. (A row there without a record is unprovable.)
///
/// # Errors
/// If the topic or the database cannot be read.
pub(super) async fn correct_next(
    topic: &Topic<'_>,
    snapshot: &mut Snapshot,
    logs: &Ranges,
    stored: &mut StoredOffsets,
    outside: &BTreeMap<(Table, i32), Outside>,
    findings: &mut Findings,
) -> anyhow::Result<bool> {
    let mut corrected = false;
    for part in Part::ALL {
        for (&partition, log) in logs {
            let of_table = outside.get(&(part.table(), partition));
            let Some(held) = stored.get_mut(&(part, partition)) else {
                continue;
            };
            if of_table.is_none_or(|outside| outside.behind == 0) {
                continue;
            }
            let last = snapshot.last_offset(part, partition).await?;
            let Some(last) = last.filter(|last| (held.next_offset..log.end).contains(last)) else {
                continue;
            };
            let record = records(topic, [(partition, last)])?;
            let Some(anchor) = record.first().map(Anchor::of) else {
                continue;
            };
            tracing::warn!(
                topic = topic.name,
                partition,
                part = part.as_str(),
                "rows exist after the stored position {}, up to offset {last}: it went back, and consumers would store \
                 them again",
                held.next_offset
            );
            let before = held.clone();
            (held.next_offset, held.anchor) = (last + 1, anchor);
            findings.found.extend(difference(&before, held));
            corrected = true;
        }
    }
    Ok(corrected)
}

/// The wrong columns of a row of `consumed_offset`, as a finding.
fn difference(held: &HeldOffset, right: &HeldOffset) -> Option<Finding> {
    let number = |column, of: fn(&HeldOffset) -> Option<i64>| {
        let (expected, found) = (of(right), of(held));
        (expected != found).then(|| {
            let value = Value::from(expected.unwrap_or_default());
            let difference = Difference {
                column,
                expected: expected.into(),
                found: found.into(),
            };
            (difference, (column, value))
        })
    };
    let cluster = (held.cluster_id != right.cluster_id).then(|| {
        let difference = Difference {
            column: "cluster_id",
            expected: right.cluster_id.clone().into(),
            found: held.cluster_id.clone().into(),
        };
        (
            difference,
            ("cluster_id", Value::from(right.cluster_id.as_str())),
        )
    });
    let (columns, corrections): (Vec<_>, Vec<_>) = [
        number("first_offset", |held| held.first_offset),
        number("next_offset", |held| Some(held.next_offset)),
        cluster,
        number("anchor_offset", |held| Some(held.anchor.offset)),
        number("anchor_timestamp_ms", |held| Some(held.anchor.timestamp_ms)),
        number("anchor_crc32", |held| Some(held.anchor.crc32.into())),
    ]
    .into_iter()
    .flatten()
    .unzip();
    (!columns.is_empty()).then(|| Finding {
        table: TABLE,
        fault: Fault::Differing,
        partition: held.partition,
        offset: right.next_offset,
        exec_id: None,
        part: Some(held.part.as_str()),
        columns,
        correction: Correction::Offset {
            held: Box::new(held.clone()),
            columns: corrections,
        },
    })
}

/// A missing row of `consumed_offset`: its part and partition have rows.
fn missing(right: HeldOffset) -> Finding {
    Finding {
        table: TABLE,
        fault: Fault::Missing,
        partition: right.partition,
        offset: right.next_offset,
        exec_id: None,
        part: Some(right.part.as_str()),
        columns: Vec::new(),
        correction: Correction::NewOffset(Box::new(right)),
    }
}
