//! One query over all polls: its identity, its sequence, and its reports.

use schemas::{EngineInstance, TaskRunningInfo, TaskStatus};

use tokio::time::Instant;

use super::answers::{QueryInfo, Stage};
use super::mapping;
use crate::polling::follow::Thing;
use crate::polling::limits::{identifier, int};
use crate::polling::silence::Silence;

/// A query that is followed.
pub(super) struct Query {
    pub(super) id: String,
    instance: String,
    engine_type: &'static str,
    user: String,
    sequence: i64,
    /// What the last response about it had for a fault.
    pub(super) fault: Option<String>,
    pub(super) silence: Silence,
    /// It was reported as unknown, and nothing was heard of it since.
    pub(super) given_up: bool,
    /// Its last poll outlasted the interval.
    pub(super) is_slow: bool,
    /// Its end, which is not reported before its last counts are known.
    pub(super) end: Option<Box<End>>,
}

/// How a query has ended, as known so far.
pub(super) struct End {
    pub(super) known_since: Instant,
    pub(super) query: QueryInfo,
}

/// What a poll has learnt.
pub(super) struct Seen<'p> {
    pub(super) query: &'p QueryInfo,
    /// `None`: not known.
    pub(super) stages: Option<&'p [Stage]>,
}

impl Query {
    /// `instance`: host:port of its coordinator.
    pub(super) fn new(id: &str, instance: &str, engine_type: &'static str) -> Self {
        Self {
            id: id.to_owned(),
            instance: instance.to_owned(),
            engine_type,
            user: String::new(),
            sequence: 0,
            fault: None,
            silence: Silence::default(),
            given_up: false,
            is_slow: false,
            end: None,
        }
    }

    /// Whether it was never reported.
    pub(super) fn is_new(&self) -> bool {
        self.sequence == 0
    }

    /// Its next report; `seen` is `None` if there was nothing usable for too long. `running` are the queries that run on
    /// the coordinator, if known.
    pub(super) fn report(
        &mut self,
        seen: Option<Seen<'_>>,
        running: Option<i64>,
        reported_at: i64,
    ) -> TaskRunningInfo {
        let user = seen
            .as_ref()
            .and_then(|seen| seen.query.session.user.as_ref());
        if let Some(user) = user {
            self.user = identifier(user);
        }
        let status = match &seen {
            Some(seen) => mapping::status(seen.query),
            None => TaskStatus::Unknown,
        };
        let runs = matches!(status, TaskStatus::Scheduled | TaskStatus::Running);
        let id = identifier(&self.id);
        let info = TaskRunningInfo {
            exec_id: id.clone(),
            job_id: id,
            engine: EngineInstance {
                instance: self.instance.clone(),
                engine_type: self.engine_type.to_owned(),
                user: self.user.clone(),
                ticket_id: String::new(),
                running_tasks: int(running.unwrap_or(i64::from(runs))),
            },
            status,
            reported_at,
            sequence: self.sequence,
            progress: seen
                .as_ref()
                .and_then(|seen| mapping::progress(seen.query, seen.stages)),
            resource: seen
                .as_ref()
                .and_then(|seen| mapping::resource(seen.query, seen.stages)),
            metrics: seen.map(|seen| mapping::metrics(seen.query)),
        };
        self.sequence += 1;
        info
    }
}

impl Thing for Query {
    fn id(&self) -> &str {
        &self.id
    }
}
