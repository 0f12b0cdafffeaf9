//! What the topic says the tables hold: each event read once, its rows derived as the live path
//! derives them, and digested.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::anyhow;
use indicatif::ProgressBar;
use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use serde::Serialize;
use service::range::{End, Ranges, Reader};
use sha2::{Digest, Sha256};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use super::fingerprint::{Fingerprint, Marks, Plan, Spans};
use crate::batch::half_of;
use crate::row_format::{self, HEADER, RowWriter, TRAILER};
use crate::rows::{Rows, rows};
use crate::tables::Table;
use crate::writers::Writers;

/// Unreadable events that are shown one by one.
const SHOWN: usize = 20;
/// Kinds of rejects that another choice of `--schemas` or `--schema-registry` turns into rows.
const UNKNOWN_WRITER: [&str; 3] = ["UnknownSchema", "NoSchemaRegistry", "UnknownSchemaId"];
/// Places that lie so near to each other are read as one.
pub(crate) const NEAR: i64 = 4_096;
/// Records that lie so near to each other are: to begin reading elsewhere takes longer than to read these.
const NEAR_RECORDS: i64 = 32_768;
/// At most so many places are asked for at once.
const MAX_PLACES: usize = 200;
/// The bar moves each time so many records were read.
const TOLD_EVERY: u64 = 1_024;

/// A topic, and who reads it.
pub(crate) struct Topic<'a> {
    pub(crate) name: &'a str,
    /// Kafka's id of it (KIP-516), if that is told.
    pub(crate) id: Option<String>,
    /// How many it has.
    pub(crate) partitions: i32,
    pub(crate) reader: &'a Reader,
    pub(crate) writers: &'a Writers,
    pub(crate) stop: &'a CancellationToken,
    /// What was reported before then was removed from the histories by order, and is not looked for.
    pub(crate) expired_before: Option<Timestamp>,
}

impl Topic<'_> {
    /// Whether an event's rows of the histories are not looked for.
    pub(crate) fn is_expired(&self, event: &Rows<'_>) -> bool {
        let before = self.expired_before.map(Timestamp::as_microsecond);
        before.is_some_and(|before| event.info.reported_at < before)
    }

    /// Reads events, each after it was learned what wrote it.
    fn scan(
        &self,
        ranges: &Ranges,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.reader.scan(self.name, ranges, self.stop, |record| {
            self.writers.learn_soon(record.payload(), self.stop)?;
            each(record)
        })
    }
}

/// What the events of the audited offsets say.
pub(crate) struct Said<'a> {
    pub(crate) fingerprint: Fingerprint<'a>,
    tables: BTreeMap<(Table, i32), OfTable>,
    /// Records that a committed reader sees, by partition.
    pub(crate) events: BTreeMap<i32, u64>,
    /// Records of aborted transactions, by partition.
    pub(crate) aborted: BTreeMap<i32, u64>,
    /// Events that have no rows, since nobody can read them.
    pub(crate) unreadable: Marks,
    pub(crate) unreadable_count: BTreeMap<i32, u64>,
    pub(crate) unreadable_shown: Vec<Unreadable>,
    /// Those whose writer's schema is not known here: a consumer that knows it may have stored them.
    pub(crate) unknown_writer: Marks,
}

/// What is said of a table's rows of a partition.
struct OfTable {
    span: Range<i64>,
    digest: Sha256,
    rows: u64,
    expired: u64,
}

/// An event that cannot be read.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Unreadable {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) reason: String,
}

/// The rows that a partition's events stand for, in one table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Digested {
    pub(crate) rows: u64,
    /// Rows that were not looked for, since they were removed by order.
    pub(crate) expired: u64,
    /// SHA-256, in hexadecimal, of the rows in PostgreSQL's binary COPY format, header and trailer
    /// included, in the order of their offsets.
    pub(crate) sha256: String,
}

impl<'a> Said<'a> {
    /// Reads the events of these spans, half of the partitions on another thread. Of `task` only the rows
    /// whose events are `newest`.
    ///
    /// # Errors
    /// If the topic cannot be read to the end.
    pub(crate) fn read(
        topic: &Topic<'_>,
        plan: &'a Plan,
        spans: &Spans,
        newest: &Marks,
        bar: &ProgressBar,
    ) -> anyhow::Result<Self> {
        let hull = hull(spans).into_iter();
        let half = half_of(hull.map(|(partition, span)| (partition, span.end - span.start)));
        let spans = spans.iter().map(|(at, span)| (*at, span.clone()));
        let (half, other): (Spans, Spans) =
            spans.partition(|((_, partition), _)| half.contains(partition));
        std::thread::scope(|scope| {
            let other = scope.spawn(|| Self::read_here(topic, plan, &other, newest, bar));
            let half = Self::read_here(topic, plan, &half, newest, bar);
            let failed = |_| Err(anyhow!("reading {} failed", topic.name));
            let (mut said, other) = (half?, other.join().unwrap_or_else(failed)?);
            bar.finish_and_clear();
            said.take_in(other);
            Ok(said)
        })
    }

