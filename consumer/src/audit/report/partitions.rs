//! The result of an audit by partition.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::Digest;

use crate::audit::extent::Extent;
use crate::audit::finding::{Fault, Findings};
use crate::audit::fingerprint::Marks;
use crate::audit::retention::deleted_before;
use crate::audit::spans::hull;
use crate::audit::sums::Sums;
use crate::positions::Anchor;
use crate::tables::Table;
use service::text::hex;

/// The result for one partition.
#[derive(Debug, Serialize)]
pub(in crate::audit) struct PartitionReport {
    pub(super) partition: i32,
    /// Offsets that the topic holds now.
    pub(super) log_start: i64,
    pub(super) log_end: i64,
    /// Offsets that were compared.
    pub(super) from: i64,
    pub(super) to: i64,
    /// Records visible to read_committed consumers.
    pub(super) events: u64,
    /// Those of them that nobody can read, so that they have no rows; and how many of those have a dead letter.
    pub(super) unreadable: u64,
    pub(super) unreadable_with_letter: u64,
    /// Those of them whose rows the database refused, each with its dead letter.
    pub(super) refused_with_letter: u64,
    /// Offsets of records in aborted transactions.
    pub(super) aborted: u64,
    /// Offsets without any record: transaction markers.
    pub(super) markers: u64,
    /// The last stored record, by which the topic is recognised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_record: Option<LastRecord>,
    pub(super) tables: BTreeMap<&'static str, TableReport>,
}

/// A record that distinguishes a topic from one recreated under the same name.
#[derive(Debug, Serialize)]
pub(super) struct LastRecord {
    pub(super) offset: i64,
    pub(super) timestamp_ms: i64,
    /// CRC-32 (IEEE) of its value, in hexadecimal.
    pub(super) crc32: String,
}

impl From<Anchor> for LastRecord {
    fn from(anchor: Anchor) -> Self {
        Self {
            offset: anchor.offset,
            timestamp_ms: anchor.timestamp_ms,
            crc32: format!("{:08x}", anchor.crc32),
        }
    }
}

/// The result for one table and partition.
#[derive(Debug, Serialize)]
pub(in crate::audit) struct TableReport {
    pub(super) from: Option<i64>,
    pub(super) to: Option<i64>,
    pub(super) rows_of_topic: u64,
    pub(super) rows_of_table: u64,
    pub(super) missing: u64,
    pub(super) extra: u64,
    pub(super) differing: u64,
    /// Rows at offsets without a record.
    pub(super) unprovable: u64,
    /// Those of them before the start of the log: retention has deleted their events.
    pub(super) deleted: u64,
    /// Rows that the topic expects but that were not compared: `consumer expire` removes them.
    pub(super) expired: u64,
    /// Rows that the topic expects and the table lacks because their events have dead letters.
    pub(super) refused: u64,
    /// Digest of the rows; present only if the topic and the table agree.
    pub(super) sha256: Option<String>,
    /// What the digest of the whole report contains for these rows: the digest of those that the topic expects, and
    /// which of them the table lacks because their events have dead letters.
    #[serde(skip)]
    pub(super) proven: Option<String>,
}

/// Collects the results of each partition of the log.
pub(in crate::audit) fn partition_reports(
    extent: &Extent,
    sums: &Sums,
    dead_lettered: &Marks,
    findings: &Findings,
) -> Vec<PartitionReport> {
    let counts = findings.counts();
    let hull = hull(&extent.spans);
    let mut partitions = Vec::new();
    for (&partition, log) in &extent.logs {
        let span = hull.get(&partition).cloned().unwrap_or(log.end..log.end);
        let events = sums.events.get(&partition).copied().unwrap_or(0);
        let aborted = sums.aborted.get(&partition).copied().unwrap_or(0);
        let mut of_tables = BTreeMap::new();
        for table in Table::ALL {
            let at = (table, partition);
            let fault = |fault| {
                counts
                    .get(&(table.name(), fault, partition))
                    .copied()
                    .unwrap_or(0)
            };
            let outside = sums.outside.get(&at).copied().unwrap_or_default();
            let span = extent.spans.get(&at);
            let taken = span.is_some_and(|span| deleted_before(span.start, log.start));
            let digest = sums.digests.get(&at);
            let faults = [
                Fault::Missing,
                Fault::Extra,
                Fault::Differing,
                Fault::Unprovable,
            ];
            let deleted = if taken { outside.before } else { 0 };
            let is_equal = faults.into_iter().all(|it| fault(it) == 0);
            let set_aside = findings.set_aside_rows.get(&at);
            let of_table = TableReport {
                from: span.map(|span| span.start),
                to: span.map(|span| span.end),
                rows_of_topic: digest.map_or(0, |digest| digest.rows),
                rows_of_table: sums.stored_rows.get(&at).copied().unwrap_or(0),
                missing: fault(Fault::Missing),
                extra: fault(Fault::Extra),
                differing: fault(Fault::Differing),
                unprovable: fault(Fault::Unprovable) + deleted,
                deleted,
                expired: digest.map_or(0, |digest| digest.expired),
                refused: set_aside.map_or(0, |(rows, _)| *rows),
                sha256: digest
                    .filter(|_| is_equal && set_aside.is_none())
                    .map(|digest| digest.sha256.clone()),
                proven: digest.map(|digest| match set_aside {
                    None => digest.sha256.clone(),
                    Some((rows, of_rows)) => {
                        let without = hex(&of_rows.clone().finalize());
                        format!("{} without {rows} {without}", digest.sha256)
                    }
                }),
            };
            if span.is_some() || !is_equal {
                of_tables.insert(table.name(), of_table);
            }
        }
        let offsets = (span.end - span.start).max(0) as u64;
        partitions.push(PartitionReport {
            partition,
            log_start: log.start,
            log_end: log.end,
            from: span.start,
            to: span.end,
            events,
            unreadable: sums.unreadable_count.get(&partition).copied().unwrap_or(0),
            unreadable_with_letter: sums.unreadable.count_both(dead_lettered, partition),
            refused_with_letter: findings
                .set_aside
                .count_both(&findings.set_aside, partition),
            aborted,
            markers: offsets.saturating_sub(events + aborted),
            last_record: extent
                .stored
                .iter()
                .filter(|((_, of), _)| *of == partition)
                .map(|(_, held)| held.anchor)
                .max_by_key(|anchor| anchor.offset)
                .map(Into::into),
            tables: of_tables,
        });
    }
    partitions
}
