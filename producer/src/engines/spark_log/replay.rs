//! One log's events → what a live UI would have answered at the time → the reports of the live adapter. Pure, and the
//! same for the same events: that is what a report's sequence rests on.
//!
//! Long because one state machine: each event changes what the reports are made of.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::{MetricValue, TaskRunningInfo, TaskStatus};

use super::events::{Event, JobEnd, JobStart, StageInfo, TaskEnd, TaskMetrics, TaskStart};
use super::streams::{self, Stream};
use crate::engines::spark::answers::{Attempt, Environment, Executor, Job, Stage};
use crate::engines::spark::application::{Application, Key, Poll};
use crate::engines::spark::mapping::{self, State};

/// Ended jobs that wait for the ends of their tasks: the tasks of a cancelled job end after it.
const ENDED_JOBS_MAX: usize = 10_000;
/// As the live adapter: stages whose totals are remembered.
const STAGES_MAX: usize = 100_000;
/// SQL executions and streaming queries that are remembered at a time.
const SQL_EXECUTIONS_MAX: usize = 100_000;
const STREAMS_MAX: usize = 10_000;
/// What a report costs, in bytes of the log that go by before the next: the work stays linear in the log's length, and
/// most of the time is spent on reading. A job that a report lists takes a microsecond; the first few are free.
const BYTES_PER_REPORT: u64 = 2_048;
const BYTES_PER_JOB: u64 = 512;
const FREE_JOBS: u64 = 10;
/// What is looked at for a report, and not listed.
const BYTES_PER_STEP: u64 = 32;
/// Jobs that a report lists at most, as in the live adapter.
const JOBS_LISTED_MAX: u64 = 10_000;
/// Estimates of the memory of an application, and of a job, stage or executor that is remembered.
const MEMORY_BYTES: usize = 8 << 10;
const ENTRY_BYTES: usize = 320;
/// Times in a log are between 1970 and 9999, in milliseconds.
const TIME_MAX_MS: i64 = 253_402_300_799_999;

/// How often a log's application is reported.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// At the start and the end of a job and of a stream's batch, and after this many milliseconds of the log's time.
    Every(i64),
    /// Only at the log's end.
    AtEnd,
}

/// What a log holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) events: u64,
    pub(super) jobs_started: u64,
    pub(super) jobs_succeeded: u64,
    pub(super) jobs_failed: u64,
    pub(super) stages_completed: u64,
    /// By reason. Spark has fewer than ten.
    pub(super) task_ends: BTreeMap<String, i64>,
}

/// How a log ends.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Ending {
    /// A newer attempt of the application has a log too.
    pub(super) replaced: bool,
    /// The log, or a part of it, ends in the middle, or parts are missing.
    pub(super) cut: bool,
    /// Old events were compacted away by a History Server: counts are lower bounds.
    pub(super) compacted: bool,
}

/// One log's application.
pub(super) struct Replay {
    pace: Pace,
    /// The id of an application whose log does not say it.
    name: String,
    application: Option<Application>,
    key: Option<Key>,
    user: String,
    pub(super) version: Option<String>,
    pub(super) counts: Counts,
    pub(super) ended: bool,
    exit_code: Option<i64>,
    /// The latest time of any event, in milliseconds.
    clock_ms: i64,
    environment: Option<Environment>,
    new_environment: bool,
    driver_address: Option<String>,
    executors: BTreeMap<String, Executor>,
    /// What those that are no more have done.
    removed_executors: Executor,
    jobs: BTreeMap<i64, LiveJob>,
    changed_jobs: BTreeSet<i64>,
    ended_jobs: BTreeSet<i64>,
    live_stages: BTreeMap<(i64, i64), LiveStage>,
    stages: BTreeMap<i64, Stage>,
    changed_stages: BTreeSet<i64>,
    /// SQL executions that have not ended: whether a job of theirs has failed.
    sql_executions: HashMap<i64, bool>,
    sql_seen: bool,
    sql_succeeded: i64,
    sql_failed: i64,
    /// By the exec task of their jobs.
    streams: BTreeMap<String, (String, Stream)>,
    new_streams: Vec<String>,
    ended_streams: Vec<String>,
    /// A job failed whose exec task is not known.
    stray_failures: u64,
    /// Lines that cannot be read, and those among them that a job's outcome may depend on.
    pub(super) broken_lines: u64,
    /// Those before the first event, which are named once there is one.
    pub(super) unnamed: Vec<String>,
    outcomes_lost: bool,
    /// Something happened that is to be reported.
    milestone: bool,
    reported_at_ms: i64,
    bytes: u64,
    /// Length of the log, in bytes, at which the next report is due.
    due_bytes: u64,
}

