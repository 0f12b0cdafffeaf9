//! What is written in one database transaction: the rows of many events, and how far they reach.

use std::collections::{BTreeMap, HashMap};

use crate::rows::{Part, Rows};

/// The next offset of each part and partition, as the database has it; absent where nothing of the
/// partition is stored yet.
pub(crate) type Positions = HashMap<(Part, i32), i64>;

/// The last record read of a partition: with it a topic can be recognised later on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) offset: i64,
    /// -1 when the record has none.
    pub(crate) timestamp_ms: i64,
    /// CRC-32 (IEEE) of the value; that of no bytes when it has none.
    pub(crate) crc32: u32,
}

/// One step of a partition's stored offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advance {
    pub(crate) part: Part,
    pub(crate) partition: i32,
    /// The offset that must still be stored; `None`: none may be.
    pub(crate) expected: Option<i64>,
    pub(crate) next: i64,
    pub(crate) anchor: Anchor,
}

/// The batch.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) rows: Vec<Rows>,
    last_read: BTreeMap<i32, Anchor>,
    /// Sum of the records' values.
    pub(crate) bytes: usize,
    pub(crate) records: usize,
}

impl Batch {
    /// Takes a record in; `rows` is `None` for one that became a dead letter.
    pub(crate) fn push(
        &mut self,
        partition: i32,
        anchor: Anchor,
        bytes: usize,
        rows: Option<Rows>,
    ) {
        self.last_read.insert(partition, anchor);
        self.bytes += bytes;
        self.records += 1;
        self.rows.extend(rows);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The next offset to read of each partition.
    pub(crate) fn next_offsets(&self) -> BTreeMap<i32, i64> {
        self.last_read
            .iter()
            .map(|(partition, anchor)| (*partition, anchor.offset + 1))
            .collect()
    }

    /// The steps from `positions` to the end of this batch, in a fixed order: whoever takes locks
    /// in the same order cannot deadlock.
    pub(crate) fn advances(&self, parts: &[Part], positions: &Positions) -> Vec<Advance> {
        let mut advances = Vec::new();
        for (&partition, &anchor) in &self.last_read {
            for &part in parts {
                let expected = positions.get(&(part, partition)).copied();
                let next = anchor.offset + 1;
                if expected.is_none_or(|stored| stored < next) {
                    advances.push(Advance {
                        part,
                        partition,
                        expected,
                        next,
                        anchor,
                    });
                }
            }
        }
        advances
    }

    /// The events whose rows of `part` are not stored yet.
    pub(crate) fn unstored<'a>(
        &'a self,
        part: Part,
        positions: &'a Positions,
    ) -> impl Iterator<Item = &'a Rows> {
        self.rows.iter().filter(move |rows| {
            positions
                .get(&(part, rows.partition))
                .is_none_or(|stored| rows.offset >= *stored)
        })
    }

    /// Of each task the event that tells its newest state, by execId.
    pub(crate) fn newest(&self) -> BTreeMap<&str, &Rows> {
        let mut newest: BTreeMap<&str, &Rows> = BTreeMap::new();
        for rows in &self.rows {
            let held = newest.entry(&rows.task.exec_id).or_insert(rows);
            if rows.rank() > held.rank() {
                *held = rows;
            }
        }
        newest
    }
}
