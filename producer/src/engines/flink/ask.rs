//! The requests of a poll. Each part has requests of its own, and fails alone.

use std::collections::{BTreeMap, HashMap};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::answers::{
    Checkpoints, Detail, Exceptions, Metric, SubtasksMetric, TaskManagerDetail, TaskManagers,
};
use super::mapping::{JobType, Slots, sources};
use crate::polling::rest::{Fault, Rest};

/// Vertices whose metrics are read one by one. A streaming job with more is reported without lag, busy time and back
/// pressure: a sum or maximum of some of them would be wrong.
const VERTICES_MAX: usize = 50;
/// Requests of one poll, or of one cluster's resources, at a time.
const REQUESTS_MAX: usize = 4;
/// Lag metrics of one source: one an operator of its chain.
const LAG_NAMES_MAX: usize = 16;
/// TaskManagers whose slots are read. In a larger cluster the resource part is null.
const TASKMANAGERS_MAX: usize = 1_000;

/// What a streaming job's vertices say.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    /// Records that the sources have yet to read. `None` if no source has such a metric: it appears with the first record.
    pub(super) pending_records: Option<i64>,
    /// Of the busiest subtask: its share of time at work, 0 to 1.
    pub(super) busy_max: Option<f64>,
    /// The largest share of time that a subtask waits for those after it, 0 to 1.
    pub(super) back_pressured_max: Option<f64>,
}

/// One poll's responses beside the job's own; `None` where there is none.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) checkpoints: Option<Checkpoints>,
    pub(super) restarts: Option<i64>,
    pub(super) load: Option<Load>,
    /// The class of the exception that a failed job has ended with.
    pub(super) exception: Option<String>,
}

