//! Flink's terms → the parts of a report. Pure: no clock, no network.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use schemas::{
    JobProgressInfo, MetricValue, ResourceWithStatus, TaskProgressInfo, TaskResourceInfo,
    TaskStatus,
};

use super::answers::{Checkpoints, Detail, Plan, SlotResource, Tasks, Vertex};
use crate::polling::limits::{identifier, int};

/// Stages in a report; a job graph with more is reported without progress, so that the report fits into the topic.
const STAGES_MAX: usize = 5_000;

/// Whether a job can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobType {
    Batch,
    Streaming,
}

impl JobType {
    /// `None` if Flink does not say: before 1.20 only the plan tells, and not in all versions.
    pub(super) fn of(detail: &Detail) -> Option<Self> {
        let of_plan = || detail.plan.as_ref()?.r#type.as_deref();
        match detail.job_type.as_deref().or_else(of_plan)? {
            "BATCH" => Some(Self::Batch),
            "STREAMING" => Some(Self::Streaming),
            _ => None,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "BATCH",
            Self::Streaming => "STREAMING",
        }
    }
}

/// Whether a job in this state never changes again.
pub(super) fn is_final(state: &str) -> bool {
    matches!(state, "FINISHED" | "FAILED" | "CANCELED")
}

/// Time from a job's end to this response, by Flink's clock. `None` if it has not ended, or Flink does not say when.
pub(super) fn since_end(detail: &Detail) -> Option<Duration> {
    let ended = detail.timestamps.get(&detail.state);
    let ended = ended.filter(|time| is_final(&detail.state) && **time > 0)?;
    let millis = detail.now?.saturating_sub(*ended).max(0);
    u64::try_from(millis).ok().map(Duration::from_millis)
}

/// A job's status.
///
/// Flink says RUNNING as soon as it schedules the tasks. A streaming job runs when each of its tasks runs or has
/// finished; a batch job, which runs its stages one after the other, when any task has come that far. If it is not known
/// how far its tasks are (`None`), neither is its status.
pub(super) fn status(state: &str, tasks: Option<&Tasks>, job_type: Option<JobType>) -> TaskStatus {
    match state {
        "INITIALIZING" | "CREATED" => TaskStatus::Inited,
        "RUNNING" => match tasks.map(|tasks| runs(tasks, job_type)) {
            Some(true) => TaskStatus::Running,
            Some(false) => TaskStatus::Scheduled,
            None => TaskStatus::Unknown,
        },
        // It has not ended, and its tasks may still run.
        "FAILING" | "CANCELLING" => TaskStatus::Running,
        "RESTARTING" => TaskStatus::WaitForRetry,
        "FINISHED" => TaskStatus::Succeed,
        "FAILED" => TaskStatus::Failed,
        "CANCELED" => TaskStatus::Cancelled,
        // SUSPENDED and RECONCILING: another JobManager may continue it.
        _ => TaskStatus::Unknown,
    }
}

fn runs(tasks: &Tasks, job_type: Option<JobType>) -> bool {
    let at_work = tasks.running > 0 || tasks.finished > 0;
    let beyond = tasks.running.saturating_add(tasks.finished);
    let waiting = tasks.total().saturating_sub(beyond);
    match job_type {
        Some(JobType::Streaming) => at_work && waiting == 0,
        Some(JobType::Batch) | None => at_work,
    }
}

impl Tasks {
    pub(super) fn total(&self) -> i64 {
        self.counts().into_iter().fold(0, i64::saturating_add)
    }

    pub(super) fn is_possible(&self) -> bool {
        self.counts().iter().all(|count| *count >= 0) && self.total() <= i64::from(i32::MAX)
    }

    fn counts(&self) -> [i64; 10] {
        [
            self.created,
            self.scheduled,
            self.deploying,
            self.initializing,
            self.running,
            self.finished,
            self.canceling,
            self.canceled,
            self.failed,
            self.reconciling,
        ]
    }

    /// The tasks of all vertices; `None` if those of one are not known.
    pub(super) fn of(vertices: &[Vertex]) -> Option<Self> {
        let mut sum = Self::default();
        for Vertex { tasks, .. } in vertices {
            let tasks = (*tasks)?;
            let add = |sum: &mut i64, more: i64| *sum = sum.saturating_add(more);
            add(&mut sum.created, tasks.created);
            add(&mut sum.scheduled, tasks.scheduled);
            add(&mut sum.deploying, tasks.deploying);
            add(&mut sum.initializing, tasks.initializing);
            add(&mut sum.running, tasks.running);
            add(&mut sum.finished, tasks.finished);
            add(&mut sum.canceling, tasks.canceling);
            add(&mut sum.canceled, tasks.canceled);
            add(&mut sum.failed, tasks.failed);
            add(&mut sum.reconciling, tasks.reconciling);
        }
        Some(sum).filter(Self::is_possible)
    }
}

