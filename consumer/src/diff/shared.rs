//! The range that both databases have stored.

use std::ops::Range;

use anyhow::bail;

use super::side::{Side, StoredPart};
use crate::audit::spans::Spans;
use crate::positions::Anchor;

/// The offsets of each part and partition that both databases have stored.
///
/// # Errors
/// If there are none, or the databases are known to come from different topics.
pub(super) fn shared(a: &Side, b: &Side, topic: &str) -> anyhow::Result<Spans> {
    let mut spans = Spans::new();
    for ((part, partition), of_a) in &a.stored {
        let Some(of_b) = b.stored.get(&(*part, *partition)) else {
            continue;
        };
        if of_a.cluster_id != of_b.cluster_id {
            bail!(
                "{topic} partition {partition} is from Kafka cluster {} in A, {}, but from cluster {} in B, {}: they come \
                 from different topics; give two databases of one topic",
                of_a.cluster_id,
                a.place,
                of_b.cluster_id,
                b.place
            );
        }
        if let (Some(id_of_a), Some(id_of_b)) = (&of_a.topic_id, &of_b.topic_id)
            && id_of_a != id_of_b
        {
            bail!(
                "{topic} has the topic id {id_of_a} in A, {}, but {id_of_b} in B, {}: they come from different topics of this \
                 name, one of which was deleted; give two databases of one topic",
                a.place,
                b.place
            );
        }
        let same_record =
            of_a.next_offset == of_b.next_offset || of_a.anchor.offset == of_b.anchor.offset;
        // A partition that begins after the last record has no anchor.
        let known = of_a.anchor != Anchor::NONE && of_b.anchor != Anchor::NONE;
        if known && same_record && of_a.anchor != of_b.anchor {
            let why = match of_a.topic_id.is_some() && of_a.topic_id == of_b.topic_id {
                true => {
                    "the topic id is the same, so the topic was compacted in between, or consumed_offset was altered"
                }
                false => {
                    "they come from different topics, or the topic was recreated in between; give two databases of one topic"
                }
            };
            let record = |side: &Side, stored: &StoredPart| {
                format!(
                    "in {}, {}, at offset {}, with timestamp {} ms and checksum {:08x}",
                    side.name,
                    side.place,
                    stored.anchor.offset,
                    stored.anchor.timestamp_ms,
                    stored.anchor.crc32
                )
            };
            bail!(
                "{topic} partition {partition} is stored up to {} in A and {} in B, part {}, but the last record before that is {}; and {}: \
                 {why}",
                of_a.next_offset,
                of_b.next_offset,
                part.as_str(),
                record(a, of_a),
                record(b, of_b)
            );
        }
        let start = of_a.from.max(of_b.from);
        let end = of_a.next_offset.min(of_b.next_offset).max(start);
        spans.insert((part.table(), *partition), start..end);
    }
    if spans.values().all(Range::is_empty) {
        bail!(
            "no offset of {topic} is stored in both: {}; {}. Give databases with overlapping ranges, for example a longer replay",
            ranges(a),
            ranges(b)
        );
    }
    Ok(spans)
}

/// The stored ranges of a database as text: the first few parts and partitions.
fn ranges(side: &Side) -> String {
    const SHOWN: usize = 6;
    let mut shown: Vec<String> = side
        .stored
        .iter()
        .take(SHOWN)
        .map(|((part, partition), stored)| {
            format!(
                "{} partition {partition} from {} up to {}",
                part.as_str(),
                stored.from,
                stored.next_offset
            )
        })
        .collect();
    if side.stored.len() > SHOWN {
        shown.push(format!("and {} more", side.stored.len() - SHOWN));
    }
    format!("{}, {}, has {}", side.name, side.place, shown.join(", "))
}
