//! One address: which applications it lists, and what becomes of each.

use std::collections::BTreeMap;

use tokio::time::{Instant, sleep_until};

use super::answers::{Application as Answer, Attempt};
use super::application::{Application, Key, Poll};
use super::ask::{ask, by_fault, complain};
use super::mapping::State;
use super::rest::{Fault, Rest};
use super::standings::Listed;
use super::{APPLICATIONS_MAX, Follower, LOOK_AGAIN, REFUSALS};

/// An address, and the applications that are followed there.
pub(super) struct Address<'f> {
    follower: &'f Follower,
    rest: Rest,
    followed: BTreeMap<Key, Followed>,
    /// What was logged last of the list, and of the History Server of `--history-url`.
    complaint: String,
    history_complaint: String,
    too_many_logged: bool,
}

/// An application that is followed.
struct Followed {
    application: Application,
    /// As the newest list has it.
    listed: Option<State>,
    /// What its last poll complained of, as it was logged.
    complaint: String,
    /// Since when nothing about it could be used.
    quiet_since: Option<Instant>,
    /// It was reported as unknown, and nothing was heard of it since.
    given_up: bool,
}

/// What a list holds besides the applications that are followed at its address already.
struct List {
    any: bool,
    /// Some are followed at another address.
    elsewhere: bool,
    running: Newcomers,
    ended: Newcomers,
    /// Given up before. Those of which Spark still tells nothing take no room from others.
    returning: Newcomers,
}

/// Applications that can be followed from now on, as far as there is room.
struct Newcomers {
    taken: Vec<(Key, String, State)>,
    room: usize,
    beyond: usize,
}

impl Newcomers {
    fn new(room: usize) -> Self {
        Self {
            taken: Vec::new(),
            room,
            beyond: 0,
        }
    }

    fn push(&mut self, key: Key, attempt: &Attempt, state: State) {
        if self.taken.len() < self.room {
            self.taken.push((key, attempt.spark_user.clone(), state));
        } else {
            self.beyond += 1;
        }
    }
}

/// What has become of an application in a poll.
enum Outcome {
    Followed,
    Ended,
    GivenUp,
}

impl<'f> Address<'f> {
    pub(super) fn new(follower: &'f Follower, rest: Rest) -> Self {
        Self {
            follower,
            rest,
            followed: BTreeMap::new(),
            complaint: String::new(),
            history_complaint: String::new(),
            too_many_logged: false,
        }
    }

    /// Follows the address until all its applications have ended, or its list could not be read for
    /// `--give-up-after` and nothing is told of any application.
    ///
    /// # Errors
    /// If it never answered.
    pub(super) async fn follow(mut self) -> Result<(), Fault> {
        let options = &self.follower.options;
        let started = Instant::now();
        let mut reached = false;
        let mut silent_since = started;
        let mut refusals = 0;
        // The last list had applications that will be followed here later, if at all.
        let mut more = false;
        loop {
            let begun = Instant::now();
            let mut next = begun + options.interval;
            let listed = self.list().await;
            let fault = listed.as_ref().err().map(ToString::to_string);
            complain(&self.rest.shown(), &mut self.complaint, fault);
            match listed {
                Ok(list) => {
                    reached = true;
                    silent_since = begun;
                    refusals = 0;
                    let any = list.any;
                    more = list.elsewhere || list.running.beyond > 0 || list.ended.beyond > 0;
                    self.take_up(list);
                    // A History Server that has just started lists what it has read so far: all have
                    // ended only if a list after the last end has nothing new.
                    let busy = more || self.followed.values().any(|one| !one.given_up);
                    self.poll(Some("its address does not list it")).await;
                    let awaited = self.follower.standings().awaited().len();
                    let awaits = awaited > 0 && started.elapsed() < options.give_up_after;
                    if !busy && !awaits && (any || awaited > 0) {
                        tracing::info!("{}: nothing is left to follow", self.rest.shown());
                        return Ok(());
                    }
                }
                Err(fault) => {
                    let why_unlisted = if fault == Fault::Refused {
                        refusals += 1;
                        let idle = !more && self.followed.is_empty();
                        if reached && idle && refusals >= REFUSALS {
                            tracing::info!("{} is gone: {fault}", self.rest.shown());
                            return Ok(());
                        }
                        next = begun + LOOK_AGAIN.min(options.interval);
                        Some("nobody listens at its address")
                    } else {
                        None
                    };
                    // The list may fail for a reason of its own: what is told of goes on.
                    self.poll(why_unlisted).await;
                    let silent = silent_since.elapsed() >= options.give_up_after;
                    if silent && self.followed.is_empty() {
                        tracing::info!(
                            "{}: nothing is left to follow, and its list could not be read for {:?}: {fault}",
                            self.rest.shown(),
                            options.give_up_after
                        );
                        return if reached { Ok(()) } else { Err(fault) };
                    }
                }
            }
            sleep_until(next).await;
        }
    }

