//! Whether an event says what its source record says, by today's rules or by those of another version
//! of the router.
//!
//! An event names the kinds of repair that were made to it, and the schema says what each kind means
//! and what the field becomes. So an event that other rules made can be told from a corrupt one
//! without knowing those rules: each of its fields is its source record's, or that field repaired as
//! a kind that the event names; and each kind that it names repaired something.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use schemas::{
    Adjustment, EngineInstance, MetricValue, TaskProgressInfo, TaskResourceInfo, TaskRunningInfo,
    TaskRunningInfoEvent,
};

use crate::route::{clean, clean_keys, repair};

/// Fields that are named of one event; more are only counted.
const FIELDS_NAMED: usize = 20;

/// The fields in which an event differs from the one that today's rules make, but for `routedAt`;
/// by their paths, and no more than [`FIELDS_NAMED`] of them.
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

/// Whether each field of an event's info is its source record's, or that repaired as a kind which
/// the event names, each kind it names repaired something, and each field that it says was not finite was what it says.
pub(super) fn explained(source: &TaskRunningInfo, event: &TaskRunningInfoEvent) -> bool {
    let kinds = &event.adjustments;
    let known = kinds.iter().filter(|kind| **kind != Adjustment::Unknown);
    let once = known.clone().collect::<BTreeSet<_>>().len() == known.count();
    let mut walk = Walk::new(kinds);
    walk.info(source, &event.info);
    // Older versions name no such fields, nor does an event that would be too large with them.
    let not_finite = match event.not_finite.is_empty() {
        true => BTreeMap::new(),
        false => repair(&mut source.clone()),
    };
    let named = event.not_finite.iter();
    let mut named = named.map(|(field, said)| not_finite.get(field) == Some(said));
    once && walk.differing == 0
        && kinds.iter().all(|kind| walk.used.contains(kind))
        && named.all(|so| so)
}

/// A walk over two records, field by field.
struct Walk<'a> {
    /// Repairs that may tell the second from the first.
    kinds: &'a [Adjustment],
    used: BTreeSet<Adjustment>,
    fields: Vec<String>,
    differing: usize,
}

/// Whether a newer version may have kinds of repair for a field.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// Says who speaks of what: repaired in no way but the known ones.
    Identity,
    /// Says how it fares.
    Value,
}
use Role::{Identity, Value};

impl<'a> Walk<'a> {
    fn new(kinds: &'a [Adjustment]) -> Self {
        Self {
            kinds,
            used: BTreeSet::new(),
            fields: Vec::new(),
            differing: 0,
        }
    }

    fn named(mut self) -> Vec<String> {
        let more = self.differing - self.fields.len();
        if more > 0 {
            self.fields.push(format!("{more} more"));
        }
        self.fields
    }

    fn same(&mut self, path: impl Display, same: bool) {
        if !same {
            self.differing += 1;
            if self.fields.len() < FIELDS_NAMED {
                self.fields.push(path.to_string());
            }
        }
    }

    /// A field that is the same, or repaired as one of these kinds has it.
    fn field(
        &mut self,
        path: impl Display,
        role: Role,
        same: bool,
        repaired: impl IntoIterator<Item = (Adjustment, bool)>,
    ) {
        if same {
            return;
        }
        let unknown = (Adjustment::Unknown, role == Value);
        let mut kinds = repaired.into_iter().chain([unknown]);
        match kinds.find(|(kind, so)| *so && self.kinds.contains(kind)) {
            Some((kind, _)) => {
                self.used.insert(kind);
            }
            None => self.same(path, false),
        }
    }

