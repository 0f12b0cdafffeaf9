//! Sums of hashes that compare any number of records in constant memory.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::ops::Range;

use schemas::{PlainEvent, PlainMetric};
use service::range::{Position, Ranges};

/// Maximum number of buckets: 2 MiB for each number kept per bucket.
const BUCKETS: usize = 1 << 18;
/// Minimum size of a bucket, as a power of two.
const SMALLEST_SHIFT: u32 = 8;

/// Buckets of offsets of the source topic.
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

    /// A zero for each bucket.
    pub(super) fn zeros(&self) -> Vec<u64> {
        vec![0; self.count]
    }

    /// The bucket of an offset; `None` outside the range.
    pub(super) fn find(&self, at: Position) -> Option<usize> {
        let (range, first) = self.partitions.get(&at.partition)?;
        range.contains(&at.offset).then(|| {
            let nth = (at.offset - range.start) >> self.shift;
            first + usize::try_from(nth).unwrap_or(0)
        })
    }

    /// The offsets of each bucket, in order.
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

/// Keyed hash of outcomes. Each audit uses a new key, so that nobody can craft a record with the hash of
/// another.
#[derive(Default)]
pub(super) struct OutcomeHasher(RandomState);

impl OutcomeHasher {
    /// `event` without `routedAt`.
    pub(super) fn event(&self, about: Position, key: Option<&[u8]>, event: &PlainEvent<'_>) -> u64 {
        let mut sum = self.0.build_hasher();
        (about.partition, about.offset, "event", key).hash(&mut sum);
        hash_event(event, &mut sum);
        sum.finish()
    }

    /// An event that is not plain in any encoding; `value` has no `routedAt`, in this program's encoding.
    pub(super) fn event_with_problems(
        &self,
        about: Position,
        key: Option<&[u8]>,
        value: &[u8],
    ) -> u64 {
        let identity = (about.partition, about.offset, "event with problems", key);
        self.0.hash_one((identity, value))
    }

    pub(super) fn letter(&self, about: Position) -> u64 {
        self.0.hash_one((about.partition, about.offset, "letter"))
    }
}

