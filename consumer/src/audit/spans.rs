//! Ranges of offsets: those compared for each table, and those read together.

use std::collections::BTreeMap;
use std::ops::Range;

use service::range::Ranges;

use crate::tables::Table;

/// Ranges at most this far apart are read as one.
pub(crate) const NEAR: i64 = 4_096;
/// Maximum number of ranges requested at once.
const MAX_RANGES: usize = 200;

/// The compared offsets of each table and partition.
pub(crate) type Spans = BTreeMap<(Table, i32), Range<i64>>;

/// For each partition, the smallest range that covers the spans of all its tables.
pub(crate) fn hull(spans: &Spans) -> Ranges {
    let mut hull = Ranges::new();
    for ((_, partition), span) in spans.iter().filter(|(_, span)| !span.is_empty()) {
        let whole: &mut Range<i64> = hull.entry(*partition).or_insert(span.clone());
        *whole = whole.start.min(span.start)..whole.end.max(span.end);
    }
    hull
}

/// Joins sorted ranges at most `near` apart. If too many remain, also joins ranges further apart.
pub(crate) fn join(ranges: &[Range<i64>], near: i64) -> Vec<Range<i64>> {
    let mut joined: Vec<Range<i64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start.saturating_sub(last.end) <= near => {
                last.end = last.end.max(range.end)
            }
            _ => joined.push(range.clone()),
        }
    }
    if joined.len() > MAX_RANGES {
        return join(&joined, near.saturating_mul(8));
    }
    joined
}
