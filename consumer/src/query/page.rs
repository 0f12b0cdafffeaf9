//! Lists of tasks, a page at a time.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cursor::{place, time};
use super::filter::{LARGEST_LIMIT, TaskQuery, check_limit};
use super::list::{Failed, List, Matching, Place};
use super::marks::Judge;
use super::reader::{QueryError, Reader, failed, is_no_text};
use super::sql::{self, Statement};
use super::watermark::Watermark;
use crate::store::{Dialect, Row, StoreError};

/// A page of a list of tasks.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct TaskPage {
    pub(crate) items: Vec<TaskItem>,
    /// The cursor of the next page; `None`: this is the last one.
    pub(crate) next: Option<String>,
    /// How far the events were stored.
    pub(crate) watermark: Watermark,
    /// `consumer expire` removed what was reported before this time. A list as of an earlier moment lacks tasks that
    /// reported before it and next after that moment.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expired_before: Option<Timestamp>,
}

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
    /// 0 to 1, of the newest report; `None` if the engine could not tell.
    pub(crate) progress: Option<f64>,
    /// When the task was first heard of.
    pub(crate) started_at: Option<String>,
    /// `None`: it has not ended.
    pub(crate) ended_at: Option<String>,
    /// From the start to the end, to the last report of a task whose status is `Unknown`, else to the moment that is
    /// asked for.
    pub(crate) running_seconds: Option<f64>,
    pub(crate) reported_at: String,
    pub(crate) sequence: i64,
    /// Held by all its applications, in the newest report that tells; `None`: none told, or the task has ended.
    pub(crate) memory_bytes: Option<i64>,
    /// As `memory_bytes`.
    pub(crate) cores: Option<i64>,
    /// How long ago the last report is, if the task is silent.
    pub(crate) silent_seconds: Option<f64>,
    /// For how long nothing has changed, if the task is stalled.
    pub(crate) stalled_seconds: Option<f64>,
    pub(crate) event_partition: i32,
    pub(crate) event_offset: i64,
}

impl Reader {
    /// One page of the tasks that match. Pages of one snapshot neither overlap nor leave a task out.
    ///
    /// # Errors
    /// If a parameter or the cursor is no good, if the time asked for is before
    /// [`expired_before`](Self::expired_before), or if the database fails.
    pub(crate) async fn page(&mut self, query: &TaskQuery) -> Result<TaskPage, QueryError> {
        check_limit(query.limit, LARGEST_LIMIT)?;
        self.list(query, Some(query.limit)).await
    }

