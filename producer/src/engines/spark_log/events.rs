//! Events of a log, as far as they are used. Everything that some version of Spark leaves out is optional. Query
//! texts, plans, stack traces and all Spark properties but a few are skipped, not read.
//!
//! Long because every event that is used is a type here, field by field.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, de};

use crate::engines::spark::answers::Environment;

pub(super) enum Event<'l> {
    LogStart(LogStart),
    ApplicationStart(ApplicationStart),
    ApplicationEnd(ApplicationEnd),
    Environment(EnvironmentUpdate),
    ExecutorAdded(ExecutorAdded),
    ExecutorRemoved(ExecutorRemoved),
    BlockManagerAdded(BlockManagerAdded),
    JobStart(JobStart),
    JobEnd(JobEnd<'l>),
    StageSubmitted(StageEvent),
    StageCompleted(StageEvent),
    TaskStart(TaskStart<'l>),
    TaskEnd(Box<TaskEnd<'l>>),
    SqlStart(SqlStart),
    SqlEnd(SqlEnd),
    StreamStarted(StreamStarted),
    StreamProgress(Box<Progress>),
    StreamTerminated(StreamTerminated),
    /// One that is not used.
    Other,
}

/// Whether a job's outcome can depend on an event of this name. Of a line whose event cannot be read, it may.
pub(super) fn decides_jobs(name: Option<&str>) -> bool {
    match name {
        Some(name) => matches!(
            name,
            "SparkListenerJobStart"
                | "SparkListenerJobEnd"
                | "SparkListenerTaskEnd"
                | "SparkListenerApplicationStart"
        ),
        None => true,
    }
}

/// Whether events of this name are read.
pub(super) fn is_used(name: &str) -> bool {
    // A line of such an event that holds nothing is refused.
    !matches!(of(name, b"}"), Ok(Event::Other))
}

/// The name of a line's event, where the line begins with it, as Spark writes it.
pub(super) fn name(line: &[u8]) -> Option<&str> {
    let rest = line.trim_ascii_start().strip_prefix(b"{\"Event\":\"")?;
    let end = memchr::memchr(b'"', rest)?;
    std::str::from_utf8(&rest[..end]).ok()
}

/// Reads a line.
///
/// # Errors
/// Why it is no event.
pub(super) fn read(line: &[u8]) -> Result<Event<'_>, String> {
    #[derive(Deserialize)]
    struct Named<'l> {
        #[serde(rename = "Event", borrow)]
        event: Cow<'l, str>,
    }
    if let Some(name) = name(line) {
        return of(name, line);
    }
    let named: Named<'_> = json(line)?;
    of(&named.event, line)
}

fn of<'l>(name: &str, line: &'l [u8]) -> Result<Event<'l>, String> {
    if let Some(of_sql) = name.strip_prefix("org.apache.spark.sql.execution.ui.") {
        return match of_sql {
            "SparkListenerSQLExecutionStart" => json(line).map(Event::SqlStart),
            "SparkListenerSQLExecutionEnd" => json(line).map(Event::SqlEnd),
            _ => unused(line),
        };
    }
    if let Some(of_streams) =
        name.strip_prefix("org.apache.spark.sql.streaming.StreamingQueryListener$")
    {
        return match of_streams {
            "QueryStartedEvent" => json(line).map(Event::StreamStarted),
            "QueryProgressEvent" => {
                json::<StreamProgress>(line).map(|event| match event.progress {
                    Some(progress) => Event::StreamProgress(Box::new(progress)),
                    // Spark 2.0 wrote another kind of event under the same name.
                    None => Event::Other,
                })
            }
            "QueryTerminatedEvent" => json(line).map(Event::StreamTerminated),
            _ => unused(line),
        };
    }
    match name {
        "SparkListenerLogStart" => json(line).map(Event::LogStart),
        "SparkListenerApplicationStart" => json(line).map(Event::ApplicationStart),
        "SparkListenerApplicationEnd" => json(line).map(Event::ApplicationEnd),
        "SparkListenerEnvironmentUpdate" => json(line).map(Event::Environment),
        "SparkListenerExecutorAdded" => json(line).map(Event::ExecutorAdded),
        "SparkListenerExecutorRemoved" => json(line).map(Event::ExecutorRemoved),
        "SparkListenerBlockManagerAdded" => json(line).map(Event::BlockManagerAdded),
        "SparkListenerJobStart" => json(line).map(Event::JobStart),
        "SparkListenerJobEnd" => json(line).map(Event::JobEnd),
        "SparkListenerStageSubmitted" => json(line).map(Event::StageSubmitted),
        "SparkListenerStageCompleted" => json(line).map(Event::StageCompleted),
        "SparkListenerTaskStart" => json(line).map(Event::TaskStart),
        "SparkListenerTaskEnd" => json(line).map(|event| Event::TaskEnd(Box::new(event))),
        _ => unused(line),
    }
}

