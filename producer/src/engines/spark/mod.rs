//! `producer spark`: reports on Spark applications through Spark's REST API, which a live UI and a
//! History Server have alike.
//!
//! ```text
//! GET applications ─▶ GET jobs, stages, allexecutors, environment ─▶ Application::reports (pure) ─▶ Delivery
//!     every 5 s          each on its own: one that fails is null         what changed, and its end
//! ```
//!
//! When an application has ended, and what is said then:
//!
//! | Seen | Means | Said, once |
//! | --- | --- | --- |
//! | `completed: true` | ended | what Spark says then |
//! | a live UI refuses connections, 3 times | ended | what the History Server says, with `--history-url`; else the last state known |
//! | a UI no longer lists it, twice (another application has its port) | ended | the same |
//! | nothing that can be used for `--give-up-after` | taken as ended | the same |
//! | a page, a redirect, 404, 503, half an answer | nothing | the parts concerned are null, the next poll goes on |

mod answers;
mod application;
mod mapping;
mod rest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use schemas::TaskStatus;
use service::exit::NeedsAttention;
use service::health::Health;
use service::kafka::KafkaOptions;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::answers::Attempt;
use self::application::{Application, Key, Poll};
use self::mapping::State;
use self::rest::{Fault, Rest};
use crate::delivery::{Delivery, Written};
use crate::duration::duration;
use crate::sender::framing;

/// Between two looks at a UI that refuses connections, and that many make sure that it is gone.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const REFUSALS: u32 = 3;
/// Polls in a row that must miss an application in the list before it counts as gone from it.
const MISSING: u32 = 2;
/// Applications of one address that are followed at a time; of more, the newest.
const APPLICATIONS_MAX: usize = 1_000;
/// Reports that may wait while Kafka is away.
const QUEUE_REPORTS: usize = 50_000;
/// How long the last reports are waited for.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// Which applications are reported on, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Address of a Spark UI, or of a History Server (repeatable)
    #[arg(
        long,
        env = "SPARK_URL",
        value_name = "URL",
        required = true,
        value_delimiter = ','
    )]
    pub url: Vec<String>,

    /// Only these applications; else all that the addresses list (repeatable)
    #[arg(long, value_name = "ID")]
    pub app: Vec<String>,

    /// Where to look for the end of an application whose UI is gone
    #[arg(long, env = "SPARK_HISTORY_URL", value_name = "URL")]
    pub history_url: Option<String>,

    /// From one poll to the next
    #[arg(long, env = "SPARK_INTERVAL", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub interval: Duration,

    /// How long to wait for an address that does not answer (yet), and for the History Server
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub give_up_after: Duration,
}