    /// As [`page`](Self::page), of a size of the caller's own; `None`: all that there are.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub(crate) async fn list(
        &mut self,
        query: &TaskQuery,
        limit: Option<u32>,
    ) -> Result<TaskPage, QueryError> {
        self.read(query, limit, 0).await
    }

    /// As [`page`](Self::page), without so many tasks at its beginning: for callers who number their pages. The database
    /// reads what it skips.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub(crate) async fn numbered_page(
        &mut self,
        query: &TaskQuery,
        skip: u32,
    ) -> Result<TaskPage, QueryError> {
        check_limit(query.limit, LARGEST_LIMIT)?;
        self.read(query, Some(query.limit), skip).await
    }

    async fn read(
        &mut self,
        query: &TaskQuery,
        limit: Option<u32>,
        skip: u32,
    ) -> Result<TaskPage, QueryError> {
        let place: Option<Place> = place(query.cursor.as_deref(), query)?;
        let moment = self.moment(query, place.as_ref())?;
        let list = List {
            query,
            moment,
            dialect: self.session.dialect(),
        };
        let read = list.read(&mut *self.session, place, limit, skip).await;
        let (items, next) = read.map_err(|error| match error {
            Failed::Query(error) => error,
            Failed::Store(source) => QueryError::Store {
                doing: format!("reading the tasks of {}", self.place),
                source,
            },
        })?;
        Ok(TaskPage {
            items,
            next,
            watermark: self.watermark().await?,
            expired_before: self.expired_before(),
        })
    }

    /// How many tasks match, on all pages.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub(crate) async fn count(&mut self, query: &TaskQuery) -> Result<u64, QueryError> {
        let place: Option<Place> = place(query.cursor.as_deref(), query)?;
        let moment = self.moment(query, place.as_ref())?;
        let dialect = self.session.dialect();
        let mut statement = Statement::default();
        let matching = Matching::of(query, moment, dialect, &mut statement);
        let count = format!(
            "SELECT count(*) AS total FROM {} {}",
            matching.tasks,
            sql::clause("WHERE", &matching.conditions)
        );
        let total = self.session.select_one(&count, &statement.values).await;
        let total = total.and_then(|row| row.map_or(Ok(0), |mut row| row.take("total")));
        let total: i64 =
            total.map_err(failed(|| format!("reading the tasks of {}", self.place)))?;
        Ok(total.unsigned_abs())
    }

    /// One task, as a list has it; `None`: there is no such task, or it had not reported by then.
    ///
    /// # Errors
    /// If the time asked for is before [`expired_before`](Self::expired_before), or the database fails.
    pub(crate) async fn item(
        &mut self,
        exec_id: &str,
        at: Option<Timestamp>,
    ) -> Result<Option<TaskItem>, QueryError> {
        let query = TaskQuery {
            at,
            ..TaskQuery::default()
        };
        let judge = Judge::of(&query, self.moment(&query, None)?);
        if is_no_text(exec_id) {
            return Ok(None);
        }
        let dialect = self.session.dialect();
        let mut statement = Statement::default();
        let chosen = format!(
            "SELECT {} FROM {} WHERE task.exec_id = {}",
            sql::task_names(),
            sql::tasks(dialect, at),
            statement.bind(exec_id),
        );
        let select = items_of_page(&chosen, &judge, dialect, "");
        let row = self.session.select_one(&select, &statement.values).await;
        let item = row.and_then(|row| row.map(|mut row| item(&mut row, &judge)).transpose());
        item.map_err(failed(|| {
            format!("reading the task {exec_id} of {}", self.place)
        }))
    }

    /// When silence, stalling and running times of a list are judged.
    fn moment(&self, query: &TaskQuery, place: Option<&Place>) -> Result<Timestamp, QueryError> {
        query.filter.check()?;
        self.require_history(query.at)?;
        match place {
            Some(place) => time(place.moment),
            None => Ok(query.at.unwrap_or_else(Timestamp::now)),
        }
    }
}

/// The columns of a [`TaskItem`] and others, of chosen tasks, which become `page`.
pub(super) fn items_of_page(
    chosen: &str,
    judge: &Judge<'_>,
    dialect: &dyn Dialect,
    others: &str,
) -> String {
    let micros = |column: &str| dialect.epoch_micros(column);
    let at = judge.at;
    format!(
        "WITH page AS MATERIALIZED ({chosen}) SELECT {}, {} AS started_at, {} AS ended_at, {} AS started_micros, {} AS ended_micros, {} AS reported_micros, \
         held.memory_bytes, held.cores, CASE WHEN task.is_final THEN 1 ELSE 0 END AS ended, \
         {} AS usual_micros, CASE WHEN {} THEN {} END AS unchanged_micros{others} \
         FROM page AS task LEFT JOIN {} AS held ON held.of_task = task.task_id",
        sql::task_columns(dialect),
        dialect.rfc3339("task.first_reported_at"),
        dialect.rfc3339("task.ended_at"),
        micros("task.first_reported_at"),
        micros("task.ended_at"),
        micros("task.reported_at"),
        judge.deciding_interval(dialect),
        judge.may_be_stalled(dialect),
        sql::unchanged_since(dialect, at),
        sql::held_of_page(dialect, at),
    )
}

/// A row of [`items_of_page`].
pub(super) fn item(row: &mut Row, judge: &Judge<'_>) -> Result<TaskItem, StoreError> {
    let reported: i64 = row.take("reported_micros")?;
    let started: Option<i64> = row.take("started_micros")?;
    let ended: Option<i64> = row.take("ended_micros")?;
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
        started_at: row.take("started_at")?,
        ended_at: row.take("ended_at")?,
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
