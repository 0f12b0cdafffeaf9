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
mod poll;
mod run;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use service::address::Address;
use service::exit::WrongUsage;

use self::cluster::Cluster;
pub use self::options::Options;
use self::run::Run;
use crate::polling::follow::{Follow, Settings};
use crate::polling::rest::{Access, Api, Clients, TRUST_BY_ENVIRONMENT};
use crate::polling::server::{Server, Servers};
use crate::session::{Session, Setup};

/// Gauge: jobs that are followed.
pub(crate) const FOLLOWED: &str = "taskrunning_followed_jobs";

const LOG_IN: &str = "give user and password in FLINK_URL or FLINK_HISTORY_URL";

const API: Api = Api {
    server: "a Flink JobManager",
    version: "/v1",
    root: &["v1"],
    lists: "jobs",
    log_in: LOG_IN,
    trust: TRUST_BY_ENVIRONMENT,
};

/// It serves files by the same paths, without a version.
const HISTORY_API: Api = Api {
    server: "a Flink HistoryServer",
    version: "/v1",
    root: &[],
    lists: "jobs",
    log_in: LOG_IN,
    trust: TRUST_BY_ENVIRONMENT,
};

/// Reports until every job has ended, with `--stay` until `setup.shutdown`. Prints `sent 42 reports of 4 tasks` when
/// all are acknowledged.
///
/// # Errors
/// If the topic does not exist, a cluster never answered, it is not known how a job ended, or reports could not be
/// delivered.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
    let mut clients = Clients::default();
    let mut servers = Servers::new(options.polls);
    let mut server = |address: &Address, api: &'static Api| {
        let rest = clients.rest(address, api, Access::default());
        let rest = rest.map_err(WrongUsage)?;
        Ok::<_, WrongUsage>(servers.add(rest))
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
    let settings = Settings {
        interval: options.interval,
        stay: options.stay,
        give_up_after: options.give_up_after,
        chosen: options.job.clone(),
        chosen_by: "--job",
    };
    let hint = match history {
        Some(_) => "",
        None => "; --history-url names a HistoryServer that can tell",
    };
    let run = Arc::new(Run {
        options,
        history,
        history_complaints: Mutex::default(),
        reports: session.live()?,
    });
    let clusters = clusters.into_iter();
    let clusters = clusters.map(|server| Cluster::new(run.clone(), server));
    let follow = Arc::new(Follow::new(settings, setup.shutdown));
    let failures = follow.all(clusters.collect(), hint).await?;
    run.reports.conclude(failures).await
}
