//! Records that were read and are not stored yet, and the rows and offset steps of their transactions.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use ahash::RandomState;
use rdkafka::message::Message;
use schemas::{Decoder, Reject, plain_event};
use tokio::time::Instant;

use crate::positions::{Advance, Anchor, Positions};
use crate::rows::{Part, Rows, plain};

/// A record that was read and is not stored yet.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) partition: i32,
    pub(crate) anchor: Anchor,
    /// The event's bytes in the plain encoding, or why it becomes a dead letter. (Boxed: rejects are rare.)
    pub(crate) event: Result<Box<[u8]>, Box<Reject>>,
    /// The schema id to look up in the registry first; until then, `event` is the record's value unchanged.
    pub(crate) unread: Option<u32>,
    /// Bytes of key and value in the topic.
    pub(crate) bytes_in_topic: usize,
}

impl Record {
    pub(crate) fn read(decoder: &Decoder, record: &impl Message) -> Self {
        let value = record.payload();
        let unread = decoder.unknown_id(value);
        let event = match (unread, value) {
            (Some(_), Some(value)) => Ok(value.into()),
            _ => read(decoder, value),
        };
        Self {
            partition: record.partition(),
            anchor: Anchor::of(record),
            event,
            unread,
            bytes_in_topic: value.map_or(0, <[u8]>::len) + record.key().map_or(0, <[u8]>::len),
        }
    }

    /// Bytes in memory.
    fn bytes(&self) -> usize {
        match &self.event {
            Ok(event) => event.len(),
            Err(reject) => reject.message.len(),
        }
    }

    /// Its rows; `None`: it becomes a dead letter.
    pub(crate) fn rows(&self) -> Option<Rows<'_>> {
        let event = plain_event(self.event.as_ref().ok()?)?;
        Some(Rows::of(event, self.partition, self.anchor.offset))
    }
}

fn read(decoder: &Decoder, value: Option<&[u8]>) -> Result<Box<[u8]>, Box<Reject>> {
    plain(decoder, value).map(Into::into).map_err(Box::new)
}

/// Records in the order they were read. Any prefix can be stored on its own.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    records: Vec<Record>,
    bytes: usize,
    /// Number of rejects at the end.
    rejects_at_end: usize,
    /// When the first record was read, or the wait was restarted.
    since: Option<Instant>,
}

impl Batch {
    pub(crate) fn push(&mut self, record: Record) {
        if self.records.is_empty() {
            self.since = Some(Instant::now());
        }
        self.bytes += record.bytes();
        self.rejects_at_end = match record.event {
            Ok(_) => 0,
            Err(_) => self.rejects_at_end + 1,
        };
        self.records.push(record);
    }

    /// Appends those records of a batch read later that `is_wanted` accepts.
    pub(crate) fn append(&mut self, later: &mut Self, is_wanted: impl Fn(&Record) -> bool) {
        let since = match self.records.is_empty() {
            true => later.since,
            false => self.since,
        };
        for record in later.take() {
            if is_wanted(&record) {
                self.push(record);
            }
        }
        self.since = since;
    }

    /// When the batch began to wait for storing; `None`: it is empty.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since.filter(|_| !self.records.is_empty())
    }

    /// Waits for more records, as if the first one had been read now.
    pub(crate) fn restart_wait(&mut self) {
        self.since = Some(Instant::now());
    }

    /// How many of the last records are rejects.
    pub(crate) fn rejects_at_end(&self) -> usize {
        self.rejects_at_end
    }

    fn count_rejects_at_end(&mut self) {
        let last = self.records.iter().rev();
        self.rejects_at_end = last.take_while(|record| record.event.is_err()).count();
    }

    pub(crate) fn records(&self) -> &[Record] {
        &self.records
    }

    /// The index and the schema id of the first record, from `from` on, with an unknown schema.
    pub(crate) fn unread(&self, from: usize) -> Option<(usize, u32)> {
        let mut records = self.records.iter().enumerate().skip(from);
        records.find_map(|(place, record)| Some((place, record.unread?)))
    }

    /// Decodes the record at this index, whose schema id is now known.
    pub(crate) fn read(&mut self, place: usize, decoder: &Decoder) {
        if let Some(record) = self.records.get_mut(place)
            && let (Some(_), Ok(value)) = (record.unread.take(), &record.event)
        {
            self.bytes -= value.len();
            record.event = read(decoder, Some(value));
            self.bytes += record.bytes();
            self.count_rejects_at_end();
        }
    }

    /// Bytes of the events.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes all records.
    pub(crate) fn take(&mut self) -> Vec<Record> {
        std::mem::take(self).records
    }

    /// Turns the record at this index into a dead letter.
    pub(crate) fn reject(&mut self, place: usize, reject: Reject) {
        if let Some(record) = self.records.get_mut(place) {
            self.bytes -= record.bytes();
            record.event = Err(Box::new(reject));
            self.bytes += record.bytes();
            self.count_rejects_at_end();
        }
    }

    /// Removes the first `count` records, which are stored.
    pub(crate) fn stored(&mut self, count: usize) {
        let stored = self.records.drain(..count);
        self.bytes -= stored.map(|record| record.bytes()).sum::<usize>();
        self.rejects_at_end = self.rejects_at_end.min(self.records.len());
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Drops the records of these partitions.
    pub(crate) fn forget(&mut self, partitions: &[i32]) {
        self.records
            .retain(|record| !partitions.contains(&record.partition));
        self.bytes = self.records.iter().map(Record::bytes).sum();
        self.count_rejects_at_end();
    }
}

