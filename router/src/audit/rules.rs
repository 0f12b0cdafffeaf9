//! Comparison of an event with its source record, by today's rules or by those of another version of the
//! router.
//!
//! An event names the kinds of repair that were made to it, and the schema defines what each kind means
//! and what the field becomes. That distinguishes an event of other rules from a corrupt one
//! without knowing those rules: each of its fields is its source record's, or that field repaired by
//! a kind that the event names; and each kind that it names repaired something.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{Adjustment, TaskRunningInfo, TaskRunningInfoEvent};

use super::walk::Walk;
use crate::route::repair;

/// Paths of the fields in which an event differs from the result of today's rules, except for `routedAt`; at
/// most [`FIELDS_NAMED`].
pub(super) fn differences(
    today: &TaskRunningInfoEvent,
    event: &TaskRunningInfoEvent,
) -> Vec<String> {
    let mut walk = Walk::new(&[]);
    let (ours, theirs) = (&today.source, &event.source);
    walk.same("source.topic", ours.topic == theirs.topic);
    walk.same("source.partition", ours.partition == theirs.partition);
    walk.same("source.offset", ours.offset == theirs.offset);
    walk.same("source.timestamp", ours.timestamp == theirs.timestamp);
    walk.same("adjustments", today.adjustments == event.adjustments);
    walk.same("notFinite", today.not_finite == event.not_finite);
    walk.info(&today.info, &event.info);
    walk.named()
}

