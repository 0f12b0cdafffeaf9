//! The list of a cluster's jobs, and one poll of one job.

use std::sync::PoisonError;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use super::FOLLOWED;
use super::answers::{Detail, Listed, Overview};
use super::ask::{self, Faults, Parts};
use super::cluster::{Cluster, Summary};
use super::job::{Job, Seen};
use super::mapping::{self, JobType};
use super::run::Run;
use crate::polling::complaints::by_fault;
use crate::polling::follow::{Context, Engine, Polled};
use crate::polling::poll_limit::Share;
use crate::polling::rest::{Fault, Rest};
use crate::polling::server::Server;

/// How long Flink answers with the same counts of checkpoints: the default of `web.refresh-interval`.
const CHECKPOINTS_CACHED: Duration = Duration::from_secs(3);

/// Pauses before the parts of an ended job that could not be read are requested again.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

impl Engine for Cluster {
    type Thing = Job;
    type Line = Listed;
    type Summary = Summary;

    const NOUN: &'static str = "job";
    const FOLLOWED: &'static str = FOLLOWED;
    /// Flink lists a job for an hour.
    const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

    fn server(&self) -> &Server {
        &self.server
    }

    async fn list(&self, each: &mut (dyn FnMut(Listed) + Send)) -> Result<Summary, Fault> {
        let Overview { jobs } = self.server.rest.get(&["jobs", "overview"]).await?;
        let mut running = jobs.iter().map(|job| Some(job.tasks?.running));
        let running_tasks = running.try_fold(0, |sum: i64, running| sum.checked_add(running?));
        jobs.into_iter().for_each(each);
        Ok(Summary { running_tasks })
    }

    /// Reads the slots.
    async fn look_around(&self) {
        let slots = ask::slots(&self.server.rest).await;
        // While nobody listens, the overview's fault says so.
        if !matches!(slots, Err(Fault::Refused)) {
            let whose = format!("{}, TaskManagers", self.server.rest.shown());
            let fault = slots.as_ref().err().map(ToString::to_string);
            let complaint = self.slots_complaint.lock();
            let mut complaint = complaint.unwrap_or_else(PoisonError::into_inner);
            complaint.change(&whose, fault);
        }
        let slots = slots.ok().flatten();
        let slots = slots.map(|slots| (Instant::now(), slots));
        *self.slots.lock().unwrap_or_else(PoisonError::into_inner) = slots;
    }

    fn thing(&self, listed: &Listed) -> Job {
        Job::new(&listed.jid, listed.start_time, &self.server.rest.instance())
    }

    async fn poll(&self, job: Box<Job>, context: Context<Self>) -> Polled<Job> {
        self.run.poll(self, job, context).await
    }
}

impl Run {
    /// Polls a job and reports it.
    async fn poll(
        &self,
        cluster: &Cluster,
        mut job: Box<Job>,
        context: Context<Cluster>,
    ) -> Polled<Job> {
        let server = &cluster.server;
        let listed_state = context.listed.as_ref().map(|listed| listed.state.as_str());
        if let Some(listed) = &context.listed {
            job.start_time = listed.start_time;
        }
        let runs = listed_state.is_some_and(|state| !mapping::is_final(state));
        let share = match runs && !job.is_slow {
            true => Share::Running,
            false => Share::Other,
        };
        let interval = self.options.interval;
        if !context.is_refused {
            let poll = self.ask(&server.rest, &mut job);
            let polled = server.polls.run(share, interval, poll).await;
            job.is_slow = polled.slow;
            if let Some((detail, parts, faults)) = polled.output {
                let parts = self
                    .last_parts(server, &mut job, &detail, parts, faults)
                    .await;
                return self.heard(cluster, job, &detail, &parts, &context);
            }
        }
        // Listed, but it cannot be read.
        if let Some(listed) = context.listed.as_ref().filter(|_| runs) {
            job.silence.end();
            job.given_up = false;
            self.report(cluster, &mut job, &Seen::Listed(listed), &context);
            return Polled::Open(job);
        }
        job.silence.go_on();
        if let Some((history, (detail, parts, faults))) = self.ask_history(&mut job).await {
            let parts = self
                .last_parts(history, &mut job, &detail, parts, faults)
                .await;
            return self.heard(cluster, job, &detail, &parts, &context);
        }
        if !job.silence.has_lasted(self.options.give_up_after) && !job.given_up {
            return Polled::Open(job);
        }
        self.history_complaints().end(&mut job.history_fault);
        if let Some(listed) = &context.listed {
            // Its end is known, and nothing else.
            self.report(cluster, &mut job, &Seen::Listed(listed), &context);
            return Polled::Ended(job);
        }
        if !job.given_up {
            tracing::warn!(
                "job {}: nothing about it could be read for {:?}; whether and how it has ended is not known",
                job.jid,
                self.options.give_up_after
            );
            job.given_up = true;
            self.report(cluster, &mut job, &Seen::Nothing, &context);
        }
        Polled::GivenUp(job)
    }

