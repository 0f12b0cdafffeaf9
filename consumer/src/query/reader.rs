//! Consistent reads: all queries of an answer see the same snapshot.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::model::{Metrics, Sequences, Task, TaskDetails};
use super::sql::{self, NEWEST, NEWEST_PART};
use super::watermark::Watermark;
use crate::rows::Part;
use crate::store::{Access, Database, Row, Session, StoreError};
use crate::tables::Table;

/// Limit of the search for an invalid value.
const SEARCH: Duration = Duration::from_secs(5);

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QueryError {
    /// `consumer expire` removed the history of the requested time.
    #[error(
        "{place} has no history for {at}: consumer expire removed the reports before {before}; ask for that time or a later one"
    )]
    Expired {
        place: String,
        at: Timestamp,
        before: Timestamp,
    },
    /// The cursor is invalid, or belongs to another query.
    #[error("the cursor {why}: leave it out to start from the first page")]
    Cursor { why: &'static str },
    /// A parameter is invalid.
    #[error("{name}: {why}")]
    Parameter { name: &'static str, why: String },
    /// A row has a value that its column cannot have.
    #[error(
        "{}: {table}.{column} of the exec task {:?} has an invalid value; find all of them with `consumer audit`, and \
         restore them with `consumer audit --repair`", .place, .exec_id
    )]
    Unreadable {
        place: String,
        table: Table,
        column: String,
        exec_id: String,
    },
    /// The database failed, does not exist, or has no tables.
    #[error("{doing}")]
    Store { doing: String, source: StoreError },
}

impl QueryError {
    /// Whether the database cancelled the query because of its time limit.
    pub(crate) fn is_too_long(&self) -> bool {
        let Self::Store { source, .. } = self else {
            return false;
        };
        matches!(source, StoreError::TooLong(_))
    }
}

/// A read-only connection with a snapshot of the tables.
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
    /// If the database does not exist or has no tables.
    pub(crate) async fn open(database: &Database) -> Result<Self, QueryError> {
        Self::open_limited(database, None).await
    }

    /// As [`open`](Self::open); with a limit, the database cancels each query that takes longer.
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
        reader.renew_snapshot().await?;
        Ok(reader)
    }

    /// Ends the current snapshot, if any, and begins a new one on the same connection.
    ///
    /// # Errors
    /// If the database fails, or its file has been replaced.
    pub(crate) async fn renew_snapshot(&mut self) -> Result<(), QueryError> {
        self.end_snapshot().await?;
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
            // The first query fixes the snapshot.
            session.expired_before().await
        };
        let begun = begun.await;
        self.expired_before = begun.map_err(failed(|| format!("reading {place}")))?;
        self.in_snapshot = true;
        Ok(())
    }

    /// Ends the snapshot, so that an idle connection blocks neither PostgreSQL's vacuum nor SQLite's WAL checkpoints.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn end_snapshot(&mut self) -> Result<(), QueryError> {
        if std::mem::take(&mut self.in_snapshot) {
            let ended = self.session.execute("COMMIT", &[]).await;
            ended.map_err(failed(|| format!("reading {}", self.place)))?;
        }
        Ok(())
    }

    /// The database, for messages: without a password.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// `consumer expire` removed the reports before this time; `None`: nothing was removed.
    pub(crate) fn expired_before(&self) -> Option<Timestamp> {
        self.expired_before
    }

    /// The stored offsets of the events topic in this snapshot.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn watermark(&mut self) -> Result<Watermark, QueryError> {
        let read = Watermark::read(&mut *self.session).await;
        self.answered(read, "the stored offsets").await
    }

    /// One task: its state, resources, sequences, and at most `limit` of its newest reports (0: all); with `at`, as
    /// known then. `None` if there is no such task or it had not reported by then.
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
        let expired_before = self.expired_before;
        let details = task_details(&mut *self.session, exec_id, at, limit, expired_before).await;
        self.answered(details, &format!("the task {exec_id}")).await
    }

    /// Time of a task's oldest report, RFC 3339; `None` if the tables have none.
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
        self.answered(first, &format!("the task {exec_id}")).await
    }

    pub(super) fn session(&mut self) -> &mut dyn Session {
        &mut *self.session
    }

    /// Converts the error of reading `what`.
    ///
    /// # Errors
    /// [`QueryError::Unreadable`] if an invalid stored value is the cause and its row is found, else [`QueryError::Store`].
    pub(super) async fn answered<T>(
        &mut self,
        read: Result<T, StoreError>,
        what: &str,
    ) -> Result<T, QueryError> {
        let source = match read {
            Ok(answer) => return Ok(answer),
            Err(source) => source,
        };
        // PostgreSQL refuses arithmetic on times that are out of range.
        if let StoreError::Unreadable(_) | StoreError::Refused(_) = source
            && let Ok(Some(error)) = timeout(SEARCH, self.unreadable()).await
        {
            return Err(error);
        }
        let doing = format!("reading {what} of {}", self.place);
        Err(QueryError::Store { doing, source })
    }

    /// Searches the tables for an invalid value. Returns `None` if there is none, or the search fails.
    async fn unreadable(&mut self) -> Option<QueryError> {
        // The transaction may have failed.
        self.renew_snapshot().await.ok()?;
        let dialect = self.session.dialect();
        for table in [Table::Task].into_iter().chain(Table::HISTORIES) {
            let mut unreadable = Vec::new();
            for column in table.stored_columns() {
                let stored = format!("h.{}", column.name);
                if let Some(is_unreadable) = dialect.is_unreadable(&stored, column.kind) {
                    let condition = format!("{stored} IS NOT NULL AND {is_unreadable}");
                    unreadable.push((column.name, condition));
                }
            }
            let case =
                |(name, condition): &(&str, String)| format!("WHEN {condition} THEN '{name}'");
            let cases: Vec<String> = unreadable.iter().map(case).collect();
            let condition = |(_, condition): &(&str, String)| format!("({condition})");
            let conditions: Vec<String> = unreadable.iter().map(condition).collect();
            let join = match table {
                Table::Task => "",
                _ => "JOIN task USING (task_id)",
            };
            let select = format!(
                "SELECT exec_id, CASE {} END AS unreadable FROM {table} AS h {join} WHERE {} LIMIT 1",
                cases.join(" "),
                conditions.join(" OR ")
            );
            let found = self.session.select_one(&select, &[]).await.ok()?;
            if let Some(mut row) = found {
                return Some(QueryError::Unreadable {
                    place: self.place.clone(),
                    table,
                    column: row.take("unreadable").ok()?,
                    exec_id: row.take("exec_id").ok()?,
                });
            }
        }
        None
    }

    /// Rejects a time whose history has been removed.
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

/// Whether the text contains NUL, which no stored text does and PostgreSQL refuses in a parameter.
pub(super) fn is_no_text(text: &str) -> bool {
    text.contains('\0')
}

pub(super) fn failed(doing: impl FnOnce() -> String) -> impl FnOnce(StoreError) -> QueryError {
    |source| QueryError::Store {
        doing: doing(),
        source,
    }
}

/// Converts each row.
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

    // All rows of the newest event that has a resource part.
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
