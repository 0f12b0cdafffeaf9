//! Rows of `consumed_offset`: how far each part of each partition is stored, and of which topic.

use std::collections::BTreeSet;

use super::StoreError;
use super::session::Row;
use crate::ownership::Owner;
use crate::positions::Anchor;
use crate::rows::Part;

/// The topic, cluster and group of the offsets that a writer stores.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) topic: String,
    pub(crate) cluster_id: String,
    /// `None` if the brokers do not provide it.
    pub(crate) topic_id: Option<String>,
    pub(crate) group_id: String,
}

/// The stored offset of a part of a partition.
#[derive(Clone, Debug)]
pub(crate) struct StoredOffset {
    pub(crate) part: Part,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The first offset ever stored; `None`: unknown, in rows older than the column.
    pub(crate) first_offset: Option<i64>,
    /// The position of a read_committed reader: after the last stored record and the commit markers and aborted records
    /// read after it.
    pub(crate) next_offset: i64,
    /// The last stored record; [`Anchor::NONE`]: none yet.
    pub(crate) anchor: Anchor,
    pub(crate) cluster_id: String,
    /// `None`: unknown.
    pub(crate) topic_id: Option<String>,
    /// The group that stored it last.
    pub(crate) group_id: String,
}

/// The topics and clusters of these offsets.
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

/// A query that returns [`OffsetRow`]s.
pub(super) const SELECT_OFFSETS: &str = "SELECT part, topic, \"partition\", next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, \
     anchor_crc32, group_id, first_offset, topic_id FROM consumed_offset";

/// Converts these rows. Rows of a part that this version does not know are skipped.
///
/// # Errors
/// If a row was altered to impossible values.
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

/// A row of `consumed_offset` of the audited topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldOffset {
    pub(crate) part: Part,
    pub(crate) partition: i32,
    /// The first record ever stored; `None`: unknown.
    pub(crate) first_offset: Option<i64>,
    pub(crate) next_offset: i64,
    pub(crate) cluster_id: String,
    /// `None`: unknown.
    pub(crate) topic_id: Option<String>,
    pub(crate) anchor: Anchor,
}

impl HeldOffset {
    /// Whether the first offset is possible: neither negative nor after the next offset.
    pub(crate) fn is_sound(&self) -> bool {
        let first = self.first_offset.unwrap_or(0);
        (0..=self.next_offset.max(0)).contains(&first)
    }
}

/// `None`: this version does not know the part.
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
/// If it is not a `u32`.
fn stored_crc32(part: Part, partition: i32, crc32: i64) -> Result<u32, StoreError> {
    u32::try_from(crc32).map_err(|_| {
        StoreError::Exit(format!(
            "consumed_offset has the anchor_crc32 {crc32} at part {}, partition {partition}, which is not a CRC-32 (0 to \
             4294967295): it was altered; restore that row",
            part.as_str()
        ))
    })
}
