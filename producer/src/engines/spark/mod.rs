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
mod follower;
mod list;
mod mapping;
mod options;
mod poll_limit;
mod rest;
mod standings;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Once};

use service::address;
use service::exit::WrongUsage;
use tokio::task::JoinSet;

use self::follow::Address;
pub(crate) use self::follow::FOLLOWED;
use self::follower::{Follower, History, Server};
pub use self::options::Options;
use self::poll_limit::PollLimit;
pub(crate) use self::poll_limit::{POLL_DURATION, POLLS_LATE};
use self::rest::Rest;
use self::standings::Standings;
use crate::session::{Session, Setup};

/// Reports until every application has ended, unless it is to stay, or until `shutdown` is cancelled. Prints `sent 42 reports
/// of 4 tasks` when all are acknowledged.
///
/// # Errors
/// If the topic does not exist, an address never answered, the end of an application is not known,
/// or reports could not be delivered.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
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

    if !follower.shutdown.is_cancelled() {
        failed.extend(follower.left_open());
    }
    follower.reports.conclude(failed).await
}
