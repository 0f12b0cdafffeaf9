//! A few events in one statement, which is a transaction of its own: one question and one answer, where the long
//! way takes ten.

use std::borrow::Cow;

use schemas::{Application, Job, List, NamedMetric};
use serde::Serialize;
use sqlx::postgres::PgConnection;

use super::write::{
    Writing, bind_offsets, bind_tasks, move_locked, time, upsert_from, with_locked,
};
use crate::batch::{Tasks, is_unstored};
use crate::positions::Advance;
use crate::row_format::COUNTS;
use crate::rows::{Part, Rows};
use crate::store::StoreError;

/// At most so many: with some 60 the JSON costs more than the answers that it saves.
pub(super) const FEW: usize = 32;

/// All or nothing: no row is written where an offset is not the expected one. Rows come as JSON, of whose values
/// PostgreSQL reads the text, as of literals; `task` is the place of a row's task in the arrays, from 1. The key of
/// a task whose state is newer already is looked up as of when the statement began: that nobody has removed the row
/// since is made sure of by locking it, and of one that somebody made since there is none, which a row's column
/// refuses.
const STORE: &str = concat!(
    with_locked!(),
    ", moved AS (",
    move_locked!(
        "$27",
        " AND (SELECT count(*) FROM locked WHERE is_expected) = cardinality($4::text[])"
    ),
    "), states AS (SELECT * FROM unnest($11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[], \
     $17::text[], $18::boolean[], $19::double precision[], $20::bigint[], $21::bigint[], $22::integer[], $23::bigint[]) \
     WITH ORDINALITY AS states (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
     progress, reported_at, sequence, event_partition, event_offset, task) \
     WHERE (SELECT count(*) FROM moved) = cardinality($4::text[])), told AS (",
    upsert_from!("states"),
    "), keys AS (SELECT task, coalesce(told.task_id, \
     (SELECT task_id FROM task WHERE task.exec_id = states.exec_id FOR KEY SHARE)) AS task_id \
     FROM states LEFT JOIN told USING (exec_id)), \
     progress AS (INSERT INTO task_progress (task_id, event_offset, reported_at, sequence, progress, event_partition, \
     status, job_ids, job_tasks, adjustments) \
     SELECT task_id, event_offset, ",
    time!(),
    ", sequence, progress, event_partition, status, job_ids, job_tasks, adjustments \
     FROM json_to_recordset($24::json) AS said (task bigint, event_offset bigint, reported_at bigint, sequence bigint, \
     progress double precision, event_partition integer, status text, job_ids text[], job_tasks integer[], \
     adjustments text[]) JOIN keys USING (task) RETURNING 1), \
     resource AS (INSERT INTO task_resource (task_id, event_offset, reported_at, memory_bytes, event_partition, cores, \
     instances, application_id, queue, status) \
     SELECT task_id, event_offset, ",
    time!(),
    ", memory_bytes, event_partition, cores, instances, application_id, queue, status \
     FROM json_to_recordset($25::json) AS said (task bigint, event_offset bigint, reported_at bigint, \
     memory_bytes bigint, event_partition integer, cores integer, instances integer, application_id text, queue text, \
     status text) JOIN keys USING (task) RETURNING 1), \
     metrics AS (INSERT INTO task_metrics (task_id, event_offset, reported_at, event_partition, engine_running_tasks, \
     metrics) \
     SELECT task_id, event_offset, ",
    time!(),
    ", event_partition, engine_running_tasks, metrics \
     FROM json_to_recordset($26::json) AS said (task bigint, event_offset bigint, reported_at bigint, \
     event_partition integer, engine_running_tasks integer, metrics json) JOIN keys USING (task) RETURNING 1) \
     SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM progress), (SELECT count(*) FROM resource), \
     (SELECT count(*) FROM metrics)"
);

/// A row of a history, by the names of its columns: those of all three, and those of its part.
#[derive(Serialize)]
struct Row<R> {
    task: usize,
    event_offset: i64,
    event_partition: i32,
    reported_at: i64,
    #[serde(flatten)]
    of_part: R,
}

#[derive(Serialize)]
struct Progress<'a> {
    sequence: i64,
    progress: Option<f64>,
    status: &'a str,
    job_ids: Option<Vec<&'a str>>,
    job_tasks: Option<Vec<Vec<i32>>>,
    adjustments: Option<Vec<Cow<'a, str>>>,
}

