//! Responses of Spark's REST API, as far as they are used. Fields that some version lacks are optional; unknown fields are
//! skipped.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// `/applications`, one of.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Application {
    pub(crate) id: String,
    /// Newest first.
    #[serde(default)]
    pub(crate) attempts: Vec<Attempt>,
}

/// One run of an application.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Attempt {
    /// Absent in client and local mode; where it is present, every deeper path needs it.
    pub(crate) attempt_id: Option<String>,
    pub(crate) completed: bool,
    pub(crate) spark_user: String,
}

/// `/applications/{id}/jobs`, one of. Counts may be negative when Spark dropped events.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Job {
    pub(crate) job_id: i64,
    /// RUNNING, SUCCEEDED, FAILED, UNKNOWN.
    pub(crate) status: String,
    pub(crate) job_group: Option<String>,
    /// Of a streaming query's jobs. It is all that is taken from a description, which may hold query text.
    #[serde(rename = "description", deserialize_with = "batch_or_none")]
    pub(crate) batch: Option<Box<Batch>>,
    pub(crate) stage_ids: Vec<i64>,
    /// Includes the tasks of skipped stages.
    pub(crate) num_tasks: i64,
    pub(crate) num_active_tasks: i64,
    pub(crate) num_completed_tasks: i64,
    pub(crate) num_skipped_tasks: i64,
    pub(crate) num_failed_tasks: i64,
    pub(crate) num_killed_tasks: i64,
    /// By reason.
    pub(crate) killed_tasks_summary: BTreeMap<String, i64>,
}

impl Job {
    /// Ended successfully.
    pub(crate) const SUCCEEDED: &str = "SUCCEEDED";
    /// Ended otherwise.
    pub(crate) const FAILED: &str = "FAILED";

    /// Whether it never changes again.
    pub(crate) fn ended(&self) -> bool {
        self.status == Self::SUCCEEDED || self.status == Self::FAILED
    }

    /// Whether somebody cancelled it. Spark calls that FAILED too, but then no task has failed, and the reason of the killed
    /// tasks says so ("Stage cancelled: Job 7 cancelled part of cancelled job group …").
    pub(crate) fn cancelled(&self) -> bool {
        self.status == Self::FAILED
            && self.num_failed_tasks <= 0
            && self
                .killed_tasks_summary
                .keys()
                .any(|reason| reason.to_ascii_lowercase().contains("cancelled"))
    }
}

/// A batch of a streaming query, from the description that Spark gives its jobs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Batch {
    /// The query's id, the same in each of its runs.
    pub(crate) query_id: String,
    /// The id of the run, which is the job group of its jobs.
    pub(crate) run_id: String,
    pub(crate) name: Option<String>,
    /// `None` while the query begins.
    pub(crate) number: Option<i64>,
}

impl Batch {
    /// Parses `[NAME<br/>] id = UUID<br/> runId = UUID<br/> batch = N`.
    fn parse(description: &str) -> Option<Self> {
        let mut lines = description.split("<br/>").flat_map(str::lines);
        let mut lines = lines
            .by_ref()
            .map(str::trim)
            .filter(|line| !line.is_empty());
        let (mut name, mut line) = (None, lines.next()?);
        if !line.starts_with("id = ") {
            name = Some(line.to_owned());
            line = lines.next()?;
        }
        let query_id = uuid(line.strip_prefix("id = ")?)?;
        let run_id = uuid(lines.next()?.strip_prefix("runId = ")?)?;
        let number = lines.next()?.strip_prefix("batch = ")?.parse().ok();
        lines.next().is_none().then_some(Self {
            query_id,
            run_id,
            name,
            number,
        })
    }
}

fn uuid(text: &str) -> Option<String> {
    let is_uuid = text.len() == 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_uuid.then(|| text.to_owned())
}

fn batch_or_none<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Box<Batch>>, D::Error> {
    let description = Option::<String>::deserialize(deserializer)?;
    Ok(description
        .and_then(|text| Batch::parse(&text))
        .map(Box::new))
}

/// `/applications/{id}/sql`, one of; since Spark 3.0.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SqlExecution {
    pub(crate) id: i64,
    /// RUNNING, COMPLETED, FAILED.
    pub(crate) status: String,
}

impl SqlExecution {
    pub(crate) const RUNNING: &str = "RUNNING";
    pub(crate) const COMPLETED: &str = "COMPLETED";
    pub(crate) const FAILED: &str = "FAILED";
}

/// `/applications/{id}/stages`, one of: one attempt of a stage.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Stage {
    pub(crate) stage_id: i64,
    pub(crate) input_bytes: i64,
    pub(crate) output_bytes: i64,
    pub(crate) shuffle_read_bytes: i64,
    pub(crate) shuffle_write_bytes: i64,
    pub(crate) memory_bytes_spilled: i64,
    pub(crate) disk_bytes_spilled: i64,
    /// Milliseconds.
    pub(crate) executor_run_time: i64,
    /// Milliseconds; since Spark 3.0.
    pub(crate) jvm_gc_time: i64,
}

/// `/applications/{id}/allexecutors`, one of; the driver is one of them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Executor {
    pub(crate) id: String,
    pub(crate) is_active: bool,
    pub(crate) total_cores: i64,
    pub(crate) active_tasks: i64,
    pub(crate) failed_tasks: i64,
    pub(crate) completed_tasks: i64,
    /// Storage memory, bytes: not the heap, not the container.
    pub(crate) max_memory: i64,
    /// Storage memory in use, bytes.
    pub(crate) memory_used: i64,
    /// Milliseconds.
    #[serde(rename = "totalGCTime")]
    pub(crate) total_gc_time: i64,
    pub(crate) total_input_bytes: i64,
    pub(crate) total_shuffle_read: i64,
    pub(crate) total_shuffle_write: i64,
}

impl Executor {
    pub(crate) fn is_driver(&self) -> bool {
        self.id == "driver" || self.id == "<driver>"
    }
}

/// `/applications/{id}/environment`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Environment {
    pub(crate) spark_properties: Vec<(String, String)>,
}

impl Environment {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let mut properties = self.spark_properties.iter();
        properties
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}
