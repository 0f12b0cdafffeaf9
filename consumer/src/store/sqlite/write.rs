//! Writes to SQLite: the task that reads Kafka encodes rows, and a dedicated thread writes them. Uses rusqlite, because
//! sqlx passes every value and statement to its thread separately, which takes longer than storing them.

use std::sync::LazyLock;

use async_trait::async_trait;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Statement, TransactionBehavior};
use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use super::{Files, connect};
use crate::batch::{Record, Tasks, advances, is_unstored};
use crate::positions::{Advance, Positions};
use crate::rows::Part;
use crate::store::offsets::{OffsetRow, SELECT_OFFSETS, stored_offsets};
use crate::store::values::{Value, Values};
use crate::store::{ANSWER, End, Identity, StoreError, StoredOffset, WRITE, Writer, within};
use crate::tables::{LEAST, TASK, Table, TaskKey, UPDATE_IF_NEWER, is_lower};

const INSERT_OFFSET: &str = "INSERT INTO consumed_offset (part, topic, partition, next_offset, cluster_id, anchor_offset, \
     anchor_timestamp_ms, anchor_crc32, group_id, updated_at, topic_id, first_offset) \
     SELECT ?1, ?2, ?3, ?4, ?5, coalesce(?6, -1), coalesce(?7, -1), coalesce(?8, 0), ?9, ?10, ?11, ?12 \
     WHERE NOT EXISTS (SELECT 1 FROM consumed_offset WHERE topic <> ?2 OR cluster_id <> ?5) ON CONFLICT DO NOTHING";

const MOVE_OFFSET: &str = "UPDATE consumed_offset SET next_offset = ?4, cluster_id = ?5, \
     anchor_offset = coalesce(?6, anchor_offset), anchor_timestamp_ms = coalesce(?7, anchor_timestamp_ms), \
     anchor_crc32 = coalesce(?8, anchor_crc32), group_id = ?9, updated_at = ?10, topic_id = coalesce(?11, topic_id) \
     WHERE part = ?1 AND topic = ?2 AND partition = ?3 AND next_offset = ?12";

static UPSERT_TASK: LazyLock<String> = LazyLock::new(|| {
    let (names, columns) = (Table::Task.stored_names(), Table::Task.columns().len());
    format!(
        "INSERT INTO task ({names}) VALUES {} {}",
        placeholders(columns),
        *UPDATE_IF_NEWER
    )
});

/// The positions in a row of `task` of the parameters of [`LOWER_TIMES`].
const IN_LOWER_TIMES: [usize; 3] = [
    TASK,
    Table::Task.place_of(LEAST[0]),
    Table::Task.place_of(LEAST[1]),
];

/// Moves the times of a task back if its stored state is newer already.
static LOWER_TIMES: LazyLock<String> = LazyLock::new(|| {
    let [first, ended] = LEAST;
    let lowered =
        |name, time| format!("{name} = CASE WHEN {time} < {name} THEN {time} ELSE {name} END");
    format!(
        "UPDATE task SET {}, {} WHERE exec_id = ?1 AND {}",
        lowered(first, "?2"),
        lowered(ended, "?3"),
        is_lower(["?2", "?3"])
    )
});

const SELECT_TASK: &str = "SELECT task_id FROM task WHERE exec_id = ?1";

/// Rows per INSERT, if there are that many.
const ROWS_PER_STATEMENT: usize = 20;

static INSERTS: LazyLock<[Insert; Part::ALL.len()]> = LazyLock::new(|| Part::ALL.map(Insert::into));

/// Statements that insert rows of a part.
struct Insert {
    columns: usize,
    one: String,
    many: String,
}

impl Insert {
    fn into(part: Part) -> Self {
        let table = part.table();
        let (names, columns) = (table.stored_names(), table.columns().len());
        // ROLLBACK: a transaction with an error is discarded as a whole, so SQLite need not be able to undo a single
        // statement.
        let of = |rows| {
            let rows = vec![placeholders(columns); rows].join(", ");
            format!("INSERT OR ROLLBACK INTO {table} ({names}) VALUES {rows}")
        };
        Self {
            columns,
            one: of(1),
            many: of(ROWS_PER_STATEMENT),
        }
    }
}

