//! Writing to PostgreSQL: tasks by `unnest`, histories by `COPY … (FORMAT binary)`; [a small batch](small_batch) in one
//! statement.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sqlx::Connection;
use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::QueryAs;
use tokio::time::timeout;

use super::arrays::{Array, Arrays};
use super::small_batch::{self, MAX_RECORDS};
use super::{Server, no_answer, sent_type};
use crate::batch::{Record, Tasks, advances, all_rows, halves, is_unstored};
use crate::positions::{Advance, Anchor, Positions};
use crate::row_format::RowWriter;
use crate::rows::Part;
use crate::store::offsets::{OffsetRow, SELECT_OFFSETS, stored_offsets};
use crate::store::{ANSWER, Access, End, Identity, StoreError, StoredOffset, WRITE, Writer};
use crate::tables::{Column, Kind, TASK, Table, TaskKey, UPDATE_IF_NEWER};

const INSERT_OFFSET: &str = "INSERT INTO consumed_offset (part, topic, partition, next_offset, cluster_id, anchor_offset, \
     anchor_timestamp_ms, anchor_crc32, group_id, updated_at, first_offset, topic_id) \
     SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, now(), $10, $11 \
     WHERE NOT EXISTS (SELECT 1 FROM consumed_offset WHERE topic <> $2 OR cluster_id <> $5) ON CONFLICT DO NOTHING";

/// Taken before a first offset is put in, so that each statement that does sees those put in before: of two topics
/// in one empty database the second is refused. (A snapshot is of when its statement begins, so this is one of its
/// own.) Its key is of no meaning; locks of this kind need no right and are of one database.
const LOCK_FIRST_OFFSETS: &str = "SELECT pg_advisory_xact_lock(7022639402163274087)";

/// The steps of offsets, and the offsets, locked in a fixed order, whatever order an update would take.
pub(super) const WITH_LOCKED: &str = "WITH said AS (SELECT * FROM unnest($4::text[], $5::integer[], $6::bigint[], $7::bigint[], $8::bigint[], \
     $9::bigint[], $10::bigint[]) \
     AS said (part, partition, expected, next_offset, anchor_offset, anchor_timestamp_ms, anchor_crc32)), \
     locked AS (SELECT held.part, held.partition, held.next_offset = said.expected AS is_expected \
     FROM consumed_offset held JOIN said USING (part, partition) \
     WHERE held.topic = $1 ORDER BY held.partition, held.part FOR UPDATE OF held)";

/// The parameters of [`WITH_LOCKED`] and [`move_locked`], as [`bind_offsets`] binds them.
pub(super) const OFFSET_PARAMETERS: usize = 11;

/// All steps at once, if also `only_if`. A step without an anchor leaves the stored one. An offset that somebody
/// else has moved meanwhile is found out by the update, which looks at the row as it is by then.
pub(super) fn move_locked(only_if: &str) -> String {
    format!(
        "UPDATE consumed_offset held SET next_offset = said.next_offset, cluster_id = $2, \
         anchor_offset = coalesce(said.anchor_offset, held.anchor_offset), \
         anchor_timestamp_ms = coalesce(said.anchor_timestamp_ms, held.anchor_timestamp_ms), \
         anchor_crc32 = coalesce(said.anchor_crc32, held.anchor_crc32), group_id = $3, updated_at = now(), \
         topic_id = coalesce($11, held.topic_id) FROM said JOIN locked USING (part, partition) \
         WHERE held.topic = $1 AND held.part = said.part AND held.partition = said.partition \
         AND held.next_offset = said.expected{only_if} RETURNING held.part, held.partition"
    )
}

static MOVE_OFFSETS: LazyLock<String> =
    LazyLock::new(|| format!("{WITH_LOCKED} {}", move_locked("")));

static UPSERT_TASKS: LazyLock<String> = LazyLock::new(|| {
    let (states, names) = (unnest_tasks(1), Table::Task.stored_names());
    upsert_tasks_from(&format!("{states} AS said ({names})"))
});

