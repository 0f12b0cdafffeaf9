//! The result of a comparison of two databases, as text and as JSON.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use service::grid;
use service::output;
use service::text::shown;
use service::words::counted;

use super::compared::Compared;
use super::side::Side;
use crate::audit::difference::key_text;
use crate::audit::finding::{self, Correction};
use crate::tables::Table;

/// The result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// The tables are equal over the range that both have stored.
    Equal,
    /// They are not.
    Unequal,
}

/// How the databases differ in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fault {
    /// A has the row; B does not, or fewer times.
    OnlyInA,
    /// B has the row; A does not, or fewer times.
    OnlyInB,
    /// Some columns differ.
    Differing,
}

impl From<finding::Fault> for Fault {
    /// With A as the expected side.
    fn from(fault: finding::Fault) -> Self {
        match fault {
            finding::Fault::Missing => Self::OnlyInA,
            finding::Fault::Extra | finding::Fault::Unprovable => Self::OnlyInB,
            finding::Fault::Differing => Self::Differing,
        }
    }
}

/// A row in which the databases differ.
#[derive(Debug, Serialize)]
struct Finding {
    table: &'static str,
    fault: Fault,
    /// Where A has the row, if it does; otherwise B.
    partition: i32,
    offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exec_id: Option<String>,
    /// For `task_resource`: distinguishes the rows of one event.
    #[serde(skip_serializing_if = "Option::is_none")]
    application_id: Option<String>,
    /// The differing columns, if some differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    columns: Vec<Column>,
    /// For `task`: compared history rows that refer to no task, or to one of another name, because of this.
    #[serde(skip_serializing_if = "is_zero")]
    history_rows: u64,
}

/// A column in which the databases differ.
#[derive(Debug, Serialize)]
struct Column {
    column: &'static str,
    a: Value,
    b: Value,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// The result for one table and partition.
#[derive(Debug, Default, Serialize)]
struct TableReport {
    /// Offsets that both have stored; null if there are none.
    from: Option<i64>,
    to: Option<i64>,
    /// Rows that were compared.
    rows_a: u64,
    rows_b: u64,
    equal: u64,
    only_in_a: u64,
    only_in_b: u64,
    differing: u64,
    /// Rows of events that the other database has not stored.
    outside_a: u64,
    outside_b: u64,
}

#[derive(Debug, Serialize)]
struct PartitionReport {
    partition: i32,
    tables: BTreeMap<&'static str, TableReport>,
}

#[derive(Debug, Default, Serialize)]
struct Totals {
    rows_a: u64,
    rows_b: u64,
    equal: u64,
    only_in_a: u64,
    only_in_b: u64,
    differing: u64,
    outside_a: u64,
    outside_b: u64,
}

/// The result of a comparison.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    verdict: Verdict,
    made_at: Timestamp,
    program: &'static str,
    version: &'static str,
    topic: String,
    a: String,
    b: String,
    /// Histories are compared from this time on: `consumer expire` removed older reports from one or both.
    #[serde(skip_serializing_if = "Option::is_none")]
    expired_before: Option<Timestamp>,
    partitions: Vec<PartitionReport>,
    totals: Totals,
    /// Those kept in memory.
    findings: Vec<Finding>,
    /// The number of further ones.
    more_findings: u64,
}

impl Report {
    pub(super) fn new(topic: &str, a: &Side, b: &Side, compared: Compared) -> Self {
        let Compared {
            spans,
            rows,
            outside,
            findings,
            lost,
        } = compared;
        let counts = findings.counts();
        let places: BTreeSet<(Table, i32)> = [&rows[0], &rows[1], &outside[0], &outside[1]]
            .into_iter()
            .flat_map(BTreeMap::keys)
            .chain(spans.keys())
            .copied()
            .collect();
        let mut partitions: BTreeMap<i32, BTreeMap<&'static str, TableReport>> = BTreeMap::new();
        let mut totals = Totals::default();
        for at in places {
            let (table, partition) = at;
            let span = spans.get(&at).filter(|span| !span.is_empty());
            let of = |rows: &BTreeMap<(Table, i32), u64>| rows.get(&at).copied().unwrap_or(0);
            let count = |fault| {
                let count = counts.get(&(table.name(), fault, partition));
                count.copied().unwrap_or(0)
            };
            let (only_in_a, only_in_b, differing) = (
                count(finding::Fault::Missing),
                count(finding::Fault::Extra),
                count(finding::Fault::Differing),
            );
            let of_table = TableReport {
                from: span.map(|span| span.start),
                to: span.map(|span| span.end),
                rows_a: of(&rows[0]),
                rows_b: of(&rows[1]),
                equal: of(&rows[0]).saturating_sub(only_in_a + differing),
                only_in_a,
                only_in_b,
                differing,
                outside_a: of(&outside[0]),
                outside_b: of(&outside[1]),
            };
            totals.rows_a += of_table.rows_a;
            totals.rows_b += of_table.rows_b;
            totals.equal += of_table.equal;
            totals.only_in_a += of_table.only_in_a;
            totals.only_in_b += of_table.only_in_b;
            totals.differing += of_table.differing;
            totals.outside_a += of_table.outside_a;
            totals.outside_b += of_table.outside_b;
            let of_partition = partitions.entry(partition).or_default();
            of_partition.insert(table.name(), of_table);
        }
        let more_findings = findings.uncounted.values().sum();
        let found = |finding: finding::Finding| Finding::new(finding, &lost);
        let findings: Vec<Finding> = findings.found.into_iter().map(found).collect();
        Self {
            verdict: match counts.is_empty() {
                true => Verdict::Equal,
                false => Verdict::Unequal,
            },
            made_at: Timestamp::now(),
            program: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            topic: topic.to_owned(),
            a: a.place.clone(),
            b: b.place.clone(),
            expired_before: a.expired_before.max(b.expired_before),
            partitions: partitions
                .into_iter()
                .map(|(partition, tables)| PartitionReport { partition, tables })
                .collect(),
            totals,
            findings,
            more_findings,
        }
    }