/// A row of parameters.
fn placeholders(columns: usize) -> String {
    format!("({})", vec!["?"; columns].join(", "))
}

/// Bytes of values sent to the database thread at once.
const PIECE_BYTES: usize = 256 << 10;
/// Initial capacity for values, and for texts, of one table's rows in a piece.
const VALUES_BYTES: usize = PIECE_BYTES / 4;
/// Maximum number of pieces waiting for the database thread.
const PIECES: usize = 4;

pub(super) struct SqliteWriter {
    options: SqliteConnectOptions,
    /// `None` after a failure, until the next attempt.
    connection: Option<(Connection, Files)>,
}

impl SqliteWriter {
    pub(super) async fn open(options: &SqliteConnectOptions) -> Result<Self, StoreError> {
        let mut opened = Self {
            options: options.clone(),
            connection: None,
        };
        opened.on_connection(|_| Ok(())).await?;
        Ok(opened)
    }

    /// Runs a call on a blocking thread. Only a successful call returns the connection: SQLite itself rolls back after
    /// a full disk or an I/O error. A call on a replaced file is not successful.
    async fn on_connection<T: Send + 'static>(
        &mut self,
        call: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (connection, options) = (self.connection.take(), self.options.clone());
        let called = spawn_blocking(move || {
            let (mut connection, mut files) = match connection {
                Some(connection) => connection,
                None => connect(&options)?,
            };
            let answer = call(&mut connection)?;
            if let Err(error) = files.are_in_place() {
                // A process that opens another file under this name must not find the log of this one.
                let empty_the_log = "PRAGMA wal_checkpoint(TRUNCATE)";
                let emptied = connection.query_row(empty_the_log, (), |row| row.get(0));
                match emptied {
                    Ok(0) => {}
                    Ok(_) => {
                        tracing::warn!("the write-ahead log could not be emptied: it is in use")
                    }
                    Err(error) => tracing::warn!("emptying the write-ahead log failed: {error}"),
                }
                return Err(error);
            }
            Ok::<_, StoreError>(((connection, files), answer))
        });
        let (connection, answer) = called
            .await
            .map_err(|error| StoreError::Retry(error.to_string()))??;
        self.connection = Some(connection);
        Ok(answer)
    }
}

#[async_trait]
impl Writer for SqliteWriter {
    fn system(&self) -> &'static str {
        "sqlite"
    }

    async fn stored(&mut self) -> Result<Vec<StoredOffset>, StoreError> {
        let rows = self.on_connection(|connection| {
            let mut statement = connection.prepare(SELECT_OFFSETS)?;
            let rows = statement.query_map((), |row| OffsetRow::try_from(row))?;
            Ok(rows.collect::<Result<_, _>>()?)
        });
        stored_offsets(within(ANSWER, rows).await?)
    }

    async fn move_on(
        &mut self,
        advances: &[Advance],
        identity: &Identity,
    ) -> Result<(), StoreError> {
        let (advances, identity) = (advances.to_vec(), identity.clone());
        let moved = self.on_connection(move |connection| {
            let behavior = TransactionBehavior::Immediate;
            let transaction = connection.transaction_with_behavior(behavior)?;
            move_offsets(&transaction, &advances, &identity)?;
            Ok(transaction.commit()?)
        });
        within(ANSWER, moved).await
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
        // Held to the end: when it is dropped, the other side knows that nobody waits any more.
        let (pieces, received) = mpsc::channel(PIECES);
        let (advances, identity) = (advances(records, parts, positions), identity.clone());
        let written =
            self.on_connection(move |connection| write(connection, &advances, &identity, received));
        let sent = send(records, parts, positions, end, &pieces);
        let both = async { tokio::try_join!(written, sent) };
        let (written, ()) = within(WRITE, both).await?;
        let of_part = |part: &Part| (*part, written[*part as usize]);
        Ok(parts.iter().map(of_part).collect())
    }

    async fn is_in_place(&mut self) -> Result<(), StoreError> {
        within(ANSWER, self.on_connection(|_| Ok(()))).await
    }
}

/// A message to the database thread.
enum Sent {
    Rows(Piece),
    /// Newest states of tasks whose keys are known by then.
    Newest(Values),
    End(End),
}

