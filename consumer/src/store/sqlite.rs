//! SQLite: many rows a statement, since one at a time is 25 times slower through sqlx.

use std::time::Duration;

use schemas::Job;
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, QueryBuilder};

use super::{End, Identity, Meaning, OffsetRow, SELECT_OFFSETS, StoreError};
use crate::batch::{Advance, Positions, Record, Tasks, advances, all_rows, is_unstored};
use crate::rows::{Part, Rows};

/// Rows in one INSERT: a full statement is prepared once and used again.
const ROWS_PER_STATEMENT: usize = 100;

/// Every migration ever released: its name and text.
const MIGRATIONS: &[(&str, &str)] = &[
    (
        "tables",
        include_str!("../../migrations/sqlite/0001_tables.sql"),
    ),
    (
        "first offset",
        include_str!("../../migrations/sqlite/0002_first_offset.sql"),
    ),
    (
        "narrow indexes",
        include_str!("../../migrations/sqlite/0003_narrow_indexes.sql"),
    ),
];

const INSERT_OFFSET: &str = "INSERT INTO consumed_offset (part, topic, partition, next_offset, cluster_id, anchor_offset, \
     anchor_timestamp_ms, anchor_crc32, group_id, updated_at, first_offset) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING";

const MOVE_OFFSET: &str = "UPDATE consumed_offset SET next_offset = ?4, cluster_id = ?5, anchor_offset = ?6, \
     anchor_timestamp_ms = ?7, anchor_crc32 = ?8, group_id = ?9, updated_at = ?10 \
     WHERE part = ?1 AND topic = ?2 AND partition = ?3 AND next_offset = ?11";

const NEWER_WINS: &str = " ON CONFLICT (exec_id) DO UPDATE SET (job_id, engine_instance, engine_type, engine_user, ticket_id, \
     status, is_final, progress, reported_at, sequence, event_partition, event_offset) = (excluded.job_id, \
     excluded.engine_instance, excluded.engine_type, excluded.engine_user, excluded.ticket_id, excluded.status, \
     excluded.is_final, excluded.progress, excluded.reported_at, excluded.sequence, excluded.event_partition, \
     excluded.event_offset) \
     WHERE (excluded.is_final, excluded.reported_at, excluded.sequence, excluded.event_partition, excluded.event_offset) \
     > (task.is_final, task.reported_at, task.sequence, task.event_partition, task.event_offset)";

pub(crate) struct Sqlite {
    options: SqliteConnectOptions,
    /// `None` after a failure, until the next try.
    connection: Option<SqliteConnection>,
}

/// How the file is opened: readers never wait for the writer (WAL), writers wait for each other.
pub(super) fn options(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // In WAL mode a power cut can take back the last transactions, whole and with their
        // offsets, but not break the file: they are then read again from the topic.
        .synchronous(SqliteSynchronous::Normal)
        // Then it is tried again, with a word in the log.
        .busy_timeout(Duration::from_secs(5))
        .disable_statement_logging()
}

/// What an extended result code says (sqlite.org/rescode.html).
pub(super) fn meaning(code: &str) -> Meaning {
    match code.parse::<u32>().unwrap_or_default() & 0xFF {
        // BUSY, LOCKED, NOMEM, IOERR, FULL, PROTOCOL (a race of locks).
        5 | 6 | 7 | 10 | 13 | 15 => Meaning::Passes,
        // TOOBIG, CONSTRAINT, MISMATCH.
        18..=20 => Meaning::Refused,
        _ => Meaning::Stays,
    }
}

