//! Trino's terms → the parts of a report. Pure: no clock, no network.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use schemas::{
    JobProgressInfo, MetricValue, ResourceWithStatus, TaskProgressInfo, TaskResourceInfo,
    TaskStatus,
};

use super::answers::{Bytes, Drivers, Millis, QueryInfo, Stage};
use crate::polling::limits::{identifier, int};

/// Stages in a report; a query with more is reported without them, so that the report fits into the topic.
const STAGES_MAX: usize = 5_000;

/// How long the tasks of a query may take to report their last counts.
const LAST_COUNTS_WAIT: Duration = Duration::from_secs(30);
/// A query that ended longer ago has its last counts.
const RECENT: SignedDuration = SignedDuration::from_secs(60);

/// Whether the status of a query in this state never changes again.
pub(super) fn is_final(state: &str) -> bool {
    matches!(state, "FINISHED" | "FAILED")
}

/// Whether a query in this state waits for its turn.
pub(super) fn is_queued(state: &str) -> bool {
    matches!(
        state,
        "QUEUED" | "WAITING_FOR_RESOURCES" | "WAITING_FOR_PREREQUISITES"
    )
}

/// Whether a query in this state has no tasks yet.
fn is_before_tasks(state: &str) -> bool {
    is_queued(state) || matches!(state, "DISPATCHING" | "PLANNING")
}

/// Whether a query in this state may have stages.
pub(super) fn has_stages(state: &str) -> bool {
    !is_before_tasks(state)
}

/// Whether the counts of a query that has ended are its last ones. It ends before all its tasks have reported theirs; only
/// its own response says when they have. Those of a list are taken if its end has been known since an earlier poll, or is
/// not recent; but if its own response `is_late`, the tasks may be late, too.
pub(super) fn has_last_counts(
    query: &QueryInfo,
    is_late: bool,
    known_for: Option<Duration>,
    now: Timestamp,
) -> bool {
    match (query.final_query_info, known_for) {
        (Some(true), _) => true,
        (None, Some(_)) if !is_late => true,
        (Some(false) | None, Some(known_for)) => known_for >= LAST_COUNTS_WAIT,
        (Some(false), None) => false,
        (None, None) => {
            let end = query.query_stats.end_time;
            end.is_none_or(|end| now.duration_since(end).abs() > RECENT)
        }
    }
}

pub(super) fn status(query: &QueryInfo) -> TaskStatus {
    let error = query.error_code.as_ref().map(|error| error.name.as_str());
    match (query.state.as_str(), error) {
        (state, _) if is_queued(state) => TaskStatus::Inited,
        ("DISPATCHING" | "PLANNING" | "STARTING", _) => TaskStatus::Scheduled,
        ("RUNNING" | "FINISHING", _) => TaskStatus::Running,
        ("FINISHED", _) => TaskStatus::Succeed,
        ("FAILED", Some("USER_CANCELED")) => TaskStatus::Cancelled,
        ("FAILED", Some("EXCEEDED_TIME_LIMIT")) => TaskStatus::Timeout,
        ("FAILED", _) => TaskStatus::Failed,
        _ => TaskStatus::Unknown,
    }
}

/// Counts that can be: none is negative, and no more drivers run and have completed than there are. As
/// (total, running, completed).
fn possible(drivers: &Drivers) -> Option<(i64, i64, i64)> {
    let (total, running, completed) = (
        drivers.total_drivers?,
        drivers.running_drivers?,
        drivers.completed_drivers?,
    );
    let at_least_none = running >= 0 && completed >= 0;
    let fits = running.saturating_add(completed) <= total && total <= i64::from(i32::MAX);
    (at_least_none && fits).then_some((total, running, completed))
}

/// The progress part: Trino's percentage, or completed drivers / all drivers where it has none. `None` before the query is
/// scheduled, and for one that failed: drivers that were stopped count as completed, up to 100 %.
pub(super) fn progress(query: &QueryInfo, stages: Option<&[Stage]>) -> Option<TaskProgressInfo> {
    if query.state == "FAILED" {
        return None;
    }
    let stats = &query.query_stats;
    let percentage = stats.progress_percentage;
    let percentage = percentage.filter(|percentage| (0.0..=100.0).contains(percentage));
    let of_drivers = || {
        let (total, _, completed) = possible(&stats.drivers())?;
        let is_scheduled = query.scheduled == Some(true) && total > 0;
        is_scheduled.then(|| completed as f64 / total as f64)
    };
    let progress = percentage.map(|percentage| percentage / 100.0);
    Some(TaskProgressInfo {
        progress: progress.or_else(of_drivers)?,
        progress_info: stages.and_then(of_stages).unwrap_or_default(),
    })
}

/// `None` if they are too many, or the counts of one are not known.
fn of_stages(stages: &[Stage]) -> Option<Vec<JobProgressInfo>> {
    if stages.len() > STAGES_MAX {
        return None;
    }
    let of_stage = |stage: &Stage| {
        let (total, running, completed) = possible(&stage.drivers()?)?;
        let number = stage.stage_id.rsplit('.').next();
        Some(JobProgressInfo {
            id: identifier(number.unwrap_or(&stage.stage_id)),
            total_tasks: int(total),
            running_tasks: int(running),
            // A failed driver ends its query, or its task, whose other attempt has drivers of its own.
            failed_tasks: 0,
            succeed_tasks: int(completed),
        })
    };
    stages.iter().map(of_stage).collect()
}

