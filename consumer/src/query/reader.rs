//! One consistent answer from the database: every question is asked of the same snapshot.

use std::time::Duration;

use jiff::Timestamp;

use super::model::{Metrics, Sequences, Task, TaskDetails};
use super::sql::{self, NEWEST, NEWEST_PART};
use super::watermark::Watermark;
use crate::rows::Part;
use crate::store::{Access, Database, Row, Session, StoreError};

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// The caller asked for a time whose history `consumer expire` has removed.
    #[error(
        "{place} does not tell what was known at {at}: history before {before} was removed from it by consumer expire; ask \
         for that time or a later one"
    )]
    Expired {
        place: String,
        at: Timestamp,
        before: Timestamp,
    },
    /// The cursor is no cursor, or not one of this query.
    #[error("the cursor {why}: leave it out to begin with the first page")]
    Cursor { why: &'static str },
    /// A parameter has a value that it cannot have.
    #[error("{name}: {why}")]
    Parameter { name: &'static str, why: String },
    /// The database failed, is not there or has no tables.
    #[error("{doing}")]
    Store { doing: String, source: StoreError },
}

impl QueryError {
    /// Whether the database ended the query because it took too long.
    pub(crate) fn is_too_long(&self) -> bool {
        let Self::Store { source, .. } = self else {
            return false;
        };
        matches!(source, StoreError::TooLong(_))
    }
}

/// A read-only connection that sees the tables as of one moment.
pub(crate) struct Reader {
    pub(super) session: Box<dyn Session>,
    pub(super) place: String,
    expired_before: Option<Timestamp>,
    query_limit: Option<Duration>,
    in_snapshot: bool,
}

impl Reader {
    /// Connects and begins a snapshot.
    ///
    /// # Errors
    /// If the database is not there or has no tables.
    pub(crate) async fn open(database: &Database) -> Result<Self, QueryError> {
        Self::open_limited(database, None).await
    }

    /// The same; with a limit, the database ends each query that takes longer.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) async fn open_limited(
        database: &Database,
        query_limit: Option<Duration>,
    ) -> Result<Self, QueryError> {
        let place = database.place();
        let session = database.session(Access::Read).await;
        let session = session.map_err(failed(|| format!("opening {place}")))?;
        let mut reader = Self {
            session,
            place,
            expired_before: None,
            query_limit,
            in_snapshot: false,
        };
        reader.renew().await?;
        Ok(reader)
    }

    /// Ends the snapshot, if there is one, and begins a new one on the same connection.
    ///
    /// # Errors
    /// If the database fails, or a file was opened that is no longer the database's.
    pub(crate) async fn renew(&mut self) -> Result<(), QueryError> {
        self.rest().await?;
        let Self {
            session,
            query_limit,
            place,
            ..
        } = self;
        let begun = async {
            session.is_in_place()?;
            session.begin_snapshot().await?;
            match session.dialect().query_settings() {
                "" => {}
                settings => drop(session.execute(settings, &[]).await?),
            }
            if let Some(limit) = query_limit {
                session.limit_queries(*limit).await?;
            }
            // The first query fixes the moment.
            session.expired_before().await
        };
        let begun = begun.await;
        self.expired_before = begun.map_err(failed(|| format!("reading {place}")))?;
        self.in_snapshot = true;
        Ok(())
    }

    /// Ends the snapshot: an idle connection is to keep no old row versions from being removed, and no log of SQLite's
    /// from starting over.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn rest(&mut self) -> Result<(), QueryError> {
        if std::mem::take(&mut self.in_snapshot) {
            let ended = self.session.execute("COMMIT", &[]).await;
            ended.map_err(failed(|| format!("reading {}", self.place)))?;
        }
        Ok(())
    }

    /// The database, as users know it: without a password.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// `consumer expire` removed what was reported before this time; `None`: nothing was removed.
    pub(crate) fn expired_before(&self) -> Option<Timestamp> {
        self.expired_before
    }

    /// How much of the events topic this snapshot has seen.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn watermark(&mut self) -> Result<Watermark, QueryError> {
        let read = Watermark::read(&mut *self.session).await;
        read.map_err(failed(|| {
            format!("reading the stored offsets of {}", self.place)
        }))
    }

    /// One task: its state, what it holds, its sequences, and at most `limit` of its newest reports (0: all). With `at`: as
    /// they were known then. `None`: there is no such task, or it had not reported by then.
    ///
    /// # Errors
    /// If `at` is before [`expired_before`](Self::expired_before), or the database fails.
    pub(crate) async fn task(
        &mut self,
        exec_id: &str,
        at: Option<Timestamp>,
        limit: u32,
    ) -> Result<Option<TaskDetails>, QueryError> {
        self.require_history(at)?;
        if is_no_text(exec_id) {
            return Ok(None);
        }
        let details = task_details(&mut *self.session, exec_id, at, limit, self.expired_before);
        let reading = || format!("reading the task {exec_id} of {}", self.place);
        details.await.map_err(failed(reading))
    }

    /// The time of a task's oldest report, RFC 3339; `None`: the tables hold none of it.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn first_report(
        &mut self,
        exec_id: &str,
    ) -> Result<Option<String>, QueryError> {
        let select = format!(
            "SELECT {} FROM task_progress WHERE task_id = (SELECT task_id FROM task WHERE exec_id = $1) \
             ORDER BY task_progress.reported_at LIMIT 1",
            sql::reported_at(self.session.dialect())
        );
        let first = self.session.select_one(&select, &[exec_id.into()]).await;
        let first =
            first.and_then(|first| first.map(|mut row| row.take("reported_at")).transpose());
        first.map_err(failed(|| {
            format!("reading the task {exec_id} of {}", self.place)
        }))
    }

    pub(super) fn session(&mut self) -> &mut dyn Session {
        &mut *self.session
    }

    /// What an error while reading this means.
    pub(super) fn reading(&self, what: &str) -> impl FnOnce(StoreError) -> QueryError + use<> {
        let doing = format!("reading {what} of {}", self.place);
        |source| QueryError::Store { doing, source }
    }

    /// What was known before history was removed nobody can tell.
    pub(super) fn require_history(&self, at: Option<Timestamp>) -> Result<(), QueryError> {
        match (at, self.expired_before) {
            (Some(at), Some(before)) if at < before => Err(QueryError::Expired {
                place: self.place.clone(),
                at,
                before,
            }),
            _ => Ok(()),
        }
    }
}

