//! A session with a database, for everything except the consumer's own writing, and the values of its queries.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use futures_util::{Stream, TryStreamExt};
use sqlx::Column as _;

use super::dialect::Dialect;
use super::error::StoreError;
use super::selection::Selection;
use crate::tables::{Column, Table};

/// The purpose of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// A connection to a database. No call waits forever: each fails if the database is gone.
#[async_trait]
pub(crate) trait Session: Send {
    fn dialect(&self) -> &'static dyn Dialect;

    /// Returns the rows of a query; `$1` is the first of `values`.
    ///
    /// # Errors
    /// If the database fails, or returns a type that no [`Value`] holds.
    async fn select(&mut self, query: &str, values: &[Value]) -> Result<Vec<Row>, StoreError>;

    /// Runs a statement, or several if there are no values. Returns the number of changed rows.
    ///
    /// # Errors
    /// If the database fails.
    async fn execute(&mut self, statement: &str, values: &[Value]) -> Result<u64, StoreError>;

    /// Passes each selected row to `each`, as a row of PostgreSQL's binary COPY format.
    ///
    /// # Errors
    /// If the database fails.
    async fn scan(
        &mut self,
        selection: &Selection,
        each: &mut EachRow<'_>,
    ) -> Result<(), StoreError>;

    /// Inserts rows of these columns, in the form that [`scan`](Self::scan) passes on.
    ///
    /// # Errors
    /// If the database fails.
    async fn insert(
        &mut self,
        table: Table,
        columns: &[&'static Column],
        rows: &[Vec<u8>],
    ) -> Result<(), StoreError>;

    /// Limits the queries of the current transaction: slower ones fail as [`StoreError::TooLong`].
    ///
    /// # Errors
    /// If the database fails.
    async fn limit_queries(&mut self, limit: Duration) -> Result<(), StoreError>;

    /// Checks, after a commit, that the next process to open the database will find what was committed.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if it will not.
    fn is_in_place(&mut self) -> Result<(), StoreError>;

    /// # Errors
    /// If the database fails.
    async fn close(self: Box<Self>) -> Result<(), StoreError>;
}

/// Receives each row of a scan.
pub(crate) type EachRow<'a> = dyn FnMut(&[u8]) -> Next + Send + 'a;

/// What a scan does after a row.
pub(crate) enum Next {
    /// Continues with the next row.
    Row,
    /// Waits, then continues if the future returns `true`.
    After(BoxFuture<'static, bool>),
    /// Ends.
    Stop,
}

impl Next {
    /// Whether the scan continues.
    pub(super) async fn continues(self) -> bool {
        match self {
            Self::Row => true,
            Self::After(wait) => wait.await,
            Self::Stop => false,
        }
    }
}

/// A value of any database.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
    /// Only as a parameter of [`Dialect::is_one_of`].
    Texts(Vec<String>),
    /// Only as a parameter of [`Dialect::is_one_of`].
    Integers(Vec<i64>),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, T::into)
    }
}

/// A row of a query's result.
#[derive(Debug)]
pub(crate) struct Row {
    columns: Arc<[String]>,
    values: Vec<Value>,
}

/// The rows of a query, by the values of each.
pub(super) async fn rows_of<R: sqlx::Row, E: From<sqlx::Error>>(
    mut found: impl Stream<Item = Result<R, sqlx::Error>> + Unpin,
    values_of: impl Fn(&R) -> Result<Vec<Value>, E>,
) -> Result<Vec<Row>, E> {
    let (mut columns, mut rows) = (None, Vec::new());
    while let Some(row) = found.try_next().await? {
        let columns: &Arc<[String]> = columns.get_or_insert_with(|| {
            let names = row.columns().iter();
            names.map(|column| column.name().to_owned()).collect()
        });
        rows.push(Row {
            columns: columns.clone(),
            values: values_of(&row)?,
        });
    }
    Ok(rows)
}

impl Row {
    /// Sets the value of a column, if there is such a column.
    pub(crate) fn put(&mut self, column: &str, value: Value) {
        let place = self.columns.iter().position(|name| name == column);
        if let Some(place) = place {
            self.values[place] = value;
        }
    }

    /// Takes the value of a column.
    ///
    /// # Errors
    /// If there is no such column; [`StoreError::Unreadable`] if it has another type.
    pub(crate) fn take<T: FromValue>(&mut self, column: &str) -> Result<T, StoreError> {
        let place = self.columns.iter().position(|name| name == column);
        let value = place.and_then(|place| self.values.get_mut(place));
        let value = value.map(|value| std::mem::replace(value, Value::Null));
        let value = value.ok_or_else(|| StoreError::Exit(format!("no column {column}")))?;
        T::from_value(value).map_err(|found| {
            StoreError::Unreadable(format!(
                "the column {column} holds a value of another type: {found:?}"
            ))
        })
    }
}

/// A type that can be [taken](Row::take) from a row.
pub(crate) trait FromValue: Sized {
    /// # Errors
    /// The value, if it has another type.
    fn from_value(value: Value) -> Result<Self, Value>;
}

impl FromValue for Value {
    fn from_value(value: Value) -> Result<Self, Value> {
        Ok(value)
    }
}

impl FromValue for i64 {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Integer(number) => Ok(number),
            other => Err(other),
        }
    }
}

impl FromValue for i32 {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Integer(number) => number.try_into().map_err(|_| value),
            other => Err(other),
        }
    }
}

impl FromValue for f64 {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Real(number) => Ok(number),
            Value::Integer(number) => Ok(number as f64),
            other => Err(other),
        }
    }
}

impl FromValue for String {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Text(text) => Ok(text),
            other => Err(other),
        }
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: Value) -> Result<Self, Value> {
        match value {
            Value::Null => Ok(None),
            value => T::from_value(value).map(Some),
        }
    }
}

impl dyn Session + '_ {
    /// The first row of a query, if any.
    ///
    /// # Errors
    /// As [`select`](Self::select).
    pub(crate) async fn select_one(
        &mut self,
        query: &str,
        values: &[Value],
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.select(query, values).await?.into_iter().next())
    }

    /// Begins a read-only transaction with one snapshot, taken by its first query.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn begin_snapshot(&mut self) -> Result<(), StoreError> {
        let begin = self.dialect().begin_snapshot(None);
        self.execute(&begin, &[]).await.map(drop)
    }
}