/// Most of a log's lines may be of no use: only whether they end is looked at.
fn unused(line: &[u8]) -> Result<Event<'_>, String> {
    match line.trim_ascii_end().ends_with(b"}") {
        true => Ok(Event::Other),
        false => Err("it is cut: it does not end with a brace".to_owned()),
    }
}

fn json<'l, T: Deserialize<'l>>(line: &'l [u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

#[derive(Deserialize)]
pub(super) struct LogStart {
    #[serde(rename = "Spark Version", default)]
    pub(super) version: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ApplicationStart {
    #[serde(rename = "App ID", default)]
    pub(super) id: Option<String>,
    #[serde(rename = "App Attempt ID", default)]
    pub(super) attempt: Option<String>,
    #[serde(rename = "Timestamp", default)]
    pub(super) time: i64,
    #[serde(rename = "User", default)]
    pub(super) user: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ApplicationEnd {
    #[serde(rename = "Timestamp", default)]
    pub(super) time: i64,
    /// Since Spark 4.0.
    #[serde(rename = "ExitCode", default)]
    pub(super) exit_code: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct EnvironmentUpdate {
    #[serde(
        rename = "Spark Properties",
        default,
        deserialize_with = "used_properties"
    )]
    pub(super) properties: Environment,
}

/// The properties that are used; the others may be secrets, and stay in the log.
fn used_properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Environment, D::Error> {
    const USED: &[&str] = &[
        "spark.master",
        "spark.driver.host",
        "spark.driver.port",
        "spark.driver.memory",
        "spark.executor.memory",
        "spark.executor.memoryOverhead",
        "spark.executor.memoryOverheadFactor",
        "spark.executor.pyspark.memory",
        "spark.memory.offHeap.enabled",
        "spark.memory.offHeap.size",
        "spark.yarn.executor.memoryOverhead",
        "spark.yarn.queue",
    ];
    struct Properties;
    impl<'de> de::Visitor<'de> for Properties {
        type Value = Environment;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Environment, A::Error> {
            let mut used = Environment::default();
            while let Some(name) = map.next_key::<String>()? {
                match USED.contains(&name.as_str()) {
                    true => used.spark_properties.push((name, map.next_value()?)),
                    false => drop(map.next_value::<IgnoredAny>()?),
                }
            }
            Ok(used)
        }
    }
    deserializer.deserialize_map(Properties)
}

#[derive(Deserialize)]
pub(super) struct ExecutorAdded {
    #[serde(rename = "Timestamp", default)]
    pub(super) time: i64,
    #[serde(rename = "Executor ID")]
    pub(super) id: String,
    #[serde(rename = "Executor Info")]
    pub(super) info: ExecutorInfo,
}

#[derive(Deserialize)]
pub(super) struct ExecutorInfo {
    #[serde(rename = "Total Cores", default)]
    pub(super) cores: i64,
}

#[derive(Deserialize)]
pub(super) struct ExecutorRemoved {
    #[serde(rename = "Timestamp", default)]
    pub(super) time: i64,
    #[serde(rename = "Executor ID")]
    pub(super) id: String,
}

#[derive(Deserialize)]
pub(super) struct BlockManagerAdded {
    #[serde(rename = "Timestamp", default)]
    pub(super) time: i64,
    #[serde(rename = "Block Manager ID")]
    pub(super) id: BlockManagerId,
    #[serde(rename = "Maximum Memory", default)]
    pub(super) max_memory: i64,
}

#[derive(Deserialize)]
pub(super) struct BlockManagerId {
    #[serde(rename = "Executor ID")]
    pub(super) executor: String,
    #[serde(rename = "Host", default)]
    pub(super) host: String,
    #[serde(rename = "Port", default)]
    pub(super) port: i64,
}

#[derive(Deserialize)]
pub(super) struct JobStart {
    #[serde(rename = "Job ID")]
    pub(super) id: i64,
    #[serde(rename = "Submission Time", default)]
    pub(super) time: i64,
    #[serde(rename = "Stage Infos", default)]
    pub(super) stages: Vec<StageInfo>,
    #[serde(rename = "Stage IDs", default)]
    pub(super) stage_ids: Vec<i64>,
    #[serde(rename = "Properties", default)]
    pub(super) properties: Option<JobProperties>,
}

#[derive(Default, Deserialize)]
pub(super) struct JobProperties {
    #[serde(rename = "spark.jobGroup.id", default)]
    pub(super) group: Option<String>,
    #[serde(rename = "spark.sql.execution.id", default)]
    pub(super) sql_execution: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct StageInfo {
    #[serde(rename = "Stage ID")]
    pub(super) id: i64,
    #[serde(rename = "Stage Attempt ID", default)]
    pub(super) attempt: i64,
    #[serde(rename = "Number of Tasks", default)]
    pub(super) tasks: i64,
    #[serde(rename = "Submission Time", default)]
    pub(super) submitted: Option<i64>,
    #[serde(rename = "Completion Time", default)]
    pub(super) completed: Option<i64>,
    #[serde(rename = "Failure Reason", default, deserialize_with = "is_there")]
    pub(super) failed: bool,
}

/// Whether a field is there, whatever it holds.
fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Option::<IgnoredAny>::deserialize(deserializer).map(|value| value.is_some())
}

#[derive(Deserialize)]
pub(super) struct StageEvent {
    #[serde(rename = "Stage Info")]
    pub(super) info: StageInfo,
}

#[derive(Deserialize)]
pub(super) struct JobEnd<'l> {
    #[serde(rename = "Job ID")]
    pub(super) id: i64,
    #[serde(rename = "Completion Time", default)]
    pub(super) time: i64,
    #[serde(rename = "Job Result", borrow)]
    pub(super) result: JobResult<'l>,
}

#[derive(Deserialize)]
pub(super) struct JobResult<'l> {
    #[serde(rename = "Result", borrow)]
    pub(super) result: Cow<'l, str>,
}

