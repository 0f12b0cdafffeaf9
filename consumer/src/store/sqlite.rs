//! SQLite: many rows a statement, since one at a time is 25 times slower through sqlx.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use schemas::Application;
use serde_json::{Value, json};
use sqlx::error::BoxDynError;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous,
};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection};

use super::{End, Identity, Meaning, OffsetRow, SELECT_OFFSETS, StoreError};
use crate::batch::{Advance, Positions, Record, Tasks, advances, all_rows, is_unstored};
use crate::copy::COUNTS;
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
    (
        "expiry",
        include_str!("../../migrations/sqlite/0004_expiry.sql"),
    ),
    (
        "job tasks",
        include_str!("../../migrations/sqlite/0005_job_tasks.sql"),
    ),
];

const INSERT_OFFSET: &str = "INSERT INTO consumed_offset (part, topic, partition, next_offset, cluster_id, anchor_offset, \
     anchor_timestamp_ms, anchor_crc32, group_id, updated_at, first_offset) \
     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT DO NOTHING";

const MOVE_OFFSET: &str = "UPDATE consumed_offset SET next_offset = ?4, cluster_id = ?5, anchor_offset = ?6, \
     anchor_timestamp_ms = ?7, anchor_crc32 = ?8, group_id = ?9, updated_at = ?10 \
     WHERE part = ?1 AND topic = ?2 AND partition = ?3 AND next_offset = ?11";

static TASK: LazyLock<Insert> = LazyLock::new(|| {
    Insert::new(
        "INSERT INTO task (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
         progress, reported_at, sequence, event_partition, event_offset)",
        13,
        NEWER_WINS,
    )
});
static PROGRESS: LazyLock<Insert> = LazyLock::new(|| {
    Insert::new(
        "INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status, progress, \
         job_ids, job_tasks, adjustments)",
        10,
        "",
    )
});
static RESOURCE: LazyLock<Insert> = LazyLock::new(|| {
    Insert::new(
        "INSERT INTO task_resource (task_id, event_partition, event_offset, reported_at, application_id, memory_bytes, \
         cores, instances, queue, status)",
        10,
        "",
    )
});
static METRICS: LazyLock<Insert> = LazyLock::new(|| {
    Insert::new(
        "INSERT INTO task_metrics (task_id, event_partition, event_offset, reported_at, engine_running_tasks, metrics)",
        6,
        "",
    )
});

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
    TASK.all(&mut *connection, &tasks.newest, |rows, values| {
        let info = &rows.info;
        values.add(info.exec_id)?;
        values.add(info.job_id)?;
        values.add(info.engine_instance)?;
        values.add(info.engine_type)?;
        values.add(info.engine_user)?;
        values.add(info.ticket_id)?;
        values.add(info.status.as_str())?;
        values.add(info.status.is_final())?;
        values.add(rows.progress())?;
        values.add(info.reported_at)?;
        values.add(info.sequence)?;
        values.add(rows.partition)?;
        values.add(rows.offset)
    })
    .await?;
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
    match part {
        Part::Progress => {
            PROGRESS
                .all(connection, rows, |(task_id, rows), values| {
                    begin(*task_id, rows, values)?;
                    values.add(rows.info.sequence)?;
                    values.add(rows.info.status.as_str())?;
                    values.add(rows.progress())?;
                    for list in lists(rows) {
                        values.add(list)?;
                    }
                    Ok(())
                })
                .await
        }
        Part::Resource => {
            type Held<'a> = (i64, &'a Rows<'a>, Application<'a>);
            let held: Vec<Held<'_>> = rows
                .iter()
                .flat_map(|(task_id, rows)| {
                    let applications = rows.info.resource.into_iter();
                    applications
                        .flat_map(|list| list.sorted())
                        .map(move |held| (*task_id, *rows, held))
                })
                .collect();
            RESOURCE
                .all(connection, &held, |(task_id, rows, held), values| {
                    begin(*task_id, rows, values)?;
                    values.add(held.id)?;
                    values.add(held.memory_bytes)?;
                    values.add(held.cores)?;
                    values.add(held.instances)?;
                    values.add(held.queue)?;
                    values.add(held.status)
                })
                .await
        }
        Part::Metrics => {
            METRICS
                .all(connection, rows, |(task_id, rows), values| {
                    begin(*task_id, rows, values)?;
                    values.add(rows.info.engine_running_tasks)?;
                    let metrics = rows.info.metrics.as_ref();
                    values.add(metrics.map(serde_json::to_string).transpose()?)
                })
                .await
        }
    }
}

