//! A test's connection to either database.

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ColumnIndex, Connection, Decode, FromRow, Row, Type};

pub(crate) enum Sql {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Sql {
    pub(crate) async fn connect(url: &str) -> sqlx::Result<Self> {
        if url.starts_with("sqlite:") {
            return SqliteConnection::connect(url).await.map(Self::Sqlite);
        }
        PgConnection::connect(url).await.map(Self::Postgres)
    }

    /// Executes statements.
    pub(crate) async fn run(&mut self, statements: &str) -> sqlx::Result<()> {
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        match self {
            Self::Postgres(connection) => statements.execute(connection).await.map(drop),
            Self::Sqlite(connection) => statements.execute(connection).await.map(drop),
        }
    }

    /// The rows of a query.
    pub(crate) async fn rows<T: OfEither>(&mut self, select: &str) -> sqlx::Result<Vec<T>> {
        let select = AssertSqlSafe(select.to_owned());
        match self {
            Self::Postgres(connection) => sqlx::query_as(select).fetch_all(connection).await,
            Self::Sqlite(connection) => sqlx::query_as(select).fetch_all(connection).await,
        }
    }

    /// The single number that a query returns.
    pub(crate) async fn number(&mut self, select: &str) -> sqlx::Result<i64> {
        let rows: Vec<(i64,)> = self.rows(select).await?;
        rows.first()
            .map(|(number,)| *number)
            .ok_or(sqlx::Error::RowNotFound)
    }

    /// Dropping would close it later, and SQLite writes to its files when the last connection closes.
    pub(crate) async fn close(self) {
        // The test may have terminated it.
        let _ = match self {
            Self::Postgres(connection) => connection.close().await,
            Self::Sqlite(connection) => connection.close().await,
        };
    }
}

/// A row of either database.
pub(crate) trait OfEither:
    for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin
{
}

impl<T> OfEither for T where
    T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin
{
}

/// Columns of text.
pub(crate) struct Texts(pub(crate) Vec<Option<String>>);

/// Columns of numbers.
pub(crate) struct Numbers<const N: usize>(pub(crate) [i64; N]);

impl<'r, R: Row> FromRow<'r, R> for Texts
where
    usize: ColumnIndex<R>,
    Option<String>: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let texts = (0..row.len()).map(|i| row.try_get(i));
        texts.collect::<Result<_, _>>().map(Self)
    }
}

impl<'r, R: Row, const N: usize> FromRow<'r, R> for Numbers<N>
where
    usize: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> sqlx::Result<Self> {
        let mut numbers = [0; N];
        for (i, number) in numbers.iter_mut().enumerate() {
            *number = row.try_get(i)?;
        }
        Ok(Self(numbers))
    }
}
