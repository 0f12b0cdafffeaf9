//! The report of an audit: its values. The submodules print it and write it to files.

mod files;
mod partitions;
mod text;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemas::{EVENT_VERSIONS, INFO_VERSIONS, Version};
use serde::Serialize;
use service::range::Bound;
use service::text::hex;
use service::words::counted;
use sha2::{Digest, Sha256};

use super::backlog::NotStored;
use super::config::Config;
use super::expected::Unreadable;
use super::finding::{Fault, Finding, Findings};
use super::topic::Topic;
use super::verdict::Verdict;

pub(super) use files::check;
pub(super) use partitions::{PartitionReport, partition_reports};

/// The result of an audit.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) verdict: Verdict,
    /// Why the tables could not be proven equal.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    doubts: Vec<String>,
    /// Covers all digests below: two audits of the same range with the same digest proved the same rows. Present only
    /// if the verdict is equal.
    digest: Option<String>,
    /// What the topic had and the database had not stored when the audit began.
    pub(super) not_stored: NotStored,
    made_at: Timestamp,
    program: &'static str,
    version: &'static str,
    cluster_id: String,
    topic: String,
    database: String,
    /// `consumer expire` removed what was reported before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    expired_before: Option<Timestamp>,
    /// As given on the command line.
    from: String,
    to: String,
    /// Fingerprints (CRC-64-AVRO) of the schema versions that this program reads.
    schemas: BTreeMap<&'static str, Vec<String>>,
    partitions: Vec<PartitionReport>,
    totals: Totals,
    counts: Vec<Count>,
    /// Those kept in memory; `counts` covers all.
    findings: Vec<Finding>,
    /// The first ones.
    unreadable: Vec<Unreadable>,
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    events: u64,
    rows: u64,
    missing: u64,
    extra: u64,
    differing: u64,
    /// Rows whose event is no longer in the topic, for any reason.
    unprovable: u64,
    /// Those of them before the logs' starts.
    deleted: u64,
    expired: u64,
    /// Rows missing because their events have dead letters.
    refused: u64,
    unreadable: u64,
    unreadable_without_letter: u64,
}

/// The number of findings of one fault in one table and partition.
#[derive(Debug, Serialize)]
struct Count {
    table: &'static str,
    fault: Fault,
    partition: i32,
    count: u64,
}

impl Report {
    pub(super) fn new(
        topic: &Topic<'_>,
        config: &Config,
        cluster_id: &str,
        database: String,
        partitions: Vec<PartitionReport>,
        unreadable: Vec<Unreadable>,
        findings: &Findings,
    ) -> Self {
        let counts: Vec<Count> = findings
            .counts()
            .into_iter()
            .map(|((table, fault, partition), count)| Count {
                table,
                fault,
                partition,
                count,
            })
            .collect();
        let of = |fault| {
            let counts = counts.iter().filter(|count| count.fault == fault);
            counts.map(|count| count.count).sum()
        };
        let mut totals = Totals {
            missing: of(Fault::Missing),
            extra: of(Fault::Extra),
            differing: of(Fault::Differing),
            unprovable: of(Fault::Unprovable),
            ..Totals::default()
        };
        for partition in &partitions {
            totals.events += partition.events;
            totals.unreadable += partition.unreadable;
            totals.unreadable_without_letter +=
                partition.unreadable - partition.unreadable_with_letter;
            for table in partition.tables.values() {
                totals.rows += table.rows_of_topic;
                totals.unprovable += table.deleted; // the others are counted with the findings
                totals.deleted += table.deleted;
                totals.expired += table.expired;
                totals.refused += table.refused;
            }
        }
        let fingerprints = |versions: &[Version]| {
            let fingerprints = versions.iter().map(|version| version.fingerprint);
            fingerprints.map(|print| format!("{print:016x}")).collect()
        };
        Self {
            verdict: Verdict::Equal,
            doubts: Vec::new(),
            digest: None,
            not_stored: NotStored::default(),
            made_at: Timestamp::now(),
            program: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            cluster_id: cluster_id.to_owned(),
            topic: topic.name.to_owned(),
            database,
            expired_before: topic.expired_before,
            from: (config.from.as_ref()).map_or("all".to_owned(), Bound::to_string),
            to: config.to.to_string(),
            schemas: [
                ("TaskRunningInfo", fingerprints(INFO_VERSIONS)),
                ("TaskRunningInfoEvent", fingerprints(EVENT_VERSIONS)),
            ]
            .into(),
            partitions,
            totals,
            counts,
            findings: findings.found.clone(),
            unreadable,
        }
    }

    /// Decides the verdict. `doubts` are reasons why the tables cannot be proven equal; the report adds its own.
    pub(super) fn judge(&mut self, mut doubts: Vec<String>) {
        let Totals {
            events,
            missing,
            extra,
            differing,
            unprovable,
            deleted,
            ..
        } = self.totals;
        let topic = &self.topic;
        if events == 0 {
            doubts.push(format!("no event of {topic} was compared"));
        }
        if deleted > 0 {
            doubts.push(format!(
                "retention has deleted the events of {} from {topic}; --from earliest compares what it still has",
                counted(deleted, "row")
            ));
        }
        if unprovable > deleted {
            doubts.push(format!(
                "{topic} has no record at the offsets of {}: either compaction or a deletion removed their events, or \
                 somebody added these rows; no repair removes them",
                counted(unprovable - deleted, "row")
            ));
        }
        self.doubts = doubts;
        self.verdict = if missing + extra + differing > 0 {
            Verdict::Unequal
        } else if self.doubts.is_empty() {
            Verdict::Equal
        } else {
            Verdict::Unproven
        };
        if self.verdict == Verdict::Equal {
            self.digest = Some(digest(&self.partitions));
        }
    }

    /// The doubts, if the verdict depends on them.
    pub(super) fn reasons(&self) -> Option<String> {
        (self.verdict == Verdict::Unproven).then(|| self.doubts.join("; "))
    }

    /// The number of rows that a repair would remove, and the number of compared rows that it would keep.
    pub(super) fn removed_and_kept(&self) -> (u64, u64) {
        let tables = self.partitions.iter().flat_map(|it| it.tables.values());
        let held: u64 = tables.map(|table| table.rows_of_table).sum();
        (self.totals.extra, held.saturating_sub(self.totals.extra))
    }

    /// The first findings, and the number of further ones.
    fn first(&self, limit: usize) -> (&[Finding], u64) {
        let count = match limit {
            0 => self.findings.len(),
            limit => limit.min(self.findings.len()),
        };
        let all: u64 = self.counts.iter().map(|count| count.count).sum();
        (&self.findings[..count], all - count as u64)
    }
}

/// SHA-256, in hexadecimal, of one line per table and partition: its name, partition, offsets, rows and digest,
/// separated by spaces. If rows are missing because of dead letters, `without`, their number and their digest follow.
fn digest(partitions: &[PartitionReport]) -> String {
    let mut all = Sha256::new();
    for partition in partitions {
        for (name, table) in &partition.tables {
            if let (Some(from), Some(to), Some(proven)) = (table.from, table.to, &table.proven) {
                let line = format!(
                    "{name} {} {from} {to} {} {proven}\n",
                    partition.partition, table.rows_of_topic
                );
                all.update(line);
            }
        }
    }
    hex(&all.finalize())
}
