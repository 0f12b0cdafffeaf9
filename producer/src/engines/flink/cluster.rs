//! One cluster: its overview, and beside it the slots of each job.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::FOLLOWED;
use super::answers::{Listed, Overview};
use super::ask;
use super::job::Job;
use super::mapping::{self, Slots};
use super::run::Run;
use crate::polling::complaints::Complaint;
use crate::polling::follow::{Context, Engine, Line, Polled, Thing};
use crate::polling::rest::Fault;
use crate::polling::server::Server;

/// Slots that were read longer ago than this many intervals are not known any more.
const SLOTS_INTERVALS: u32 = 3;

pub(super) struct Cluster {
    pub(super) run: Arc<Run>,
    pub(super) server: Server,
    slots: Mutex<Option<(Instant, BTreeMap<String, Slots>)>>,
    slots_complaint: Mutex<Complaint>,
}

/// What an overview tells of its cluster.
#[derive(Clone)]
pub(super) struct Summary {
    /// Tasks that run on the cluster; `None`: not known.
    pub(super) running_tasks: Option<i64>,
}

impl Cluster {
    pub(super) fn new(run: Arc<Run>, server: Server) -> Self {
        Self {
            run,
            server,
            slots: Mutex::default(),
            slots_complaint: Mutex::default(),
        }
    }

    /// `None`: not known.
    pub(super) fn slots(&self, jid: &str) -> Option<Slots> {
        let max_age = self.run.options.interval * SLOTS_INTERVALS;
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = slots.as_ref().filter(|(read, _)| read.elapsed() < max_age);
        // The cluster lists all slots, so a job that is not there had none.
        slots.map(|(_, slots)| slots.get(jid).copied().unwrap_or_default())
    }
}

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

impl Thing for Job {
    fn id(&self) -> &str {
        &self.jid
    }

    /// Runs under the fixed id differ by their start.
    fn run(&self) -> Option<i64> {
        self.start_time
    }
}

impl Line for Listed {
    fn id(&self) -> &str {
        &self.jid
    }

    fn run(&self) -> Option<i64> {
        self.start_time
    }

    fn has_ended(&self) -> bool {
        mapping::is_final(&self.state)
    }
}
