//! `producer trino`: reports on the queries of Trino and Presto through the REST API of their coordinators.
//!
//! ```text
//! /v1/query ─────▶ /v1/query/{id}, for the stages ─▶ Query::report (pure) ─▶ LiveReports
//! every 5 s        a task a query, as PollLimit allows
//! ```
//!
//! The list has everything but stages. How a query ends:
//!
//! | Seen | Reported |
//! | --- | --- |
//! | FINISHED or FAILED, in the list or by itself | once: the final status, as soon as its last counts are known |
//! | an unusable response about the query | what the list says, without stages |
//! | a list without it, and 410 about it; connections refused | nothing |
//! | nothing usable for `--give-up-after` | once: `Unknown`, with null parts |

mod answers;
mod coordinator;
mod mapping;
mod options;
mod query;
mod rights;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use service::exit::WrongUsage;
use service::http::Certificate;

use self::coordinator::{Coordinator, Run};
pub use self::options::Options;
use crate::polling::follow::{Follow, Settings};
use crate::polling::rest::{Access, Api, Clients};
use crate::polling::server::Servers;
use crate::session::{Session, Setup};

/// Gauge: queries that are followed.
pub(crate) const FOLLOWED: &str = "taskrunning_followed_queries";

const API: Api = Api {
    server: "a Trino or Presto coordinator",
    version: "/v1/query",
    root: &["v1", "query"],
    lists: "queries",
    log_in: "give user and password in TRINO_URL, a token by --token-file, or, if it asks for no password, a user by --user",
    trust: "give the file of its root certificate by --ca-file",
};

/// The user of the requests where neither a user nor a token is given.
const USER: &str = "producer";

/// Reports until every query has ended, with `--stay` until `setup.shutdown`. Prints `sent 42 reports of 4 tasks` when
/// all are acknowledged.
///
/// # Errors
/// If the topic does not exist, a coordinator never answered, it is not known how a query ended, or reports could not be
/// delivered.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
    let certificates = certificates(&options).map_err(WrongUsage)?;
    let mut clients = Clients::trusting(certificates);
    let mut servers = Servers::new(options.polls);
    let mut coordinators = Vec::new();
    for address in &options.url {
        let (_, credentials) = address.to_http().map_err(WrongUsage)?;
        let is_anonymous = credentials.is_none() && options.token_file.is_none();
        let user = options.user.clone();
        let user = user.or_else(|| is_anonymous.then(|| USER.to_owned()));
        let header = match options.presto {
            true => "X-Presto-User",
            false => "X-Trino-User",
        };
        let access = Access {
            header: user.clone().map(|user| (header, user)),
            token_file: options.token_file.clone().map(Arc::new),
        };
        let user = user.or(credentials.map(|(user, _)| user));
        let rest = clients.rest(address, &API, access).map_err(WrongUsage)?;
        coordinators.push((servers.add(rest), user));
    }

    let Some(session) = Session::open(&setup).await? else {
        return Ok(());
    };
    let settings = Settings {
        interval: options.interval,
        stay: options.stay,
        give_up_after: options.give_up_after,
        chosen: options.query.clone(),
        chosen_by: "--query",
    };
    let run = Arc::new(Run {
        options,
        reports: session.live()?,
    });
    let coordinators = coordinators.into_iter();
    let coordinators = coordinators.map(|(server, user)| Coordinator::new(&run, server, user));
    let follow = Arc::new(Follow::new(settings, setup.shutdown));
    let failures = follow.all(coordinators.collect(), "").await?;
    run.reports.conclude(failures).await
}

fn certificates(options: &Options) -> Result<Vec<Certificate>, String> {
    let Some(file) = &options.ca_file else {
        return Ok(Vec::new());
    };
    let wrong = |why: &str| format!("--ca-file {}: {why}", file.display());
    let pem = std::fs::read(file).map_err(|error| wrong(&error.to_string()))?;
    let certificates = Certificate::from_pem_bundle(&pem);
    let certificates = certificates.map_err(|error| wrong(&error.to_string()))?;
    match certificates.is_empty() {
        true => Err(wrong("holds no certificate in PEM")),
        false => Ok(certificates),
    }
}
