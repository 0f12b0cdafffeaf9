//! One job over all polls: its identity, its sequence, and its reports.

use schemas::{EngineInstance, TaskRunningInfo, TaskStatus};

use super::answers::{Detail, Listed, Tasks};
use super::ask::{LagNames, Parts};
use super::mapping::{self, JobType, Metrics, Slots};
use crate::polling::complaints::Complaint;
use crate::polling::limits::{identifier, int};
use crate::polling::silence::Silence;

/// The job id of every application cluster with high availability, unless another is set.
const FIXED_ID: &str = "00000000000000000000000000000000";

/// A job that is followed.
pub(super) struct Job {
    pub(super) jid: String,
    /// As listed last.
    pub(super) start_time: Option<i64>,
    exec_id: String,
    instance: String,
    sequence: i64,
    /// Once known: not every response has it.
    pub(super) job_type: Option<JobType>,
    pub(super) lag_names: LagNames,
    pub(super) complaint: Complaint,
    /// What the HistoryServer's last response about it had for a fault.
    pub(super) history_fault: Option<String>,
    pub(super) silence: Silence,
    /// It was reported as unknown, and nothing was heard of it since.
    pub(super) given_up: bool,
    /// Its last poll outlasted the interval.
    pub(super) is_slow: bool,
}

/// What a poll has learnt.
pub(super) enum Seen<'p> {
    /// The job's own response, and what else there is.
    Detail(&'p Detail, &'p Parts),
    /// Only its line in the overview.
    Listed(&'p Listed),
    /// Nothing for too long.
    Nothing,
}

impl Job {
    /// `instance`: host:port of its JobManager. The fixed id is shared by clusters, and by the runs of one cluster; so the
    /// exec task has the instance and the start time as well.
    pub(super) fn new(jid: &str, start_time: Option<i64>, instance: &str) -> Self {
        let exec_id = match (jid, start_time) {
            (FIXED_ID, Some(start_time)) => format!("{instance}/{jid}/{start_time}"),
            (FIXED_ID, None) => format!("{instance}/{jid}"),
            _ => jid.to_owned(),
        };
        Self {
            jid: jid.to_owned(),
            start_time,
            exec_id: identifier(&exec_id),
            instance: instance.to_owned(),
            sequence: 0,
            job_type: None,
            lag_names: LagNames::new(),
            complaint: Complaint::default(),
            history_fault: None,
            silence: Silence::default(),
            given_up: false,
            is_slow: false,
        }
    }

    /// Whether the HistoryServer's archive of this job's id, which started at `archived`, is of this run. It keeps one
    /// archive per id: under the fixed id that of any run of any cluster, under another id perhaps that of a run before
    /// this one. A later start under another id is the same job after a failover.
    pub(super) fn is_archived(&self, archived: Option<i64>) -> bool {
        match (archived, self.start_time) {
            (archived, started) if self.jid == FIXED_ID => archived == started,
            (Some(archived), Some(started)) => archived >= started,
            _ => true,
        }
    }

    /// Its next report. `slots` are those of the cluster, if known; `running_tasks` those of all its jobs.
    pub(super) fn report(
        &mut self,
        seen: &Seen<'_>,
        slots: Option<&Slots>,
        running_tasks: Option<i64>,
        with_names: bool,
        reported_at: i64,
    ) -> TaskRunningInfo {
        let (state, tasks) = match seen {
            Seen::Detail(detail, _) => (detail.state.as_str(), Tasks::of(&detail.vertices)),
            Seen::Listed(listed) => (listed.state.as_str(), listed.tasks),
            Seen::Nothing => ("", None),
        };
        if let Seen::Detail(detail, _) = seen {
            self.job_type = JobType::of(detail).or(self.job_type);
        }
        // Tasks need slots: they were read before the job got them, or after it gave them back.
        let running = tasks.map_or(0, |tasks| tasks.running);
        let slots = slots.filter(|slots| slots.slots > 0 || running == 0);
        let mut metrics = Metrics::default();
        if let Seen::Detail(detail, parts) = seen {
            metrics.detail(detail, self.job_type);
            if with_names {
                metrics.text("jobName", Some(detail.name.clone()));
            }
            metrics.text("applicationId", detail.application_id.clone());
            metrics.long("restarts", parts.restarts);
            if let Some(checkpoints) = &parts.checkpoints {
                metrics.checkpoints(checkpoints, detail.now);
            }
            if let Some(load) = &parts.load {
                metrics.long("pendingRecords", load.pending_records);
                metrics.double("busyMax", load.busy_max);
                metrics.double("backPressuredMax", load.back_pressured_max);
            }
            metrics.text("failureException", parts.exception.clone());
        }
        let (progress, resource) = match seen {
            Seen::Nothing => (None, None),
            Seen::Listed(_) => (None, mapping::resource(&self.jid, state, slots)),
            Seen::Detail(detail, _) => (
                mapping::progress(detail, self.job_type, with_names),
                mapping::resource(&self.jid, state, slots),
            ),
        };
        let info = TaskRunningInfo {
            exec_id: self.exec_id.clone(),
            job_id: identifier(&self.jid),
            engine: EngineInstance {
                instance: self.instance.clone(),
                engine_type: "flink".to_owned(),
                user: String::new(),
                ticket_id: String::new(),
                running_tasks: int(running_tasks.unwrap_or(running)),
            },
            status: match seen {
                Seen::Nothing => TaskStatus::Unknown,
                _ => mapping::status(state, tasks.as_ref(), self.job_type),
            },
            reported_at,
            sequence: self.sequence,
            progress,
            resource,
            metrics: metrics.part(),
        };
        self.sequence += 1;
        info
    }
}