    fn heard(
        &self,
        cluster: &Cluster,
        mut job: Box<Job>,
        detail: &Detail,
        parts: &Parts,
        context: &Context<Cluster>,
    ) -> Polled<Job> {
        job.silence.end();
        job.given_up = false;
        self.report(cluster, &mut job, &Seen::Detail(detail, parts), context);
        match mapping::is_final(&detail.state) {
            true => {
                self.history_complaints().end(&mut job.history_fault);
                tracing::info!("job {} has ended: {}", job.jid, detail.state);
                Polled::Ended(job)
            }
            false => Polled::Open(job),
        }
    }

    /// Requests the job and its parts from its cluster. `None` if there is no job.
    async fn ask(&self, rest: &Rest, job: &mut Job) -> Option<(Detail, Parts, Faults)> {
        let whose = format!("job {} at {}", job.jid, rest.shown());
        let detail = match ask::detail(rest, &job.jid).await {
            Ok(detail) => detail,
            Err(fault) => {
                if !job.given_up {
                    job.complaint.change(&whose, Some(fault.to_string()));
                }
                return None;
            }
        };
        let job_type = JobType::of(&detail).or(job.job_type);
        let parts = ask::parts(rest, &job.jid, &detail, job_type, &mut job.lag_names).await;
        let (parts, faults) = parts;
        let fault = (!faults.is_empty()).then(|| by_fault(&faults));
        job.complaint.change(&whose, fault);
        Some((detail, parts, faults))
    }

    /// The parts for the final report of a job; for any other, these. They are requested again if some could not be read, or
    /// if Flink may have counted the checkpoints before the job's end. Without an answer then, these stand. Takes no turn
    /// while it waits.
    async fn last_parts(
        &self,
        server: &Server,
        job: &mut Job,
        detail: &Detail,
        mut parts: Parts,
        mut faults: Faults,
    ) -> Parts {
        if !mapping::is_final(&detail.state) {
            return parts;
        }
        let since_end = mapping::since_end(detail);
        let expires_in = since_end.and_then(|since| CHECKPOINTS_CACHED.checked_sub(since));
        let mut expires_in = expires_in.filter(|_| parts.checkpoints.is_some());
        let interval = self.options.interval;
        let job_type = JobType::of(detail).or(job.job_type);
        for pause in PAUSES {
            let is_gone = faults.iter().any(|(_, fault)| *fault == Fault::Refused);
            let is_complete = faults.is_empty() && expires_in.is_none();
            if is_gone || is_complete {
                break;
            }
            sleep(expires_in.unwrap_or(pause)).await;
            let again = ask::parts(&server.rest, &job.jid, detail, job_type, &mut job.lag_names);
            let again = server.polls.run(Share::Other, interval, again).await.output;
            let (newer, still) = again;
            expires_in = expires_in.filter(|_| newer.checkpoints.is_none());
            parts.renew(newer);
            faults = still;
        }
        parts
    }

    /// The job as the HistoryServer has it, if it has ended there.
    async fn ask_history(&self, job: &mut Job) -> Option<(&Server, (Detail, Parts, Faults))> {
        let history = self.history.as_ref()?;
        let Server { rest, polls } = history;
        let lookup = async {
            let (detail, fault) = match ask::detail(rest, &job.jid).await {
                Ok(detail) => (Some(detail), None),
                // It looks for new archives every 10 s.
                Err(Fault::NotFound(_)) => (None, None),
                Err(fault) => (None, Some(fault.to_string())),
            };
            let before = &mut job.history_fault;
            self.history_complaints()
                .change(&rest.shown(), before, fault);
            let detail = detail.filter(|detail| mapping::is_final(&detail.state))?;
            if !job.is_archived(detail.start_time) {
                return None;
            }
            // The start of the run that has ended: the JobManager may list that run later.
            job.start_time = detail.start_time.or(job.start_time);
            let job_type = JobType::of(&detail).or(job.job_type);
            let parts = ask::parts(rest, &job.jid, &detail, job_type, &mut job.lag_names).await;
            let (parts, faults) = parts;
            Some((detail, parts, faults))
        };
        let interval = self.options.interval;
        let found = polls.run(Share::Other, interval, lookup).await.output?;
        Some((history, found))
    }

    fn report(
        &self,
        cluster: &Cluster,
        job: &mut Job,
        seen: &Seen<'_>,
        context: &Context<Cluster>,
    ) {
        let now = Timestamp::now().as_microsecond();
        let with_names = self.options.with_names;
        let slots = cluster.slots(&job.jid);
        let summary = context.summary.as_ref();
        let running = summary.and_then(|summary| summary.running_tasks);
        let info = job.report(seen, slots.as_ref(), running, with_names, now);
        self.reports.report(&info);
    }
}
