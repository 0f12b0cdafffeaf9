//! Generates believable task lives. The generator is pure: the same seed gives the same reports except for their time, and
//! with a clock that starts at a given time, the same times too.
//!
//! ```text
//! Inited ─▶ Scheduled ─▶ Running ─▶ Succeed | Failed | Cancelled | Timeout
//!               ▲           │
//!               └─ WaitForRetry
//! ```

use std::collections::BTreeMap;

use jiff::Timestamp;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::{
    JobProgressInfo, MetricValue, ResourceWithStatus, TaskProgressInfo, TaskResourceInfo,
    TaskRunningInfo, TaskStatus,
};

const ENGINES: [(&str, &str, &str); 5] = [
    ("node-1:7077", "spark", "ada"),
    ("node-2:7077", "spark", "grace"),
    ("node-3:8081", "flink", "edsger"),
    ("node-4:8080", "trino", "barbara"),
    ("node-5:10000", "hive", "ada"),
];
const QUEUES: [&str; 3] = ["default", "etl", "adhoc"];
const GIB: i64 = 1 << 30;

/// Where a report's `reportedAt` comes from.
#[derive(Clone, Copy, Debug)]
pub enum Clock {
    /// The present.
    Now,
    /// A time that begins at `start` and advances by `step` with each report; microseconds.
    From {
        /// The first report's time, microseconds since 1970.
        start: i64,
        /// Between one report and the next.
        step: i64,
    },
}

/// An endless stream of reports of tasks that live, end and are followed by others.
pub struct Simulation {
    random: ChaCha8Rng,
    clock: Clock,
    /// What exec ids begin with.
    prefix: String,
    lives: Vec<Option<Life>>,
    /// The life whose turn it is.
    turn: usize,
    started: u64,
    /// Running tasks, by engine.
    running: [i32; ENGINES.len()],
    /// The last report; the next one overwrites it.
    report: TaskRunningInfo,
}

impl Simulation {
    /// `tasks` (at least 1) live at a time and report in turn. Exec ids contain `seed`, and `run` unless it is empty: two
    /// streams of the same seed and run are the same stream.
    pub fn new(tasks: usize, seed: u64, run: &str, clock: Clock) -> Self {
        let separator = if run.is_empty() { "" } else { "-" };
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            clock,
            prefix: format!("sim-{seed}{separator}{run}"),
            lives: (0..tasks.max(1)).map(|_| None).collect(),
            turn: 0,
            started: 0,
            running: [0; ENGINES.len()],
            report: TaskRunningInfo::default(),
        }
    }

    /// How many tasks have reported so far.
    pub fn tasks(&self) -> u64 {
        self.started
    }

    /// The next report. It overwrites the last one and reuses its allocations.
    pub fn next_report(&mut self) -> &TaskRunningInfo {
        let reported_at = self.reported_at();
        let slot = self.turn;
        self.turn = (slot + 1) % self.lives.len();

        let mut life = match self.lives[slot].take() {
            Some(life) => life,
            None => {
                self.started += 1;
                Life::begin(&mut self.random, &self.prefix, self.started)
            }
        };
        let ran = life.status == TaskStatus::Running;
        life.go_on(&mut self.random);
        let runs = life.status == TaskStatus::Running;
        self.running[life.engine] += i32::from(runs) - i32::from(ran);

        let report = &mut self.report;
        report.reported_at = reported_at;
        report.engine.running_tasks = self.running[life.engine];
        life.report(&mut self.random, report);
        if !life.status.is_final() {
            self.lives[slot] = Some(life);
        }
        &self.report
    }

    fn reported_at(&mut self) -> i64 {
        match &mut self.clock {
            Clock::Now => Timestamp::now().as_microsecond(),
            Clock::From { start, step } => {
                let now = *start;
                *start = start.saturating_add(*step);
                now
            }
        }
    }
}

