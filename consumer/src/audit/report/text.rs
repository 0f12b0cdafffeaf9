//! The report as text, and as JSON on standard output.

use std::collections::BTreeMap;

use service::grid;
use service::output;
use service::text::shown;
use service::words::{agreed, counted};

use super::{Report, Totals};
use crate::audit::expected::Unreadable;
use crate::audit::finding::{Fault, Finding};
use crate::audit::verdict::Verdict;
use crate::tables::Table;

impl Report {
    /// Prints the report, as text with at most `limit` findings (0: all) or as JSON.
    pub(in crate::audit) fn print(&self, json: bool, limit: usize) -> anyhow::Result<()> {
        match json {
            true => output::print_json(self),
            false => Ok(output::print(&self.text(limit))?),
        }
    }

    /// Prints the result in one line on standard error, before a repair begins.
    pub(in crate::audit) fn print_summary(&self) {
        output::note(self.answer());
    }

    /// The plan of a repair as text: rows to write, remove and correct, by table.
    pub(in crate::audit) fn plan(&self) -> String {
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
                format!("{table}: write {write}, remove {remove}, correct {correct}")
            })
            .collect();
        format!("to repair in {}: {}", self.database, plans.join("; "))
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
        let (yields, events, of_rows) = (
            agreed(events, "yields", "yield"),
            counted(events, "event"),
            counted(rows, "row"),
        );
        match self.verdict {
            Verdict::Equal if refused > 0 => format!(
                "equal except for dead letters: {events} of {} {yields} {of_rows}, and {} holds exactly these without \
                 {refused} whose events have dead letters instead",
                self.topic, self.database
            ),
            Verdict::Equal => format!(
                "equal: {events} of {} {yields} {of_rows}, and {} holds exactly these",
                self.topic, self.database
            ),
            Verdict::Unproven => format!(
                "could not tell: {events} of {} {yields} {of_rows}, which {} holds, but {}",
                self.topic,
                self.database,
                self.doubts.join("; ")
            ),
            Verdict::Unequal => format!(
                "unequal: {events} of {} {yields} {of_rows}, but {} lacks {missing}, has {differing} that \
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
        let tables = Table::ALL.map(Table::name);
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
                let of_table = partition.tables.get(table);
                of_table.map_or("-".to_owned(), |it| it.rows_of_table.to_string())
            }));
            let sums = [
                all.clone().map(|it| it.missing).sum::<u64>(),
                all.clone().map(|it| it.extra).sum(),
                all.clone().map(|it| it.differing).sum(),
            ];
            row.extend(sums.map(|sum| sum.to_string()));
            if self.expired_before.is_some() {
                row.push(all.map(|it| it.expired).sum::<u64>().to_string());
            }
            grid.add_row(row);
        }
        let mut text = grid::right_aligned(&mut grid, 0..header.len());
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
}

impl Finding {
    /// One line of text.
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
                    "{}: found {}, expected {}",
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
