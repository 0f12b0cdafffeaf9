//! One address: reads its list every interval and follows each application of the list in a task of its own.
//!
//! ```text
//! list, every interval ─▶ Listing ─▶ a task an application ─▶ PollLimit of its server ─▶ reports
//!                                    until it has ended           (first what runs)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use service::words::counted;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::application::{Application, Key};
use super::followed::{Ending, Followed, Listing};
use super::follower::Follower;
use super::list::{List, Newcomer};
use super::mapping::State;
use super::options::APPLICATIONS_MAX;
use crate::polling::complaints::Complaint;
use crate::polling::rest::Fault;
use crate::polling::server::Server;
use crate::polling::silence::Silence;

/// Pause before asking an address that refuses connections again, and after how many refusals it is gone if nothing is
/// followed there.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const REFUSALS: u32 = 3;
/// Gauge: applications that are followed, those whose end is being looked up included.
pub(crate) const FOLLOWED: &str = "taskrunning_followed_applications";

/// An address, and the applications that are followed there.
pub(super) struct Address {
    follower: Arc<Follower>,
    server: Server,
    /// Cancelled when the file of addresses no longer has it.
    removed: CancellationToken,
    /// The read of the list, and the applications.
    tasks: JoinSet<Finished>,
    followed: BTreeMap<Key, Entry>,
    /// The fault of its list.
    complaint: Complaint,
    too_many_logged: bool,
    /// It has given a list.
    reached: bool,
    /// An application was followed here.
    followed_any: bool,
    /// The last readable list had applications that cannot be followed here yet.
    more: bool,
    /// The last list had nothing new, was begun when nothing was followed, and no application was heard of since.
    settled: bool,
    settled_logged: bool,
}

/// An application that is followed, as its address sees it.
struct Entry {
    listing: watch::Sender<Listing>,
    /// It had been given up before.
    returning: bool,
}

enum Finished {
    List(Result<List, Fault>),
    Application(Ending),
}

impl Address {
    pub(super) fn new(follower: Arc<Follower>, server: Server, removed: CancellationToken) -> Self {
        Self {
            follower,
            server,
            removed,
            tasks: JoinSet::new(),
            followed: BTreeMap::new(),
            complaint: Complaint::default(),
            too_many_logged: false,
            reached: false,
            followed_any: false,
            more: false,
            settled: false,
            settled_logged: false,
        }
    }

