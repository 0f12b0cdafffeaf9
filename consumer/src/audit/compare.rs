//! The second comparison: row by row, where sums differ.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Mutex;

use tokio::sync::mpsc;

use super::expected::rows_of;
use super::extent::Extent;
use super::finding::{Finding, Findings};
use super::fingerprint::Marks;
use super::merge::{Evidence, Feed, merge};
use super::misnamed::find_misnamed;
use super::moved::find_moved;
use super::spans::{NEAR, hull, join};
use super::sums::Sums;
use super::times::HistoryGaps;
use super::topic::Topic;
use super::{evidence, retention, tasks};
use crate::store::{Order, Selection, Snapshot, StoreError};
use crate::tables::Table;

/// Contains every offset, far from overflow.
const ANY_OFFSET: Range<i64> = -(1 << 62)..1 << 62;

/// Compares row by row where sums differ, and explains the findings: moved rows, rows that name another task, tasks
/// behind their history, unprovable rows.
///
/// # Errors
/// If the topic or the database cannot be read to the end.
pub(super) async fn compare_rows(
    topic: &Topic<'_>,
    snapshot: &mut Snapshot,
    extent: &Extent,
    sums: &Sums,
    dead_lettered: &Marks,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    findings.set_aside = Marks::new(&hull(&extent.spans));
    let mut wanted = sums.differing.clone();
    let tasks_are_audited = extent.spans.keys().any(|(table, _)| *table == Table::Task);
    for (at, outside) in &sums.outside {
        if at.0 == Table::Task && !tasks_are_audited {
            continue;
        }
        let span = extent.spans.get(at).cloned().unwrap_or(0..0);
        let places = wanted.entry(*at).or_default();
        let low = extent.logs.get(&at.1).map_or(0, |log| log.start);
        if outside.before > 0 && !retention::deleted_before(span.start, low) {
            places.insert(0, ANY_OFFSET.start..span.start);
        }
        if outside.behind > 0 {
            let behind = match extent.spans.contains_key(at) {
                true => span.end..ANY_OFFSET.end,
                false => ANY_OFFSET,
            };
            places.push(behind);
        }
    }
    for ((table, partition), places) in &wanted {
        let span = extent
            .spans
            .get(&(*table, *partition))
            .cloned()
            .unwrap_or(0..0);
        compare_table(
            topic,
            snapshot,
            *table,
            *partition,
            &span,
            places,
            dead_lettered,
            findings,
        )
        .await?;
    }
    let missing = find_misnamed(snapshot, findings).await?;
    // First: an unprovable row may be correct where it is, so it does not count as moved.
    evidence::settle(topic, &extent.spans, findings)?;
    find_moved(findings);
    let mut suspects: BTreeSet<i64> = std::mem::take(&mut findings.suspects).into_iter().collect();
    suspects.extend(&sums.outranked);
    let gaps = HistoryGaps::new(
        topic.expired_before,
        !extent.progress_has_all() || findings.is_cut(),
    );
    let spans = &extent.spans;
    tasks::resolve(snapshot, topic, spans, gaps, suspects, missing, findings).await?;
    tasks::find_lost(snapshot, topic, findings).await?;
    let key = |finding: &Finding| {
        (
            finding.table,
            finding.partition,
            finding.offset,
            finding.fault,
        )
    };
    findings.found.sort_by_key(key);
    Ok(())
}

/// Compares a table's rows at some offsets of a partition with those that the topic expects. Nothing is known about the
/// topic outside `span`.
///
/// # Errors
/// If the topic or the database cannot be read to the end.
#[expect(clippy::too_many_arguments, reason = "two sides and where they meet")]
async fn compare_table(
    topic: &Topic<'_>,
    snapshot: &mut Snapshot,
    table: Table,
    partition: i32,
    span: &Range<i64>,
    places: &[Range<i64>],
    dead_lettered: &Marks,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let places = join(places, NEAR);
    let expected_of: Vec<Range<i64>> = places
        .iter()
        .map(|place| place.start.max(span.start)..place.end.min(span.end))
        .filter(|place| !place.is_empty())
        .collect();
    let of_partition = places.iter().map(|place| (partition, place.clone()));
    let selection = Selection {
        addressed: true,
        order: Some(Order::Place),
        reported_from: topic.expired_before.filter(|_| table != Table::Task),
        ..Selection::of_table(table, Some(of_partition.collect()))
    };
    let records = Mutex::new(Marks::new(&[(partition, span.clone())].into()));
    let evidence = Evidence {
        dead_lettered,
        records: Some(&records),
    };
    let (stored_pieces, stored) = mpsc::channel(4);
    let (expected_pieces, expected) = mpsc::channel(4);
    let mut feeds = (Feed::new(expected), Feed::new(stored));
    // Scanning the topic blocks and borrows, so it gets its own thread; this one drives the rest.
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let pieces = expected_pieces; // closed at the end
                rows_of(topic, table, partition, &expected_of, &records, &pieces)
            });
            let both = async {
                let scan = async {
                    let scanned = snapshot.scan(&selection, &stored_pieces).await;
                    drop(stored_pieces);
                    scanned
                };
                let merge = merge(&mut feeds, table, &evidence, findings);
                let (scanned, ()) = tokio::join!(scan, merge);
                scanned
            };
            let scanned: Result<(), StoreError> = tokio::runtime::Handle::current().block_on(both);
            let read = reading.join();
            scanned?;
            read.map_err(|_| anyhow::anyhow!("reading {} failed", topic.name))?
        })
    })
}
