//! What an audit found to be wrong, put right: all of a partition in one transaction.

use serde_json::json;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe};

use super::connection::{Access, Connection};
use super::{Database, HeldOffset, StoreError};
use crate::audit::compare::{Cure, OffsetValue};
use crate::audit::table::{EXEC_ID, Kind, Table, exec_id, place};
use crate::copy::{self, CopyWriter, POSTGRES_EPOCH_MICROS};

/// Who stored an offset that an audit has put in.
const GROUP: &str = "audit";

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repair {
    /// Rows put in, or columns of rows put right.
    pub(crate) written: u64,
    /// Rows taken out, those included that were put in anew.
    pub(crate) removed: u64,
    /// What was no longer as the audit had found it, and was left.
    pub(crate) left: u64,
}

impl Database {
    /// Applies these cures, of one partition, in one transaction.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing is written then.
    pub(crate) async fn repair(
        &self,
        topic: &str,
        partition: i32,
        cures: &[&Cure],
    ) -> Result<Repair, StoreError> {
        let mut connection = Writer(self.connect(Access::Write).await?);
        connection.begin().await?;
        let mut done = Repair::default();
        // Tasks before the rows that name them.
        let (of_tasks, of_rows): (Vec<&Cure>, Vec<&Cure>) = cures.iter().partition(|cure| {
            matches!(
                cure,
                Cure::Task { .. } | Cure::NoTask { .. } | Cure::Rename { .. }
            )
        });
        for cure in of_tasks.into_iter().chain(of_rows) {
            apply(&mut connection, topic, partition, cure, &mut done).await?;
        }
        connection.execute("COMMIT", Vec::new()).await?;
        connection.0.is_in_place()?;
        connection.0.close().await?;
        Ok(done)
    }
}

async fn apply(
    connection: &mut Writer,
    topic: &str,
    partition: i32,
    cure: &Cure,
    done: &mut Repair,
) -> Result<(), StoreError> {
    match cure {
        Cure::Insert { table, row } => {
            connection.insert(*table, row).await?;
            done.written += 1;
        }
        Cure::Delete {
            table,
            address,
            row,
        } => match connection.delete(*table, address, row).await? {
            0 => done.left += 1,
            _ => done.removed += 1,
        },
        Cure::Replace {
            table,
            address,
            held,
            row,
        } => match connection.delete(*table, address, held).await? {
            0 => done.left += 1,
            _ => {
                connection.insert(*table, row).await?;
                done.removed += 1;
                done.written += 1;
            }
        },
        Cure::Task { task_id, held, row } => {
            if let (Some(task_id), Some(held)) = (task_id, held)
                && connection.delete_task(*task_id, *held).await? == 0
            {
                done.left += 1;
                return Ok(());
            }
            connection.insert_task(*task_id, row).await?;
            done.written += 1;
        }
        Cure::NoTask { task_id, held } => match connection.delete_task(*task_id, *held).await? {
            0 => done.left += 1,
            _ => done.removed += 1,
        },
        Cure::Rename {
            task_id,
            exec_id,
            new_task_id,
        } => {
            let values = vec![
                Value::Number(*new_task_id),
                Value::Text(exec_id.clone()),
                Value::Number(*task_id),
            ];
            done.written += connection
                .execute(
                    "UPDATE task SET task_id = $1, exec_id = $2 WHERE task_id = $3",
                    values,
                )
                .await?;
        }
        Cure::None => done.left += 1,
        Cure::Offset {
            new: Some(offset), ..
        } => {
            connection.insert_offset(topic, offset).await?;
            done.written += 1;
        }
        Cure::Offset {
            part,
            columns,
            new: None,
        } => {
            for (column, value) in columns {
                let value = match value {
                    OffsetValue::Number(number) => Value::Number(*number),
                    OffsetValue::Text(text) => Value::Text(text.clone()),
                };
                let values = vec![
                    value,
                    Value::Text(part.as_str().to_owned()),
                    Value::Text(topic.to_owned()),
                    Value::Number(partition.into()),
                ];
                let update = format!(
                    "UPDATE consumed_offset SET {column} = $1 WHERE part = $2 AND topic = $3 AND partition = $4"
                );
                done.written += connection.execute(&update, values).await?;
            }
        }
    }
    Ok(())
}

