//! What is known of one application over all polls: its jobs, its exec tasks, and when to report each.

use std::collections::{BTreeMap, HashMap, HashSet};

use schemas::{EngineInstance, TaskRunningInfo};

use super::answers::{Attempt, Batch, Environment, Executor, Job, SqlExecution, Stage};
use super::mapping::{self, Folded, Metrics, State, Totals, Work, int};
use super::sql::SqlExecutions;

/// Maximum number of jobs remembered one by one; above it, the oldest ended ones are folded into one entry. A report of
/// this many is about 300 kB, well below the 1 MB that a topic accepts by default.
const JOBS_MAX: usize = 10_000;
/// Maximum number of stages whose totals are remembered after Spark's UI has dropped them.
const STAGES_MAX: usize = 100_000;
/// An exec task without running jobs and changes is reported once per this many polls.
const IDLE_POLLS: u32 = 12;

/// One attempt of an application.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) id: String,
    pub(crate) attempt: Option<String>,
}

impl Key {
    pub(crate) fn new(id: &str, attempt: &Attempt) -> Self {
        Self {
            id: id.to_owned(),
            attempt: attempt.attempt_id.clone(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)?;
        match &self.attempt {
            Some(attempt) => write!(f, "/{attempt}"),
            None => Ok(()),
        }
    }
}

/// The responses of one poll; `None` for a part that failed.
#[derive(Default)]
pub(crate) struct Poll {
    pub(crate) jobs: Option<Vec<Job>>,
    pub(crate) stages: Option<Vec<Stage>>,
    pub(crate) executors: Option<Vec<Executor>>,
    pub(crate) environment: Option<Environment>,
    pub(crate) sql: Option<Vec<SqlExecution>>,
}

/// A job group; `None` for the jobs without one.
type Group = Option<String>;

/// What is known of one application.
pub(crate) struct Application {
    pub(crate) key: Key,
    user: String,
    instance: String,
    jobs: BTreeMap<i64, Job>,
    folded: HashMap<Group, Folded>,
    /// The newest folded job; older jobs that are not remembered were folded too.
    folded_up_to: i64,
    stages: BTreeMap<i64, Work>,
    environment: Option<Environment>,
    executors: Vec<Executor>,
    sql: SqlExecutions,
    tasks: BTreeMap<Group, ExecTask>,
    /// Groups that will have jobs for as long as the application lives, or until they are released.
    kept_groups: HashSet<String>,
    /// Whether its jobs were ever read.
    jobs_known: bool,
}

#[derive(Default)]
struct ExecTask {
    sequence: i64,
    /// The totals of its jobs in the last report.
    reported: Option<Totals>,
    polls_since: u32,
    /// Of a streaming query's run: its newest batch.
    batch: Option<Batch>,
}

impl Application {
    pub(crate) fn new(key: Key, user: &str, instance: &str) -> Self {
        Self {
            key,
            user: user.to_owned(),
            instance: instance.to_owned(),
            jobs: BTreeMap::new(),
            folded: HashMap::new(),
            folded_up_to: i64::MIN,
            stages: BTreeMap::new(),
            environment: None,
            executors: Vec::new(),
            sql: SqlExecutions::default(),
            tasks: BTreeMap::new(),
            kept_groups: HashSet::new(),
            jobs_known: false,
        }
    }

    /// Makes an exec task of a group before its first job, and keeps it after its last, until it is released.
    pub(crate) fn keep_group(&mut self, group: String) {
        self.tasks.entry(Some(group.clone())).or_default();
        self.kept_groups.insert(group);
    }

    /// No more jobs will come of a group that was kept.
    pub(crate) fn release_group(&mut self, group: &str) {
        self.kept_groups.remove(group);
    }

    /// The number of jobs, stages and exec tasks that are remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.jobs.len() + self.stages.len() + self.tasks.len() + self.folded.len()
    }

    pub(crate) fn environment_known(&self) -> bool {
        self.environment.is_some()
    }

