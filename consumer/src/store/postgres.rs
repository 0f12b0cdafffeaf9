//! PostgreSQL: tasks by `unnest`, histories by `COPY … (FORMAT binary)`.

use std::collections::HashMap;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use super::{End, Identity, Meaning, OffsetRow, SELECT_OFFSETS, StoreError};
use crate::batch::{self, Advance, Positions, Record};
use crate::copy::CopyWriter;
use crate::rows::{Part, Rows};

/// Every migration ever released: its name and text.
const MIGRATIONS: &[(&str, &str)] = &[
    (
        "tables",
        include_str!("../../migrations/postgres/0001_tables.sql"),
    ),
    (
        "first offset",
        include_str!("../../migrations/postgres/0002_first_offset.sql"),
    ),
];

const INSERT_OFFSET: &str = "INSERT INTO consumed_offset (part, topic, partition, next_offset, cluster_id, anchor_offset, \
     anchor_timestamp_ms, anchor_crc32, group_id, updated_at, first_offset) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, now(), $10) ON CONFLICT DO NOTHING";

const MOVE_OFFSET: &str = "UPDATE consumed_offset SET next_offset = $4, cluster_id = $5, anchor_offset = $6, \
     anchor_timestamp_ms = $7, anchor_crc32 = $8, group_id = $9, updated_at = now() \
     WHERE part = $1 AND topic = $2 AND partition = $3 AND next_offset = $10";

/// Sorted by exec_id, so that two writers lock tasks in the same order. Microseconds are added to
/// the epoch in two steps, since an interval multiplied by a double loses them.
const UPSERT_TASKS: &str = "INSERT INTO task AS held (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, \
     status, is_final, progress, reported_at, sequence, event_partition, event_offset) \
     SELECT exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, progress, \
     timestamptz 'epoch' + (reported_at / 1000000) * interval '1 second' + (reported_at % 1000000) * interval '1 microsecond', \
     sequence, event_partition, event_offset \
     FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::boolean[], \
     $9::double precision[], $10::bigint[], $11::bigint[], $12::integer[], $13::bigint[]) \
     AS said (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, progress, \
     reported_at, sequence, event_partition, event_offset) \
     ORDER BY exec_id \
     ON CONFLICT (exec_id) DO UPDATE SET (job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
     progress, reported_at, sequence, event_partition, event_offset) = (excluded.job_id, excluded.engine_instance, \
     excluded.engine_type, excluded.engine_user, excluded.ticket_id, excluded.status, excluded.is_final, excluded.progress, \
     excluded.reported_at, excluded.sequence, excluded.event_partition, excluded.event_offset) \
     WHERE (excluded.is_final, excluded.reported_at, excluded.sequence, excluded.event_partition, excluded.event_offset) \
     > (held.is_final, held.reported_at, held.sequence, held.event_partition, held.event_offset)";

pub(crate) struct Postgres {
    options: PgConnectOptions,
    /// `None` after a failure, until the next try.
    connection: Option<PgConnection>,
    copy: CopyBuffer,
}

/// What an SQLSTATE says (PostgreSQL manual, appendix A).
pub(super) fn meaning(sqlstate: &str) -> Meaning {
    match (sqlstate, sqlstate.get(..2).unwrap_or_default()) {
        // statement_timeout, and a lock that was not had in time.
        ("57014" | "55P03", _) => Meaning::TooLong,
        // A standby that takes no writes (yet); a database that takes no connections for now.
        ("25006" | "55000", _) => Meaning::Passes,
        // Connection exceptions, serialization failures and deadlocks, too few resources (disk full,
        // too many connections), operator intervention, system errors.
        (_, "08" | "40" | "53" | "57" | "58") => Meaning::Passes,
        // Data exceptions, violated constraints, limits of the program (a row or key too long).
        (_, "22" | "23" | "54") => Meaning::Refused,
        _ => Meaning::Stays,
    }
}

pub(super) async fn migrate(options: &PgConnectOptions) -> Result<(), StoreError> {
    let mut connection = options.connect().await?;
    super::migrator(MIGRATIONS)
        .run(&mut connection)
        .await
        .map_err(super::migrating)?;
    Ok(connection.close().await?)
}

impl Postgres {
    pub(super) async fn open(options: &PgConnectOptions) -> Result<Self, StoreError> {
        let connection = Some(options.connect().await?);
        Ok(Self {
            options: options.clone(),
            connection,
            copy: CopyBuffer::default(),
        })
    }

    /// The connection, taken out: only a call that ends well puts it back, so that a broken one, or
    /// one with half a transaction, is never used again.
    async fn take(&mut self) -> Result<PgConnection, StoreError> {
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
        let mut connection = self.take().await?;
        let written = self
            .write_on(&mut connection, records, parts, positions, identity, end)
            .await;
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
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
        identity: &Identity,
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        let mut transaction = connection.begin().await?;
        for advance in batch::advances(records, parts, positions) {
            if !move_offset(&mut transaction, &advance, identity).await? {
                return Err(StoreError::Fenced(advance));
            }
        }
        let task_ids = upsert_tasks(&mut transaction, &batch::newest(records)).await?;
        let mut written = Vec::new();
        for &part in parts {
            self.copy.0.begin();
            for rows in batch::unstored(records, part, positions) {
                // Every event's task was upserted just now.
                let Some(&task_id) = task_ids.get(&rows.task.exec_id) else {
                    continue;
                };
                self.copy.put(part, task_id, rows);
            }
            let statement = format!(
                "COPY {} ({}) FROM STDIN (FORMAT binary)",
                part.table(),
                columns(part)
            );
            let mut copy = transaction.copy_in_raw(&statement).await?;
            copy.send(self.copy.0.end()).await?;
            written.push((part, copy.finish().await?));
        }
        match end {
            End::Commit => transaction.commit().await?,
            End::RollBack => transaction.rollback().await?,
        }
        Ok(written)
    }
}

