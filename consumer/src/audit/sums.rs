//! The first comparison: reads both sides once; their sums of hashes show which offsets differ.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, anyhow};
use indicatif::MultiProgress;
use tokio::task::block_in_place;

use super::expected::{Digested, ExpectedRows, Unreadable};
use super::extent::Extent;
use super::fingerprint::{Marks, Outside, Plan};
use super::progress::{bar, spinner};
use super::spans::hull;
use super::stored::{Scan, StoredRows, StoredTasks};
use super::topic::Topic;
use crate::store::{Database, Snapshot};
use crate::tables::Table;

/// The counts of both sides, and where their sums of hashes differ.
pub(super) struct Sums {
    pub(super) differing: BTreeMap<(Table, i32), Vec<Range<i64>>>,
    pub(super) outside: BTreeMap<(Table, i32), Outside>,
    pub(super) stored_rows: BTreeMap<(Table, i32), u64>,
    pub(super) digests: BTreeMap<(Table, i32), Digested>,
    pub(super) events: BTreeMap<i32, u64>,
    /// Records of aborted transactions, by partition.
    pub(super) aborted: BTreeMap<i32, u64>,
    pub(super) unreadable: Marks,
    pub(super) unreadable_count: BTreeMap<i32, u64>,
    pub(super) unreadable_shown: Vec<Unreadable>,
    pub(super) unknown_writer: Marks,
    /// Tasks that are behind their history, up to a limit.
    pub(super) outranked: BTreeSet<i64>,
}

impl Sums {
    /// Reads the topic and the tables at the same time.
    ///
    /// # Errors
    /// If the topic or the database cannot be read to the end.
    pub(super) async fn read(
        topic: &Topic<'_>,
        database: &Database,
        snapshot: &mut Snapshot,
        extent: &Extent,
    ) -> anyhow::Result<Self> {
        let Extent { spans, places, .. } = extent;
        let plan = Plan::new(spans);
        let bars = MultiProgress::new();
        let hull = hull(spans);
        let offsets: i64 = hull.values().map(|span| span.end - span.start).sum();
        let events_bar = bars.add(bar(offsets as u64, "events"));
        let rows_bar = bars.add(spinner("rows"));
        let tasks = StoredTasks::read(snapshot, &plan, Marks::new(&hull), places).await?;
        // Both sides at once: they share only the plan.
        let (expected, stored) = block_in_place(|| {
            std::thread::scope(|scope| {
                let expected = scope
                    .spawn(|| ExpectedRows::read(topic, &plan, spans, &tasks.newest, &events_bar));
                let scan = Scan {
                    plan: &plan,
                    tasks: &tasks,
                    places,
                    reported_from: topic.expired_before,
                    progress_has_all: extent.progress_has_all(),
                    bar: &rows_bar,
                    stop: topic.stop,
                };
                let stored = scan.read(database, snapshot);
                let failed = |_| Err(anyhow!("reading {} failed", topic.name));
                (expected.join().unwrap_or_else(failed), stored)
            })
        });
        let stored = stored.with_context(|| format!("reading {}", database.place()));
        let (mut expected, stored_rows) = (expected?, stored?);
        let StoredRows {
            fingerprint: mut stored,
            outranked,
        } = stored_rows;
        stored.take_in(tasks.fingerprint);
        rows_bar.finish_and_clear();
        Ok(Self {
            differing: expected.fingerprint.differing(&stored),
            aborted: std::mem::take(&mut expected.aborted),
            stored_rows: stored.rows(),
            outside: std::mem::take(&mut stored.outside),
            digests: expected.digests(),
            events: std::mem::take(&mut expected.events),
            unreadable: expected.unreadable,
            unreadable_count: expected.unreadable_count,
            unreadable_shown: expected.unreadable_shown,
            unknown_writer: expected.unknown_writer,
            outranked,
        })
    }
}