struct LiveJob {
    job: Job,
    sql_execution: Option<i64>,
}

struct LiveStage {
    /// Submitted, and so no longer to be skipped.
    submitted: bool,
    completed: bool,
    tasks: i64,
    active_tasks: i64,
    jobs: Vec<i64>,
}

impl Replay {
    /// `name` is used for the application's id if the log does not have it.
    pub(super) fn new(name: &str, pace: Pace) -> Self {
        Self {
            pace,
            name: name.to_owned(),
            application: None,
            key: None,
            user: String::new(),
            version: None,
            counts: Counts::default(),
            ended: false,
            exit_code: None,
            clock_ms: 0,
            environment: None,
            new_environment: false,
            driver_address: None,
            executors: BTreeMap::new(),
            removed_executors: Executor {
                id: "removed".to_owned(),
                ..Executor::default()
            },
            jobs: BTreeMap::new(),
            changed_jobs: BTreeSet::new(),
            ended_jobs: BTreeSet::new(),
            live_stages: BTreeMap::new(),
            stages: BTreeMap::new(),
            changed_stages: BTreeSet::new(),
            sql_executions: HashMap::new(),
            sql_seen: false,
            sql_succeeded: 0,
            sql_failed: 0,
            streams: BTreeMap::new(),
            new_streams: Vec::new(),
            ended_streams: Vec::new(),
            stray_failures: 0,
            broken_lines: 0,
            unnamed: Vec::new(),
            outcomes_lost: false,
            milestone: false,
            reported_at_ms: 0,
            bytes: 0,
            due_bytes: 0,
        }
    }

    /// Takes in an event, whose line has `bytes`. Returns the reports that are due then.
    pub(super) fn take(&mut self, event: Event<'_>, bytes: usize) -> Vec<TaskRunningInfo> {
        self.bytes += bytes as u64;
        self.counts.events += 1;
        self.apply(event);
        // What a log says after the application's end is in the last report; what it says before its start, such as
        // the driver's address, is in the first.
        let begun = self.key.is_some() || self.milestone;
        if self.bytes < self.due_bytes || self.clock_ms == 0 || self.ended || !begun {
            return Vec::new();
        }
        match self.pace {
            Pace::Every(interval_ms) => {
                let since_ms = self.clock_ms.saturating_sub(self.reported_at_ms);
                match self.milestone || since_ms >= interval_ms {
                    true => self.report(State::Alive),
                    false => Vec::new(),
                }
            }
            Pace::AtEnd => {
                if self.milestone {
                    self.hand_over(|application, poll| application.remember(poll));
                    self.paid(0);
                }
                Vec::new()
            }
        }
    }

    /// The id of the application that an event begins, if it is another one than that of the events before.
    pub(super) fn another(&self, event: &Event<'_>) -> Option<String> {
        let (Event::ApplicationStart(start), Some(key)) = (event, &self.key) else {
            return None;
        };
        let id = start.id.as_deref().unwrap_or(&self.name);
        let is_same = id == key.id && start.attempt == key.attempt;
        (!is_same).then(|| match &start.attempt {
            Some(attempt) => format!("{id}/{attempt}"),
            None => id.to_owned(),
        })
    }

    /// The application and its attempt, as in a ticket's id; `None` before the application's start.
    pub(super) fn key(&self) -> Option<String> {
        self.key.as_ref().map(ToString::to_string)
    }

    /// What is remembered, in bytes: an estimate.
    pub(super) fn memory_bytes(&self) -> usize {
        let own = self.jobs.len()
            + self.live_stages.len()
            + self.stages.len()
            + self.executors.len()
            + self.sql_executions.len()
            + self.streams.len();
        let remembered = self.application.as_ref().map_or(0, Application::remembered);
        MEMORY_BYTES + ENTRY_BYTES * (own + remembered)
    }

