//! Responses of Flink's REST API, as far as they are used. Fields that some version lacks are optional; unknown fields
//! are skipped.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};

/// `/jobs/overview`.
#[derive(Debug, Deserialize)]
pub(super) struct Overview {
    pub(super) jobs: Vec<Listed>,
}

/// A job of the overview.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Listed {
    pub(super) jid: String,
    pub(super) state: String,
    /// Milliseconds since 1970. A JobManager that takes over restarts it.
    pub(super) start_time: Option<i64>,
    /// `None`: not known.
    #[serde(default, deserialize_with = "possible_or_none")]
    pub(super) tasks: Option<Tasks>,
}

/// How many tasks (parallel subtasks) are in each state. The overview writes the states in lower case, all other
/// responses in upper case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Tasks {
    #[serde(alias = "CREATED")]
    pub(super) created: i64,
    #[serde(alias = "SCHEDULED")]
    pub(super) scheduled: i64,
    #[serde(alias = "DEPLOYING")]
    pub(super) deploying: i64,
    /// Restores its state. Since Flink 1.14.
    #[serde(alias = "INITIALIZING")]
    pub(super) initializing: i64,
    #[serde(alias = "RUNNING")]
    pub(super) running: i64,
    #[serde(alias = "FINISHED")]
    pub(super) finished: i64,
    #[serde(alias = "CANCELING")]
    pub(super) canceling: i64,
    #[serde(alias = "CANCELED")]
    pub(super) canceled: i64,
    #[serde(alias = "FAILED")]
    pub(super) failed: i64,
    #[serde(alias = "RECONCILING")]
    pub(super) reconciling: i64,
}

/// Counts that can be: none is negative, and all together fit into Flink's 32 bits.
fn possible_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Tasks>, D::Error> {
    let tasks = Option::<Tasks>::deserialize(deserializer)?;
    Ok(tasks.filter(Tasks::is_possible))
}

/// `/jobs/{id}`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Detail {
    pub(super) jid: Option<String>,
    pub(super) state: String,
    /// Milliseconds since 1970, as in the overview.
    pub(super) start_time: Option<i64>,
    /// The server's clock, milliseconds since 1970.
    pub(super) now: Option<i64>,
    #[serde(default)]
    pub(super) name: String,
    /// When the job entered each state, milliseconds since 1970; 0: never.
    #[serde(default)]
    pub(super) timestamps: BTreeMap<String, i64>,
    /// BATCH or STREAMING. Since Flink 1.20; before that, the plan has it.
    pub(super) job_type: Option<String>,
    #[serde(default)]
    pub(super) vertices: Vec<Vertex>,
    /// Operators of an adaptive batch job that are no vertices yet. Since Flink 2.0.
    pub(super) pending_operators: Option<i64>,
    /// Since Flink 2.2.
    pub(super) application_id: Option<String>,
    #[serde(default, deserialize_with = "object_or_none")]
    pub(super) plan: Option<Plan>,
}

/// A vertex of the job graph: a chain of operators.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Vertex {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
    /// -1 while an adaptive scheduler has not chosen it.
    pub(super) parallelism: i64,
    /// `None`: not known.
    #[serde(default, deserialize_with = "possible_or_none")]
    pub(super) tasks: Option<Tasks>,
    #[serde(default)]
    pub(super) metrics: IoMetrics,
}

/// A vertex's counters. Flink answers `…-complete: false` with zeros while some subtasks have not reported theirs.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct IoMetrics {
    read_records: Option<i64>,
    read_records_complete: bool,
    write_records: Option<i64>,
    write_records_complete: bool,
    read_bytes: Option<i64>,
    read_bytes_complete: bool,
    write_bytes: Option<i64>,
    write_bytes_complete: bool,
}

impl IoMetrics {
    pub(super) fn read_records(&self) -> Option<i64> {
        self.read_records.filter(|_| self.read_records_complete)
    }

    pub(super) fn write_records(&self) -> Option<i64> {
        self.write_records.filter(|_| self.write_records_complete)
    }