/// The last record of each partition.
pub(crate) fn last_read<'a>(
    records: impl IntoIterator<Item = &'a Record>,
) -> BTreeMap<i32, Anchor> {
    let records = records.into_iter();
    records
        .map(|record| (record.partition, record.anchor))
        .collect()
}

/// The first record's offset of each partition.
fn first_read(records: &[&Record]) -> BTreeMap<i32, i64> {
    let mut first = BTreeMap::new();
    for record in records {
        first
            .entry(record.partition)
            .or_insert(record.anchor.offset);
    }
    first
}

/// The steps from `positions` to the end of these records, in a fixed order: writers that lock in the same order cannot
/// deadlock.
pub(crate) fn advances(records: &[&Record], parts: &[Part], positions: &Positions) -> Vec<Advance> {
    let (first, mut advances) = (first_read(records), Vec::new());
    for (partition, anchor) in last_read(records.iter().copied()) {
        for &part in parts {
            let expected = positions.get(&(part, partition)).copied();
            let next = anchor.offset + 1;
            if expected.is_none_or(|stored| stored < next) {
                advances.push(Advance {
                    part,
                    partition,
                    expected,
                    first: first.get(&partition).copied().unwrap_or(anchor.offset),
                    next,
                    anchor: Some(anchor),
                });
            }
        }
    }
    advances
}

/// The rows of all these records, except rejects.
pub(crate) fn all_rows<'a>(records: &[&'a Record]) -> Vec<Rows<'a>> {
    records.iter().filter_map(|record| record.rows()).collect()
}

/// Splits these records into two halves with different partitions; `None` if they are all of one.
pub(crate) fn halves<'a>(records: &[&'a Record]) -> Option<[Vec<&'a Record>; 2]> {
    let mut counts: BTreeMap<i32, i64> = BTreeMap::new();
    for record in records {
        *counts.entry(record.partition).or_default() += 1;
    }
    let half = half_of(counts);
    let is_of_half = |record: &&Record| half.contains(&record.partition);
    let (half, other) = records.iter().copied().partition::<Vec<_>, _>(is_of_half);
    (!other.is_empty()).then_some([half, other])
}

/// Partitions with about half of all records, given the number of records by partition.
pub(crate) fn half_of(counts: impl IntoIterator<Item = (i32, i64)>) -> BTreeSet<i32> {
    let mut counts = Vec::from_iter(counts);
    counts.sort_by_key(|(_, count)| Reverse(*count));
    let (mut half, mut ahead) = (BTreeSet::new(), 0);
    for (partition, count) in counts {
        if ahead > 0 {
            ahead -= count;
        } else {
            half.insert(partition);
            ahead += count;
        }
    }
    half
}

/// Whether the rows of this event's part are not stored yet.
pub(crate) fn is_unstored(rows: &Rows<'_>, part: Part, positions: &Positions) -> bool {
    let stored = positions.get(&(part, rows.partition));
    stored.is_none_or(|stored| rows.offset >= *stored)
}

/// The tasks of some events.
#[derive(Default)]
pub(crate) struct Tasks<'a> {
    /// The newest event of each task, with the earliest times of all its events.
    pub(crate) newest: Vec<Rows<'a>>,
    /// Each task's index in `newest`, by execId.
    pub(crate) places: HashMap<&'a str, usize, RandomState>,
}

