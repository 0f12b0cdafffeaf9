//! The first pass: reads everything once and sums it up. Equal buckets are proved; the rest is narrowed down
//! to a few offsets.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Mutex;

use anyhow::anyhow;
use rdkafka::message::{BorrowedMessage, Message};
use service::range::{Position, Ranges};
use tokio_util::sync::CancellationToken;

use super::Auditor;
use super::findings::{Example, FindingKind, Findings};
use super::scope::{AuditedTopic, Place, Scope};
use crate::outputs::{OutputRecord, position};
use crate::route::Outcome;

/// Memory overhead of an examined record besides its value, in bytes, rounded up.
const ENTRY_BYTES: u64 = 256;
/// Maximum number of out-of-order events that are kept until it is known whether they are second copies.
const INVERTED: usize = 100_000;
/// Number of segments of a partition's log; each can be read again separately.
const SEGMENTS: i128 = 63;
/// Bit that marks a bucket with an out-of-order event, next to the bits of the segments.
const MARK: u64 = 1 << SEGMENTS;

/// Sums over the source topic.
pub(super) struct Expected {
    sums: Vec<u64>,
    /// Memory for the records of each bucket when they are examined, in bytes.
    pub(super) bytes: Vec<u64>,
    /// Records by partition.
    pub(super) records: BTreeMap<i32, u64>,
}

/// Sums over an output topic.
pub(super) struct Found {
    sums: Vec<u64>,
    /// The segments that contain outputs of each bucket, one bit per segment.
    pub(super) segments: Vec<u64>,
    /// Outputs of records in the range, by source partition.
    pub(super) counts: BTreeMap<i32, u64>,
    /// Outputs whose source record retention has deleted, by source partition.
    pub(super) expired: BTreeMap<i32, u64>,
    /// Outputs of an earlier topic that had the source topic's name.
    pub(super) earlier_topic: u64,
    /// Copies of events that redrives wrote.
    pub(super) redriven: u64,
    /// Records of other topics or services, and notes.
    pub(super) foreign: u64,
    /// Outputs of records that do not exist.
    pub(super) findings: Findings,
    /// Events after the event of a later record.
    pub(super) inverted: BTreeSet<Position>,
    /// Number of further ones, by source partition.
    pub(super) inverted_more: BTreeMap<i32, u64>,
    /// By source partition, the first offset whose output retention cannot have deleted; without an entry,
    /// retention cannot have deleted any.
    pub(super) whole_from: BTreeMap<i32, i64>,
}

/// Sums over the source topic and both output topics.
pub(super) struct FirstPass {
    pub(super) expected: Expected,
    pub(super) events: Found,
    pub(super) letters: Found,
}

impl FirstPass {
    /// The buckets whose sums differ or whose events are out of order.
    pub(super) fn suspects(&self) -> impl Iterator<Item = bool> + '_ {
        let found = self.events.sums.iter().zip(&self.letters.sums);
        let marked = self.events.marked();
        found
            .zip(&self.expected.sums)
            .zip(marked)
            .map(|(((events, letters), expected), marked)| {
                marked || events.wrapping_add(*letters) != *expected
            })
    }
}

impl Found {
    /// Whether each bucket has an out-of-order event, since sums ignore the order.
    fn marked(&self) -> impl Iterator<Item = bool> + '_ {
        self.segments.iter().map(|segments| segments & MARK != 0)
    }
}

/// The bit of the segment that contains an offset.
fn segment(log: &Range<i64>, offset: i64) -> u64 {
    let length = i128::from(log.end - log.start).max(1);
    1 << (i128::from(offset - log.start) * SEGMENTS / length).clamp(0, SEGMENTS - 1)
}

/// The part of each log from the first to the last of these segments.
pub(super) fn segments(logs: &Ranges, segments: u64) -> Ranges {
    let segments = segments & !MARK;
    if segments == 0 {
        return Ranges::new();
    }
    let first = i128::from(segments.trailing_zeros());
    let behind_last = i128::from(u64::BITS - segments.leading_zeros());
    let part = |log: &Range<i64>| {
        let length = i128::from(log.end - log.start);
        // A segment's first offset: rounded up, as `segment` rounds down.
        let at = |segment: i128| {
            let offsets = (segment * length + SEGMENTS - 1) / SEGMENTS;
            log.start + i64::try_from(offsets).unwrap_or(0)
        };
        at(first)..at(behind_last)
    };
    logs.iter()
        .map(|(partition, log)| (*partition, part(log)))
        .collect()
}

