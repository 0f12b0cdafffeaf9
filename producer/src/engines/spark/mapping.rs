//! Maps Spark's terms to the parts of a report. Pure: no clock, no network.

use std::collections::BTreeMap;

use schemas::{
    JobProgressInfo, MetricValue, ResourceWithStatus, TaskProgressInfo, TaskResourceInfo,
    TaskStatus,
};

use super::answers::{Batch, Environment, Executor, Job, Stage};
use super::sql::SqlExecutions;
pub(crate) use crate::polling::limits::{identifier, int};

const MIB: i64 = 1 << 20;
/// Maximum number of failed jobs in the metric `failedJobIds`.
const NAMED_JOBS_MAX: usize = 20;

/// The state of an application's attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its UI, or a History Server, shows it as not completed.
    Alive,
    /// Spark says that it has completed.
    Completed,
    /// Spark shows it as not completed beside a newer attempt: it has ended, and Spark does not say how.
    Replaced,
    /// No poll has succeeded for too long. It may have ended, or not.
    Gone,
}

impl State {
    /// Spark's word for it. (Apache Linkis says RUNNING while no job runs, and COMPLETED while one does; here the word means
    /// what it says.)
    fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "RUNNING",
            Self::Completed => "COMPLETED",
            Self::Replaced | Self::Gone => "UNKNOWN",
        }
    }

    /// Whether it has ended, so that it holds no resources.
    pub(crate) fn holds_nothing(self) -> bool {
        matches!(self, Self::Completed | Self::Replaced)
    }
}

/// Counts of jobs, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) jobs: i64,
    jobs_running: i64,
    jobs_succeeded: i64,
    jobs_failed: i64,
    jobs_cancelled: i64,
    total: i64,
    active: i64,
    completed: i64,
    failed: i64,
    skipped: i64,
    killed: i64,
    /// Tasks that need no more work, without negative and duplicate counts.
    done: i64,
    /// All tasks, without negative counts.
    sound_total: i64,
}

impl Totals {
    pub(crate) fn add(&mut self, job: &Job) {
        self.jobs += 1;
        match job.status.as_str() {
            Job::SUCCEEDED => self.jobs_succeeded += 1,
            Job::FAILED if job.cancelled() => self.jobs_cancelled += 1,
            Job::FAILED => self.jobs_failed += 1,
            _ => self.jobs_running += 1,
        }
        let add = |sum: &mut i64, count: i64| *sum = sum.saturating_add(count);
        add(&mut self.total, job.num_tasks);
        add(&mut self.active, job.num_active_tasks);
        add(&mut self.completed, job.num_completed_tasks);
        add(&mut self.failed, job.num_failed_tasks);
        add(&mut self.skipped, job.num_skipped_tasks);
        add(&mut self.killed, job.num_killed_tasks);
        add(&mut self.done, done(job));
        add(&mut self.sound_total, job.num_tasks.max(0));
    }

    /// Whether a job has not ended.
    pub(crate) fn runs(&self) -> bool {
        self.jobs_running > 0
    }

    pub(crate) fn active(&self) -> i64 {
        self.active
    }

    /// 0 to 1, never NaN. Jobs without tasks count as done, as in Spark's own bar; no job at all as nothing done yet.
    fn progress(&self) -> f64 {
        if self.jobs == 0 {
            0.0
        } else if self.sound_total == 0 {
            1.0
        } else {
            (self.done as f64 / self.sound_total as f64).clamp(0.0, 1.0)
        }
    }
}

/// A job's tasks that need no more work: completed, skipped and killed ones. A killed task may be a copy of one that still
/// runs (speculation), so running tasks never count as done; and the killed tasks of a failed or cancelled job are work
/// that was not done.
fn done(job: &Job) -> i64 {
    let count = |n: i64| n.max(0);
    let total = count(job.num_tasks);
    let killed = match job.status.as_str() {
        Job::FAILED => 0,
        _ => count(job.num_killed_tasks),
    };
    count(job.num_completed_tasks)
        .saturating_add(count(job.num_skipped_tasks))
        .saturating_add(killed)
        .min((total - count(job.num_active_tasks)).max(count(job.num_completed_tasks)))
        .min(total)
}