#[derive(Deserialize)]
pub(super) struct TaskStart<'l> {
    #[serde(rename = "Stage ID")]
    pub(super) stage: i64,
    #[serde(rename = "Stage Attempt ID", default)]
    pub(super) attempt: i64,
    #[serde(rename = "Task Info", borrow)]
    pub(super) info: TaskInfo<'l>,
}

#[derive(Deserialize)]
pub(super) struct TaskInfo<'l> {
    #[serde(rename = "Launch Time", default)]
    pub(super) launched: i64,
    #[serde(rename = "Executor ID", borrow, default)]
    pub(super) executor: Cow<'l, str>,
    #[serde(rename = "Finish Time", default)]
    pub(super) finished: i64,
}

#[derive(Deserialize)]
pub(super) struct TaskEnd<'l> {
    #[serde(rename = "Stage ID")]
    pub(super) stage: i64,
    #[serde(rename = "Stage Attempt ID", default)]
    pub(super) attempt: i64,
    #[serde(rename = "Task End Reason", borrow)]
    pub(super) reason: TaskEndReason<'l>,
    #[serde(rename = "Task Info", borrow)]
    pub(super) info: Option<TaskInfo<'l>>,
    #[serde(rename = "Task Metrics", default)]
    pub(super) metrics: Option<TaskMetrics>,
}