/// One exec task.
struct Life {
    exec_id: String,
    job_id: String,
    engine: usize,
    ticket_id: String,
    status: TaskStatus,
    sequence: i64,
    /// Reports left in a waiting status.
    waits: u32,
    stages: Vec<Stage>,
    /// Tasks of a stage that end from one report to the next.
    pace: i32,
    /// Its final status, and the share of its work after which it ends.
    ending: (TaskStatus, f64),
    /// The share of its work after which it fails once and is retried.
    retry_at: Option<f64>,
    applications: Vec<Application>,
    cpu_seconds: f64,
    input_bytes: i64,
    shuffle_bytes: i64,
    gc_ms: i64,
}

struct Stage {
    total: i32,
    done: i32,
    running: i32,
    failed: i32,
}

struct Application {
    id: String,
    queue: &'static str,
    /// The most executors it gets.
    peak: i32,
    executors: i32,
    cores_each: i32,
    memory_each: i64,
}

impl Life {
    fn begin(random: &mut impl Rng, prefix: &str, number: u64) -> Self {
        let engine = random.random_range(0..ENGINES.len());
        let stages = (0..random.random_range(2..=4))
            .map(|_| Stage {
                total: random.random_range(8..=400),
                done: 0,
                running: 0,
                failed: 0,
            })
            .collect::<Vec<_>>();
        let tasks: i32 = stages.iter().map(|stage| stage.total).sum();
        let ending = match random.random_range(0..100) {
            0..80 => (TaskStatus::Succeed, 1.0),
            80..90 => (TaskStatus::Failed, random.random_range(0.1..0.95)),
            90..96 => (TaskStatus::Cancelled, random.random_range(0.0..0.9)),
            _ => (TaskStatus::Timeout, random.random_range(0.5..0.99)),
        };
        let applications = (0..random.random_range(1..=2))
            .map(|i| Application {
                id: format!("application_{:05}_{i}", number % 100_000),
                queue: QUEUES[random.random_range(0..QUEUES.len())],
                peak: random.random_range(2..=16),
                executors: 0,
                cores_each: [1, 2, 4][random.random_range(0..3)],
                memory_each: random.random_range(1..=8) * GIB,
            })
            .collect();
        Self {
            exec_id: format!("{prefix}-{number:06}"),
            // A job of the entrance often consists of several exec tasks.
            job_id: format!("{prefix}-job-{:05}", number / 3),
            engine,
            ticket_id: format!("ticket-{engine}"),
            status: TaskStatus::Unknown,
            sequence: 0,
            waits: 0,
            stages,
            pace: (tasks / random.random_range(12..=40)).max(1),
            ending,
            retry_at: random
                .random_bool(0.05)
                .then(|| random.random_range(0.1..0.6)),
            applications,
            cpu_seconds: 0.0,
            input_bytes: 0,
            shuffle_bytes: 0,
            gc_ms: 0,
        }
    }

    /// Advances it to the next report.
    fn go_on(&mut self, random: &mut impl Rng) {
        match self.status {
            TaskStatus::Unknown => self.status = TaskStatus::Inited,
            _ if self.waits > 0 => self.waits -= 1,
            TaskStatus::Inited | TaskStatus::WaitForRetry => {
                self.status = TaskStatus::Scheduled;
                self.waits = random.random_range(0..3);
            }
            TaskStatus::Scheduled => self.status = TaskStatus::Running,
            _ => self.work(random),
        }
    }

    fn work(&mut self, random: &mut impl Rng) {
        let mut ends = random.random_range(0..=self.pace * 2);
        self.cpu_seconds += f64::from(ends * random.random_range(20..80)) / 64.0;
        self.input_bytes += i64::from(ends) * random.random_range(1_000_000..4_000_000);
        self.gc_ms += i64::from(random.random_range(0..40));
        for (i, stage) in self.stages.iter_mut().enumerate() {
            let ended = ends.min(stage.total - stage.done);
            ends -= ended;
            stage.done += ended;
            if i > 0 {
                self.shuffle_bytes += i64::from(ended) * random.random_range(100_000..900_000);
            }
            if ended > 0 && random.random_bool(0.02) {
                stage.failed += 1;
            }
            let left = stage.total - stage.done;
            // The next stage waits for this one.
            stage.running = if left > 0 && ends == 0 {
                left.min(self.pace * 2)
            } else {
                0
            };
            if left > 0 {
                break;
            }
        }
        let progress = self.progress();
        for application in &mut self.applications {
            let step = random.random_range(1..=3);
            application.executors = if progress < 0.7 {
                (application.executors + step).min(application.peak)
            } else {
                (application.executors - step).max(1)
            };
        }

        let (ending, at) = self.ending;
        if progress >= at {
            self.end(ending);
        } else if self.retry_at.is_some_and(|at| progress >= at) {
            self.retry_at = None;
            self.status = TaskStatus::WaitForRetry;
            self.waits = 1;
            self.release();
            for stage in &mut self.stages {
                stage.done = 0;
            }
        }
    }

