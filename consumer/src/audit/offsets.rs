//! Whether `consumed_offset` says what it must: each row names the last record that was stored, which
//! stands in the topic, and the offset behind it.

use std::collections::{BTreeMap, BTreeSet};

use service::exit::NeedsAttention;
use service::range::Ranges;

use super::compare::{Cure, Fault, Finding, Findings, OffsetValue};
use super::said::{self, Topic};
use super::table::Difference;
use crate::batch::Anchor;
use crate::rows::Part;
use crate::store::HeldOffset;

/// The table's name.
pub(crate) const TABLE: &str = "consumed_offset";

/// How far each part of each partition is stored, as far as that can be told.
pub(crate) type Stored = BTreeMap<(Part, i32), HeldOffset>;

/// Compares the stored offsets with the topic. Gives them as they should be.
///
/// # Errors
/// If the topic is not the one that was stored: nothing can be told then.
pub(crate) fn check(
    offsets: Vec<HeldOffset>,
    cluster_id: &str,
    topic: &Topic<'_>,
    logs: &Ranges,
    findings: &mut Findings,
) -> anyhow::Result<Stored> {
    let others: BTreeSet<&str> = offsets
        .iter()
        .map(|held| held.cluster_id.as_str())
        .collect();
    if !offsets.is_empty() && !others.contains(cluster_id) {
        return Err(NeedsAttention(format!(
            "the database holds events of the Kafka cluster {}, and this one is {cluster_id}; give another --database-url \
             or --bootstrap-servers",
            others.into_iter().collect::<Vec<_>>().join(", ")
        ))
        .into());
    }
    let mut places = BTreeSet::new();
    for held in &offsets {
        places.insert((held.partition, held.anchor.offset));
        places.insert((held.partition, held.next_offset - 1));
    }
    places
        .retain(|(partition, offset)| logs.get(partition).is_some_and(|log| log.contains(offset)));
    let records = said::records(topic, places)?;
    let anchors: BTreeMap<(i32, i64), Anchor> = records
        .iter()
        .map(Anchor::of)
        .zip(&records)
        .map(|(anchor, record)| ((rdkafka::Message::partition(record), anchor.offset), anchor))
        .collect();
    let mut stored = Stored::new();
    for held in offsets {
        let mut right = held.clone();
        right.cluster_id = cluster_id.to_owned();
        let at = |offset: i64| anchors.get(&(held.partition, offset)).copied();
        let said = at(held.anchor.offset);
        let low = logs.get(&held.partition).map_or(0, |log| log.start);
        if held.next_offset == held.anchor.offset + 1 {
            match said {
                Some(said) => right.anchor = said,
                // What retention took cannot be compared.
                None if held.anchor.offset < low => {}
                None => return Err(made_anew(&held, topic.name, logs)),
            }
            let same_time = right.anchor.timestamp_ms == held.anchor.timestamp_ms;
            let same_value = right.anchor.crc32 == held.anchor.crc32;
            if !same_time && !same_value {
                return Err(made_anew(&held, topic.name, logs));
            }
        } else if said == Some(held.anchor) {
            right.next_offset = held.anchor.offset + 1;
        } else if let Some(behind) = at(held.next_offset - 1)
            && behind.timestamp_ms == held.anchor.timestamp_ms
            && behind.crc32 == held.anchor.crc32
        {
            right.anchor = behind;
        } else {
            return Err(made_anew(&held, topic.name, logs));
        }
        if let Some(finding) = difference(&held, &right) {
            findings.push(finding);
        }
        stored.insert((right.part, right.partition), right);
    }
    Ok(stored)
}

fn made_anew(held: &HeldOffset, topic: &str, logs: &Ranges) -> anyhow::Error {
    let log = logs.get(&held.partition).cloned().unwrap_or(0..0);
    NeedsAttention(format!(
        "{topic} partition {} is not what was stored: the database holds {} up to offset {}, and the last record stored, \
         at offset {}, is another one now or gone (the log goes from {} to {}). The topic was made anew, or this is another \
         database; nothing can be told about equality",
        held.partition,
        held.part.as_str(),
        held.next_offset,
        held.anchor.offset,
        log.start,
        log.end
    ))
    .into()
}

/// What a row of `consumed_offset` has that it should not.
pub(crate) fn difference(held: &HeldOffset, right: &HeldOffset) -> Option<Finding> {
    let number = |column, of: fn(&HeldOffset) -> Option<i64>| {
        let (expected, found) = (of(right), of(held));
        (expected != found).then(|| {
            let value = OffsetValue::Number(expected.unwrap_or_default());
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
            ("cluster_id", OffsetValue::Text(right.cluster_id.clone())),
        )
    });
    let (columns, cures): (Vec<_>, Vec<_>) = [
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
        cure: Cure::Offset {
            part: held.part,
            columns: cures,
            new: None,
        },
    })
}

/// A row that is gone, though rows of its part and partition are there.
pub(crate) fn missing(right: HeldOffset) -> Finding {
    Finding {
        table: TABLE,
        fault: Fault::Missing,
        partition: right.partition,
        offset: right.next_offset,
        exec_id: None,
        part: Some(right.part.as_str()),
        columns: Vec::new(),
        cure: Cure::Offset {
            part: right.part,
            columns: Vec::new(),
            new: Some(Box::new(right)),
        },
    }
}
