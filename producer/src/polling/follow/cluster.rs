//! One server: reads its list every interval, and polls each thing in a task of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use service::words::counted;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{Context, Engine, FOLLOWED_MAX, Follow, Line, Polled, Thing};
use crate::polling::complaints::Complaint;
use crate::polling::rest::Fault;
use crate::polling::silence::Silence;

/// How soon to read the list again at an address that refuses connections, and after how many refusals it is gone if
/// nothing is followed there. The things are polled only every interval then: a poll may ask another server.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const REFUSALS: u32 = 3;
/// Lines of one list that are held, beside those of things whose end was reported. A thing whose line is not held is
/// polled without it, and begins to be followed with a later list.
const LINES_MAX: usize = 4 * FOLLOWED_MAX;
/// Things whose end is remembered; of more, the ones that were listed last.
const ENDED_MAX: usize = 200_000;
/// Given-up things whose sequence is remembered.
const GIVEN_UP_MAX: usize = 1_000;

pub(super) struct Cluster<E: Engine> {
    follow: Arc<Follow>,
    engine: Arc<E>,
    tasks: JoinSet<Done<E>>,
    things: BTreeMap<String, Followed<E::Thing>>,
    ended: Ends,
    given_up: BTreeMap<String, Box<E::Thing>>,
    complaint: Complaint,
    /// Too many things to follow; logged once.
    too_many_logged: bool,
    reached: bool,
}

struct Followed<T> {
    /// `None` while it is being polled.
    idle: Option<Box<T>>,
    has_ended: bool,
}

/// Things whose end was reported.
#[derive(Clone, Default)]
struct Ends(Arc<Mutex<HashMap<String, Ended>>>);

struct Ended {
    /// When the thing was listed last.
    listed: Instant,
    run: Option<i64>,
}

/// What a list holds that concerns this program.
struct List<L> {
    lines: HashMap<String, L>,
    /// Whether it has any thing that is chosen.
    any: bool,
    /// Lines that are not held.
    beyond: usize,
}

enum Done<E: Engine> {
    List(Result<(List<E::Line>, E::Summary), Fault>),
    LookedAround,
    Thing(Polled<E::Thing>),
}

/// A list that is being read.
#[derive(Default)]
struct Reading {
    /// Nothing was followed when it began.
    was_idle: bool,
    /// The things are polled also if it cannot be read.
    polls: bool,
}

/// When the list is read, and the things are polled.
struct Schedule {
    interval: Duration,
    /// When the list is read next.
    next: Instant,
    /// When the things are polled next if the list cannot be read; if it can, they are polled in any case.
    polls_due: Instant,
}

impl Schedule {
    fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            next: now,
            polls_due: now,
        }
    }

    /// The list is being read from now on. Returns whether the things are due too.
    fn begin(&mut self, now: Instant) -> bool {
        self.next = now + self.interval;
        let due = now >= self.polls_due;
        if due {
            self.polls_due = self.next;
        }
        due
    }

    /// Connections are refused: reads the list before the interval is over.
    fn hasten(&mut self, now: Instant) {
        self.next = self.next.min(now + ASK_AGAIN);
    }

    /// The things were polled with the list of the last [`Schedule::begin`].
    fn polled(&mut self) {
        self.polls_due = self.next;
    }
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Ended>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, id: String, run: Option<i64>) {
        let listed = Instant::now();
        self.lock().insert(id, Ended { listed, run });
    }

    /// Notes that a thing is listed. Whether its end was reported; under an id that several runs share, another run after
    /// the end is another thing.
    fn has(&self, line: &impl Line) -> bool {
        let mut ended = self.lock();
        let ended = ended.get_mut(line.id());
        let ended = ended.filter(|ended| ended.run == line.run());
        ended.map(|ended| ended.listed = Instant::now()).is_some()
    }

    /// Forgets what was not listed for `forget_after`, and the oldest beyond `max`.
    fn forget(&self, forget_after: Duration, max: usize) {
        let mut ended = self.lock();
        ended.retain(|_, ended| ended.listed.elapsed() < forget_after);
        let excess = ended.len().saturating_sub(max);
        if excess > 0 {
            let mut listed: Vec<Instant> = ended.values().map(|ended| ended.listed).collect();
            let oldest = *listed.select_nth_unstable(excess - 1).1;
            let mut left = excess;
            ended.retain(|_, ended| {
                let goes = left > 0 && ended.listed <= oldest;
                left -= usize::from(goes);
                !goes
            });
        }
    }
}

