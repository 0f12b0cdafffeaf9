//! A session, for everything except the consumer's own writing, [watched](Watch).

use std::time::Duration;

use async_trait::async_trait;
use futures_util::{FutureExt, TryStreamExt};
use sqlx::mysql::{MySqlArguments, MySqlConnection, MySqlRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, Row as _, TypeInfo, ValueRef};

use super::assert_engine;
use super::dialect::{MARIADB, MySql};
use super::server::{Connected, Server};
use super::watch::Watch;
use crate::row_format::{RowWriter, ValueSink};
use crate::store::session::{EachRow, rows_of};
use crate::store::values::{insert_each, write_array, write_integer};
use crate::store::{Access, Dialect, Row, Selection, Session, StoreError, Value};
use crate::tables::{Column, Kind, Table};

/// A connection and its watch, and the bytes of the longest text that the server returns.
pub(super) struct MySqlSession {
    connection: MySqlConnection,
    dialect: &'static MySql,
    watch: Watch,
    max_packet: u64,
}

impl MySqlSession {
    pub(super) async fn open(server: &Server, access: Access) -> Result<Self, StoreError> {
        let Connected {
            mut connection,
            dialect,
            id,
            max_packet,
        } = server.connect().await?;
        if access == Access::Write {
            assert_engine(&mut connection).await?;
        }
        let server = server.clone();
        Ok(Self {
            connection,
            dialect,
            watch: Watch { server, id },
            max_packet,
        })
    }
}

/// Replaces `$1`, `$2`, … outside quotes by `?`, and a parameter that is a list by one for each of its values. Returns the
/// values in the order of the marks.
fn with_marks(statement: &str, values: &[Value]) -> (String, Vec<Value>) {
    let (mut text, mut bound) = (String::with_capacity(statement.len()), Vec::new());
    let (mut rest, mut quote) = (statement, None);
    while let Some(at) = rest.find(['\'', '"', '\\', '$']) {
        let (before, after) = rest.split_at(at);
        text.push_str(before);
        let sign = after.as_bytes()[0];
        let digits = after[1..].bytes().take_while(u8::is_ascii_digit).count();
        let length = match (quote, sign) {
            // What follows does not end the quoted text.
            (Some(_), b'\\') => 1 + after[1..].chars().next().map_or(0, char::len_utf8),
            (Some(begun), _) if begun == sign => {
                quote = None;
                1
            }
            (None, b'\'' | b'"') => {
                quote = Some(sign);
                1
            }
            (None, b'$') if digits > 0 => {
                let place = after[1..=digits].parse::<usize>().unwrap_or(0);
                let value = values.get(place.wrapping_sub(1));
                let list: Vec<Value> = match value {
                    Some(Value::Texts(texts)) => texts.iter().cloned().map(Value::Text).collect(),
                    Some(Value::Integers(numbers)) => {
                        numbers.iter().copied().map(Value::Integer).collect()
                    }
                    Some(value) => vec![value.clone()],
                    None => vec![Value::Null],
                };
                // Nothing equals null.
                text.push_str(match list.is_empty() {
                    true => "NULL",
                    false => "?",
                });
                text.push_str(&", ?".repeat(list.len().saturating_sub(1)));
                bound.extend(list);
                rest = &after[1 + digits..];
                continue;
            }
            _ => 1,
        };
        text.push_str(&after[..length]);
        rest = &after[length..];
    }
    text.push_str(rest);
    (text, bound)
}

/// A statement with its parameters. One without parameters contains its values, and one with a list is as long as that, so
/// they are not worth caching.
fn prepared(statement: &str, values: &[Value]) -> Query<'static, sqlx::MySql, MySqlArguments> {
    let (text, bound) = with_marks(statement, values);
    let has_list = values
        .iter()
        .any(|value| matches!(value, Value::Texts(_) | Value::Integers(_)));
    let mut query = sqlx::query(AssertSqlSafe(text)).persistent(!values.is_empty() && !has_list);
    for value in bound {
        query = match value {
            Value::Integer(number) => query.bind(number),
            Value::Real(number) => query.bind(number),
            Value::Text(text) => query.bind(text),
            Value::Null | Value::Texts(_) | Value::Integers(_) => query.bind(None::<i64>),
        };
    }
    query
}