    fn end(&mut self, ending: TaskStatus) {
        self.status = ending;
        self.release();
        if ending == TaskStatus::Failed {
            // The stage that was under way is the one that failed.
            if let Some(stage) = self.stages.iter_mut().find(|s| s.done < s.total) {
                stage.failed += 1;
            }
        }
    }

    fn release(&mut self) {
        for stage in &mut self.stages {
            stage.running = 0;
        }
        for application in &mut self.applications {
            application.executors = 0;
        }
    }

    fn progress(&self) -> f64 {
        let done: i32 = self.stages.iter().map(|stage| stage.done).sum();
        let total: i32 = self.stages.iter().map(|stage| stage.total).sum();
        f64::from(done) / f64::from(total.max(1))
    }

    fn report(&mut self, random: &mut impl Rng, report: &mut TaskRunningInfo) {
        // An engine that has not begun, or has a bad moment, cannot tell everything.
        let mut tells =
            |begun: bool| begun && (self.status.is_final() || !random.random_bool(0.01));
        let queued = matches!(self.status, TaskStatus::Inited | TaskStatus::Scheduled);
        let tells_progress = tells(true);
        let tells_resource = tells(!queued);
        let tells_metrics = tells(!queued);

        let (instance, engine_type, user) = ENGINES[self.engine];
        for (text, now) in [
            (&mut report.exec_id, &*self.exec_id),
            (&mut report.job_id, &*self.job_id),
            (&mut report.engine.instance, instance),
            (&mut report.engine.engine_type, engine_type),
            (&mut report.engine.user, user),
            (&mut report.engine.ticket_id, &*self.ticket_id),
        ] {
            now.clone_into(text);
        }
        report.status = self.status;
        report.sequence = self.sequence;
        self.sequence += 1;
        report.progress = tells_progress.then(|| {
            let last = report.progress.take();
            self.progress_info(last.map_or_else(Vec::new, |last| last.progress_info))
        });
        report.resource = tells_resource.then(|| {
            let last = report.resource.take().unwrap_or_default();
            self.resource(last)
        });
        report.metrics = tells_metrics.then(|| self.metrics(report.metrics.take()));
    }

    /// In the place of the last report's jobs.
    fn progress_info(&self, mut jobs: Vec<JobProgressInfo>) -> TaskProgressInfo {
        jobs.truncate(self.stages.len());
        jobs.extend((jobs.len()..self.stages.len()).map(|i| JobProgressInfo {
            id: format!("stage-{i}"),
            ..JobProgressInfo::default()
        }));
        for (job, stage) in jobs.iter_mut().zip(&self.stages) {
            job.total_tasks = stage.total;
            job.running_tasks = stage.running;
            job.failed_tasks = stage.failed;
            job.succeed_tasks = stage.done;
        }
        TaskProgressInfo {
            progress: self.progress(),
            progress_info: jobs,
        }
    }

    /// In the place of what the last report had.
    fn resource(&self, last: TaskResourceInfo) -> TaskResourceInfo {
        let mut last = last.applications.into_iter();
        let mut resource = TaskResourceInfo::default();
        for application in &self.applications {
            let (mut id, mut held) = last.next().unwrap_or_default();
            application.id.clone_into(&mut id);
            application.hold(self.status, &mut held);
            resource.applications.insert(id, held);
        }
        resource
    }