impl<L: Line> List<L> {
    fn new() -> Self {
        Self {
            lines: HashMap::new(),
            any: false,
            beyond: 0,
        }
    }

    fn take(&mut self, line: L, follow: &Follow, ended: &Ends) {
        let id = line.id();
        if !follow.is_chosen(id) || id.trim().is_empty() {
            return;
        }
        self.any = true;
        follow.awaited().remove(id);
        if ended.has(&line) {
            return;
        }
        if self.lines.len() >= LINES_MAX {
            self.beyond += 1;
            return;
        }
        self.lines.insert(id.to_owned(), line);
    }
}

impl<E: Engine> Cluster<E> {
    pub(super) fn new(follow: Arc<Follow>, engine: E) -> Self {
        Self {
            follow,
            engine: Arc::new(engine),
            tasks: JoinSet::new(),
            things: BTreeMap::new(),
            ended: Ends::default(),
            given_up: BTreeMap::new(),
            complaint: Complaint::default(),
            too_many_logged: false,
            reached: false,
        }
    }

    /// Follows the server until all its things have ended, or it is gone and nothing is followed; with `stay` until
    /// `shutdown`. Returns the things whose end is not known.
    ///
    /// # Errors
    /// If it never gave a list.
    pub(super) async fn follow(mut self) -> Result<Vec<String>, Fault> {
        let shutdown = self.follow.shutdown.clone();
        let followed = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            followed = self.until_nothing_is_left() => followed,
        };
        self.tasks.shutdown().await;
        metrics::gauge!(E::FOLLOWED).decrement(self.things.len() as f64);
        followed.map(|()| self.given_up.into_keys().collect())
    }

    async fn until_nothing_is_left(&mut self) -> Result<(), Fault> {
        let follow = self.follow.clone();
        let started = Instant::now();
        let mut silence = Silence::begun();
        let mut refusals = 0;
        let mut schedule = Schedule::new(follow.interval, started);
        // The list that is being read.
        let mut reading = None;
        let mut looks_around = false;
        loop {
            let done = tokio::select! {
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => done,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = sleep_until(schedule.next), if reading.is_none() => {
                    reading = Some(Reading {
                        was_idle: self.things.is_empty(),
                        polls: schedule.begin(Instant::now()),
                    });
                    self.read_list();
                    if !std::mem::replace(&mut looks_around, true) {
                        let engine = self.engine.clone();
                        self.tasks.spawn(async move {
                            engine.look_around().await;
                            Done::LookedAround
                        });
                    }
                    continue;
                }
            };
            let list = match done {
                Done::Thing(polled) => {
                    self.settle(polled);
                    continue;
                }
                Done::LookedAround => {
                    looks_around = false;
                    continue;
                }
                Done::List(list) => list,
            };
            let Reading { was_idle, polls } = reading.take().unwrap_or_default();
            let shown = self.engine.server().rest.shown();
            let fault = list.as_ref().err().map(ToString::to_string);
            self.complaint.change(&shown, fault);
            match list {
                Ok((list, summary)) => {
                    self.reached = true;
                    silence.end();
                    refusals = 0;
                    let any = list.any;
                    let new = self.take_up(&list);
                    self.poll_all(list.lines, false, Some(summary));
                    schedule.polled();
                    let awaited = !follow.awaited().is_empty();
                    let awaits = awaited && started.elapsed() < follow.give_up_after;
                    let is_idle = was_idle && !new && !awaits && self.things.is_empty();
                    let followed_any = !self.ended.lock().is_empty() || !self.given_up.is_empty();
                    if is_idle && (any || awaited || followed_any) && !follow.stay {
                        tracing::info!("{shown}: nothing is left to follow");
                        return Ok(());
                    }
                }
                Err(fault) => {
                    silence.go_on();
                    let is_refused = fault == Fault::Refused;
                    if polls {
                        self.poll_all(HashMap::new(), is_refused, None);
                    }
                    let is_empty = self.things.is_empty() && !follow.stay;
                    if is_refused {
                        refusals += 1;
                        schedule.hasten(Instant::now());
                        if self.reached && refusals >= REFUSALS && is_empty {
                            tracing::info!("{shown} is gone: {fault}");
                            return Ok(());
                        }
                    }
                    if is_empty && silence.has_lasted(follow.give_up_after) {
                        return match self.reached {
                            true => Ok(()),
                            false => Err(fault),
                        };
                    }
                }
            }
        }
    }

    fn read_list(&mut self) {
        let (engine, follow, ended) =
            (self.engine.clone(), self.follow.clone(), self.ended.clone());
        self.tasks.spawn(async move {
            let mut list = List::new();
            let summary = engine
                .list(&mut |line| list.take(line, &follow, &ended))
                .await;
            Done::List(summary.map(|summary| (list, summary)))
        });
    }

    /// Begins to follow what is new in a list, as far as there is room. Whether there is anything new.
    fn take_up(&mut self, list: &List<E::Line>) -> bool {
        for (id, thing) in &mut self.things {
            if let Some(line) = list.lines.get(id) {
                thing.has_ended = line.has_ended();
            }
        }
        let ended = self.things.values().filter(|thing| thing.has_ended).count();
        let room = |followed: usize| FOLLOWED_MAX.saturating_sub(followed);
        let mut room_of_ended = room(ended);
        let mut room_of_running = room(self.things.len() - ended);
        let mut new = list.beyond > 0;
        let mut beyond = 0;
        for (id, line) in &list.lines {
            // Its end may have been reported while the list was being read.
            if self.things.contains_key(id) || self.ended.has(line) {
                continue;
            }
            new = true;
            let has_ended = line.has_ended();
            let room = match has_ended {
                true => &mut room_of_ended,
                false => &mut room_of_running,
            };
            if *room == 0 {
                // There is room for the ends once others were reported.
                beyond += usize::from(!has_ended);
                continue;
            }
            *room -= 1;
            let thing = self.given_up.remove(id);
            let thing = thing.unwrap_or_else(|| Box::new(self.engine.thing(line)));
            let idle = Some(thing);
            self.things.insert(id.clone(), Followed { idle, has_ended });
            metrics::gauge!(E::FOLLOWED).increment(1);
        }
        self.ended.forget(E::FORGET_AFTER, ENDED_MAX);
        if beyond > 0 && !std::mem::replace(&mut self.too_many_logged, true) {
            tracing::warn!(
                "{} lists {} more than the {FOLLOWED_MAX} that are followed at a time; choose with {}",
                self.engine.server().rest.shown(),
                counted(beyond, E::NOUN),
                self.follow.chosen_by
            );
        }
        new
    }

    /// Polls every thing that is not being polled.
    fn poll_all(
        &mut self,
        mut lines: HashMap<String, E::Line>,
        is_refused: bool,
        summary: Option<E::Summary>,
    ) {
        for (id, followed) in &mut self.things {
            let Some(thing) = followed.idle.take() else {
                continue;
            };
            let context = Context {
                listed: lines.remove(id),
                is_refused,
                summary: summary.clone(),
            };
            let engine = self.engine.clone();
            self.tasks
                .spawn(async move { Done::Thing(engine.poll(thing, context).await) });
        }
    }

    fn settle(&mut self, polled: Polled<E::Thing>) {
        let id = match polled {
            Polled::Open(thing) => {
                if let Some(followed) = self.things.get_mut(thing.id()) {
                    followed.idle = Some(thing);
                }
                return;
            }
            Polled::Ended(thing) => {
                let id = thing.id().to_owned();
                self.ended.insert(id.clone(), thing.run());
                id
            }
            Polled::GivenUp(thing) => {
                let id = thing.id().to_owned();
                if self.given_up.len() >= GIVEN_UP_MAX {
                    self.given_up.pop_first();
                }
                self.given_up.insert(id.clone(), thing);
                id
            }
        };
        self.things.remove(&id);
        metrics::gauge!(E::FOLLOWED).decrement(1);
    }
}

#[cfg(test)]
mod tests;