/// The faults of parts that could not be read.
pub(super) type Faults = Vec<(&'static str, Fault)>;

impl Parts {
    /// Adds what a later request has learnt.
    pub(super) fn renew(&mut self, later: Self) {
        let Self {
            checkpoints,
            restarts,
            load,
            exception,
        } = later;
        self.checkpoints = checkpoints.or(self.checkpoints.take());
        self.restarts = restarts.or(self.restarts);
        self.load = load.or(self.load);
        self.exception = exception.or(self.exception.take());
    }
}

/// Names of lag metrics by source, so that the list of names is not read in each poll.
pub(super) type LagNames = HashMap<String, Vec<String>>;

/// The job by itself, with its vertices.
///
/// # Errors
/// If there is no usable answer. An answer about another job, as of a proxy that mixes clusters up, is not usable.
pub(super) async fn detail(rest: &Rest, jid: &str) -> Result<Detail, Fault> {
    let detail: Detail = rest.get(&["jobs", jid]).await?;
    match &detail.jid {
        Some(other) if other != jid => {
            let mixed_up = format!("asked for the job {jid}, it answers about {other:?}");
            Err(Fault::Unusable(mixed_up))
        }
        _ => Ok(detail),
    }
}

/// What else there is to know of a job, and the fault of each part that failed. A part that Flink does not have for this
/// job (404) is no fault.
pub(super) async fn parts(
    rest: &Rest,
    jid: &str,
    detail: &Detail,
    job_type: Option<JobType>,
    lag_names: &mut LagNames,
) -> (Parts, Faults) {
    let is_streaming = job_type == Some(JobType::Streaming);
    let runs = detail.state == "RUNNING";
    let (checkpoints, restarts, load, exception) = tokio::join!(
        async {
            match job_type {
                Some(JobType::Batch) => Ok(None),
                _ => checkpoints(rest, jid).await,
            }
        },
        async { Ok(some(restarts(rest, jid).await)?.flatten()) },
        async {
            match is_streaming && runs {
                true => some(load(rest, jid, detail, lag_names).await),
                false => Ok(None),
            }
        },
        async {
            match detail.state == "FAILED" {
                true => Ok(some(exception(rest, jid).await)?.flatten()),
                false => Ok(None),
            }
        },
    );
    let mut faults = Vec::new();
    let mut failed = |part, fault| faults.push((part, fault));
    let parts = Parts {
        checkpoints: checkpoints
            .map_err(|fault| failed("checkpoints", fault))
            .unwrap_or_default(),
        restarts: restarts
            .map_err(|fault| failed("restarts", fault))
            .unwrap_or_default(),
        load: load
            .map_err(|fault| failed("load", fault))
            .unwrap_or_default()
            .flatten(),
        exception: exception
            .map_err(|fault| failed("exception", fault))
            .unwrap_or_default(),
    };
    (parts, faults)
}

fn some<T>(answer: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Fault::NotFound(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// `None` if the job has none.
async fn checkpoints(rest: &Rest, jid: &str) -> Result<Option<Checkpoints>, Fault> {
    some(rest.get(&["jobs", jid, "checkpoints"]).await)
}

async fn restarts(rest: &Rest, jid: &str) -> Result<Option<i64>, Fault> {
    // The second is its name in old versions.
    let names = ["numRestarts", "fullRestarts"];
    let query = [("get", names.join(","))];
    let path = ["jobs", jid, "metrics"];
    let metrics: Vec<Metric> = rest.get_with(&path, &query).await?;
    let value = |name| {
        let metric = metrics.iter().find(|metric| metric.id == name)?;
        metric.value.as_ref()?.parse::<i64>().ok()
    };
    // -1 where Flink does not know yet.
    Ok(names
        .into_iter()
        .find_map(value)
        .filter(|count| *count >= 0))
}

async fn exception(rest: &Rest, jid: &str) -> Result<Option<String>, Fault> {
    let query = [("maxExceptions", "1".to_owned())];
    let path = ["jobs", jid, "exceptions"];
    let exceptions: Exceptions = rest.get_with(&path, &query).await?;
    let mut entries = exceptions.exception_history.entries.into_iter();
    Ok(entries.next().and_then(|entry| entry.exception_name))
}

/// `None` if the job has too many vertices.
async fn load(
    rest: &Rest,
    jid: &str,
    detail: &Detail,
    lag_names: &mut LagNames,
) -> Result<Option<Load>, Fault> {
    let vertices = &detail.vertices;
    if vertices.len() > VERTICES_MAX {
        return Ok(None);
    }
    let path = |vertex| ["jobs", jid, "vertices", vertex, "subtasks", "metrics"];
    let get = |names: &[String], agg: &str| [("get", names.join(",")), ("agg", agg.to_owned())];

    let mut load = Load::default();
    let mut pending = Vec::new();
    for source in sources(detail) {
        if !lag_names.contains_key(&source.id) {
            let listed: Vec<SubtasksMetric> = rest.get(&path(&source.id)).await?;
            let names = listed.into_iter().map(|metric| metric.id);
            let is_lag = |name: &String| name.ends_with(".pendingRecords");
            let names: Vec<String> = names.filter(is_lag).take(LAG_NAMES_MAX).collect();
            if names.is_empty() {
                continue;
            }
            lag_names.insert(source.id.clone(), names);
        }
        let names = lag_names.get(&source.id).map_or(&[][..], Vec::as_slice);
        let metrics: Vec<SubtasksMetric> =
            rest.get_with(&path(&source.id), &get(names, "sum")).await?;
        pending.extend(metrics.iter().filter_map(|metric| metric.sum));
    }
    if !pending.is_empty() {
        let pending: f64 = pending.iter().sum();
        let is_possible = (0.0..i64::MAX as f64).contains(&pending);
        load.pending_records = is_possible.then_some(pending as i64);
    }

    // An answer has no metric at all if one of the names is unknown, so each name has a request of its own.
    for (name, max) in [
        ("busyTimeMsPerSecond", &mut load.busy_max),
        ("backPressuredTimeMsPerSecond", &mut load.back_pressured_max),
    ] {
        let each = vertices.iter();
        let each = each.map(|vertex| subtasks_max(rest, jid, &vertex.id, name));
        let each = Vec::from_iter(each);
        let each: Vec<Option<f64>> = stream::iter(each)
            .buffer_unordered(REQUESTS_MAX)
            .try_collect()
            .await?;
        // Sources of the old interface say NaN.
        let known = each.into_iter().flatten().reduce(f64::max);
        *max = known.map(|ms| (ms / 1000.0).clamp(0.0, 1.0));
    }
    Ok(Some(load))
}

/// The largest value of a metric over the subtasks of a vertex; `None` if Flink does not know it.
async fn subtasks_max(
    rest: &Rest,
    jid: &str,
    vertex: &str,
    name: &str,
) -> Result<Option<f64>, Fault> {
    let path = ["jobs", jid, "vertices", vertex, "subtasks", "metrics"];
    let query = [("get", name.to_owned()), ("agg", "max".to_owned())];
    let metrics: Vec<SubtasksMetric> = rest.get_with(&path, &query).await?;
    Ok(metrics.first().and_then(|metric| metric.max))
}

async fn task_manager(rest: &Rest, id: String) -> Result<TaskManagerDetail, Fault> {
    rest.get(&["taskmanagers", &id]).await
}

/// The slots of each job of a cluster; `None` if it does not say, or is too large.
pub(super) async fn slots(rest: &Rest) -> Result<Option<BTreeMap<String, Slots>>, Fault> {
    let TaskManagers { taskmanagers } = rest.get(&["taskmanagers"]).await?;
    if taskmanagers.len() > TASKMANAGERS_MAX {
        return Ok(None);
    }
    let used = taskmanagers.into_iter();
    let used = used.filter(|one| one.free_slots < one.slots_number);
    let details = Vec::from_iter(used.map(|one| task_manager(rest, one.id)));
    let mut details = stream::iter(details).buffer_unordered(REQUESTS_MAX);
    let mut slots: BTreeMap<String, Slots> = BTreeMap::new();
    while let Some(detail) = details.try_next().await? {
        let Some(allocated) = detail.allocated_slots else {
            return Ok(None);
        };
        for slot in allocated {
            slots.entry(slot.job_id).or_default().add(&slot.resource);
        }
    }
    Ok(Some(slots))
}
