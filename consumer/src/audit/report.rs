//! What an audit found: for a person, a program, or an auditor's file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use askama::Template;
use comfy_table::CellAlignment;
use jiff::Timestamp;
use schemas::{EVENT_VERSIONS, INFO_VERSIONS, Version};
use serde::Serialize;
use service::output;
use service::range::Bound;
use service::text::{shown, shown_lines, to_json_pretty};
use service::words::{agreed, counted};
use sha2::{Digest, Sha256};

use super::compare::{Fault, Finding, Findings};
use super::said::{Unreadable, hex};
use super::{Auditor, report_file};
use crate::grid;
use crate::positions::Anchor;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The tables hold what the topic says, no more and no less.
    Equal,
    /// They do not.
    Unequal,
    /// Nothing is wrong, but not all that was asked for can be told.
    Unproven,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Unequal => "unequal",
            Self::Unproven => "unproven",
        }
    }
}

/// All that an audit has to tell.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(super) verdict: Verdict,
    /// Why nothing more can be told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    doubts: Vec<String>,
    /// Stands for all digests below: two audits of the same range that have the same one proved the
    /// same rows. Only where they are equal.
    digest: Option<String>,
    /// What the topic has and the database had not stored when the audit began.
    pub(super) not_stored: NotStored,
    made_at: Timestamp,
    program: &'static str,
    version: &'static str,
    cluster_id: String,
    topic: String,
    database: String,
    /// Up to when history was removed from the database by order.
    #[serde(skip_serializing_if = "Option::is_none")]
    expired_before: Option<Timestamp>,
    /// As asked.
    from: String,
    to: String,
    /// Fingerprints (CRC-64-AVRO) of the schema versions that this program reads.
    schemas: BTreeMap<&'static str, Vec<String>>,
    partitions: Vec<PartitionReport>,
    totals: Totals,
    counts: Vec<Count>,
    /// Those that are held; `counts` has all.
    findings: Vec<Finding>,
    /// The first few.
    unreadable: Vec<Unreadable>,
}

/// Events that are not stored yet.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct NotStored {
    /// Offsets up to the end that committed readers see; transaction markers take some of them.
    pub(super) offsets: u64,
    /// `None`: not counted, since there are many.
    pub(super) events: Option<u64>,
}

impl std::fmt::Display for NotStored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.events {
            Some(events) => f.write_str(&counted(events, "event")),
            None => write!(f, "up to {}", counted(self.offsets, "event")),
        }
    }
}

/// What was found in one partition.
#[derive(Debug, Serialize)]
pub(crate) struct PartitionReport {
    pub(super) partition: i32,
    /// Offsets that the topic holds now.
    pub(super) log_start: i64,
    pub(super) log_end: i64,
    /// Offsets that were compared.
    pub(super) from: i64,
    pub(super) to: i64,
    /// Records that a committed reader sees.
    pub(super) events: u64,
    /// Of these, without rows since nobody can read them; and how many of those have a dead letter.
    pub(super) unreadable: u64,
    pub(super) unreadable_with_letter: u64,
    /// Of these, without rows since the database refused them, each with its dead letter.
    pub(super) refused_with_letter: u64,
    /// Offsets of records in aborted transactions.
    pub(super) aborted: u64,
    /// Offsets without any record: the ends of transactions.
    pub(super) markers: u64,
    /// What the topic is recognised by: the last record that is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_record: Option<LastRecord>,
    pub(super) tables: BTreeMap<&'static str, TableReport>,
}

/// A record by which a topic can be told from one made anew.
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

/// One table's rows of a partition.
#[derive(Debug, Serialize)]
pub(crate) struct TableReport {
    pub(super) from: Option<i64>,
    pub(super) to: Option<i64>,
    pub(super) rows_of_topic: u64,
    pub(super) rows_of_table: u64,
    pub(super) missing: u64,
    pub(super) extra: u64,
    pub(super) differing: u64,
    /// Rows at offsets where the topic has no record (any more).
    pub(super) unprovable: u64,
    /// Of these, those before the log's start, which retention has deleted.
    pub(super) deleted: u64,
    /// Rows that the topic says and that were not looked for: removed by order (`consumer expire`).
    pub(super) expired: u64,
    /// Rows that the topic says and the table lacks: those of events that have dead letters.
    pub(super) refused: u64,
    /// Of the rows that the topic says and the table holds; only where they are equal.
    pub(super) sha256: Option<String>,
    /// What stands for the rows in the digest of all: the digest of those that the topic says, and what the table
    /// lacks of them by dead letters.
    #[serde(skip)]
    pub(super) proven: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    events: u64,
    rows: u64,
    missing: u64,
    extra: u64,
    differing: u64,
    /// Rows whose event is not in the topic any more, whatever took it.
    unprovable: u64,
    /// Of these, those before the logs' starts.
    deleted: u64,
    expired: u64,
    /// Rows of events that have dead letters instead.
    refused: u64,
    unreadable: u64,
    unreadable_without_letter: u64,
}

