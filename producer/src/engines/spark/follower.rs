//! Shared by all addresses of a run: where reports go, which applications are followed, and how they ended.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use jiff::Timestamp;
use schemas::TaskStatus;
use tokio_util::sync::CancellationToken;

use super::application::{Application, Poll};
use super::mapping::State;
use super::options::Options;
use super::standings::Standings;
use crate::polling::complaints::Complaints;
use crate::polling::server::Server;
use crate::session::LiveReports;

/// The History Server of `--history-url`.
pub(super) struct History {
    pub(super) server: Server,
    pub(super) complaints: Mutex<Complaints>,
}

impl History {
    pub(super) fn complaints(&self) -> MutexGuard<'_, Complaints> {
        self.complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) struct Follower {
    pub(super) options: Options,
    pub(super) history: Option<History>,
    pub(super) reports: LiveReports,
    pub(super) standings: Mutex<Standings>,
    /// Logs only once that applications of `--app` are not listed.
    pub(super) unlisted_logged: Once,
    pub(super) shutdown: CancellationToken,
}

impl Follower {
    /// Warns of the applications of `--app` that no address has listed yet.
    pub(super) fn warn_of_unlisted(&self) {
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

    /// What remains unknown, a sentence each.
    pub(super) fn left_open(&self) -> Vec<String> {
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

    pub(super) fn standings(&self) -> MutexGuard<'_, Standings> {
        self.standings
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self, application: &mut Application, poll: Poll, state: State) {
        let reports = application.reports(poll, state, Timestamp::now().as_microsecond());
        let mut endings: BTreeMap<TaskStatus, usize> = BTreeMap::new();
        for info in &reports {
            *endings.entry(info.status).or_default() += 1;
            self.reports.report(info);
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