/// Whether the stored offset was the expected one.
async fn move_offset(
    connection: &mut PgConnection,
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
        // Where it is to be moved from, or, where there is none yet, begins.
        .bind(expected.unwrap_or(*first));
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

/// Brings `task` up to these states and gives the tasks' keys by execId.
async fn upsert_tasks(
    connection: &mut PgConnection,
    newest: &std::collections::BTreeMap<&str, &Rows>,
) -> Result<HashMap<String, i64>, StoreError> {
    let rows: Vec<&Rows> = newest.values().copied().collect();
    let texts =
        |field: fn(&Rows) -> &str| -> Vec<&str> { rows.iter().map(|rows| field(rows)).collect() };
    let exec_ids = texts(|rows| &rows.task.exec_id);
    sqlx::query(UPSERT_TASKS)
        .bind(&exec_ids)
        .bind(texts(|rows| &rows.task.job_id))
        .bind(texts(|rows| &rows.task.engine_instance))
        .bind(texts(|rows| &rows.task.engine_type))
        .bind(texts(|rows| &rows.task.engine_user))
        .bind(texts(|rows| &rows.task.ticket_id))
        .bind(texts(|rows| rows.task.status.as_str()))
        .bind(
            rows.iter()
                .map(|rows| rows.task.status.is_final())
                .collect::<Vec<_>>(),
        )
        .bind(
            rows.iter()
                .map(|rows| rows.task.progress)
                .collect::<Vec<_>>(),
        )
        .bind(rows.iter().map(|rows| rows.reported_at).collect::<Vec<_>>())
        .bind(
            rows.iter()
                .map(|rows| rows.task.sequence)
                .collect::<Vec<_>>(),
        )
        .bind(rows.iter().map(|rows| rows.partition).collect::<Vec<_>>())
        .bind(rows.iter().map(|rows| rows.offset).collect::<Vec<_>>())
        .execute(&mut *connection)
        .await?;
    let ids: Vec<(String, i64)> =
        sqlx::query_as("SELECT exec_id, task_id FROM task WHERE exec_id = ANY($1)")
            .bind(&exec_ids)
            .fetch_all(connection)
            .await?;
    Ok(ids.into_iter().collect())
}

/// The columns in the order in which [`CopyBuffer::put`] writes them.
fn columns(part: Part) -> &'static str {
    match part {
        Part::Progress => {
            "task_id, event_offset, reported_at, sequence, progress, event_partition, status, \
             job_ids, total_tasks, running_tasks, failed_tasks, succeed_tasks, adjustments"
        }
        Part::Resource => {
            "task_id, event_offset, reported_at, memory_bytes, event_partition, cores, instances, \
             application_id, queue, status"
        }
        Part::Metrics => {
            "task_id, event_offset, reported_at, event_partition, engine_running_tasks, metrics"
        }
    }
}

/// The rows of one statement; used again and again.
#[derive(Default)]
struct CopyBuffer(CopyWriter);

impl CopyBuffer {
    fn put(&mut self, part: Part, task_id: i64, rows: &Rows) {
        match part {
            Part::Progress => self.progress(task_id, rows),
            Part::Resource => self.resource(task_id, rows),
            Part::Metrics => self.metrics(task_id, rows),
        }
    }

    fn progress(&mut self, task_id: i64, rows: &Rows) {
        let copy = self.row(13, task_id, rows);
        copy.i64(rows.task.sequence);
        copy.optional_f64(rows.task.progress);
        copy.i32(rows.partition);
        copy.text(rows.task.status.as_str());
        copy.jobs(rows.progress.jobs.as_deref());
        copy.adjustments(&rows.progress.adjustments);
    }

    fn resource(&mut self, task_id: i64, rows: &Rows) {
        for held in &rows.resource {
            let copy = self.row(10, task_id, rows);
            copy.i64(held.memory_bytes);
            copy.i32(rows.partition);
            copy.i32(held.cores);
            copy.i32(held.instances);
            copy.text(&held.application_id);
            copy.text(&held.queue);
            copy.text(&held.status);
        }
    }

    fn metrics(&mut self, task_id: i64, rows: &Rows) {
        let copy = self.row(6, task_id, rows);
        copy.i32(rows.partition);
        copy.i32(rows.metrics.engine_running_tasks);
        copy.optional_text(rows.metrics.metrics.as_deref());
    }

    /// Begins a row with what all three tables begin with.
    fn row(&mut self, fields: i16, task_id: i64, rows: &Rows) -> &mut CopyWriter {
        let copy = &mut self.0;
        copy.row(fields);
        copy.i64(task_id);
        copy.i64(rows.offset);
        copy.time(rows.reported_at);
        copy
    }
}
