//! One application, in a task of its own: polled every interval until its end is reported or it is given up.
//! Its task owns it, so that no two polls of it run at once and its reports stay in order.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::answers::Application as Answer;
use super::application::{Application, Key, Poll};
use super::ask::{ask, by_fault, complain};
use super::follower::{Follower, Server};
use super::mapping::State;
use super::poll_limit::Share;
use super::rest::{Fault, Rest};

/// What the newest list of its address says of an application.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Listing {
    Listed(State),
    /// The list could not be read.
    Unreadable,
    /// It is not to be found there, for this reason.
    Absent(&'static str),
}

/// An application that is followed.
pub(super) struct Followed {
    follower: Arc<Follower>,
    server: Server,
    application: Application,
    /// What its last poll complained of, as it was logged.
    complaint: String,
    /// What the History Server's last response about it complained of.
    history_complaint: Option<String>,
    /// Since when nothing about it could be used.
    quiet_since: Option<Instant>,
    /// It was reported as unknown, and nothing was heard of it since.
    given_up: bool,
    /// Its last poll outlasted the interval.
    slow: bool,
    /// When the turn of its first poll came.
    first_polled: Option<Instant>,
}

/// How following an application came to its end.
pub(super) enum Ending {
    /// Its end was reported.
    Ended(Key),
    /// How it ended is not known; `again` if it was given up before, and Spark still told nothing.
    GivenUp {
        application: Box<Application>,
        again: bool,
    },
}

/// What an address told of an application.
#[derive(Clone, Copy, PartialEq)]
enum Told {
    Nothing,
    Alive,
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
            complaint: String::new(),
            history_complaint: None,
            quiet_since: None,
            given_up,
            slow: false,
            first_polled: None,
        }
    }

    /// Polls it every interval from its first turn on, and at once when the list says something else of it.
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
            if self.poll(listing).await == Told::Ended {
                break true;
            }
            // Those that are found together are polled one after the other; each keeps its place from then on.
            if is_first && let Some(began) = self.first_polled {
                ticks.reset_at(began + every);
            }
            let give_up_after = self.follower.options.give_up_after;
            let quiet = self.quiet_since.map(|since| since.elapsed());
            let gone = quiet.is_some_and(|quiet| self.given_up || quiet >= give_up_after);
            if gone {
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

    /// Polls it where it is listed, and asks the History Server for its end where that tells nothing.
    async fn poll(&mut self, listing: Listing) -> Told {
        let told = self.poll_address(listing).await;
        if told != Told::Nothing {
            self.quiet_since = None;
            return told;
        }
        self.quiet_since.get_or_insert_with(Instant::now);
        match self.poll_history().await {
            true => Told::Ended,
            false => Told::Nothing,
        }
    }

    async fn poll_address(&mut self, listing: Listing) -> Told {
        let (state, is_listed) = match listing {
            Listing::Listed(state) => (state, true),
            Listing::Unreadable => (State::Alive, false),
            Listing::Absent(_) => return Told::Nothing,
        };
        let runs = state == State::Alive && is_listed && !self.given_up;
        let share = match runs && !self.slow {
            true => Share::Running,
            false => Share::Other,
        };
        let Server { rest, polls } = self.server.clone();
        let interval = self.follower.options.interval;
        let poll = async {
            if !self.ask(&rest, state).await {
                return Told::Nothing;
            }
            if state != State::Alive {
                return Told::Ended;
            }
            // Where the list fails, the application's own answer tells whether it has ended.
            if !is_listed
                && let Ok(Some(state)) = ended(&rest, &self.application.key).await
                && self.ask(&rest, state).await
            {
                return Told::Ended;
            }
            Told::Alive
        };
        let polled = polls.run(share, interval, poll).await;
        self.slow = polled.slow;
        self.first_polled.get_or_insert(polled.began);
        polled.output
    }

    /// Asks the History Server for its end. Whether that was told and reported.
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

    /// Asks for its parts and reports them; its end only when its jobs were told. Whether they were.
    async fn ask(&mut self, rest: &Rest, state: State) -> bool {
        let (poll, faults) = ask(rest, &self.application).await;
        let told = poll.jobs.is_some();
        // Its server has gone, which says nothing of it; the list will say so too.
        let refused = faults.iter().all(|(_, fault)| *fault == Fault::Refused);
        if refused && !told {
            return false;
        }
        let whose = format!("application {}", self.application.key);
        if told && std::mem::take(&mut self.given_up) {
            tracing::info!("{whose}: {} tells of it again", rest.shown());
        }
        if !self.given_up {
            let complaint = (!faults.is_empty()).then(|| by_fault(&faults));
            complain(&whose, &mut self.complaint, complaint);
        }
        if told || (state == State::Alive && !self.given_up) {
            self.follower.report(&mut self.application, poll, state);
        }
        told
    }

    /// Reports what was last known of it, as unknown, unless that was done before.
    fn report_unknown(&mut self, listing: Listing) {
        if self.given_up {
            return;
        }
        let why = match listing {
            Listing::Absent(why) => why,
            Listing::Listed(State::Completed) => {
                "Spark says that it has ended, and does not tell its jobs"
            }
            _ => "nothing about it could be read",
        };
        tracing::warn!(
            "application {}: {why} for {:?}; how it ended, if it has, is not known",
            self.application.key,
            self.follower.options.give_up_after
        );
        self.follower
            .report(&mut self.application, Poll::default(), State::Gone);
    }
}

/// How an application has ended, as a server says of it alone; `None` if it has not.
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
