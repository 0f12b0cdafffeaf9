//! Changes of the tables as server-sent events, for `GET /api/v1/changes`.
//!
//! ```text
//! poll of the database, at most one a second ──▶ Hub { Ring } ──▶ broadcast ──▶ a stream for each client
//!                                           └──▶ gauges
//! ```
//!
//! One poll serves all clients. A client that is too slow for the broadcast is disconnected, and nothing is kept for
//! it: it reconnects with the id of the last event it read, and receives the missed changes from the ring.

mod counts;
mod event;
mod gauges;
mod hub;
mod poll;
mod ring;
mod scope;

pub(crate) use self::counts::{Levels, TaskCounts};
pub(crate) use self::gauges::HELP;
pub(crate) use self::hub::{Hub, Refused};
pub(crate) use self::poll::poll;
pub(crate) use self::scope::Scope;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::query::{Change, ChangedTask, PreviousStatus};

    fn task(exec_id: &str, status: &str, place: (i32, i64)) -> ChangedTask {
        ChangedTask {
            exec_id: exec_id.to_owned(),
            job_id: "job-1".to_owned(),
            engine_instance: "node-1:1".to_owned(),
            engine_type: "spark".to_owned(),
            engine_user: "ada".to_owned(),
            ticket_id: String::new(),
            status: status.to_owned(),
            progress: None,
            started_at: None,
            ended_at: None,
            reported_at: "2025-11-25T14:05:00.000000Z".to_owned(),
            sequence: 0,
            event_partition: place.0,
            event_offset: place.1,
            is_final: ["Succeed", "Failed"].contains(&status),
        }
    }

    fn changed(
        task_id: i64,
        previous_status: PreviousStatus,
        item: ChangedTask,
        is_late: bool,
    ) -> Arc<Change> {
        Arc::new(Change {
            previous_ownership: None,
            task_id,
            json: serde_json::to_string(&item).unwrap().into(),
            item,
            previous_status,
            is_late,
        })
    }

    /// A task with this key, whose newest event has this partition and offset.
    pub(super) fn change(task_id: i64, partition: i32, offset: i64) -> Arc<Change> {
        let item = task(&format!("exec-{task_id}"), "Running", (partition, offset));
        changed(task_id, PreviousStatus::Unknown, item, false)
    }

    /// The same, found late.
    pub(super) fn late(task_id: i64, partition: i32, offset: i64) -> Arc<Change> {
        let item = task(&format!("exec-{task_id}"), "Failed", (partition, offset));
        changed(task_id, PreviousStatus::Unknown, item, true)
    }

    pub(super) fn named(exec_id: &str, status: &str) -> Arc<Change> {
        changed(
            1,
            PreviousStatus::Unknown,
            task(exec_id, status, (0, 0)),
            false,
        )
    }

    /// A task whose status changed; its previous status may be unknown.
    pub(super) fn moved(from: Option<&str>, to: &str) -> Arc<Change> {
        let before = from.map_or(PreviousStatus::Unknown, |status| {
            PreviousStatus::Known(status.to_owned())
        });
        changed(1, before, task("exec-1", to, (0, 0)), false)
    }
}
