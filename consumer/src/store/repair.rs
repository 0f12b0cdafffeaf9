//! What an audit found to be wrong, put right: all of a partition in one transaction, many rows in a statement.
//!
//! A row is replaced or removed only as long as every column of it still is what the audit had found: it is read
//! again by its address, and its address changes when its row is updated. So what others change meanwhile is left.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::json;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, AssertSqlSafe};

use super::connection::{Access, Connection, Session};
use super::snapshot::{by_ctid, by_rowid};
use super::{Database, HeldOffset, Selection, StoreError};
use crate::audit::finding::{Cure, OffsetValue};
use crate::audit::merge::held;
use crate::row_format::{self, POSTGRES_EPOCH_MICROS, RowWriter, ValueSink};
use crate::tables::{Kind, TASK, Table, exec_id, place};

/// Who stored an offset that an audit has put in.
const GROUP: &str = "audit";
/// Rows that are read again, and removed, at once.
const AT_ONCE: usize = 1_000;
/// Bytes of rows that are handed to PostgreSQL at once.
const PIECE_BYTES: usize = 64 << 10;

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Repair {
    /// Rows put in, or columns of rows put right.
    pub(crate) written: u64,
    /// Rows taken out, those included that were put in anew.
    pub(crate) removed: u64,
    /// What was no longer as the audit had found it, and was left.
    pub(crate) left: u64,
    /// Rows that were left because their task has no row.
    pub(crate) without_task: u64,
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
        let mut writer = Writer {
            connection: self.connect(Access::Write).await?,
            topic,
            partition,
            done: Repair::default(),
        };
        let begin = match writer.connection {
            Connection::Postgres(_) => "BEGIN",
            Connection::Sqlite(_) => "BEGIN IMMEDIATE",
        };
        writer.execute(begin, Vec::new()).await?;
        writer.apply(cures).await?;
        writer.execute("COMMIT", Vec::new()).await?;
        writer.connection.is_in_place()?;
        writer.connection.close().await?;
        Ok(writer.done)
    }
}

/// A value of either database.
enum Value {
    Null,
    Number(i64),
    Double(f64),
    Text(String),
}

/// A row to put in, with its `task_id` where that is known.
type NewRow<'a> = (Option<i64>, &'a [u8]);

/// A row that is to go, and the one that takes its place.
struct Change<'a> {
    address: &'a str,
    held: &'a [u8],
    new: Option<NewRow<'a>>,
}

struct Writer<'a> {
    connection: Connection,
    topic: &'a str,
    partition: i32,
    done: Repair,
}