/// A value of either database.
enum Value {
    Null,
    Number(i64),
    Double(f64),
    Text(String),
}

struct Writer(Connection);

impl Writer {
    async fn begin(&mut self) -> Result<(), StoreError> {
        let begin = match &mut self.0 {
            Connection::Postgres(_) => "BEGIN",
            Connection::Sqlite(_) => "BEGIN IMMEDIATE",
        };
        self.execute(begin, Vec::new()).await?;
        Ok(())
    }

    /// Gives the rows changed.
    async fn execute(&mut self, statement: &str, values: Vec<Value>) -> Result<u64, StoreError> {
        let statement = AssertSqlSafe(statement.to_owned());
        Ok(match &mut self.0 {
            Connection::Postgres(connection) => {
                let mut query = sqlx::query(statement);
                for value in values {
                    query = match value {
                        Value::Null => query.bind(None::<i64>),
                        Value::Number(number) => query.bind(number),
                        Value::Double(number) => query.bind(number),
                        Value::Text(text) => query.bind(text),
                    };
                }
                query.execute(&mut **connection).await?.rows_affected()
            }
            Connection::Sqlite(connection) => {
                let mut arguments = SqliteArguments::default();
                for value in values {
                    match value {
                        Value::Null => arguments.add(None::<i64>),
                        Value::Number(number) => arguments.add(number),
                        Value::Double(number) => arguments.add(number),
                        Value::Text(text) => arguments.add(text),
                    }
                    .map_err(sqlx::Error::Encode)?;
                }
                sqlx::query_with(statement, arguments)
                    .execute(&mut **connection)
                    .await?
                    .rows_affected()
            }
        })
    }

    /// Takes the row at this address out, where it still is the one that was found.
    async fn delete(&mut self, table: Table, address: &str, row: &[u8]) -> Result<u64, StoreError> {
        let (partition, offset) = place(row).unwrap_or((-1, -1));
        let (address_is, address) = match &mut self.0 {
            Connection::Postgres(_) => ("ctid = $1::tid", Value::Text(address.to_owned())),
            Connection::Sqlite(_) => (
                "rowid = $1",
                address.parse().map_or(Value::Null, Value::Number),
            ),
        };
        let delete = format!(
            "DELETE FROM {} WHERE {address_is} AND event_partition = $2 AND event_offset = $3",
            table.name()
        );
        let values = vec![
            address,
            Value::Number(partition.into()),
            Value::Number(offset),
        ];
        self.execute(&delete, values).await
    }

    async fn delete_task(
        &mut self,
        task_id: i64,
        (partition, offset): (i32, i64),
    ) -> Result<u64, StoreError> {
        let values = vec![
            Value::Number(task_id),
            Value::Number(partition.into()),
            Value::Number(offset),
        ];
        self.execute(
            "DELETE FROM task WHERE task_id = $1 AND event_partition = $2 AND event_offset = $3",
            values,
        )
        .await
    }

    /// Puts a row of a history in.
    async fn insert(&mut self, table: Table, row: &[u8]) -> Result<(), StoreError> {
        let named = exec_id(row).unwrap_or_default();
        const TASK_ID: &str = "SELECT task_id FROM task WHERE exec_id = $1";
        let task_id: i64 = match &mut self.0 {
            Connection::Postgres(connection) => {
                // Locked, so that it does not expire before its row is there.
                let locked = format!("{TASK_ID} FOR KEY SHARE");
                let asked = sqlx::query_scalar(AssertSqlSafe(locked)).bind(named);
                asked.fetch_one(&mut **connection).await?
            }
            Connection::Sqlite(connection) => {
                let asked = sqlx::query_scalar(TASK_ID).bind(named);
                asked.fetch_one(&mut **connection).await?
            }
        };
        self.insert_fields(table, EXEC_ID, Some(task_id), row).await
    }

    /// Puts a task's row in, under this key or a new one.
    async fn insert_task(&mut self, task_id: Option<i64>, row: &[u8]) -> Result<(), StoreError> {
        self.insert_fields(Table::Task, usize::MAX, task_id, row)
            .await
    }

