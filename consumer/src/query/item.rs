//! A task in a list.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::marks::Judge;
use super::sql;
use crate::store::{Dialect, Row, StoreError};

/// A task of a list. Times are RFC 3339 in UTC, with microseconds.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct TaskItem {
    pub(crate) exec_id: String,
    pub(crate) job_id: String,
    pub(crate) engine_instance: String,
    pub(crate) engine_type: String,
    pub(crate) engine_user: String,
    pub(crate) ticket_id: String,
    pub(crate) status: String,
    /// 0 to 1, from the newest report; null if the engine did not report it.
    pub(crate) progress: Option<f64>,
    /// Time of the first report.
    pub(crate) started_at: Option<String>,
    /// Null while the task has not ended.
    pub(crate) ended_at: Option<String>,
    /// From the start to the end; if the status is `Unknown`, to the last report; otherwise to the time of the query.
    pub(crate) running_seconds: Option<f64>,
    pub(crate) reported_at: String,
    pub(crate) sequence: i64,
    /// Sum over the applications of the newest report that has resources; null if there is none or the task has
    /// ended.
    pub(crate) memory_bytes: Option<i64>,
    /// As `memory_bytes`.
    pub(crate) cores: Option<i64>,
    /// Age of the last report, if the task is silent.
    pub(crate) silent_seconds: Option<f64>,
    /// How long nothing has changed, if the task is stalled.
    pub(crate) stalled_seconds: Option<f64>,
    pub(crate) event_partition: i32,
    pub(crate) event_offset: i64,
}

/// SQL: the columns of a [`TaskItem`], and more, for the chosen tasks; these become the CTE `page`.
pub(super) fn items_of_page(
    chosen: &str,
    judge: &Judge<'_>,
    dialect: &dyn Dialect,
    others: &str,
) -> String {
    let micros = |column: &str| dialect.epoch_micros(column);
    let (at, materialized) = (judge.at, dialect.materialized().unwrap_or_default());
    format!(
        "WITH page AS {materialized} ({chosen}) SELECT {}, {} AS started_at, {} AS ended_at, {} AS started_micros, {} AS ended_micros, {} AS reported_micros, \
         held.memory_bytes, held.cores, CASE WHEN task.is_final THEN 1 ELSE 0 END AS ended, \
         {} AS usual_micros, CASE WHEN {} THEN {} END AS unchanged_micros{others} \
         FROM page AS task LEFT JOIN {} AS held ON held.of_task = task.task_id",
        sql::task_columns(dialect),
        dialect.rfc3339("task.first_reported_at"),
        dialect.rfc3339("task.ended_at"),
        micros("task.first_reported_at"),
        micros("task.ended_at"),
        micros("task.reported_at"),
        judge.deciding_interval(dialect, "page"),
        judge.may_be_stalled(dialect),
        sql::unchanged_since(dialect, "page", at),
        sql::held_of(dialect, "page", at),
    )
}

/// Reads a row of [`items_of_page`].
pub(super) fn item(row: &mut Row, judge: &Judge<'_>) -> Result<TaskItem, StoreError> {
    let reported: i64 = row.take("reported_micros")?;
    let started: Option<i64> = row.take("started_micros")?;
    let ended: Option<i64> = row.take("ended_micros")?;
    let started_at: Option<String> = row.take("started_at")?;
    let ended_at: Option<String> = row.take("ended_at")?;
    if (started.is_some(), ended.is_some()) != (started_at.is_some(), ended_at.is_some()) {
        let why = "first_reported_at or ended_at is no time of the years 1 to 9999";
        return Err(StoreError::Unreadable(why.to_owned()));
    }
    let status: String = row.take("status")?;
    let has_ended = row.take::<i64>("ended")? == 1;
    let until = match has_ended {
        true => ended,
        false if status == "Unknown" => Some(reported),
        false => Some(judge.moment.as_microsecond()),
    };
    let running = started
        .zip(until)
        .map(|(from, until)| seconds(until.saturating_sub(from).max(0)));
    let marks = judge.marks(
        has_ended,
        reported,
        row.take("usual_micros")?,
        row.take("unchanged_micros")?,
    );
    Ok(TaskItem {
        exec_id: row.take("exec_id")?,
        job_id: row.take("job_id")?,
        engine_instance: row.take("engine_instance")?,
        engine_type: row.take("engine_type")?,
        engine_user: row.take("engine_user")?,
        ticket_id: row.take("ticket_id")?,
        status,
        progress: row.take("progress")?,
        started_at,
        ended_at,
        running_seconds: running,
        reported_at: row.take("reported_at")?,
        sequence: row.take("sequence")?,
        memory_bytes: row.take("memory_bytes")?,
        cores: row.take("cores")?,
        silent_seconds: marks.silent_micros.map(seconds),
        stalled_seconds: marks.stalled_micros.map(seconds),
        event_partition: row.take("event_partition")?,
        event_offset: row.take("event_offset")?,
    })
}

fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