#[derive(Deserialize)]
pub(super) struct TaskEndReason<'l> {
    #[serde(rename = "Reason", borrow)]
    pub(super) reason: Cow<'l, str>,
    #[serde(rename = "Kill Reason", default)]
    pub(super) kill_reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct TaskMetrics {
    /// Milliseconds.
    #[serde(rename = "Executor Run Time")]
    pub(super) run_time: i64,
    /// Milliseconds.
    #[serde(rename = "JVM GC Time")]
    pub(super) gc_time: i64,
    #[serde(rename = "Memory Bytes Spilled")]
    pub(super) memory_spilled: i64,
    #[serde(rename = "Disk Bytes Spilled")]
    pub(super) disk_spilled: i64,
    #[serde(rename = "Shuffle Read Metrics")]
    pub(super) shuffle_read: Option<ShuffleRead>,
    #[serde(rename = "Shuffle Write Metrics")]
    pub(super) shuffle_write: Option<ShuffleWrite>,
    #[serde(rename = "Input Metrics")]
    pub(super) input: Option<Input>,
    #[serde(rename = "Output Metrics")]
    pub(super) output: Option<Output>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ShuffleRead {
    #[serde(rename = "Remote Bytes Read")]
    pub(super) remote: i64,
    #[serde(rename = "Local Bytes Read")]
    pub(super) local: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ShuffleWrite {
    #[serde(rename = "Shuffle Bytes Written")]
    pub(super) written: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Input {
    #[serde(rename = "Bytes Read")]
    pub(super) read: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Output {
    #[serde(rename = "Bytes Written")]
    pub(super) written: i64,
}

#[derive(Deserialize)]
pub(super) struct SqlStart {
    #[serde(rename = "executionId")]
    pub(super) id: i64,
    #[serde(default)]
    pub(super) time: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SqlEnd {
    #[serde(rename = "executionId")]
    pub(super) id: i64,
    #[serde(default)]
    pub(super) time: i64,
    /// Empty if it ended well; absent before Spark 3.4, which did not say.
    #[serde(default, deserialize_with = "holds_text")]
    pub(super) error_message: Option<bool>,
}

/// Whether a text is not empty, without keeping it.
fn holds_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    let text = Option::<Cow<'de, str>>::deserialize(deserializer)?;
    Ok(text.map(|text| !text.is_empty()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamStarted {
    pub(super) id: String,
    pub(super) run_id: String,
    #[serde(default)]
    pub(super) name: Option<String>,
}

#[derive(Deserialize)]
struct StreamProgress {
    #[serde(default)]
    progress: Option<Progress>,
}

/// StreamingQueryProgress, of one batch of a streaming query.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Progress {
    pub(super) id: String,
    pub(super) run_id: String,
    pub(super) name: Option<String>,
    pub(super) timestamp: String,
    pub(super) batch_id: Option<i64>,
    pub(super) num_input_rows: Option<i64>,
    #[serde(deserialize_with = "finite")]
    pub(super) input_rows_per_second: Option<f64>,
    #[serde(deserialize_with = "finite")]
    pub(super) processed_rows_per_second: Option<f64>,
    /// Milliseconds by step; `triggerExecution` is all of them.
    pub(super) duration_ms: BTreeMap<String, i64>,
    /// `watermark`, `max`, …: ISO 8601.
    pub(super) event_time: BTreeMap<String, String>,
    pub(super) state_operators: Vec<StateOperator>,
    pub(super) sources: Vec<Source>,
    pub(super) sink: Option<Sink>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct StateOperator {
    pub(super) num_rows_total: i64,
    pub(super) memory_used_bytes: Option<i64>,
    pub(super) num_rows_dropped_by_watermark: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Source {
    pub(super) num_input_rows: Option<i64>,
    #[serde(deserialize_with = "finite")]
    pub(super) input_rows_per_second: Option<f64>,
    #[serde(deserialize_with = "finite")]
    pub(super) processed_rows_per_second: Option<f64>,
    /// Absent, null or a map of texts.
    pub(super) metrics: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Sink {
    /// -1 where the sink does not say.
    pub(super) num_output_rows: Option<i64>,
}

/// A number; none where it is NaN or infinite, which is written as text.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Rate {
        Number(f64),
        Other(IgnoredAny),
    }
    Ok(match Option::<Rate>::deserialize(deserializer)? {
        Some(Rate::Number(rate)) if rate.is_finite() => Some(rate),
        Some(Rate::Number(_) | Rate::Other(_)) | None => None,
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StreamTerminated {
    pub(super) run_id: String,
    /// Whether it failed; the exception itself is not kept.
    #[serde(default, deserialize_with = "is_there")]
    pub(super) exception: bool,
}
