//! One cluster: reads its overview every interval, and polls each job in a task of its own.
//!
//! ```text
//! /jobs/overview, every interval ─▶ a poll of each job that is not being polled ─▶ reports
//! /taskmanagers, beside it       ─▶ the slots of each job
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use service::words::counted;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::FOLLOWED;
use super::answers::{Listed, Overview};
use super::ask;
use super::job::Job;
use super::mapping::Slots;
use super::options::JOBS_MAX;
use super::run::{Context, Polled, Run, Server};
use crate::polling::complaints::Complaint;
use crate::polling::rest::Fault;
use crate::polling::silence::Silence;

/// How soon to read the overview again at an address that refuses connections, and after how many refusals it is gone if
/// no job is followed there. The jobs are polled only every interval then: a poll asks the HistoryServer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const REFUSALS: u32 = 3;
/// Slots that were read longer ago than this many intervals are not known any more.
const SLOTS_INTERVALS: u32 = 3;
/// A job that has ended and was not listed for this long is forgotten. Flink lists it for an hour.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Given-up jobs whose sequence is remembered.
const GIVEN_UP_MAX: usize = 1_000;

pub(super) struct Cluster {
    run: Arc<Run>,
    server: Server,
    tasks: JoinSet<Done>,
    /// `None` while it is being polled.
    jobs: BTreeMap<String, Option<Box<Job>>>,
    /// Jobs whose end was reported.
    ended: HashMap<String, Ended>,
    given_up: BTreeMap<String, Box<Job>>,
    slots: Option<(Instant, BTreeMap<String, Slots>)>,
    complaint: Complaint,
    slots_complaint: Complaint,
    /// Too many jobs to follow; logged once.
    too_many_logged: bool,
    reached: bool,
}

struct Ended {
    /// When the job was listed last.
    listed: Instant,
    start_time: Option<i64>,
}

/// An overview that is being read.
#[derive(Default)]
struct Reading {
    /// No job was followed when it began.
    was_idle: bool,
    /// The jobs are polled also if it cannot be read.
    polls: bool,
}

/// When the overview is read, and the jobs are polled.
struct Schedule {
    interval: Duration,
    /// When the overview is read next.
    next: Instant,
    /// When the jobs are polled next if the overview cannot be read; if it can, they are polled in any case.
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

    /// The overview is being read from now on. Returns whether the jobs are due too.
    fn begin(&mut self, now: Instant) -> bool {
        self.next = now + self.interval;
        let due = now >= self.polls_due;
        if due {
            self.polls_due = self.next;
        }
        due
    }

    /// Connections are refused: reads the overview before the interval is over.
    fn hasten(&mut self, now: Instant) {
        self.next = self.next.min(now + ASK_AGAIN);
    }

    /// The jobs were polled with the overview of the last [`Schedule::begin`].
    fn polled(&mut self) {
        self.polls_due = self.next;
    }
}

enum Done {
    Overview(Result<Overview, Fault>),
    Slots(Result<Option<BTreeMap<String, Slots>>, Fault>),
    Job(Polled),
}

impl Cluster {
    pub(super) fn new(run: Arc<Run>, server: Server) -> Self {
        Self {
            run,
            server,
            tasks: JoinSet::new(),
            jobs: BTreeMap::new(),
            ended: HashMap::new(),
            given_up: BTreeMap::new(),
            slots: None,
            complaint: Complaint::default(),
            slots_complaint: Complaint::default(),
            too_many_logged: false,
            reached: false,
        }
    }

