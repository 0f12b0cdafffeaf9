//! Selects the points of a series that a plot needs. Pure; independent of the order of its input.

/// A value at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    /// Microseconds since 1970.
    pub(super) at: i64,
    /// Orders samples of the same microsecond: sequence, partition and offset of the event.
    pub(super) order: (i64, i32, i64),
    /// Finite.
    pub(super) value: f64,
}

/// At most `points` (4 or more) of the samples, sorted by time. If there are more, their time range is divided into
/// equal buckets. Each bucket keeps its least and its greatest sample, so peaks survive; the first and the last sample
/// are kept too.
pub(super) fn thin(mut samples: Vec<Sample>, points: usize) -> Vec<Sample> {
    samples.sort_unstable_by_key(|sample| (sample.at, sample.order));
    let ([first, .., last], true) = (&samples[..], samples.len() > points) else {
        return samples;
    };
    let buckets = points.saturating_sub(2) / 2;
    let (from, span) = (
        i128::from(first.at),
        i128::from(last.at) - i128::from(first.at) + 1,
    );
    let bucket_of =
        |sample: &Sample| (i128::from(sample.at) - from) * buckets.max(1) as i128 / span;
    let mut kept = vec![*first];
    for bucket in samples.chunk_by(|one, next| bucket_of(one) == bucket_of(next)) {
        let positions = 0..bucket.len();
        let by_value = |a: &usize, b: &usize| bucket[*a].value.total_cmp(&bucket[*b].value);
        // The earliest of equal values.
        let least = positions.clone().min_by(by_value);
        let greatest = positions.rev().max_by(by_value);
        let (Some(least), Some(greatest)) = (least, greatest) else {
            continue;
        };
        kept.push(bucket[least.min(greatest)]);
        if least != greatest {
            kept.push(bucket[least.max(greatest)]);
        }
    }
    kept.push(*last);
    kept.dedup();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let at = prop_oneof![any::<i64>(), -50..50_i64, 0..1_000_000_i64];
        let value = prop_oneof![-1e300..1e300, (0..4).prop_map(f64::from)];
        let sample = (at, 0..3_i64, value);
        let samples = prop::collection::vec(sample, 0..300);
        samples.prop_map(|samples| {
            let numbered = (0..).zip(samples);
            numbered
                .map(|(offset, (at, sequence, value))| Sample {
                    at,
                    order: (sequence, 0, offset),
                    value,
                })
                .collect()
        })
    }

    fn sorted(mut samples: Vec<Sample>) -> Vec<Sample> {
        samples.sort_by_key(|sample| (sample.at, sample.order));
        samples
    }

    fn extremes(samples: &[Sample]) -> (Option<f64>, Option<f64>) {
        let values = samples.iter().map(|sample| sample.value);
        (
            values.clone().min_by(f64::total_cmp),
            values.max_by(f64::total_cmp),
        )
    }

    proptest! {
        #[test]
        fn few_samples_are_all_kept(samples in samples(), more in 0..10_usize) {
            let points = samples.len().max(4) + more;
            prop_assert_eq!(thin(samples.clone(), points), sorted(samples));
        }

        #[test]
        fn thinned_samples_are_some_of_them_in_order_with_their_ends_and_extremes(
            samples in samples(),
            points in 4..60_usize,
        ) {
            let (thinned, all) = (thin(samples.clone(), points), sorted(samples));
            prop_assert!(thinned.len() <= points);
            // In order, and each sample at most once.
            let mut rest = all.iter();
            prop_assert!(thinned.iter().all(|kept| rest.any(|sample| sample == kept)));
            prop_assert_eq!(thinned.first(), all.first());
            prop_assert_eq!(thinned.last(), all.last());
            prop_assert_eq!(extremes(&thinned), extremes(&all));
        }

        #[test]
        fn each_bucket_keeps_its_extremes(samples in samples(), points in 4..60_usize) {
            let (thinned, all) = (thin(samples.clone(), points), sorted(samples));
            if let [first, .., last] = &all[..] {
                let buckets = (points - 2) as i128 / 2;
                let span = i128::from(last.at) - i128::from(first.at) + 1;
                for bucket in 0..buckets {
                    let of_bucket = |samples: &[Sample]| -> Vec<Sample> {
                        let samples = samples.iter().copied();
                        samples.filter(|sample| {
                            let since = i128::from(sample.at) - i128::from(first.at);
                            since * buckets / span == bucket
                        }).collect()
                    };
                    let (kept, of_all) = (of_bucket(&thinned), of_bucket(&all));
                    prop_assert_eq!(extremes(&kept), extremes(&of_all), "bucket {}", bucket);
                }
            }
        }

        #[test]
        fn the_order_in_which_samples_come_does_not_matter(
            (samples, shuffled) in samples().prop_flat_map(|samples| (Just(samples.clone()), Just(samples).prop_shuffle())),
            points in 4..60_usize,
        ) {
            prop_assert_eq!(thin(samples, points), thin(shuffled, points));
        }
    }
}