/// Brings `task` up to the states that this table expression has. Sorted by exec_id, so that two writers lock tasks in
/// the same order.
pub(super) fn upsert_tasks_from(states: &str) -> String {
    format!(
        "INSERT INTO task ({}) SELECT {} FROM {states} ORDER BY exec_id {} RETURNING task.exec_id, task.task_id",
        Table::Task.stored_names(),
        received(Table::Task, "exec_id"),
        *UPDATE_IF_NEWER
    )
}

/// The states of tasks: an array of each column of `task`, which are parameters from this one on, as [`bind_tasks`]
/// binds them.
pub(super) fn unnest_tasks(first_parameter: usize) -> String {
    let columns = (first_parameter..).zip(Table::Task.stored_columns());
    let arrays = columns.map(|(place, column)| format!("${place}::{}[]", sent_type(column.kind)));
    format!("unnest({})", Vec::from_iter(arrays).join(", "))
}

/// The columns of a table, of the values that were sent for them: of `task` the task's key or name. Microseconds are
/// added to the epoch in two steps, since an interval multiplied by a double loses them.
pub(super) fn received(table: Table, task: &str) -> String {
    let columns = table.stored_columns().enumerate();
    let received = columns.map(|(place, Column { name, kind, .. })| match kind {
        _ if place == TASK => task.to_owned(),
        Kind::Time => format!(
            "timestamptz 'epoch' + ({name} / 1000000) * interval '1 second' \
             + ({name} % 1000000) * interval '1 microsecond'"
        ),
        _ => (*name).to_owned(),
    });
    Vec::from_iter(received).join(", ")
}

static COPIES: LazyLock<[String; Part::ALL.len()]> = LazyLock::new(|| {
    Part::ALL.map(|part| {
        let table = part.table();
        let names = table.stored_names();
        format!("COPY {table} ({names}) FROM STDIN (FORMAT binary)")
    })
});

/// A look-up for each, numbered from 1: compared with an array, each row of `task` would be compared with all of it
/// where PostgreSQL thinks the table small, as it does of one that was filled a moment ago.
const SELECT_TASKS: &str = "SELECT said.number, (SELECT task_id FROM task WHERE task.exec_id = said.exec_id) \
     FROM unnest($1::text[]) WITH ORDINALITY AS said (exec_id, number)";

/// So many bytes of rows are handed to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// The server finds out within half a minute where our host is gone, as we do of its: by Linux' settings it
/// would hold our locks for two hours.
const NOTICE_OUR_END: &str = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4; \
     SET tcp_user_timeout = 30000";
const SELECT_SESSION: &str =
    "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
/// An idle session holds no locks, and behind a pooler it may serve somebody else by now, even this connection.
const END_SESSION: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE pid = $1 AND backend_start::text = $2 AND pid <> pg_backend_pid() AND state <> 'idle'";

/// So many records are worth two transactions.
const MIN_HALVED: usize = 1_000;

pub(super) struct PgWriter {
    server: Server,
    /// The second one stands idle, and may not be there yet, while records are few.
    lanes: [Lane; 2],
}

/// A connection, and what is made ready for it.
#[derive(Default)]
struct Lane {
    /// `None` until it is needed, and after a failure.
    connection: Option<PgConnection>,
    /// Of the last connection: its process, and when that began.
    session: Option<(i32, String)>,
    /// The rows of one statement; used again and again.
    buffer: RowWriter,
}

/// What is written, and as whom.
#[derive(Clone, Copy)]
pub(super) struct Writing<'a> {
    pub(super) parts: &'a [Part],
    pub(super) positions: &'a Positions,
    pub(super) identity: &'a Identity,
    end: End,
}

impl PgWriter {
    pub(super) async fn open(server: &Server) -> Result<Self, StoreError> {
        let mut lanes = [Lane::default(), Lane::default()];
        lanes[0].connection = Some(lanes[0].take(server).await?);
        Ok(Self {
            server: server.clone(),
            lanes,
        })
    }
}