/// The resource part: the reserved memory, the cores in use, and the workers with tasks of the query. `None` if one of them
/// is not known. A query that has ended holds nothing.
pub(super) fn resource(query: &QueryInfo, stages: Option<&[Stage]>) -> Option<TaskResourceInfo> {
    let stats = &query.query_stats;
    let (memory, cores, workers) = match query.state.as_str() {
        state if is_final(state) => (0, 0, 0),
        state => (
            stats.total_memory_reservation?.0,
            cores(stats.total_cpu_time?, stats.execution_time?)?,
            match is_before_tasks(state) {
                true => 0,
                false => workers(stages?)?,
            },
        ),
    };
    let held = ResourceWithStatus {
        queue_memory: memory,
        queue_cores: int(cores),
        queue_instances: int(workers),
        job_status: identifier(&query.state),
        queue: resource_group(query).unwrap_or_default(),
    };
    Some(TaskResourceInfo {
        applications: [(identifier(&query.query_id), held)].into(),
    })
}

/// Cores in use on average over the time that the query ran, rounded up. (Both durations have three digits: their change
/// from poll to poll is mostly rounding.)
fn cores(cpu: Millis, execution: Millis) -> Option<i64> {
    match (cpu.0, execution.0) {
        (0, _) => Some(0),
        (_, 0) => None,
        (cpu, execution) => Some((cpu as f64 / execution as f64).ceil() as i64),
    }
}

/// Workers with tasks that have not ended.
fn workers(stages: &[Stage]) -> Option<i64> {
    let tasks = stages.iter().flat_map(Stage::tasks);
    let at_work = tasks.filter(|task| !task.has_ended());
    let workers: Option<HashSet<&str>> = at_work.map(|task| task.worker()).collect();
    i64::try_from(workers?.len()).ok()
}

fn resource_group(query: &QueryInfo) -> Option<String> {
    let path = query.resource_group_id.as_ref()?;
    Some(identifier(&path.join(".")))
}

/// The metrics part. A value that is not known, and a negative one, is left out: nothing that is counted here is negative.
pub(super) fn metrics(query: &QueryInfo) -> BTreeMap<String, MetricValue> {
    let mut metrics = BTreeMap::new();
    let stats = &query.query_stats;
    let drivers = stats.drivers();
    let millis = |time: Option<Millis>| time.map(|time| time.0);
    let bytes = |size: Option<Bytes>| size.map(|size| size.0);
    for (name, value) in [
        ("queuedMs", millis(stats.queued_time)),
        ("planningMs", millis(stats.planning_time)),
        ("executionMs", millis(stats.execution_time)),
        ("elapsedMs", millis(stats.elapsed_time)),
        ("cpuMs", millis(stats.total_cpu_time)),
        ("scheduledMs", millis(stats.total_scheduled_time)),
        ("driversTotal", drivers.total_drivers),
        ("driversQueued", drivers.queued_drivers),
        ("driversRunning", drivers.running_drivers),
        ("driversBlocked", drivers.blocked_drivers),
        ("driversCompleted", drivers.completed_drivers),
        ("tasksFailed", stats.failed_tasks),
        ("userMemoryBytes", bytes(stats.user_memory_reservation)),
        ("totalMemoryBytes", bytes(stats.total_memory_reservation)),
        (
            "peakUserMemoryBytes",
            bytes(stats.peak_user_memory_reservation),
        ),
        (
            "peakTotalMemoryBytes",
            bytes(stats.peak_total_memory_reservation),
        ),
        ("spilledBytes", bytes(stats.spilled_data_size)),
        ("physicalInputBytes", bytes(stats.physical_input_data_size)),
        ("inputBytes", bytes(stats.raw_input_data_size)),
        ("inputRows", stats.raw_input_positions),
        ("writtenBytes", bytes(stats.physical_written_data_size)),
    ] {
        if let Some(value) = value.filter(|value| *value >= 0) {
            metrics.insert(name.to_owned(), MetricValue::Long(value));
        }
    }
    // Trino says that a query is blocked once it has ended.
    let blocked = stats.fully_blocked.filter(|_| !is_final(&query.state));
    if let Some(blocked) = blocked {
        metrics.insert("fullyBlocked".to_owned(), MetricValue::Boolean(blocked));
    }
    let reasons = stats.blocked_reasons.as_ref();
    let reasons = reasons.map(|reasons| reasons.join(","));
    let reasons = reasons.filter(|reasons| blocked.is_some() && !reasons.is_empty());
    let session = &query.session;
    let error = query.error_code.as_ref();
    for (name, value) in [
        ("state", Some(query.state.clone())),
        ("source", session.source.clone()),
        ("catalog", session.catalog.clone()),
        ("resourceGroup", resource_group(query)),
        ("queryType", query.query_type.clone()),
        ("updateType", query.update_type.clone()),
        ("blockedReasons", reasons),
        ("errorName", error.map(|error| error.name.clone())),
        ("errorType", query.error_type.clone()),
    ] {
        if let Some(value) = value {
            metrics.insert(name.to_owned(), MetricValue::String(identifier(&value)));
        }
    }
    if let Some(text) = &query.query {
        metrics.insert("query".to_owned(), MetricValue::String(text.clone()));
    }
    metrics
}
