//! Which tasks a command lists, and in which order.

use std::time::Duration;

use jiff::Timestamp;
use service::time::{duration, timestamp};

use crate::query::{TaskFilter, TaskOrder, TaskQuery, Thresholds};

/// Options of commands that list tasks. A time is RFC 3339, or relative to now as in -2h.
#[derive(Clone, Debug, clap::Args)]
pub struct TaskOptions {
    /// Only tasks that have not ended: their status is neither final nor Unknown
    #[arg(long)]
    running: bool,
    /// Only tasks with one of these statuses, as in Running,Scheduled
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    status: Vec<String>,
    /// Only tasks of this engine user
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only tasks of engines of this type, for example spark
    #[arg(long, value_name = "TYPE")]
    engine_type: Option<String>,
    /// Only tasks of this engine
    #[arg(long, value_name = "HOST:PORT")]
    engine_instance: Option<String>,
    /// Only exec tasks of this job
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Only exec tasks whose ids start with this text
    #[arg(long, value_name = "TEXT")]
    exec_id_prefix: Option<String>,
    /// Only silent tasks: not ended, and no report for --silent-after
    #[arg(long)]
    silent: bool,
    /// Only stalled tasks: still reporting, but unchanged for --stalled-after
    #[arg(long)]
    stalled: bool,
    /// Only tasks first reported at this time or later
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    started_after: Option<Timestamp>,
    /// Only tasks first reported before this time
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    started_before: Option<Timestamp>,
    /// Only tasks last reported at this time or later
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    reported_after: Option<Timestamp>,
    /// Only tasks last reported before this time
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    reported_before: Option<Timestamp>,
    /// Only tasks that ended at this time or later
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    ended_after: Option<Timestamp>,
    /// Only tasks that ended before this time
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    ended_before: Option<Timestamp>,
    /// Sort key, the largest or latest first; tasks without a value come last
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    order: TaskOrder,
    /// Sort the smallest or earliest first
    #[arg(long)]
    ascending: bool,
    /// Show tasks as of this time, by the engine's clock: RFC 3339, or relative to now as in -2h
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    at: Option<Timestamp>,
    /// Time without a report after which a task is silent [default: the larger of 60s and five times its usual
    /// interval]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    silent_after: Option<Duration>,
    /// Time without a change after which a task is stalled
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "15m")]
    stalled_after: Duration,
}

impl TaskOptions {
    pub(crate) fn query(self) -> TaskQuery {
        TaskQuery {
            filter: TaskFilter {
                status: self.status,
                running: self.running,
                user: self.user,
                engine_type: self.engine_type,
                engine_instance: self.engine_instance,
                job_id: self.job,
                exec_id_prefix: self.exec_id_prefix,
                silent: self.silent,
                stalled: self.stalled,
                started_after: self.started_after,
                started_before: self.started_before,
                reported_after: self.reported_after,
                reported_before: self.reported_before,
                ended_after: self.ended_after,
                ended_before: self.ended_before,
            },
            order: self.order,
            descending: !self.ascending,
            at: self.at,
            thresholds: Thresholds {
                silent_after: self.silent_after,
                stalled_after: self.stalled_after,
            },
            ..TaskQuery::default()
        }
    }
}
