//! Compares two sets of rows without sorting or holding either: sums of keyed hashes, per bucket of neighbouring
//! offsets.
//!
//! Each audit has a new random key, so nobody can craft rows for it: two buckets with different rows have equal sums
//! with probability 2^-64. The order of rows does not matter, and a bucket takes 16 bytes however many rows it covers.

use std::collections::BTreeMap;
use std::ops::Range;

use ahash::RandomState;

use super::spans::Spans;
use crate::row_format;
use crate::tables::Table;

/// Smallest bucket size in offsets, as a power of two.
const SMALLEST: u32 = 8;
/// Approximate maximum number of buckets per side: 4 MiB.
const BUCKETS: i64 = 1 << 18;

/// Which offsets are compared, in which buckets.
pub(crate) struct Plan {
    key: RandomState,
    shift: u32,
    buckets: usize,
    /// By partition and table. Looked up for each row.
    spans: Vec<[Option<Span>; Table::ALL.len()]>,
}

/// The offsets to compare, and the index of their first bucket.
type Span = (Range<i64>, usize);

impl Plan {
    pub(crate) fn new(spans: &Spans) -> Self {
        let length = |span: &Range<i64>| (span.end - span.start).max(0);
        let count =
            |shift: u32| -> i64 { spans.values().map(|span| (length(span) >> shift) + 1).sum() };
        let fits = |shift: &u32| count(*shift) <= BUCKETS.max(spans.len() as i64 * 2);
        let shift = (SMALLEST..62).find(fits).unwrap_or(62);
        let mut buckets = 0;
        let mut placed = Vec::new();
        for ((table, partition), span) in spans {
            let partition = usize::try_from(*partition).unwrap_or_default();
            if placed.len() <= partition {
                placed.resize(partition + 1, [const { None }; Table::ALL.len()]);
            }
            placed[partition][*table as usize] = Some((span.clone(), buckets));
            buckets += (length(span) >> shift) as usize + 1;
        }
        Self {
            key: RandomState::new(),
            shift,
            buckets,
            spans: placed,
        }
    }

    /// The hash of a task's name, which represents the task in the hashes of its rows.
    pub(crate) fn name(&self, exec_id: Option<&[u8]>) -> u64 {
        self.key.hash_one(exec_id)
    }

    fn span(&self, table: Table, partition: i32) -> Option<&Span> {
        let of_partition = self.spans.get(usize::try_from(partition).ok()?)?;
        of_partition[table as usize].as_ref()
    }

    fn spans(&self) -> impl Iterator<Item = ((Table, i32), &Span)> {
        let partitions = (0..).zip(&self.spans);
        partitions.flat_map(|(partition, of_partition)| {
            let tables = Table::ALL.into_iter();
            tables.filter_map(move |table| {
                Some(((table, partition), of_partition[table as usize].as_ref()?))
            })
        })
    }
}

/// The sums of one side.
pub(crate) struct Fingerprint<'a> {
    plan: &'a Plan,
    /// Number of rows and sum of hashes of each bucket.
    buckets: Vec<(u64, u64)>,
    /// Rows that are in no bucket.
    pub(crate) outside: BTreeMap<(Table, i32), Outside>,
}

/// Rows of a table and partition outside the compared offsets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Outside {
    /// Rows before the compared offsets.
    pub(crate) before: u64,
    /// The smallest offset of those.
    pub(crate) least: Option<i64>,
    /// Rows after the compared offsets; all rows if nothing of the partition is compared.
    pub(crate) behind: u64,
}

impl<'a> Fingerprint<'a> {
    pub(crate) fn new(plan: &'a Plan) -> Self {
        Self {
            plan,
            buckets: vec![(0, 0); plan.buckets],
            outside: BTreeMap::new(),
        }
    }

    /// Adds a row, given its fields; returns its partition and offset if it is compared. (A row without a place, which
    /// no database here can hold, counts for partition -1.)
    pub(crate) fn add(&mut self, table: Table, fields: &[u8]) -> Option<(i32, i64)> {
        let plan = self.plan;
        self.add_named(table, fields, |exec_id| plan.name(exec_id))
    }