#[async_trait]
impl Writer for PgWriter {
    fn system(&self) -> &'static str {
        "postgresql"
    }

    async fn stored(&mut self) -> Result<Vec<StoredOffset>, StoreError> {
        let lane = &mut self.lanes[0];
        let mut connection = lane.take(&self.server).await?;
        let rows = sqlx::query_as::<_, OffsetRow>(SELECT_OFFSETS).fetch_all(&mut connection);
        let rows = timeout(ANSWER, rows).await;
        let rows = rows.map_err(|_| no_answer("to what is stored", ANSWER))??;
        lane.connection = Some(connection);
        stored_offsets(rows)
    }

    async fn move_on(
        &mut self,
        advances: &[Advance],
        identity: &Identity,
    ) -> Result<(), StoreError> {
        let lane = &mut self.lanes[0];
        let mut connection = lane.take(&self.server).await?;
        let moved = async {
            let mut transaction = connection.begin().await?;
            move_offsets(&mut transaction, advances, identity).await?;
            Ok::<_, StoreError>(transaction.commit().await?)
        };
        let moved = timeout(ANSWER, moved).await;
        moved.map_err(|_| no_answer("to new offsets", ANSWER))??;
        lane.connection = Some(connection);
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
        let writing = Writing {
            parts,
            positions,
            identity,
            end,
        };
        let [lane, other] = &mut self.lanes;
        let halves = match end {
            End::CommitHalves if records.len() >= MIN_HALVED => halves(records),
            _ => None,
        };
        let Some([half, other_half]) = halves else {
            return lane.write(&self.server, records, writing).await;
        };
        // Where the database has no connection to spare, one is enough.
        match other.take(&self.server).await {
            Ok(connection) => other.connection = Some(connection),
            Err(_) => return lane.write(&self.server, records, writing).await,
        }
        let written = tokio::join!(
            lane.write(&self.server, &half, writing),
            other.write(&self.server, &other_half, writing)
        );
        let (stored, rows, error) = match written {
            (Ok(rows), Ok(of_others)) => {
                let both = rows.into_iter().zip(of_others);
                return Ok(both
                    .map(|((part, rows), (_, more))| (part, rows + more))
                    .collect());
            }
            (Err(error), Err(_)) => return Err(error),
            (Ok(rows), Err(error)) => (half.len(), rows, error),
            (Err(error), Ok(rows)) => (other_half.len(), rows, error),
        };
        Err(StoreError::Half {
            reason: error.to_string(),
            stored,
            rows,
        })
    }

    /// A server has what it has stored, wherever its name leads to next.
    async fn is_in_place(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl Lane {
    /// The connection, taken out: only a call that ends well puts it back, so that a broken one, or
    /// one with half a transaction, is never used again.
    async fn take(&mut self, server: &Server) -> Result<PgConnection, StoreError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.connect(server).await,
        }
    }

    /// A new connection. The session of the one before is ended: where that went dead on its way, the server
    /// does not know, and its open transaction still holds the locks that the next one needs.
    async fn connect(&mut self, server: &Server) -> Result<PgConnection, StoreError> {
        let mut connection = server.connect(Access::Write).await?;
        let settled = async {
            sqlx::raw_sql(NOTICE_OUR_END)
                .execute(&mut connection)
                .await?;
            if let Some((process, begun)) = &self.session {
                let ended = sqlx::query(END_SESSION).bind(process).bind(begun);
                if let Err(error) = ended.persistent(false).execute(&mut connection).await {
                    tracing::debug!("ending the session of a lost connection: {error}");
                }
            }
            let session = sqlx::query_as(SELECT_SESSION).persistent(false);
            session.fetch_optional(&mut connection).await
        };
        let session = timeout(ANSWER, settled).await;
        self.session = session.map_err(|_| no_answer("to a new session", ANSWER))??;
        Ok(connection)
    }

    /// Writes records in one transaction.
    async fn write(
        &mut self,
        server: &Server,
        records: &[&Record],
        writing: Writing<'_>,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        let mut connection = self.take(server).await?;
        let is_answered = AtomicBool::new(false);
        let written = self.write_on(&mut connection, records, writing, &is_answered);
        let written = timeout(WRITE, written).await.unwrap_or_else(|_| {
            Err(match is_answered.load(Ordering::Relaxed) {
                true => StoreError::TooLong(format!("no end within {} s", WRITE.as_secs())),
                // Fewer records would not help a connection that is dead, or a lock.
                false => no_answer(
                    "to a first statement, or a lock on the stored offsets",
                    WRITE,
                ),
            })
        });
        // A refused row leaves a sound connection, whose transaction is rolled back before the next
        // one: finding such a row takes many tries.
        if matches!(written, Ok(_) | Err(StoreError::Refused(_))) {
            self.connection = Some(connection);
        }
        written
    }

    async fn write_on(
        &mut self,
        connection: &mut PgConnection,
        records: &[&Record],
        writing: Writing<'_>,
        is_answered: &AtomicBool,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        let Writing {
            parts, positions, ..
        } = writing;
        let advances = advances(records, parts, positions);
        let events = all_rows(records);
        let mut tasks = Tasks::default();
        let of_events: Vec<usize> = events.iter().map(|rows| tasks.add(rows)).collect();
        if records.len() <= MAX_RECORDS
            && !matches!(writing.end, End::RollBack)
            && !advances.is_empty()
            && advances.iter().all(|advance| advance.expected.is_some())
        {
            let moved = Vec::from_iter(&advances);
            let stored =
                small_batch::store(connection, &events, &tasks, &of_events, &moved, writing).await;
            match stored {
                Ok(Some(written)) => return Ok(written),
                // The long way tells what is in the way.
                Ok(None) | Err(StoreError::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut transaction = connection.begin().await?;
        move_offsets(&mut transaction, &advances, writing.identity).await?;
        is_answered.store(true, Ordering::Relaxed);
        let task_ids = upsert_tasks(&mut transaction, &tasks).await?;
        let mut written = Vec::new();
        for &part in parts {
            let (table, buffer) = (part.table(), &mut self.buffer);
            let mut copy = transaction.copy_in_raw(&COPIES[part as usize]).await?;
            buffer.begin();
            for (rows, task) in events.iter().zip(&of_events) {
                if is_unstored(rows, part, positions) {
                    table.write(buffer, rows, TaskKey::Id(task_ids[*task]));
                }
                // The database works on one piece while the next is written.
                if buffer.rows().len() >= PIECE_BYTES {
                    copy.send(buffer.rows()).await?;
                    buffer.clear();
                }
            }
            copy.send(buffer.end()).await?;
            written.push((part, copy.finish().await?));
        }
        match writing.end {
            End::Commit | End::CommitHalves => transaction.commit().await?,
            End::RollBack => transaction.rollback().await?,
        }
        Ok(written)
    }
}

/// Moves the stored offsets on.
///
/// # Errors
/// [`StoreError::Fenced`] if one was not the expected one.
async fn move_offsets(
    connection: &mut PgConnection,
    advances: &[Advance],
    identity: &Identity,
) -> Result<(), StoreError> {
    let (moved, begun): (Vec<&Advance>, Vec<&Advance>) = advances
        .iter()
        .partition(|advance| advance.expected.is_some());
    if !moved.is_empty() {
        let of = |advance: &&Advance| (advance.part.as_str(), advance.partition);
        let query = bind_offsets(sqlx::query_as(MOVE_OFFSETS.as_str()), &moved, identity);
        let done: Vec<(String, i32)> = query.fetch_all(&mut *connection).await?;
        let is_done = |advance: &Advance| {
            let mut done = done.iter();
            done.any(|(part, partition)| (part.as_str(), *partition) == of(&advance))
        };
        if let Some(fenced) = moved.into_iter().find(|advance| !is_done(advance)) {
            return Err(StoreError::Fenced(*fenced));
        }
    }
    if !begun.is_empty() {
        sqlx::query(LOCK_FIRST_OFFSETS)
            .execute(&mut *connection)
            .await?;
    }
    for advance in begun {
        let anchor = advance.anchor.unwrap_or(Anchor::NONE);
        let query = sqlx::query(INSERT_OFFSET)
            .bind(advance.part.as_str())
            .bind(&identity.topic)
            .bind(advance.partition)
            .bind(advance.next)
            .bind(&identity.cluster_id)
            .bind(anchor.offset)
            .bind(anchor.timestamp_ms)
            .bind(i64::from(anchor.crc32))
            .bind(&identity.group_id)
            .bind(advance.first)
            .bind(identity.topic_id.as_deref());
        if query.execute(&mut *connection).await?.rows_affected() == 0 {
            return Err(StoreError::Fenced(*advance));
        }
    }
    Ok(())
}

/// Topic, cluster, group, seven arrays of the steps, and the topic's id.
pub(super) fn bind_offsets<'q, O>(
    query: QueryAs<'q, sqlx::Postgres, O, PgArguments>,
    moved: &[&Advance],
    identity: &'q Identity,
) -> QueryAs<'q, sqlx::Postgres, O, PgArguments> {
    let numbers = |number: fn(&Advance) -> i64| -> Vec<i64> {
        moved.iter().map(|advance| number(advance)).collect()
    };
    let anchors = |number: fn(Anchor) -> i64| -> Vec<Option<i64>> {
        let anchors = moved.iter().map(|advance| advance.anchor);
        anchors.map(|anchor| anchor.map(number)).collect()
    };
    let of = |advance: &&Advance| (advance.part.as_str(), advance.partition);
    let (parts, partitions): (Vec<&str>, Vec<i32>) = moved.iter().map(of).unzip();
    query
        .bind(&identity.topic)
        .bind(&identity.cluster_id)
        .bind(&identity.group_id)
        .bind(parts)
        .bind(partitions)
        .bind(numbers(|advance| advance.expected.unwrap_or_default()))
        .bind(numbers(|advance| advance.next))
        .bind(anchors(|anchor| anchor.offset))
        .bind(anchors(|anchor| anchor.timestamp_ms))
        .bind(anchors(|anchor| anchor.crc32.into()))
        .bind(identity.topic_id.as_deref())
}