    /// Puts a row in: with `task_id`, if there is one, and without the field at `left_out`.
    async fn insert_fields(
        &mut self,
        table: Table,
        left_out: usize,
        task_id: Option<i64>,
        row: &[u8],
    ) -> Result<(), StoreError> {
        let fields = table.columns().iter().zip(copy::fields(row)).enumerate();
        let fields: Vec<_> = fields
            .filter(|(i, _)| *i != left_out)
            .map(|(_, field)| field)
            .collect();
        let mut columns: Vec<&str> = task_id.iter().map(|_| "task_id").collect();
        columns.extend(fields.iter().map(|(column, _)| column.name));
        match &mut self.0 {
            Connection::Postgres(connection) => {
                let mut copy = CopyWriter::default();
                copy.begin();
                copy.row(columns.len() as i16);
                if let Some(task_id) = task_id {
                    copy.i64(task_id);
                }
                for (_, field) in fields {
                    match field {
                        Some(bytes) => copy.field(bytes),
                        None => copy.null(),
                    }
                }
                let statement = format!(
                    "COPY {} ({}) FROM STDIN (FORMAT binary)",
                    table.name(),
                    columns.join(", ")
                );
                let mut sent = connection.copy_in_raw(&statement).await?;
                sent.send(copy.end()).await?;
                sent.finish().await?;
            }
            Connection::Sqlite(_) => {
                let marks: Vec<String> = (1..=columns.len()).map(|i| format!("${i}")).collect();
                let statement = format!(
                    "INSERT INTO {} ({}) VALUES ({})",
                    table.name(),
                    columns.join(", "),
                    marks.join(", ")
                );
                let mut values: Vec<Value> = task_id.into_iter().map(Value::Number).collect();
                values.extend(
                    fields
                        .iter()
                        .map(|(column, field)| of_sqlite(column.kind, *field)),
                );
                self.execute(&statement, values).await?;
            }
        }
        Ok(())
    }

    async fn insert_offset(&mut self, topic: &str, offset: &HeldOffset) -> Result<(), StoreError> {
        let now = match &mut self.0 {
            Connection::Postgres(_) => "now()",
            Connection::Sqlite(_) => "CAST(unixepoch('subsec') * 1000000 AS integer)",
        };
        let insert = format!(
            "INSERT INTO consumed_offset (part, topic, partition, first_offset, next_offset, cluster_id, anchor_offset, \
             anchor_timestamp_ms, anchor_crc32, group_id, topic_id, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11, ''), {now})"
        );
        let values = vec![
            Value::Text(offset.part.as_str().to_owned()),
            Value::Text(topic.to_owned()),
            Value::Number(offset.partition.into()),
            offset.first_offset.map_or(Value::Null, Value::Number),
            Value::Number(offset.next_offset),
            Value::Text(offset.cluster_id.clone()),
            Value::Number(offset.anchor.offset),
            Value::Number(offset.anchor.timestamp_ms),
            Value::Number(offset.anchor.crc32.into()),
            Value::Text(GROUP.to_owned()),
            Value::Text(offset.topic_id.clone().unwrap_or_default()),
        ];
        self.execute(&insert, values).await?;
        Ok(())
    }
}

/// A field as SQLite's tables hold it.
fn of_sqlite(kind: Kind, field: Option<&[u8]>) -> Value {
    let Some(bytes) = field else {
        return Value::Null;
    };
    let number = copy::i64_of(field).or(copy::i32_of(field).map(i64::from));
    match kind {
        Kind::I32 | Kind::I64 => number.map_or(Value::Null, Value::Number),
        Kind::Time => number.map_or(Value::Null, |micros| {
            Value::Number(micros.wrapping_add(POSTGRES_EPOCH_MICROS))
        }),
        Kind::Bool => Value::Number((*bytes == [1]).into()),
        Kind::F64 => bytes.try_into().map_or(Value::Null, |bytes| {
            Value::Double(f64::from_be_bytes(bytes))
        }),
        Kind::Text => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        Kind::Texts | Kind::JobTasks => Value::Text(json!(kind.value(field)).to_string()),
    }
}