/// Rows of some events.
struct Piece {
    /// States of tasks that occur in no earlier piece, in case the task is new.
    tasks: Values,
    /// By part; `task_id` is the index of the task among those of all pieces.
    rows: [Values; Part::ALL.len()],
}

impl Piece {
    fn new() -> Self {
        Self {
            tasks: Values::with_capacity(VALUES_BYTES),
            rows: Part::ALL.map(|_| Values::with_capacity(VALUES_BYTES)),
        }
    }

    fn bytes(&self) -> usize {
        self.tasks.bytes() + self.rows.iter().map(Values::bytes).sum::<usize>()
    }
}

/// Encodes the rows of these records, while the database writes earlier ones, and sends them.
async fn send(
    records: &[&Record],
    parts: &[Part],
    positions: &Positions,
    end: End,
    pieces: &mpsc::Sender<Sent>,
) -> Result<(), StoreError> {
    // Ignored if the receiver has ended: its result has the error.
    let send = async |sent| drop(pieces.send(sent).await);
    let (mut tasks, mut piece) = (Tasks::default(), Piece::new());
    for rows in records.iter().filter_map(|record| record.rows()) {
        let known = tasks.newest.len();
        let task = tasks.add(&rows);
        if task == known {
            Table::Task.write(&mut piece.tasks, &rows, TaskKey::ExecId);
        }
        for &part in parts {
            if is_unstored(&rows, part, positions) {
                let values = &mut piece.rows[part as usize];
                part.table().write(values, &rows, TaskKey::Id(task as i64));
            }
        }
        if piece.bytes() >= PIECE_BYTES {
            send(Sent::Rows(std::mem::replace(&mut piece, Piece::new()))).await;
        }
    }
    send(Sent::Rows(piece)).await;
    // Last, because any event may have the newest state.
    let mut newest = Values::with_capacity(VALUES_BYTES);
    for rows in &tasks.newest {
        Table::Task.write(&mut newest, rows, TaskKey::ExecId);
        if newest.bytes() >= PIECE_BYTES {
            send(Sent::Newest(std::mem::replace(
                &mut newest,
                Values::with_capacity(VALUES_BYTES),
            )))
            .await;
        }
    }
    send(Sent::Newest(newest)).await;
    send(Sent::End(end)).await;
    Ok(())
}

/// Stores what it receives, in one transaction, and returns the number of rows by part. Rolls back if the sender does
/// not send an end, or no longer waits.
fn write(
    connection: &mut Connection,
    advances: &[Advance],
    identity: &Identity,
    mut pieces: mpsc::Receiver<Sent>,
) -> Result<[u64; Part::ALL.len()], StoreError> {
    // IMMEDIATE: a transaction that reads first and then writes can fail with SQLITE_BUSY_SNAPSHOT, for which no busy
    // timeout waits.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    move_offsets(&transaction, advances, identity)?;
    let (mut task_ids, mut written) = (Vec::new(), [0; Part::ALL.len()]);
    let end = loop {
        match pieces.blocking_recv() {
            Some(Sent::Rows(piece)) => {
                find_tasks(&transaction, &piece.tasks, &mut task_ids)?;
                for part in Part::ALL {
                    let rows = &piece.rows[part as usize];
                    written[part as usize] += insert(&transaction, part, rows, &task_ids)?;
                }
            }
            Some(Sent::Newest(tasks)) => {
                let mut upsert = transaction.prepare_cached(&UPSERT_TASK)?;
                let mut lower = transaction.prepare_cached(&LOWER_TIMES)?;
                for task in tasks.rows(upsert.parameter_count()) {
                    bind(&tasks, task, &mut upsert)?;
                    if upsert.raw_execute()? == 0 {
                        for (parameter, place) in (1..).zip(IN_LOWER_TIMES) {
                            lower.raw_bind_parameter(parameter, bound(&tasks, &task[place]))?;
                        }
                        lower.raw_execute()?;
                    }
                }
            }
            Some(Sent::End(end)) => break end,
            None => break End::RollBack,
        }
    };
    match end {
        End::Commit | End::CommitHalves if !pieces.is_closed() => transaction.commit()?,
        _ => transaction.rollback()?,
    }
    Ok(written)
}

