//! The progress and the summary of a replay.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use comfy_table::ContentArrangement;
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use service::grid;
use service::output;
use service::range::Ranges;
use service::text::shown;
use service::words::counted;
use tokio::time::Instant;

use crate::batch::Record;
use crate::rows::Part;

/// Interval of progress lines in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of skipped records listed.
const LISTED: usize = 20;

/// A progress bar on a terminal, otherwise occasional log lines. It counts offsets, not events, because the number of
/// commit markers is not known in advance.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    all: u64,
    begun: Instant,
    logged_at: Instant,
}

impl Progress {
    pub(super) fn over(ranges: &Ranges) -> Self {
        let all = ranges
            .values()
            .map(|range| (range.end - range.start).max(0) as u64)
            .sum();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(
                "{wide_bar} {human_pos} of {human_len} offsets, {per_sec}, {eta} left",
            );
            ProgressBar::with_draw_target(Some(all), ProgressDrawTarget::stderr())
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        Self {
            bar,
            all,
            begun: now,
            logged_at: now,
        }
    }

    pub(super) fn moved_on(&mut self, account: &Account) {
        let done = account.offsets_done();
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if self.logged_at.elapsed() >= LOG_INTERVAL {
            self.logged_at = Instant::now();
            let seconds = self.begun.elapsed().as_secs_f64();
            let rate = done as f64 / seconds;
            let left = self.all.saturating_sub(done) as f64 / rate.max(1e-3);
            tracing::info!(
                "replayed {done} of {}, {rate:.0} a second, {} left",
                counted(self.all, "offset"),
                HumanDuration(Duration::try_from_secs_f64(left).unwrap_or(Duration::MAX))
            );
        }
    }

    pub(super) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The summary of a replay.
pub(super) struct Account {
    partitions: BTreeMap<i32, OfPartition>,
    rows: BTreeMap<Part, u64>,
    /// Skipped records: their number, and the first of them with the reason.
    skipped: u64,
    listed: Vec<(i32, i64, String)>,
    /// Whether it was stopped with records read that the database did not take.
    pub(super) left_unstored: bool,
}

#[derive(Default)]
struct OfPartition {
    from: i64,
    /// The first offset that is not stored yet.
    next: i64,
    to: i64,
    events: u64,
    skipped: u64,
}

impl Account {
    pub(super) fn over(ranges: &Ranges) -> Self {
        let partitions = ranges.iter().map(|(partition, range)| {
            let of_partition = OfPartition {
                from: range.start,
                next: range.start,
                to: range.end,
                ..OfPartition::default()
            };
            (*partition, of_partition)
        });
        Self {
            partitions: partitions.collect(),
            rows: Part::ALL.map(|part| (part, 0)).into(),
            skipped: 0,
            listed: Vec::new(),
            left_unstored: false,
        }
    }

    /// Counts these records, which were stored, or skipped if they are rejects.
    pub(super) fn stored(&mut self, records: &[Record], written: &[(Part, u64)]) {
        for record in records {
            let of_partition = self.partitions.entry(record.partition).or_default();
            of_partition.next = record.anchor.offset + 1;
            match &record.event {
                Ok(_) => of_partition.events += 1,
                Err(reject) => {
                    of_partition.skipped += 1;
                    self.skipped += 1;
                    if self.listed.len() < LISTED {
                        let reason = format!("{}: {}", reject.kind, reject.message);
                        self.listed
                            .push((record.partition, record.anchor.offset, reason));
                    }
                }
            }
        }
        for (part, rows) in written {
            *self.rows.entry(*part).or_default() += rows;
        }
    }

    /// Everything in these ranges is stored or holds no record.
    pub(super) fn reached(&mut self, ranges: &Ranges) {
        for (partition, range) in ranges {
            let of_partition = self.partitions.entry(*partition).or_default();
            of_partition.next = of_partition.next.max(range.end);
        }
    }

    pub(super) fn offsets_done(&self) -> u64 {
        let done = |of: &OfPartition| (of.next - of.from).max(0) as u64;
        self.partitions.values().map(done).sum()
    }

    pub(super) fn print(&self, topic: &str, place: &str) {
        let header = [
            "partition",
            "from",
            "stored up to",
            "to",
            "events",
            "skipped",
        ];
        let mut table = grid::table(&header);
        table.set_content_arrangement(ContentArrangement::Disabled);
        for (partition, of) in &self.partitions {
            table.add_row([
                partition.to_string(),
                of.from.to_string(),
                of.next.to_string(),
                of.to.to_string(),
                of.events.to_string(),
                of.skipped.to_string(),
            ]);
        }
        let mut text = grid::right_aligned(&mut table, 0..header.len());
        let events: u64 = self.partitions.values().map(|of| of.events).sum();
        let rows: Vec<String> = self
            .rows
            .iter()
            .map(|(part, rows)| format!("{} of {}", counted(rows, "row"), part.table()))
            .collect();
        text.push_str(&format!(
            "{} of {topic} stored in {place}: {}\n",
            counted(events, "event"),
            rows.join(", ")
        ));
        if self.skipped > 0 {
            text.push_str(&format!("{} skipped:\n", counted(self.skipped, "record")));
            for (partition, offset, reason) in &self.listed {
                let reason = shown(reason);
                text.push_str(&format!("  {partition}:{offset} {reason}\n"));
            }
            if self.skipped > self.listed.len() as u64 {
                let more = self.skipped - self.listed.len() as u64;
                text.push_str(&format!("  … and {more} more\n"));
            }
        }
        output::account(&text);
    }
}