#[async_trait]
impl Session for MySqlSession {
    fn dialect(&self) -> &'static dyn Dialect {
        self.dialect
    }

    async fn select(&mut self, query: &str, values: &[Value]) -> Result<Vec<Row>, StoreError> {
        let Self {
            connection,
            watch,
            max_packet,
            ..
        } = self;
        let max_packet = *max_packet;
        let found = prepared(query, values).fetch(connection);
        watch
            .answer(rows_of(found, |row| values_of(row, max_packet)))
            .await
    }

    async fn execute(&mut self, statement: &str, values: &[Value]) -> Result<u64, StoreError> {
        let Self {
            connection, watch, ..
        } = self;
        let done = match values {
            // MySQL refuses an empty statement.
            [] if statement.is_empty() => return Ok(0),
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
        let Self {
            connection,
            watch,
            dialect,
            ..
        } = self;
        let (kinds, query) = (selection.kinds(), selection.query(*dialect));
        // Prepared, because values then come in binary.
        let mut rows = prepared(&query, &[]).fetch(connection);
        let mut writer = RowWriter::default();
        loop {
            let next = match rows.try_next().now_or_never() {
                Some(next) => next?,
                None => watch.answer(rows.try_next()).await?,
            };
            let Some(row) = next else { break };
            writer.clear();
            write(&mut writer, &row, &kinds)?;
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
        let limit = match std::ptr::eq(self.dialect, &MARIADB) {
            true => format!(
                "SET SESSION max_statement_time = {:.3}",
                limit.as_secs_f64()
            ),
            false => format!("SET SESSION max_execution_time = {}", limit.as_millis()),
        };
        self.execute(&limit, &[]).await.map(drop)
    }

    fn is_in_place(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<(), StoreError> {
        Ok(self.connection.close().await?)
    }
}

fn values_of(row: &MySqlRow, max_packet: u64) -> Result<Vec<Value>, sqlx::Error> {
    let values = (0..row.len()).map(|place| value_of(row, place));
    values
        .map(|value| match value {
            // The server cuts a joined text at this length, at the end of a character of up to four bytes, with a warning.
            Ok(Value::Text(text)) if text.len() as u64 + 3 >= max_packet => Err(cut(&text)),
            value => value,
        })
        .collect()
}

fn cut(text: &str) -> sqlx::Error {
    let error = format!(
        "the server's max_allowed_packet has cut a text at {} bytes: raise it",
        text.len()
    );
    sqlx::Error::Decode(error.into())
}

/// Sums of integers are decimals.
fn value_of(row: &MySqlRow, place: usize) -> Result<Value, sqlx::Error> {
    let value = row.try_get_raw(place)?;
    if value.is_null() {
        return Ok(Value::Null);
    }
    let found = value.type_info();
    Ok(match found.name() {
        name if is_integer(name) => Value::Integer(row.try_get_unchecked(place)?),
        "DOUBLE" => Value::Real(row.try_get_unchecked(place)?),
        "DECIMAL" => {
            let text: &str = row.try_get_unchecked(place)?;
            match (text.parse(), text.parse()) {
                (Ok(number), _) => Value::Integer(number),
                (_, Ok(number)) => Value::Real(number),
                _ => Value::Text(text.to_owned()),
            }
        }
        _ => Value::Text(row.try_get_unchecked(place)?),
    })
}

fn is_integer(name: &str) -> bool {
    let name = name.strip_suffix(" UNSIGNED").unwrap_or(name);
    matches!(
        name,
        "BOOLEAN" | "TINYINT" | "SMALLINT" | "MEDIUMINT" | "INT" | "BIGINT"
    )
}

/// Writes a row as PostgreSQL would. A value that is not of its column's kind is written in another form, and so equals no
/// valid value.
fn write(writer: &mut RowWriter, row: &MySqlRow, kinds: &[Kind]) -> Result<(), StoreError> {
    writer.row(kinds.len());
    for (i, kind) in kinds.iter().enumerate() {
        let value = row.try_get_raw(i)?;
        if value.is_null() {
            writer.null();
            continue;
        }
        let found = value.type_info();
        match (kind, found.name()) {
            (Kind::I32 | Kind::I64 | Kind::Bool | Kind::Time, name) if is_integer(name) => {
                write_integer(writer, *kind, row.try_get_unchecked(i)?);
            }
            (Kind::F64, "DOUBLE") => writer.f64(row.try_get_unchecked(i)?),
            (Kind::Texts | Kind::JobTasks, _) => {
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

    #[test]
    fn parameters_become_marks_in_their_order_and_lists_one_mark_for_each_value() {
        let values = [
            Value::Integer(1),
            Value::Texts(vec!["a".to_owned(), "b".to_owned()]),
            Value::Integers(Vec::new()),
        ];
        let (text, bound) = with_marks(
            "SELECT '$1 \\' $2', \"$1\" FROM t WHERE a IN ($2) AND b = $1 AND c IN ($3) AND d = $1 || 'é$''$1'",
            &values,
        );
        assert_eq!(
            text,
            "SELECT '$1 \\' $2', \"$1\" FROM t WHERE a IN (?, ?) AND b = ? AND c IN (NULL) AND d = ? || 'é$''$1'"
        );
        let text = |text: &str| Value::Text(text.to_owned());
        assert_eq!(
            bound,
            [text("a"), text("b"), Value::Integer(1), Value::Integer(1)]
        );
    }
}
