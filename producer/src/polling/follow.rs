//! Follows what servers list, such as jobs or queries, until it has ended.
//!
//! ```text
//! list, every interval ─▶ a poll of each thing that is not being polled ─▶ reports
//! surroundings, beside it
//! ```

mod cluster;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::cluster::Cluster;
use super::rest::Fault;
use super::server::Server;

/// Running things of one server that are followed at a time, and as many whose end is still to be reported.
pub(crate) const FOLLOWED_MAX: usize = 1_000;

/// One server of an engine.
pub(crate) trait Engine: Send + Sync + Sized + 'static {
    type Thing: Thing;
    type Line: Line;
    /// What a list tells of the server as a whole.
    type Summary: Clone + Send + 'static;

    /// A thing in logs.
    const NOUN: &'static str;
    /// Gauge: things that are followed.
    const FOLLOWED: &'static str;
    /// How long the end of a thing is remembered after the server last listed it.
    const FORGET_AFTER: Duration;

    fn server(&self) -> &Server;

    /// Reads the list, and passes each line on.
    ///
    /// # Errors
    /// If it cannot be read to its end.
    fn list(
        &self,
        each: &mut (dyn FnMut(Self::Line) + Send),
    ) -> impl Future<Output = Result<Self::Summary, Fault>> + Send;

    /// Reads what the polls need to know of the server beside its list. Runs beside the list and the polls, and delays
    /// neither.
    fn look_around(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// A thing that is listed for the first time.
    fn thing(&self, line: &Self::Line) -> Self::Thing;

    /// Polls a thing and reports it.
    fn poll(
        &self,
        thing: Box<Self::Thing>,
        context: Context<Self>,
    ) -> impl Future<Output = Polled<Self::Thing>> + Send;
}

/// Something that is followed.
pub(crate) trait Thing: Send + 'static {
    fn id(&self) -> &str;

    /// Tells apart several runs under one id.
    fn run(&self) -> Option<i64> {
        None
    }
}

/// A thing as a list has it.
pub(crate) trait Line: Send + 'static {
    fn id(&self) -> &str;

    /// As [`Thing::run`].
    fn run(&self) -> Option<i64> {
        None
    }

    fn has_ended(&self) -> bool;
}

/// What the server says of a thing when it is polled.
pub(crate) struct Context<E: Engine> {
    /// Its line in the newest list.
    pub(crate) listed: Option<E::Line>,
    /// Nobody listens at the server's address.
    pub(crate) is_refused: bool,
    /// `None` if there is no list.
    pub(crate) summary: Option<E::Summary>,
}

/// How a poll leaves a thing.
pub(crate) enum Polled<T> {
    /// It has not ended, as far as is known.
    Open(Box<T>),
    /// Its end was reported.
    Ended(Box<T>),
    /// It was reported as unknown.
    GivenUp(Box<T>),
}

/// What to follow, and how; shared by all servers of a run.
pub(crate) struct Follow {
    pub(crate) interval: Duration,
    pub(crate) stay: bool,
    pub(crate) give_up_after: Duration,
    /// Ids of the chosen things; empty: all.
    pub(crate) chosen: Vec<String>,
    /// The option that chooses.
    pub(crate) chosen_by: &'static str,
    /// Chosen things that no server has listed so far.
    awaited: Mutex<BTreeSet<String>>,
    pub(crate) shutdown: CancellationToken,
}

/// The options that every engine has.
pub(crate) struct Settings {
    pub(crate) interval: Duration,
    pub(crate) stay: bool,
    pub(crate) give_up_after: Duration,
    pub(crate) chosen: Vec<String>,
    pub(crate) chosen_by: &'static str,
}

impl Follow {
    pub(crate) fn new(settings: Settings, shutdown: CancellationToken) -> Self {
        let Settings {
            interval,
            stay,
            give_up_after,
            chosen,
            chosen_by,
        } = settings;
        Self {
            interval,
            stay,
            give_up_after,
            awaited: Mutex::new(chosen.iter().cloned().collect()),
            chosen,
            chosen_by,
            shutdown,
        }
    }

    fn is_chosen(&self, id: &str) -> bool {
        self.chosen.is_empty() || self.chosen.iter().any(|chosen| chosen == id)
    }

    fn awaited(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows each server until all its things have ended, with `stay` until `shutdown`. Returns what remains unknown, a
    /// sentence each. `hint` is added where it is not known how a thing ended.
    ///
    /// # Errors
    /// If a task was cancelled.
    pub(crate) async fn all<E: Engine>(
        self: &Arc<Self>,
        engines: Vec<E>,
        hint: &str,
    ) -> anyhow::Result<Vec<String>> {
        let mut following = JoinSet::new();
        for engine in engines {
            let follow = self.clone();
            let rest = engine.server().rest.clone();
            following.spawn(async move { (rest, Cluster::new(follow, engine).follow().await) });
        }
        let mut failures = Vec::new();
        let mut given_up = Vec::new();
        while let Some(followed) = following.join_next().await {
            match followed? {
                (_, Ok(open)) => given_up.extend(open),
                (rest, Err(fault)) => {
                    let failure = format!("{} {}: {fault}", rest.shown(), fault.never(rest.api()));
                    tracing::warn!("{failure}");
                    failures.push(failure);
                }
            }
        }
        if !self.shutdown.is_cancelled() {
            failures.extend(self.left_open(&given_up, hint));
        }
        Ok(failures)
    }

    fn left_open(&self, given_up: &[String], hint: &str) -> Vec<String> {
        let mut open = Vec::new();
        let awaited: Vec<String> = self.awaited().iter().cloned().collect();
        if !awaited.is_empty() {
            open.push(format!("no address listed {}", awaited.join(", ")));
        }
        if let Some(first) = given_up.first() {
            let more = match given_up.len() {
                1 => String::new(),
                n => format!(" and {} more", n - 1),
            };
            open.push(format!("how {first}{more} ended is not known{hint}"));
        }
        open
    }
}