/// Reports until every application has ended, or `shutdown` is cancelled. Prints `sent 42 reports
/// of 4 tasks` when all are acknowledged.
///
/// # Errors
/// If the topic does not exist, an address never answered, or reports could not be delivered.
pub async fn run(
    options: Options,
    kafka: &KafkaOptions,
    topic: &str,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let rest = |url: &str| {
        Rest::new(url).map_err(|reason| NeedsAttention(format!("{url} is no address: {reason}")))
    };
    let addresses = options.url.iter().map(|url| rest(url));
    let addresses = addresses.collect::<Result<Vec<Rest>, _>>()?;
    let history = options.history_url.as_deref().map(rest).transpose()?;

    let Some(cluster) = kafka.cluster(&shutdown).await? else {
        return Ok(());
    };
    cluster.require_topic(topic, "Write").await?;
    let Some(framing) = framing(kafka, topic, &health, &shutdown).await? else {
        return Ok(());
    };
    let written = Written::As(framing);
    let follower = Arc::new(Follower {
        delivery: Delivery::start(kafka, topic, QUEUE_REPORTS, written, Some(health))?,
        options,
        history,
        claimed: Mutex::default(),
        tasks: AtomicU64::new(0),
        told_of_too_many: AtomicBool::new(false),
        shutdown,
    });

    let mut following = JoinSet::new();
    for address in addresses {
        let follower = follower.clone();
        following.spawn(async move {
            let shown = address.shown();
            // To stop is to say no more: nothing is begun that a stop would leave half done.
            let reached = tokio::select! {
                () = follower.shutdown.cancelled() => Ok(()),
                reached = follower.follow(address) => reached,
            };
            (shown, reached)
        });
    }
    let mut unreached = Vec::new();
    while let Some(followed) = following.join_next().await {
        let (address, reached) = followed?;
        if let Err(fault) = reached {
            tracing::warn!("{address} was never reached: {fault}");
            unreached.push(format!("{address} was never reached: {fault}"));
        }
    }

    let stats = follower.delivery.close(CLOSE_WITHIN).await;
    let tasks = follower.tasks.load(Ordering::Relaxed);
    let delivered = stats
        .as_ref()
        .map_or_else(|e| e.stats.delivered, |s| s.delivered);
    println!("sent {delivered} reports of {tasks} tasks");
    stats?;
    if !unreached.is_empty() {
        bail!("{}", unreached.join("; "));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Follower {
    options: Options,
    history: Option<Rest>,
    delivery: Delivery,
    /// Applications that an address is followed for: none is reported twice.
    claimed: Mutex<HashSet<Key>>,
    /// Exec tasks reported so far.
    tasks: AtomicU64,
    told_of_too_many: AtomicBool,
    shutdown: CancellationToken,
}

/// An application that is followed.
struct Followed {
    application: Application,
    /// Polls in a row that did not list it.
    missing: u32,
    /// What its last poll complained of, as it was logged.
    complaint: String,
    /// Since when nothing about it could be used.
    silent_since: Option<Instant>,
}

impl Follower {
    /// Follows one address until all its applications have ended.
    ///
    /// # Errors
    /// If it never answered.
    async fn follow(&self, rest: Rest) -> Result<(), Fault> {
        let address = rest.shown();
        let mut followed: BTreeMap<Key, Followed> = BTreeMap::new();
        let mut reached = false;
        let mut complaint = String::new();
        let mut refusals = 0;
        // A live UI shows one application, which has not completed. A History Server outlives its
        // applications: that it is away, e.g. restarts, says nothing of them.
        let mut history_server = false;
        let mut silent_since = Instant::now();
        loop {
            let begun = Instant::now();
            let mut next = begun + self.options.interval;
            let listed = self.list(&rest).await;
            complain(
                &address,
                &mut complaint,
                listed.as_ref().err().map(ToString::to_string),
            );
            refusals = match &listed {
                Err(Fault::Refused) => refusals + 1,
                _ => 0,
            };
            match listed {
                Ok(attempts) => {
                    reached = true;
                    silent_since = begun;
                    history_server |=
                        attempts.len() > 1 || attempts.iter().any(|(_, a)| a.completed);
                    self.take_up(&rest, &attempts, &mut followed);
                    let all_ended = self.poll_listed(&rest, &attempts, &mut followed).await;
                    if all_ended {
                        tracing::info!("{address}: every application has ended");
                        return Ok(());
                    }
                }
                Err(fault) => {
                    let gave_up = silent_since.elapsed() >= self.options.give_up_after;
                    let gone = refusals >= REFUSALS && !history_server;
                    if reached && (gone || gave_up) {
                        for (_, gone) in std::mem::take(&mut followed) {
                            self.conclude(gone.application, &format!("its UI is gone: {fault}"))
                                .await;
                        }
                        tracing::info!("{address} is gone: {fault}");
                        return Ok(());
                    }
                    if gave_up {
                        return Err(fault);
                    }
                    if fault == Fault::Refused {
                        next = begun + LOOK_AGAIN.min(self.options.interval);
                    } else {
                        for one in followed.values_mut() {
                            self.poll(&rest, one, State::Alive).await;
                        }
                    }
                }
            }
            sleep_until(next).await;
        }
    }

    /// The applications' attempts, newest first, as far as they were asked for.
    async fn list(&self, rest: &Rest) -> Result<Vec<(Key, Attempt)>, Fault> {
        let applications: Vec<answers::Application> = rest.get(&[]).await?;
        let mut attempts = Vec::new();
        for application in applications {
            let chosen = self.options.app.is_empty() || self.options.app.contains(&application.id);
            if !chosen || application.id.trim().is_empty() {
                continue;
            }
            for attempt in application.attempts {
                attempts.push((Key::new(&application.id, &attempt), attempt));
            }
        }
        if attempts.len() > APPLICATIONS_MAX {
            if !self.told_of_too_many.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "{} lists {} applications; only the first {APPLICATIONS_MAX} are followed, choose with --app",
                    rest.shown(),
                    attempts.len()
                );
            }
            attempts.truncate(APPLICATIONS_MAX);
        }
        Ok(attempts)
    }

    /// Begins to follow what is new in the list.
    fn take_up(
        &self,
        rest: &Rest,
        attempts: &[(Key, Attempt)],
        followed: &mut BTreeMap<Key, Followed>,
    ) {
        for (key, attempt) in attempts {
            if !lock(&self.claimed).insert(key.clone()) {
                continue;
            }
            tracing::info!("{}: following application {key}", rest.shown());
            let application = Application::new(key.clone(), &attempt.spark_user, &rest.instance());
            let one = Followed {
                application,
                missing: 0,
                complaint: String::new(),
                silent_since: None,
            };
            followed.insert(key.clone(), one);
        }
    }

    /// Polls what the list has, concludes what it says has completed or has no more. Whether all
    /// have ended: a list of completed applications does not wait for more, an empty one does.
    async fn poll_listed(
        &self,
        rest: &Rest,
        attempts: &[(Key, Attempt)],
        followed: &mut BTreeMap<Key, Followed>,
    ) -> bool {
        let completed: HashMap<&Key, bool> = attempts
            .iter()
            .map(|(key, attempt)| (key, attempt.completed))
            .collect();
        let mut ended = Vec::new();
        for (key, one) in followed.iter_mut() {
            match completed.get(key) {
                Some(true) => {
                    let told = self.poll(rest, one, State::Completed).await;
                    if told {
                        ended.push((key.clone(), None));
                    } else if self.is_silent(one) {
                        ended.push((key.clone(), Some("Spark does not tell how it ended")));
                    }
                }
                Some(false) => {
                    one.missing = 0;
                    self.poll(rest, one, State::Alive).await;
                    if self.is_silent(one) {
                        ended.push((
                            key.clone(),
                            Some("nothing about it could be read for too long"),
                        ));
                    }
                }
                None => {
                    one.missing += 1;
                    if one.missing >= MISSING {
                        ended.push((key.clone(), Some("its address no longer lists it")));
                    }
                }
            }
        }
        for (key, why) in ended {
            if let (Some(one), Some(why)) = (followed.remove(&key), why) {
                self.conclude(one.application, why).await;
            }
        }
        followed.is_empty() && !attempts.is_empty() && attempts.iter().all(|(_, a)| a.completed)
    }

    fn is_silent(&self, one: &Followed) -> bool {
        one.silent_since
            .is_some_and(|since| since.elapsed() >= self.options.give_up_after)
    }

    /// Polls one application and reports. With [`State::Completed`], reports only when its jobs
    /// were told. Whether they were.
    async fn poll(&self, rest: &Rest, one: &mut Followed, state: State) -> bool {
        let (poll, faults) = ask(rest, &one.application).await;
        let jobs_told = poll.jobs.is_some();
        let complaint = (!faults.is_empty()).then(|| said_once(&faults));
        let whose = format!("application {}", one.application.key);
        complain(&whose, &mut one.complaint, complaint);
        one.silent_since = match jobs_told {
            true => None,
            false => one.silent_since.or_else(|| Some(Instant::now())),
        };
        if state == State::Alive || jobs_told {
            self.report(&mut one.application, poll, state);
        }
        jobs_told
    }

    fn report(&self, application: &mut Application, poll: Poll, state: State) {
        let reports = application.reports(poll, state, Timestamp::now().as_microsecond());
        let mut endings: BTreeMap<TaskStatus, usize> = BTreeMap::new();
        for info in &reports {
            // An exec task's first report.
            if info.sequence == 0 {
                self.tasks.fetch_add(1, Ordering::Relaxed);
            }
            *endings.entry(info.status).or_default() += 1;
            self.delivery.report(info);
        }
        if state != State::Alive {
            let endings: Vec<String> = endings
                .iter()
                .map(|(status, count)| format!("{count} {status}"))
                .collect();
            tracing::info!(
                "application {} has ended; its tasks: {}",
                application.key,
                endings.join(", ")
            );
        }
    }

    /// The last report of an application whose UI is gone: what the History Server says, if there
    /// is one and it comes to know the application in time, else the last state known.
    async fn conclude(&self, application: Application, why: &str) {
        tracing::info!("application {}: {why}", application.key);
        let mut one = Followed {
            application,
            missing: 0,
            complaint: String::new(),
            silent_since: None,
        };
        if let Some(history) = &self.history {
            if self.conclude_by_history(history, &mut one).await {
                return;
            }
            tracing::warn!(
                "application {}: the History Server at {} has not told how it ended within {:?}; its last known state is reported",
                one.application.key,
                history.shown(),
                self.options.give_up_after
            );
        }
        self.report(&mut one.application, Poll::default(), State::Gone);
    }

    async fn conclude_by_history(&self, history: &Rest, one: &mut Followed) -> bool {
        let begun = Instant::now();
        let mut complaint = String::new();
        let whose = history.shown();
        loop {
            let key = one.application.key.clone();
            let listed: Result<answers::Application, Fault> = history.get(&[&key.id]).await;
            let fault = match listed {
                Ok(listed) => {
                    let mut attempts = listed.attempts.iter();
                    let attempt = attempts.find(|a| a.attempt_id == key.attempt);
                    if attempt.is_some_and(|attempt| attempt.completed)
                        && self.poll(history, one, State::Completed).await
                    {
                        return true;
                    }
                    None
                }
                // It looks for new logs every 10 s.
                Err(Fault::NotFound(_)) => None,
                Err(fault) => Some(fault.to_string()),
            };
            complain(&whose, &mut complaint, fault);
            if begun.elapsed() >= self.options.give_up_after {
                return false;
            }
            sleep(LOOK_AGAIN.min(self.options.interval)).await;
        }
    }
}