    /// The reports of a poll: every exec task with a running job or a change, and the others now and then. In any state but
    /// [`State::Alive`], all of them.
    ///
    /// An application without any job is not reported before its end: before the first job, it is not known whether its
    /// jobs have groups. A group with only folded jobs, after which 10,000 others came, counts as ended: it is reported for
    /// the last time and forgotten. Otherwise memory would grow for ever where each statement is a group, as in a Thrift
    /// server.
    pub(crate) fn reports(
        &mut self,
        poll: Poll,
        state: State,
        reported_at: i64,
    ) -> Vec<TaskRunningInfo> {
        let mut answered = Answered {
            jobs: poll.jobs.is_some(),
            stages: poll.stages.is_some(),
            executors: poll.executors.is_some(),
            sql: poll.sql.is_some(),
        };
        self.remember(poll);
        if state == State::Gone {
            // Report what was last known; a part that was never known stays null.
            answered = Answered {
                jobs: self.jobs_known,
                stages: !self.stages.is_empty(),
                executors: !self.executors.is_empty(),
                sql: true,
            };
        }

        let mut jobs: BTreeMap<Group, Vec<&Job>> = BTreeMap::new();
        for job in self.jobs.values() {
            jobs.entry(group(job)).or_default().push(job);
        }
        for group in jobs.keys().chain(self.folded.keys()) {
            if !self.tasks.contains_key(group) {
                self.tasks.insert(group.clone(), ExecTask::default());
            }
        }
        if self.tasks.is_empty() && state != State::Alive {
            self.tasks.insert(None, ExecTask::default());
        }

        let ticket_id = mapping::identifier(&self.key.to_string());
        let mut active = 0_i64;
        let mut drafts = Vec::new();
        let mut ended = Vec::new();
        let kept_groups = &self.kept_groups;
        for (group, task) in &mut self.tasks {
            let jobs = jobs.get(group).map_or(&[][..], Vec::as_slice);
            let folded = self.folded.get(group);
            let mut totals = folded.map_or_else(Totals::default, |folded| folded.totals);
            jobs.iter().for_each(|job| totals.add(job));
            active = active.saturating_add(totals.active());
            let mut batches = jobs.iter().rev().filter_map(|job| job.batch.as_deref());
            if let Some(batch) = batches.find(|batch| group.as_ref() == Some(&batch.run_id)) {
                task.batch = Some(batch.clone());
            }

            let is_kept = group
                .as_ref()
                .is_some_and(|group| kept_groups.contains(group));
            let only_folded = folded.is_some() && group.is_some() && jobs.is_empty() && !is_kept;
            let state = if only_folded && state == State::Alive {
                ended.push(group.clone());
                State::Completed
            } else {
                state
            };
            task.polls_since += 1;
            let due = totals.runs()
                || state != State::Alive
                || (answered.jobs && task.reported != Some(totals))
                || task.polls_since >= IDLE_POLLS;
            if due {
                task.polls_since = 0;
                task.reported = Some(totals);
                drafts.push((group, task, jobs, folded, totals, state));
            }
        }
        // By the executors; if they are not known, by the jobs.
        let running_tasks = match state {
            _ if answered.executors => self.executors.iter().fold(0_i64, |sum, executor| {
                sum.saturating_add(executor.active_tasks)
            }),
            _ => active,
        };
        let resource = (answered.executors || state.holds_nothing()).then(|| {
            let environment = self.environment.as_ref();
            mapping::resource(&self.key.id, &self.executors, environment, state)
        });

        let mut reports = Vec::with_capacity(drafts.len());
        for (group, task, jobs, folded, totals, state) in drafts {
            let each = || jobs.iter().copied();
            let mut metrics = Metrics::default();
            if answered.jobs {
                metrics.jobs(each(), folded, &totals);
            }
            if answered.stages {
                metrics.work(&work(jobs, folded, &self.stages));
            }
            if answered.executors {
                metrics.executors(&self.executors, state);
            }
            if answered.sql {
                metrics.sql(&self.sql);
            }
            if let Some(batch) = task.batch.as_ref().filter(|_| answered.jobs) {
                metrics.batch(batch);
            }
            // A streaming query is never done: its jobs are the batches so far.
            let has_progress = answered.jobs && task.batch.is_none();
            reports.push(TaskRunningInfo {
                exec_id: mapping::exec_id(&ticket_id, group.as_deref()),
                job_id: mapping::identifier(&self.key.id),
                engine: EngineInstance {
                    instance: self.instance.clone(),
                    engine_type: "spark".to_owned(),
                    user: mapping::identifier(&self.user),
                    ticket_id: ticket_id.clone(),
                    running_tasks: int(running_tasks),
                },
                status: mapping::status(&totals, state),
                reported_at,
                sequence: task.sequence,
                progress: has_progress.then(|| mapping::progress(each(), folded, &totals)),
                resource: resource.clone(),
                metrics: metrics.part(),
            });
            task.sequence += 1;
        }
        for group in ended {
            self.tasks.remove(&group);
            self.folded.remove(&group);
        }
        reports
    }

