//! The read ranges (tails) of the output topics' partitions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::Context;
use service::kafka::Cluster;
use service::range::{End, Ranges, Reader};
use tokio::task::block_in_place;

/// Number of offsets of each output partition that are read first.
const TAIL: i64 = 1_000;
/// Maximum size of a step back; each step is four times the previous one.
const MAX_STEP: i64 = 1_000_000;

/// An output topic and its read ranges.
pub(super) struct OutputTopic {
    pub(super) name: String,
    /// Whether it was never written.
    pub(super) unused: bool,
    pub(super) tails: BTreeMap<i32, Tail>,
}

/// The read offsets `from..to` of an output partition.
pub(super) struct Tail {
    /// The log's first offset.
    start: i64,
    pub(super) from: i64,
    to: i64,
    /// Size of the next step back.
    step: i64,
    /// Source partitions with outputs in this range.
    pub(super) seen: BTreeSet<i32>,
}

impl OutputTopic {
    pub(super) async fn of(cluster: &Cluster, reader: &Reader, name: &str) -> anyhow::Result<Self> {
        let count = i32::try_from(cluster.require_topic(name, "Read", None).await?)?;
        let log = |partition| Ok((partition, reader.bounds(name, partition, End::High)?));
        let logs = block_in_place(|| (0..count).map(log).collect::<anyhow::Result<Ranges>>())?;
        let tail = |(partition, log): (&i32, &Range<i64>)| {
            let from = log.start.max(log.end - TAIL);
            let tail = Tail {
                start: log.start,
                from,
                to: from,
                step: 4 * TAIL,
                seen: BTreeSet::new(),
            };
            (*partition, tail)
        };
        Ok(Self {
            name: name.to_owned(),
            unused: logs.values().all(|log| *log == (0..0)),
            tails: logs.iter().map(tail).collect(),
        })
    }

    /// The unread ranges up to the present ends of the logs; marks them as read.
    pub(super) fn unread(&mut self, reader: &Reader) -> anyhow::Result<Ranges> {
        let mut ranges = Ranges::new();
        for (partition, tail) in &mut self.tails {
            let end = reader.bounds(&self.name, *partition, End::High)?.end;
            ranges.insert(*partition, tail.to..end);
            tail.to = tail.to.max(end);
        }
        Ok(ranges)
    }

    /// The ranges of the next step back for some partitions; marks them as read.
    pub(super) fn step_back(&mut self, partitions: &[i32]) -> anyhow::Result<Ranges> {
        let mut ranges = Ranges::new();
        for partition in partitions {
            let tail = self.tails.get_mut(partition).context("a partition")?;
            let from = (tail.from - tail.step).max(tail.start);
            ranges.insert(*partition, from..tail.from);
            (tail.from, tail.step) = (from, (4 * tail.step).min(MAX_STEP));
        }
        Ok(ranges)
    }
}