    pub(super) fn read_bytes(&self) -> Option<i64> {
        self.read_bytes.filter(|_| self.read_bytes_complete)
    }

    pub(super) fn write_bytes(&self) -> Option<i64> {
        self.write_bytes.filter(|_| self.write_bytes_complete)
    }
}

/// The graph of vertices.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Plan {
    /// BATCH or STREAMING.
    pub(super) r#type: Option<String>,
    pub(super) nodes: Vec<Node>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Node {
    pub(super) id: String,
    /// Absent: a source.
    #[serde(default)]
    pub(super) inputs: Vec<Input>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Input {
    pub(super) id: String,
}

/// Some versions answer the plan as something else than an object.
fn object_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Plan>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any {
        Plan(Plan),
        Other(IgnoredAny),
    }
    Ok(match Any::deserialize(deserializer)? {
        Any::Plan(plan) => Some(plan),
        Any::Other(_) => None,
    })
}

/// `/jobs/{id}/checkpoints`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Checkpoints {
    pub(super) counts: Option<CheckpointCounts>,
    pub(super) latest: LatestCheckpoints,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct CheckpointCounts {
    pub(super) completed: i64,
    pub(super) failed: i64,
    pub(super) in_progress: i64,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LatestCheckpoints {
    pub(super) completed: Option<Checkpoint>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Checkpoint {
    /// Milliseconds since 1970; the server's clock.
    pub(super) latest_ack_timestamp: Option<i64>,
    /// Milliseconds.
    pub(super) end_to_end_duration: Option<i64>,
    /// Bytes of the whole state.
    pub(super) state_size: Option<i64>,
    /// Bytes written by this checkpoint. Since Flink 1.13.
    pub(super) checkpointed_size: Option<i64>,
}

/// `/jobs/{id}/metrics?get=…`, one of: values are text.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Metric {
    pub(super) id: String,
    #[serde(default)]
    pub(super) value: Option<String>,
}

/// `/jobs/{id}/vertices/{id}/subtasks/metrics`, one of. Without `get` there are only ids.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct SubtasksMetric {
    pub(super) id: String,
    #[serde(default, deserialize_with = "number_or_none")]
    pub(super) sum: Option<f64>,
    #[serde(default, deserialize_with = "number_or_none")]
    pub(super) max: Option<f64>,
}

/// A finite number; Flink writes NaN as a text.
fn number_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Any {
        Number(f64),
        Other(IgnoredAny),
    }
    Ok(match Any::deserialize(deserializer)? {
        Any::Number(number) => Some(number).filter(|number| number.is_finite()),
        Any::Other(_) => None,
    })
}

/// `/jobs/{id}/exceptions`: the name of each exception, never its text, which holds people's data.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Exceptions {
    pub(super) exception_history: ExceptionHistory,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ExceptionHistory {
    /// Newest first.
    pub(super) entries: Vec<ExceptionEntry>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExceptionEntry {
    pub(super) exception_name: Option<String>,
}

/// `/taskmanagers`.
#[derive(Debug, Deserialize)]
pub(super) struct TaskManagers {
    pub(super) taskmanagers: Vec<TaskManager>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskManager {
    pub(super) id: String,
    pub(super) slots_number: i64,
    pub(super) free_slots: i64,
}

/// `/taskmanagers/{id}`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TaskManagerDetail {
    /// Absent in old versions.
    pub(super) allocated_slots: Option<Vec<AllocatedSlot>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AllocatedSlot {
    pub(super) job_id: String,
    #[serde(default)]
    pub(super) resource: SlotResource,
}

/// Memory in MiB; -1 if unknown.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct SlotResource {
    pub(super) cpu_cores: Option<f64>,
    pub(super) task_heap_memory: Option<i64>,
    pub(super) task_off_heap_memory: Option<i64>,
    pub(super) managed_memory: Option<i64>,
    pub(super) network_memory: Option<i64>,
}
