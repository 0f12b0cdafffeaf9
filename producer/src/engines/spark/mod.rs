//! `producer spark`: reports on Spark applications through the REST API of a Spark UI or a History Server.
//!
//! ```text
//! GET applications ─▶ GET jobs, stages, allexecutors, environment ─▶ Application::reports (pure) ─▶ Delivery
//!     every 5 s          each part fails alone and is null              changes, and its end
//!                        one task per application, as PollLimit allows
//! ```
//!
//! An application that cannot be found has not ended:
//!
//! | Seen | Means | Reported |
//! | --- | --- | --- |
//! | `completed: true`, here or by the History Server | ended | once: the final status, from its jobs; as long as `/jobs` does not answer, nothing |
//! | a newer attempt beside one that has not completed | that attempt ended | once: `Failed` if a job failed, else `Unknown` |
//! | a page, a redirect, 404, 503, half an answer | nothing | null parts, at the next poll again |
//! | connections refused, or a whole list without it | nothing | nothing; the History Server is asked |
//! | nothing that can be used for `--give-up-after` | not known | once: `Unknown`, with what was last known; from then on only if its jobs can be read again |

mod addresses;
pub(crate) mod answers;
pub(crate) mod application;
mod ask;
mod follow;
mod followed;
mod follower;
mod list;
pub(crate) mod mapping;
mod options;
mod sql;
mod standings;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Once};

use service::address;
use service::exit::WrongUsage;

use self::addresses::{Addresses, UrlsFile};
pub(crate) use self::follow::FOLLOWED;
use self::follower::{Follower, History};
pub use self::options::Options;
use self::standings::Standings;
use crate::polling::rest::{Access, Api, Clients, Rest, TRUST_BY_ENVIRONMENT};
use crate::polling::server::Servers;
use crate::session::{Session, Setup};

/// Of Spark UIs and History Servers.
const API: Api = Api {
    server: "a Spark UI",
    version: "/api/v1",
    root: &["api", "v1", "applications"],
    lists: "applications",
    log_in: "give user and password in SPARK_URL or SPARK_HISTORY_URL",
    trust: TRUST_BY_ENVIRONMENT,
};

/// Reports until every application has ended, with `--stay` until `setup.shutdown`. Prints `sent 42 reports of 4 tasks` when
/// all are acknowledged.
///
/// # Errors
/// If the topic does not exist, an address never answered, the end of an application is not known, or reports could not be
/// delivered.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
    let mut clients = Clients::default();
    let mut rest = |address: &address::Address| {
        let rest = clients.rest(address, &API, Access::default());
        rest.map_err(WrongUsage)
    };
    let fixed = options.url.iter().map(&mut rest);
    let fixed = fixed.collect::<Result<Vec<Rest>, _>>()?;
    let file = options.urls_file.as_deref().map(UrlsFile::open);
    let file = file.transpose()?;
    let mut servers = Servers::new(options.polls);
    let history = options.history_url.as_ref().map(rest).transpose()?;
    let history = history.map(|rest| History {
        server: servers.add(rest),
        complaints: Mutex::default(),
    });

    let Some(session) = Session::open(&setup).await? else {
        return Ok(());
    };
    let follower = Arc::new(Follower {
        reports: session.live()?,
        standings: Mutex::new(Standings::new(&options.app)),
        options,
        history,
        unlisted_logged: Once::new(),
        shutdown: setup.shutdown,
    });

    let addresses = Addresses::new(follower.clone(), clients, servers, fixed, file);
    let mut failed = addresses.follow().await?;
    if !follower.shutdown.is_cancelled() {
        failed.extend(follower.left_open());
    }
    follower.reports.conclude(failed).await
}
