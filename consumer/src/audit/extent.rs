//! Which offsets an audit compares.

use anyhow::{Context, bail};
use service::range::{Bound, Ranges};
use service::words::counted;
use tokio::task::block_in_place;

use super::config::Config;
use super::offsets::StoredOffsets;
use super::spans::{Spans, hull};
use super::topic::Topic;
use crate::rows::Part;
use crate::store::Places;
use crate::tables::Table;

/// At most this many offsets are compared at once; each takes up to four bits of memory.
const MAX_OFFSETS: i64 = 1 << 27;

/// What is compared: the offsets of each table and partition, with the logs and stored offsets they are derived from.
pub(super) struct Extent {
    pub(super) logs: Ranges,
    pub(super) stored: StoredOffsets,
    pub(super) spans: Spans,
    /// `None`: all rows that the tables hold.
    pub(super) places: Option<Places>,
}

impl Extent {
    /// Whether `task_progress` is stored over the same offsets as the other parts. If not, `task` reflects reports that
    /// `task_progress` does not hold.
    pub(super) fn progress_has_all(&self) -> bool {
        self.stored.iter().all(|((_, partition), of_part)| {
            let progress = self.stored.get(&(Part::Progress, *partition));
            progress.is_some_and(|progress| {
                (progress.first_offset, progress.next_offset)
                    == (of_part.first_offset, of_part.next_offset)
            })
        })
    }

    /// Chooses the offsets to compare for each table.
    ///
    /// # Errors
    /// If the requested range is not in the log, or the database has stored more than the log holds.
    pub(super) fn of(
        topic: &Topic<'_>,
        config: &Config,
        logs: Ranges,
        stored: StoredOffsets,
    ) -> anyhow::Result<Self> {
        let reader = topic.reader;
        let topic = topic.name;
        let asked = |bound: &Bound| block_in_place(|| reader.resolve(topic, bound, &logs));
        let from = config.from.as_ref().unwrap_or(&Bound::Earliest);
        let (starts, to) = (asked(from)?, asked(&config.to)?);
        if let Bound::Offsets(offsets) = from {
            for (partition, offset) in offsets {
                let log = logs.get(partition).with_context(|| {
                    format!(
                        "--from: {topic} only has partitions 0 to {}",
                        logs.len() - 1
                    )
                })?;
                if *offset < log.start {
                    bail!(
                        "--from: the log of {topic} partition {partition} begins at offset {}: retention removed offset {offset}, so it \
                         can no longer be proven",
                        log.start
                    );
                }
            }
        }
        let mut spans = Spans::new();
        for ((part, partition), held) in &stored {
            let Some(log) = logs.get(partition) else {
                bail!(
                    "the database holds {topic} partition {partition}, but the topic has only {}",
                    counted(logs.len(), "partition")
                );
            };
            if held.next_offset > log.end {
                bail!(
                    "the database holds {topic} partition {partition} up to offset {}, but its log ends at {}: the topic was \
                     recreated or truncated, or a transaction is open",
                    held.next_offset,
                    log.end
                );
            }
            let (Some(from), Some(to)) = (starts.get(partition), to.get(partition)) else {
                continue; // not requested
            };
            let begun = held.first_offset.unwrap_or(log.start).max(log.start);
            let start = begun.max(*from);
            let span = start..held.next_offset.min(*to).max(start);
            spans.insert((part.table(), *partition), span.clone());
            // Without its history, nothing is known about a task's newest report.
            if stored.keys().any(|(part, _)| *part == Part::Progress) {
                let of_task = spans
                    .entry((Table::Task, *partition))
                    .or_insert(span.clone());
                if of_task.is_empty() {
                    *of_task = span;
                } else if !span.is_empty() {
                    *of_task = of_task.start.min(span.start)..of_task.end.max(span.end);
                }
            }
        }
        let offsets: i64 = hull(&spans)
            .values()
            .map(|span| span.end - span.start)
            .sum();
        if offsets > MAX_OFFSETS {
            bail!(
                "{offsets} offsets exceed the {MAX_OFFSETS} that one audit can compare; give --from and --to"
            );
        }
        let places = (!config.is_whole()).then(|| hull(&spans).into_iter().collect());
        Ok(Self {
            logs,
            stored,
            spans,
            places,
        })
    }
}