    /// Notes a line that cannot be read; `decides_jobs` if a job's outcome may depend on it.
    pub(super) fn lose_line(&mut self, decides_jobs: bool) {
        self.broken_lines += 1;
        self.outcomes_lost |= decides_jobs;
    }

    /// No event so far has a time: there is nothing to report.
    pub(super) fn has_no_time(&self) -> bool {
        self.clock_ms == 0
    }

    /// The last reports of a log that is not read any further. None if [`Replay::has_no_time`].
    pub(super) fn end(&mut self, ending: Ending) -> Vec<TaskRunningInfo> {
        if self.has_no_time() {
            return Vec::new();
        }
        self.outcomes_lost |= ending.cut;
        let state = match (self.ended, ending.replaced) {
            (true, _) => State::Completed,
            (false, true) => State::Replaced,
            (false, false) => State::Gone,
        };
        let mut reports = self.report(state);
        for report in &mut reports {
            self.end_report(report, ending);
        }
        reports
    }

    fn apply(&mut self, event: Event<'_>) {
        match event {
            Event::LogStart(start) => self.version = start.version,
            Event::ApplicationStart(start) => {
                self.at(start.time);
                self.user = start.user.unwrap_or_default();
                let attempt = Attempt {
                    attempt_id: start.attempt,
                    ..Attempt::default()
                };
                let id = start.id.unwrap_or_else(|| self.name.clone());
                self.key.get_or_insert_with(|| Key::new(&id, &attempt));
            }
            Event::ApplicationEnd(end) => {
                self.at(end.time);
                self.ended = true;
                self.exit_code = end.exit_code;
            }
            Event::Environment(update) => {
                self.environment = Some(update.properties);
                self.new_environment = true;
            }
            Event::ExecutorAdded(added) => {
                self.at(added.time);
                self.executor(added.id).total_cores = added.info.cores;
            }
            Event::ExecutorRemoved(removed) => {
                self.at(removed.time);
                if let Some(executor) = self.executors.remove(&removed.id) {
                    let all = &mut self.removed_executors;
                    let add = |sum: &mut i64, more: i64| *sum = mapping::sum(*sum, more);
                    add(&mut all.completed_tasks, executor.completed_tasks);
                    add(&mut all.failed_tasks, executor.failed_tasks);
                    add(&mut all.total_gc_time, executor.total_gc_time);
                    add(&mut all.total_input_bytes, executor.total_input_bytes);
                    add(&mut all.total_shuffle_read, executor.total_shuffle_read);
                    add(&mut all.total_shuffle_write, executor.total_shuffle_write);
                }
            }
            Event::BlockManagerAdded(added) => {
                self.at(added.time);
                let (host, port) = (added.id.host, added.id.port);
                let executor = self.executor(added.id.executor);
                executor.max_memory = added.max_memory;
                if executor.is_driver() && !host.is_empty() {
                    self.driver_address = Some(format!("{host}:{port}"));
                }
            }
            Event::JobStart(start) => self.start_job(start),
            Event::JobEnd(end) => self.end_job(&end),
            Event::StageSubmitted(event) => {
                self.at(event.info.submitted.unwrap_or(0));
                self.submit_stage(&event.info);
            }
            Event::StageCompleted(event) => {
                self.at(event.info.completed.unwrap_or(0));
                self.counts.stages_completed += 1;
                self.complete_stage(&event.info);
            }
            Event::TaskStart(start) => self.start_task(&start),
            Event::TaskEnd(end) => self.end_task(*end),
            Event::SqlStart(start) => {
                self.at(start.time);
                self.sql_seen = true;
                if self.sql_executions.len() < SQL_EXECUTIONS_MAX {
                    self.sql_executions.insert(start.id, false);
                }
            }
            Event::SqlEnd(end) => {
                self.at(end.time);
                self.sql_seen = true;
                let job_failed = self.sql_executions.remove(&end.id).unwrap_or(false);
                match end.error_message.unwrap_or(job_failed) {
                    true => self.sql_failed += 1,
                    false => self.sql_succeeded += 1,
                }
            }
            Event::StreamStarted(started) => {
                if let Some(stream) = self.stream(&started.run_id.clone()) {
                    stream.start(started);
                }
            }
            Event::StreamProgress(progress) => {
                self.at(streams::time_ms(&progress).unwrap_or(0));
                if let Some(stream) = self.stream(&progress.run_id.clone()) {
                    stream.progress(*progress);
                    self.milestone = true;
                }
            }
            Event::StreamTerminated(terminated) => {
                if let Some(stream) = self.stream(&terminated.run_id) {
                    stream.terminated = Some(terminated.exception);
                    self.ended_streams.push(terminated.run_id);
                    self.milestone = true;
                }
            }
            Event::Other => {}
        }
    }

