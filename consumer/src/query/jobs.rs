//! Jobs: exec tasks aggregated by job id.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemas::TaskStatus;
use serde::Serialize;
use utoipa::ToSchema;

use super::cursor::{cursor, position, reported};
use super::filter::{LARGEST_LIMIT, STATUSES, check_limit, check_text};
use super::reader::{QueryError, Reader};
use super::sql::{self, Statement};
use super::watermark::Watermark;
use crate::store::{Dialect, Row, Session, StoreError, Value};

/// Selects jobs. The serialized fields must be the same for each page.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct JobsQuery {
    /// Only this job.
    pub(crate) job_id: Option<String>,
    /// Only exec tasks of this user; others are not counted.
    pub(crate) user: Option<String>,
    /// Only jobs with an exec task that has not ended.
    pub(crate) running: bool,
    /// As known at this time; `None`: now.
    pub(crate) at: Option<Timestamp>,
    /// From 1 to [`LARGEST_LIMIT`].
    #[serde(skip)]
    pub(crate) limit: u32,
    /// `next` of the previous page.
    #[serde(skip)]
    pub(crate) cursor: Option<String>,
}

/// A page of a list of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct JobPage {
    /// Sorted by `started_at`, latest first.
    pub(crate) items: Vec<JobItem>,
    /// The cursor of the next page; null on the last page.
    pub(crate) next: Option<String>,
    pub(crate) watermark: Watermark,
    /// `consumer expire` removed the reports before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expired_before: Option<Timestamp>,
}

/// A job: the aggregate of its exec tasks. Times are RFC 3339 in UTC, with microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct JobItem {
    pub(crate) job_id: String,
    /// Number of exec tasks.
    pub(crate) tasks: i64,
    /// Number of exec tasks that have neither a final status nor `Unknown`.
    pub(crate) running_tasks: i64,
    /// Number of exec tasks by status, without zeros.
    pub(crate) statuses: BTreeMap<String, i64>,
    /// Mean progress, 0 to 1, of the exec tasks that reported one; null if none did.
    pub(crate) progress_mean: Option<f64>,
    /// The lowest progress.
    pub(crate) progress_least: Option<f64>,
    /// First report of the first exec task.
    pub(crate) started_at: String,
    /// Last report of any exec task.
    pub(crate) reported_at: String,
    /// When the last exec task ended; null until all have a final status.
    pub(crate) ended_at: Option<String>,
    /// Sum over the applications of the newest reports of exec tasks without a final status; an application counts
    /// once. Null if none reported resources.
    pub(crate) memory_bytes: Option<i64>,
    /// As `memory_bytes`.
    pub(crate) cores: Option<i64>,
}

impl JobsQuery {
    fn check(&self) -> Result<(), QueryError> {
        check_limit(self.limit, LARGEST_LIMIT)?;
        check_text("job_id", self.job_id.as_deref())?;
        check_text("user", self.user.as_deref())
    }
}

impl Reader {
    /// One page of the matching jobs.
    ///
    /// # Errors
    /// If a parameter or the cursor is invalid, the requested time is before [`expired_before`](Self::expired_before),
    /// or the database fails.
    pub(crate) async fn jobs(&mut self, query: &JobsQuery) -> Result<JobPage, QueryError> {
        query.check()?;
        self.require_history(query.at)?;
        let position: Option<(i64, String)> = position(query.cursor.as_deref(), query)?;
        let after = match position {
            Some((started, job_id)) => Some((reported(started)?, job_id)),
            None => None,
        };
        let read = page(&mut *self.session, query, after).await;
        let (items, last) = self.answered(read, "the jobs").await?;
        let next = last.map(|last| cursor(query, &last));
        Ok(JobPage {
            items,
            next,
            watermark: self.watermark().await?,
            expired_before: self.expired_before(),
        })
    }
}

/// The jobs of the page, and the position of the last one if there are more.
async fn page(
    session: &mut dyn Session,
    query: &JobsQuery,
    after: Option<(i64, String)>,
) -> Result<(Vec<JobItem>, Option<(i64, String)>), StoreError> {
    let mut statement = Statement::default();
    let select = select(session.dialect(), query, after, &mut statement);
    let rows = session.select(&select, &statement.values).await?;
    let mut items = rows.into_iter().map(item).collect::<Result<Vec<_>, _>>()?;
    let has_more = items.len() > query.limit as usize;
    items.truncate(query.limit as usize);
    let last = items.last();
    let last = last.map(|(item, started)| (*started, item.job_id.clone()));
    let mut items: Vec<JobItem> = items.into_iter().map(|(item, _)| item).collect();
    hold(session, query, &mut items).await?;
    Ok((items, last.filter(|_| has_more)))
}