    /// Takes a poll's answers in. What Spark's UI has dropped since (it keeps 1,000 jobs and 1,000
    /// stages by default) stays known.
    pub(crate) fn remember(&mut self, poll: Poll) {
        self.jobs_known |= poll.jobs.is_some();
        for job in poll.jobs.into_iter().flatten() {
            let forgotten = job.job_id <= self.folded_up_to && !self.jobs.contains_key(&job.job_id);
            if !forgotten {
                self.jobs.insert(job.job_id, job);
            }
        }
        if let Some(stages) = poll.stages {
            let mut answered: BTreeMap<i64, Work> = BTreeMap::new();
            for stage in &stages {
                answered.entry(stage.stage_id).or_default().add_stage(stage);
            }
            self.stages.append(&mut answered);
            while self.stages.len() > STAGES_MAX {
                self.stages.pop_first();
            }
        }
        self.environment = poll.environment.or(self.environment.take());
        if let Some(executors) = poll.executors {
            self.executors = executors;
        }
        if let Some(sql) = poll.sql {
            self.sql.take(sql);
        }
        self.fold();
    }

    fn fold(&mut self) {
        let surplus = self.jobs.len().saturating_sub(JOBS_MAX);
        if surplus == 0 {
            return;
        }
        let ended = self.jobs.values().filter(|job| job.ended());
        let mut folding: Vec<i64> = ended.map(|job| job.job_id).take(surplus).collect();
        if folding.len() < surplus {
            folding = self.jobs.keys().copied().take(surplus).collect();
        }
        for job in folding.iter().filter_map(|id| self.jobs.remove(id)) {
            let folded = self.folded.entry(group(&job)).or_default();
            folded.totals.add(&job);
            folded.newest_job_id = folded.newest_job_id.max(job.job_id);
            self.folded_up_to = self.folded_up_to.max(job.job_id);
            for stage in &job.stage_ids {
                if let Some(work) = self.stages.remove(stage) {
                    folded.work.add(&work);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Answered {
    jobs: bool,
    stages: bool,
    executors: bool,
    sql: bool,
}

fn group(job: &Job) -> Group {
    let group = job.job_group.as_deref().unwrap_or_default();
    (!group.trim().is_empty()).then(|| group.to_owned())
}

/// The work of the stages of these jobs; a stage that several of them share counts once.
fn work(jobs: &[&Job], folded: Option<&Folded>, stages: &BTreeMap<i64, Work>) -> Work {
    let mut work = folded.map_or_else(Work::default, |folded| folded.work);
    let ids: HashSet<i64> = jobs
        .iter()
        .flat_map(|job| &job.stage_ids)
        .copied()
        .collect();
    for id in ids {
        if let Some(stage) = stages.get(&id) {
            work.add(stage);
        }
    }
    work
}