    /// Advances the log's clock to this time, in milliseconds.
    fn at(&mut self, time_ms: i64) {
        if time_ms <= TIME_MAX_MS {
            self.clock_ms = self.clock_ms.max(time_ms);
        }
    }

    fn executor(&mut self, id: String) -> &mut Executor {
        self.executors.entry(id).or_insert_with_key(|id| Executor {
            id: id.clone(),
            is_active: true,
            ..Executor::default()
        })
    }

    fn start_job(&mut self, start: JobStart) {
        self.at(start.time);
        self.counts.jobs_started += 1;
        self.milestone = true;
        let properties = start.properties.unwrap_or_default();
        let sql_execution = properties.sql_execution.and_then(|id| id.parse().ok());
        let missing = start
            .stages
            .iter()
            .filter(|stage| stage.completed.is_none());
        let job = Job {
            job_id: start.id,
            status: "RUNNING".to_owned(),
            job_group: properties.group,
            stage_ids: start.stage_ids,
            num_tasks: missing.fold(0_i64, |sum, stage| sum.saturating_add(stage.tasks)),
            ..Job::default()
        };
        self.jobs.insert(start.id, LiveJob { job, sql_execution });
        self.changed_jobs.insert(start.id);
        for stage in &start.stages {
            let live = self.live_stage(stage);
            if !live.jobs.contains(&start.id) {
                live.jobs.push(start.id);
            }
        }
    }

    fn live_stage(&mut self, info: &StageInfo) -> &mut LiveStage {
        let entry = self.live_stages.entry((info.id, info.attempt));
        let stage = entry.or_insert_with(|| LiveStage {
            submitted: false,
            completed: false,
            tasks: 0,
            active_tasks: 0,
            jobs: Vec::new(),
        });
        stage.tasks = info.tasks;
        stage
    }

    fn end_job(&mut self, end: &JobEnd<'_>) {
        self.at(end.time);
        self.milestone = true;
        let succeeded = end.result.result == "JobSucceeded";
        match succeeded {
            true => self.counts.jobs_succeeded += 1,
            false => self.counts.jobs_failed += 1,
        }
        let Some(live) = self.jobs.get_mut(&end.id).filter(|live| !live.job.ended()) else {
            self.stray_failures += u64::from(!succeeded);
            return;
        };
        let mut skipped = Vec::new();
        for id in &live.job.stage_ids {
            for (key, stage) in self.live_stages.range((*id, 0)..=(*id, i64::MAX)) {
                if !stage.submitted && !stage.completed {
                    live.job.num_skipped_tasks =
                        live.job.num_skipped_tasks.saturating_add(stage.tasks);
                    skipped.push(*key);
                }
            }
        }
        for key in skipped {
            self.live_stages.remove(&key);
        }
        live.job.status = match succeeded {
            true => Job::SUCCEEDED.to_owned(),
            false => Job::FAILED.to_owned(),
        };
        if !succeeded
            && let Some(id) = live.sql_execution
            && let Some(failed) = self.sql_executions.get_mut(&id)
        {
            *failed = true;
        }
        self.changed_jobs.insert(end.id);
        self.ended_jobs.insert(end.id);
    }

    fn submit_stage(&mut self, info: &StageInfo) {
        let running = self.jobs.iter().filter(|(_, live)| !live.job.ended());
        let with_it = running.filter(|(_, live)| live.job.stage_ids.contains(&info.id));
        let jobs = with_it.map(|(id, _)| *id).collect();
        let stage = self.live_stage(info);
        stage.submitted = true;
        stage.jobs = jobs;
    }

