//! A session, for everything except the consumer's own writing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::query::Query;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Column as _, Connection, Executor, Row as _, TypeInfo, ValueRef};

use super::Files;
use super::dialect::Sqlite;
use crate::row_format::{RowWriter, ValueSink};
use crate::store::session::{EachRow, rows_of};
use crate::store::values::{insert_each, write_array, write_integer};
use crate::store::{Dialect, Row, Selection, Session, StoreError, Value};
use crate::tables::{Column, Kind, Table};

/// A connection and its open files.
pub(super) struct SqliteSession {
    pub(super) connection: SqliteConnection,
    pub(super) files: Files,
    limit: Option<Limit>,
}

/// The time limit of queries.
struct Limit {
    limit: Duration,
    /// The deadline of the current query, checked by SQLite on another thread.
    deadline: Arc<Mutex<Instant>>,
}

impl Limit {
    fn deadline(deadline: &Mutex<Instant>) -> MutexGuard<'_, Instant> {
        deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SqliteSession {
    pub(super) fn new(connection: SqliteConnection, files: Files) -> Self {
        Self {
            connection,
            files,
            limit: None,
        }
    }

    /// Starts the time of a statement.
    fn begin_limit(&self) {
        if let Some(Limit { limit, deadline }) = &self.limit {
            *Limit::deadline(deadline) = Instant::now() + *limit;
        }
    }

    async fn rows(&mut self, query: &str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        let found = prepared(query, values)?.fetch(&mut self.connection);
        rows_of(found, values_of).await
    }
}

/// SQLite checks the deadline each time after this many virtual machine instructions: about ten times per millisecond.
const STEPS: i32 = 10_000;

/// A statement with its parameters. One without parameters contains its values, so it is not worth caching.
fn prepared(
    statement: &str,
    values: &[Value],
) -> Result<Query<'static, sqlx::Sqlite, SqliteArguments>, StoreError> {
    let statement = AssertSqlSafe(statement.to_owned());
    let mut query = sqlx::query(statement).persistent(!values.is_empty());
    for value in values {
        query = match value {
            Value::Null => query.bind(None::<i64>),
            Value::Integer(number) => query.bind(*number),
            Value::Real(number) => query.bind(*number),
            Value::Text(text) => query.bind(text.clone()),
            Value::Texts(texts) => query.bind(serde_json::to_string(texts)?),
            Value::Integers(numbers) => query.bind(serde_json::to_string(numbers)?),
        };
    }
    Ok(query)
}

#[async_trait]
impl Session for SqliteSession {
    fn dialect(&self) -> &'static dyn Dialect {
        &Sqlite
    }

    async fn select(&mut self, query: &str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        self.begin_limit();
        let rows = self.rows(query, values).await;
        rows.map_err(|error| match (&self.limit, error) {
            (Some(Limit { limit, deadline }), StoreError::Retry(message))
                if *Limit::deadline(deadline) <= Instant::now() =>
            {
                StoreError::TooLong(format!("{message} after {} s", limit.as_secs_f64()))
            }
            (_, error) => error,
        })
    }

    async fn execute(&mut self, statement: &str, values: &[Value]) -> Result<u64, StoreError> {
        self.begin_limit();
        let done = match values {
            [] => {
                let statements = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
                statements.execute(&mut self.connection).await?
            }
            values => {
                let statement = prepared(statement, values)?;
                statement.execute(&mut self.connection).await?
            }
        };
        Ok(done.rows_affected())
    }

    async fn scan(
        &mut self,
        selection: &Selection,
        each: &mut EachRow<'_>,
    ) -> Result<(), StoreError> {
        let kinds = selection.kinds();
        let mut rows = self
            .connection
            .fetch(AssertSqlSafe(selection.query(&Sqlite)));
        let mut writer = RowWriter::default();
        while let Some(row) = rows.try_next().await? {
            writer.clear();
            write(&mut writer, &row, &kinds)?;
            drop(row);
            if !each(writer.rows()).continues().await {
                break;
            }
        }
        Ok(())
    }

    async fn insert(
        &mut self,
        table: Table,
        columns: &[&'static Column],
        rows: &[Vec<u8>],
    ) -> Result<(), StoreError> {
        insert_each(self, table, columns, rows).await
    }

    async fn limit_queries(&mut self, limit: Duration) -> Result<(), StoreError> {
        let deadline = match &self.limit {
            Some(set) => set.deadline.clone(),
            None => {
                let deadline = Arc::new(Mutex::new(Instant::now() + limit));
                let asked = deadline.clone();
                let mut connection = self.connection.lock_handle().await?;
                let continues = move || Instant::now() < *Limit::deadline(&asked);
                connection.set_progress_handler(STEPS, continues);
                deadline
            }
        };
        *Limit::deadline(&deadline) = Instant::now() + limit;
        self.limit = Some(Limit { limit, deadline });
        Ok(())
    }

    fn is_in_place(&mut self) -> Result<(), StoreError> {
        self.files.are_in_place()
    }

    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }
}

fn values_of(row: &SqliteRow) -> Result<Vec<Value>, StoreError> {
    (0..row.len()).map(|place| value_of(row, place)).collect()
}

fn value_of(row: &SqliteRow, place: usize) -> Result<Value, StoreError> {
    let value = row.try_get_raw(place)?;
    if value.is_null() {
        return Ok(Value::Null);
    }
    let found = value.type_info();
    Ok(match found.name() {
        "INTEGER" => Value::Integer(row.try_get_unchecked(place)?),
        "REAL" => Value::Real(row.try_get_unchecked(place)?),
        _ => {
            let text = std::str::from_utf8(row.try_get_unchecked(place)?);
            let column = row.column(place).name();
            let text = text
                .map_err(|error| StoreError::Unreadable(format!("the column {column}: {error}")))?;
            Value::Text(text.to_owned())
        }
    })
}

/// Writes a row of SQLite as PostgreSQL would. A value of another type than its column's is written as text or bytes,
/// and so equals no valid value.
fn write(writer: &mut RowWriter, row: &SqliteRow, kinds: &[Kind]) -> Result<(), StoreError> {
    writer.row(kinds.len());
    for (i, kind) in kinds.iter().enumerate() {
        let value = row.try_get_raw(i)?;
        if value.is_null() {
            writer.null();
            continue;
        }
        let found = value.type_info();
        match (kind, found.name()) {
            (Kind::I32 | Kind::I64 | Kind::Bool | Kind::Time, "INTEGER") => {
                write_integer(writer, *kind, row.try_get_unchecked(i)?);
            }
            (Kind::F64, "REAL") => writer.f64(row.try_get_unchecked(i)?),
            (Kind::Texts | Kind::JobTasks, "TEXT") => {
                write_array(writer, *kind, row.try_get_unchecked(i)?);
            }
            _ => writer.field(row.try_get_unchecked::<&[u8], _>(i)?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_query_that_takes_too_long_is_ended_and_the_next_one_is_not() {
        let connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let mut session = SqliteSession::new(connection, Files::of(":memory:".as_ref()));
        let limit = Duration::from_millis(50);
        session.limit_queries(limit).await.unwrap();
        let endless = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n";
        let begun = Instant::now();
        let ended = session.select(endless, &[]).await;
        assert!(matches!(ended, Err(StoreError::TooLong(_))), "{ended:?}");
        assert!(begun.elapsed() >= limit);
        session.select("SELECT 1 AS one", &[]).await.unwrap();
    }
}
