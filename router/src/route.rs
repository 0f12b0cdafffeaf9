//! Routing of a single record: a pure function, total on any bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::{
    Adjustment, Decoder, Framing, MetricValue, PlainInfo, PlainSource, Reject, SourcePosition,
    TaskRunningInfo, TaskRunningInfoEvent,
};

/// Kind of reject of a record whose event is too large for its topic.
const EVENT_TOO_LARGE: &str = "EventTooLarge";

/// Outcome of routing a record.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<'a> {
    /// The record is good, or was repaired.
    Event {
        /// The event's Kafka key: the execId.
        key: Cow<'a, str>,
        /// The event's bytes.
        value: &'a [u8],
        /// What was repaired; empty for a good record.
        adjustments: Vec<Adjustment>,
    },
    /// The record is unreadable or unusable.
    DeadLetter(Reject),
}

impl Outcome<'_> {
    /// Whether the record is unusable only because of its event's size.
    pub(crate) fn is_too_large(&self) -> bool {
        matches!(self, Self::DeadLetter(reject) if reject.kind == EVENT_TOO_LARGE)
    }
}

/// Routes a record's value, of any version that `decoder` knows. `routed_at` is in microseconds since 1970.
/// An event of more than `max_event_bytes` (key and value) is too large for its topic and becomes a dead
/// letter. The event replaces the content of `buffer`, so that one allocation serves many records.
///
/// The event of a record that needs no repair contains the engine's bytes unchanged; any other record is
/// decoded, repaired and encoded again. Both paths give equal events, up to the order of a map's keys.
pub fn route<'a>(
    decoder: &Decoder,
    value: Option<&'a [u8]>,
    source: PlainSource<'_>,
    routed_at: i64,
    framing: Framing,
    max_event_bytes: usize,
    buffer: &'a mut Vec<u8>,
) -> Outcome<'a> {
    if let Some(info) = value.and_then(|value| decoder.plain_info(value))
        && let Some(key) = carry_over(info, &source, routed_at, framing, max_event_bytes, buffer)
    {
        return Outcome::Event {
            key: Cow::Borrowed(key),
            value: buffer,
            adjustments: vec![],
        };
    }
    encode_again(
        decoder,
        value,
        source,
        routed_at,
        framing,
        max_event_bytes,
        buffer,
    )
    .unwrap_or_else(Outcome::DeadLetter)
}

/// Zero-copy fast path for a record that needs no repair; returns the event's key. `None` if the event is too
/// large: encoded again, it may be smaller.
fn carry_over<'a>(
    info: PlainInfo<'a>,
    source: &PlainSource<'_>,
    routed_at: i64,
    framing: Framing,
    max_event_bytes: usize,
    buffer: &mut Vec<u8>,
) -> Option<&'a str> {
    buffer.clear();
    info.write_event(source, routed_at, framing, buffer);
    (info.exec_id.len() + buffer.len() <= max_event_bytes).then_some(info.exec_id)
}

/// Decodes, repairs and encodes any record.
fn encode_again<'a>(
    decoder: &Decoder,
    value: Option<&[u8]>,
    source: PlainSource<'_>,
    routed_at: i64,
    framing: Framing,
    max_event_bytes: usize,
    buffer: &'a mut Vec<u8>,
) -> Result<Outcome<'a>, Reject> {
    // A record that is certainly too large is not decoded, because it needs many times its size in memory.
    if let Some(value) = value.filter(|value| value.len() > max_event_bytes)
        && let Some(least) = decoder.least_info_bytes(value)
        && least > max_event_bytes
    {
        return Err(too_large(&format!("at least {least}"), max_event_bytes));
    }
    let mut info = decoder.info(value)?;
    let problems = info.problems();
    if let Some(reject) = Reject::of_problems(&problems) {
        return Err(reject);
    }
    let not_finite = match problems.is_empty() {
        true => BTreeMap::new(),
        false => repair(&mut info),
    };
    if let Some(progress) = &mut info.progress {
        // Negative zero becomes zero, because PostgreSQL and SQLite show it differently.
        progress.progress += 0.0;
    }
    let adjustments: BTreeSet<Adjustment> = problems
        .iter()
        .filter_map(|problem| problem.fault.adjustment())
        .collect();
    let mut event = TaskRunningInfoEvent {
        source: SourcePosition {
            topic: source.topic.to_owned(),
            partition: source.partition,
            offset: source.offset,
            timestamp: source.timestamp,
            topic_id: source.topic_id.map(str::to_owned),
        },
        routed_at,
        adjustments: Vec::from_iter(adjustments),
        not_finite,
        info,
    };
    let mut write = |event: &TaskRunningInfoEvent| {
        buffer.clear();
        schemas::write_event(event, framing, buffer);
        event.info.exec_id.len() + buffer.len()
    };
    let mut bytes = write(&event);
    if bytes > max_event_bytes && !event.not_finite.is_empty() {
        // Better an event without `notFinite` than none.
        event.not_finite.clear();
        bytes = write(&event);
    }
    let key = event.info.exec_id;
    if bytes > max_event_bytes {
        return Err(too_large(&bytes.to_string(), max_event_bytes));
    }
    Ok(Outcome::Event {
        key: Cow::Owned(key),
        value: buffer,
        adjustments: event.adjustments,
    })
}