/// The progress part: of a batch job whose graph is complete, finished tasks / all tasks, and its vertices. A streaming
/// job has none, bounded or not: its finished tasks say nothing about how far it is.
pub(super) fn progress(
    detail: &Detail,
    job_type: Option<JobType>,
    with_names: bool,
) -> Option<TaskProgressInfo> {
    let vertices = &detail.vertices;
    let has_progress = job_type == Some(JobType::Batch) && vertices.len() <= STAGES_MAX;
    if !has_progress || !is_complete(detail) {
        return None;
    }
    let total = vertices
        .iter()
        .fold(0_i64, |sum, vertex| sum.saturating_add(vertex.parallelism));
    let finished = Tasks::of(vertices)?.finished;
    let stages = vertices.iter().map(|vertex| {
        let tasks = vertex.tasks.unwrap_or_default();
        JobProgressInfo {
            id: match with_names && !vertex.name.trim().is_empty() {
                true => vertex.name.clone(),
                false => vertex.id.clone(),
            },
            total_tasks: int(vertex.parallelism),
            running_tasks: int(tasks.running),
            failed_tasks: int(tasks.failed),
            succeed_tasks: int(tasks.finished),
        }
    });
    Some(TaskProgressInfo {
        progress: (finished as f64 / total as f64).clamp(0.0, 1.0),
        progress_info: stages.collect(),
    })
}

/// Whether the graph has all its vertices, each with all its tasks.
fn is_complete(detail: &Detail) -> bool {
    let vertices = &detail.vertices;
    detail.pending_operators.unwrap_or(0) == 0
        && vertices.iter().all(has_all_tasks)
        && !vertices.is_empty()
}

/// Whether its parallelism is chosen, and none of its counts is impossible beside it.
fn has_all_tasks(vertex: &Vertex) -> bool {
    let fits = |tasks: Tasks| tasks.total() <= vertex.parallelism;
    (1..=i64::from(i32::MAX)).contains(&vertex.parallelism) && vertex.tasks.is_none_or(fits)
}

/// What a job's slots hold in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slots {
    pub(super) slots: i64,
    memory_bytes: i64,
    cores: f64,
    /// Flink does not say what some slot holds.
    unknown: bool,
}

impl Slots {
    pub(super) fn add(&mut self, slot: &SlotResource) {
        self.slots += 1;
        let memory = [
            slot.task_heap_memory,
            slot.task_off_heap_memory,
            slot.managed_memory,
            slot.network_memory,
        ];
        let known = |size: &Option<i64>| size.filter(|mib| *mib >= 0);
        let mib: Option<i64> = memory
            .iter()
            .map(known)
            .try_fold(0_i64, |sum, mib| sum.checked_add(mib?));
        let bytes = mib.and_then(|mib| self.memory_bytes.checked_add(mib.checked_mul(1 << 20)?));
        let cores = slot.cpu_cores.filter(|cores| *cores >= 0.0);
        let cores = cores.map(|cores| self.cores + cores);
        match (bytes, cores.filter(|cores| *cores <= f64::from(i32::MAX))) {
            (Some(bytes), Some(cores)) => (self.memory_bytes, self.cores) = (bytes, cores),
            _ => self.unknown = true,
        }
    }
}

/// The resource part: a job's slots. `None` if it is not known what they hold. A job that has ended holds nothing.
pub(super) fn resource(jid: &str, state: &str, slots: Option<&Slots>) -> Option<TaskResourceInfo> {
    let none = Slots::default();
    let slots = match is_final(state) {
        true => &none,
        false => slots.filter(|slots| !slots.unknown)?,
    };
    let held = ResourceWithStatus {
        queue_memory: slots.memory_bytes,
        queue_cores: int(slots.cores.ceil() as i64),
        queue_instances: int(slots.slots),
        job_status: state.to_owned(),
        queue: String::new(),
    };
    Some(TaskResourceInfo {
        applications: [(identifier(jid), held)].into(),
    })
}

/// Metrics by name. A value that is not known, and a negative one, is left out: nothing that is counted here is negative.
#[derive(Default)]
pub(super) struct Metrics(BTreeMap<String, MetricValue>);

impl Metrics {
    pub(super) fn long(&mut self, name: &str, value: impl Into<Option<i64>>) {
        if let Some(value) = value.into().filter(|value| *value >= 0) {
            self.0.insert(name.to_owned(), MetricValue::Long(value));
        }
    }