    fn complete_stage(&mut self, info: &StageInfo) {
        let key = (info.id, info.attempt);
        let Some(stage) = self.live_stages.get_mut(&key) else {
            return;
        };
        stage.completed = true;
        // SPARK-20205: such a stage was skipped.
        let skipped = !info.failed && info.submitted.is_none();
        if skipped {
            for id in &stage.jobs {
                if let Some(live) = self.jobs.get_mut(id) {
                    live.job.num_skipped_tasks =
                        live.job.num_skipped_tasks.saturating_add(info.tasks);
                    self.changed_jobs.insert(*id);
                }
            }
        }
        if stage.active_tasks == 0 {
            self.live_stages.remove(&key);
        }
    }

    fn start_task(&mut self, start: &TaskStart<'_>) {
        self.at(start.info.launched);
        if let Some(stage) = self.live_stages.get_mut(&(start.stage, start.attempt)) {
            stage.active_tasks += 1;
            for id in &stage.jobs {
                if let Some(live) = self.jobs.get_mut(id) {
                    live.job.num_active_tasks += 1;
                    self.changed_jobs.insert(*id);
                }
            }
        }
        if let Some(executor) = self.executors.get_mut(&*start.info.executor) {
            executor.active_tasks += 1;
        }
    }

    fn end_task(&mut self, end: TaskEnd<'_>) {
        let reason = &*end.reason.reason;
        count(&mut self.counts.task_ends, reason);
        // As Spark: an end without its task is not counted.
        let Some(info) = end.info else {
            return;
        };
        self.at(info.finished);
        let (completed, failed, killed) = match reason {
            "Success" => (1, 0, 0),
            "TaskKilled" | "TaskCommitDenied" => (0, 0, 1),
            _ => (0, 1, 0),
        };
        let metrics = end.metrics.unwrap_or_default();
        let key = (end.stage, end.attempt);
        // Never below 0: the line of the task's start may have been lost.
        if let Some(stage) = self.live_stages.get_mut(&key) {
            stage.active_tasks = (stage.active_tasks - 1).max(0);
            for id in &stage.jobs {
                let Some(live) = self.jobs.get_mut(id) else {
                    continue;
                };
                let job = &mut live.job;
                job.num_active_tasks = (job.num_active_tasks - 1).max(0);
                job.num_completed_tasks += completed;
                job.num_failed_tasks += failed;
                job.num_killed_tasks += killed;
                if killed > 0 {
                    let why = end.reason.kill_reason.as_deref().unwrap_or(reason);
                    count(&mut job.killed_tasks_summary, why);
                }
                self.changed_jobs.insert(*id);
            }
            if stage.completed && stage.active_tasks == 0 {
                self.live_stages.remove(&key);
            }
            let stage = self.stages.entry(end.stage).or_insert_with(|| Stage {
                stage_id: end.stage,
                ..Stage::default()
            });
            add_work(stage, &metrics);
            self.changed_stages.insert(end.stage);
            if self.stages.len() > STAGES_MAX {
                self.stages.pop_first();
            }
        }
        let executor = match self.executors.get_mut(&*info.executor) {
            Some(executor) => {
                executor.active_tasks = (executor.active_tasks - 1).max(0);
                executor
            }
            None => &mut self.removed_executors,
        };
        executor.completed_tasks += completed;
        executor.failed_tasks += failed;
        if reason != "Resubmitted" {
            let add = |sum: &mut i64, more: i64| *sum = mapping::sum(*sum, more);
            add(&mut executor.total_gc_time, metrics.gc_time);
            add(&mut executor.total_input_bytes, metrics.input());
            add(&mut executor.total_shuffle_read, metrics.shuffle_read());
            add(&mut executor.total_shuffle_write, metrics.shuffle_written());
        }
    }