    fn info(&mut self, source: &TaskRunningInfo, event: &TaskRunningInfo) {
        self.text("info.execId", Identity, &source.exec_id, &event.exec_id);
        self.text("info.jobId", Identity, &source.job_id, &event.job_id);
        self.engine(&source.engine, &event.engine);
        self.same("info.status", source.status == event.status);
        self.same("info.reportedAt", source.reported_at == event.reported_at);
        self.count("info.sequence", source.sequence, event.sequence);
        match (&source.progress, &event.progress) {
            (Some(source), Some(event)) => self.progress(source, event),
            (source, event) => self.same("info.progress", source.is_none() == event.is_none()),
        }
        match (&source.resource, &event.resource) {
            (Some(source), Some(event)) => self.resource(source, event),
            (source, event) => self.same("info.resource", source.is_none() == event.is_none()),
        }
        match (&source.metrics, &event.metrics) {
            (Some(source), Some(event)) => self.metrics(source, event),
            (source, event) => self.same("info.metrics", source.is_none() == event.is_none()),
        }
    }

    fn engine(&mut self, source: &EngineInstance, event: &EngineInstance) {
        let of = |field: &str| format!("info.engine.{field}");
        let (instance, engine_type) = (&event.instance, &event.engine_type);
        self.text(of("instance"), Identity, &source.instance, instance);
        self.text(of("engineType"), Identity, &source.engine_type, engine_type);
        self.text(of("user"), Identity, &source.user, &event.user);
        self.text(
            of("ticketId"),
            Identity,
            &source.ticket_id,
            &event.ticket_id,
        );
        self.count(
            of("runningTasks"),
            source.running_tasks,
            event.running_tasks,
        );
    }

    fn progress(&mut self, source: &TaskProgressInfo, event: &TaskProgressInfo) {
        let (said, became) = (source.progress, event.progress);
        // Bit by bit: NaN is itself, and negative zero is not zero.
        let is = |value: f64| became.to_bits() == value.to_bits();
        // Negative zero becomes zero; before event version 3 that was named as a repair.
        let is_zero =
            said == 0.0 && is(0.0) && !self.kinds.contains(&Adjustment::ProgressBelowZero);
        self.field(
            "info.progress.progress",
            Value,
            is(said) || is_zero,
            [
                (Adjustment::ProgressNotANumber, said.is_nan() && is(0.0)),
                (
                    Adjustment::ProgressBelowZero,
                    !said.is_nan() && said.is_sign_negative() && is(0.0),
                ),
                (Adjustment::ProgressAboveOne, said > 1.0 && is(1.0)),
            ],
        );
        let (source, event) = (&source.progress_info, &event.progress_info);
        self.same("info.progress.progressInfo", source.len() == event.len());
        for (i, (source, event)) in source.iter().zip(event).enumerate() {
            let of = |field: &str| format!("info.progress.progressInfo[{i}].{field}");
            self.text(of("id"), Value, &source.id, &event.id);
            self.count(of("totalTasks"), source.total_tasks, event.total_tasks);
            self.count(
                of("runningTasks"),
                source.running_tasks,
                event.running_tasks,
            );
            self.count(of("failedTasks"), source.failed_tasks, event.failed_tasks);
            self.count(
                of("succeedTasks"),
                source.succeed_tasks,
                event.succeed_tasks,
            );
        }
    }

    fn resource(&mut self, source: &TaskResourceInfo, event: &TaskResourceInfo) {
        let path = "info.resource.applications";
        let source = self.keys(path, &source.applications, &event.applications);
        for (id, event) in &event.applications {
            let Some(source) = source.get(id) else {
                continue;
            };
            let of = |field: &str| format!("{path}[{id}].{field}");
            self.count(of("queueMemory"), source.queue_memory, event.queue_memory);
            self.count(of("queueCores"), source.queue_cores, event.queue_cores);
            let (said, became) = (source.queue_instances, event.queue_instances);
            self.count(of("queueInstances"), said, became);
            self.text(
                of("jobStatus"),
                Value,
                &source.job_status,
                &event.job_status,
            );
            self.text(of("queue"), Value, &source.queue, &event.queue);
        }
    }

    fn metrics(
        &mut self,
        source: &BTreeMap<String, MetricValue>,
        event: &BTreeMap<String, MetricValue>,
    ) {
        let source = self.keys("info.metrics", source, event);
        for (name, event) in event {
            let Some(source) = source.get(name) else {
                continue;
            };
            let path = format!("info.metrics[{name}]");
            let same = match (source, event) {
                (MetricValue::Double(source), MetricValue::Double(event)) => {
                    source.to_bits() == event.to_bits()
                }
                _ => source == event,
            };
            let (is_null, is_clean) = (*event == MetricValue::Null, cleaned(source, event));
            self.field(
                path,
                Value,
                same,
                [
                    (
                        Adjustment::MetricNotFinite,
                        source.not_finite().is_some() && is_null,
                    ),
                    (Adjustment::NulInText, is_clean),
                ],
            );
        }
    }

