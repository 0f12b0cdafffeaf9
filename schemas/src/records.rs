//! The current version of both records as Rust types.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

/// The state of one exec task at one moment, as its engine reports it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskRunningInfo {
    /// The exec task; also the Kafka key.
    pub exec_id: String,
    /// The entrance's job that the exec task belongs to.
    pub job_id: String,
    /// The reporting engine instance.
    pub engine: EngineInstance,
    /// The task's status; see [`TaskStatus::is_final`].
    pub status: TaskStatus,
    /// The engine's clock, microseconds since 1970-01-01T00:00:00Z. In JSON, RFC 3339 text or that number.
    #[serde(with = "timestamp")]
    pub reported_at: i64,
    /// 0, 1, 2, … within one exec task: shows loss and order.
    pub sequence: i64,
    /// The progress part; `None` if the engine does not know it.
    #[serde(default)]
    pub progress: Option<TaskProgressInfo>,
    /// The resource part; `None` if the engine does not know it.
    #[serde(default)]
    pub resource: Option<TaskResourceInfo>,
    /// The metrics part, values by name; `None` if the engine does not know it.
    #[serde(default)]
    pub metrics: Option<BTreeMap<String, MetricValue>>,
}

/// An engine instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineInstance {
    /// `host:port`.
    pub instance: String,
    /// `spark`, `flink`, `trino`, …
    pub engine_type: String,
    /// The user that the engine runs for; may be empty.
    #[serde(default)]
    pub user: String,
    /// The ticket the engine was started with; may be empty.
    #[serde(default)]
    pub ticket_id: String,
    /// Number of tasks that the engine runs now.
    #[serde(default)]
    pub running_tasks: i32,
}

/// A task's status.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum TaskStatus {
    /// A status of a newer schema.
    #[default]
    Unknown,
    /// Accepted, not yet queued.
    Inited,
    /// Failed once and waiting for another attempt.
    WaitForRetry,
    /// Queued.
    Scheduled,
    /// Running.
    Running,
    /// Ended successfully. Final.
    Succeed,
    /// Ended with an error. Final.
    Failed,
    /// Ended by request. Final.
    Cancelled,
    /// Ended because of a timeout. Final.
    Timeout,
}

impl TaskStatus {
    /// Whether the task has ended: `Succeed`, `Failed`, `Cancelled` or `Timeout`.
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Succeed | Self::Failed | Self::Cancelled | Self::Timeout
        )
    }

    /// The status as the schema spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::Inited => "Inited",
            Self::WaitForRetry => "WaitForRetry",
            Self::Scheduled => "Scheduled",
            Self::Running => "Running",
            Self::Succeed => "Succeed",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
            Self::Timeout => "Timeout",
        }
    }
}

impl fmt::Display for TaskStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The progress part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskProgressInfo {
    /// 0 to 1. In JSON, also NaN and the infinities, by the names that [`not_finite`] accepts.
    #[serde(deserialize_with = "double_or_its_name")]
    pub progress: f64,
    /// The task's jobs inside the engine.
    #[serde(default)]
    pub progress_info: Vec<JobProgressInfo>,
}

/// One job inside the engine; counts are in the engine's smallest units of work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobProgressInfo {
    /// The engine's name for the job.
    pub id: String,
    /// Number of all units.
    pub total_tasks: i32,
    /// Number of running units.
    pub running_tasks: i32,
    /// Number of units that ended with an error.
    pub failed_tasks: i32,
    /// Number of successful units.
    pub succeed_tasks: i32,
}

/// The resource part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskResourceInfo {
    /// By applicationId.
    #[serde(default)]
    pub applications: BTreeMap<String, ResourceWithStatus>,
}

/// Resources of one application.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceWithStatus {
    /// Memory, in bytes.
    pub queue_memory: i64,
    /// Cores.
    pub queue_cores: i32,
    /// Containers, executors, …, without the driver.
    pub queue_instances: i32,
    /// The application's status, in the engine's terms.
    pub job_status: String,
    /// The queue it was submitted to; may be empty.
    pub queue: String,
}

/// A metric's value: the union `null | boolean | long | double | string`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum MetricValue {
    /// Known by name, value unknown.
    Null,
    /// A boolean.
    Boolean(bool),
    /// An integer.
    Long(i64),
    /// A floating-point number.
    Double(f64),
    /// A text.
    String(String),
}

