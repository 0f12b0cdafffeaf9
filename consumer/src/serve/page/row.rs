//! A task as a row of the list, and as the title of its own view.

use jiff::Timestamp;
use service::text::shown;

use super::format::{ABSENT, ago, coarse, duration, gib, or_absent, percent};
use super::links::{self, Query};
use super::status::Status;
use crate::query::TaskItem;

/// A task, formatted. Hidden characters in text from reports are replaced.
pub(super) struct Row {
    /// Identifies the row for the scripts.
    pub(super) key: String,
    pub(super) name: String,
    pub(super) href: String,
    pub(super) status: Status,
    pub(super) silent: Option<String>,
    pub(super) stalled: Option<String>,
    /// From 0 to 1, and formatted.
    pub(super) progress: Option<(f64, String)>,
    pub(super) running: Running,
    pub(super) started_at: Option<String>,
    pub(super) ended_at: Option<String>,
    pub(super) reported_at: String,
    pub(super) reported_ago: String,
    pub(super) sequence: i64,
    pub(super) memory: String,
    pub(super) cores: String,
    pub(super) engine: String,
    pub(super) user: String,
    pub(super) job: String,
}

/// The running time of a task.
pub(super) struct Running {
    pub(super) text: String,
    /// The start, if the time is still running.
    pub(super) ticks_from: Option<String>,
}

impl Row {
    /// `time` is the past time, if one is shown, which links keep.
    pub(super) fn of(item: TaskItem, time: &Query, now: Timestamp) -> Self {
        let status = Status::of(&item.status);
        let goes_on = item.ended_at.is_none() && !status.is_over();
        Self {
            name: shown(&item.exec_id),
            href: links::task(&item.exec_id, time),
            key: links::key(&item.exec_id),
            status,
            silent: item.silent_seconds.map(duration),
            stalled: item.stalled_seconds.map(coarse),
            progress: item.progress.map(|share| (share, percent(share))),
            running: Running {
                text: item
                    .running_seconds
                    .map_or_else(|| ABSENT.to_owned(), duration),
                ticks_from: item.started_at.clone().filter(|_| goes_on),
            },
            started_at: item.started_at,
            ended_at: item.ended_at,
            reported_ago: ago(&item.reported_at, now),
            reported_at: item.reported_at,
            sequence: item.sequence,
            memory: or_absent(item.memory_bytes, gib),
            cores: or_absent(item.cores, |cores| cores.to_string()),
            engine: shown(&format!("{} {}", item.engine_type, item.engine_instance)),
            user: shown(&item.engine_user),
            job: shown(&item.job_id),
        }
    }
}