    /// Reads the list, of whatever length, and notes what it has of those that are followed.
    ///
    /// # Errors
    /// If the list cannot be read to its end: nothing can be said then of what it does not have.
    async fn list(&mut self) -> Result<List, Fault> {
        let Self {
            follower, followed, ..
        } = self;
        let alive = |one: &&Followed| one.listed == Some(State::Alive);
        let running = followed.values().filter(alive).count();
        let ended = followed.len() - running;
        let mut list = List {
            any: false,
            elsewhere: false,
            running: Newcomers::new(APPLICATIONS_MAX.saturating_sub(running)),
            ended: Newcomers::new(APPLICATIONS_MAX.saturating_sub(ended)),
            returning: Newcomers::new(APPLICATIONS_MAX),
        };
        for one in followed.values_mut() {
            one.listed = None;
        }
        let chosen = &follower.options.app;
        self.rest
            .each(|answer: Answer| {
                let is_chosen = chosen.is_empty() || chosen.contains(&answer.id);
                if !is_chosen || answer.id.trim().is_empty() {
                    return;
                }
                for (newer, attempt) in answer.attempts.iter().enumerate() {
                    list.any = true;
                    let key = Key::new(&answer.id, attempt);
                    let state = match attempt.completed {
                        true => State::Completed,
                        // Spark begins an attempt when the one before has ended; the event log of
                        // one that crashed stays as it was.
                        false if newer > 0 => State::Replaced,
                        false => State::Alive,
                    };
                    let standing = follower.standings().listed(&key);
                    if let Some(one) = followed.get_mut(&key) {
                        one.listed = Some(state);
                        continue;
                    }
                    match standing {
                        Listed::Ended => {}
                        Listed::Elsewhere => list.elsewhere = true,
                        Listed::GivenUp => list.returning.push(key, attempt, state),
                        Listed::New if state == State::Alive => {
                            list.running.push(key, attempt, state);
                        }
                        Listed::New => list.ended.push(key, attempt, state),
                    }
                }
            })
            .await?;
        follower.standings().forget();
        Ok(list)
    }

    /// Begins to follow what is new in the list.
    fn take_up(&mut self, list: List) {
        let shown = self.rest.shown();
        if list.running.beyond > 0 && !self.too_many_logged {
            self.too_many_logged = true;
            tracing::warn!(
                "{shown} lists {} running applications more than the {APPLICATIONS_MAX} that are followed at a time; \
                 choose with --app",
                list.running.beyond
            );
        }
        let fresh = list.running.taken.into_iter().chain(list.ended.taken);
        let fresh = fresh.map(|newcomer| (newcomer, false));
        let returning = list.returning.taken.into_iter();
        let returning = returning.map(|newcomer| (newcomer, true));
        for ((key, user, state), given_up) in fresh.chain(returning) {
            let Some(kept) = self.follower.standings().take_up(&key) else {
                continue;
            };
            if !given_up {
                tracing::info!("{shown}: following application {key}");
            }
            let application = match kept {
                Some(kept) => *kept,
                None => Application::new(key.clone(), &user, &self.rest.instance()),
            };
            let one = Followed {
                application,
                listed: Some(state),
                complaint: String::new(),
                quiet_since: None,
                given_up,
            };
            self.followed.insert(key, one);
        }
    }

