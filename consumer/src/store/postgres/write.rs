//! Writes to PostgreSQL: tasks by `unnest`, histories by `COPY … (FORMAT binary)`; a [small batch](small_batch) in one
//! statement.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use super::offsets::move_offsets;
use super::server::Server;
use super::small_batch::{self, MAX_RECORDS};
use super::tasks::upsert_tasks;
use super::{Writing, no_answer};
use crate::batch::{Record, Tasks, advances, all_rows, halves, is_unstored};
use crate::positions::{Advance, Positions};
use crate::row_format::RowWriter;
use crate::rows::Part;
use crate::store::offsets::{OffsetRow, SELECT_OFFSETS, stored_offsets};
use crate::store::{ANSWER, Access, End, Identity, StoreError, StoredOffset, WRITE, Writer};
use crate::tables::TaskKey;

static COPIES: LazyLock<[String; Part::ALL.len()]> = LazyLock::new(|| {
    Part::ALL.map(|part| {
        let table = part.table();
        let names = table.stored_names();
        format!("COPY {table} ({names}) FROM STDIN (FORMAT binary)")
    })
});

/// Bytes of rows sent to the connection at once.
const PIECE_BYTES: usize = 64 << 10;

/// The server detects within 30 s that this host has disappeared, as this host does of the server; with Linux's
/// defaults it would hold the locks for two hours.
const NOTICE_OUR_END: &str = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 4; \
     SET tcp_user_timeout = 30000";
const SELECT_SESSION: &str =
    "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
/// An idle session holds no locks, and behind a pooler it may now serve someone else, even this connection.
const END_SESSION: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE pid = $1 AND backend_start::text = $2 AND pid <> pg_backend_pid() AND state <> 'idle'";

/// Minimum number of records for two transactions.
const MIN_HALVED: usize = 1_000;

pub(super) struct PgWriter {
    server: Server,
    /// The second one is idle, and may not be connected yet, while there are few records.
    slots: [ConnectionSlot; 2],
}

/// A connection and its buffer.
#[derive(Default)]
struct ConnectionSlot {
    /// `None` until it is needed, and after a failure.
    connection: Option<PgConnection>,
    /// Process and start of the last connection's session.
    session: Option<(i32, String)>,
    /// The rows of one statement; reused.
    buffer: RowWriter,
}

impl PgWriter {
    pub(super) async fn open(server: &Server) -> Result<Self, StoreError> {
        let mut slots = [ConnectionSlot::default(), ConnectionSlot::default()];
        slots[0].connection = Some(slots[0].take(server).await?);
        Ok(Self {
            server: server.clone(),
            slots,
        })
    }
}

#[async_trait]
impl Writer for PgWriter {
    fn system(&self) -> &'static str {
        "postgresql"
    }

    async fn stored(&mut self) -> Result<Vec<StoredOffset>, StoreError> {
        let slot = &mut self.slots[0];
        let mut connection = slot.take(&self.server).await?;
        let rows = sqlx::query_as::<_, OffsetRow>(SELECT_OFFSETS).fetch_all(&mut connection);
        let rows = timeout(ANSWER, rows).await;
        let rows = rows.map_err(|_| no_answer("to what is stored", ANSWER))??;
        slot.connection = Some(connection);
        stored_offsets(rows)
    }

    async fn move_on(
        &mut self,
        advances: &[Advance],
        identity: &Identity,
    ) -> Result<(), StoreError> {
        let [slot, other] = &mut self.slots;
        slot.end_lost(&self.server, other).await?;
        let mut connection = slot.take(&self.server).await?;
        let moved = async {
            let mut transaction = connection.begin().await?;
            move_offsets(&mut transaction, advances, identity).await?;
            Ok::<_, StoreError>(transaction.commit().await?)
        };
        let moved = timeout(ANSWER, moved).await;
        moved.map_err(|_| no_answer("to new offsets", ANSWER))??;
        slot.connection = Some(connection);
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
        let [slot, other] = &mut self.slots;
        let halves = match end {
            End::CommitHalves if records.len() >= MIN_HALVED => halves(records),
            _ => None,
        };
        let Some([half, other_half]) = halves else {
            slot.end_lost(&self.server, other).await?;
            return slot.write(&self.server, records, writing).await;
        };
        // If the database has no connection to spare, one is enough.
        match other.take(&self.server).await {
            Ok(connection) => other.connection = Some(connection),
            Err(_) => {
                slot.end_lost(&self.server, other).await?;
                return slot.write(&self.server, records, writing).await;
            }
        }
        let written = tokio::join!(
            slot.write(&self.server, &half, writing),
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

    /// A server keeps what it has stored, wherever its name points next.
    async fn is_in_place(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

/// Ends the session of a lost connection, if it still is in a transaction.
async fn end_session(connection: &mut PgConnection, (process, begun): &(i32, String)) {
    let ended = sqlx::query(END_SESSION).bind(process).bind(begun);
    if let Err(error) = ended.persistent(false).execute(connection).await {
        tracing::debug!("ending the session of a lost connection: {error}");
    }
}

impl ConnectionSlot {
    /// Takes the connection. Only a successful call returns it, so that one that is broken, or in the middle of a
    /// transaction, is never reused.
    async fn take(&mut self, server: &Server) -> Result<PgConnection, StoreError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => self.connect(server).await,
        }
    }

    /// Opens a new connection and ends the session of the previous one: if that connection was lost, the server may not
    /// know, and its open transaction may hold the locks that the next one needs.
    async fn connect(&mut self, server: &Server) -> Result<PgConnection, StoreError> {
        let mut connection = server.connect(Access::Write).await?;
        let settled = async {
            sqlx::raw_sql(NOTICE_OUR_END)
                .execute(&mut connection)
                .await?;
            if let Some(session) = &self.session {
                end_session(&mut connection, session).await;
            }
            let session = sqlx::query_as(SELECT_SESSION).persistent(false);
            session.fetch_optional(&mut connection).await
        };
        let session = timeout(ANSWER, settled).await;
        self.session = session.map_err(|_| no_answer("to a new session", ANSWER))??;
        Ok(connection)
    }

    /// Ends the session of the other slot's connection if that was lost: its open transaction may hold locks that this one
    /// needs, while there are too few records for the other one to connect again.
    async fn end_lost(&mut self, server: &Server, other: &mut Self) -> Result<(), StoreError> {
        let lost = other.session.as_ref();
        let Some(session) = lost.filter(|_| other.connection.is_none()) else {
            return Ok(());
        };
        let mut connection = self.take(server).await?;
        let ended = timeout(ANSWER, end_session(&mut connection, session)).await;
        ended.map_err(|_| no_answer("to the end of a session", ANSWER))?;
        self.connection = Some(connection);
        other.session = None;
        Ok(())
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
                // Fewer records would help neither a dead connection nor a lock.
                false => no_answer(
                    "to a first statement, or a lock on the stored offsets",
                    WRITE,
                ),
            })
        });
        // After a refused row, the connection is sound, and its transaction is rolled back before the next one: finding
        // such a row takes many attempts.
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
                // The general method finds the cause.
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
                // The database processes one piece while the next is written.
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
