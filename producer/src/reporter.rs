//! The library for engines written in Rust: one [`Reporter`] per engine, one [`Task`] per exec task.

use std::collections::BTreeMap;
use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use schemas::{
    EngineInstance, Framing, MetricValue, TaskProgressInfo, TaskResourceInfo, TaskRunningInfo,
    TaskStatus, topics,
};
use service::kafka::KafkaOptions;
use service::registry::Registry;
use service::time::{LONGEST, LONGEST_SHOWN};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::delivery::{Delivery, Stats, Undelivered, Written};

/// The result of a fetch: the part, `None` if the engine does not know it, or why the fetch failed.
pub type Part<T> = Result<Option<T>, Box<dyn Error + Send + Sync>>;

/// Where a [`Reporter`] fetches the parts of each report. Every part is fetched on its own: one that fails, panics or takes
/// longer than [`Options::fetch_timeout`] is null in that report; the others are sent.
///
/// Write the methods as `async fn`. A method that is left out yields `None`. They run on the runtime on which the reporter
/// was created: run blocking code in `tokio::task::spawn_blocking`.
pub trait TaskSource: Send + Sync + 'static {
    /// The task's status. On `None`, the report repeats the last known status, which is [`TaskStatus::Running`] at first. A
    /// final status makes the report the task's last.
    fn status(&self) -> impl Future<Output = Part<TaskStatus>> + Send {
        async { Ok(None) }
    }

    /// How far the task is.
    fn progress(&self) -> impl Future<Output = Part<TaskProgressInfo>> + Send {
        async { Ok(None) }
    }

    /// What the task holds.
    fn resource(&self) -> impl Future<Output = Part<TaskResourceInfo>> + Send {
        async { Ok(None) }
    }

    /// Any named values.
    fn metrics(&self) -> impl Future<Output = Part<BTreeMap<String, MetricValue>>> + Send {
        async { Ok(None) }
    }
}

/// A task without parts.
impl TaskSource for () {}

/// When and how a [`Reporter`] reports.
#[derive(Clone, Debug)]
pub struct Options {
    /// How to reach Kafka, and the schema registry if reports use its framing. While either is unavailable, reports wait.
    pub kafka: KafkaOptions,
    /// Topic to write.
    pub topic: String,
    /// Time from a task's start to its first report.
    pub first_after: Duration,
    /// Time from one report of a task to the next.
    pub interval: Duration,
    /// Maximum time for the fetch of a part.
    pub fetch_timeout: Duration,
    /// Reports that may wait while Kafka is away (64 MiB of them at most).
    pub queue_reports: usize,
    /// How long [`Reporter::close`] waits for Kafka.
    pub close_timeout: Duration,
}

impl Options {
    /// First after 1 s, then every 5 s; 10,000 reports may wait; 30 s for the last ones.
    pub fn new(bootstrap_servers: &str) -> Self {
        Self {
            kafka: KafkaOptions {
                bootstrap_servers: bootstrap_servers.to_owned(),
                kafka_config: None,
                settings: Vec::new(),
                schema_registry: None,
                client_id: None,
            },
            topic: topics::TASK_RUNNING_INFO.to_owned(),
            first_after: Duration::from_secs(1),
            interval: Duration::from_secs(5),
            fetch_timeout: Duration::from_secs(2),
            queue_reports: 10_000,
            close_timeout: Duration::from_secs(30),
        }
    }
}

/// Why a reporter could not start, or could not deliver everything.
#[derive(Debug, thiserror::Error)]
pub enum ReporterError {
    /// A setting is wrong.
    #[error("{0}")]
    Settings(String),
    /// Reports did not reach Kafka.
    #[error(transparent)]
    Undelivered(Box<Undelivered>),
}

/// Reports on the tasks of one engine instance.
///
/// Nothing here ever waits for Kafka but [`close`](Self::close). While Kafka is away, reports wait
/// in a bounded queue in which a newer report of a task replaces an older unsent one; a last report
/// (one with a final status) is kept. `sequence` is counted when a report is made, so what was
/// replaced shows as a gap.
pub struct Reporter {
    engine: Arc<Engine>,
    tasks: TaskTracker,
    closing: CancellationToken,
}

struct Engine {
    instance: EngineInstance,
    running_tasks: AtomicI32,
    options: Options,
    delivery: Delivery,
    parts_failed: AtomicU64,
}