/// Hashes an event without `routedAt` and topic id, field by field; maps in key order, numbers bit by bit.
fn hash_event(event: &PlainEvent<'_>, sum: &mut impl Hasher) {
    let info = &event.info;
    // Omits the topic's id: an event that has one belongs to the audited topic, and older versions write
    // none.
    let source = &event.source;
    (
        source.topic,
        source.partition,
        source.offset,
        source.timestamp,
    )
        .hash(sum);
    event.adjustments.len().hash(sum);
    event.adjustments.iter().for_each(|kind| kind.hash(sum));
    event.not_finite.len().hash(sum);
    event.not_finite.sorted().for_each(|one| one.hash(sum));
    (info.exec_id, info.job_id, info.engine_instance).hash(sum);
    (info.engine_type, info.engine_user, info.ticket_id).hash(sum);
    (info.engine_running_tasks, info.status).hash(sum);
    (info.reported_at, info.sequence).hash(sum);
    if let Some((progress, jobs)) = &info.progress {
        ("progress", progress.to_bits(), jobs.len()).hash(sum);
        jobs.iter().for_each(|job| job.hash(sum));
    }
    if let Some(applications) = &info.resource {
        ("resource", applications.len()).hash(sum);
        applications.sorted().for_each(|held| held.hash(sum));
    }
    if let Some(metrics) = &info.metrics {
        ("metrics", metrics.len()).hash(sum);
        for metric in metrics.sorted() {
            metric.name.hash(sum);
            match metric.value {
                PlainMetric::Null => 0_u8.hash(sum),
                PlainMetric::Boolean(value) => (1_u8, value).hash(sum),
                PlainMetric::Long(value) => (2_u8, value).hash(sum),
                PlainMetric::Double(value) => (3_u8, value.to_bits()).hash(sum),
                PlainMetric::String(value) => (4_u8, value).hash(sum),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{
        Adjustment, JobProgressInfo, MetricValue, ResourceWithStatus, TaskRunningInfoEvent,
        TaskStatus, encode_event, plain_event,
    };

    use super::*;
    use crate::route::strategies;

    /// The hash of a plain event.
    fn number(outcomes: &OutcomeHasher, event: &TaskRunningInfoEvent) -> u64 {
        let value = encode_event(event).unwrap();
        let at = Position {
            partition: 1,
            offset: 2,
        };
        outcomes.event(at, Some(b"key"), &plain_event(&value).unwrap())
    }

    fn job(event: &mut TaskRunningInfoEvent) -> &mut JobProgressInfo {
        &mut event.info.progress.as_mut().unwrap().progress_info[0]
    }

    fn applications(event: &mut TaskRunningInfoEvent) -> &mut BTreeMap<String, ResourceWithStatus> {
        &mut event.info.resource.as_mut().unwrap().applications
    }

    fn held(event: &mut TaskRunningInfoEvent) -> &mut ResourceWithStatus {
        applications(event).get_mut("app-1").unwrap()
    }

    fn metric(event: &mut TaskRunningInfoEvent, name: &str, value: MetricValue) {
        let metrics = event.info.metrics.as_mut().unwrap();
        metrics.insert(name.to_owned(), value);
    }

    fn not_finite(event: &mut TaskRunningInfoEvent, field: &str, value: &str) {
        event.not_finite.insert(field.to_owned(), value.to_owned());
    }

    #[test]
    fn each_difference_changes_the_hash_except_for_the_time_of_routing() {
        let changes: [fn(&mut TaskRunningInfoEvent); 42] = [
            |_| {},
            |event| event.source.topic.push('x'),
            |event| event.source.partition += 1,
            |event| event.source.offset += 1,
            |event| event.source.timestamp += 1,
            |event| event.adjustments.clear(),
            |event| event.adjustments.push(Adjustment::NulInText),
            |event| event.adjustments = vec![Adjustment::Unknown],
            |event| not_finite(event, "metrics.nothing", "NaN"),
            |event| not_finite(event, "metrics.nothing", "Infinity"),
            |event| not_finite(event, "metrics.none", "NaN"),
            |event| event.info.exec_id.push('x'),
            |event| event.info.job_id.push('x'),
            |event| event.info.engine.instance.push('x'),
            |event| event.info.engine.engine_type.push('x'),
            |event| event.info.engine.user.push('x'),
            |event| event.info.engine.ticket_id.push('x'),
            |event| event.info.engine.running_tasks += 1,
            |event| event.info.status = TaskStatus::Timeout,
            |event| event.info.reported_at += 1,
            |event| event.info.sequence += 1,
            |event| event.info.progress = None,
            |event| event.info.progress.as_mut().unwrap().progress += 0.25,
            |event| event.info.progress.as_mut().unwrap().progress_info.clear(),
            |event| job(event).id.push('x'),
            |event| job(event).total_tasks += 1,
            |event| job(event).running_tasks += 1,
            |event| job(event).failed_tasks += 1,
            |event| job(event).succeed_tasks += 1,
            |event| event.info.resource = None,
            |event| applications(event).clear(),
            |event| held(event).queue_memory += 1,
            |event| held(event).queue_cores += 1,
            |event| held(event).queue_instances += 1,
            |event| held(event).job_status.push('x'),
            |event| held(event).queue.push('x'),
            |event| event.info.metrics = None,
            |event| event.info.metrics.as_mut().unwrap().clear(),
            |event| metric(event, "nothing", MetricValue::Boolean(false)),
            |event| metric(event, "count", MetricValue::Double(-1.0)),
            |event| metric(event, "whole", MetricValue::Double(3.5)),
            |event| metric(event, "text", MetricValue::String("u".into())),
        ];
        let outcomes = OutcomeHasher::default();
        let mut numbers = BTreeMap::new();
        for (i, change) in changes.iter().enumerate() {
            let mut event = strategies::sample_event();
            change(&mut event);
            let number = number(&outcomes, &event);
            assert_eq!(numbers.insert(number, i), None, "change {i}");
        }
        let mut later = strategies::sample_event();
        later.routed_at += 1;
        assert_eq!(numbers.get(&number(&outcomes, &later)), Some(&0));
        // As written by an older version of the router.
        let mut without = strategies::sample_event();
        without.source.topic_id = None;
        assert_eq!(numbers.get(&number(&outcomes, &without)), Some(&0));
    }

    #[test]
    fn the_order_of_a_map_does_not_change_the_hash() {
        let mut event = strategies::sample_event();
        event.info.metrics = None;
        let mut bytes = encode_event(&event).unwrap();
        assert_eq!(bytes.pop(), Some(0));
        let with = |metrics: &[u8]| [&bytes[..], &[2], metrics].concat();
        // a = 1 and b = null, in one block and in two.
        let sorted = with(b"\x04\x02a\x04\x02\x02b\x00\x00");
        let backwards = with(b"\x02\x02b\x00\x02\x02a\x04\x02\x00");
        let other = with(b"\x04\x02a\x00\x02b\x04\x02\x00");
        let (outcomes, at) = (
            OutcomeHasher::default(),
            Position {
                partition: 1,
                offset: 2,
            },
        );
        let [sorted, backwards, other] = [sorted, backwards, other]
            .map(|value| outcomes.event(at, None, &plain_event(&value).unwrap()));
        assert_eq!(sorted, backwards);
        assert_ne!(sorted, other);
    }

    proptest! {
        #[test]
        fn each_offset_of_the_range_falls_into_the_bucket_that_contains_it(
            lengths in prop::collection::vec((0..1_i64 << 40, 0..1_i64 << 33), 1..20),
            at in any::<prop::sample::Index>(),
        ) {
            let ranges: Ranges = (0..).zip(lengths.iter().map(|(start, length)| *start..start + length)).collect();
            let buckets = Buckets::of(&ranges);
            prop_assert!(buckets.count <= BUCKETS);
            let ranges_of: Vec<_> = buckets.ranges().collect();
            prop_assert_eq!(ranges_of.len(), buckets.count);
            let partition = i32::try_from(at.index(lengths.len())).unwrap();
            let range = &ranges[&partition];
            for offset in [range.start - 1, range.start, range.start + 255, range.start + 256, range.end - 1, range.end] {
                let found = buckets.find(Position { partition, offset });
                prop_assert_eq!(found.is_some(), range.contains(&offset));
                if let Some(found) = found {
                    let (of, range) = &ranges_of[found];
                    prop_assert!(*of == partition && range.contains(&offset));
                }
            }
        }
    }
}