#[derive(Serialize)]
struct Resource<'a> {
    memory_bytes: i64,
    cores: i32,
    instances: i32,
    application_id: &'a str,
    queue: &'a str,
    status: &'a str,
}

#[derive(Serialize)]
struct Metrics<'a> {
    engine_running_tasks: i32,
    metrics: Option<List<'a, NamedMetric<'a>>>,
}

impl<R> Row<R> {
    fn of(rows: &Rows<'_>, task: usize, of_part: R) -> Self {
        Self {
            task: task + 1,
            event_offset: rows.offset,
            event_partition: rows.partition,
            reported_at: rows.info.reported_at,
            of_part,
        }
    }
}

impl<'a> Progress<'a> {
    fn of(rows: &Rows<'a>) -> Self {
        let jobs = rows.info.progress;
        let jobs = jobs.map(|(_, jobs)| Vec::from_iter(jobs.iter()));
        let counts = |jobs: &Vec<Job<'_>>| match jobs.is_empty() {
            true => Vec::new(), // an array without elements has no dimensions
            false => Vec::from(COUNTS.map(|count| jobs.iter().map(count).collect())),
        };
        let adjustments = rows.adjustments();
        Self {
            sequence: rows.info.sequence,
            progress: rows.progress(),
            status: rows.info.status.as_str(),
            job_tasks: jobs.as_ref().map(counts),
            job_ids: jobs.map(|jobs| jobs.iter().map(|job| job.id).collect()),
            adjustments: (!adjustments.is_empty()).then_some(adjustments),
        }
    }
}

impl<'a> Resource<'a> {
    fn of(held: Application<'a>) -> Self {
        Self {
            memory_bytes: held.memory_bytes,
            cores: held.cores,
            instances: held.instances,
            application_id: held.id,
            queue: held.queue,
            status: held.status,
        }
    }
}

impl<'a> Metrics<'a> {
    fn of(rows: &Rows<'a>) -> Self {
        Self {
            engine_running_tasks: rows.info.engine_running_tasks,
            metrics: rows.info.metrics,
        }
    }
}

/// Stores events and moves the offsets on, and gives the rows written of each part; `None` where an offset is not
/// the expected one, and nothing was done. `of_events`: the place in `tasks` of each event's task.
pub(super) async fn store(
    connection: &mut PgConnection,
    events: &[Rows<'_>],
    tasks: &Tasks<'_>,
    of_events: &[usize],
    advances: &[&Advance],
    writing: Writing<'_>,
) -> Result<Option<Vec<(Part, u64)>>, StoreError> {
    let parts = writing.parts;
    let (mut of_progress, mut of_resource, mut of_metrics) = (Vec::new(), Vec::new(), Vec::new());
    for (rows, task) in events.iter().zip(of_events) {
        for part in parts {
            if !is_unstored(rows, *part, writing.positions) {
                continue;
            }
            match part {
                Part::Progress => of_progress.push(Row::of(rows, *task, Progress::of(rows))),
                Part::Resource => {
                    let held = rows.info.resource.iter().flat_map(|list| list.sorted());
                    of_resource.extend(held.map(|held| Row::of(rows, *task, Resource::of(held))));
                }
                Part::Metrics => of_metrics.push(Row::of(rows, *task, Metrics::of(rows))),
            }
        }
    }
    let query = bind_offsets(sqlx::query_as(STORE), advances, writing.identity);
    let query = bind_tasks(query, tasks)
        .bind(serde_json::to_string(&of_progress)?)
        .bind(serde_json::to_string(&of_resource)?)
        .bind(serde_json::to_string(&of_metrics)?)
        .bind(writing.identity.topic_id.as_deref());
    let (moved, progress, resource, metrics): (i64, i64, i64, i64) =
        query.fetch_one(connection).await?;
    if moved as usize != advances.len() {
        return Ok(None);
    }
    let written = |part: &Part| match part {
        Part::Progress => (*part, progress as u64),
        Part::Resource => (*part, resource as u64),
        Part::Metrics => (*part, metrics as u64),
    };
    Ok(Some(parts.iter().map(written).collect()))
}