impl Reporter {
    /// A reporter with the usual [`Options`]. Does not wait for Kafka. `running_tasks` of `engine`
    /// is filled in with the number of its tasks that have not ended.
    ///
    /// # Errors
    /// If a setting is wrong.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn connect(bootstrap_servers: &str, engine: EngineInstance) -> Result<Self, ReporterError> {
        Self::with_options(Options::new(bootstrap_servers), engine)
    }

    /// [`connect`](Self::connect) with options.
    ///
    /// # Errors
    /// If a setting is wrong.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn with_options(
        mut options: Options,
        engine: EngineInstance,
    ) -> Result<Self, ReporterError> {
        if options.interval.is_zero() {
            return Err(ReporterError::Settings(
                "Options::interval is 0; reports need time between them".to_owned(),
            ));
        }
        if options.interval.max(options.first_after) > LONGEST {
            return Err(ReporterError::Settings(format!(
                "Options::interval or Options::first_after is longer than {LONGEST_SHOWN}"
            )));
        }
        if options.kafka.client_id.is_none() {
            options.kafka = options.kafka.named("reporter", Some(&engine.instance));
        }
        let settings = |error: anyhow::Error| ReporterError::Settings(format!("{error:#}"));
        let written = match Registry::of(&options.kafka).map_err(settings)? {
            None => Written::As(Framing::SingleObject),
            Some(registry) => Written::ByRegistry(registry),
        };
        let (topic, queue_reports) = (&options.topic, options.queue_reports);
        let delivery = Delivery::start(&options.kafka, topic, queue_reports, written, None)
            .map_err(settings)?;
        Ok(Self {
            engine: Arc::new(Engine {
                instance: engine,
                running_tasks: AtomicI32::new(0),
                options,
                delivery,
                parts_failed: AtomicU64::new(0),
            }),
            tasks: TaskTracker::new(),
            closing: CancellationToken::new(),
        })
    }

    /// Begins to report on a task: first after 1 s, then every 5 s, until it is final.
    pub fn task(&self, exec_id: &str, job_id: &str, source: impl TaskSource) -> Task {
        let (finish, finished) = oneshot::channel();
        self.engine.running_tasks.fetch_add(1, Ordering::Relaxed);
        let reports = Reports {
            engine: self.engine.clone(),
            exec_id: exec_id.to_owned(),
            job_id: job_id.to_owned(),
            source: Arc::new(source),
            status: TaskStatus::Running,
            sequence: 0,
            fetches: Fetches::of(exec_id),
        };
        self.tasks
            .spawn(reports.until_final(finished, self.closing.clone()));
        Task { finish }
    }

    /// Counts of the reports made so far.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Makes a last report of each task that has not ended, with its last known status, and waits until Kafka has
    /// acknowledged every report, at most [`Options::close_timeout`].
    ///
    /// # Errors
    /// If some reports did not reach Kafka: how many, and why.
    pub async fn close(self) -> Result<Stats, ReporterError> {
        self.closing.cancel();
        self.tasks.close();
        // Bounded: each task makes one more report, which the fetch timeout limits.
        self.tasks.wait().await;
        let closed = self
            .engine
            .delivery
            .close(self.engine.options.close_timeout)
            .await;
        let parts_failed = self.engine.parts_failed.load(Ordering::Relaxed);
        match closed {
            Ok(stats) => Ok(Stats {
                parts_failed,
                ..stats
            }),
            Err(mut undelivered) => {
                undelivered.stats.parts_failed = parts_failed;
                Err(ReporterError::Undelivered(Box::new(undelivered)))
            }
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Engine {
    fn stats(&self) -> Stats {
        Stats {
            parts_failed: self.parts_failed.load(Ordering::Relaxed),
            ..self.delivery.stats()
        }
    }
}

/// A task that is reported on. If it is dropped without [`finish`](Self::finish), as by an early return, it still gets a
/// last report, with the current or last known status of its source: a final status is never made up.
#[must_use = "dropping a task ends its reports"]
pub struct Task {
    finish: oneshot::Sender<TaskStatus>,
}

impl Task {
    /// The task has ended with this status: makes its last report now.
    pub fn finish(self, status: TaskStatus) {
        // An error means that the source had already given a final status.
        let _ = self.finish.send(status);
    }
}

/// Makes a task's reports.
struct Reports<S> {
    engine: Arc<Engine>,
    exec_id: String,
    job_id: String,
    source: Arc<S>,
    status: TaskStatus,
    sequence: i64,
    fetches: Fetches,
}

impl<S: TaskSource> Reports<S> {
    async fn until_final(
        mut self,
        mut finished: oneshot::Receiver<TaskStatus>,
        closing: CancellationToken,
    ) {
        let (first_after, interval) = {
            let options = &self.engine.options;
            (options.first_after, options.interval)
        };
        let mut due = Instant::now() + first_after;
        let (ending, status) = loop {
            tokio::select! {
                biased;
                status = &mut finished => break (true, status.ok()),
                () = closing.cancelled() => break (true, None),
                () = sleep_until(due) => {}
            }
            self.report(None).await;
            if self.status.is_final() {
                break (false, None);
            }
            // Do not catch up: two reports at once say no more than one.
            due = (due + interval).max(Instant::now());
        };
        self.engine.running_tasks.fetch_sub(1, Ordering::Relaxed);
        if ending {
            self.report(status).await;
        }
    }

    /// Makes one report; `status` takes precedence over the source's.
    async fn report(&mut self, status: Option<TaskStatus>) {
        let within = self.engine.options.fetch_timeout;
        let [a, b, c, d] = std::array::from_fn(|_| self.source.clone());
        let of = &mut self.fetches;
        let (said, progress, resource, metrics) = tokio::join!(
            of.status.fetch(within, async move { a.status().await }),
            of.progress.fetch(within, async move { b.progress().await }),
            of.resource.fetch(within, async move { c.resource().await }),
            of.metrics.fetch(within, async move { d.metrics().await }),
        );
        let fetches = [
            &of.status.failing,
            &of.progress.failing,
            &of.resource.failing,
            &of.metrics.failing,
        ];
        let failed = fetches.into_iter().flatten().count();
        self.engine
            .parts_failed
            .fetch_add(failed as u64, Ordering::Relaxed);
        self.status = status.or(said).unwrap_or(self.status);

        let info = TaskRunningInfo {
            exec_id: self.exec_id.clone(),
            job_id: self.job_id.clone(),
            engine: EngineInstance {
                running_tasks: self.engine.running_tasks.load(Ordering::Relaxed),
                ..self.engine.instance.clone()
            },
            status: self.status,
            reported_at: Timestamp::now().as_microsecond(),
            sequence: self.sequence,
            progress,
            resource,
            metrics,
        };
        self.sequence += 1;
        self.engine.delivery.report(&info);
    }
}

/// The fetches of a task's status and parts.
struct Fetches {
    status: Fetch<TaskStatus>,
    progress: Fetch<TaskProgressInfo>,
    resource: Fetch<TaskResourceInfo>,
    metrics: Fetch<BTreeMap<String, MetricValue>>,
}

impl Fetches {
    fn of(exec_id: &str) -> Self {
        Self {
            status: Fetch::of(exec_id, "status"),
            progress: Fetch::of(exec_id, "progress"),
            resource: Fetch::of(exec_id, "resource"),
            metrics: Fetch::of(exec_id, "metrics"),
        }
    }
}

struct Fetch<T> {
    exec_id: String,
    name: &'static str,
    /// Why the last fetch failed, if it did. Changes are logged.
    failing: Option<String>,
    /// A fetch that timed out. No other begins before it has ended, so that a hanging fetch takes one thread at most.
    overdue: Option<JoinHandle<Part<T>>>,
}

impl<T: Send + 'static> Fetch<T> {
    fn of(exec_id: &str, name: &'static str) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            name,
            failing: None,
            overdue: None,
        }
    }

    async fn fetch(
        &mut self,
        within: Duration,
        call: impl Future<Output = Part<T>> + Send + 'static,
    ) -> Option<T> {
        let fetched = self.ask(within, call).await;
        let Self { exec_id, name, .. } = self;
        let (part, failing) = match fetched {
            Ok(part) => (part, None),
            Err(reason) => (None, Some(reason)),
        };
        match &failing {
            Some(reason) if self.failing.as_ref() != Some(reason) => {
                tracing::warn!(
                    exec_id,
                    part = name,
                    "the {name} part is left out: {reason}"
                );
            }
            None if self.failing.is_some() => {
                tracing::info!(exec_id, part = name, "the {name} part can be fetched again");
            }
            _ => {}
        }
        self.failing = failing;
        part
    }

    async fn ask(
        &mut self,
        within: Duration,
        call: impl Future<Output = Part<T>> + Send + 'static,
    ) -> Result<Option<T>, String> {
        let overdue = self.overdue.take_if(|overdue| overdue.is_finished());
        drop(overdue);
        if self.overdue.is_some() {
            return Err("the fetch before has not ended yet".to_owned());
        }
        // A task of its own: a panic in it ends nothing else.
        let mut asked = tokio::spawn(call);
        match timeout(within, &mut asked).await {
            Ok(Ok(answer)) => answer.map_err(|error| error.to_string()),
            Ok(Err(error)) => Err(match error.try_into_panic() {
                Ok(panic) => format!("the fetch panicked: {}", panic_message(panic.as_ref())),
                Err(error) => error.to_string(),
            }),
            Err(_) => {
                asked.abort();
                self.overdue = Some(asked);
                Err(format!("the fetch takes longer than {within:?}"))
            }
        }
    }
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}
