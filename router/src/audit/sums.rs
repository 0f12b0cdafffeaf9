//! Sums that are equal where two sides hold the same, of any number of records in the same memory.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use service::range::{Position, Ranges};

/// So many buckets at most, in all: two MiB for each number that is kept of each.
const BUCKETS: usize = 1 << 18;
/// A bucket holds this power of two of offsets, or more.
const SMALLEST_SHIFT: u32 = 8;

/// Offsets of the source topic by the bucket they fall into.
#[derive(Debug)]
pub(super) struct Buckets {
    shift: u32,
    /// Each partition's offsets, and its first bucket.
    partitions: BTreeMap<i32, (Range<i64>, usize)>,
    count: usize,
}

impl Buckets {
    pub(super) fn of(ranges: &Ranges) -> Self {
        let offsets = |range: &Range<i64>| usize::try_from(range.end - range.start).unwrap_or(0);
        let count = |shift: u32| -> usize {
            let each = ranges.values().map(offsets);
            each.map(|offsets| offsets.div_ceil(1 << shift)).sum()
        };
        let mut shift = SMALLEST_SHIFT;
        while shift < 62 && count(shift) > BUCKETS.max(ranges.len()) {
            shift += 1;
        }
        let (mut partitions, mut next) = (BTreeMap::new(), 0);
        for (partition, range) in ranges {
            partitions.insert(*partition, (range.clone(), next));
            next += offsets(range).div_ceil(1 << shift);
        }
        Self {
            shift,
            partitions,
            count: next,
        }
    }

    /// A number for each.
    pub(super) fn zeros(&self) -> Vec<u64> {
        vec![0; self.count]
    }

    /// The bucket of an offset; `None` for one that was not asked for.
    pub(super) fn find(&self, at: Position) -> Option<usize> {
        let (range, first) = self.partitions.get(&at.partition)?;
        range.contains(&at.offset).then(|| {
            let nth = (at.offset - range.start) >> self.shift;
            first + usize::try_from(nth).unwrap_or(0)
        })
    }

    /// The offsets of each bucket, in the buckets' order.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (i32, Range<i64>)> + '_ {
        self.partitions
            .iter()
            .flat_map(move |(partition, (range, _))| {
                let width = 1_i64 << self.shift;
                let mut start = range.start;
                std::iter::from_fn(move || {
                    (start < range.end).then(|| {
                        let end = start.saturating_add(width).min(range.end);
                        (*partition, std::mem::replace(&mut start, end)..end)
                    })
                })
            })
    }
}

/// Outcomes as numbers to add up. The key is made anew for each audit, so that no record can be made
/// whose number is another's.
#[derive(Default)]
pub(super) struct Outcomes(RandomState);

impl Outcomes {
    /// `value` without `routedAt`, in the encoding of this program.
    pub(super) fn event(&self, about: Position, key: Option<&[u8]>, value: &[u8]) -> u64 {
        self.0
            .hash_one((about.partition, about.offset, "event", key, value))
    }

    pub(super) fn letter(&self, about: Position) -> u64 {
        self.0.hash_one((about.partition, about.offset, "letter"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_offset_asked_for_falls_into_the_bucket_that_tells_its_range(
            lengths in prop::collection::vec((0..1_i64 << 40, 0..1_i64 << 33), 1..20),
            at in any::<prop::sample::Index>(),
        ) {
            let ranges: Ranges = (0..).zip(lengths.iter().map(|(start, length)| *start..start + length)).collect();
            let buckets = Buckets::of(&ranges);
            prop_assert!(buckets.count <= BUCKETS);
            let told: Vec<_> = buckets.ranges().collect();
            prop_assert_eq!(told.len(), buckets.count);
            let partition = i32::try_from(at.index(lengths.len())).unwrap();
            let range = &ranges[&partition];
            for offset in [range.start - 1, range.start, range.start + 255, range.start + 256, range.end - 1, range.end] {
                let found = buckets.find(Position { partition, offset });
                prop_assert_eq!(found.is_some(), range.contains(&offset));
                if let Some(found) = found {
                    let (of, told) = &told[found];
                    prop_assert!(*of == partition && told.contains(&offset));
                }
            }
        }
    }
}