    /// [`add`](Self::add) for a row that refers to its task by something other than its name: `name` returns what
    /// [`Plan::name`] returns for that task.
    pub(crate) fn add_named(
        &mut self,
        table: Table,
        fields: &[u8],
        name: impl FnOnce(Option<&[u8]>) -> u64,
    ) -> Option<(i32, i64)> {
        let split = || {
            let (partition, after) = row_format::split_field(fields)?;
            let (offset, after) = row_format::split_field(after)?;
            let (task, rest) = row_format::split_field(after)?;
            let place = (row_format::i32_of(partition)?, row_format::i64_of(offset)?);
            let front = &fields[..fields.len() - after.len()];
            Some((place, front, task, rest))
        };
        let (place, front, task, rest) = split().unwrap_or(((-1, -1), fields, None, &[]));
        let (partition, offset) = place;
        let at = (table, partition);
        match self.plan.span(table, partition) {
            Some((span, first)) if span.contains(&offset) => {
                let bucket = first + ((offset - span.start) >> self.plan.shift) as usize;
                let (rows, sum) = &mut self.buckets[bucket];
                *rows += 1;
                *sum = sum.wrapping_add(self.plan.key.hash_one((front, name(task), rest)));
                return Some((partition, offset));
            }
            Some((span, _)) if offset < span.start => {
                let outside = self.outside.entry(at).or_default();
                outside.before += 1;
                outside.least = Some(outside.least.map_or(offset, |least| least.min(offset)));
            }
            _ => self.outside.entry(at).or_default().behind += 1,
        }
        None
    }

    /// Adds the sums of another fingerprint of the same plan.
    pub(crate) fn take_in(&mut self, other: Self) {
        for ((rows, sum), (more, of_more)) in self.buckets.iter_mut().zip(other.buckets) {
            *rows += more;
            *sum = sum.wrapping_add(of_more);
        }
        for (at, more) in other.outside {
            let outside = self.outside.entry(at).or_default();
            outside.before += more.before;
            outside.least = outside.least.into_iter().chain(more.least).min();
            outside.behind += more.behind;
        }
    }

    /// The number of compared rows, by table and partition.
    pub(crate) fn rows(&self) -> BTreeMap<(Table, i32), u64> {
        let rows = |(span, first): &Span| {
            let last = first + ((span.end - span.start).max(0) >> self.plan.shift) as usize;
            self.buckets[*first..=last]
                .iter()
                .map(|(rows, _)| rows)
                .sum()
        };
        let spans = self.plan.spans();
        spans.map(|(at, span)| (at, rows(span))).collect()
    }

    /// The offsets of buckets that differ, with neighbours joined.
    pub(crate) fn differing(&self, other: &Self) -> BTreeMap<(Table, i32), Vec<Range<i64>>> {
        let mut differing: BTreeMap<(Table, i32), Vec<Range<i64>>> = BTreeMap::new();
        for (at, (span, first)) in self.plan.spans() {
            let length = (span.end - span.start).max(0);
            for bucket in 0..=(length >> self.plan.shift) as usize {
                if self.buckets[first + bucket] == other.buckets[first + bucket] {
                    continue;
                }
                let start = span.start + ((bucket as i64) << self.plan.shift);
                let end = (start + (1 << self.plan.shift)).min(span.end);
                let ranges = differing.entry(at).or_default();
                match ranges.last_mut() {
                    Some(last) if last.end == start => last.end = end,
                    _ => ranges.push(start..end),
                }
            }
        }
        differing
    }
}

/// Marks on the offsets of some partitions, one bit each.
///
/// Not a bitmap crate's set: an audit looks up every event, and `roaring`'s `RoaringTreemap` takes 27 ns for that where
/// this takes 1 ns, in as many bytes if most offsets are marked.
#[derive(Clone, Default)]
pub(crate) struct Marks(BTreeMap<i32, (i64, Vec<u64>)>);

impl Marks {
    /// No marks on these offsets. Others cannot be marked.
    pub(crate) fn new(offsets: &BTreeMap<i32, Range<i64>>) -> Self {
        let words = |offsets: &Range<i64>| (offsets.end - offsets.start).max(0) as usize / 64 + 1;
        let of = |(partition, offsets): (&i32, &Range<i64>)| {
            (*partition, (offsets.start, vec![0; words(offsets)]))
        };
        Self(offsets.iter().map(of).collect())
    }

    fn at(&self, partition: i32, offset: i64) -> Option<(usize, u64)> {
        let (start, words) = self.0.get(&partition)?;
        let bit = usize::try_from(offset.checked_sub(*start)?).ok()?;
        (bit / 64 < words.len()).then_some((bit / 64, 1 << (bit % 64)))
    }

    pub(crate) fn set(&mut self, partition: i32, offset: i64) {
        if let Some((word, bit)) = self.at(partition, offset)
            && let Some((_, words)) = self.0.get_mut(&partition)
        {
            words[word] |= bit;
        }
    }

