//! Writes to MySQL: INSERTs of many rows each, in one transaction.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use sqlx::mysql::{MySqlArguments, MySqlConnection};
use sqlx::query::Query;
use tokio::time::timeout;

use super::offsets::{lock_first_offsets, move_offsets, unlock_first_offsets};
use super::server::{Connected, Server};
use super::{assert_engine, no_answer};
use crate::batch::{Record, Tasks, advances, all_rows, is_unstored};
use crate::positions::{Advance, Positions};
use crate::rows::Part;
use crate::store::offsets::{OffsetRow, SELECT_OFFSETS, stored_offsets};
use crate::store::values::{Value, Values};
use crate::store::{ANSWER, End, Identity, StoreError, StoredOffset, WRITE, Writer};
use crate::tables::{EXEC_ID, LEAST, RANK, Table, TaskKey};

/// Rows per INSERT: few statements, each prepared once, for any number of rows. 128 rows have at most 1,800 parameters, of
/// the 65,535 that a statement may have.
const SIZES: [usize; 4] = [128, 16, 4, 1];
/// Names per look-up of tasks.
const NAMES: usize = 256;
/// Bytes of values that are encoded before they are sent: rows of whole statements, unless the rows are large.
const PIECE_BYTES: usize = 256 << 10;
const MOST_PIECE_BYTES: usize = 4 << 20;

static UPSERT_TASKS: LazyLock<Insert> =
    LazyLock::new(|| Insert::into(Table::Task, &update_if_newer()));
static INSERTS: LazyLock<[Insert; Part::ALL.len()]> =
    LazyLock::new(|| Part::ALL.map(|part| Insert::into(part.table(), "")));

/// The end of an INSERT into `task`: if the inserted state is newer, the stored row takes it; the earliest times are those
/// of both in any case. MySQL assigns from left to right, and an expression sees what was assigned before it. So the
/// columns of the rank come last, the least significant first: whatever was assigned, the comparison of those that are
/// left decides the same, or they are equal.
fn update_if_newer() -> String {
    let of = |form: fn(&str) -> String| RANK.map(form).join(", ");
    let is_newer = format!(
        "({}) > ({})",
        of(|name| format!("VALUES({name})")),
        of(str::to_owned)
    );
    let newer = |name: &str| format!("{name} = IF({is_newer}, VALUES({name}), {name})");
    let names = Table::Task.columns().iter().map(|column| column.name);
    let others =
        names.filter(|name| *name != EXEC_ID.name && !LEAST.contains(name) && !RANK.contains(name));
    let least = LEAST.iter().map(|name| {
        format!(
            "{name} = CASE WHEN VALUES({name}) < {name} THEN VALUES({name}) \
             WHEN {is_newer} THEN coalesce({name}, VALUES({name})) ELSE {name} END"
        )
    });
    let assignments = others.map(newer).chain(least);
    let assignments = assignments.chain(RANK.iter().rev().map(|name| newer(name)));
    let assignments: Vec<String> = assignments.collect();
    format!("ON DUPLICATE KEY UPDATE {}", assignments.join(", "))
}

/// Statements that insert rows of a table, one for each of the [`SIZES`].
struct Insert {
    columns: usize,
    statements: [String; SIZES.len()],
}

impl Insert {
    fn into(table: Table, end: &str) -> Self {
        let (names, columns) = (table.stored_names(), table.columns().len());
        let row = format!("({})", vec!["?"; columns].join(", "));
        Self {
            columns,
            statements: SIZES.map(|rows| {
                let rows = vec![row.as_str(); rows].join(", ");
                format!("INSERT INTO {table} ({names}) VALUES {rows} {end}")
            }),
        }
    }

    /// Whether the values are enough to be sent.
    fn is_piece(&self, values: &Values) -> bool {
        let is_whole = values.values.len().is_multiple_of(SIZES[0] * self.columns);
        let least = match is_whole {
            true => PIECE_BYTES,
            false => MOST_PIECE_BYTES,
        };
        values.bytes() >= least
    }