/// The progress part of the jobs of one exec task. `folded`, the jobs that are no longer remembered one by one, comes first
/// in one entry. Counts are passed on as Spark gives them, negative ones too: the router repairs those and says so.
pub(crate) fn progress<'a>(
    jobs: impl Iterator<Item = &'a Job>,
    folded: Option<&Folded>,
    totals: &Totals,
) -> TaskProgressInfo {
    let folded = folded.map(|folded| JobProgressInfo {
        id: format!("{} jobs up to {}", folded.totals.jobs, folded.newest_job_id),
        total_tasks: int(folded.totals.total),
        running_tasks: int(folded.totals.active),
        failed_tasks: int(folded.totals.failed),
        succeed_tasks: int(folded.totals.completed),
    });
    let each = jobs.map(|job| JobProgressInfo {
        id: job.job_id.to_string(),
        total_tasks: int(job.num_tasks),
        running_tasks: int(job.num_active_tasks),
        failed_tasks: int(job.num_failed_tasks),
        succeed_tasks: int(job.num_completed_tasks),
    });
    TaskProgressInfo {
        progress: totals.progress(),
        progress_info: folded.into_iter().chain(each).collect(),
    }
}

/// Jobs that are no longer remembered one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Folded {
    pub(crate) totals: Totals,
    pub(crate) work: Work,
    pub(crate) newest_job_id: i64,
}

/// An exec task's status.
///
/// - While the application lives: `Running`, whatever its jobs say. Between two jobs, and after a
///   failed one, the driver may go on and submit another; and a final status cannot be taken back.
/// - Once Spark says that it has completed: `Failed` if a job failed, whichever it was; else
///   `Unknown` if a job was seen running and Spark does not say how it ended; else `Cancelled` if one
///   was cancelled; else `Succeed`.
/// - Once a newer attempt has taken its place: `Failed` if a job failed, else `Unknown`.
/// - When nothing is heard of it: `Unknown`, which is not final. It may go on somewhere.
pub(crate) fn status(totals: &Totals, state: State) -> TaskStatus {
    match state {
        State::Alive => TaskStatus::Running,
        State::Gone => TaskStatus::Unknown,
        _ if totals.jobs_failed > 0 => TaskStatus::Failed,
        State::Replaced => TaskStatus::Unknown,
        _ if totals.jobs_running > 0 => TaskStatus::Unknown,
        _ if totals.jobs_cancelled > 0 => TaskStatus::Cancelled,
        State::Completed => TaskStatus::Succeed,
    }
}

/// What the application holds: the instances, cores and container memory of its executors, without the driver. In local
/// mode the driver does the work, so its cores and its heap count, with 0 instances. An ended application holds nothing;
/// one that cannot be found, what it held last.
///
/// The memory of a container is heap and overhead (and off-heap and Python memory where set), from
/// the environment's `spark.executor.memory` and the like with Spark's defaults; a standalone
/// cluster gives no overhead. While the environment is not known, it is the executors' storage
/// memory, which is less, but all that they say themselves.
pub(crate) fn resource(
    application_id: &str,
    executors: &[Executor],
    environment: Option<&Environment>,
    state: State,
) -> TaskResourceInfo {
    let queue = environment.and_then(|e| e.get("spark.yarn.queue"));
    let mut held = ResourceWithStatus {
        queue_memory: 0,
        queue_cores: 0,
        queue_instances: 0,
        job_status: state.as_str().to_owned(),
        queue: queue.unwrap_or_default().to_owned(),
    };
    if !state.holds_nothing() {
        let local = is_local(application_id, environment);
        let holders: Vec<&Executor> = executors
            .iter()
            .filter(|e| e.is_active && (local || !e.is_driver()))
            .collect();
        let sum = |of: fn(&Executor) -> i64| {
            holders
                .iter()
                .fold(0_i64, |sum, executor| sum.saturating_add(of(executor)))
        };
        let instances = if local { 0 } else { holders.len() as i64 };
        held.queue_instances = int(instances);
        held.queue_cores = int(sum(|e| e.total_cores));
        held.queue_memory = match environment {
            Some(environment) if local => driver_memory(environment),
            Some(environment) => container_memory(environment).saturating_mul(instances),
            None => sum(|e| e.max_memory),
        };
    }
    TaskResourceInfo {
        applications: [(application_id.to_owned(), held)].into(),
    }
}

fn master(environment: &Environment) -> &str {
    environment.get("spark.master").unwrap_or_default()
}