/// Moves the stored offsets forward.
///
/// # Errors
/// [`StoreError::Fenced`] if one is not the expected one.
fn move_offsets(
    connection: &Connection,
    advances: &[Advance],
    identity: &Identity,
) -> Result<(), StoreError> {
    for advance in advances {
        if !move_offset(connection, advance, identity)? {
            return Err(StoreError::Fenced(*advance));
        }
    }
    Ok(())
}

/// Whether the stored offset was the expected one.
fn move_offset(
    connection: &Connection,
    advance: &Advance,
    identity: &Identity,
) -> Result<bool, rusqlite::Error> {
    let Advance {
        part,
        partition,
        expected,
        first,
        next,
        anchor,
    } = advance;
    let mut statement = connection.prepare_cached(match expected {
        Some(_) => MOVE_OFFSET,
        None => INSERT_OFFSET,
    })?;
    let moved = statement.execute((
        part.as_str(),
        &identity.topic,
        partition,
        next,
        &identity.cluster_id,
        anchor.map(|anchor| anchor.offset),
        anchor.map(|anchor| anchor.timestamp_ms),
        anchor.map(|anchor| anchor.crc32),
        &identity.group_id,
        jiff::Timestamp::now().as_microsecond(),
        identity.topic_id.as_deref(),
        // The offset to move from, or the start if there is none yet.
        expected.unwrap_or(*first),
    ))?;
    Ok(moved == 1)
}

/// Adds the keys of these tasks. A new task is inserted with this state.
fn find_tasks(
    connection: &Connection,
    tasks: &Values,
    task_ids: &mut Vec<i64>,
) -> Result<(), rusqlite::Error> {
    let mut select = connection.prepare_cached(SELECT_TASK)?;
    let mut upsert = connection.prepare_cached(&UPSERT_TASK)?;
    for task in tasks.rows(upsert.parameter_count()) {
        select.raw_bind_parameter(1, bound(tasks, &task[TASK]))?;
        let known = select.raw_query().next()?.map(|row| row.get(0));
        task_ids.push(match known {
            Some(task_id) => task_id?,
            None => {
                bind(tasks, task, &mut upsert)?;
                upsert.raw_execute()?;
                connection.last_insert_rowid()
            }
        });
    }
    Ok(())
}

/// Inserts rows of a part. Returns their number.
fn insert(
    connection: &Connection,
    part: Part,
    rows: &Values,
    task_ids: &[i64],
) -> Result<u64, rusqlite::Error> {
    let Insert { columns, one, many } = &INSERTS[part as usize];
    let (mut one, mut many) = (
        connection.prepare_cached(one)?,
        connection.prepare_cached(many)?,
    );
    let mut inserted = 0;
    for some in rows.values.chunks(columns * ROWS_PER_STATEMENT) {
        let statement = match some.len() == columns * ROWS_PER_STATEMENT {
            true => &mut many,
            false => &mut one,
        };
        for some in some.chunks(statement.parameter_count()) {
            bind(rows, some, statement)?;
            for (row, values) in some.chunks(*columns).enumerate() {
                if let Some(Value::Integer(task)) = values.get(TASK) {
                    let parameter = row * columns + TASK + 1;
                    statement.raw_bind_parameter(parameter, task_ids[*task as usize])?;
                }
            }
            inserted += statement.raw_execute()? as u64;
        }
    }
    Ok(inserted)
}

/// Binds the values of a row to a statement's parameters.
fn bind(
    values: &Values,
    row: &[Value],
    statement: &mut Statement<'_>,
) -> Result<(), rusqlite::Error> {
    (1..).zip(row).try_for_each(|(place, value): (usize, _)| {
        statement.raw_bind_parameter(place, bound(values, value))
    })
}

fn bound<'a>(values: &'a Values, value: &Value) -> ToSqlOutput<'a> {
    ToSqlOutput::Borrowed(match *value {
        Value::Null => ValueRef::Null,
        Value::Integer(value) => ValueRef::Integer(value),
        Value::Real(value) => ValueRef::Real(value),
        Value::Text(from, to) => ValueRef::Text(values.text(from, to)),
    })
}
