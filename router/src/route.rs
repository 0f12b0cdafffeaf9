//! One record in, one outcome out: pure, and total on any bytes.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{
    Adjustment, Decoder, MetricValue, Reject, SourcePosition, TaskRunningInfo, TaskRunningInfoEvent,
};

/// What becomes of a record: exactly one of these.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The record is good, or was repaired.
    Event {
        /// The event's Kafka key: the execId.
        key: String,
        /// The event's bytes.
        value: Vec<u8>,
        /// What was repaired; empty for a good record.
        adjustments: Vec<Adjustment>,
    },
    /// The record is unreadable or unusable.
    DeadLetter(Reject),
}

/// Routes a record's value, of any version that `decoder` knows. `routed_at` is in microseconds since 1970; an event of more than
/// `max_event_bytes` (key and value) is a dead letter, since its topic would not take it.
pub fn route(
    decoder: &Decoder,
    value: Option<&[u8]>,
    source: SourcePosition,
    routed_at: i64,
    max_event_bytes: usize,
) -> Outcome {
    event(decoder, value, source, routed_at, max_event_bytes).unwrap_or_else(Outcome::DeadLetter)
}

fn event(
    decoder: &Decoder,
    value: Option<&[u8]>,
    source: SourcePosition,
    routed_at: i64,
    max_event_bytes: usize,
) -> Result<Outcome, Reject> {
    let mut info = decoder.info(value)?;
    let problems = info.problems();
    if let Some(reject) = Reject::of_problems(&problems) {
        return Err(reject);
    }
    if !problems.is_empty() {
        repair(&mut info);
    }
    let adjustments: BTreeSet<Adjustment> = problems
        .iter()
        .filter_map(|problem| problem.fault.adjustment())
        .collect();
    let key = info.exec_id.clone();
    let adjustments = Vec::from_iter(adjustments);
    let event = TaskRunningInfoEvent {
        source,
        routed_at,
        adjustments,
        info,
    };
    let value = schemas::encode_event(&event).map_err(|error| Reject {
        stage: "TRANSFORMATION",
        refused_by: "router::route",
        kind: "EncodeError",
        message: error.to_string(),
    })?;
    let bytes = key.len() + value.len();
    if bytes > max_event_bytes {
        return Err(Reject {
            stage: "TRANSFORMATION",
            refused_by: "router::route",
            kind: "EventTooLarge",
            message: format!(
                "the event would have {bytes} bytes (key and value, uncompressed) where its topic takes {max_event_bytes}; \
                 raise max.message.bytes of the events topic or report less at once"
            ),
        });
    }
    Ok(Outcome::Event {
        key,
        value,
        adjustments: event.adjustments,
    })
}

/// Puts right everything that [`TaskRunningInfo::problems`] calls repairable.
fn repair(info: &mut TaskRunningInfo) {
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
        // NaN and -0.0 are not above 0 either.
        let said = progress.progress;
        progress.progress = if said > 0.0 { said.min(1.0) } else { 0.0 };
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
        for value in metrics.values_mut() {
            if value.is_not_finite() {
                *value = MetricValue::Null;
            } else if let MetricValue::String(text) = value {
                clean(text);
            }
        }
    }
}

/// U+0000, which PostgreSQL cannot hold, becomes U+FFFD, as Unicode has it for what cannot be shown.
pub(crate) fn clean(text: &mut String) {
    if text.contains('\0') {
        *text = text.replace('\0', "\u{FFFD}");
    }
}

/// [`clean`] for a map's keys; a key that another already has gets U+FFFD appended until it is alone.
pub(crate) fn clean_keys<V>(map: &mut BTreeMap<String, V>) {
    if !map.keys().any(|key| key.contains('\0')) {
        return;
    }
    let (unclean, mut cleaned): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(map)
        .into_iter()
        .partition(|(key, _)| key.contains('\0'));
    for (mut key, value) in unclean {
        clean(&mut key);
        while cleaned.contains_key(&key) {
            key.push('\u{FFFD}');
        }
        cleaned.insert(key, value);
    }
    *map = cleaned;
}
