//! `producer spark`: reports on Spark applications through Spark's REST API, which a live UI and a
//! History Server have alike.
//!
//! ```text
//! GET applications ─▶ GET jobs, stages, allexecutors, environment ─▶ Application::reports (pure) ─▶ Delivery
//!     every 5 s          each on its own: one that fails is null         what changed, and its end
//!                        a task an application, as PollLimit allows
//! ```
//!
//! What becomes of an application, of which not being seen says nothing:
//!
//! | Seen | Means | Reported |
//! | --- | --- | --- |
//! | `completed: true`, here or by the History Server | ended | once: the final status, from its jobs; as long as `/jobs` does not answer, nothing |
//! | a newer attempt beside one that has not completed | that attempt ended | once: `Failed` if a job failed, else `Unknown` |
//! | a page, a redirect, 404, 503, half an answer | nothing | null parts, at the next poll again |
//! | connections refused, or a whole list without it | nothing | nothing; the History Server is asked |
//! | nothing that can be used for `--give-up-after` | not known | once: `Unknown`, with what was last known; from then on only if its jobs are told again |

mod answers;
mod application;
mod ask;
mod elements;
mod follow;
mod followed;
mod list;
mod mapping;
mod poll_limit;
mod rest;
mod standings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use anyhow::bail;
use clap::builder::BoolishValueParser;
use jiff::Timestamp;
use schemas::{TaskStatus, topics};
use service::address::{self, AddressParser};
use service::exit::WrongUsage;
use service::health::Health;
use service::kafka::{KafkaOptions, NewTopic};
use service::output;
use service::words::counted;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::application::{Application, Poll};
use self::ask::Complaints;
use self::follow::Address;
pub(crate) use self::follow::FOLLOWED;
use self::mapping::State;
use self::poll_limit::PollLimit;
pub(crate) use self::poll_limit::{POLL_DURATION, POLLS_LATE};
use self::rest::Rest;
use self::standings::Standings;
use crate::delivery::{Delivery, Written};
use crate::duration::duration;
use crate::sender::{LAST_ACKS, framing};

/// Between two looks at an address that refuses connections, and how many make sure that it is gone
/// where nothing is followed there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const REFUSALS: u32 = 3;
/// Running applications of one address that are followed at a time, and ended ones whose end is
/// being reported.
const APPLICATIONS_MAX: usize = 1_000;
/// Reports that may wait while Kafka is away.
const QUEUE_REPORTS: usize = 50_000;
/// How long the last reports are waited for, unless a signal comes.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// Which applications are reported on, and how often.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Address of a Spark UI, or of a History Server (repeatable). With USER:PASSWORD@ only as SPARK_URL
    #[arg(
        long,
        env = "SPARK_URL",
        value_name = "URL",
        value_parser = AddressParser::http("the environment variable SPARK_URL"),
        hide_env_values = true,
        required = true,
        value_delimiter = ','
    )]
    pub url: Vec<address::Address>,

    /// Only these applications; else all that the addresses list (repeatable)
    #[arg(long, value_name = "ID")]
    pub app: Vec<String>,

    /// Where to look for the end of an application whose UI is gone
    #[arg(
        long,
        env = "SPARK_HISTORY_URL",
        value_name = "URL",
        value_parser = AddressParser::http("the environment variable SPARK_HISTORY_URL"),
        hide_env_values = true
    )]
    pub history_url: Option<address::Address>,

    /// From one poll to the next
    #[arg(long, env = "SPARK_INTERVAL", value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub interval: Duration,

    /// Applications of one server that are polled at a time. As many again may be slow to answer or have
    /// their end looked up; they never delay the others
    #[arg(
        long,
        env = "SPARK_POLLS",
        value_name = "N",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=APPLICATIONS_MAX as i64)
    )]
    pub polls: u16,

    /// Keep running when all applications have ended, and report on new ones as they come
    #[arg(long, env = "SPARK_STAY", value_parser = BoolishValueParser::new())]
    pub stay: bool,

    /// How long to wait for an address that does not answer (yet), an application that is not listed
    /// (any more), and the History Server
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub give_up_after: Duration,
}