    /// The first map under the names that the second has them by.
    fn keys<'m, V: Clone>(
        &mut self,
        path: &str,
        source: &'m BTreeMap<String, V>,
        event: &BTreeMap<String, V>,
    ) -> Cow<'m, BTreeMap<String, V>> {
        if source.keys().eq(event.keys()) {
            return Cow::Borrowed(source);
        }
        if self.kinds.contains(&Adjustment::NulInText) {
            let mut cleaned = source.clone();
            clean_keys(&mut cleaned);
            if cleaned.keys().eq(event.keys()) {
                self.used.insert(Adjustment::NulInText);
                return Cow::Owned(cleaned);
            }
        }
        let gone = source.keys().filter(|key| !event.contains_key(*key));
        let new = event.keys().filter(|key| !source.contains_key(*key));
        for key in gone.chain(new) {
            self.same(format!("{path}[{key}]"), false);
        }
        Cow::Borrowed(source)
    }

    fn text(&mut self, path: impl Display, role: Role, source: &str, event: &str) {
        let repaired = source != event && is_cleaned(source, event);
        let kinds = [(Adjustment::NulInText, repaired)];
        self.field(path, role, source == event, kinds);
    }

    fn count(&mut self, path: impl Display, source: impl Into<i64>, event: impl Into<i64>) {
        let (source, event) = (source.into(), event.into());
        let kinds = [(Adjustment::NegativeCount, source < 0 && event == 0)];
        self.field(path, Value, source == event, kinds);
    }
}

fn is_cleaned(source: &str, event: &str) -> bool {
    let mut cleaned_source = source.to_owned();
    clean(&mut cleaned_source);
    cleaned_source == event
}

fn cleaned(source: &MetricValue, event: &MetricValue) -> bool {
    match (source, event) {
        (MetricValue::String(source), MetricValue::String(event)) => is_cleaned(source, event),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{Decoder, Framing, PlainSource};

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

    /// Everything that can be repaired.
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
    fn a_repair_that_is_not_named_or_named_and_not_made_is_no_rule_of_any_version() {
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
        // As before events named the fields that were not finite.
        let mut older = event.clone();
        older.not_finite.clear();
        assert!(explained(&source, &older));
        assert_eq!(differences(&event, &older), ["notFinite"]);
        // What was not said, or not so.
        for (field, said) in [("metrics.rate", "NaN"), ("metrics.count", "NaN")] {
            let mut corrupt = event.clone();
            corrupt.not_finite.insert(field.to_owned(), said.to_owned());
            assert!(!explained(&source, &corrupt), "{field}");
        }
        // As before texts were taken for numbers that are none.
        let mut older = event.clone();
        older.not_finite.remove("metrics.a\u{FFFD}b");
        let metrics = older.info.metrics.as_mut().unwrap();
        metrics.insert("a\u{FFFD}b".into(), MetricValue::String("NaN".into()));
        assert!(explained(&source, &older));
        assert_eq!(
            differences(&event, &older),
            ["notFinite", "info.metrics[a\u{FFFD}b]"]
        );
        // As before negative zero was taken for zero.
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
        // As before NaN was repaired.
        let mut older = event.clone();
        older.info.progress.as_mut().unwrap().progress = f64::NAN;
        older
            .adjustments
            .retain(|kind| *kind != Adjustment::ProgressNotANumber);
        assert!(explained(&source, &older));
        let differing = differences(&event, &older);
        assert_eq!(differing, ["adjustments", "info.progress.progress"]);
        // A number that no rule makes, though a repair is named.
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
        fn what_today_makes_and_what_was_carried_over_as_it_was_are_both_explained(info in strategies::info()) {
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