/// An array of each column of the states.
pub(super) fn bind_tasks<'q, O>(
    query: QueryAs<'q, sqlx::Postgres, O, PgArguments>,
    tasks: &Tasks<'q>,
) -> QueryAs<'q, sqlx::Postgres, O, PgArguments> {
    let columns = Arrays::of(tasks).columns.into_iter();
    columns.fold(query, |query, array| match array {
        Array::I32(values) => query.bind(values),
        Array::I64(values) => query.bind(values),
        Array::F64(values) => query.bind(values),
        Array::Bool(values) => query.bind(values),
        Array::Text(values) => query.bind(values),
    })
}

/// Brings `task` up to these states and gives the tasks' keys.
async fn upsert_tasks(
    connection: &mut PgConnection,
    tasks: &Tasks<'_>,
) -> Result<Vec<i64>, StoreError> {
    let told: Vec<(String, Option<i64>)> = bind_tasks(sqlx::query_as(UPSERT_TASKS.as_str()), tasks)
        .fetch_all(&mut *connection)
        .await?;
    let mut task_ids = vec![None; tasks.newest.len()];
    for (exec_id, task_id) in told {
        if let Some(place) = tasks.places.get(exec_id.as_str()) {
            task_ids[*place] = task_id;
        }
    }
    // Of a task whose state is newer already nothing was returned.
    let unknown: Vec<usize> = (0..task_ids.len())
        .filter(|place| task_ids[*place].is_none())
        .collect();
    if !unknown.is_empty() {
        let of_place = |place: &usize| tasks.newest[*place].info.exec_id;
        let found: Vec<(i64, Option<i64>)> = sqlx::query_as(SELECT_TASKS)
            .bind(unknown.iter().map(of_place).collect::<Vec<_>>())
            .fetch_all(connection)
            .await?;
        for (number, task_id) in found {
            task_ids[unknown[number as usize - 1]] = task_id;
        }
    }
    let known = task_ids.into_iter();
    known
        .map(|task_id| {
            task_id.ok_or_else(|| StoreError::Retry(sqlx::Error::RowNotFound.to_string()))
        })
        .collect()
}