    /// Polls every application that is followed, and concludes what has ended or was not heard of
    /// for too long. Those that the list does not have are asked for too, unless it is known why.
    async fn poll(&mut self, why_unlisted: Option<&str>) {
        for (key, mut one) in std::mem::take(&mut self.followed) {
            match self.poll_one(&mut one, why_unlisted.is_some()).await {
                Outcome::Followed => {
                    self.followed.insert(key, one);
                }
                Outcome::Ended => self.follower.standings().end(key),
                Outcome::GivenUp => {
                    let why = match (one.listed, why_unlisted) {
                        (None, Some(why)) => why,
                        (Some(State::Completed), _) => {
                            "Spark says that it has ended, and does not tell its jobs"
                        }
                        _ => "nothing about it could be read",
                    };
                    self.give_up(one, why);
                }
            }
        }
    }

    async fn poll_one(&mut self, one: &mut Followed, not_if_unlisted: bool) -> Outcome {
        let state = one.listed.unwrap_or(State::Alive);
        if one.listed.is_some() || !not_if_unlisted {
            let told = self.follower.poll(&self.rest, one, state).await;
            if told && state != State::Alive {
                return Outcome::Ended;
            }
            if told {
                one.quiet_since = None;
                // Where the list fails, the application's own answer tells whether it has ended.
                if one.listed.is_none()
                    && let Ok(Some(state)) = ended(&self.rest, &one.application.key).await
                    && self.follower.poll(&self.rest, one, state).await
                {
                    return Outcome::Ended;
                }
                return Outcome::Followed;
            }
        }
        let quiet_since = *one.quiet_since.get_or_insert_with(Instant::now);
        if let Some(history) = &self.follower.history {
            let complaint = &mut self.history_complaint;
            if self.follower.poll_history(history, one, complaint).await {
                return Outcome::Ended;
            }
        }
        if one.given_up || quiet_since.elapsed() >= self.follower.options.give_up_after {
            return Outcome::GivenUp;
        }
        Outcome::Followed
    }

    /// Reports what was last known of an application, as unknown, unless that was done before.
    fn give_up(&self, mut one: Followed, why: &str) {
        if !one.given_up {
            tracing::warn!(
                "application {}: {why} for {:?}; how it ended, if it has, is not known",
                one.application.key,
                self.follower.options.give_up_after
            );
            self.follower
                .report(&mut one.application, Poll::default(), State::Gone);
        }
        self.follower.standings().give_up(one.application);
    }
}

impl Follower {
    /// Polls one application and reports; its end only when its jobs were told. Whether they were.
    async fn poll(&self, rest: &Rest, one: &mut Followed, state: State) -> bool {
        let (poll, faults) = ask(rest, &one.application).await;
        let told = poll.jobs.is_some();
        let whose = format!("application {}", one.application.key);
        if told && std::mem::take(&mut one.given_up) {
            tracing::info!("{whose}: {} tells of it again", rest.shown());
        }
        if !one.given_up {
            let complaint = (!faults.is_empty()).then(|| by_fault(&faults));
            complain(&whose, &mut one.complaint, complaint);
        }
        if told || (state == State::Alive && !one.given_up) {
            self.report(&mut one.application, poll, state);
        }
        told
    }

    /// Asks the History Server for the end of an application. Whether it told and it was reported.
    async fn poll_history(
        &self,
        history: &Rest,
        one: &mut Followed,
        complaint: &mut String,
    ) -> bool {
        let fault = match ended(history, &one.application.key).await {
            Ok(state) => {
                complain(&history.shown(), complaint, None);
                return match state {
                    Some(state) => self.poll(history, one, state).await,
                    None => false,
                };
            }
            // It looks for new logs every 10 s.
            Err(Fault::NotFound(_)) => None,
            Err(fault) => Some(fault.to_string()),
        };
        complain(&history.shown(), complaint, fault);
        false
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