pub(super) async fn migrate(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let mut connection = options.connect().await?;
    let mut tries = 0;
    // sqlx takes no lock for migrations here: of two programs that start at once the later one may
    // fail on what the earlier one has just made, and find it done on the next try.
    while let Err(error) = super::migrator(MIGRATIONS).run(&mut connection).await {
        tries += 1;
        if tries == 20 {
            return Err(super::migrating(error));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(connection.close().await?)
}

impl Sqlite {
    pub(super) async fn open(options: &SqliteConnectOptions) -> Result<Self, StoreError> {
        Ok(Self {
            options: options.clone(),
            connection: Some(options.connect().await?),
        })
    }

    /// The connection, taken out: only a call that ends well puts it back. SQLite rolls back by
    /// itself what a full disk or an I/O error ends, and sqlx, which does not know, would take no
    /// further transaction on the same connection.
    async fn take(&mut self) -> Result<SqliteConnection, StoreError> {
        match self.connection.take() {
            Some(connection) => Ok(connection),
            None => Ok(self.options.connect().await?),
        }
    }

    pub(super) async fn consumed_offsets(&mut self) -> Result<Vec<OffsetRow>, StoreError> {
        let mut connection = self.take().await?;
        let rows = sqlx::query_as(SELECT_OFFSETS)
            .fetch_all(&mut connection)
            .await?;
        self.connection = Some(connection);
        Ok(rows)
    }

    pub(super) async fn write(
        &mut self,
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
        identity: &Identity,
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        // IMMEDIATE: a transaction that begins by reading and then writes can meet
        // SQLITE_BUSY_SNAPSHOT, which no busy timeout waits for.
        let mut connection = self.take().await?;
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        for advance in advances(records, parts, positions) {
            if !move_offset(&mut transaction, &advance, identity).await? {
                transaction.rollback().await?;
                return Err(StoreError::Fenced(advance));
            }
        }
        let events = all_rows(records);
        let tasks = Tasks::of(&events);
        let task_ids = upsert_tasks(&mut transaction, &tasks).await?;
        let mut written = Vec::new();
        for &part in parts {
            let rows: Vec<(i64, &Rows<'_>)> = events
                .iter()
                .zip(&tasks.of_events)
                .filter(|(rows, _)| is_unstored(rows, part, positions))
                .map(|(rows, task)| (task_ids[*task], rows))
                .collect();
            written.push((part, insert(&mut transaction, part, &rows).await?));
        }
        match end {
            End::Commit => transaction.commit().await?,
            End::RollBack => transaction.rollback().await?,
        }
        self.connection = Some(connection);
        Ok(written)
    }
}

/// Whether the stored offset was the expected one.
async fn move_offset(
    connection: &mut SqliteConnection,
    advance: &Advance,
    identity: &Identity,
) -> Result<bool, StoreError> {
    let Advance {
        part,
        partition,
        expected,
        first,
        next,
        anchor,
    } = advance;
    let statement = if expected.is_some() {
        MOVE_OFFSET
    } else {
        INSERT_OFFSET
    };
    let query = sqlx::query(statement)
        .bind(part.as_str())
        .bind(&identity.topic)
        .bind(partition)
        .bind(next)
        .bind(&identity.cluster_id)
        .bind(anchor.offset)
        .bind(anchor.timestamp_ms)
        .bind(i64::from(anchor.crc32))
        .bind(&identity.group_id)
        .bind(jiff::Timestamp::now().as_microsecond())
        // Where it is to be moved from, or, where there is none yet, begins.
        .bind(expected.unwrap_or(*first));
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

/// Brings `task` up to these states and gives the tasks' keys.
async fn upsert_tasks(
    connection: &mut SqliteConnection,
    tasks: &Tasks<'_>,
) -> Result<Vec<i64>, StoreError> {
    for chunk in tasks.newest.chunks(ROWS_PER_STATEMENT) {
        let mut insert = QueryBuilder::new(
            "INSERT INTO task (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
             progress, reported_at, sequence, event_partition, event_offset) ",
        );
        insert.push_values(chunk, |mut row, rows| {
            let info = &rows.info;
            row.push_bind(info.exec_id)
                .push_bind(info.job_id)
                .push_bind(info.engine_instance)
                .push_bind(info.engine_type)
                .push_bind(info.engine_user)
                .push_bind(info.ticket_id)
                .push_bind(info.status.as_str())
                .push_bind(info.status.is_final())
                .push_bind(rows.progress())
                .push_bind(info.reported_at)
                .push_bind(info.sequence)
                .push_bind(rows.partition)
                .push_bind(rows.offset);
        });
        insert.push(NEWER_WINS);
        insert.build().execute(&mut *connection).await?;
    }
    let exec_ids: Vec<&str> = tasks.newest.iter().map(|rows| rows.info.exec_id).collect();
    let ids: Vec<(String, i64)> = sqlx::query_as(
        "SELECT exec_id, task_id FROM task WHERE exec_id IN (SELECT value FROM json_each(?1))",
    )
    .bind(json!(exec_ids).to_string())
    .fetch_all(connection)
    .await?;
    let mut task_ids = vec![0; tasks.newest.len()];
    for (exec_id, task_id) in ids {
        if let Some(place) = tasks.places.get(exec_id.as_str()) {
            task_ids[*place] = task_id;
        }
    }
    Ok(task_ids)
}

/// Inserts the rows of one part; gives their number.
async fn insert(
    connection: &mut SqliteConnection,
    part: Part,
    rows: &[(i64, &Rows<'_>)],
) -> Result<u64, StoreError> {
    let mut written = 0;
    match part {
        Part::Progress => {
            for chunk in rows.chunks(ROWS_PER_STATEMENT) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status, \
                     progress, job_ids, total_tasks, running_tasks, failed_tasks, succeed_tasks, adjustments) ",
                );
                insert.push_values(chunk, |mut row, (task_id, rows)| {
                    let [job_ids, total, running, failed, succeed, adjustments] = lists(rows);
                    row.push_bind(task_id)
                        .push_bind(rows.partition)
                        .push_bind(rows.offset)
                        .push_bind(rows.info.reported_at)
                        .push_bind(rows.info.sequence)
                        .push_bind(rows.info.status.as_str())
                        .push_bind(rows.progress())
                        .push_bind(job_ids)
                        .push_bind(total)
                        .push_bind(running)
                        .push_bind(failed)
                        .push_bind(succeed)
                        .push_bind(adjustments);
                });
                written += insert
                    .build()
                    .execute(&mut *connection)
                    .await?
                    .rows_affected();
            }
        }
        Part::Resource => {
            let applications: Vec<_> = rows
                .iter()
                .flat_map(|(task_id, rows)| {
                    let applications = rows.info.resource.into_iter();
                    applications
                        .flat_map(|list| list.sorted())
                        .map(move |held| (task_id, rows, held))
                })
                .collect();
            for chunk in applications.chunks(ROWS_PER_STATEMENT) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO task_resource (task_id, event_partition, event_offset, reported_at, application_id, \
                     memory_bytes, cores, instances, queue, status) ",
                );
                insert.push_values(chunk, |mut row, (task_id, rows, held)| {
                    row.push_bind(*task_id)
                        .push_bind(rows.partition)
                        .push_bind(rows.offset)
                        .push_bind(rows.info.reported_at)
                        .push_bind(held.id)
                        .push_bind(held.memory_bytes)
                        .push_bind(held.cores)
                        .push_bind(held.instances)
                        .push_bind(held.queue)
                        .push_bind(held.status);
                });
                written += insert
                    .build()
                    .execute(&mut *connection)
                    .await?
                    .rows_affected();
            }
        }
        Part::Metrics => {
            for chunk in rows.chunks(ROWS_PER_STATEMENT) {
                let mut insert = QueryBuilder::new(
                    "INSERT INTO task_metrics (task_id, event_partition, event_offset, reported_at, \
                     engine_running_tasks, metrics) ",
                );
                insert.push_values(chunk, |mut row, (task_id, rows)| {
                    row.push_bind(task_id)
                        .push_bind(rows.partition)
                        .push_bind(rows.offset)
                        .push_bind(rows.info.reported_at)
                        .push_bind(rows.info.engine_running_tasks)
                        .push_bind(rows.info.metrics.map(|metrics| json!(metrics).to_string()));
                });
                written += insert
                    .build()
                    .execute(&mut *connection)
                    .await?
                    .rows_affected();
            }
        }
    }
    Ok(written)
}

/// The columns that are arrays on PostgreSQL, as JSON: job ids, total, running, failed and succeeded
/// tasks, adjustments.
fn lists(rows: &Rows<'_>) -> [Option<String>; 6] {
    let jobs = rows
        .info
        .progress
        .map(|(_, jobs)| Vec::from_iter(jobs.iter()));
    let counts = |count: fn(&Job<'_>) -> i32| {
        let jobs = jobs.as_ref()?.iter();
        Some(json!(jobs.map(count).collect::<Vec<_>>()).to_string())
    };
    let adjustments: Vec<_> = rows
        .adjustments
        .iter()
        .map(|adjustment| adjustment.as_str())
        .collect();
    [
        jobs.as_ref()
            .map(|jobs| json!(jobs.iter().map(|job| job.id).collect::<Vec<_>>()).to_string()),
        counts(|job| job.total_tasks),
        counts(|job| job.running_tasks),
        counts(|job| job.failed_tasks),
        counts(|job| job.succeed_tasks),
        (!adjustments.is_empty()).then(|| json!(adjustments).to_string()),
    ]
}