impl Auditor<'_> {
    /// Reads everything once, source and outputs concurrently.
    pub(super) fn first_pass(&self) -> anyhow::Result<FirstPass> {
        let scope = &self.scope;
        for part in [&scope.source, &scope.events, &scope.letters] {
            self.progress.more(&part.ranges);
        }
        // The first error stops both.
        let (stop, failed) = (self.stop.child_token(), Mutex::new(None));
        let fail = |error: anyhow::Error| {
            stop.cancel();
            if let Ok(mut failed) = failed.lock() {
                failed.get_or_insert(error);
            }
        };
        let (expected, found) = std::thread::scope(|threads| {
            let outputs = threads.spawn(|| {
                let events = self.found(&scope.events, &stop, |record| self.event(record));
                let letters = events.and_then(|events| {
                    let letters = self.found(&scope.letters, &stop, |record| self.letter(record));
                    Ok((events, letters?))
                });
                letters.map_err(&fail).ok()
            });
            let expected = self.expected(&stop).map_err(&fail).ok();
            (expected, outputs.join().ok().flatten())
        });
        if let Some(error) = failed.into_inner().ok().flatten() {
            return Err(error);
        }
        match (expected, found) {
            (Some(expected), Some((events, letters))) => Ok(FirstPass {
                expected,
                events,
                letters,
            }),
            _ => Err(anyhow!("reading ended too early")),
        }
    }

    fn expected(&self, stop: &CancellationToken) -> anyhow::Result<Expected> {
        let mut expected = Expected {
            sums: self.buckets.zeros(),
            bytes: self.buckets.zeros(),
            records: BTreeMap::new(),
        };
        let source = &self.scope.source;
        let mut buffer = Vec::new();
        self.scan(&source.topic, &source.ranges, stop, |record| {
            let at = position(record);
            let Some(bucket) = self.buckets.find(at) else {
                return Ok(());
            };
            let payload = record.payload();
            let timestamp = record.timestamp().to_millis().unwrap_or(-1);
            let outcome = match self.today(at, timestamp, payload, &mut buffer) {
                Outcome::Event { key, value, .. } => self.sum(at, Some(key.as_bytes()), value)?,
                Outcome::DeadLetter(_) => self.outcomes.letter(at),
            };
            let sum = &mut expected.sums[bucket];
            *sum = sum.wrapping_add(outcome);
            expected.bytes[bucket] += ENTRY_BYTES + payload.map_or(0, <[u8]>::len) as u64;
            *expected.records.entry(at.partition).or_default() += 1;
            Ok(())
        })?;
        Ok(expected)
    }

    fn found(
        &self,
        part: &AuditedTopic,
        stop: &CancellationToken,
        read: impl Fn(&BorrowedMessage<'_>) -> anyhow::Result<OutputRecord>,
    ) -> anyhow::Result<Found> {
        let mut found = Found {
            sums: self.buckets.zeros(),
            segments: self.buckets.zeros(),
            counts: BTreeMap::new(),
            expired: BTreeMap::new(),
            earlier_topic: 0,
            redriven: 0,
            foreign: 0,
            findings: Findings::with_examples(self.examples),
            inverted: BTreeSet::new(),
            inverted_more: BTreeMap::new(),
            whole_from: BTreeMap::new(),
        };
        // By output partition and source partition: the newest event, and, if retention has deleted some
        // outputs, the oldest remaining one.
        let mut newest: BTreeMap<(i32, i32), i64> = BTreeMap::new();
        let mut oldest: BTreeMap<(i32, i32), i64> = BTreeMap::new();
        // Partitions that still have outputs of an earlier topic: all outputs of this one come after them.
        let mut begin_earlier: BTreeSet<i32> = BTreeSet::new();
        self.scan(&part.topic, &part.ranges, stop, |record| {
            let output_at = position(record);
            let log = &part.ranges[&output_at.partition];
            let output = read(record)?;
            let Some(about) = output.about() else {
                match output {
                    OutputRecord::Unreadable(why) => {
                        found.findings.add(FindingKind::Invented, None, || {
                            nothing(&self.scope, part, output_at, None, why)
                        })
                    }
                    OutputRecord::Earlier => {
                        found.earlier_topic += 1;
                        begin_earlier.insert(output_at.partition);
                    }
                    OutputRecord::Redriven => found.redriven += 1,
                    _ => found.foreign += 1,
                }
                return Ok(());
            };
            let place = self.scope.place(about);
            if let Place::Nowhere(why) = place {
                let known = self.scope.logs.contains_key(&about.partition);
                let partition = known.then_some(about.partition);
                found.findings.add(FindingKind::Invented, partition, || {
                    nothing(&self.scope, part, output_at, Some(about), why)
                });
                return Ok(());
            }
            let path = (output_at.partition, about.partition);
            if log.start > 0 {
                let least = oldest.entry(path).or_insert(about.offset);
                *least = about.offset.min(*least);
            }
            if place == Place::Expired {
                *found.expired.entry(about.partition).or_default() += 1;
            }
            let Some(bucket) = self.buckets.find(about) else {
                return Ok(());
            };
            let outcome = match output {
                OutputRecord::Event(..) => {
                    let before = newest.entry(path).or_insert(about.offset);
                    if about.offset >= *before {
                        *before = about.offset;
                    } else if found.inverted.len() < INVERTED {
                        found.inverted.insert(output_at);
                        found.segments[bucket] |= MARK;
                    } else {
                        *found.inverted_more.entry(about.partition).or_default() += 1;
                    }
                    self.sum(about, record.key(), record.payload().unwrap_or_default())?
                }
                _ => self.outcomes.letter(about),
            };
            let sum = &mut found.sums[bucket];
            *sum = sum.wrapping_add(outcome);
            found.segments[bucket] |= segment(log, output_at.offset);
            *found.counts.entry(about.partition).or_default() += 1;
            Ok(())
        })?;
        let may_lack =
            |output_at: &i32, log: &Range<i64>| log.start > 0 && !begin_earlier.contains(output_at);
        for (output_at, _) in part
            .ranges
            .iter()
            .filter(|(output_at, log)| may_lack(output_at, log))
        {
            for partition in self.scope.source.ranges.keys() {
                let oldest = oldest.get(&(*output_at, *partition)).copied();
                let whole_from = found.whole_from.entry(*partition).or_insert(0);
                *whole_from = oldest.unwrap_or(i64::MAX).max(*whole_from);
            }
        }
        Ok(found)
    }
}