/// The values that a row of each history begins with.
fn begin(task_id: i64, rows: &Rows<'_>, values: &mut SqliteArguments) -> Result<(), BoxDynError> {
    values.add(task_id)?;
    values.add(rows.partition)?;
    values.add(rows.offset)?;
    values.add(rows.info.reported_at)
}

/// An INSERT of many rows.
struct Insert {
    head: &'static str,
    columns: usize,
    tail: &'static str,
    /// The text of one with [`ROWS_PER_STATEMENT`], made once.
    full: Arc<str>,
}

impl Insert {
    fn new(head: &'static str, columns: usize, tail: &'static str) -> Self {
        let mut insert = Self {
            head,
            columns,
            tail,
            full: Arc::default(),
        };
        insert.full = insert.text(ROWS_PER_STATEMENT).into();
        insert
    }

    fn text(&self, rows: usize) -> String {
        let Self {
            head,
            columns,
            tail,
            ..
        } = self;
        let row = format!("({})", vec!["?"; *columns].join(", "));
        format!("{head} VALUES {}{tail}", vec![row; rows].join(", "))
    }

    /// Inserts all these rows, whose values `add` puts into a statement's; gives their number. The next
    /// statement's values are put together while the database works on one's.
    async fn all<T>(
        &self,
        connection: &mut SqliteConnection,
        rows: &[T],
        add: impl Fn(&T, &mut SqliteArguments) -> Result<(), BoxDynError>,
    ) -> Result<u64, StoreError> {
        let values = |chunk: &[T]| -> Result<_, BoxDynError> {
            let mut values = SqliteArguments::default();
            values.reserve(chunk.len() * self.columns, 0);
            for row in chunk {
                add(row, &mut values)?;
            }
            Ok((chunk.len(), values))
        };
        let mut chunks = rows.chunks(ROWS_PER_STATEMENT);
        let mut next = chunks.next().map(&values);
        let mut inserted = 0;
        while let Some(bound) = next {
            let (count, bound) = bound.map_err(sqlx::Error::Encode)?;
            let text: Arc<str> = match count {
                ROWS_PER_STATEMENT => self.full.clone(),
                _ => self.text(count).into(),
            };
            let insert = sqlx::query_with(AssertSqlSafe(text), bound).execute(&mut *connection);
            let inserting;
            (inserting, next) = tokio::join!(insert, async { chunks.next().map(&values) });
            inserted += inserting?.rows_affected();
        }
        Ok(inserted)
    }
}

/// The columns that are arrays on PostgreSQL, as JSON: job ids, job tasks, adjustments.
fn lists(rows: &Rows<'_>) -> [Option<String>; 3] {
    let jobs = rows
        .info
        .progress
        .map(|(_, jobs)| Vec::from_iter(jobs.iter()));
    let list = |list: Value| list.to_string();
    let adjustments: Vec<_> = rows
        .adjustments
        .iter()
        .map(|adjustment| adjustment.as_str())
        .collect();
    [
        jobs.as_ref()
            .map(|jobs| list(jobs.iter().map(|job| job.id).collect())),
        jobs.as_ref().map(|jobs| {
            let counts = COUNTS.map(|count| Value::from_iter(jobs.iter().map(count)));
            list(counts.into_iter().collect())
        }),
        (!adjustments.is_empty()).then(|| list(adjustments.into_iter().collect())),
    ]
}