    pub(super) fn is_equal(&self) -> bool {
        self.verdict == Verdict::Equal
    }

    /// Prints the report as JSON, or as text with at most `limit` findings (0: all).
    pub(super) fn print(&self, json: bool, limit: usize) -> anyhow::Result<()> {
        match json {
            true => output::print_json(self),
            false => Ok(output::print(&self.text(limit))?),
        }
    }

    fn text(&self, limit: usize) -> String {
        let header = [
            "partition",
            "table",
            "from",
            "to",
            "rows of A",
            "rows of B",
            "equal",
            "only in A",
            "only in B",
            "differing",
            "outside, A",
            "outside, B",
        ];
        let mut grid = grid::table(&header);
        for PartitionReport { partition, tables } in &self.partitions {
            for (table, of_table) in tables {
                let offset = |offset: Option<i64>| {
                    offset.map_or("-".to_owned(), |offset| offset.to_string())
                };
                let mut row = vec![
                    partition.to_string(),
                    (*table).to_owned(),
                    offset(of_table.from),
                    offset(of_table.to),
                ];
                let counts = [
                    of_table.rows_a,
                    of_table.rows_b,
                    of_table.equal,
                    of_table.only_in_a,
                    of_table.only_in_b,
                    of_table.differing,
                    of_table.outside_a,
                    of_table.outside_b,
                ];
                row.extend(counts.map(|count| count.to_string()));
                grid.add_row(row);
            }
        }
        let numbers = (0..header.len()).filter(|column| *column != 1);
        let mut text = grid::right_aligned(&mut grid, numbers);
        let Totals {
            rows_a,
            equal,
            only_in_a,
            only_in_b,
            differing,
            outside_a,
            outside_b,
            ..
        } = self.totals;
        let (a, b) = (shown(&self.a), shown(&self.b));
        text.push_str(&format!("A: {a}\nB: {b}\n"));
        if outside_a + outside_b > 0 {
            text.push_str(&format!(
                "not compared: {} of A and {outside_b} of B, of events that the other has not stored\n",
                counted(outside_a, "row")
            ));
        }
        if let Some(before) = self.expired_before {
            text.push_str(&format!(
                "expired, not compared: reports before {before:.6}, which consumer expire removes\n"
            ));
        }
        let count = match limit {
            0 => self.findings.len(),
            limit => limit.min(self.findings.len()),
        };
        for finding in &self.findings[..count] {
            text.push_str(&finding.line());
            text.push('\n');
        }
        let more = self.more_findings + (self.findings.len() - count) as u64;
        if more > 0 {
            text.push_str(&format!(
                "and {} (--limit, --json)\n",
                counted(more, "more finding")
            ));
        }
        let topic = shown(&self.topic);
        text.push_str(&match self.verdict {
            Verdict::Equal => format!(
                "equal: over the offsets of {topic} that both have stored, A and B hold the same {}\n",
                counted(rows_a, "row")
            ),
            Verdict::Unequal => format!(
                "unequal: over the offsets of {topic} that both have stored, {} only in A, {only_in_b} only in B, {differing} differing and \
                 {equal} equal; `consumer audit` of each shows which one equals the topic\n",
                counted(only_in_a, "row")
            ),
        });
        text
    }
}

impl Finding {
    fn new(finding: finding::Finding, lost: &BTreeMap<String, u64>) -> Self {
        let application_id = match &finding.correction {
            Correction::Insert { table, row }
            | Correction::Delete { table, row, .. }
            | Correction::Replace { table, row, .. } => key_text(*table, row),
            _ => None,
        };
        let of_task = finding
            .exec_id
            .as_ref()
            .filter(|_| finding.table == Table::Task.name());
        Self {
            table: finding.table,
            fault: finding.fault.into(),
            partition: finding.partition,
            offset: finding.offset,
            application_id,
            history_rows: of_task
                .and_then(|name| lost.get(name))
                .copied()
                .unwrap_or(0),
            columns: finding
                .columns
                .into_iter()
                .map(|column| Column {
                    column: column.column,
                    a: column.expected,
                    b: column.found,
                })
                .collect(),
            exec_id: finding.exec_id,
        }
    }

    /// One line of text.
    fn line(&self) -> String {
        let fault = match self.fault {
            Fault::OnlyInA => "only in A",
            Fault::OnlyInB => "only in B",
            Fault::Differing => "differing",
        };
        let mut line = format!(
            "{fault}: {} partition {} offset {}",
            self.table, self.partition, self.offset
        );
        for name in self.exec_id.iter().chain(&self.application_id) {
            line.push(' ');
            line.push_str(&shown(name));
        }
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|Column { column, a, b }| {
                let (a, b) = (a.to_string(), b.to_string());
                format!("{column}: A {}, B {}", shown(&a), shown(&b))
            })
            .collect();
        if !columns.is_empty() {
            line.push_str(&format!(": {}", columns.join("; ")));
        }
        if self.history_rows > 0 {
            line.push_str(&format!(
                "; affects {} of its histories",
                counted(self.history_rows, "row")
            ));
        }
        line
    }
}