    /// Whether this offset can be marked.
    pub(crate) fn covers(&self, partition: i32, offset: i64) -> bool {
        self.at(partition, offset).is_some()
    }

    pub(crate) fn is_set(&self, partition: i32, offset: i64) -> bool {
        self.at(partition, offset)
            .is_some_and(|(word, bit)| self.0[&partition].1[word] & bit != 0)
    }

    /// Adds the marks of other partitions.
    pub(crate) fn take_in(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many offsets of a partition are marked on both sides.
    pub(crate) fn count_both(&self, other: &Self, partition: i32) -> u64 {
        match (self.0.get(&partition), other.0.get(&partition)) {
            (Some((_, these)), Some((_, those))) => {
                let both = these.iter().zip(those).map(|(this, that)| this & that);
                both.map(|word| u64::from(word.count_ones())).sum()
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::row_format::{RowWriter, ValueSink};

    fn row(partition: i32, offset: i64, text: &str) -> Vec<u8> {
        let mut copy = RowWriter::default();
        copy.row(3);
        copy.i32(partition);
        copy.i64(offset);
        copy.text(text);
        copy.take().split_off(2)
    }

    proptest! {
        /// In any order of rows: buckets with the same rows are equal, and only the bucket in which a row is missing,
        /// changed or duplicated differs.
        #[test]
        fn only_the_bucket_of_a_changed_row_differs(
            rows in prop::collection::vec((0..3_i32, 0..5_000_i64, "[a-c]{0,3}"), 1..200),
            which in any::<prop::sample::Index>(),
            how in 0..3,
        ) {
            let spans = (0..3).map(|p| ((Table::Progress, p), 0..5_000)).collect();
            let plan = Plan::new(&spans);
            let (mut one, mut other) = (Fingerprint::new(&plan), Fingerprint::new(&plan));
            for (p, o, text) in &rows {
                one.add(Table::Progress, &row(*p, *o, text));
            }
            let which = which.index(rows.len());
            for (i, (p, o, text)) in rows.iter().enumerate().rev() {
                let row = row(*p, *o, text);
                match (i == which, how) {
                    (true, 0) => {}
                    (true, 1) => {
                        other.add(Table::Progress, &self::row(*p, *o, "other"));
                    }
                    (true, _) => {
                        other.add(Table::Progress, &row);
                        other.add(Table::Progress, &row);
                    }
                    _ => {
                        other.add(Table::Progress, &row);
                    }
                }
            }
            let (p, o, _) = rows[which];
            let differing = one.differing(&other);
            prop_assert_eq!(differing.len(), 1);
            let ranges = &differing[&(Table::Progress, p)];
            prop_assert_eq!(ranges.len(), 1);
            prop_assert!(ranges[0].contains(&o) && ranges[0].end - ranges[0].start <= 1 << SMALLEST);
            prop_assert!(one.differing(&one).is_empty());
        }
    }

    #[test]
    fn a_large_range_takes_no_more_memory() {
        let spans = (0..1_000)
            .map(|p| ((Table::Metrics, p), 5..10_000_000_000))
            .collect();
        let plan = Plan::new(&spans);
        assert!(plan.buckets <= 2 * BUCKETS as usize, "{}", plan.buckets);
        let mut fingerprint = Fingerprint::new(&plan);
        assert_eq!(
            fingerprint.add(Table::Metrics, &row(7, 9_999_999_999, "")),
            Some((7, 9_999_999_999))
        );
        fingerprint.add(Table::Metrics, &row(7, 4, ""));
        fingerprint.add(Table::Metrics, &row(7, 10_000_000_000, ""));
        let outside = Outside {
            before: 1,
            least: Some(4),
            behind: 1,
        };
        assert_eq!(fingerprint.outside[&(Table::Metrics, 7)], outside);
        assert_eq!(fingerprint.rows()[&(Table::Metrics, 7)], 1);
    }

    #[test]
    fn marks_are_set_and_counted_by_partition() {
        let mut marks = Marks::new(&[(1, 10..200)].into());
        for offset in [10, 74, 199] {
            marks.set(1, offset);
        }
        marks.set(1, 9);
        marks.set(2, 10);
        let mut other = marks.clone();
        other.set(1, 11);
        assert!(marks.is_set(1, 74) && !marks.is_set(1, 11) && !marks.is_set(2, 10));
        assert_eq!(
            (marks.count_both(&other, 1), marks.count_both(&other, 2)),
            (3, 0)
        );
    }
}