    fn read_here(
        topic: &Topic<'_>,
        plan: &'a Plan,
        spans: &Spans,
        newest: &Marks,
        bar: &ProgressBar,
    ) -> anyhow::Result<Self> {
        let ranges = hull(spans);
        let begin = |(at, span): (&(Table, i32), &Range<i64>)| {
            let of_table = OfTable {
                span: span.clone(),
                digest: Sha256::new_with_prefix(HEADER),
                rows: 0,
                expired: 0,
            };
            (*at, of_table)
        };
        let mut said = Self {
            fingerprint: Fingerprint::new(plan),
            tables: spans.iter().map(begin).collect(),
            events: ranges.keys().map(|partition| (*partition, 0)).collect(),
            aborted: BTreeMap::new(),
            unreadable: Marks::new(&ranges),
            unreadable_count: BTreeMap::new(),
            unreadable_shown: Vec::new(),
            unknown_writer: Marks::new(&ranges),
        };
        let (mut copy, mut put) = (RowWriter::default(), Vec::new());
        let mut read = 0;
        let each = |record: &BorrowedMessage<'_>| {
            topic.writers.learn_soon(record.payload(), topic.stop)?;
            read += 1;
            if read % TOLD_EVERY == 0 {
                bar.inc(TOLD_EVERY);
            }
            let (partition, offset) = (record.partition(), record.offset());
            *said.events.entry(partition).or_default() += 1;
            let value = record.payload();
            let event = match rows(&topic.writers.decoder, value, partition, offset, &mut put) {
                Ok(event) => event,
                Err(reject) => {
                    said.unreadable.set(partition, offset);
                    if UNKNOWN_WRITER.contains(&reject.kind) {
                        said.unknown_writer.set(partition, offset);
                    }
                    *said.unreadable_count.entry(partition).or_default() += 1;
                    if said.unreadable_shown.len() < SHOWN {
                        said.unreadable_shown.push(Unreadable {
                            partition,
                            offset,
                            reason: format!("{}: {}", reject.kind, reject.message),
                        });
                    }
                    return Ok(());
                }
            };
            let is_expired = topic.is_expired(&event);
            for table in Table::ALL {
                let Some(of_table) = said.tables.get_mut(&(table, partition)) else {
                    continue;
                };
                let is_newest = || newest.is_set(partition, offset);
                if !of_table.span.contains(&offset) || (table == Table::Task && !is_newest()) {
                    continue;
                }
                if is_expired && table != Table::Task {
                    of_table.expired += table.rows_of(&event);
                    continue;
                }
                copy.clear();
                table.write(&mut copy, &event);
                of_table.digest.update(copy.rows());
                for row in row_format::rows(copy.rows()) {
                    said.fingerprint.add(table, &row[2..]);
                    of_table.rows += 1;
                }
            }
            Ok(())
        };
        let reader = topic.reader;
        if reader.scan_and_note_aborted(topic.name, &ranges, topic.stop, each)? {
            said.aborted = aborted(topic, &ranges, &said.events)?;
        }
        Ok(said)
    }

    /// Takes in what another one of the same plan says, of other partitions.
    fn take_in(&mut self, other: Self) {
        self.fingerprint.take_in(other.fingerprint);
        self.tables.extend(other.tables);
        self.events.extend(other.events);
        self.aborted.extend(other.aborted);
        self.unreadable.take_in(other.unreadable);
        self.unreadable_count.extend(other.unreadable_count);
        self.unreadable_shown.extend(other.unreadable_shown);
        self.unreadable_shown
            .sort_by_key(|shown| (shown.partition, shown.offset));
        self.unreadable_shown.truncate(SHOWN);
        self.unknown_writer.take_in(other.unknown_writer);
    }

    /// Rows and digest of each table and partition.
    pub(crate) fn digests(&mut self) -> BTreeMap<(Table, i32), Digested> {
        let tables = std::mem::take(&mut self.tables).into_iter();
        let finish = |(at, of_table): ((Table, i32), OfTable)| {
            let digested = Digested {
                rows: of_table.rows,
                expired: of_table.expired,
                sha256: hex(&of_table.digest.chain_update(TRAILER).finalize()),
            };
            (at, digested)
        };
        tables.map(finish).collect()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All offsets of each partition that any table has a span of.
pub(crate) fn hull(spans: &Spans) -> Ranges {
    let mut hull = Ranges::new();
    for ((_, partition), span) in spans.iter().filter(|(_, span)| !span.is_empty()) {
        let whole: &mut Range<i64> = hull.entry(*partition).or_insert(span.clone());
        *whole = whole.start.min(span.start)..whole.end.max(span.end);
    }
    hull
}

/// Records of aborted transactions among these offsets, by partition: all that there are, less the
/// `committed` ones, for which the topic is read once more. Read only of partitions that have fewer of those
/// than offsets.
///
/// # Errors
/// If the topic cannot be read to the end.
fn aborted(
    topic: &Topic<'_>,
    ranges: &Ranges,
    committed: &BTreeMap<i32, u64>,
) -> anyhow::Result<BTreeMap<i32, u64>> {
    let mut ranges = ranges.clone();
    ranges.retain(|partition, range| (range.end - range.start) as u64 > committed[partition]);
    let mut records: BTreeMap<i32, u64> = BTreeMap::new();
    topic
        .reader
        .scan_with_aborted(topic.name, &ranges, topic.stop, |record| {
            *records.entry(record.partition()).or_default() += 1;
            Ok(())
        })?;
    for (partition, count) in &mut records {
        *count -= committed[partition].min(*count);
    }
    Ok(records)
}

/// The rows of a table that the events of these offsets of a partition stand for, in order, handed on
/// in pieces of whole rows; of `task` those of all events. `records` marks each record before its rows are handed on.
///
/// # Errors
/// If the topic cannot be read to the end.
pub(crate) fn rows_of(
    topic: &Topic<'_>,
    table: Table,
    partition: i32,
    places: &[Range<i64>],
    records: &Mutex<Marks>,
    pieces: &tokio::sync::mpsc::Sender<Vec<u8>>,
) -> anyhow::Result<()> {
    const PIECE_BYTES: usize = 64 << 10;
    let (mut copy, mut put) = (RowWriter::default(), Vec::new());
    for place in places {
        let ranges = [(partition, place.clone())].into();
        topic.scan(&ranges, |record| {
            let (value, offset) = (record.payload(), record.offset());
            let mut seen = records.lock().unwrap_or_else(PoisonError::into_inner);
            seen.set(partition, offset);
            drop(seen);
            if let Ok(event) = rows(&topic.writers.decoder, value, partition, offset, &mut put)
                && (table == Table::Task || !topic.is_expired(&event))
            {
                table.write(&mut copy, &event);
                if copy.rows().len() >= PIECE_BYTES {
                    // Where nobody listens any more, the other side says why.
                    let _ = pieces.blocking_send(copy.take());
                }
            }
            Ok(())
        })?;
    }
    let _ = pieces.blocking_send(copy.take());
    Ok(())
}

/// The records at these places, of those that are there.
///
/// # Errors
/// If the topic cannot be read.
pub(crate) fn records(
    topic: &Topic<'_>,
    places: impl IntoIterator<Item = (i32, i64)>,
) -> anyhow::Result<Vec<OwnedMessage>> {
    let mut records = Vec::new();
    each_record(topic, places, Isolation::Committed, |record| {
        records.push(record.detach());
        Ok(())
    })?;
    Ok(records)
}

/// Which records are read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    Committed,
    /// Those of aborted transactions too.
    All,
}