/// Without a master, or where it is redacted, the id tells: only local mode makes ids that begin so.
fn is_local(application_id: &str, environment: Option<&Environment>) -> bool {
    match environment.map(master) {
        None | Some("" | "*********(redacted)") => application_id.starts_with("local-"),
        Some(master) => master == "local" || master.starts_with("local["),
    }
}

fn driver_memory(environment: &Environment) -> i64 {
    size(environment, "spark.driver.memory", MIB).unwrap_or(1024 * MIB)
}

fn container_memory(environment: &Environment) -> i64 {
    let size = |name, unit| size(environment, name, unit);
    let heap = size("spark.executor.memory", MIB).unwrap_or(1024 * MIB);
    let off_heap = match environment.get("spark.memory.offHeap.enabled") {
        Some("true") => size("spark.memory.offHeap.size", 1).unwrap_or(0),
        _ => 0,
    };
    let python = size("spark.executor.pyspark.memory", MIB).unwrap_or(0);
    let master = master(environment);
    let overhead = if master.starts_with("spark:") || master.starts_with("local-cluster") {
        0
    } else {
        size("spark.executor.memoryOverhead", MIB)
            .or_else(|| size("spark.yarn.executor.memoryOverhead", MIB))
            .unwrap_or_else(|| {
                let factor = environment.get("spark.executor.memoryOverheadFactor");
                let factor = factor.and_then(|f| f.parse().ok()).unwrap_or(0.1);
                // Whole MiB, as Spark asks for them.
                let share = (heap / MIB) as f64 * factor;
                (share as i64).max(384).saturating_mul(MIB)
            })
    };
    [heap, off_heap, python, overhead]
        .into_iter()
        .fold(0, i64::saturating_add)
}

/// A size as Spark's settings have them: `4g`, `512m`, `1024` (in `unit` bytes).
fn size(environment: &Environment, name: &str, unit: i64) -> Option<i64> {
    let text = environment.get(name)?.trim().to_ascii_lowercase();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let unit = match suffix.trim() {
        "" => unit,
        "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => MIB,
        "g" | "gb" => 1 << 30,
        "t" | "tb" => 1 << 40,
        "p" | "pb" => 1 << 50,
        _ => return None,
    };
    Some(number.parse::<i64>().ok()?.saturating_mul(unit))
}

/// The sum of two amounts. A negative one, which Spark writes for what it does not know, makes the sum negative for good:
/// it is not known either.
pub(crate) fn sum(total: i64, more: i64) -> i64 {
    match total < 0 || more < 0 {
        true => -1,
        false => total.saturating_add(more),
    }
}

/// The work of stages, summed over their attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    input_bytes: i64,
    output_bytes: i64,
    shuffle_read_bytes: i64,
    shuffle_write_bytes: i64,
    memory_spilled_bytes: i64,
    disk_spilled_bytes: i64,
    run_time_ms: i64,
    gc_time_ms: i64,
}

impl Work {
    pub(crate) fn add_stage(&mut self, stage: &Stage) {
        self.add(&Self {
            input_bytes: stage.input_bytes,
            output_bytes: stage.output_bytes,
            shuffle_read_bytes: stage.shuffle_read_bytes,
            shuffle_write_bytes: stage.shuffle_write_bytes,
            memory_spilled_bytes: stage.memory_bytes_spilled,
            disk_spilled_bytes: stage.disk_bytes_spilled,
            run_time_ms: stage.executor_run_time,
            gc_time_ms: stage.jvm_gc_time,
        });
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let add = |total: &mut i64, more: i64| *total = sum(*total, more);
        add(&mut self.input_bytes, other.input_bytes);
        add(&mut self.output_bytes, other.output_bytes);
        add(&mut self.shuffle_read_bytes, other.shuffle_read_bytes);
        add(&mut self.shuffle_write_bytes, other.shuffle_write_bytes);
        add(&mut self.memory_spilled_bytes, other.memory_spilled_bytes);
        add(&mut self.disk_spilled_bytes, other.disk_spilled_bytes);
        add(&mut self.run_time_ms, other.run_time_ms);
        add(&mut self.gc_time_ms, other.gc_time_ms);
    }
}

/// Metrics. Each group is present only if its part of the poll succeeded.
#[derive(Default)]
pub(crate) struct Metrics(BTreeMap<String, MetricValue>);

impl Metrics {
    fn long(&mut self, name: &str, value: i64) {
        self.0.insert(name.to_owned(), MetricValue::Long(value));
    }

