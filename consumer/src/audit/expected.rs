//! The rows that the tables should hold: reads each event once, derives its rows as `consumer run` does, and hashes
//! them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::anyhow;
use indicatif::ProgressBar;
use rdkafka::message::{BorrowedMessage, Message};
use serde::Serialize;
use service::range::Ranges;
use service::text::hex;
use sha2::{Digest, Sha256};

use super::fingerprint::{Fingerprint, Marks, Plan};
use super::spans::{Spans, hull};
use super::topic::Topic;
use crate::batch::half_of;
use crate::row_format::{self, HEADER, RowWriter, TRAILER};
use crate::rows::rows;
use crate::tables::{Table, TaskKey};

/// Maximum number of unreadable events listed.
const SHOWN: usize = 20;
/// Rejects that other `--schemas` or another `--schema-registry` would turn into rows.
const UNKNOWN_WRITER: [&str; 3] = ["UnknownSchema", "NoSchemaRegistry", "UnknownSchemaId"];
/// The progress bar moves in steps of this many records.
const BAR_STEP: u64 = 1_024;

/// Digests and sums of the rows that the events of the audited offsets produce.
pub(super) struct ExpectedRows<'a> {
    pub(crate) fingerprint: Fingerprint<'a>,
    tables: BTreeMap<(Table, i32), TableDigest>,
    /// Records visible to read_committed consumers, by partition.
    pub(crate) events: BTreeMap<i32, u64>,
    /// Records of aborted transactions, by partition.
    pub(crate) aborted: BTreeMap<i32, u64>,
    /// Events that have no rows because they cannot be read.
    pub(crate) unreadable: Marks,
    pub(crate) unreadable_count: BTreeMap<i32, u64>,
    pub(crate) unreadable_shown: Vec<Unreadable>,
    /// Events whose writer schema is unknown here: a consumer that knows it may have stored them.
    pub(crate) unknown_writer: Marks,
}

/// The digest of one table and partition so far.
struct TableDigest {
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

/// The rows that a partition's events produce in one table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Digested {
    pub(crate) rows: u64,
    /// Rows that were not compared, because `consumer expire` removes them.
    pub(crate) expired: u64,
    /// SHA-256, in hexadecimal, of the rows in PostgreSQL's binary COPY format, header and trailer included, in the
    /// order of their offsets.
    pub(crate) sha256: String,
}

impl<'a> ExpectedRows<'a> {
    /// Reads the events of these spans, half of the partitions on another thread. For `task`, only the rows whose
    /// events are `newest`.
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
            let (mut expected, other) = (half?, other.join().unwrap_or_else(failed)?);
            bar.finish_and_clear();
            expected.take_in(other);
            Ok(expected)
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
            let of_table = TableDigest {
                span: span.clone(),
                digest: Sha256::new_with_prefix(HEADER),
                rows: 0,
                expired: 0,
            };
            (*at, of_table)
        };
        let mut expected = Self {
            fingerprint: Fingerprint::new(plan),
            tables: spans.iter().map(begin).collect(),
            events: ranges.keys().map(|partition| (*partition, 0)).collect(),
            aborted: BTreeMap::new(),
            unreadable: Marks::new(&ranges),
            unreadable_count: BTreeMap::new(),
            unreadable_shown: Vec::new(),
            unknown_writer: Marks::new(&ranges),
        };
        let (mut copy, mut buffer) = (RowWriter::default(), Vec::new());
        let mut read = 0;
        let each = |record: &BorrowedMessage<'_>| {
            let schema = |id| topic.schemas.schema_soon(id, topic.stop);
            topic.schemas.decoder.learn(record.payload(), schema)?;
            read += 1;
            if read % BAR_STEP == 0 {
                bar.inc(BAR_STEP);
            }
            let (partition, offset) = (record.partition(), record.offset());
            *expected.events.entry(partition).or_default() += 1;
            let value = record.payload();
            let event = match rows(
                &topic.schemas.decoder,
                value,
                partition,
                offset,
                &mut buffer,
            ) {
                Ok(event) => event,
                Err(reject) => {
                    expected.unreadable.set(partition, offset);
                    if UNKNOWN_WRITER.contains(&reject.kind) {
                        expected.unknown_writer.set(partition, offset);
                    }
                    *expected.unreadable_count.entry(partition).or_default() += 1;
                    if expected.unreadable_shown.len() < SHOWN {
                        expected.unreadable_shown.push(Unreadable {
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
                let Some(of_table) = expected.tables.get_mut(&(table, partition)) else {
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
                table.write(&mut copy, &event, TaskKey::ExecId);
                if table == Table::Task {
                    copy.cut_fields(table.event_columns().len());
                }
                of_table.digest.update(copy.rows());
                for row in row_format::rows(copy.rows()) {
                    expected.fingerprint.add(table, &row[2..]);
                    of_table.rows += 1;
                }
            }
            Ok(())
        };
        let reader = topic.reader;
        if reader.scan_and_note_aborted(topic.name, &ranges, topic.stop, each)? {
            expected.aborted = aborted(topic, &ranges, &expected.events)?;
        }
        Ok(expected)
    }

    /// Adds the rows of other partitions, read with the same plan.
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
        let finish = |(at, of_table): ((Table, i32), TableDigest)| {
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

/// Counts records of aborted transactions among these offsets, by partition: all records less the `committed` ones.
/// Reads the topic a second time, but only partitions with fewer committed records than offsets.
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

/// Sends the rows of a table that the events at these offsets of a partition produce, in order, in pieces of whole
/// rows; for `task`, those of all events. Sets each record in `records` before its rows are sent.
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
    let (mut copy, mut buffer) = (RowWriter::default(), Vec::new());
    for place in places {
        let ranges = [(partition, place.clone())].into();
        topic.scan(&ranges, |record| {
            let (value, offset) = (record.payload(), record.offset());
            let mut seen = records.lock().unwrap_or_else(PoisonError::into_inner);
            seen.set(partition, offset);
            drop(seen);
            if let Ok(event) = rows(
                &topic.schemas.decoder,
                value,
                partition,
                offset,
                &mut buffer,
            ) && (table == Table::Task || !topic.is_expired(&event))
            {
                table.write(&mut copy, &event, TaskKey::ExecId);
                if copy.rows().len() >= PIECE_BYTES {
                    // If the receiver is closed, its side reports the error.
                    let _ = pieces.blocking_send(copy.take());
                }
            }
            Ok(())
        })?;
    }
    let _ = pieces.blocking_send(copy.take());
    Ok(())
}
