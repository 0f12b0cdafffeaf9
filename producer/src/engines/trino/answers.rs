//! Responses of the REST API of Trino and Presto, as far as they are used. A query in the list and a query's own response
//! have the same fields, and the latter has stages too. A field that is absent, or not of its type, is not known; unknown
//! fields are skipped.

use std::fmt;

use jiff::Timestamp;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::polling::limits::identifier;

/// Maximum length of a query's text in a report, in characters.
const TEXT_MAX_CHARACTERS: usize = 10_000;

/// A query: of the list `/v1/query`, or `/v1/query/{id}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QueryInfo {
    pub(super) query_id: String,
    pub(super) state: String,
    #[serde(default)]
    pub(super) session: Session,
    #[serde(default, deserialize_with = "known")]
    pub(super) resource_group_id: Option<Vec<String>>,
    /// The tasks of its stages have been scheduled.
    #[serde(default, deserialize_with = "known")]
    pub(super) scheduled: Option<bool>,
    /// Its text.
    #[serde(default, deserialize_with = "known")]
    pub(super) query: Option<String>,
    #[serde(default, deserialize_with = "known")]
    pub(super) query_type: Option<String>,
    #[serde(default, deserialize_with = "known")]
    pub(super) update_type: Option<String>,
    #[serde(default)]
    pub(super) query_stats: QueryStats,
    #[serde(default, deserialize_with = "known")]
    pub(super) error_type: Option<String>,
    #[serde(default, deserialize_with = "known")]
    pub(super) error_code: Option<ErrorCode>,
    /// Of its own response: whether it has ended, and all its tasks have reported their last counts.
    #[serde(default, deserialize_with = "known")]
    pub(super) final_query_info: Option<bool>,
    /// Until Trino 476, and in Presto: the root of the tree of stages.
    output_stage: Option<Stage>,
    /// Since Trino 477.
    stages: Option<Stages>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Session {
    #[serde(deserialize_with = "known")]
    pub(super) user: Option<String>,
    #[serde(deserialize_with = "known")]
    pub(super) source: Option<String>,
    #[serde(deserialize_with = "known")]
    pub(super) catalog: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ErrorCode {
    pub(super) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct QueryStats {
    #[serde(deserialize_with = "known")]
    pub(super) end_time: Option<Timestamp>,
    #[serde(deserialize_with = "known")]
    pub(super) queued_time: Option<Millis>,
    #[serde(deserialize_with = "known")]
    pub(super) elapsed_time: Option<Millis>,
    #[serde(deserialize_with = "known")]
    pub(super) execution_time: Option<Millis>,
    #[serde(deserialize_with = "known")]
    pub(super) planning_time: Option<Millis>,
    #[serde(deserialize_with = "known")]
    pub(super) total_cpu_time: Option<Millis>,
    #[serde(deserialize_with = "known")]
    pub(super) total_scheduled_time: Option<Millis>,
    #[serde(deserialize_with = "known")]
    pub(super) failed_tasks: Option<i64>,
    #[serde(deserialize_with = "known")]
    total_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    queued_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    running_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    blocked_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    completed_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    pub(super) user_memory_reservation: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) total_memory_reservation: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) peak_user_memory_reservation: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) peak_total_memory_reservation: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) spilled_data_size: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) physical_input_data_size: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) raw_input_data_size: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) raw_input_positions: Option<i64>,
    #[serde(deserialize_with = "known")]
    pub(super) physical_written_data_size: Option<Bytes>,
    #[serde(deserialize_with = "known")]
    pub(super) fully_blocked: Option<bool>,
    #[serde(deserialize_with = "known")]
    pub(super) blocked_reasons: Option<Vec<String>>,
    /// 0 to 100; absent until the query is scheduled. NaN, as a text, under fault-tolerant execution (trinodb/trino#29791).
    #[serde(deserialize_with = "known")]
    pub(super) progress_percentage: Option<f64>,
}

/// Drivers of a query or a stage: each works on one split.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Drivers {
    #[serde(deserialize_with = "known")]
    pub(super) total_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    pub(super) queued_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    pub(super) running_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    pub(super) blocked_drivers: Option<i64>,
    #[serde(deserialize_with = "known")]
    pub(super) completed_drivers: Option<i64>,
}

#[derive(Clone, Debug, Deserialize)]
struct Stages {
    stages: Vec<Stage>,
}

/// A stage: a part of the plan that runs on several workers.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stage {
    /// The query's id, a dot, and a number.
    pub(super) stage_id: String,
    #[serde(default)]
    stage_stats: Option<Drivers>,
    #[serde(default)]
    tasks: Vec<Task>,
    /// Presto: the newest execution of the stage.
    #[serde(default)]
    latest_attempt_execution_info: Option<Attempt>,
    #[serde(default)]
    sub_stages: Vec<SubStage>,
}

#[derive(Clone, Debug, Deserialize)]
struct Attempt {
    #[serde(default)]
    stats: Option<Drivers>,
    #[serde(default)]
    tasks: Vec<Task>,
}

/// A stage's part on one worker.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Task {
    task_status: TaskStatus,
    /// Presto's place for it.
    #[serde(default, deserialize_with = "known")]
    node_id: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TaskStatus {
    state: String,
    #[serde(default, deserialize_with = "known")]
    node_id: Option<String>,
}

