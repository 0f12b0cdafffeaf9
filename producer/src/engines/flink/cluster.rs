//! One cluster, and the slots of each of its jobs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::answers::Listed;
use super::job::Job;
use super::mapping::{self, Slots};
use super::run::Run;
use crate::polling::complaints::Complaint;
use crate::polling::follow::{Line, Thing};
use crate::polling::server::Server;

/// Slots that were read longer ago than this many intervals are not known any more.
const SLOTS_INTERVALS: u32 = 3;

pub(super) struct Cluster {
    pub(super) run: Arc<Run>,
    pub(super) server: Server,
    pub(super) slots: Mutex<Option<(Instant, BTreeMap<String, Slots>)>>,
    pub(super) slots_complaint: Mutex<Complaint>,
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
