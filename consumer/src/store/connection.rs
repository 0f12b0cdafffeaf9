//! A connection to either database, for everything but the consumer's own writing: opened in one way
//! whatever the command, and never waited for without an end.

use std::ops::{Deref, DerefMut};

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, FromRow};

use super::postgres::Watch;
use super::sqlite::Files;
use super::{Database, StoreError, sqlite};

/// What a connection is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A value in place of a `$1`.
#[derive(Clone, Copy)]
pub(crate) enum Bound<'a> {
    Text(&'a str),
    Number(i64),
}

/// A connection to either database.
pub(crate) enum Connection {
    Postgres(Session<PgConnection, Watch>),
    Sqlite(Session<SqliteConnection, Files>),
}

/// A connection, and what watches over it.
pub(crate) struct Session<C, W> {
    pub(super) connection: Box<C>,
    pub(super) watch: W,
}

impl<C, W> Deref for Session<C, W> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.connection
    }
}

impl<C, W> DerefMut for Session<C, W> {
    fn deref_mut(&mut self) -> &mut C {
        &mut self.connection
    }
}

/// The answer to the same question on the connection of either database.
macro_rules! on_either {
    ($either:expr, $connection:ident => $ask:expr) => {
        match $either {
            $crate::store::connection::Connection::Postgres(session) => {
                let $connection = &mut *session.connection;
                session.watch.answer($ask).await?
            }
            $crate::store::connection::Connection::Sqlite(session) => {
                let $connection = &mut *session.connection;
                $ask.await?
            }
        }
    };
}
pub(super) use on_either;

impl Database {
    /// Connects to a database that is there.
    ///
    /// # Errors
    /// If it cannot be reached or is not there.
    pub(crate) async fn connect(&self, access: Access) -> Result<Connection, StoreError> {
        Ok(match self {
            Self::Postgres(server) => Connection::Postgres(server.open(access).await?),
            Self::Sqlite(options) => {
                let options = (**options).clone().create_if_missing(false);
                let options = match access {
                    Access::Read => options.read_only(true),
                    Access::Write => sqlite::to_write(options),
                };
                let file = options.get_filename();
                let connection = options.connect().await.map_err(StoreError::from);
                let connection = connection.map_err(|error| match access {
                    Access::Read => sqlite::to_read(file, error),
                    Access::Write => error,
                });
                let connection = Box::new(connection?);
                let watch = Files::of(file);
                Connection::Sqlite(Session { connection, watch })
            }
        })
    }
}

impl Connection {
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// The rows that a query gives.
    pub(crate) async fn rows<T>(
        &mut self,
        select: impl Into<String>,
        values: &[Bound<'_>],
    ) -> Result<Vec<T>, StoreError>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        let select = AssertSqlSafe(select.into());
        Ok(on_either!(self, connection => {
            let mut query = sqlx::query_as(select);
            for value in values {
                query = match value {
                    Bound::Text(text) => query.bind(*text),
                    Bound::Number(number) => query.bind(*number),
                };
            }
            query.fetch_all(connection)
        }))
    }

    /// The first row that a query gives, if it gives one.
    pub(crate) async fn row<T>(
        &mut self,
        select: impl Into<String>,
        values: &[Bound<'_>],
    ) -> Result<Option<T>, StoreError>
    where
        T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin,
    {
        Ok(self.rows(select, values).await?.into_iter().next())
    }

    /// Runs statements without values; gives the rows changed.
    pub(super) async fn execute(&mut self, statements: &str) -> Result<u64, StoreError> {
        let statements = AssertSqlSafe(statements.to_owned());
        Ok(match self {
            Self::Postgres(session) => {
                let run = sqlx::raw_sql(statements).execute(&mut *session.connection);
                session.watch.answer(run).await?.rows_affected()
            }
            Self::Sqlite(session) => {
                let run = sqlx::raw_sql(statements).execute(&mut *session.connection);
                run.await?.rows_affected()
            }
        })
    }

    /// Makes sure, after a commit, that what was committed is where the next one will look for it.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if not.
    pub(super) fn is_in_place(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(session) => session.watch.are_in_place(),
        }
    }

    pub(super) async fn close(self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(session) => session.connection.close().await?,
            Self::Sqlite(session) => session.connection.close().await?,
        }
        Ok(())
    }
}
