//! Rows of `consumed_offset`: how far each part of each partition is stored, and of which topic.

use std::collections::BTreeSet;

use super::StoreError;
use super::session::Row;
use crate::ownership::Owner;
use crate::positions::Anchor;
use crate::rows::Part;

/// Whose offsets are stored.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) topic: String,
    pub(crate) cluster_id: String,
    /// `None` where the brokers give none.
    pub(crate) topic_id: Option<String>,
    pub(crate) group_id: String,
}

/// How far a part of a partition is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredOffset {
    pub(crate) part: Part,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The first offset ever stored; `None`: not known, of rows that are older than the column.
    pub(crate) first_offset: Option<i64>,
    /// The position of a committed reader: behind the last record stored, and behind the commit markers and
    /// aborted records that were read after it.
    pub(crate) next_offset: i64,
    /// The last record stored; [`Anchor::NONE`]: none yet.
    pub(crate) anchor: Anchor,
    pub(crate) cluster_id: String,
    /// `None`: not known.
    pub(crate) topic_id: Option<String>,
    /// Who stored it last.
    pub(crate) group_id: String,
}

/// Which topics and clusters these offsets are of.
pub(crate) fn owners(stored: &[StoredOffset]) -> BTreeSet<Owner> {
    let owner = |offset: &StoredOffset| (offset.topic.clone(), offset.cluster_id.clone());
    stored.iter().map(owner).collect()
}

/// A row of `consumed_offset`: part, topic, partition, next offset, cluster id, the anchor's offset,
/// timestamp and checksum, group id, first offset, topic id.
pub(super) type OffsetRow = (
    String,
    String,
    i32,
    i64,
    String,
    i64,
    i64,
    i64,
    String,
    Option<i64>,
    Option<String>,
);

/// Gives [`OffsetRow`]s.
pub(super) const SELECT_OFFSETS: &str = "SELECT part, topic, partition, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, \
     anchor_crc32, group_id, first_offset, topic_id FROM consumed_offset";

/// The offsets of these rows. Those of a part that this version does not know are left out.
///
/// # Errors
/// If one was altered to what none can be.
pub(super) fn stored_offsets(rows: Vec<OffsetRow>) -> Result<Vec<StoredOffset>, StoreError> {
    let known = rows.into_iter().filter_map(|row| {
        let (
            part,
            topic,
            partition,
            next_offset,
            cluster_id,
            offset,
            timestamp_ms,
            crc32,
            group_id,
            first_offset,
            topic_id,
        ) = row;
        let part = part_of(&part)?;
        Some(
            stored_crc32(part, partition, crc32).map(|crc32| StoredOffset {
                part,
                topic,
                partition,
                first_offset,
                next_offset,
                anchor: Anchor {
                    offset,
                    timestamp_ms,
                    crc32,
                },
                cluster_id,
                topic_id,
                group_id,
            }),
        )
    });
    known.collect()
}

/// A row of `consumed_offset`, of the audited topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldOffset {
    pub(crate) part: Part,
    pub(crate) partition: i32,
    /// The first record ever stored; `None`: not known.
    pub(crate) first_offset: Option<i64>,
    pub(crate) next_offset: i64,
    pub(crate) cluster_id: String,
    /// `None`: not known.
    pub(crate) topic_id: Option<String>,
    pub(crate) anchor: Anchor,
}

impl HeldOffset {
    /// Whether the first offset can be one: none is below 0 or behind the next.
    pub(crate) fn is_sound(&self) -> bool {
        let first = self.first_offset.unwrap_or(0);
        (0..=self.next_offset.max(0)).contains(&first)
    }
}

/// `None`: of a part that this version does not know.
pub(super) fn held_offset(mut row: Row) -> Result<Option<HeldOffset>, StoreError> {
    let Some(part) = part_of(&row.take::<String>("part")?) else {
        return Ok(None);
    };
    let partition = row.take("partition")?;
    Ok(Some(HeldOffset {
        part,
        partition,
        first_offset: row.take("first_offset")?,
        next_offset: row.take("next_offset")?,
        cluster_id: row.take("cluster_id")?,
        topic_id: row.take("topic_id")?,
        anchor: Anchor {
            offset: row.take("anchor_offset")?,
            timestamp_ms: row.take("anchor_timestamp_ms")?,
            crc32: stored_crc32(part, partition, row.take("anchor_crc32")?)?,
        },
    }))
}

fn part_of(name: &str) -> Option<Part> {
    Part::ALL.into_iter().find(|part| part.as_str() == name)
}

/// The checksum of a stored anchor, which is written from a `u32`.
///
/// # Errors
/// If it is none.
fn stored_crc32(part: Part, partition: i32, crc32: i64) -> Result<u32, StoreError> {
    u32::try_from(crc32).map_err(|_| {
        StoreError::Exit(format!(
            "consumed_offset has the anchor_crc32 {crc32} at part {}, partition {partition}, which is no CRC-32 (0 to \
             4294967295): it was altered; restore that row",
            part.as_str()
        ))
    })
}