fn select(
    dialect: &dyn Dialect,
    query: &JobsQuery,
    after: Option<(i64, String)>,
    statement: &mut Statement,
) -> String {
    let mut filters = Vec::new();
    if let Some(job_id) = &query.job_id {
        filters.push(format!("task.job_id = {}", statement.bind(job_id.as_str())));
    }
    if let Some(user) = &query.user {
        filters.push(format!(
            "task.engine_user = {}",
            statement.bind(user.as_str())
        ));
    }
    let tasks = format!(
        "SELECT task.job_id, task.status, task.is_final, task.progress, task.reported_at, \
         coalesce(task.first_reported_at, task.reported_at) AS started, \
         coalesce(task.ended_at, task.reported_at) AS ended FROM {} {}",
        sql::tasks(dialect, query.at),
        sql::clause("WHERE", &filters)
    );
    let running = "sum(CASE WHEN NOT task.is_final AND task.status <> 'Unknown' THEN 1 ELSE 0 END)";
    let mut having = Vec::new();
    if query.running {
        having.push(format!("{running} > 0"));
    }
    let by_name = format!("task.job_id COLLATE {}", dialect.bytewise());
    if let Some((started, job_id)) = after {
        let (started, job_id) = (dialect.time_of(started), statement.bind(job_id));
        having.push(format!(
            "(min(task.started) < {started} OR (min(task.started) = {started} AND {by_name} > {job_id}))"
        ));
    }
    let statuses = STATUSES.map(|status| {
        let column = status_column(status);
        format!("sum(CASE task.status WHEN '{status}' THEN 1 ELSE 0 END) AS {column}")
    });
    let limit = statement.bind(i64::from(query.limit) + 1);
    format!(
        "SELECT task.job_id, count(*) AS tasks, {running} AS running_tasks, {}, avg(task.progress) AS progress_mean, \
         min(task.progress) AS progress_least, {} AS started_at, {} AS started_micros, {} AS reported_at, \
         CASE WHEN sum(CASE WHEN task.is_final THEN 0 ELSE 1 END) = 0 THEN {} END AS ended_at \
         FROM ({tasks}) AS task GROUP BY task.job_id {} ORDER BY min(task.started) DESC, {by_name} LIMIT {limit}",
        statuses.join(", "),
        dialect.rfc3339("min(task.started)"),
        dialect.epoch_micros("min(task.started)"),
        dialect.rfc3339("max(task.reported_at)"),
        dialect.rfc3339("max(task.ended)"),
        sql::clause("HAVING", &having)
    )
}

fn status_column(status: TaskStatus) -> String {
    format!("status_{status}").to_lowercase()
}

/// A job before resources are added, and when it started.
fn item(mut row: Row) -> Result<(JobItem, i64), StoreError> {
    let mut statuses = BTreeMap::new();
    for status in STATUSES {
        let count: i64 = row.take(&status_column(status))?;
        if count > 0 {
            statuses.insert(status.to_string(), count);
        }
    }
    let item = JobItem {
        job_id: row.take("job_id")?,
        tasks: row.take("tasks")?,
        running_tasks: row.take("running_tasks")?,
        statuses,
        progress_mean: row.take("progress_mean")?,
        progress_least: row.take("progress_least")?,
        started_at: row.take("started_at")?,
        reported_at: row.take("reported_at")?,
        ended_at: row.take("ended_at")?,
        memory_bytes: None,
        cores: None,
    };
    Ok((item, row.take("started_micros")?))
}

/// Adds resources: for each application, the newest row that belongs to the newest resource part of one of the job's
/// tasks.
async fn hold(
    session: &mut dyn Session,
    query: &JobsQuery,
    items: &mut [JobItem],
) -> Result<(), StoreError> {
    if items.is_empty() {
        return Ok(());
    }
    let dialect = session.dialect();
    let mut statement = Statement::default();
    let jobs = Value::Texts(items.iter().map(|item| item.job_id.clone()).collect());
    let mut conditions = vec![
        "NOT task.is_final".to_owned(),
        dialect.is_one_of("task.job_id", &statement.bind(jobs)),
    ];
    if let Some(user) = &query.user {
        conditions.push(format!(
            "task.engine_user = {}",
            statement.bind(user.as_str())
        ));
    }
    conditions.push("held.task_id = task.task_id".to_owned());
    conditions.push(sql::known(dialect, "held", query.at));
    let newest = |alias| sql::of(alias, sql::NEWEST_PART);
    let select = format!(
        "SELECT job_id, {} AS memory_bytes, {} AS cores FROM (SELECT part.job_id, part.memory_bytes, part.cores, \
         row_number() OVER (PARTITION BY part.job_id, part.application_id ORDER BY {}) AS nth \
         FROM (SELECT task.job_id, held.*, rank() OVER (PARTITION BY held.task_id ORDER BY {}) AS place \
         FROM {} CROSS JOIN task_resource AS held {}) AS part WHERE part.place = 1) AS applications \
         WHERE nth = 1 GROUP BY job_id",
        dialect.bounded_sum("memory_bytes"),
        dialect.bounded_sum("cores"),
        newest("part"),
        newest("held"),
        sql::tasks(dialect, query.at),
        sql::clause("WHERE", &conditions)
    );
    let mut held = BTreeMap::<String, (Option<i64>, Option<i64>)>::new();
    for mut row in session.select(&select, &statement.values).await? {
        let (memory, cores) = (row.take("memory_bytes")?, row.take("cores")?);
        held.insert(row.take("job_id")?, (memory, cores));
    }
    for item in items {
        if let Some((memory, cores)) = held.remove(&item.job_id) {
            (item.memory_bytes, item.cores) = (memory, cores);
        }
    }
    Ok(())
}