/// The reject of a record whose event would have this size.
fn too_large(bytes: &str, max_event_bytes: usize) -> Reject {
    Reject {
        stage: "TRANSFORMATION",
        refused_by: "router::route",
        kind: EVENT_TOO_LARGE,
        message: format!(
            "the event would have {bytes} bytes (key and value, uncompressed) where its topic takes {max_event_bytes}; \
             raise max.message.bytes of the events topic or report less at once"
        ),
    }
}

/// Maximum number of fields in `notFinite`; further ones are only repaired.
const NOT_FINITE_NAMED: usize = 1_000;

/// Repairs every repairable problem of [`TaskRunningInfo::problems`]; returns the fields that were not
/// finite, by path, with their values.
pub(crate) fn repair(info: &mut TaskRunningInfo) -> BTreeMap<String, String> {
    let mut not_finite = BTreeMap::new();
    let mut name = |field: &str, name: &str, value: f64| {
        if not_finite.len() < NOT_FINITE_NAMED {
            let value = if value.is_nan() {
                "NaN"
            } else if value > 0.0 {
                "Infinity"
            } else {
                "-Infinity"
            };
            not_finite.insert(format!("{field}{name}"), value.to_owned());
        }
    };
    let engine = &mut info.engine;
    for text in [
        &mut info.exec_id,
        &mut info.job_id,
        &mut engine.instance,
        &mut engine.engine_type,
        &mut engine.user,
        &mut engine.ticket_id,
    ] {
        clean(text);
    }
    engine.running_tasks = engine.running_tasks.max(0);
    info.sequence = info.sequence.max(0);

    if let Some(progress) = &mut info.progress {
        let reported = progress.progress;
        if !reported.is_finite() {
            name("progress.progress", "", reported);
        }
        // Also catches NaN.
        progress.progress = if reported > 0.0 {
            reported.min(1.0)
        } else {
            0.0
        };
        for job in &mut progress.progress_info {
            clean(&mut job.id);
            job.total_tasks = job.total_tasks.max(0);
            job.running_tasks = job.running_tasks.max(0);
            job.failed_tasks = job.failed_tasks.max(0);
            job.succeed_tasks = job.succeed_tasks.max(0);
        }
    }
    if let Some(resource) = &mut info.resource {
        clean_keys(&mut resource.applications);
        for application in resource.applications.values_mut() {
            application.queue_memory = application.queue_memory.max(0);
            application.queue_cores = application.queue_cores.max(0);
            application.queue_instances = application.queue_instances.max(0);
            clean(&mut application.job_status);
            clean(&mut application.queue);
        }
    }
    if let Some(metrics) = &mut info.metrics {
        clean_keys(metrics);
        for (metric, value) in metrics {
            if let Some(reported) = value.not_finite() {
                name("metrics.", metric, reported);
                *value = MetricValue::Null;
            } else if let MetricValue::String(text) = value {
                clean(text);
            }
        }
    }
    not_finite
}

/// Replaces U+0000, which PostgreSQL cannot store, by U+FFFD, Unicode's replacement character.
pub(crate) fn clean(text: &mut String) {
    if text.contains('\0') {
        *text = text.replace('\0', "\u{FFFD}");
    }
}

/// Maximum number of U+FFFD appended to a cleaned key that is not unique; then a number follows.
const APPENDED: u64 = 8;