    /// In the place of the last report's.
    fn metrics(
        &self,
        last: Option<BTreeMap<String, MetricValue>>,
    ) -> BTreeMap<String, MetricValue> {
        let failed: i32 = self.stages.iter().map(|stage| stage.failed).sum();
        let mut metrics = last.unwrap_or_default();
        for (name, value) in [
            ("cpuSeconds", MetricValue::Double(self.cpu_seconds)),
            ("gcMs", MetricValue::Long(self.gc_ms)),
            ("inputBytes", MetricValue::Long(self.input_bytes)),
            ("retried", MetricValue::Boolean(failed > 0)),
            ("shuffleBytes", MetricValue::Long(self.shuffle_bytes)),
        ] {
            match metrics.get_mut(name) {
                Some(last) => *last = value,
                None => _ = metrics.insert(name.to_owned(), value),
            }
        }
        metrics
    }
}

impl Application {
    fn hold(&self, status: TaskStatus, held: &mut ResourceWithStatus) {
        let job_status = match status {
            TaskStatus::Running => "RUNNING",
            TaskStatus::Succeed => "FINISHED",
            TaskStatus::Failed | TaskStatus::Timeout => "FAILED",
            TaskStatus::Cancelled => "KILLED",
            _ => "ACCEPTED",
        };
        held.queue_memory = i64::from(self.executors) * self.memory_each;
        held.queue_cores = self.executors * self.cores_each;
        held.queue_instances = self.executors;
        job_status.clone_into(&mut held.job_status);
        self.queue.clone_into(&mut held.queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock::From {
        start: 1_764_079_500_000_000,
        step: 5_000,
    };

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
        let bytes = |seed, run| -> Vec<Vec<u8>> {
            let mut simulation = Simulation::new(40, seed, run, CLOCK);
            (0..5_000)
                .map(|_| schemas::encode_info(simulation.next_report()).unwrap())
                .collect()
        };
        assert_eq!(bytes(7, ""), bytes(7, ""));
        assert_ne!(bytes(7, ""), bytes(8, ""));
        assert_ne!(bytes(7, ""), bytes(7, "again"));
    }

    #[test]
    fn a_life_is_one_that_an_engine_could_have() {
        let mut lives: BTreeMap<String, Vec<TaskRunningInfo>> = BTreeMap::new();
        let mut simulation = Simulation::new(40, 7, "", CLOCK);
        let mut bytes = 0;
        for _ in 0..20_000 {
            let info = simulation.next_report();
            assert_eq!(info.problems(), []);
            bytes += schemas::encode_info(info).unwrap().len();
            let life = lives.entry(info.exec_id.clone()).or_default();
            life.push(info.clone());
        }
        assert_eq!(simulation.tasks(), lives.len() as u64);
        assert!((250..400).contains(&(bytes / 20_000)), "{}", bytes / 20_000);

        let mut endings: BTreeMap<TaskStatus, usize> = BTreeMap::new();
        for reports in lives.values() {
            assert_eq!(reports[0].status, TaskStatus::Inited);
            for (i, report) in reports.iter().enumerate() {
                assert_eq!(report.sequence, i as i64);
                let last = i + 1 == reports.len();
                assert!(last || !report.status.is_final(), "{report:?}");
            }
            let last = reports.last().unwrap();
            *endings.entry(last.status).or_default() += 1;
            if last.status == TaskStatus::Succeed {
                assert_eq!(last.progress.as_ref().unwrap().progress, 1.0);
            }
            if last.status.is_final() {
                let held = &last.resource.as_ref().unwrap().applications;
                assert!(held.values().all(|held| held.queue_memory == 0));
            }
        }
        let unfinished: usize = endings
            .iter()
            .filter_map(|(status, count)| (!status.is_final()).then_some(count))
            .sum();
        assert!(unfinished <= 40, "{endings:?}");
        for ending in [
            TaskStatus::Succeed,
            TaskStatus::Failed,
            TaskStatus::Cancelled,
            TaskStatus::Timeout,
        ] {
            assert!(endings.contains_key(&ending), "{endings:?}");
        }
        assert!(
            lives
                .values()
                .flatten()
                .any(|r| r.status == TaskStatus::WaitForRetry)
        );
    }
}