impl<'a> Tasks<'a> {
    /// Adds an event. Returns the index of its task.
    pub(crate) fn add(&mut self, rows: &Rows<'a>) -> usize {
        let place = self.places.entry(rows.info.exec_id);
        let place = *place.or_insert(self.newest.len());
        match self.newest.get_mut(place) {
            Some(held) => held.fold(rows),
            None => self.newest.push(*rows),
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::rows;

    use crate::strategies;
    use proptest::prelude::*;

    fn anchor(offset: i64) -> Anchor {
        Anchor {
            offset,
            timestamp_ms: 0,
            crc32: 0,
        }
    }

    fn record(offset: i64, event: &schemas::TaskRunningInfoEvent) -> Record {
        Record {
            partition: 0,
            anchor: anchor(offset),
            event: Ok(schemas::encode_event(event).unwrap().into()),
            unread: None,
            bytes_in_topic: 0,
        }
    }

    #[test]
    fn each_part_moves_on_from_where_it_stands_and_stores_only_what_it_lacks() {
        let mut batch = Batch::default();
        for offset in 10..16 {
            batch.push(record(offset, &strategies::sample_event()));
        }
        // A dead letter at the end: no rows, but read.
        let refused = plain(&Decoder::default(), None).unwrap_err();
        batch.reject(5, refused);
        let records = &Vec::from_iter(batch.records());
        let positions =
            Positions::from_iter([((Part::Progress, 0), 13), ((Part::Resource, 0), 16)]);
        let advances = advances(records, &Part::ALL, &positions);
        let steps: Vec<_> = advances
            .iter()
            .map(|step| (step.part, step.expected, step.first, step.next))
            .collect();
        assert_eq!(
            steps,
            [
                (Part::Progress, Some(13), 10, 16),
                (Part::Metrics, None, 10, 16)
            ]
        );
        let unstored = |part| {
            let mut events = all_rows(records);
            events.retain(|rows| is_unstored(rows, part, &positions));
            Vec::from_iter(events.iter().map(|rows| rows.offset))
        };
        assert_eq!(unstored(Part::Progress), [13, 14]);
        assert_eq!(unstored(Part::Resource), [0_i64; 0]);
        assert_eq!(unstored(Part::Metrics), [10, 11, 12, 13, 14]);
        assert_eq!(last_read(batch.records()), [(0, anchor(15))].into());
        // Two are stored, the rest is a batch of its own.
        batch.stored(2);
        assert_eq!(batch.records()[0].anchor.offset, 12);
        batch.forget(&[0]);
        assert!(batch.records().is_empty());
    }

    proptest! {
        /// Each record stands in one half, those of a partition in one and in their order; neither half
        /// is longer by more than a partition.
        #[test]
        fn halves_share_no_partition(partitions in prop::collection::vec(0..9_i32, 1..200)) {
            let event = strategies::sample_event();
            let records = (0..).zip(&partitions).map(|(offset, partition)| Record {
                partition: *partition,
                ..record(offset, &event)
            });
            let records = Vec::from_iter(records);
            let of = |half: &[&Record]| -> BTreeSet<i32> {
                half.iter().map(|record| record.partition).collect()
            };
            match halves(&Vec::from_iter(&records)) {
                None => prop_assert!(partitions.iter().all(|partition| *partition == partitions[0])),
                Some([half, other]) => {
                    prop_assert!(of(&half).is_disjoint(&of(&other)));
                    let offsets = |half: &[&Record]| Vec::from_iter(half.iter().map(|record| record.anchor.offset));
                    let (offsets, others) = (offsets(&half), offsets(&other));
                    prop_assert!(offsets.is_sorted() && others.is_sorted());
                    prop_assert_eq!(half.len() + other.len(), records.len());
                    let longest = (0..9).map(|p| partitions.iter().filter(|q| **q == p).count()).max();
                    prop_assert!(half.len().abs_diff(other.len()) <= longest.unwrap_or_default());
                }
            }
        }

        /// Whatever the order of arrival, the same report is the newest.
        #[test]
        fn the_newest_report_is_the_greatest_in_any_order(
            reports in prop::collection::vec((0..3_i64, 0..3_i64, any::<bool>()), 1..12).prop_shuffle(),
        ) {
            let rows_of = |order: Vec<usize>| {
                let mut batch = Batch::default();
                for i in order {
                    let (reported_at, sequence, is_final) = reports[i];
                    let mut event = strategies::sample_event();
                    event.info.reported_at = reported_at;
                    event.info.sequence = sequence;
                    if is_final {
                        event.info.status = schemas::TaskStatus::Failed;
                    }
                    batch.push(record(i as i64, &event));
                }
                let events = all_rows(&Vec::from_iter(batch.records()));
                let mut tasks = Tasks::default();
                for rows in &events {
                    assert_eq!(tasks.add(rows), 0);
                }
                tasks.newest[tasks.places["exec-1"]].rank()
            };
            let forwards = rows_of((0..reports.len()).collect());
            let backwards = rows_of((0..reports.len()).rev().collect());
            prop_assert_eq!(forwards, backwards);
            let greatest = reports.iter().enumerate().map(|(i, r)| (r.2, r.0, r.1, 0, i as i64)).max();
            prop_assert_eq!(Some(forwards), greatest);
        }

        #[test]
        fn rows_is_total_on_any_bytes(tail in prop::collection::vec(any::<u8>(), 0..200), framed in any::<bool>()) {
            let header = &schemas::encode_event(&strategies::sample_event()).unwrap()[..10];
            let bytes = if framed { [header, &tail].concat() } else { tail };
            let _ = rows(&Decoder::default(), Some(&bytes), 0, 0, &mut Vec::new());
        }

        /// Whatever a router may write becomes rows, and whatever it may not is refused.
        #[test]
        fn an_event_becomes_rows_exactly_when_nothing_is_wrong_with_it(event in strategies::event()) {
            let (bytes, mut buffer) = (schemas::encode_event(&event).unwrap(), Vec::new());
            let derived = rows(&Decoder::default(), Some(&bytes), 3, 4, &mut buffer);
            prop_assert_eq!(derived.is_ok(), event.problems().is_empty());
        }
    }
}