/// [`clean`] for a map's keys, in order. A key that is not unique gets U+FFFD appended until it is, up to
/// [`APPENDED`] times; then U+FFFD and the first number from 9 on that makes it unique. (Without the numbers
/// the keys of a map that n of them collide in would grow by n² characters.)
pub(crate) fn clean_keys<V>(map: &mut BTreeMap<String, V>) {
    if !map.keys().any(|key| key.contains('\0')) {
        return;
    }
    let (unclean, mut cleaned): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(map)
        .into_iter()
        .partition(|(key, _)| key.contains('\0'));
    // The next suffix to try for each colliding key; earlier ones are still taken.
    let mut next: HashMap<String, u64> = HashMap::new();
    for (mut key, value) in unclean {
        clean(&mut key);
        if cleaned.contains_key(&key) {
            let tried = next.entry(key.clone()).or_default();
            let length = key.len();
            while cleaned.contains_key(&key) {
                *tried += 1;
                key.truncate(length);
                match *tried {
                    1..=APPENDED => (0..*tried).for_each(|_| key.push('\u{FFFD}')),
                    number => key.push_str(&format!("\u{FFFD}{number}")),
                }
            }
        }
        cleaned.insert(key, value);
    }
    *map = cleaned;
}

#[cfg(test)]
#[path = "../../schemas/tests/it/strategies/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the contract")]
pub(crate) mod strategies;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    const SINGLE_OBJECT: Framing = Framing::SingleObject;

    /// The outcomes of [`route`] and of encoding again.
    fn both_ways(
        value: &[u8],
        source: &SourcePosition,
        max_event_bytes: usize,
        judge: impl FnOnce(Outcome<'_>, Outcome<'_>) -> Result<(), TestCaseError>,
    ) -> Result<(), TestCaseError> {
        let source = PlainSource {
            topic: &source.topic,
            partition: source.partition,
            offset: source.offset,
            timestamp: source.timestamp,
            topic_id: source.topic_id.as_deref(),
        };
        let (decoder, value) = (Decoder::default(), Some(value));
        // Left-over content must not matter.
        let (mut one, mut other) = (b"left".to_vec(), b"behind".to_vec());
        judge(
            route(
                &decoder,
                value,
                source,
                4,
                SINGLE_OBJECT,
                max_event_bytes,
                &mut one,
            ),
            encode_again(
                &decoder,
                value,
                source,
                4,
                SINGLE_OBJECT,
                max_event_bytes,
                &mut other,
            )
            .unwrap_or_else(Outcome::DeadLetter),
        )
    }

    /// A usable record; if `plain`, one without anything to repair.
    pub(crate) fn usable(mut info: TaskRunningInfo, plain: bool) -> TaskRunningInfo {
        let engine = &mut info.engine;
        for text in [
            &mut info.exec_id,
            &mut info.job_id,
            &mut engine.instance,
            &mut engine.engine_type,
        ] {
            text.insert(0, 'x');
        }
        for text in [
            &mut info.exec_id,
            &mut info.job_id,
            &mut engine.instance,
            &mut engine.engine_type,
            &mut engine.user,
            &mut engine.ticket_id,
        ] {
            *text = text.chars().take(100).collect();
        }
        info.reported_at %= 1_000_000_000_000_000;
        if plain {
            repair(&mut info);
            if let Some(progress) = &mut info.progress {
                progress.progress += 0.0;
            }
        }
        info
    }

    /// A record with these metrics instead of those of `info`: names and integers in any order, in blocks.
    fn with_metrics(mut info: TaskRunningInfo, metrics: &[(&str, i8)], block: usize) -> Vec<u8> {
        info.metrics = None;
        let mut bytes = schemas::encode_info(&info).unwrap();
        *bytes.last_mut().unwrap() = 2;
        for block in metrics.chunks(block) {
            bytes.push(block.len() as u8 * 2);
            for (name, value) in block {
                bytes.push(name.len() as u8 * 2);
                bytes.extend_from_slice(name.as_bytes());
                // A number encoded in two bytes instead of one.
                bytes.extend_from_slice(&[4, ((value.unsigned_abs() & 0x3F) * 2) | 0x80, 0]);
            }
        }
        bytes.push(0);
        bytes
    }

    proptest! {
        #[test]
        fn a_record_carried_over_and_one_encoded_again_are_the_same_bytes(
            event in strategies::event(), is_usable in prop::bool::weighted(0.8), plain in any::<bool>(), limit in 0..3_usize,
        ) {
            let info = if is_usable { usable(event.info, plain) } else { event.info };
            let value = schemas::encode_info(&info).unwrap();
            let mut size = 0;
            both_ways(&value, &event.source, usize::MAX, |ours, encoded_again| {
                prop_assert_eq!(&ours, &encoded_again);
                let carried_over = matches!(ours, Outcome::Event { key: Cow::Borrowed(_), .. });
                prop_assert!(carried_over || !(is_usable && plain));
                if let Outcome::Event { key, value: event, .. } = &ours {
                    size = key.len() + event.len();
                    let least = Decoder::default().least_info_bytes(&value);
                    prop_assert!(least.is_some_and(|least| least <= event.len()));
                }
                Ok(())
            })?;
            // Limits: one byte too small, exact, and one byte larger.
            both_ways(&value, &event.source, (size + limit).saturating_sub(1), |ours, encoded_again| {
                prop_assert_eq!(&ours, &encoded_again);
                let too_large = matches!(&ours, Outcome::DeadLetter(reject) if reject.kind == "EventTooLarge");
                // An unusable record may also be too large, which is checked first.
                prop_assert!(size == 0 || too_large == (limit == 0));
                Ok(())
            })?;
        }

        /// The framings of a record and its event change neither content nor path.
        #[test]
        fn the_framing_of_a_record_and_of_its_event_changes_nothing_else(
            event in strategies::event(), plain in any::<bool>(),
            from in prop::option::of(1..3_u32), to in prop::option::of(any::<u32>()),
        ) {
            let decoder = Decoder::default().with_registry("");
            for id in [1, 2] {
                decoder.learn_id(id, Some(schemas::INFO_VERSIONS[0].avsc));
            }
            let source = PlainSource { topic: "t", partition: 1, offset: 2, timestamp: 3, topic_id: Some("id") };
            let mut value = schemas::encode_info(&usable(event.info, plain)).unwrap();
            let (mut expected, mut buffer) = (Vec::new(), Vec::new());
            let outcome = route(&decoder, Some(&value), source, 4, SINGLE_OBJECT, usize::MAX, &mut expected);
            let Outcome::Event { key, adjustments, .. } = outcome else { return Err(TestCaseError::fail("no event")) };
            let (key, carried_over) = (key.to_string(), matches!(key, Cow::Borrowed(_)));
            let [from, to] = [from, to].map(|id| id.map_or(SINGLE_OBJECT, Framing::Registry));
            from.put_on(&mut value);
            to.put_on(&mut expected);
            match route(&decoder, Some(&value), source, 4, to, usize::MAX, &mut buffer) {
                Outcome::Event { key: framed_key, value, adjustments: framed } => {
                    prop_assert_eq!(matches!(framed_key, Cow::Borrowed(_)), carried_over);
                    prop_assert_eq!((&*framed_key, framed, value), (&*key, adjustments, &*expected));
                }
                Outcome::DeadLetter(reject) => prop_assert!(false, "{:?}", reject),
            }
        }

        #[test]
        fn changed_bytes_become_the_same_event_or_the_same_dead_letter_either_way(
            event in strategies::event(), plain in any::<bool>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            cut in prop::option::weighted(0.2, any::<prop::sample::Index>()), max_event_bytes in prop_oneof![0..600_usize, Just(1 << 20)],
        ) {
            let mut value = schemas::encode_info(&usable(event.info, plain)).unwrap();
            for (at, with) in changes {
                let at = at.index(value.len());
                value[at] = with;
            }
            if let Some(cut) = cut {
                value.truncate(cut.index(value.len()));
            }
            both_ways(&value, &event.source, max_event_bytes, same_meaning)?;
        }

        #[test]
        fn a_map_in_any_order_and_any_blocks_means_the_same_either_way(
            event in strategies::event(), block in 1..4_usize, max_event_bytes in prop_oneof![0..600_usize, Just(1 << 20)],
            metrics in prop::collection::vec((prop::sample::select(vec!["a", "b", "c", "dd", "é", ""]), any::<i8>()), 0..6),
        ) {
            let value = with_metrics(usable(event.info, true), &metrics, block);
            both_ways(&value, &event.source, max_event_bytes, same_meaning)?;
        }
    }

    fn same_meaning(ours: Outcome<'_>, encoded_again: Outcome<'_>) -> Result<(), TestCaseError> {
        match (ours, encoded_again) {
            (
                Outcome::Event {
                    key: our_key,
                    value: our_value,
                    adjustments: ours,
                },
                Outcome::Event {
                    key,
                    value,
                    adjustments,
                },
            ) => {
                prop_assert_eq!((our_key, ours), (key, adjustments));
                // Encoded again, so that NaN equals itself.
                let again = |value| {
                    let event = schemas::decode_event(Some(value)).unwrap();
                    schemas::encode_event(&event).unwrap()
                };
                prop_assert_eq!(again(our_value), again(value));
            }
            (ours, encoded_again) => prop_assert_eq!(ours, encoded_again),
        }
        Ok(())
    }
}