    /// Follows the cluster until all its jobs have ended, or it is gone and no job is followed; with `--stay` until
    /// `shutdown`. Returns the jobs of which it is not known how they ended.
    ///
    /// # Errors
    /// If it never gave an overview.
    pub(super) async fn follow(mut self) -> Result<Vec<String>, Fault> {
        let shutdown = self.run.shutdown.clone();
        let followed = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            followed = self.until_nothing_is_left() => followed,
        };
        self.tasks.shutdown().await;
        metrics::gauge!(FOLLOWED).decrement(self.jobs.len() as f64);
        followed.map(|()| self.given_up.into_keys().collect())
    }

    async fn until_nothing_is_left(&mut self) -> Result<(), Fault> {
        let options = self.run.options.clone();
        let started = Instant::now();
        let mut silence = Silence::begun();
        let mut refusals = 0;
        let mut schedule = Schedule::new(options.interval, started);
        // The overview that is being read.
        let mut reading = None;
        let mut reading_slots = false;
        loop {
            let done = tokio::select! {
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => done,
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = sleep_until(schedule.next), if reading.is_none() => {
                    reading = Some(Reading {
                        was_idle: self.jobs.is_empty(),
                        polls: schedule.begin(Instant::now()),
                    });
                    let rest = self.server.rest.clone();
                    self.tasks.spawn(async move { Done::Overview(rest.get(&["jobs", "overview"]).await) });
                    if !std::mem::replace(&mut reading_slots, true) {
                        let rest = self.server.rest.clone();
                        self.tasks.spawn(async move { Done::Slots(ask::slots(&rest).await) });
                    }
                    continue;
                }
            };
            let overview = match done {
                Done::Job(polled) => {
                    self.settle(polled);
                    continue;
                }
                Done::Slots(slots) => {
                    reading_slots = false;
                    self.take_slots(slots);
                    continue;
                }
                Done::Overview(overview) => overview,
            };
            let Reading { was_idle, polls } = reading.take().unwrap_or_default();
            let shown = self.server.rest.shown();
            let fault = overview.as_ref().err().map(ToString::to_string);
            self.complaint.change(&shown, fault);
            match overview {
                Ok(overview) => {
                    self.reached = true;
                    silence.end();
                    refusals = 0;
                    let (any, new) = self.take_up(&overview.jobs);
                    self.poll_all(Some(overview.jobs), false);
                    schedule.polled();
                    let awaited = !self.run.awaited().is_empty();
                    let awaits = awaited && started.elapsed() < options.give_up_after;
                    let is_idle = was_idle && !new && !awaits && self.jobs.is_empty();
                    let followed_any = !self.ended.is_empty() || !self.given_up.is_empty();
                    if is_idle && (any || awaited || followed_any) && !options.stay {
                        tracing::info!("{shown}: nothing is left to follow");
                        return Ok(());
                    }
                }
                Err(fault) => {
                    silence.go_on();
                    let is_refused = fault == Fault::Refused;
                    if polls {
                        self.poll_all(None, is_refused);
                    }
                    let is_empty = self.jobs.is_empty() && !options.stay;
                    if is_refused {
                        refusals += 1;
                        schedule.hasten(Instant::now());
                        if self.reached && refusals >= REFUSALS && is_empty {
                            tracing::info!("{shown} is gone: {fault}");
                            return Ok(());
                        }
                    }
                    if is_empty && silence.has_lasted(options.give_up_after) {
                        return match self.reached {
                            true => Ok(()),
                            false => Err(fault),
                        };
                    }
                }
            }
        }
    }

    /// Begins to follow what is new in an overview. Whether it has any job that is chosen, and any new one.
    fn take_up(&mut self, listed: &[Listed]) -> (bool, bool) {
        let chosen = &self.run.options.job;
        let (mut any, mut new) = (false, false);
        let now = Instant::now();
        let mut beyond = 0;
        for Listed {
            jid, start_time, ..
        } in listed
        {
            let is_chosen = chosen.is_empty() || chosen.contains(jid);
            if !is_chosen || jid.trim().is_empty() {
                continue;
            }
            any = true;
            self.run.awaited().remove(jid);
            // Under the fixed id, another start after the end is another run.
            if let Some(ended) = self.ended.get_mut(jid)
                && ended.start_time == *start_time
            {
                ended.listed = now;
                continue;
            }
            if self.jobs.contains_key(jid) {
                continue;
            }
            new = true;
            if self.jobs.len() >= JOBS_MAX {
                beyond += 1;
                continue;
            }
            let job = self.given_up.remove(jid).unwrap_or_else(|| {
                Box::new(Job::new(jid, *start_time, &self.server.rest.instance()))
            });
            self.jobs.insert(jid.clone(), Some(job));
            metrics::gauge!(FOLLOWED).increment(1);
        }
        self.ended
            .retain(|_, ended| now.duration_since(ended.listed) < FORGET_AFTER);
        if beyond > 0 && !std::mem::replace(&mut self.too_many_logged, true) {
            tracing::warn!(
                "{} lists {} more than the {JOBS_MAX} that are followed at a time; choose with --job",
                self.server.rest.shown(),
                counted(beyond, "job")
            );
        }
        (any, new)
    }

    /// Polls every job that is not being polled. `listed` is the overview, if there is one.
    fn poll_all(&mut self, listed: Option<Vec<Listed>>, is_refused: bool) {
        let chosen = &self.run.options.job;
        let running = listed.as_ref().map(|listed| {
            let mut running = listed.iter().map(|job| Some(job.tasks?.running));
            running.try_fold(0, |sum: i64, running| sum.checked_add(running?))
        });
        let running = running.flatten();
        let mut listed: HashMap<String, Listed> = listed
            .into_iter()
            .flatten()
            .filter(|job| chosen.is_empty() || chosen.contains(&job.jid))
            .map(|job| (job.jid.clone(), job))
            .collect();
        let max_age = self.run.options.interval * SLOTS_INTERVALS;
        let slots = self.slots.as_ref();
        let slots = slots.filter(|(read, _)| read.elapsed() < max_age);
        for (jid, job) in &mut self.jobs {
            let Some(job) = job.take() else {
                continue;
            };
            let context = Context {
                listed: listed.remove(jid),
                is_refused,
                // The cluster lists all slots, so a job that is not there had none.
                slots: slots.map(|(_, slots)| slots.get(jid).copied().unwrap_or_default()),
                running_tasks: running,
            };
            let (run, server) = (self.run.clone(), self.server.clone());
            self.tasks
                .spawn(async move { Done::Job(run.poll(&server, *job, context).await) });
        }
    }

    fn settle(&mut self, polled: Polled) {
        let jid = match polled {
            Polled::Open(job) => {
                self.jobs.insert(job.jid.clone(), Some(job));
                return;
            }
            Polled::Ended(job) => {
                let ended = Ended {
                    listed: Instant::now(),
                    start_time: job.start_time,
                };
                self.ended.insert(job.jid.clone(), ended);
                job.jid
            }
            Polled::GivenUp(job) => {
                let jid = job.jid.clone();
                if self.given_up.len() >= GIVEN_UP_MAX {
                    self.given_up.pop_first();
                }
                self.given_up.insert(jid.clone(), job);
                jid
            }
        };
        self.jobs.remove(&jid);
        metrics::gauge!(FOLLOWED).decrement(1);
    }

    fn take_slots(&mut self, slots: Result<Option<BTreeMap<String, Slots>>, Fault>) {
        let whose = format!("{}, TaskManagers", self.server.rest.shown());
        let fault = slots.as_ref().err().map(ToString::to_string);
        // While nobody listens, the overview's fault says so.
        if !matches!(slots, Err(Fault::Refused)) {
            self.slots_complaint.change(&whose, fault);
        }
        let slots = slots.ok().flatten();
        self.slots = slots.map(|slots| (Instant::now(), slots));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_polled_every_interval_while_a_refusing_address_is_asked_every_second() {
        let started = Instant::now();
        let at = |seconds: u64| started + Duration::from_secs(seconds);
        let mut schedule = Schedule::new(Duration::from_secs(10), started);
        assert!(schedule.begin(at(0)));
        schedule.polled();
        assert_eq!(schedule.next, at(10));

        let mut polled = Vec::new();
        for second in 10..40 {
            assert_eq!(schedule.next, at(second));
            if schedule.begin(at(second)) {
                polled.push(second);
            }
            schedule.hasten(at(second));
        }
        assert_eq!(polled, [10, 20, 30]);

        // It answers again, and the jobs are polled at once.
        schedule.begin(at(40));
        schedule.polled();
        assert_eq!(schedule.next, at(50));
        assert!(schedule.begin(at(50)));

        // An interval that is shorter than a second is not lengthened.
        let mut schedule = Schedule::new(Duration::from_millis(50), started);
        schedule.begin(started);
        schedule.hasten(started);
        assert_eq!(schedule.next, started + Duration::from_millis(50));
        assert!(schedule.begin(schedule.next));
    }
}
