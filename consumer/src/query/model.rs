//! Values that queries return: named fields, directly serializable.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// Maximum number of missing sequences listed for a task.
const LISTED_SEQUENCES: usize = 20;

/// A task's row in `task`, or its state as of an earlier time.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Task {
    pub(crate) exec_id: String,
    pub(crate) job_id: String,
    pub(crate) engine_instance: String,
    pub(crate) engine_type: String,
    pub(crate) engine_user: String,
    pub(crate) ticket_id: String,
    pub(crate) status: String,
    /// 0 to 1, from the newest report; null if the engine did not report it.
    pub(crate) progress: Option<f64>,
    /// RFC 3339.
    pub(crate) reported_at: String,
    pub(crate) sequence: i64,
    pub(crate) event_partition: i32,
    pub(crate) event_offset: i64,
    #[serde(skip)]
    pub(crate) task_id: i64,
}

/// A row of `task_progress`.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Report {
    pub(crate) sequence: i64,
    pub(crate) reported_at: String,
    pub(crate) status: String,
    pub(crate) progress: Option<f64>,
    pub(crate) jobs: SubJobs,
    /// A JSON array.
    #[serde(serialize_with = "raw", deserialize_with = "unraw")]
    #[schema(value_type = Option<Vec<String>>)]
    pub(crate) adjustments: Option<String>,
    pub(crate) event_partition: i32,
    pub(crate) event_offset: i64,
}

/// The sub-jobs of a report: lists of equal length; null if the engine did not report them.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
pub(crate) struct SubJobs {
    pub(crate) job_ids: Option<Vec<String>>,
    pub(crate) total_tasks: Option<Vec<i32>>,
    pub(crate) running_tasks: Option<Vec<i32>>,
    pub(crate) failed_tasks: Option<Vec<i32>>,
    pub(crate) succeed_tasks: Option<Vec<i32>>,
}

/// A row of `task_resource`.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Resource {
    pub(crate) application_id: String,
    pub(crate) status: String,
    pub(crate) queue: String,
    pub(crate) memory_bytes: i64,
    pub(crate) cores: i32,
    pub(crate) instances: i32,
    pub(crate) reported_at: String,
}

/// A row of `task_metrics`.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Metrics {
    pub(crate) engine_running_tasks: i32,
    /// A JSON object.
    #[serde(serialize_with = "raw", deserialize_with = "unraw")]
    #[schema(value_type = Option<std::collections::HashMap<String, serde_json::Value>>)]
    pub(crate) metrics: Option<String>,
    pub(crate) reported_at: String,
}

/// Everything the tables hold about a task.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct TaskDetails {
    pub(crate) task: Task,
    /// The newest resource part, one row per application.
    pub(crate) resource: Vec<Resource>,
    /// The newest metrics part.
    pub(crate) metrics: Option<Metrics>,
    pub(crate) sequences: Sequences,
    /// The newest reports, newest first, up to the caller's limit.
    pub(crate) reports: Vec<Report>,
    /// `consumer expire` removed the reports before this time; they are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expired_before: Option<Timestamp>,
}

/// Gaps and repetitions in a task's sequences: reports lost or repeated between the engine and the table.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub(crate) struct Sequences {
    /// Number of rows in `task_progress`.
    pub(crate) reports: i64,
    /// Number of reports whose sequence another row already has.
    pub(crate) repeated: i64,
    /// Number of sequences from 0 to the last one that no row has.
    pub(crate) missing: i64,
    /// The first missing ones, at most [`LISTED_SEQUENCES`].
    pub(crate) missing_sequences: Vec<i64>,
}

/// Serializes a column of JSON text as that JSON.
fn raw<S: serde::Serializer>(json: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let json = json
        .as_deref()
        .map(|text| RawValue::from_string(text.to_owned()))
        .transpose();
    json.map_err(serde::ser::Error::custom)?
        .serialize(serializer)
}

/// Deserializes the output of [`raw`].
fn unraw<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let json = Option::<Box<RawValue>>::deserialize(deserializer)?;
    Ok(json.map(|json| json.get().to_owned()))
}

impl Sequences {
    /// `sorted`: the sequence of every report, ascending. If earlier reports may have expired, sequences before the
    /// first one do not count as missing.
    pub(super) fn of(sorted: &[i64], may_be_expired: bool) -> Self {
        let mut sequences = Self {
            reports: sorted.len() as i64,
            ..Self::default()
        };
        let mut expected = match sorted.first() {
            Some(&first) if may_be_expired => first,
            _ => 0,
        };
        for &sequence in sorted {
            if sequence < expected {
                sequences.repeated += 1;
                continue;
            }
            sequences.missing += sequence - expected;
            let room = LISTED_SEQUENCES - sequences.missing_sequences.len();
            sequences
                .missing_sequences
                .extend((expected..sequence).take(room));
            expected = sequence.saturating_add(1);
        }
        sequences
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_show_missing_and_repeated_reports() {
        assert_eq!(Sequences::of(&[], false), Sequences::default());
        let whole = Sequences::of(&[0, 1, 2], false);
        assert_eq!((whole.reports, whole.repeated, whole.missing), (3, 0, 0));
        let torn = Sequences::of(&[1, 1, 4, 4, 4, 5], false);
        assert_eq!((torn.reports, torn.repeated, torn.missing), (6, 3, 3));
        assert_eq!(torn.missing_sequences, [0, 2, 3]);
        let rest = Sequences::of(&[7, 8, 10], true);
        assert_eq!((rest.missing, rest.missing_sequences), (1, vec![9]));
        let far = Sequences::of(&[i64::MAX], false);
        assert_eq!(
            (far.missing, far.missing_sequences.len()),
            (i64::MAX, LISTED_SEQUENCES)
        );
    }
}