    fn stream(&mut self, run_id: &str) -> Option<&mut Stream> {
        let exec_id = mapping::exec_id(&self.ticket_id(), Some(run_id));
        if !self.streams.contains_key(&exec_id) {
            if self.streams.len() >= STREAMS_MAX {
                return None;
            }
            self.new_streams.push(run_id.to_owned());
            let stream = (run_id.to_owned(), Stream::default());
            self.streams.insert(exec_id.clone(), stream);
        }
        self.streams.get_mut(&exec_id).map(|(_, stream)| stream)
    }

    fn ticket_id(&self) -> String {
        let key = self.key.as_ref();
        let ticket_id = key.map_or_else(|| self.name.clone(), ToString::to_string);
        mapping::identifier(&ticket_id)
    }

    /// What is known now, as a poll of a UI would have had it.
    fn report(&mut self, state: State) -> Vec<TaskRunningInfo> {
        let reported_at = self.clock_ms.saturating_mul(1_000);
        let mut reports =
            self.hand_over(|application, poll| application.reports(poll, state, reported_at));
        for report in &mut reports {
            self.complete(report, state);
        }
        self.reported_at_ms = self.clock_ms;
        self.paid(reports.len() as u64);
        reports
    }

    /// Gives the application what has changed, and forgets what will not change any more.
    fn hand_over<T>(&mut self, give: impl FnOnce(&mut Application, Poll) -> T) -> T {
        let jobs = std::mem::take(&mut self.changed_jobs);
        let jobs = jobs.iter().filter_map(|id| self.jobs.get(id));
        let jobs: Vec<Job> = jobs.map(|live| live.job.clone()).collect();
        let stages = std::mem::take(&mut self.changed_stages);
        let stages = stages.iter().filter_map(|id| self.stages.get(id));
        let stages: Vec<Stage> = stages.cloned().collect();
        let executors = (!self.executors.is_empty()).then(|| {
            let all = self.executors.values().cloned();
            all.chain([self.removed_executors.clone()]).collect()
        });
        let is_new = std::mem::take(&mut self.new_environment);
        let poll = Poll {
            jobs: Some(jobs),
            stages: Some(stages),
            executors,
            environment: self.environment.clone().filter(|_| is_new),
            sql: None,
        };
        let mut application = match self.application.take() {
            Some(application) => application,
            None => Application::new(self.own_key(), &self.user, &self.instance()),
        };
        for run_id in self.new_streams.drain(..) {
            application.keep_group(run_id);
        }
        for run_id in self.ended_streams.drain(..) {
            application.release_group(&run_id);
        }
        let given = give(&mut application, poll);
        self.application = Some(application);
        self.forget_ended_jobs();
        self.milestone = false;
        given
    }

    /// Puts the next report off until the log has grown by what this one cost.
    fn paid(&mut self, reports: u64) {
        let listed = self.counts.jobs_started.min(JOBS_LISTED_MAX);
        let walked = self.live_stages.len() + self.executors.len() + self.streams.len();
        let cost = BYTES_PER_REPORT * reports
            + BYTES_PER_JOB * listed.saturating_sub(FREE_JOBS)
            + BYTES_PER_STEP * walked as u64;
        self.due_bytes = self.bytes.saturating_add(cost);
    }

    fn own_key(&self) -> Key {
        self.key.clone().unwrap_or_else(|| Key {
            id: self.name.clone(),
            attempt: None,
        })
    }