/// Whether each field of an event's info equals that of the source record, or that repaired by a kind that
/// the event names; each named kind repaired something; and each field in `notFinite` had that value.
pub(super) fn explained(source: &TaskRunningInfo, event: &TaskRunningInfoEvent) -> bool {
    let kinds = &event.adjustments;
    let known = kinds.iter().filter(|kind| **kind != Adjustment::Unknown);
    let once = known.clone().collect::<BTreeSet<_>>().len() == known.count();
    let mut walk = Walk::new(kinds);
    walk.info(source, &event.info);
    // Older versions have no `notFinite`, and an event that it would make too large omits it.
    let not_finite = match event.not_finite.is_empty() {
        true => BTreeMap::new(),
        false => repair(&mut source.clone()),
    };
    let named = event.not_finite.iter();
    let mut named = named.map(|(field, value)| not_finite.get(field) == Some(value));
    once && walk.differing == 0
        && kinds.iter().all(|kind| walk.used.contains(kind))
        && named.all(|so| so)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{Decoder, Framing, MetricValue, PlainSource};

    use super::super::walk::FIELDS_NAMED;
    use super::*;
    use crate::route::{Outcome, route, strategies, tests::usable};

    fn routed(info: &TaskRunningInfo) -> Option<TaskRunningInfoEvent> {
        let source = PlainSource {
            topic: "t",
            partition: 1,
            offset: 2,
            timestamp: 3,
            topic_id: None,
        };
        let value = schemas::encode_info(info).unwrap();
        let (decoder, mut buffer) = (Decoder::default(), Vec::new());
        match route(
            &decoder,
            Some(&value),
            source,
            0,
            Framing::SingleObject,
            1 << 20,
            &mut buffer,
        ) {
            Outcome::Event { value, .. } => Some(schemas::decode_event(Some(value)).unwrap()),
            Outcome::DeadLetter(_) => None,
        }
    }

    /// A record that needs every kind of repair.
    fn spoilt() -> TaskRunningInfo {
        let mut info = strategies::sample_event().info;
        info.sequence = -1;
        info.engine.user = "a\0".into();
        let progress = info.progress.as_mut().unwrap();
        progress.progress = f64::NAN;
        progress.progress_info[0].failed_tasks = -5;
        let metrics = info.metrics.as_mut().unwrap();
        metrics.insert("rate".into(), MetricValue::Double(f64::INFINITY));
        metrics.insert("a\0b".into(), MetricValue::String("NaN".into()));
        info
    }

    #[test]
    fn a_repair_that_is_unnamed_or_named_but_not_made_follows_no_versions_rules() {
        let (source, event) = (spoilt(), routed(&spoilt()).unwrap());
        assert!(explained(&source, &event));
        assert_eq!(event.adjustments.len(), 4);
        for i in 0..4 {
            let mut unnamed = event.clone();
            unnamed.adjustments.remove(i);
            assert!(!explained(&source, &unnamed), "{:?}", event.adjustments[i]);
        }
        let mut twice = event.clone();
        twice.adjustments.push(event.adjustments[0]);
        assert!(!explained(&source, &twice));
        let good = strategies::sample_event().info;
        let mut event = routed(&good).unwrap();
        for kind in [
            Adjustment::Unknown,
            Adjustment::ProgressNotANumber,
            Adjustment::ProgressBelowZero,
            Adjustment::ProgressAboveOne,
            Adjustment::NegativeCount,
            Adjustment::NulInText,
            Adjustment::MetricNotFinite,
        ] {
            event.adjustments = vec![kind];
            assert!(!explained(&good, &event), "{kind:?}");
        }
    }

    #[test]
    fn other_rules_may_leave_a_field_as_it_was_but_not_make_it_something_else() {
        let (source, event) = (spoilt(), routed(&spoilt()).unwrap());
        // Version 2, without `notFinite`.
        let mut older = event.clone();
        older.not_finite.clear();
        assert!(explained(&source, &older));
        assert_eq!(differences(&event, &older), ["notFinite"]);
        // `notFinite` with a field that was finite, or with another value.
        for (field, value) in [("metrics.rate", "NaN"), ("metrics.count", "NaN")] {
            let mut corrupt = event.clone();
            corrupt
                .not_finite
                .insert(field.to_owned(), value.to_owned());
            assert!(!explained(&source, &corrupt), "{field}");
        }
        // An older version, which did not recognise names of NaN.
        let mut older = event.clone();
        older.not_finite.remove("metrics.a\u{FFFD}b");
        let metrics = older.info.metrics.as_mut().unwrap();
        metrics.insert("a\u{FFFD}b".into(), MetricValue::String("NaN".into()));
        assert!(explained(&source, &older));
        assert_eq!(
            differences(&event, &older),
            ["notFinite", "info.metrics[a\u{FFFD}b]"]
        );
        // An older version, which repaired negative zero.
        let mut zero = strategies::sample_event().info;
        zero.progress.as_mut().unwrap().progress = -0.0;
        let today = routed(&zero).unwrap();
        assert_eq!(today.adjustments, []);
        assert!(
            today
                .info
                .progress
                .as_ref()
                .unwrap()
                .progress
                .is_sign_positive()
        );
        assert!(explained(&zero, &today));
        let mut older = today.clone();
        older.adjustments.push(Adjustment::ProgressBelowZero);
        assert!(explained(&zero, &older));
        assert_eq!(differences(&today, &older), ["adjustments"]);
        // An older version, which did not repair NaN.
        let mut older = event.clone();
        older.info.progress.as_mut().unwrap().progress = f64::NAN;
        older
            .adjustments
            .retain(|kind| *kind != Adjustment::ProgressNotANumber);
        assert!(explained(&source, &older));
        let differing = differences(&event, &older);
        assert_eq!(differing, ["adjustments", "info.progress.progress"]);
        // A value that no rule produces, although a repair is named.
        let mut corrupt = event.clone();
        corrupt.info.sequence = 7;
        assert!(!explained(&source, &corrupt));
        // A repair of a newer version.
        let mut newer = event.clone();
        newer.adjustments.insert(0, Adjustment::Unknown);
        assert!(!explained(&source, &newer));
        newer.info.progress.as_mut().unwrap().progress_info[0].total_tasks = 99;
        assert!(explained(&source, &newer));
        newer.info.exec_id = "exec-2".into();
        assert!(!explained(&source, &newer));
    }

    #[test]
    fn of_many_differing_fields_the_first_are_named_and_the_rest_counted() {
        let mut info = strategies::sample_event().info;
        let metrics = |range: std::ops::Range<i64>| {
            Some(
                range
                    .map(|i| (format!("m{i}"), MetricValue::Long(i)))
                    .collect(),
            )
        };
        info.metrics = metrics(0..30);
        let today = routed(&info).unwrap();
        info.metrics = metrics(100..125);
        let named = differences(&today, &routed(&info).unwrap());
        assert_eq!(named.len(), FIELDS_NAMED + 1);
        assert_eq!(named.last().unwrap(), "35 more");
    }

    proptest! {
        #[test]
        fn events_by_todays_rules_and_unchanged_ones_are_both_explained(info in strategies::info()) {
            let info = usable(info, false);
            let mut event = routed(&info).unwrap();
            prop_assert!(explained(&info, &event), "{:?}", differences(&event, &event));
            prop_assert_eq!(differences(&event, &event), Vec::<String>::new());
            (event.info, event.adjustments) = (info.clone(), vec![]);
            event.not_finite.clear();
            prop_assert!(explained(&info, &event));
        }

        #[test]
        fn an_event_of_another_record_is_not_explained_and_its_fields_are_named(
            one in strategies::info(), other in strategies::info(),
        ) {
            let (one, other) = (usable(one, false), usable(other, false));
            let (first, second) = (routed(&one).unwrap(), routed(&other).unwrap());
            let differing = differences(&first, &second);
            prop_assert_eq!(differing.is_empty(), schemas::encode_event(&first).unwrap() == schemas::encode_event(&second).unwrap());
            // Two that differ where nothing is repaired.
            if one.status != other.status {
                prop_assert!(!explained(&one, &second));
                prop_assert!(differing.contains(&"info.status".to_owned()) || differing.len() > FIELDS_NAMED);
            }
        }
    }
}
