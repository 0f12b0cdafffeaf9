//! A session, for everything except the consumer's own writing, [watched](Watch).

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, TryStreamExt};
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Column as _, Connection, Row as _, TypeInfo};

use super::dialect::Postgres;
use super::server::Server;
use super::watch::Watch;
use crate::row_format;
use crate::store::session::{EachRow, rows_of};
use crate::store::{Access, Dialect, Row, Selection, Session, StoreError, Value};
use crate::tables::{Column, Table};

/// PostgreSQL sends some 8 KiB at a time. A wake-up for each costs both sides more than this pause, during which
/// several arrive.
const PAUSE: Duration = Duration::from_micros(500);
/// Bytes of rows sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// A connection and its watch.
pub(super) struct PgSession {
    pub(super) connection: PgConnection,
    pub(super) watch: Watch,
}

impl PgSession {
    /// If no server can be reached that has the role that the URL asks for.
    /// If no server of these can be reached that is what the URL asks for.
    pub(super) async fn open(server: &Server, access: Access) -> Result<Self, StoreError> {
        let (mut connection, server) = server.connect_to_one(access).await?;
        let watch = Watch::over(&mut connection, server).await?;
        Ok(Self { connection, watch })
    }
}

/// A statement with its parameters. One without parameters contains its values, so it is not worth caching.
fn prepared<'q>(statement: &str, values: &'q [Value]) -> Query<'q, sqlx::Postgres, PgArguments> {
    let mut query = sqlx::query(AssertSqlSafe(statement.to_owned())).persistent(!values.is_empty());
    for value in values {
        query = match value {
            Value::Null => query.bind(None::<i64>),
            Value::Integer(number) => query.bind(number),
            Value::Real(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Texts(texts) => query.bind(texts),
            Value::Integers(numbers) => query.bind(numbers),
        };
    }
    query
}

#[async_trait]
impl Session for PgSession {
    fn dialect(&self) -> &'static dyn Dialect {
        &Postgres
    }

    async fn select(&mut self, query: &str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        let Self { connection, watch } = self;
        let found = prepared(query, values).fetch(connection);
        watch.answer(rows_of(found, values_of)).await
    }

    async fn execute(&mut self, statement: &str, values: &[Value]) -> Result<u64, StoreError> {
        let Self { connection, watch } = self;
        let done = match values {
            [] => {
                let statements = sqlx::raw_sql(AssertSqlSafe(statement.to_owned()));
                watch.answer(statements.execute(connection)).await?
            }
            values => {
                let statement = prepared(statement, values);
                watch.answer(statement.execute(connection)).await?
            }
        };
        Ok(done.rows_affected())
    }

    async fn scan(
        &mut self,
        selection: &Selection,
        each: &mut EachRow<'_>,
    ) -> Result<(), StoreError> {
        let Self { connection, watch } = self;
        let query = selection.query(&Postgres);
        let statement = format!("COPY ({query}) TO STDOUT (FORMAT binary)");
        let mut rows = watch.answer(connection.copy_out_raw(&statement)).await?;
        // One row per message (PostgreSQL manual, "COPY Operations"), except that the header precedes the first row,
        // and the trailer, shorter than any row, ends the data.
        let mut header = row_format::HEADER.len();
        loop {
            let next = match rows.try_next().now_or_never() {
                Some(next) => next?,
                None => {
                    std::thread::sleep(PAUSE);
                    watch.answer(rows.try_next()).await?
                }
            };
            let Some(message) = next else { break };
            let row = message.get(header..).unwrap_or_default();
            header = 0;
            if row.len() > row_format::TRAILER.len() && !each(row).continues().await {
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
        let Self { connection, watch } = self;
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        let statement = format!(
            "COPY {table} ({}) FROM STDIN (FORMAT binary)",
            names.join(", ")
        );
        let mut sent = watch.answer(connection.copy_in_raw(&statement)).await?;
        let mut piece = row_format::HEADER.to_vec();
        for row in rows {
            piece.extend_from_slice(row);
            if piece.len() >= PIECE_BYTES {
                watch.answer(sent.send(&piece[..])).await?;
                piece.clear();
            }
        }
        piece.extend_from_slice(&row_format::TRAILER);
        watch.answer(sent.send(&piece[..])).await?;
        watch.answer(sent.finish()).await?;
        Ok(())
    }

    async fn limit_queries(&mut self, limit: Duration) -> Result<(), StoreError> {
        // For the transaction, not the session, which a pooler shares with others.
        let limit = format!("SET LOCAL statement_timeout = {}", limit.as_millis());
        self.execute(&limit, &[]).await.map(drop)
    }

    fn is_in_place(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }
}

fn values_of(row: &PgRow) -> Result<Vec<Value>, sqlx::Error> {
    let columns = row.columns().iter();
    let value = |column: &<sqlx::Postgres as sqlx::Database>::Column| {
        let place = column.ordinal();
        Ok(match column.type_info().name() {
            "INT4" => row.try_get::<Option<i32>, _>(place)?.into(),
            "INT8" => row.try_get::<Option<i64>, _>(place)?.into(),
            "FLOAT8" => row.try_get::<Option<f64>, _>(place)?.into(),
            _ => row.try_get::<Option<String>, _>(place)?.into(),
        })
    };
    columns.map(value).collect()
}