    pub(super) fn double(&mut self, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), MetricValue::Double(value));
        }
    }

    pub(super) fn text(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), MetricValue::String(value));
        }
    }

    /// State, tasks and records, from the job's own response.
    pub(super) fn detail(&mut self, detail: &Detail, job_type: Option<JobType>) {
        self.text("state", Some(detail.state.clone()));
        self.text("jobType", job_type.map(|kind| kind.as_str().to_owned()));
        // Before Flink has built the graph there are none.
        if !detail.vertices.is_empty()
            && let Some(tasks) = Tasks::of(&detail.vertices)
        {
            self.long("tasksTotal", is_complete(detail).then(|| tasks.total()));
            self.long("tasksRunning", tasks.running);
            self.long("tasksFinished", tasks.finished);
            self.long("tasksFailed", tasks.failed);
        }
        let running_since = detail.timestamps.get("RUNNING").copied();
        self.long("runningSince", running_since.filter(|time| *time > 0));
        if let Some(ends) = Ends::of(detail) {
            let sum = |of: &[&Vertex], count: fn(&Vertex) -> Option<i64>| {
                of.iter().try_fold(0_i64, |sum, one| {
                    let count = count(one).filter(|count| *count >= 0)?;
                    sum.checked_add(count)
                })
            };
            self.long(
                "recordsIn",
                sum(&ends.sources, |v| v.metrics.write_records()),
            );
            self.long("bytesIn", sum(&ends.sources, |v| v.metrics.write_bytes()));
            self.long("recordsOut", sum(&ends.sinks, |v| v.metrics.read_records()));
            self.long("bytesOut", sum(&ends.sinks, |v| v.metrics.read_bytes()));
        }
    }

    /// `now`: the server's clock, milliseconds.
    pub(super) fn checkpoints(&mut self, checkpoints: &Checkpoints, now: Option<i64>) {
        if let Some(counts) = checkpoints.counts {
            self.long("checkpointsCompleted", counts.completed);
            self.long("checkpointsFailed", counts.failed);
            self.long("checkpointsInProgress", counts.in_progress);
        }
        let Some(last) = checkpoints.latest.completed else {
            return;
        };
        let age = now
            .zip(last.latest_ack_timestamp)
            .map(|(now, at)| now.saturating_sub(at).max(0));
        self.long("lastCheckpointAgeMs", age);
        self.long("lastCheckpointDurationMs", last.end_to_end_duration);
        self.long("lastCheckpointStateBytes", last.state_size);
        self.long("lastCheckpointSizeBytes", last.checkpointed_size);
    }

    pub(super) fn part(self) -> Option<BTreeMap<String, MetricValue>> {
        (!self.0.is_empty()).then_some(self.0)
    }
}

/// The vertices at both ends of a graph.
pub(super) struct Ends<'d> {
    pub(super) sources: Vec<&'d Vertex>,
    sinks: Vec<&'d Vertex>,
}

impl<'d> Ends<'d> {
    /// `None` if the graph is not known, or if a vertex is a source and a sink: Flink counts neither what a source reads
    /// nor what a sink writes, so its records are counted nowhere.
    fn of(detail: &'d Detail) -> Option<Self> {
        let sources = sources(detail);
        let plan = detail.plan.as_ref()?;
        let read: HashSet<&str> = inputs(plan).collect();
        let mut sinks = detail.vertices.iter();
        let sinks: Vec<&Vertex> = sinks
            .by_ref()
            .filter(|vertex| !read.contains(vertex.id.as_str()))
            .collect();
        let is_source = |sink: &&Vertex| sources.iter().any(|source| source.id == sink.id);
        let known = !sources.is_empty() && !sinks.is_empty() && !sinks.iter().any(is_source);
        known.then_some(Self { sources, sinks })
    }
}

/// The vertices that read from outside; none if the graph is not known.
pub(super) fn sources(detail: &Detail) -> Vec<&Vertex> {
    let nodes = detail.plan.iter().flat_map(|plan| &plan.nodes);
    let roots: HashSet<&str> = nodes
        .filter(|node| node.inputs.is_empty())
        .map(|node| node.id.as_str())
        .collect();
    let vertices = detail.vertices.iter();
    vertices
        .filter(|vertex| roots.contains(vertex.id.as_str()))
        .collect()
}

fn inputs(plan: &Plan) -> impl Iterator<Item = &str> {
    let inputs = plan.nodes.iter().flat_map(|node| &node.inputs);
    inputs.map(|input| input.id.as_str())
}