    /// The driver's address. The port is not the UI's, which no log tells.
    fn instance(&self) -> String {
        let property = |name| self.environment.as_ref().and_then(|e| e.get(name));
        match (property("spark.driver.host"), property("spark.driver.port")) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            _ => self
                .driver_address
                .clone()
                .unwrap_or_else(|| self.own_key().id),
        }
    }

    /// Forgets jobs that will not change any more; the application remembers them.
    fn forget_ended_jobs(&mut self) {
        let jobs = &mut self.jobs;
        self.ended_jobs.retain(|id| {
            let waits = jobs
                .get(id)
                .is_some_and(|live| live.job.num_active_tasks > 0);
            if !waits {
                jobs.remove(id);
            }
            waits
        });
        while self.ended_jobs.len() > ENDED_JOBS_MAX {
            if let Some(id) = self.ended_jobs.pop_first() {
                jobs.remove(&id);
            }
        }
        self.live_stages
            .retain(|_, stage| stage.jobs.iter().any(|id| jobs.contains_key(id)));
    }

    /// Adds to a report what the REST API does not tell, and takes out what a log does not.
    fn complete(&self, report: &mut TaskRunningInfo, state: State) {
        let metrics = report.metrics.get_or_insert_default();
        // A log has blocks only with spark.eventLog.logBlockUpdates.enabled.
        metrics.remove("application.storageMemoryUsedBytes");
        if self.sql_seen {
            let mut add = |name: &str, count: i64| {
                let name = format!("application.sqlExecutions{name}");
                metrics.insert(name, MetricValue::Long(count));
            };
            add("Running", self.sql_executions.len() as i64);
            add("Succeeded", self.sql_succeeded);
            add("Failed", self.sql_failed);
        }
        if let Some((_, stream)) = self.streams.get(&report.exec_id) {
            stream.add_metrics(metrics);
            report.progress = None;
            if state.holds_nothing() && stream.terminated == Some(true) {
                report.status = TaskStatus::Failed;
            }
        }
        // It may have failed.
        let lost = self.outcomes_lost || self.stray_failures > 0;
        if lost && matches!(report.status, TaskStatus::Succeed | TaskStatus::Cancelled) {
            report.status = TaskStatus::Unknown;
        }
        // In local mode, logs before Spark 2 do not tell the cores: what is held is not known then, nor where a count is
        // negative.
        let is_unknown = report.resource.as_ref().is_some_and(|resource| {
            let mut held = resource.applications.values();
            held.any(|held| {
                let is_negative = held.queue_memory < 0 || held.queue_cores < 0;
                is_negative || (held.queue_memory > 0 && held.queue_cores == 0)
            })
        });
        if is_unknown {
            report.resource = None;
        }
    }

    /// Says in a log's last report what the log does not tell.
    fn end_report(&self, report: &mut TaskRunningInfo, ending: Ending) {
        let metrics = report.metrics.get_or_insert_default();
        if !self.ended || ending.cut {
            metrics.insert("incomplete".to_owned(), MetricValue::Boolean(true));
        }
        if ending.compacted {
            metrics.insert("compacted".to_owned(), MetricValue::Boolean(true));
        }
        if self.broken_lines > 0 {
            let lines = i64::try_from(self.broken_lines).unwrap_or(i64::MAX);
            metrics.insert("brokenLines".to_owned(), MetricValue::Long(lines));
        }
        if let Some(code) = self.exit_code {
            metrics.insert("application.exitCode".to_owned(), MetricValue::Long(code));
        }
    }
}

impl TaskMetrics {
    fn input(&self) -> i64 {
        self.input.as_ref().map_or(0, |input| input.read)
    }

    fn output(&self) -> i64 {
        self.output.as_ref().map_or(0, |output| output.written)
    }

    fn shuffle_read(&self) -> i64 {
        let read = self.shuffle_read.as_ref();
        read.map_or(0, |read| mapping::sum(read.remote, read.local))
    }

    fn shuffle_written(&self) -> i64 {
        self.shuffle_write.as_ref().map_or(0, |write| write.written)
    }
}

fn add_work(stage: &mut Stage, metrics: &TaskMetrics) {
    let add = |sum: &mut i64, more: i64| *sum = mapping::sum(*sum, more);
    add(&mut stage.input_bytes, metrics.input());
    add(&mut stage.output_bytes, metrics.output());
    add(&mut stage.shuffle_read_bytes, metrics.shuffle_read());
    add(&mut stage.shuffle_write_bytes, metrics.shuffle_written());
    add(&mut stage.memory_bytes_spilled, metrics.memory_spilled);
    add(&mut stage.disk_bytes_spilled, metrics.disk_spilled);
    add(&mut stage.executor_run_time, metrics.run_time);
    add(&mut stage.jvm_gc_time, metrics.gc_time);
}

/// Counts one more of a kind. Reasons of killed tasks differ by what they name: only the first hundred are kept apart.
fn count(counts: &mut BTreeMap<String, i64>, kind: &str) {
    if let Some(count) = counts.get_mut(kind) {
        *count += 1;
    } else if counts.len() < 100 {
        counts.insert(kind.to_owned(), 1);
    }
}
