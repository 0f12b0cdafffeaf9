//! A test's connection to any of the databases.

use sqlx::mysql::{MySqlConnection, MySqlRow};
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ColumnIndex, Connection, Decode, FromRow, Row, Type};

pub(crate) enum Sql {
    Mariadb(MySqlConnection),
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Sql {
    pub(crate) async fn connect(url: &str) -> sqlx::Result<Self> {
        if url.starts_with("sqlite:") {
            return SqliteConnection::connect(url).await.map(Self::Sqlite);
        }
        if url.starts_with("postgres") {
            return PgConnection::connect(url).await.map(Self::Postgres);
        }
        let mut connection = MySqlConnection::connect(url).await?;
        let like_the_others =
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,ANSI_QUOTES,PIPES_AS_CONCAT'";
        sqlx::raw_sql(like_the_others)
            .execute(&mut connection)
            .await?;
        Ok(Self::Mariadb(connection))
    }

    /// The SQL of tests, which is written for PostgreSQL and SQLite.
    fn translated(&self, sql: &str) -> String {
        match self {
            Self::Mariadb(_) => of_mysql(sql),
            Self::Postgres(_) | Self::Sqlite(_) => sql.to_owned(),
        }
    }

    /// Executes statements.
    pub(crate) async fn run(&mut self, statements: &str) -> sqlx::Result<()> {
        let statements = sqlx::raw_sql(AssertSqlSafe(self.translated(statements)));
        match self {
            Self::Mariadb(connection) => statements.execute(connection).await.map(drop),
            Self::Postgres(connection) => statements.execute(connection).await.map(drop),
            Self::Sqlite(connection) => statements.execute(connection).await.map(drop),
        }
    }

    /// The rows of a query.
    pub(crate) async fn rows<T: OfAny>(&mut self, select: &str) -> sqlx::Result<Vec<T>> {
        let select = AssertSqlSafe(self.translated(select));
        match self {
            Self::Mariadb(connection) => sqlx::query_as(select).fetch_all(connection).await,
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
            Self::Mariadb(connection) => connection.close().await,
            Self::Postgres(connection) => connection.close().await,
            Self::Sqlite(connection) => connection.close().await,
        };
    }
}

/// MySQL casts to other names, and reserves the name of a column.
fn of_mysql(sql: &str) -> String {
    let sql = sql
        .replace(" AS text)", " AS char)")
        .replace(" AS bigint)", " AS signed)");
    let (mut text, mut rest) = (String::new(), sql.as_str());
    while let Some(at) = rest.find("partition") {
        let (before, after) = rest.split_at(at);
        let after = &after["partition".len()..];
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '"' | '.');
        let is_whole = !before.ends_with(is_part) && !after.starts_with(is_part);
        text.push_str(before);
        text.push_str(match is_whole {
            true => "\"partition\"",
            false => "partition",
        });
        rest = after;
    }
    text + rest
}

/// A row of any of the databases.
pub(crate) trait OfAny:
    for<'r> FromRow<'r, MySqlRow>
    + for<'r> FromRow<'r, PgRow>
    + for<'r> FromRow<'r, SqliteRow>
    + Send
    + Unpin
{
}

impl<T> OfAny for T where
    T: for<'r> FromRow<'r, MySqlRow>
        + for<'r> FromRow<'r, PgRow>
        + for<'r> FromRow<'r, SqliteRow>
        + Send
        + Unpin
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