    /// Inserts rows, each statement with less than half of `max_packet` bytes, unless it has a single row. Returns the
    /// number of affected rows.
    async fn run(
        &self,
        connection: &mut MySqlConnection,
        values: &Values,
        max_packet: u64,
    ) -> Result<u64, StoreError> {
        // The bytes up to each row.
        let mut upto = vec![0_u64];
        for row in values.rows(self.columns) {
            let bytes = row.iter().map(|value| match value {
                Value::Text(from, to) => u64::from(to - from) + 9,
                _ => 9,
            });
            upto.push(upto.last().unwrap_or(&0) + bytes.sum::<u64>());
        }
        let (mut at, mut affected) = (0, 0);
        while at + 1 < upto.len() {
            let fits = |rows: usize| {
                let end = upto.get(at + rows);
                end.is_some_and(|end| rows == 1 || end - upto[at] < max_packet / 2)
            };
            // The last size, 1, always fits.
            let place = SIZES.iter().position(|rows| fits(*rows));
            let place = place.unwrap_or(SIZES.len() - 1);
            let (from, to) = (at * self.columns, (at + SIZES[place]) * self.columns);
            let statement = AssertSqlSafe(self.statements[place].clone());
            let query = values.values[from..to]
                .iter()
                .try_fold(sqlx::query(statement), |query, value| {
                    bind(query, values, value)
                })?;
            affected += query.execute(&mut *connection).await?.rows_affected();
            at += SIZES[place];
        }
        Ok(affected)
    }
}

fn bind<'q>(
    query: Query<'q, sqlx::MySql, MySqlArguments>,
    values: &'q Values,
    value: &Value,
) -> Result<Query<'q, sqlx::MySql, MySqlArguments>, StoreError> {
    Ok(match *value {
        Value::Null => query.bind(None::<i64>),
        Value::Integer(value) => query.bind(value),
        Value::Real(value) => query.bind(value),
        Value::Text(from, to) => {
            let text = std::str::from_utf8(values.text(from, to));
            query.bind(text.map_err(|error| StoreError::Refused(error.to_string()))?)
        }
    })
}

pub(super) struct MySqlWriter {
    server: Server,
    /// `None` after a failure, until the next attempt.
    connected: Option<Connected>,
}

impl MySqlWriter {
    pub(super) async fn open(server: &Server) -> Result<Self, StoreError> {
        let mut connected = server.connect().await?;
        assert_engine(&mut connected.connection).await?;
        Ok(Self {
            server: server.clone(),
            connected: Some(connected),
        })
    }

    /// Takes the connection. Only a successful call returns it, so that one that is broken, or in the middle of a
    /// transaction, is never reused.
    async fn take(&mut self) -> Result<Connected, StoreError> {
        match self.connected.take() {
            Some(connected) => Ok(connected),
            None => self.server.connect().await,
        }
    }
}