/// Whether no stored text can be this: PostgreSQL would refuse it as a parameter.
pub(super) fn is_no_text(text: &str) -> bool {
    text.contains('\0')
}

pub(super) fn failed(doing: impl FnOnce() -> String) -> impl FnOnce(StoreError) -> QueryError {
    |source| QueryError::Store {
        doing: doing(),
        source,
    }
}

/// Each row as a value.
fn all<T>(rows: Vec<Row>) -> Result<Vec<T>, StoreError>
where
    T: for<'r> TryFrom<&'r mut Row, Error = StoreError>,
{
    rows.into_iter()
        .map(|mut row| T::try_from(&mut row))
        .collect()
}

async fn task_details(
    session: &mut dyn Session,
    exec_id: &str,
    at: Option<Timestamp>,
    limit: u32,
    expired_before: Option<Timestamp>,
) -> Result<Option<TaskDetails>, StoreError> {
    let dialect = session.dialect();
    let select = format!(
        "SELECT {} FROM {} WHERE exec_id = $1",
        sql::task_columns(dialect),
        sql::tasks(dialect, at)
    );
    let Some(mut task) = session.select_one(&select, &[exec_id.into()]).await? else {
        return Ok(None);
    };
    let task = Task::try_from(&mut task)?;
    let of_task = || task.task_id.into();
    let reported_at = sql::reported_at(dialect);
    let known = |part: Part| sql::known(dialect, part.table().name(), at);

    // The newest event that has a resource part, whole.
    let resource = format!(
        "SELECT application_id, status, queue, memory_bytes, cores, instances, {reported_at} FROM task_resource \
         WHERE task_id = $1 AND (reported_at, event_partition, event_offset) = \
         (SELECT reported_at, event_partition, event_offset FROM task_resource WHERE task_id = $1 AND {} \
         ORDER BY {NEWEST_PART} LIMIT 1) \
         ORDER BY application_id",
        known(Part::Resource)
    );
    let resource = all(session.select(&resource, &[of_task()]).await?)?;

    let metrics = format!(
        "SELECT engine_running_tasks, {} AS metrics, {reported_at} FROM task_metrics WHERE task_id = $1 AND {} \
         ORDER BY task_metrics.{NEWEST_PART} LIMIT 1",
        dialect.json_text("metrics"),
        known(Part::Metrics)
    );
    let metrics = session.select_one(&metrics, &[of_task()]).await?;
    let metrics = metrics.map(|mut row| Metrics::try_from(&mut row));

    let lists = ["job_ids", "job_tasks", "adjustments"]
        .map(|column| format!("{} AS {column}", dialect.array_as_json(column)));
    let reports = format!(
        "SELECT sequence, {reported_at}, status, progress, {}, event_partition, event_offset FROM task_progress \
         WHERE task_id = $1 AND {} ORDER BY task_progress.{NEWEST} LIMIT $2",
        lists.join(", "),
        known(Part::Progress)
    );
    let limit = sql::limit(limit).into();
    let reports = all(session.select(&reports, &[of_task(), limit]).await?)?;

    let sequences = format!(
        "SELECT sequence FROM task_progress WHERE task_id = $1 AND {} ORDER BY sequence",
        known(Part::Progress)
    );
    let sequences = session.select(&sequences, &[of_task()]).await?.into_iter();
    let sequences: Vec<i64> = sequences
        .map(|mut row| row.take("sequence"))
        .collect::<Result<_, _>>()?;
    Ok(Some(TaskDetails {
        task,
        resource,
        metrics: metrics.transpose()?,
        sequences: Sequences::of(&sequences, expired_before.is_some()),
        reports,
        expired_before,
    }))
}