#[derive(Clone, Debug)]
enum SubStage {
    Whole(Box<Stage>),
    /// Only its id: the stage is in the flat list.
    Id,
}

impl QueryStats {
    // A flattened field would hold the whole response in memory a second time.
    pub(super) fn drivers(&self) -> Drivers {
        Drivers {
            total_drivers: self.total_drivers,
            queued_drivers: self.queued_drivers,
            running_drivers: self.running_drivers,
            blocked_drivers: self.blocked_drivers,
            completed_drivers: self.completed_drivers,
        }
    }
}

impl QueryInfo {
    /// Cuts off texts, which are of any length, as a report has them. Keeps the query's text only `with_text`.
    pub(super) fn shorten(&mut self, with_text: bool) {
        let text = self.query.take().filter(|_| with_text);
        self.query = text.map(|text| cut(&text));
        let Session {
            user,
            source,
            catalog,
        } = &mut self.session;
        let texts = [
            user,
            source,
            catalog,
            &mut self.query_type,
            &mut self.update_type,
            &mut self.error_type,
        ];
        for text in texts.into_iter().flatten() {
            *text = identifier(text);
        }
        self.state = identifier(&self.state);
        if let Some(error) = &mut self.error_code {
            error.name = identifier(&error.name);
        }
        if let Some(path) = &mut self.resource_group_id {
            *path = vec![identifier(&path.join("."))];
        }
        if let Some(reasons) = &mut self.query_stats.blocked_reasons {
            *reasons = vec![identifier(&reasons.join(","))];
        }
    }

    /// Takes out the stages; `None` if the response has none. They are in the order of the plan: the root, which
    /// returns the result, is first.
    pub(super) fn take_stages(&mut self) -> Option<Vec<Stage>> {
        let whole = match (self.output_stage.take(), self.stages.take()) {
            (Some(root), _) => vec![root],
            (None, Some(stages)) => stages.stages,
            (None, None) => return None,
        };
        let mut flat = Vec::new();
        whole
            .into_iter()
            .for_each(|stage| flatten(stage, &mut flat));
        Some(flat)
    }
}

/// JSON is read to a depth of 128, which bounds the recursion.
fn flatten(mut stage: Stage, flat: &mut Vec<Stage>) {
    let below = std::mem::take(&mut stage.sub_stages);
    flat.push(stage);
    for stage in below {
        if let SubStage::Whole(stage) = stage {
            flatten(*stage, flat);
        }
    }
}

impl Stage {
    pub(super) fn drivers(&self) -> Option<Drivers> {
        let attempt = self.latest_attempt_execution_info.as_ref();
        self.stage_stats.or_else(|| attempt?.stats)
    }

    pub(super) fn tasks(&self) -> &[Task] {
        match &self.latest_attempt_execution_info {
            Some(attempt) => &attempt.tasks,
            None => &self.tasks,
        }
    }
}

impl Task {
    pub(super) fn worker(&self) -> Option<&str> {
        let of_status = self.task_status.node_id.as_deref();
        of_status.or(self.node_id.as_deref())
    }

    pub(super) fn has_ended(&self) -> bool {
        let state = self.task_status.state.as_str();
        matches!(state, "FINISHED" | "CANCELED" | "ABORTED" | "FAILED")
    }
}

impl<'de> Deserialize<'de> for SubStage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = SubStage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a stage or its id")
            }

            fn visit_str<E>(self, _: &str) -> Result<SubStage, E> {
                Ok(SubStage::Id)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<SubStage, A::Error> {
                let stage = Stage::deserialize(MapAccessDeserializer::new(map))?;
                Ok(SubStage::Whole(Box::new(stage)))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A value of its type; `None` for any other.
fn known<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any<T> {
        Known(T),
        Other(IgnoredAny),
    }
    Ok(match Any::deserialize(deserializer)? {
        Any::Known(value) => Some(value),
        Any::Other(_) => None,
    })
}

/// The text, cut off if it is too long for a report.
fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A duration such as `85.55us` or `3.30h`, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Millis(pub(super) i64);

/// A size such as `72151886B` or `14.06GB`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Bytes(pub(super) i64);

impl TryFrom<String> for Millis {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let units = [
            ("ns", 1e-6),
            ("us", 1e-3),
            ("ms", 1.0),
            ("s", 1e3),
            ("m", 60e3),
            ("h", 3_600e3),
            ("d", 86_400e3),
        ];
        in_units(&text, &units).map(Self).ok_or("not a duration")
    }
}

impl TryFrom<String> for Bytes {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let kib = 1024_f64;
        let units = [
            ("B", 1.0),
            ("kB", kib),
            ("MB", kib.powi(2)),
            ("GB", kib.powi(3)),
            ("TB", kib.powi(4)),
            ("PB", kib.powi(5)),
        ];
        in_units(&text, &units).map(Self).ok_or("not a size")
    }
}

/// `None` if it is negative, or larger than 64 bits take.
fn in_units(text: &str, units: &[(&str, f64)]) -> Option<i64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(unit);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    // Most sizes are whole bytes, which a float would round.
    if let (Ok(whole), true) = (number.parse::<i64>(), *factor == 1.0) {
        return Some(whole).filter(|whole| *whole >= 0);
    }
    let value = number.trim().parse::<f64>().ok()? * factor;
    (0.0..i64::MAX as f64)
        .contains(&value)
        .then(|| value.round() as i64)
}