#[async_trait]
impl Writer for MySqlWriter {
    fn system(&self) -> &'static str {
        "mysql"
    }

    async fn stored(&mut self) -> Result<Vec<StoredOffset>, StoreError> {
        let mut connected = self.take().await?;
        let rows = sqlx::query_as::<_, OffsetRow>(SELECT_OFFSETS);
        let rows = timeout(ANSWER, rows.fetch_all(&mut connected.connection)).await;
        let rows = rows.map_err(|_| no_answer("to what is stored", ANSWER))??;
        self.connected = Some(connected);
        stored_offsets(rows)
    }

    async fn move_on(
        &mut self,
        advances: &[Advance],
        identity: &Identity,
    ) -> Result<(), StoreError> {
        let mut connected = self.take().await?;
        let connection = &mut connected.connection;
        let moved = timeout(
            ANSWER,
            in_transaction(connection, advances, End::Commit, async |connection| {
                move_offsets(connection, advances, identity).await
            }),
        );
        let moved = moved.await;
        moved.map_err(|_| no_answer("to new offsets", ANSWER))??;
        self.connected = Some(connected);
        Ok(())
    }

    async fn write(
        &mut self,
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
        identity: &Identity,
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        let records: &[&Record] = &Vec::from_iter(records);
        let mut connected = self.take().await?;
        let is_answered = AtomicBool::new(false);
        let max_packet = connected.max_packet;
        let advances = advances(records, parts, positions);
        let written = in_transaction(
            &mut connected.connection,
            &advances,
            end,
            async |connection| {
                move_offsets(connection, &advances, identity).await?;
                is_answered.store(true, Ordering::Relaxed);
                write_rows(connection, records, parts, positions, max_packet).await
            },
        );
        let written = timeout(WRITE, written).await.unwrap_or_else(|_| {
            Err(match is_answered.load(Ordering::Relaxed) {
                true => StoreError::TooLong(format!("no end within {} s", WRITE.as_secs())),
                // Fewer records would help neither a dead connection nor a lock.
                false => no_answer(
                    "to a first statement, or a lock on the stored offsets",
                    WRITE,
                ),
            })
        });
        // After a refused row, the connection is sound: finding such a row takes many attempts.
        if matches!(written, Ok(_) | Err(StoreError::Refused(_))) {
            self.connected = Some(connected);
        }
        written
    }

    /// A server keeps what it has stored, wherever its name points next.
    async fn is_in_place(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Runs a transaction that moves these offsets. A failed one is rolled back as a whole: MySQL rolls back only the failed
/// statement, even after a lock was waited for too long.
async fn in_transaction<T>(
    connection: &mut MySqlConnection,
    advances: &[Advance],
    end: End,
    write: impl AsyncFnOnce(&mut MySqlConnection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let has_first = advances.iter().any(|advance| advance.expected.is_none());
    if has_first {
        lock_first_offsets(connection).await?;
    }
    sqlx::raw_sql("START TRANSACTION")
        .execute(&mut *connection)
        .await?;
    let written = write(&mut *connection).await;
    let end = match end {
        End::Commit | End::CommitHalves if written.is_ok() => "COMMIT",
        _ => "ROLLBACK",
    };
    match (&written, sqlx::raw_sql(end).execute(&mut *connection).await) {
        // The first error says more than that of the end of a lost connection.
        (Ok(_) | Err(StoreError::Refused(_)), Err(error)) => return Err(error.into()),
        (Err(_), Err(_)) => return written,
        (_, Ok(_)) => {}
    }
    if has_first {
        unlock_first_offsets(connection).await?;
    }
    written
}

/// Writes the rows of these records. Returns their number by part.
async fn write_rows(
    connection: &mut MySqlConnection,
    records: &[&Record],
    parts: &[Part],
    positions: &Positions,
    max_packet: u64,
) -> Result<Vec<(Part, u64)>, StoreError> {
    let events = all_rows(records);
    let mut tasks = Tasks::default();
    let of_events: Vec<usize> = events.iter().map(|rows| tasks.add(rows)).collect();
    let task_ids = upsert_tasks(connection, &tasks, max_packet).await?;
    let (mut values, mut written) = (Values::with_capacity(PIECE_BYTES), Vec::new());
    for &part in parts {
        let (table, insert) = (part.table(), &INSERTS[part as usize]);
        let mut inserted = 0;
        for (rows, task) in events.iter().zip(&of_events) {
            if is_unstored(rows, part, positions) {
                table.write(&mut values, rows, TaskKey::Id(task_ids[*task]));
            }
            if insert.is_piece(&values) {
                inserted += insert.run(connection, &values, max_packet).await?;
                values.clear();
            }
        }
        inserted += insert.run(connection, &values, max_packet).await?;
        values.clear();
        written.push((part, inserted));
    }
    Ok(written)
}

/// Updates `task` to these states, and returns the tasks' keys. Sorted by exec_id, so that two writers lock tasks in the
/// same order.
async fn upsert_tasks(
    connection: &mut MySqlConnection,
    tasks: &Tasks<'_>,
    max_packet: u64,
) -> Result<Vec<i64>, StoreError> {
    let mut sorted = Vec::from_iter(&tasks.newest);
    sorted.sort_unstable_by_key(|rows| rows.info.exec_id);
    let mut values = Values::with_capacity(PIECE_BYTES);
    for rows in &sorted {
        Table::Task.write(&mut values, rows, TaskKey::ExecId);
        if UPSERT_TASKS.is_piece(&values) {
            UPSERT_TASKS.run(connection, &values, max_packet).await?;
            values.clear();
        }
    }
    UPSERT_TASKS.run(connection, &values, max_packet).await?;
    let mut task_ids = vec![None; tasks.newest.len()];
    for some in sorted.chunks(NAMES) {
        let marks = vec!["?"; some.len()].join(", ");
        let select = format!("SELECT exec_id, task_id FROM task WHERE exec_id IN ({marks})");
        let mut query = sqlx::query_as(AssertSqlSafe(select)).persistent(some.len() == NAMES);
        for rows in some {
            query = query.bind(rows.info.exec_id);
        }
        let found: Vec<(String, i64)> = query.fetch_all(&mut *connection).await?;
        for (exec_id, task_id) in found {
            if let Some(place) = tasks.places.get(exec_id.as_str()) {
                task_ids[*place] = Some(task_id);
            }
        }
    }
    let known = task_ids.into_iter();
    known
        .map(|task_id| {
            task_id.ok_or_else(|| StoreError::Retry(sqlx::Error::RowNotFound.to_string()))
        })
        .collect()
}
