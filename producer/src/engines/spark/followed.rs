//! One application, polled every interval until its end is reported or it is given up. A task of its own owns it, so that
//! no two polls of it run at once and its reports stay in order.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::answers::Application as Answer;
use super::application::{Application, Key, Poll};
use super::ask::ask;
use super::follower::Follower;
use super::mapping::State;
use crate::polling::complaints::{Complaint, by_fault};
use crate::polling::poll_limit::Share;
use crate::polling::rest::{Fault, Rest};
use crate::polling::server::Server;
use crate::polling::silence::Silence;

/// What the newest list of its address says of an application.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Listing {
    Listed(State),
    /// The list could not be read.
    Unreadable,
    /// It lists only running applications, and not this one.
    NotRunning,
    /// It is not there, for this reason.
    Absent(&'static str),
    /// Its address was removed from the file of addresses.
    Removed,
}

/// An application that is followed.
pub(super) struct Followed {
    follower: Arc<Follower>,
    server: Server,
    application: Application,
    /// The fault of its last poll.
    complaint: Complaint,
    /// The fault of the History Server's last response about it.
    history_complaint: Option<String>,
    silence: Silence,
    /// It was reported as unknown, and no poll has succeeded since.
    given_up: bool,
    /// Its last poll took longer than the interval.
    slow: bool,
    /// When its first poll began.
    first_polled: Option<Instant>,
}

/// How following an application ended.
pub(super) enum Ending {
    /// Its end was reported.
    Ended(Key),
    /// It is not known how it ended. `again`: it was given up before, and Spark still says nothing.
    GivenUp {
        application: Box<Application>,
        again: bool,
    },
}

/// What a poll learnt of an application.
#[derive(Clone, Copy, PartialEq)]
enum Outcome {
    Nothing,
    Alive,
    /// Its end was reported.
    Ended,
}

impl Followed {
    pub(super) fn new(
        follower: Arc<Follower>,
        server: Server,
        application: Application,
        given_up: bool,
    ) -> Self {
        Self {
            follower,
            server,
            application,
            complaint: Complaint::default(),
            history_complaint: None,
            silence: Silence::default(),
            given_up,
            slow: false,
            first_polled: None,
        }
    }