    /// An amount of bytes, time or tasks; left out where it is not known.
    fn amount(&mut self, name: &str, value: i64) {
        if value >= 0 {
            self.long(name, value);
        }
    }

    fn text(&mut self, name: &str, value: String) {
        self.0.insert(name.to_owned(), MetricValue::String(value));
    }

    /// Of the exec task's jobs. Killed and skipped tasks are neither failed nor completed.
    pub(crate) fn jobs<'a>(
        &mut self,
        jobs: impl Iterator<Item = &'a Job>,
        folded: Option<&Folded>,
        totals: &Totals,
    ) {
        self.long("jobsRunning", totals.jobs_running);
        self.long("jobsSucceeded", totals.jobs_succeeded);
        self.long("jobsFailed", totals.jobs_failed);
        self.long("jobsCancelled", totals.jobs_cancelled);
        self.long("failedTasks", totals.failed);
        self.long("killedTasks", totals.killed);
        self.long("skippedTasks", totals.skipped);
        if let Some(folded) = folded {
            self.long("foldedJobs", folded.totals.jobs);
        }
        let failed: Vec<String> = jobs
            .filter(|job| job.status == Job::FAILED && !job.cancelled())
            .map(|job| job.job_id.to_string())
            .take(NAMED_JOBS_MAX)
            .collect();
        if !failed.is_empty() {
            self.text("failedJobIds", failed.join(","));
        }
    }

    /// Of the stages of the exec task's jobs.
    pub(crate) fn work(&mut self, work: &Work) {
        self.amount("inputBytes", work.input_bytes);
        self.amount("outputBytes", work.output_bytes);
        self.amount("shuffleReadBytes", work.shuffle_read_bytes);
        self.amount("shuffleWriteBytes", work.shuffle_write_bytes);
        self.amount("memorySpilledBytes", work.memory_spilled_bytes);
        self.amount("diskSpilledBytes", work.disk_spilled_bytes);
        self.amount("runTimeMs", work.run_time_ms);
        self.amount("gcTimeMs", work.gc_time_ms);
    }

    /// Of the application's executors, those that are no more and the driver too.
    /// (Once an application has ended, a History Server goes on showing its last executors as active.)
    pub(crate) fn executors(&mut self, executors: &[Executor], state: State) {
        let total = |of: fn(&Executor) -> i64| {
            executors
                .iter()
                .fold(0, |total, executor| sum(total, of(executor)))
        };
        let active = |e: &Executor| i64::from(e.is_active && !e.is_driver());
        let active = if state.holds_nothing() {
            0
        } else {
            total(active)
        };
        self.amount("application.executors", active);
        self.amount("application.completedTasks", total(|e| e.completed_tasks));
        self.amount("application.failedTasks", total(|e| e.failed_tasks));
        self.amount("application.gcTimeMs", total(|e| e.total_gc_time));
        self.amount("application.inputBytes", total(|e| e.total_input_bytes));
        self.amount(
            "application.shuffleReadBytes",
            total(|e| e.total_shuffle_read),
        );
        self.amount(
            "application.shuffleWriteBytes",
            total(|e| e.total_shuffle_write),
        );
        self.amount(
            "application.storageMemoryUsedBytes",
            total(|e| e.memory_used),
        );
    }

    /// Of the application.
    pub(crate) fn sql(&mut self, executions: &SqlExecutions) {
        let Some(counts) = executions.counts() else {
            return;
        };
        for (name, count) in ["Running", "Succeeded", "Failed"].into_iter().zip(counts) {
            self.long(&format!("application.sqlExecutions{name}"), count);
        }
    }

    /// Of the streaming query whose run the exec task is.
    pub(crate) fn batch(&mut self, batch: &Batch) {
        self.text("stream.id", batch.query_id.clone());
        if let Some(name) = &batch.name {
            self.text("stream.name", name.clone());
        }
        if let Some(number) = batch.number {
            self.long("stream.batchId", number);
        }
    }

    /// The part; null when nothing was answered.
    pub(crate) fn part(self) -> Option<BTreeMap<String, MetricValue>> {
        (!self.0.is_empty()).then_some(self.0)
    }
}

/// An exec task's id: the application's, its attempt's where it has attempts, and the job group's.
pub(crate) fn exec_id(ticket_id: &str, group: Option<&str>) -> String {
    match group {
        Some(group) => identifier(&format!("{ticket_id}/{group}")),
        None => identifier(ticket_id),
    }
}
