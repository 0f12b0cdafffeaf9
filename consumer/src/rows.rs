//! One event in, its rows out: pure, and total on any bytes.

use schemas::{Adjustment, Decoder, JobProgressInfo, Reject, TaskRunningInfoEvent, TaskStatus};

/// A part of an event, stored in a table of its own and with offsets of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// `task_progress`.
    Progress,
    /// `task_resource`.
    Resource,
    /// `task_metrics`.
    Metrics,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Progress, Self::Resource, Self::Metrics];

    /// The part's name in `consumed_offset.part`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Resource => "resource",
            Self::Metrics => "metrics",
        }
    }

    /// The part's table.
    pub fn table(self) -> &'static str {
        match self {
            Self::Progress => "task_progress",
            Self::Resource => "task_resource",
            Self::Metrics => "task_metrics",
        }
    }
}

/// The rows of one event. Times are microseconds since 1970.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rows {
    /// The event's partition.
    pub(crate) partition: i32,
    /// The event's offset.
    pub(crate) offset: i64,
    /// When the engine said it.
    pub(crate) reported_at: i64,
    /// The candidate for the task's row in `task`.
    pub(crate) task: TaskRow,
    /// The row of `task_progress`: every event has one.
    pub(crate) progress: ProgressRow,
    /// The rows of `task_resource`: one per application.
    pub(crate) resource: Vec<ResourceRow>,
    /// The row of `task_metrics`: every event has one.
    pub(crate) metrics: MetricsRow,
}

/// Identity and state of a task, as one event has them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TaskRow {
    pub(crate) exec_id: String,
    pub(crate) job_id: String,
    pub(crate) engine_instance: String,
    pub(crate) engine_type: String,
    pub(crate) engine_user: String,
    pub(crate) ticket_id: String,
    pub(crate) status: TaskStatus,
    pub(crate) progress: Option<f64>,
    pub(crate) sequence: i64,
}

/// `task_progress` beside what all three tables carry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProgressRow {
    /// `None` when the engine could not tell its progress: the row then holds the status only.
    pub(crate) jobs: Option<Vec<JobProgressInfo>>,
    pub(crate) adjustments: Vec<Adjustment>,
}

/// `task_resource` beside what all three tables carry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ResourceRow {
    pub(crate) application_id: String,
    pub(crate) memory_bytes: i64,
    pub(crate) cores: i32,
    pub(crate) instances: i32,
    pub(crate) queue: String,
    pub(crate) status: String,
}

/// `task_metrics` beside what all three tables carry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MetricsRow {
    pub(crate) engine_running_tasks: i32,
    /// A JSON object with its names sorted; `None` when the engine could not tell its metrics.
    pub(crate) metrics: Option<String>,
}

impl Rows {
    /// What decides which event tells a task's newest state: the greatest of these. The last two
    /// only tell apart reports that are equal in the first three.
    pub(crate) fn rank(&self) -> (bool, i64, i64, i32, i64) {
        (
            self.task.status.is_final(),
            self.reported_at,
            self.task.sequence,
            self.partition,
            self.offset,
        )
    }
}

/// The rows of the event whose bytes these are, of any version that `decoder` knows.
///
/// # Errors
/// If the bytes are no event, or one that the router would not have written.
pub(crate) fn rows(
    decoder: &Decoder,
    value: Option<&[u8]>,
    partition: i32,
    offset: i64,
) -> Result<Rows, Reject> {
    let TaskRunningInfoEvent {
        adjustments, info, ..
    } = decoder.event(value)?;
    let problems = info.problems();
    if let Some(reject) = Reject::of_problems(&problems) {
        return Err(reject);
    }
    // The two databases would hold what the router repairs in unlike ways, so none of it is let in.
    if let Some(problem) = problems.first() {
        return Err(Reject {
            stage: "TRANSFORMATION",
            refused_by: "consumer::rows",
            kind: "NotRouted",
            message: format!(
                "the router would have repaired this: {problem}; write to its source topic instead"
            ),
        });
    }
    let (progress, jobs) = info
        .progress
        .map(|part| (part.progress, part.progress_info))
        .unzip();
    let metrics = info
        .metrics
        .as_ref()
        .map(serde_json::to_string)
        .transpose()
        .map_err(|error| Reject {
            stage: "TRANSFORMATION",
            refused_by: "consumer::rows",
            kind: "EncodeError",
            message: format!("metrics cannot be written as JSON: {error}"),
        })?;
    let applications = info
        .resource
        .map(|part| part.applications)
        .unwrap_or_default();
    Ok(Rows {
        partition,
        offset,
        reported_at: info.reported_at,
        task: TaskRow {
            exec_id: info.exec_id,
            job_id: info.job_id,
            engine_instance: info.engine.instance,
            engine_type: info.engine.engine_type,
            engine_user: info.engine.user,
            ticket_id: info.engine.ticket_id,
            status: info.status,
            progress,
            sequence: info.sequence,
        },
        progress: ProgressRow { jobs, adjustments },
        resource: applications
            .into_iter()
            .map(|(application_id, held)| ResourceRow {
                application_id,
                memory_bytes: held.queue_memory,
                cores: held.queue_cores,
                instances: held.queue_instances,
                queue: held.queue,
                status: held.job_status,
            })
            .collect(),
        metrics: MetricsRow {
            engine_running_tasks: info.engine.running_tasks,
            metrics,
        },
    })
}