/// The parts of a poll, each asked for on its own, and what each that failed says.
async fn ask(rest: &Rest, application: &Application) -> (Poll, Vec<(&'static str, Fault)>) {
    let key = &application.key;
    let path = |part| -> Vec<&str> {
        let attempt = key.attempt.as_deref();
        [Some(key.id.as_str()), attempt, Some(part)]
            .into_iter()
            .flatten()
            .collect()
    };
    let (jobs, stages, environment, executors) = (
        path("jobs"),
        path("stages"),
        path("environment"),
        path("allexecutors"),
    );
    let (jobs, stages, executors, environment) = tokio::join!(
        rest.get(&jobs),
        rest.get(&stages),
        async {
            match rest.get(&executors).await {
                // Before Spark 2.1 there was only this.
                Err(Fault::NotFound(_)) => rest.get(&path("executors")).await,
                answer => answer,
            }
        },
        async {
            // It does not change while the application lives.
            match application.environment_known() {
                true => Ok(None),
                false => rest.get(&environment).await.map(Some),
            }
        },
    );
    let mut faults = Vec::new();
    let mut told = |part, fault| faults.push((part, fault));
    let poll = Poll {
        jobs: jobs.map_err(|fault| told("jobs", fault)).ok(),
        stages: stages.map_err(|fault| told("stages", fault)).ok(),
        executors: executors.map_err(|fault| told("executors", fault)).ok(),
        environment: environment
            .map_err(|fault| told("environment", fault))
            .ok()
            .flatten(),
    };
    (poll, faults)
}

/// `jobs, stages: it answers 503; executors: …`
fn said_once(faults: &[(&'static str, Fault)]) -> String {
    let mut by_fault: Vec<(String, Vec<&str>)> = Vec::new();
    for (part, fault) in faults {
        let fault = fault.to_string();
        match by_fault.iter_mut().find(|(known, _)| *known == fault) {
            Some((_, parts)) => parts.push(part),
            None => by_fault.push((fault, vec![part])),
        }
    }
    let each = by_fault
        .iter()
        .map(|(fault, parts)| format!("{}: {fault}", parts.join(", ")));
    each.collect::<Vec<_>>().join("; ")
}

/// Logs a complaint when it is another than before.
fn complain(whose: &str, before: &mut String, now: Option<String>) {
    match now {
        Some(now) if *before != now => {
            tracing::warn!("{whose}: {now}; asking again");
            *before = now;
        }
        None if !before.is_empty() => {
            tracing::info!("{whose} answers again");
            before.clear();
        }
        _ => {}
    }
}