/// How often something was found.
#[derive(Debug, Serialize)]
struct Count {
    table: &'static str,
    fault: Fault,
    partition: i32,
    count: u64,
}

/// A report's format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    Html,
    Json,
    Prometheus,
}

/// Whether a report can be written to this file, as far as that is known before there is one.
///
/// # Errors
/// If not.
pub(super) fn check(file: &Path) -> anyhow::Result<()> {
    format_of(file)?;
    let folder = report_file::folder_of(file);
    if !folder.is_dir() {
        bail!(
            "--report {}: {} is no folder; make it, or choose another",
            file.display(),
            folder.display()
        );
    }
    Ok(())
}

/// By the end of its name.
fn format_of(file: &Path) -> anyhow::Result<Format> {
    match file.extension().and_then(|end| end.to_str()) {
        Some("html" | "htm") => Ok(Format::Html),
        Some("json") => Ok(Format::Json),
        Some("prom") => Ok(Format::Prometheus),
        _ => bail!(
            "--report {}: its name must end in .html, .json or .prom",
            file.display()
        ),
    }
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Page<'a> {
    report: &'a Report,
    findings: &'a [Finding],
    more: u64,
    verdict: &'static str,
    made_at: String,
}

impl Report {
    pub(super) fn new(
        auditor: &Auditor<'_>,
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
            cluster_id: auditor.cluster.id.clone(),
            topic: auditor.topic.name.to_owned(),
            database: auditor.database.place(),
            expired_before: auditor.topic.expired_before,
            from: (auditor.config.from.as_ref()).map_or("all".to_owned(), Bound::to_string),
            to: auditor.config.to.to_string(),
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

    /// Settles the verdict, in view of these reasons for which nothing more can be told.
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
                "{topic} has no record at the offsets of {}: compaction may have deleted their events, and no repair \
                 removes them",
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

    /// Why it could not be told whether all is equal, where nothing was found.
    pub(super) fn reasons(&self) -> Option<String> {
        (self.verdict == Verdict::Unproven).then(|| self.doubts.join("; "))
    }

    /// What a repair would do, for a person: rows to write, remove and put right, by table.
    pub(super) fn plan(&self) -> String {
        let mut plans: BTreeMap<&str, [u64; 3]> = BTreeMap::new();
        for count in &self.counts {
            let plan = plans.entry(count.table).or_default();
            match count.fault {
                Fault::Missing => plan[0] += count.count,
                Fault::Extra => plan[1] += count.count,
                Fault::Differing => plan[2] += count.count,
                Fault::Unprovable => {}
            }
        }
        let plans: Vec<String> = plans
            .iter()
            .filter(|(_, plan)| **plan != [0; 3])
            .map(|(table, [write, remove, correct])| {
                format!("{table}: write {write}, remove {remove}, put right {correct}")
            })
            .collect();
        format!("to repair in {}: {}", self.database, plans.join("; "))
    }

    /// How many rows a repair would remove, and how many of those that were compared it would keep.
    pub(super) fn removed_and_kept(&self) -> (u64, u64) {
        let tables = self.partitions.iter().flat_map(|it| it.tables.values());
        let held: u64 = tables.map(|table| table.rows_of_table).sum();
        (self.totals.extra, held.saturating_sub(self.totals.extra))
    }

    /// Prints all of it.
    pub(super) fn print(&self, json: bool, limit: usize) -> anyhow::Result<()> {
        match json {
            true => output::print_json(self),
            false => Ok(output::print(&self.text(limit))?),
        }
    }

    /// The answer in a line, on standard error: more is to come.
    pub(super) fn print_summary(&self) {
        output::note(self.answer());
    }

    fn answer(&self) -> String {
        let Totals {
            events,
            rows,
            missing,
            extra,
            differing,
            refused,
            ..
        } = self.totals;
        let (stand, events, of_rows) = (
            agreed(events, "stands", "stand"),
            counted(events, "event"),
            counted(rows, "row"),
        );
        match self.verdict {
            Verdict::Equal if refused > 0 => format!(
                "equal but for dead letters: {events} of {} {stand} for {of_rows}, and {} holds these without \
                 {refused} whose events have dead letters instead",
                self.topic, self.database
            ),
            Verdict::Equal => format!(
                "equal: {events} of {} {stand} for {of_rows}, and {} holds exactly these",
                self.topic, self.database
            ),
            Verdict::Unproven => format!(
                "could not tell: {events} of {} {stand} for {of_rows}, which {} holds, but {}",
                self.topic,
                self.database,
                self.doubts.join("; ")
            ),
            Verdict::Unequal => format!(
                "unequal: of the {of_rows} that {events} of {} {stand} for, {} lacks {missing}, has {differing} that \
                 differ, and {extra} more",
                self.topic, self.database
            ),
        }
    }

    fn text(&self, limit: usize) -> String {
        let mut header = vec![
            "partition",
            "from",
            "to",
            "events",
            "unreadable",
            "aborted",
            "markers",
        ];
        let tables = ["task_progress", "task_resource", "task_metrics", "task"];
        header.extend(tables);
        header.extend(["missing", "extra", "differing"]);
        if self.expired_before.is_some() {
            header.push("expired");
        }
        let mut grid = grid::table(&header);
        for partition in &self.partitions {
            let all = partition.tables.values();
            let mut row = vec![
                u64::try_from(partition.partition)
                    .unwrap_or_default()
                    .to_string(),
                partition.from.to_string(),
                partition.to.to_string(),
                partition.events.to_string(),
                partition.unreadable.to_string(),
                partition.aborted.to_string(),
                partition.markers.to_string(),
            ];
            row.extend(tables.map(|table| {
                let told = partition.tables.get(table);
                told.map_or("-".to_owned(), |told| told.rows_of_table.to_string())
            }));
            let sums = [
                all.clone().map(|told| told.missing).sum::<u64>(),
                all.clone().map(|told| told.extra).sum(),
                all.clone().map(|told| told.differing).sum(),
            ];
            row.extend(sums.map(|sum| sum.to_string()));
            if self.expired_before.is_some() {
                row.push(all.map(|told| told.expired).sum::<u64>().to_string());
            }
            grid.add_row(row);
        }
        for column in grid.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{grid}\n");
        if self.totals.deleted > 0 {
            text.push_str(&format!(
                "not proven: {} of events that retention has deleted from the topic\n",
                counted(self.totals.deleted, "row")
            ));
        }
        if let Some(before) = self.expired_before {
            text.push_str(&format!(
                "expired, not proven: {} reported before {before:.6}, which consumer expire removes\n",
                counted(self.totals.expired, "row")
            ));
        }
        for Unreadable {
            partition,
            offset,
            reason,
        } in &self.unreadable
        {
            text.push_str(&format!(
                "unreadable: partition {partition} offset {offset}: {}\n",
                shown(reason)
            ));
        }
        if self.totals.unreadable_without_letter > 0 {
            text.push_str(&format!(
                "warning: {} without a dead letter\n",
                counted(self.totals.unreadable_without_letter, "unreadable event")
            ));
        }
        let (findings, more) = self.first(limit);
        for finding in findings {
            text.push_str(&finding.line());
            text.push('\n');
        }
        if more > 0 {
            text.push_str(&format!(
                "and {} (--limit, --json)\n",
                counted(more, "more finding")
            ));
        }
        text.push_str(&format!("not stored yet: {}\n", self.not_stored));
        text.push_str(&format!("{}\n", self.answer()));
        if let Some(digest) = &self.digest {
            text.push_str(&format!("digest {digest}\n"));
        }
        text
    }

    /// The first findings, and how many there are beyond them.
    fn first(&self, limit: usize) -> (&[Finding], u64) {
        let count = match limit {
            0 => self.findings.len(),
            limit => limit.min(self.findings.len()),
        };
        let all: u64 = self.counts.iter().map(|count| count.count).sum();
        (&self.findings[..count], all - count as u64)
    }

    /// Writes it to each of these files. Gives whether that was possible; the log says where it was not.
    pub(super) fn write(&self, files: &[PathBuf], limit: usize) -> bool {
        let mut is_written = true;
        for file in files {
            if let Err(error) = self.write_file(file, limit) {
                is_written = false;
                tracing::error!(
                    "--report {}: {error:#}; this report was not written, and the verdict is: {}",
                    file.display(),
                    self.verdict.as_str()
                );
            }
        }
        is_written
    }

    fn write_file(&self, file: &Path, limit: usize) -> anyhow::Result<()> {
        let text = match format_of(file)? {
            // The gauges are of the last audit that could tell.
            Format::Prometheus if self.verdict == Verdict::Unproven => return Ok(()),
            Format::Json => format!("{}\n", to_json_pretty(self)?),
            Format::Prometheus => self.metrics(),
            Format::Html => {
                let (findings, more) = self.first(limit);
                let page = Page {
                    report: self,
                    findings,
                    more,
                    verdict: self.verdict.as_str(),
                    made_at: format!("{:.0}", self.made_at),
                };
                shown_lines(&page.render()?)
            }
        };
        report_file::replace(file, text.as_bytes())?;
        Ok(())
    }

    /// For node_exporter's textfile collector: gauges in Prometheus' text format.
    fn metrics(&self) -> String {
        let Totals {
            events,
            rows,
            missing,
            extra,
            differing,
            unprovable,
            deleted,
            expired,
            ..
        } = self.totals;
        let not_stored = self.not_stored;
        let quoted = |text: &str| shown(text).replace('\\', "\\\\").replace('"', "\\\"");
        let labels = format!(
            "topic=\"{}\",database=\"{}\"",
            quoted(&self.topic),
            quoted(&self.database)
        );
        let equal = u64::from(self.verdict == Verdict::Equal);
        let made_at = self.made_at.as_second();
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, values: &[(&str, i128)]| {
            text.push_str(&format!(
                "# HELP taskrunning_audit_{name} {help}\n# TYPE taskrunning_audit_{name} gauge\n"
            ));
            for (more, value) in values {
                text.push_str(&format!(
                    "taskrunning_audit_{name}{{{labels}{more}}} {value}\n"
                ));
            }
        };
        gauge(
            "equal",
            "1: the tables held what the topic said; 0: they did not.",
            &[("", equal.into())],
        );
        gauge(
            "made_at_timestamp_seconds",
            "When the last audit that could tell ended.",
            &[("", made_at.into())],
        );
        gauge(
            "events",
            "Events that were compared.",
            &[("", events.into())],
        );
        gauge("rows", "Rows that these stand for.", &[("", rows.into())]);
        gauge(
            "not_stored_offsets",
            "Offsets of the topic that were not stored yet when the audit began.",
            &[("", not_stored.offsets.into())],
        );
        gauge(
            "findings",
            "Rows that were not as they were to be.",
            &[
                (",fault=\"missing\"", missing.into()),
                (",fault=\"extra\"", extra.into()),
                (",fault=\"differing\"", differing.into()),
            ],
        );
        gauge(
            "unproven_rows",
            "Rows of which nothing was proven: their events were deleted by retention, or are not in the log for another \
             cause, or they were removed by order.",
            &[
                (",cause=\"retention\"", deleted.into()),
                (",cause=\"no_record\"", (unprovable - deleted).into()),
                (",cause=\"expired\"", expired.into()),
            ],
        );
        text
    }
}

impl Finding {
    /// For a person.
    fn line(&self) -> String {
        let whose = match (&self.exec_id, self.part) {
            (Some(exec_id), _) => format!(" {}", shown(exec_id)),
            (None, Some(part)) => format!(" {part}"),
            (None, None) => String::new(),
        };
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| {
                format!(
                    "{}: {} is to be {}",
                    column.column,
                    shown(&column.found.to_string()),
                    shown(&column.expected.to_string())
                )
            })
            .collect();
        let columns = match columns.is_empty() {
            true => String::new(),
            false => format!(": {}", columns.join("; ")),
        };
        format!(
            "{}: {} partition {} offset {}{whose}{columns}",
            self.fault.as_str(),
            self.table,
            self.partition,
            self.offset
        )
    }
}

impl Fault {
    fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Differing => "differing",
            Self::Unprovable => "unprovable",
        }
    }
}

/// For a program: nothing could be told, and why.
pub(crate) fn print_unproven(error: &anyhow::Error) {
    let object = serde_json::json!({"verdict": "unproven", "error": format!("{error:#}")});
    // The log has it too.
    let _ = output::print_json(&object);
}

/// SHA-256, in hexadecimal, of a line for each table and partition: its name, partition, offsets, rows
/// and digest, separated by blanks; where rows have dead letters instead, followed by `without`, how many, and their
/// digest.
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