/// Reports until every application has ended, unless it is to stay, or until `shutdown` is cancelled. Prints `sent 42 reports
/// of 4 tasks` when all are acknowledged.
///
/// # Errors
/// If the topic does not exist, an address never answered, the end of an application is not known,
/// or reports could not be delivered.
pub async fn run(
    options: Options,
    kafka: &KafkaOptions,
    topic: &str,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let rest = |address: &address::Address| Rest::new(address).map_err(WrongUsage);
    let addresses = options.url.iter().map(rest);
    let addresses = addresses.collect::<Result<Vec<Rest>, _>>()?;
    let history = options.history_url.as_ref().map(rest).transpose()?;
    // Several addresses of one server, such as paths of one proxy, share its limit.
    let mut limits: HashMap<String, Arc<PollLimit>> = HashMap::new();
    let mut server = |rest: Rest| {
        let limit = limits.entry(rest.instance());
        let limit = limit.or_insert_with_key(|instance| {
            Arc::new(PollLimit::new(instance.clone(), options.polls.into()))
        });
        let polls = limit.clone();
        Server { rest, polls }
    };
    let addresses: Vec<Server> = addresses.into_iter().map(&mut server).collect();
    let history = history.map(|rest| History {
        server: server(rest),
        complaints: Mutex::default(),
    });

    let Some(cluster) = kafka.cluster(&shutdown).await? else {
        return Ok(());
    };
    let make = NewTopic::with(topics::REPORTS_SETTINGS);
    cluster.require_topic(topic, "Write", Some(make)).await?;
    let Some(framing) = framing(kafka, topic, &health, &shutdown).await? else {
        return Ok(());
    };
    let written = Written::As(framing);
    let follower = Arc::new(Follower {
        delivery: Delivery::start(kafka, topic, QUEUE_REPORTS, written, Some(health))?,
        standings: Mutex::new(Standings::new(&options.app)),
        options,
        history,
        tasks: AtomicU64::new(0),
        unlisted_logged: Once::new(),
        shutdown,
    });

    let mut following = JoinSet::new();
    for address in addresses {
        let follower = follower.clone();
        following.spawn(async move {
            let shown = address.rest.shown();
            (shown, Address::new(follower, address).follow().await)
        });
    }
    let mut failed = Vec::new();
    while let Some(followed) = following.join_next().await {
        let (address, reached) = followed?;
        if let Err(fault) = reached {
            let failure = format!("{address} {}: {fault}", fault.never());
            tracing::warn!("{failure}");
            failed.push(failure);
        }
    }

    let stats = {
        let delivery = &follower.delivery;
        tokio::select! {
            closed = delivery.close(CLOSE_WITHIN) => closed,
            closed = async {
                follower.shutdown.cancelled().await;
                delivery.close(LAST_ACKS).await
            } => closed,
        }
    };
    let tasks = follower.tasks.load(Ordering::Relaxed);
    let delivered = stats
        .as_ref()
        .map_or_else(|e| e.stats.delivered, |s| s.delivered);
    output::account(&format!(
        "sent {} of {}\n",
        counted(delivered, "report"),
        counted(tasks, "task")
    ));
    stats?;
    if !follower.shutdown.is_cancelled() {
        failed.extend(follower.left_open());
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}

/// A Spark UI or History Server, and how many polls of it run at a time.
#[derive(Clone)]
struct Server {
    rest: Rest,
    polls: Arc<PollLimit>,
}

/// The History Server of `--history-url`.
struct History {
    server: Server,
    complaints: Mutex<Complaints>,
}

impl History {
    fn complaints(&self) -> MutexGuard<'_, Complaints> {
        self.complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct Follower {
    options: Options,
    history: Option<History>,
    delivery: Delivery,
    standings: Mutex<Standings>,
    /// Exec tasks reported so far.
    tasks: AtomicU64,
    /// That applications of `--app` are not listed is logged once.
    unlisted_logged: Once,
    shutdown: CancellationToken,
}

impl Follower {
    /// Warns of the applications of `--app` that no address has listed yet.
    fn warn_of_unlisted(&self) {
        let standings = self.standings();
        let awaited = standings.awaited();
        if !awaited.is_empty() {
            self.unlisted_logged.call_once(|| {
                tracing::warn!(
                    "no address lists {} of --app, waiting for it; /api/v1/applications of an address shows the ids",
                    awaited.join(", ")
                );
            });
        }
    }

    /// What was to be told and was not, a sentence each.
    fn left_open(&self) -> Vec<String> {
        let standings = self.standings();
        let mut open = Vec::new();
        let awaited = standings.awaited();
        if !awaited.is_empty() {
            open.push(format!("no address listed {}", awaited.join(", ")));
        }
        let given_up = standings.given_up();
        if let Some(first) = given_up.first() {
            let more = match given_up.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            let hint = match self.history {
                Some(_) => "",
                None => "; --history-url names a History Server that can tell",
            };
            open.push(format!("how {first}{more} ended is not known{hint}"));
        }
        open
    }

    fn standings(&self) -> MutexGuard<'_, Standings> {
        self.standings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
        if matches!(state, State::Completed | State::Replaced) {
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
}