impl<'de> Deserialize<'de> for MetricValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyOfFive;
        impl Visitor<'_> for AnyOfFive {
            type Value = MetricValue;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("null, a boolean, a number or a text")
            }
            fn visit_unit<E>(self) -> Result<MetricValue, E> {
                Ok(MetricValue::Null)
            }
            fn visit_none<E>(self) -> Result<MetricValue, E> {
                Ok(MetricValue::Null)
            }
            fn visit_bool<E>(self, value: bool) -> Result<MetricValue, E> {
                Ok(MetricValue::Boolean(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<MetricValue, E> {
                Ok(MetricValue::Long(value))
            }
            // Only JSON has values above i64::MAX; a double keeps the magnitude.
            fn visit_u64<E>(self, value: u64) -> Result<MetricValue, E> {
                Ok(i64::try_from(value)
                    .map_or(MetricValue::Double(value as f64), MetricValue::Long))
            }
            fn visit_f64<E>(self, value: f64) -> Result<MetricValue, E> {
                Ok(MetricValue::Double(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<MetricValue, E> {
                Ok(MetricValue::String(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<MetricValue, E> {
                Ok(MetricValue::String(value))
            }
        }
        deserializer.deserialize_any(AnyOfFive)
    }
}

/// A checked `TaskRunningInfo`, with its source position and its repairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaskRunningInfoEvent {
    /// The position of the source record.
    pub source: SourcePosition,
    /// The router's clock, microseconds since 1970-01-01T00:00:00Z.
    #[serde(with = "timestamp")]
    pub routed_at: i64,
    /// Each kind of repair made to `info`, once, in the enum's order.
    pub adjustments: Vec<Adjustment>,
    /// Fields of `info` that were NaN or infinite, with the original value (`NaN`, `Infinity` or
    /// `-Infinity`), by path: `progress.progress`, or `metrics.` and the metric's name. Empty in events of
    /// versions 1 and 2.
    #[serde(default)]
    pub not_finite: BTreeMap<String, String>,
    /// The report, repaired as listed in `adjustments`.
    pub info: TaskRunningInfo,
}

/// Position of a record in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SourcePosition {
    /// Topic.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// The record's Kafka timestamp, milliseconds since 1970; -1 if it has none.
    pub timestamp: i64,
    /// The topic's id as Kafka prints it, which changes when the topic is deleted and created again. `None`
    /// if it was unavailable, and in events of version 1.
    #[serde(default)]
    pub topic_id: Option<String>,
}

/// A kind of repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Adjustment {
    /// A kind of a newer schema.
    Unknown,
    /// Progress was NaN: the progress became 0.
    ProgressNotANumber,
    /// Progress was below 0: became 0.
    ProgressBelowZero,
    /// Progress was above 1: became 1.
    ProgressAboveOne,
    /// A count, size or sequence was negative: became 0.
    NegativeCount,
    /// A text contained U+0000, which PostgreSQL cannot store: became U+FFFD.
    NulInText,
    /// A metric was NaN or infinite (as a number or as its name): became null.
    MetricNotFinite,
}

impl Adjustment {
    /// The kind as the schema spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::ProgressNotANumber => "ProgressNotANumber",
            Self::ProgressBelowZero => "ProgressBelowZero",
            Self::ProgressAboveOne => "ProgressAboveOne",
            Self::NegativeCount => "NegativeCount",
            Self::NulInText => "NulInText",
            Self::MetricNotFinite => "MetricNotFinite",
        }
    }
}

/// A double; in JSON, also NaN or an infinity by name, as in Avro's JSON encoding.
fn double_or_its_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    if !deserializer.is_human_readable() {
        return f64::deserialize(deserializer);
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum DoubleOrName {
        Double(f64),
        Name(String),
    }
    match DoubleOrName::deserialize(deserializer).map_err(|_| {
        de::Error::custom("expected a number or one of \"NaN\", \"Infinity\", \"-Infinity\"")
    })? {
        DoubleOrName::Double(value) => Ok(value),
        DoubleOrName::Name(name) => not_finite(&name).ok_or_else(|| {
            de::Error::custom(format!(
                "expected a number or one of \"NaN\", \"Infinity\", \"-Infinity\", found {name:?}"
            ))
        }),
    }
}

/// Microseconds since 1970 in Avro; RFC 3339 text in human-readable formats.
pub mod timestamp {
    use std::fmt;

    use jiff::Timestamp;
    use jiff::civil::DateTime;
    use jiff::fmt::temporal::Pieces;
    use serde::de::{self, Deserializer, Visitor};
    use serde::{Deserialize, Serializer};

    /// RFC 3339 in UTC with six fractional digits; `None` outside its range of years.
    pub fn to_rfc3339(micros: i64) -> Option<String> {
        let timestamp = Timestamp::from_microsecond(micros).ok()?;
        Some(format!("{timestamp:.6}"))
    }

    /// Microseconds since 1970 of RFC 3339 text with an offset. Rounds down, so that a time before 1970 does not become later.
    pub fn from_rfc3339(text: &str) -> Option<i64> {
        let nanos = match text.parse::<Timestamp>() {
            Ok(timestamp) => timestamp.as_nanosecond(),
            // jiff's times end some hours before the year 9999 does.
            Err(_) => {
                let pieces = Pieces::parse(text).ok()?;
                let offset = pieces.to_numeric_offset()?;
                let local = DateTime::from_parts(pieces.date(), pieces.time()?);
                let local = local.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0));
                local.as_nanos() - i128::from(offset.seconds()) * 1_000_000_000
            }
        };
        i64::try_from(nanos.div_euclid(1_000)).ok()
    }

    /// Serialises as RFC 3339 text in human-readable formats if the time is in range, otherwise as the
    /// number.
    pub fn serialize<S: Serializer>(micros: &i64, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer
            .is_human_readable()
            .then(|| to_rfc3339(*micros))
            .flatten()
        {
            Some(text) => serializer.serialize_str(&text),
            None => serializer.serialize_i64(*micros),
        }
    }

    /// Deserialises either form.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
        if !deserializer.is_human_readable() {
            return i64::deserialize(deserializer);
        }
        struct TextOrMicros;
        impl Visitor<'_> for TextOrMicros {
            type Value = i64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("RFC 3339 text such as \"2026-11-25T14:05:00.123456Z\", or whole microseconds since 1970")
            }
            fn visit_i64<E>(self, value: i64) -> Result<i64, E> {
                Ok(value)
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<i64, E> {
                i64::try_from(value)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<i64, E> {
                from_rfc3339(value)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(TextOrMicros)
    }
}

/// Parses a name of NaN or an infinity: `NaN`, `inf` or `Infinity`, in any case, with or without a sign.
pub fn not_finite(text: &str) -> Option<f64> {
    // The first letter excludes nearly all texts. Digits are never a name.
    match text.as_bytes() {
        [b'n' | b'N' | b'i' | b'I', ..] | [b'+' | b'-', b'n' | b'N' | b'i' | b'I', ..] => {
            text.parse().ok()
        }
        _ => None,
    }
}
