//! `producer flink`: reports on Flink jobs through the REST API of their JobManager.
//!
//! ```text
//! /jobs/overview ─▶ /jobs/{id}, checkpoints, metrics ─▶ Job::report (pure) ─▶ LiveReports
//!    every 10 s      a task a job, as PollLimit allows;
//! /taskmanagers      each part fails alone
//! ```
//!
//! How a job ends:
//!
//! | Seen | Reported |
//! | --- | --- |
//! | FINISHED, FAILED or CANCELED, by the JobManager or the HistoryServer | once: the final status |
//! | an unusable response | what the overview says, with null parts |
//! | connections refused, or an overview without the job | nothing; the HistoryServer is asked |
//! | nothing usable for `--give-up-after` | once: `Unknown`, with null parts |

mod answers;
mod ask;
mod cluster;
mod job;
mod mapping;
mod options;
mod run;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use service::address::Address;
use service::exit::WrongUsage;
use tokio::task::JoinSet;

use self::cluster::Cluster;
pub use self::options::Options;
use self::run::{Run, Server};
use crate::polling::poll_limit::PollLimit;
use crate::polling::rest::{Api, Rest};
use crate::session::{Session, Setup};

/// Gauge: jobs that are followed.
pub(crate) const FOLLOWED: &str = "taskrunning_followed_jobs";

const API: Api = Api {
    server: "a Flink JobManager",
    version: "/v1",
    root: &["v1"],
    lists: "jobs",
};

/// It serves files by the same paths, without a version.
const HISTORY_API: Api = Api {
    server: "a Flink HistoryServer",
    version: "/v1",
    root: &[],
    lists: "jobs",
};

/// Reports until every job has ended, with `--stay` until `setup.shutdown`. Prints `sent 42 reports of 4 tasks` when
/// all are acknowledged.
///
/// # Errors
/// If the topic does not exist, a cluster never answered, it is not known how a job ended, or reports could not be
/// delivered.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
    // Several addresses of one server, such as paths of one proxy, share its limit.
    let mut limits: HashMap<String, Arc<PollLimit>> = HashMap::new();
    let mut server = |address: &Address, api: &'static Api| {
        let rest = Rest::new(address, api).map_err(WrongUsage)?;
        let limit = limits.entry(rest.instance());
        let limit = limit.or_insert_with_key(|instance| {
            let polls = options.polls.into();
            Arc::new(PollLimit::new(instance.clone(), api.lists, polls))
        });
        let polls = limit.clone();
        Ok::<_, WrongUsage>(Server { rest, polls })
    };
    let clusters = options.url.iter().map(|address| server(address, &API));
    let clusters = clusters.collect::<Result<Vec<Server>, _>>()?;
    let history = options.history_url.as_ref();
    let history = history
        .map(|address| server(address, &HISTORY_API))
        .transpose()?;

    let Some(session) = Session::open(&setup).await? else {
        return Ok(());
    };
    let run = Arc::new(Run {
        awaited: Mutex::new(options.job.iter().cloned().collect()),
        options,
        history,
        history_complaints: Mutex::default(),
        reports: session.live()?,
        shutdown: setup.shutdown,
    });
    let mut following = JoinSet::new();
    for cluster in clusters {
        let run = run.clone();
        following.spawn(async move {
            let shown = cluster.rest.shown();
            (shown, Cluster::new(run, cluster).follow().await)
        });
    }
    let mut failures = Vec::new();
    let mut given_up = Vec::new();
    while let Some(followed) = following.join_next().await {
        match followed? {
            (_, Ok(open)) => given_up.extend(open),
            (cluster, Err(fault)) => {
                let failure = format!("{cluster} {}: {fault}", fault.never(&API));
                tracing::warn!("{failure}");
                failures.push(failure);
            }
        }
    }
    if !run.shutdown.is_cancelled() {
        failures.extend(left_open(&run, &given_up));
    }
    run.reports.conclude(failures).await
}

/// What the reports leave open, a sentence each.
fn left_open(run: &Run, given_up: &[String]) -> Vec<String> {
    let mut open = Vec::new();
    let awaited: Vec<String> = run.awaited().iter().cloned().collect();
    if !awaited.is_empty() {
        open.push(format!("no cluster listed {}", awaited.join(", ")));
    }
    if let Some(first) = given_up.first() {
        let more = match given_up.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        let hint = match run.history {
            Some(_) => "",
            None => "; --history-url names a HistoryServer that can tell",
        };
        open.push(format!("how {first}{more} ended is not known{hint}"));
    }
    open
}