    /// Polls it every interval from its first poll on, and at once when its listing changes.
    pub(super) async fn follow(mut self, mut listing: watch::Receiver<Listing>) -> Ending {
        let every = self.follower.options.interval;
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let ended = loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = listing.changed() => ticks.reset(),
            }
            let is_first = self.first_polled.is_none();
            let listing = *listing.borrow_and_update();
            if self.poll(listing).await == Outcome::Ended {
                break true;
            }
            // Applications found together are polled one after the other; each keeps its place from then on.
            if is_first && let Some(began) = self.first_polled {
                ticks.reset_at(began + every);
            }
            let give_up_after = self.follower.options.give_up_after;
            let is_silent = self.silence.has_lasted(Duration::ZERO);
            // Then nobody is left to ask.
            let is_removed = listing == Listing::Removed && self.follower.history.is_none();
            let is_over = self.given_up || is_removed;
            if is_silent && is_over || self.silence.has_lasted(give_up_after) {
                self.report_unknown(listing);
                break false;
            }
        };
        if let Some(history) = &self.follower.history {
            history.complaints().end(&mut self.history_complaint);
        }
        if ended {
            return Ending::Ended(self.application.key);
        }
        Ending::GivenUp {
            application: Box::new(self.application),
            again: self.given_up,
        }
    }

    /// Polls its address and, if that yields nothing, asks the History Server for its end.
    async fn poll(&mut self, listing: Listing) -> Outcome {
        let outcome = self.poll_address(listing).await;
        if outcome != Outcome::Nothing {
            self.silence.end();
            return outcome;
        }
        self.silence.go_on();
        match self.poll_history().await {
            true => Outcome::Ended,
            false => Outcome::Nothing,
        }
    }

    async fn poll_address(&mut self, listing: Listing) -> Outcome {
        let (state, is_listed) = match listing {
            Listing::Listed(state) => (state, true),
            Listing::Unreadable | Listing::NotRunning => (State::Alive, false),
            Listing::Absent(_) | Listing::Removed => return Outcome::Nothing,
        };
        let runs = state == State::Alive && is_listed && !self.given_up;
        let share = match runs && !self.slow {
            true => Share::Running,
            false => Share::Other,
        };
        let Server { rest, polls } = self.server.clone();
        let interval = self.follower.options.interval;
        let poll = async {
            // It has probably ended.
            if listing == Listing::NotRunning {
                match ended(&rest, &self.application.key).await {
                    Ok(None) => {}
                    Ok(Some(state)) if self.ask(&rest, state).await => return Outcome::Ended,
                    _ => return Outcome::Nothing,
                }
            }
            if !self.ask(&rest, state).await {
                return Outcome::Nothing;
            }
            if state != State::Alive {
                return Outcome::Ended;
            }
            // While the list fails, the application's own response shows whether it has ended.
            if !is_listed
                && let Ok(Some(state)) = ended(&rest, &self.application.key).await
                && self.ask(&rest, state).await
            {
                return Outcome::Ended;
            }
            Outcome::Alive
        };
        let polled = polls.run(share, interval, poll).await;
        self.slow = polled.slow;
        self.first_polled.get_or_insert(polled.began);
        polled.output
    }

    /// Asks the History Server for its end. Returns whether the end was found and reported.
    async fn poll_history(&mut self) -> bool {
        let follower = self.follower.clone();
        let Some(history) = &follower.history else {
            return false;
        };
        let Server { rest, polls } = &history.server;
        let poll = async {
            let (state, fault) = match ended(rest, &self.application.key).await {
                Ok(state) => (state, None),
                // It looks for new logs every 10 s.
                Err(Fault::NotFound(_)) => (None, None),
                Err(fault) => (None, Some(fault.to_string())),
            };
            let complaint = &mut self.history_complaint;
            history.complaints().change(&rest.shown(), complaint, fault);
            match state {
                Some(state) => self.ask(rest, state).await,
                None => false,
            }
        };
        let interval = follower.options.interval;
        polls.run(Share::Other, interval, poll).await.output
    }

    /// Requests its parts and reports them; its end only if its jobs could be read. Returns whether they could.
    async fn ask(&mut self, rest: &Rest, state: State) -> bool {
        let (poll, faults) = ask(rest, &self.application).await;
        let jobs_known = poll.jobs.is_some();
        // Its server has gone, which says nothing about it; the list will show that too.
        let refused = faults.iter().all(|(_, fault)| *fault == Fault::Refused);
        if refused && !jobs_known {
            return false;
        }
        let whose = format!("application {}", self.application.key);
        if jobs_known && std::mem::take(&mut self.given_up) {
            tracing::info!("{whose}: {} tells of it again", rest.shown());
        }
        if !self.given_up {
            let complaint = (!faults.is_empty()).then(|| by_fault(&faults));
            self.complaint.change(&whose, complaint);
        }
        if jobs_known || (state == State::Alive && !self.given_up) {
            self.follower.report(&mut self.application, poll, state);
        }
        jobs_known
    }

    /// Reports its last known parts with the status unknown, once.
    fn report_unknown(&mut self, listing: Listing) {
        if self.given_up {
            return;
        }
        let give_up_after = self.follower.options.give_up_after;
        let why = match listing {
            Listing::Removed => "its address was removed".to_owned(),
            Listing::Absent(why) => format!("{why} for {give_up_after:?}"),
            Listing::Listed(State::Completed) => format!(
                "Spark says that it has ended, and does not tell its jobs for {give_up_after:?}"
            ),
            _ => format!("nothing about it could be read for {give_up_after:?}"),
        };
        tracing::warn!(
            "application {}: {why}; how it ended, if it has, is not known",
            self.application.key
        );
        self.follower
            .report(&mut self.application, Poll::default(), State::Gone);
    }
}

/// How an application has ended, by its own response; `None` if it has not.
async fn ended(rest: &Rest, key: &Key) -> Result<Option<State>, Fault> {
    let answer = rest.get::<Answer>(&[&key.id]).await?;
    let mut attempts = answer.attempts.iter().enumerate();
    let attempt = attempts.find(|(_, attempt)| attempt.attempt_id == key.attempt);
    Ok(match attempt {
        Some((_, attempt)) if attempt.completed => Some(State::Completed),
        Some((newer, _)) if newer > 0 => Some(State::Replaced),
        _ => None,
    })
}