    /// Follows the address until all its applications have ended, or until its list could not be read for
    /// `--give-up-after` and no application is followed; with `--stay` until the program is stopped. If the address is
    /// removed, only the ends of its applications are looked up.
    ///
    /// # Errors
    /// If it never gave a list.
    pub(super) async fn follow(mut self) -> Result<(), Fault> {
        let shutdown = self.follower.shutdown.clone();
        // Stopping is safe at any point: no report is left half done.
        let followed = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            followed = self.until_nothing_is_left() => followed,
        };
        // After this, no application reports any more.
        self.tasks.shutdown().await;
        followed
    }

    async fn until_nothing_is_left(&mut self) -> Result<(), Fault> {
        let options = self.follower.options.clone();
        let started = Instant::now();
        let mut silence = Silence::begun();
        let mut refusals = 0;
        // The fault of the last response, which says more than that there is no response now.
        let mut answered = None;
        let mut next_list = started;
        // When the list that is being read was begun, and whether nothing was followed then.
        let mut reading = None;
        let removed = self.removed.clone();
        let mut is_removed = false;
        loop {
            let finished = tokio::select! {
                Some(finished) = self.tasks.join_next() => finished.unwrap_or_else(panicked),
                () = removed.cancelled(), if !is_removed => {
                    is_removed = true;
                    tracing::info!("{} was removed", self.server.rest.shown());
                    self.set_all(Listing::Removed);
                    if self.followed.is_empty() {
                        return Ok(());
                    }
                    continue;
                }
                () = sleep_until(next_list), if reading.is_none() && !is_removed => {
                    let begun = Instant::now();
                    next_list = begun + options.interval;
                    reading = Some((begun, self.followed.values().all(|one| one.returning)));
                    self.read_list();
                    continue;
                }
            };
            let result = match finished {
                Finished::Application(ending) => {
                    self.settle(ending);
                    if self.is_done() || is_removed && self.followed.is_empty() {
                        return Ok(());
                    }
                    continue;
                }
                Finished::List(_) if is_removed => continue,
                Finished::List(result) => result,
            };
            let Some((begun, was_idle)) = reading.take() else {
                continue;
            };
            let fault = result.as_ref().err().map(ToString::to_string);
            self.complaint.change(&self.server.rest.shown(), fault);
            match result {
                Ok(list) => {
                    let was_reached = std::mem::replace(&mut self.reached, true);
                    silence.end();
                    refusals = 0;
                    let any = list.any;
                    let is_new = self.take_up(list);
                    let awaited = self.follower.standings().awaited().len();
                    // By its second list, every other address that answers has had one.
                    if awaited > 0 && was_reached {
                        self.follower.warn_of_unlisted();
                    }
                    let awaits = awaited > 0 && started.elapsed() < options.give_up_after;
                    // A History Server that has just started lists only the logs it has read so far. So all
                    // applications have ended only if a list after the last end has nothing new.
                    let idle = was_idle && !is_new && !self.more && !awaits;
                    // A list of running applications is empty when they have ended.
                    self.settled = idle && (any || awaited > 0 || self.followed_any);
                    if self.is_done() {
                        return Ok(());
                    }
                }
                Err(fault) => {
                    self.settled = false;
                    if matches!(fault, Fault::NotFound(_) | Fault::Unusable(_)) {
                        answered = Some(fault.clone());
                    }
                    let is_refused = fault == Fault::Refused;
                    self.list_failed(is_refused);
                    let is_empty = self.followed.is_empty();
                    if is_refused {
                        next_list = begun + LOOK_AGAIN.min(options.interval);
                        refusals += 1;
                        let gone = self.reached && refusals >= REFUSALS;
                        if gone && is_empty && !self.more && !options.stay {
                            tracing::info!("{} is gone: {fault}", self.server.rest.shown());
                            return Ok(());
                        }
                    }
                    silence.go_on();
                    if silence.has_lasted(options.give_up_after) && is_empty && !options.stay {
                        tracing::info!(
                            "{}: nothing is left to follow, and its list could not be read for {:?}: {fault}",
                            self.server.rest.shown(),
                            options.give_up_after
                        );
                        return match self.reached {
                            true => Ok(()),
                            false => Err(answered.unwrap_or(fault)),
                        };
                    }
                }
            }
        }
    }

    /// Starts reading the list.
    fn read_list(&mut self) {
        let runs = |one: &&Entry| *one.listing.borrow() == Listing::Listed(State::Alive);
        let running = self.followed.values().filter(runs).count();
        let others = self.followed.len() - running;
        let (follower, rest) = (self.follower.clone(), self.server.rest.clone());
        self.tasks.spawn(async move {
            Finished::List(List::read(&follower, &rest, running, others).await)
        });
    }

    /// Passes the list on to the followed applications and starts following new ones. Returns whether there are new ones,
    /// not counting those given up before.
    fn take_up(&mut self, list: List) -> bool {
        let shown = self.server.rest.shown();
        if list.running.beyond > 0 && !self.too_many_logged {
            self.too_many_logged = true;
            tracing::warn!(
                "{shown} lists {} more than the {APPLICATIONS_MAX} that are followed at a time; choose with --app",
                counted(list.running.beyond, "running application")
            );
        }
        self.more = list.running.beyond > 0 || list.ended.beyond > 0;
        let mut listed: BTreeMap<Key, State> = list.followed.into_iter().collect();
        for (key, one) in &self.followed {
            one.set(match listed.remove(key) {
                Some(state) => Listing::Listed(state),
                None if self.follower.options.running_only => Listing::NotRunning,
                None => Listing::Absent("its address does not list it"),
            });
        }
        // Another address follows these.
        self.more |= !listed.is_empty();

        let mut is_new = false;
        for newcomer in list.running.taken.into_iter().chain(list.ended.taken) {
            is_new |= self.start(newcomer, false);
        }
        for newcomer in list.returning.taken {
            self.start(newcomer, true);
        }
        is_new
    }

    /// Starts following an application, unless another address does already. Returns whether it does.
    fn start(&mut self, newcomer: Newcomer, returning: bool) -> bool {
        let Newcomer { key, user, state } = newcomer;
        let Some(kept) = self.follower.standings().take_up(&key) else {
            self.more = true;
            return false;
        };
        self.followed_any = true;
        let rest = &self.server.rest;
        if !returning {
            self.settled_logged = false;
            tracing::info!("{}: following application {key}", rest.shown());
        }
        let application = match kept {
            Some(kept) => *kept,
            None => Application::new(key.clone(), &user, &rest.instance()),
        };
        let (listing, listings) = watch::channel(Listing::Listed(state));
        self.followed.insert(key, Entry { listing, returning });
        metrics::gauge!(FOLLOWED).increment(1);
        let (follower, server) = (self.follower.clone(), self.server.clone());
        let followed = Followed::new(follower, server, application, returning);
        self.tasks
            .spawn(async move { Finished::Application(followed.follow(listings).await) });
        true
    }

    fn list_failed(&self, refused: bool) {
        self.set_all(match refused {
            true => Listing::Absent("nobody listens at its address"),
            // The list may fail for a reason of its own: go on polling.
            false => Listing::Unreadable,
        });
    }

    fn set_all(&self, listing: Listing) {
        for one in self.followed.values() {
            one.set(listing);
        }
    }

    /// Records how an application left.
    fn settle(&mut self, ending: Ending) {
        metrics::gauge!(FOLLOWED).decrement(1);
        match ending {
            Ending::Ended(key) => {
                self.followed.remove(&key);
                self.follower.standings().end(key);
                self.settled = false;
            }
            Ending::GivenUp { application, again } => {
                self.followed.remove(&application.key);
                self.follower.standings().give_up(*application);
                self.settled &= again;
            }
        }
    }

    /// Whether nothing is left to follow and nothing new is awaited.
    fn is_done(&mut self) -> bool {
        if !self.settled || !self.followed.is_empty() {
            return false;
        }
        let stay = self.follower.options.stay;
        if !std::mem::replace(&mut self.settled_logged, true) {
            let and = match stay {
                true => "; waiting for new applications",
                false => "",
            };
            let shown = self.server.rest.shown();
            tracing::info!("{shown}: nothing is left to follow{and}");
        }
        !stay
    }
}

impl Entry {
    /// Wakes the application's task only if the listing has changed.
    fn set(&self, listing: Listing) {
        self.listing
            .send_if_modified(|before| std::mem::replace(before, listing) != listing);
    }
}

/// Continues a task's panic here. No task is cancelled before the program ends.
fn panicked(error: JoinError) -> Finished {
    match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(cancelled) => panic!("{cancelled}"),
    }
}