/// Example of an output of a record that does not exist.
pub(super) fn nothing(
    scope: &Scope,
    part: &AuditedTopic,
    output_at: Position,
    about: Option<Position>,
    why: String,
) -> Example {
    let is_event = part.topic == scope.events.topic;
    let (events, letters) = match is_event {
        true => (vec![output_at], vec![]),
        false => (vec![], vec![output_at]),
    };
    Example {
        about,
        events,
        letters,
        why,
        ..Example::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_part_of_a_log_that_is_read_again_holds_each_offset_whose_segment_is_asked_for(
            start in 0..1_i64 << 50, length in 1..1_i64 << 50, first in 0.0..1.0, second in 0.0..1.0,
        ) {
            let log = start..start + length;
            let offsets = [first, second].map(|share: f64| start + (share * length as f64) as i64);
            let asked = offsets.iter().fold(MARK, |asked, offset| asked | segment(&log, *offset));
            let read = &segments(&Ranges::from([(7, log.clone())]), asked)[&7];
            prop_assert!(log.start <= read.start && read.end <= log.end);
            for offset in offsets {
                prop_assert!(read.contains(&offset), "{} in {:?}", offset, read);
            }
            let all = (0..63).fold(0, |all, segment| all | 1 << segment);
            prop_assert_eq!(&segments(&Ranges::from([(7, log.clone())]), all)[&7], &log);
        }
    }
}