impl Writer<'_> {
    async fn apply(&mut self, cures: &[&Cure]) -> Result<(), StoreError> {
        let mut changes: BTreeMap<Table, Vec<Change<'_>>> = BTreeMap::new();
        let mut rows: BTreeMap<Table, Vec<NewRow<'_>>> = BTreeMap::new();
        for cure in cures {
            match cure {
                Cure::Insert { table, row } => rows.entry(*table).or_default().push((None, row)),
                Cure::NewTask { task_id, row } => {
                    rows.entry(Table::Task).or_default().push((*task_id, row));
                }
                Cure::Delete {
                    table,
                    address,
                    row,
                } => changes.entry(*table).or_default().push(Change {
                    address,
                    held: row,
                    new: None,
                }),
                Cure::Replace {
                    table,
                    address,
                    held,
                    row,
                } => changes.entry(*table).or_default().push(Change {
                    address,
                    held,
                    new: Some((None, row)),
                }),
                Cure::Task { held, row } => changes.entry(Table::Task).or_default().push(Change {
                    address: &held.address,
                    held: &held.row,
                    new: Some((held.task_id, row)),
                }),
                Cure::NoTask { held } => changes.entry(Table::Task).or_default().push(Change {
                    address: &held.address,
                    held: &held.row,
                    new: None,
                }),
                Cure::None => self.done.left += 1,
                Cure::Rename { .. } | Cure::Offset { .. } | Cure::NewOffset(_) => {}
            }
        }
        self.leave_new_tasks_that_are_there(&mut rows).await?;
        self.leave_rows_without_task(cures, &mut changes, &mut rows)
            .await?;
        // Histories first: their rows are compared by their tasks' names.
        for (table, changes) in &changes {
            for some in changes.chunks(AT_ONCE) {
                let gone = self.remove(*table, some).await?;
                for change in some {
                    match (gone.contains(change.address), change.new) {
                        (false, _) => self.done.left += 1,
                        (true, Some(row)) => {
                            // A task's row is put right, any other is another one.
                            self.done.removed += u64::from(*table != Table::Task);
                            rows.entry(*table).or_default().push(row);
                        }
                        (true, None) => self.done.removed += 1,
                    }
                }
            }
        }
        for cure in cures {
            match cure {
                Cure::Rename {
                    task_id,
                    held,
                    exec_id,
                    new_task_id,
                } => self.rename(*task_id, held, exec_id, *new_task_id).await?,
                Cure::Offset { held, columns } => self.correct_offset(held, columns).await?,
                Cure::NewOffset(offset) => self.insert_offset(offset).await?,
                _ => {}
            }
        }
        if let Some(tasks) = rows.remove(&Table::Task) {
            let (keyed, new): (Vec<_>, Vec<_>) = tasks
                .into_iter()
                .partition(|(task_id, _)| task_id.is_some());
            self.insert(Table::Task, keyed).await?;
            self.insert(Table::Task, new).await?;
        }
        for (table, rows) in rows {
            let rows = self.with_task_ids(rows).await?;
            self.insert(table, rows).await?;
        }
        Ok(())
    }

    /// A task that somebody has made meanwhile needs no row.
    async fn leave_new_tasks_that_are_there(
        &mut self,
        rows: &mut BTreeMap<Table, Vec<NewRow<'_>>>,
    ) -> Result<(), StoreError> {
        let Some(tasks) = rows.get_mut(&Table::Task) else {
            return Ok(());
        };
        let names: Vec<&str> = tasks.iter().filter_map(|(_, row)| exec_id(row)).collect();
        let there = self.connection.task_ids(&names, false).await?;
        let count = tasks.len();
        tasks.retain(|(_, row)| exec_id(row).is_none_or(|name| !there.contains_key(name)));
        self.done.left += (count - tasks.len()) as u64;
        Ok(())
    }

    /// Rows of tasks that have no row, and get none now, cannot be put in: another round makes the tasks first.
    async fn leave_rows_without_task(
        &mut self,
        cures: &[&Cure],
        changes: &mut BTreeMap<Table, Vec<Change<'_>>>,
        rows: &mut BTreeMap<Table, Vec<NewRow<'_>>>,
    ) -> Result<(), StoreError> {
        let of_histories = |table: &&Table| **table != Table::Task;
        let mut names: HashSet<&str> = HashSet::new();
        for table in rows.keys().filter(of_histories) {
            names.extend(rows[table].iter().filter_map(|(_, row)| exec_id(row)));
        }
        for table in changes.keys().filter(of_histories) {
            let new = changes[table].iter().filter_map(|change| change.new);
            names.extend(new.filter_map(|(_, row)| exec_id(row)));
        }
        let names = Vec::from_iter(names);
        let there = self.connection.task_ids(&names, false).await?;
        let made: HashSet<&str> = cures
            .iter()
            .filter_map(|cure| match cure {
                Cure::NewTask { row, .. } | Cure::Task { row, .. } => exec_id(row),
                Cure::Rename { exec_id, .. } => Some(exec_id),
                _ => None,
            })
            .collect();
        let has_task = |row: &[u8]| {
            exec_id(row).is_some_and(|name| there.contains_key(name) || made.contains(name))
        };
        let mut left = 0;
        for (_, rows) in rows.iter_mut().filter(|(table, _)| of_histories(table)) {
            let count = rows.len();
            rows.retain(|(_, row)| has_task(row));
            left += count - rows.len();
        }
        for (_, changes) in changes.iter_mut().filter(|(table, _)| of_histories(table)) {
            let count = changes.len();
            changes.retain(|change| change.new.is_none_or(|(_, row)| has_task(row)));
            left += count - changes.len();
        }
        self.done.without_task += left as u64;
        Ok(())
    }

    /// Takes out those of these rows that are still what was found; gives their addresses.
    async fn remove(
        &mut self,
        table: Table,
        changes: &[Change<'_>],
    ) -> Result<HashSet<String>, StoreError> {
        let expected: HashMap<&str, &[u8]> = changes
            .iter()
            .map(|change| (change.address, change.held))
            .collect();
        let selection = Selection {
            addresses: Some(expected.keys().map(|it| (*it).to_owned()).collect()),
            addressed: true,
            ..Selection::of_table(table, None)
        };
        let mut unchanged: Vec<(String, (i32, i64))> = Vec::new();
        let each = async |row: &[u8]| {
            if let Some(found) = held(row)
                && expected.get(found.address.as_str()) == Some(&&*found.row)
                && let Some(place) = place(&found.row)
            {
                unchanged.push((found.address, place));
            }
            true
        };
        self.connection.each_row(&selection, each).await?;
        if unchanged.is_empty() {
            return Ok(HashSet::new());
        }
        let (addresses, places): (Vec<String>, Vec<(i32, i64)>) = unchanged.into_iter().unzip();
        let name = table.name();
        Ok(match &mut self.connection {
            Connection::Postgres(Session { connection, watch }) => {
                let (partitions, offsets): (Vec<i32>, Vec<i64>) = places.into_iter().unzip();
                // An update since has given the row another address.
                let delete = format!(
                    "DELETE FROM {name} h WHERE {} AND (h.event_partition, h.event_offset) IN \
                     (SELECT * FROM unnest($1::integer[], $2::bigint[])) RETURNING h.ctid::text",
                    by_ctid(&addresses)
                );
                let deleted = sqlx::query_scalar(AssertSqlSafe(delete))
                    .persistent(false)
                    .bind(partitions)
                    .bind(offsets);
                let gone: Vec<String> = watch.answer(deleted.fetch_all(&mut **connection)).await?;
                gone.into_iter().collect()
            }
            // Nobody else writes while this transaction lasts.
            Connection::Sqlite(connection) => {
                let delete = format!("DELETE FROM {name} AS h WHERE {}", by_rowid(&addresses));
                sqlx::query(AssertSqlSafe(delete))
                    .persistent(false)
                    .execute(&mut **connection)
                    .await?;
                addresses.into_iter().collect()
            }
        })
    }

    /// Rows of the histories, each with the key of its task.
    async fn with_task_ids<'r>(
        &mut self,
        rows: Vec<NewRow<'r>>,
    ) -> Result<Vec<NewRow<'r>>, StoreError> {
        let names: HashSet<&str> = rows.iter().filter_map(|(_, row)| exec_id(row)).collect();
        // Locked, so that none expires before its rows are there.
        let names = Vec::from_iter(names);
        let task_ids = self.connection.task_ids(&names, true).await?;
        let with_task_id = |(_, row): NewRow<'r>| {
            let task_id = exec_id(row).and_then(|name| task_ids.get(name));
            match task_id {
                Some(task_id) => Ok((Some(*task_id), row)),
                None => Err(StoreError::Retry(
                    "the row of a task was removed meanwhile".to_owned(),
                )),
            }
        };
        rows.into_iter().map(with_task_id).collect()
    }

    /// Puts rows in: all with a `task_id`, or none.
    async fn insert(&mut self, table: Table, rows: Vec<NewRow<'_>>) -> Result<(), StoreError> {
        let Some((first, _)) = rows.first() else {
            return Ok(());
        };
        // A history names its task by the key alone.
        let left_out = if table == Table::Task {
            usize::MAX
        } else {
            TASK
        };
        let all = table.columns().iter().enumerate();
        let columns: Vec<_> = all.filter(|(i, _)| *i != left_out).collect();
        let mut names: Vec<&str> = first.iter().map(|_| "task_id").collect();
        names.extend(columns.iter().map(|(_, column)| column.name));
        let (into, list) = (table.name(), names.join(", "));
        self.done.written += rows.len() as u64;
        match &mut self.connection {
            Connection::Postgres(Session { connection, watch }) => {
                let statement = format!("COPY {into} ({list}) FROM STDIN (FORMAT binary)");
                let mut sent = watch.answer(connection.copy_in_raw(&statement)).await?;
                let mut copy = RowWriter::default();
                copy.begin();
                for (task_id, row) in rows {
                    copy.row(names.len());
                    if let Some(task_id) = task_id {
                        copy.i64(task_id);
                    }
                    for (i, field) in row_format::fields(row).enumerate() {
                        match field {
                            _ if i == left_out => {}
                            Some(bytes) => copy.field(bytes),
                            None => copy.null(),
                        }
                    }
                    if copy.rows().len() >= PIECE_BYTES {
                        watch.answer(sent.send(copy.rows())).await?;
                        copy.clear();
                    }
                }
                watch.answer(sent.send(copy.end())).await?;
                watch.answer(sent.finish()).await?;
            }
            Connection::Sqlite(connection) => {
                let marks: Vec<String> = (1..=names.len()).map(|i| format!("${i}")).collect();
                let statement =
                    format!("INSERT INTO {into} ({list}) VALUES ({})", marks.join(", "));
                for (task_id, row) in rows {
                    let fields = row_format::fields(row).collect::<Vec<_>>();
                    let mut arguments = SqliteArguments::default();
                    let values = task_id
                        .into_iter()
                        .map(Value::Number)
                        .chain(columns.iter().map(|(i, column)| {
                            of_sqlite(column.kind, fields.get(*i).copied().flatten())
                        }));
                    for value in values {
                        add(&mut arguments, value)?;
                    }
                    sqlx::query_with(AssertSqlSafe(statement.clone()), arguments)
                        .execute(&mut **connection)
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn rename(
        &mut self,
        task_id: i64,
        held: &str,
        exec_id: &str,
        new_task_id: i64,
    ) -> Result<(), StoreError> {
        let values = vec![
            Value::Number(new_task_id),
            Value::Text(exec_id.to_owned()),
            Value::Number(task_id),
            Value::Text(held.to_owned()),
        ];
        let rename =
            "UPDATE task SET task_id = $1, exec_id = $2 WHERE task_id = $3 AND exec_id = $4";
        match self.execute(rename, values).await? {
            0 => self.done.left += 1,
            _ => self.done.written += 1,
        }
        Ok(())
    }

    /// Puts columns of a stored offset right, unless a consumer has moved it on.
    async fn correct_offset(
        &mut self,
        held: &HeldOffset,
        columns: &[(&'static str, OffsetValue)],
    ) -> Result<(), StoreError> {
        let mut values = vec![
            Value::Text(held.part.as_str().to_owned()),
            Value::Text(self.topic.to_owned()),
            Value::Number(self.partition.into()),
            Value::Number(held.next_offset),
            Value::Text(held.cluster_id.clone()),
            Value::Number(held.anchor.offset),
            Value::Number(held.anchor.timestamp_ms),
            Value::Number(held.anchor.crc32.into()),
        ];
        let mut set = Vec::new();
        for (column, value) in columns {
            values.push(match value {
                OffsetValue::Number(number) => Value::Number(*number),
                OffsetValue::Text(text) => Value::Text(text.clone()),
            });
            set.push(format!("{column} = ${}", values.len()));
        }
        let update = format!(
            "UPDATE consumed_offset SET {} WHERE part = $1 AND topic = $2 AND partition = $3 AND next_offset = $4 \
             AND cluster_id = $5 AND anchor_offset = $6 AND anchor_timestamp_ms = $7 AND anchor_crc32 = $8",
            set.join(", ")
        );
        match self.execute(&update, values).await? {
            0 => self.done.left += 1,
            _ => self.done.written += columns.len() as u64,
        }
        Ok(())
    }

    async fn insert_offset(&mut self, offset: &HeldOffset) -> Result<(), StoreError> {
        let now = match self.connection {
            Connection::Postgres(_) => "now()",
            Connection::Sqlite(_) => "CAST(unixepoch('subsec') * 1000000 AS integer)",
        };
        let insert = format!(
            "INSERT INTO consumed_offset (part, topic, partition, first_offset, next_offset, cluster_id, anchor_offset, \
             anchor_timestamp_ms, anchor_crc32, group_id, topic_id, updated_at) \
             SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, nullif($11, ''), {now} \
             WHERE NOT EXISTS (SELECT 1 FROM consumed_offset WHERE topic <> $2) ON CONFLICT DO NOTHING"
        );
        let values = vec![
            Value::Text(offset.part.as_str().to_owned()),
            Value::Text(self.topic.to_owned()),
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
        match self.execute(&insert, values).await? {
            0 => self.done.left += 1,
            _ => self.done.written += 1,
        }
        Ok(())
    }

    /// Gives the rows changed.
    async fn execute(&mut self, statement: &str, values: Vec<Value>) -> Result<u64, StoreError> {
        let statement = AssertSqlSafe(statement.to_owned());
        Ok(match &mut self.connection {
            Connection::Postgres(Session { connection, watch }) => {
                let mut query = sqlx::query(statement);
                for value in values {
                    query = match value {
                        Value::Null => query.bind(None::<i64>),
                        Value::Number(number) => query.bind(number),
                        Value::Double(number) => query.bind(number),
                        Value::Text(text) => query.bind(text),
                    };
                }
                let executed = query.execute(&mut **connection);
                watch.answer(executed).await?.rows_affected()
            }
            Connection::Sqlite(connection) => {
                let mut arguments = SqliteArguments::default();
                for value in values {
                    add(&mut arguments, value)?;
                }
                sqlx::query_with(statement, arguments)
                    .execute(&mut **connection)
                    .await?
                    .rows_affected()
            }
        })
    }
}

fn add(arguments: &mut SqliteArguments, value: Value) -> Result<(), sqlx::Error> {
    match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Number(number) => arguments.add(number),
        Value::Double(number) => arguments.add(number),
        Value::Text(text) => arguments.add(text),
    }
    .map_err(sqlx::Error::Encode)
}

/// A field as SQLite's tables hold it.
fn of_sqlite(kind: Kind, field: Option<&[u8]>) -> Value {
    let Some(bytes) = field else {
        return Value::Null;
    };
    let number = row_format::i64_of(field).or(row_format::i32_of(field).map(i64::from));
    match kind {
        Kind::I32 | Kind::I64 => number.map_or(Value::Null, Value::Number),
        Kind::Time => number.map_or(Value::Null, |micros| {
            Value::Number(micros.wrapping_add(POSTGRES_EPOCH_MICROS))
        }),
        Kind::Bool => Value::Number((*bytes == [1]).into()),
        Kind::F64 => bytes.try_into().map_or(Value::Null, |bytes| {
            Value::Double(f64::from_be_bytes(bytes))
        }),
        Kind::Text | Kind::Json => Value::Text(String::from_utf8_lossy(bytes).into_owned()),
        Kind::Texts | Kind::JobTasks => Value::Text(json!(kind.value(field)).to_string()),
    }
}