/// Hands the records at these places, of those that are there, to `each`.
///
/// # Errors
/// If the topic cannot be read, or `each` fails.
pub(crate) fn each_record(
    topic: &Topic<'_>,
    places: impl IntoIterator<Item = (i32, i64)>,
    isolation: Isolation,
    mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut wanted: BTreeMap<i32, BTreeSet<i64>> = BTreeMap::new();
    for (partition, offset) in places {
        wanted.entry(partition).or_default().insert(offset);
    }
    wanted.retain(|partition, _| (0..topic.partitions).contains(partition));
    block_in_place(|| {
        let mut places: BTreeMap<i32, VecDeque<Range<i64>>> = BTreeMap::new();
        for (partition, offsets) in &wanted {
            let log = topic.reader.bounds(topic.name, *partition, End::Stable)?;
            let of_partition: Vec<Range<i64>> = offsets
                .iter()
                .filter(|offset| log.contains(offset))
                .map(|offset| *offset..offset + 1)
                .collect();
            places.insert(*partition, join(&of_partition, NEAR_RECORDS).into());
        }
        // A place of each partition at a time: every scan begins with a client of its own.
        loop {
            let next = places.iter_mut();
            let ranges: Ranges = next
                .filter_map(|(partition, places)| Some((*partition, places.pop_front()?)))
                .collect();
            if ranges.is_empty() {
                return Ok(());
            }
            let read = |record: &BorrowedMessage<'_>| match wanted[&record.partition()]
                .contains(&record.offset())
            {
                true => each(record),
                false => Ok(()),
            };
            match isolation {
                Isolation::Committed => topic.scan(&ranges, read)?,
                Isolation::All => {
                    let reader = topic.reader;
                    reader.scan_with_aborted(topic.name, &ranges, topic.stop, read)?;
                }
            }
        }
    })
}

/// Joins places that lie near each other, and if they are many, more of them.
pub(crate) fn join(places: &[Range<i64>], near: i64) -> Vec<Range<i64>> {
    let mut joined: Vec<Range<i64>> = Vec::new();
    for place in places {
        match joined.last_mut() {
            Some(last) if place.start.saturating_sub(last.end) <= near => {
                last.end = last.end.max(place.end)
            }
            _ => joined.push(place.clone()),
        }
    }
    if joined.len() > MAX_PLACES {
        return join(&joined, near.saturating_mul(8));
    }
    joined
}
