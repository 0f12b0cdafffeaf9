//! `consumer tasks` and `consumer task`: what the tables say, now or as of a time, for a person or a
//! program.
//!
//! One text of SQL serves both databases: what they write in unlike ways stands in [`Dialect`], and
//! everything else is read as text and numbers.

use std::fmt::Write as _;

use anyhow::Context;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use service::exit::WrongUsage;
use service::output;
use service::text::shown;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};

use crate::rows::Part;
use crate::store::{Access, Bound, Connection, Database, DatabaseOptions, StoreError};
use service::words::counted;

/// Fields of a report that are listed as not finite.
const FIELDS_SHOWN: usize = 3;
/// Characters of such a field that are shown.
const FIELD_CHARS: usize = 40;
/// Sequences of a task that are listed one by one before "and more".
const LISTED_SEQUENCES: usize = 20;

/// A task's row in `task`.
#[derive(Debug, Serialize)]
struct Task {
    exec_id: String,
    job_id: String,
    engine_instance: String,
    engine_type: String,
    engine_user: String,
    ticket_id: String,
    status: String,
    /// 0 to 1, of the newest report; absent when that report could not tell.
    progress: Option<f64>,
    /// RFC 3339.
    reported_at: String,
    sequence: i64,
    event_partition: i32,
    event_offset: i64,
    #[serde(skip)]
    task_id: i64,
}

/// A row of `task_progress`.
#[derive(Debug, Serialize)]
struct Report {
    sequence: i64,
    reported_at: String,
    status: String,
    progress: Option<f64>,
    jobs: Jobs,
    /// A JSON array.
    #[serde(serialize_with = "raw")]
    adjustments: Option<String>,
    event_partition: i32,
    event_offset: i64,
}

/// The sub-jobs of a report: lists of equal length, absent when the report could not tell.
#[derive(Debug, Default, Serialize)]
struct Jobs {
    job_ids: Option<Vec<String>>,
    total_tasks: Option<Vec<i32>>,
    running_tasks: Option<Vec<i32>>,
    failed_tasks: Option<Vec<i32>>,
    succeed_tasks: Option<Vec<i32>>,
}

impl<'r, R: Row> FromRow<'r, R> for Jobs
where
    &'static str: ColumnIndex<R>,
    Option<String>: Decode<'r, R::Database> + Type<R::Database>,
{
    fn from_row(row: &'r R) -> Result<Self, sqlx::Error> {
        let mut counts = json::<Vec<Vec<i32>>, R>(row, "job_tasks")?.map(Vec::into_iter);
        // Of no jobs PostgreSQL has an array without any.
        let mut next = || Some(counts.as_mut()?.next().unwrap_or_default());
        Ok(Self {
            job_ids: json(row, "job_ids")?,
            total_tasks: next(),
            running_tasks: next(),
            failed_tasks: next(),
            succeed_tasks: next(),
        })
    }
}

/// A column of JSON text.
fn json<'r, T: DeserializeOwned, R: Row>(
    row: &'r R,
    column: &'static str,
) -> Result<Option<T>, sqlx::Error>
where
    &'static str: ColumnIndex<R>,
    Option<String>: Decode<'r, R::Database> + Type<R::Database>,
{
    let text: Option<String> = row.try_get(column)?;
    let read = text.map(|text| serde_json::from_str(&text)).transpose();
    read.map_err(|error| sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: error.into(),
    })
}

/// A row of `task_resource`.
#[derive(Debug, Serialize)]
struct Held {
    application_id: String,
    status: String,
    queue: String,
    memory_bytes: i64,
    cores: i32,
    instances: i32,
    reported_at: String,
}

/// A row of `task_metrics`.
#[derive(Debug, Serialize)]
struct Metrics {
    engine_running_tasks: i32,
    /// A JSON object.
    #[serde(serialize_with = "raw")]
    metrics: Option<String>,
    reported_at: String,
}

/// Reads the fields of a row by their columns' names. (sqlx's own derive would have both database
/// drivers compiled a second time, for the compiler's side.)
macro_rules! from_row {
    ($row:ident { $($fields:tt)* }) => {
        from_row!(PgRow: $row { $($fields)* });
        from_row!(SqliteRow: $row { $($fields)* });
    };
    ($of:ident: $row:ident { $($field:ident),* $(; $nested:ident: $type:ty)? }) => {
        impl<'r> FromRow<'r, $of> for $row {
            fn from_row(row: &'r $of) -> Result<Self, sqlx::Error> {
                Ok(Self {
                    $($field: row.try_get(stringify!($field))?,)*
                    $($nested: <$type>::from_row(row)?,)?
                })
            }
        }
    };
}

from_row!(Task {
    exec_id,
    job_id,
    engine_instance,
    engine_type,
    engine_user,
    ticket_id,
    status,
    progress,
    reported_at,
    sequence,
    event_partition,
    event_offset,
    task_id
});
from_row!(Report {
    sequence, reported_at, status, progress, adjustments, event_partition, event_offset; jobs: Jobs
});
from_row!(Held {
    application_id,
    status,
    queue,
    memory_bytes,
    cores,
    instances,
    reported_at
});
from_row!(Metrics {
    engine_running_tasks,
    metrics,
    reported_at
});

/// Everything about a task.
#[derive(Serialize)]
struct Story {
    task: Task,
    /// The newest resource part that was stored, by application.
    resource: Vec<Held>,
    /// The newest metrics.
    metrics: Option<Metrics>,
    sequences: Sequences,
    /// The newest reports, the newest first.
    reports: Vec<Report>,
    /// Up to when history was removed by order: what was reported before then is not counted here.
    #[serde(skip_serializing_if = "Option::is_none")]
    expired_before: Option<Timestamp>,
}

/// What a task's sequences show: loss and repetition between the engine and the table.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Sequences {
    /// Rows in `task_progress`.
    reports: i64,
    /// Reports that carry a sequence which an earlier row has already.
    repeated: i64,
    /// Sequences between the first (0) and the last that no row has.
    missing: i64,
    /// The first few of them.
    missing_sequences: Vec<i64>,
}

/// JSON that the database holds as text, as JSON.
fn raw<S: serde::Serializer>(json: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    let json = json
        .as_deref()
        .map(|text| RawValue::from_string(text.to_owned()))
        .transpose();
    json.map_err(serde::ser::Error::custom)?
        .serialize(serializer)
}

/// An SQL list of the final statuses.
const FINAL: &str = "('Succeed', 'Failed', 'Cancelled', 'Timeout')";

/// The newest first. Reports that are equal in what a task's state is chosen by are told apart by
/// their events, so that the same one is chosen each time. The indexes give the order of the times, so
/// that only reports of one microsecond are sorted.
const NEWEST: &str = "reported_at DESC, sequence DESC, event_partition DESC, event_offset DESC";

/// What the two databases write in unlike ways.
struct Dialect {
    postgres: bool,
}

impl Dialect {
    /// RFC 3339 text of a time column, as `reported_at`.
    fn reported_at(&self) -> &'static str {
        if self.postgres {
            r#"to_char(reported_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS reported_at"#
        } else {
            "strftime('%Y-%m-%dT%H:%M:%S', (reported_at - (reported_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch') \
             || printf('.%06dZ', (reported_at % 1000000 + 1000000) % 1000000) AS reported_at"
        }
    }

    /// JSON text of an array column, under its own name.
    fn json_array(&self, column: &str) -> String {
        if self.postgres {
            format!("array_to_json({column})::text AS {column}")
        } else {
            column.to_owned()
        }
    }

    /// An SQL condition on a table: reported at that time or before, by the engine's clock; of any time for
    /// `None`.
    fn known(&self, table: &str, at: Option<Timestamp>) -> String {
        let Some(at) = at else {
            return "true".to_owned();
        };
        let micros = at.as_microsecond();
        if self.postgres {
            // In two steps: an interval multiplied by a double loses microseconds.
            format!(
                "{table}.reported_at <= timestamptz 'epoch' + {} * interval '1 second' + {} * interval '1 microsecond'",
                micros / 1_000_000,
                micros % 1_000_000
            )
        } else {
            format!("{table}.reported_at <= {micros}")
        }
    }

    /// What to select tasks from: `task`, or an SQL query with its columns that says of each task what
    /// was known at that time. Tasks without a report by then are left out.
    ///
    /// A task's row is its greatest report of all: where that was known by then, it is the answer, and no
    /// history is needed. Else one report is looked for in the index: a final one, if the task ever had
    /// one, else the newest. No history is read as a whole, but for what a task that ended later had said
    /// before.
    fn tasks(&self, at: Option<Timestamp>) -> String {
        if at.is_none() {
            return "task".to_owned();
        }
        let (known, newest_known) = (self.known("task_progress", at), self.known("task", at));
        let row = if self.postgres { "ctid" } else { "rowid" };
        let newest_where = |more: &str| {
            format!(
                "(SELECT {row} FROM task_progress WHERE task_id = task.task_id AND {known} {more} ORDER BY {NEWEST} LIMIT 1)"
            )
        };
        let chosen = format!(
            "{row} = coalesce({}, {})",
            newest_where(&format!("AND task.is_final AND status IN {FINAL}")),
            newest_where("")
        );
        let said = if self.postgres {
            // OFFSET 0 keeps the planner from reading the whole history to hash it.
            format!("LATERAL (SELECT * FROM task_progress WHERE {chosen} OFFSET 0) AS said ON true")
        } else {
            format!("task_progress AS said ON said.{chosen}")
        };
        format!(
            "(SELECT exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, progress, \
             reported_at, sequence, event_partition, event_offset, task_id FROM task WHERE {newest_known} UNION ALL \
             SELECT exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, said.status, said.progress, \
             said.reported_at, said.sequence, said.event_partition, said.event_offset, task.task_id \
             FROM task JOIN {said} WHERE NOT {newest_known}) AS task"
        )
    }

    fn task_columns(&self) -> String {
        format!(
            "exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, progress, {}, sequence, \
             event_partition, event_offset, task_id",
            self.reported_at()
        )
    }

    /// An SQL integer literal for "no limit" given as 0.
    fn limit(limit: u32) -> i64 {
        if limit == 0 { i64::MAX } else { limit.into() }
    }
}

async fn open(options: &DatabaseOptions) -> anyhow::Result<(Connection, Dialect, String)> {
    let database = Database::parse(options)?;
    let place = database.place();
    let connection = database.connect(Access::Read).await;
    let mut connection = connection.with_context(|| format!("opening {place}"))?;
    // Counts and rows are of the moment of the first look.
    let begun = connection.begin_snapshot().await;
    begun.with_context(|| format!("reading {place}"))?;
    let postgres = connection.is_postgres();
    Ok((connection, Dialect { postgres }, place))
}

/// Up to when history was removed by order.
///
/// # Errors
/// If the database fails, or was asked for a time before that: what was known then nobody knows any more.
async fn expired_before(
    connection: &mut Connection,
    place: &str,
    at: Option<Timestamp>,
) -> anyhow::Result<Option<Timestamp>> {
    let before = connection.expired_before().await;
    let before = before.with_context(|| format!("reading {place}"))?;
    match (at, before) {
        (Some(at), Some(before)) if at < before => Err(WrongUsage(format!(
            "{place} does not tell what was known at {at}: history before {before} was removed from it by consumer expire; ask \
             for that time or a later one"
        ))
        .into()),
        _ => Ok(before),
    }
}

/// Prints the tasks, the newest report first; at most `limit` (0: all). With a time: those that had a
/// report by then, in the state known then.
///
/// # Errors
/// If the database is not there or has no tables.
pub async fn tasks(
    options: &DatabaseOptions,
    running: bool,
    at: Option<Timestamp>,
    limit: u32,
    json: bool,
) -> anyhow::Result<()> {
    let (mut connection, dialect, place) = open(options).await?;
    if let (Some(before), Some(at)) = (expired_before(&mut connection, &place, at).await?, at) {
        tracing::warn!(
            "history before {before} was removed from {place} by consumer expire: tasks that had reported before then, and \
             again only after {at}, are left out"
        );
    }
    // A task whose engine is gone and told no end is Unknown: it has no final status, and does not run.
    let filter = match running {
        true => format!("WHERE status NOT IN {FINAL} AND status <> 'Unknown'"),
        false => String::new(),
    };
    let (columns, tasks) = (dialect.task_columns(), dialect.tasks(at));
    // The alias keeps ORDER BY on the column, not on its text.
    let select = format!(
        "SELECT {columns} FROM {tasks} {filter} ORDER BY task.reported_at DESC, exec_id LIMIT $1"
    );
    let count = format!("SELECT count(*) FROM {tasks} {filter}");
    let reading = || format!("reading the tasks of {place}");
    let tasks: Vec<Task> = connection
        .rows(select, &[Bound::Number(Dialect::limit(limit))])
        .await
        .with_context(reading)?;
    let all: Option<(i64,)> = connection.row(count, &[]).await.with_context(reading)?;
    let all = all.map_or(0, |(all,)| all);
    if json {
        return output::print_json(&tasks);
    }
    let mut table = table(&[
        "exec task",
        "status",
        "progress",
        "reported",
        "seq",
        "engine",
        "user",
        "job",
    ]);
    let now = at.unwrap_or_else(Timestamp::now);
    for task in &tasks {
        table.add_row([
            shown(&task.exec_id),
            shown(&task.status),
            percent(task.progress),
            age(&task.reported_at, now),
            task.sequence.to_string(),
            format!(
                "{} {}",
                shown(&task.engine_type),
                shown(&task.engine_instance)
            ),
            shown(&task.engine_user),
            shown(&task.job_id),
        ]);
    }
    let mut text = right_aligned(&mut table, &[2, 3, 4]);
    let kind = if running { "running task" } else { "task" };
    let whence = format!("{} in {place}{}", counted(all, kind), as_of(at));
    match all - tasks.len() as i64 {
        0 => writeln!(text, "{whence}")?,
        more => writeln!(
            text,
            "{} of {whence}; {more} more with --limit 0",
            tasks.len()
        )?,
    }
    output::print(&text)?;
    Ok(())
}

/// Prints one task: its newest state, what it holds, its sequences, and at most `limit` of its newest
/// reports (0: all). With a time: as they were known then.
///
/// # Errors
/// If there is no such task, or it had no report by then, or the database is not there or has no tables.
pub async fn task(
    options: &DatabaseOptions,
    exec_id: &str,
    at: Option<Timestamp>,
    limit: u32,
    json: bool,
) -> anyhow::Result<()> {
    let (mut connection, dialect, place) = open(options).await?;
    let reading = || format!("reading the task {exec_id} of {place}");
    let before = expired_before(&mut connection, &place, at).await?;
    let Some(story) = story(&mut connection, &dialect, exec_id, at, limit, before)
        .await
        .with_context(reading)?
    else {
        let first = first_report(&mut connection, &dialect, exec_id)
            .await
            .with_context(reading)?;
        let removed = before.map_or_else(String::new, |before| {
            format!(" (what was reported before {before} was removed by consumer expire)")
        });
        let why = match (at, first) {
            (Some(at), Some(first)) => format!(
                "{place} has no report of exec task {exec_id:?} by {at}: its first one is of {first} by the engine's \
                 clock{removed}; ask for that time or a later one"
            ),
            _ => format!(
                "{place} has no exec task {exec_id:?}{removed}; list them with: consumer tasks"
            ),
        };
        return Err(WrongUsage(why).into());
    };
    if json {
        return output::print_json(&story);
    }
    output::print(&story_text(&story, at)?)?;
    Ok(())
}

/// The time of a task's oldest report, RFC 3339; `None`: it has none.
async fn first_report(
    connection: &mut Connection,
    dialect: &Dialect,
    exec_id: &str,
) -> Result<Option<String>, StoreError> {
    let select = format!(
        "SELECT {} FROM task_progress WHERE task_id = (SELECT task_id FROM task WHERE exec_id = $1) \
         ORDER BY task_progress.reported_at LIMIT 1",
        dialect.reported_at()
    );
    let first: Option<(String,)> = connection.row(select, &[Bound::Text(exec_id)]).await?;
    Ok(first.map(|(first,)| first))
}

async fn story(
    connection: &mut Connection,
    dialect: &Dialect,
    exec_id: &str,
    at: Option<Timestamp>,
    limit: u32,
    expired_before: Option<Timestamp>,
) -> Result<Option<Story>, StoreError> {
    let select = format!(
        "SELECT {} FROM {} WHERE exec_id = $1",
        dialect.task_columns(),
        dialect.tasks(at)
    );
    let task: Option<Task> = connection.row(select, &[Bound::Text(exec_id)]).await?;
    let Some(task) = task else { return Ok(None) };
    let of_task = Bound::Number(task.task_id);
    let reported_at = dialect.reported_at();
    let known = |part: Part| dialect.known(part.table(), at);

    // The newest event that has a resource part, whole.
    let resource = format!(
        "SELECT application_id, status, queue, memory_bytes, cores, instances, {reported_at} FROM task_resource \
         WHERE task_id = $1 AND (reported_at, event_partition, event_offset) = \
         (SELECT reported_at, event_partition, event_offset FROM task_resource WHERE task_id = $1 AND {} \
         ORDER BY reported_at DESC, event_partition DESC, event_offset DESC LIMIT 1) \
         ORDER BY application_id",
        known(Part::Resource)
    );
    let resource = connection.rows(resource, &[of_task]).await?;

    let metrics = format!(
        "SELECT engine_running_tasks, {} AS metrics, {reported_at} FROM task_metrics WHERE task_id = $1 AND {} \
         ORDER BY task_metrics.reported_at DESC, event_partition DESC, event_offset DESC LIMIT 1",
        if dialect.postgres {
            "metrics::text"
        } else {
            "metrics"
        },
        known(Part::Metrics)
    );
    let metrics = connection.row(metrics, &[of_task]).await?;

    let lists = ["job_ids", "job_tasks", "adjustments"].map(|column| dialect.json_array(column));
    let reports = format!(
        "SELECT sequence, {reported_at}, status, progress, {}, event_partition, event_offset FROM task_progress \
         WHERE task_id = $1 AND {} ORDER BY task_progress.{NEWEST} LIMIT $2",
        lists.join(", "),
        known(Part::Progress)
    );
    let limit = Bound::Number(Dialect::limit(limit));
    let reports = connection.rows(reports, &[of_task, limit]).await?;

    let sequences = format!(
        "SELECT sequence FROM task_progress WHERE task_id = $1 AND {} ORDER BY sequence",
        known(Part::Progress)
    );
    let sequences: Vec<(i64,)> = connection.rows(sequences, &[of_task]).await?;
    let sequences: Vec<i64> = sequences.into_iter().map(|(sequence,)| sequence).collect();
    Ok(Some(Story {
        task,
        resource,
        metrics,
        sequences: Sequences::of(&sequences, expired_before.is_some()),
        reports,
        expired_before,
    }))
}

impl Sequences {
    /// `sorted` holds the sequence of every report, ascending. Where earlier ones may have been removed by
    /// order, those before the first are not missing.
    fn of(sorted: &[i64], may_be_expired: bool) -> Self {
        let mut sequences = Self {
            reports: sorted.len() as i64,
            ..Self::default()
        };
        let mut expected = match sorted.first() {
            Some(&first) if may_be_expired => first,
            _ => 0,
        };
        for &sequence in sorted {
            if sequence < expected {
                sequences.repeated += 1;
                continue;
            }
            sequences.missing += sequence - expected;
            let room = LISTED_SEQUENCES - sequences.missing_sequences.len();
            sequences
                .missing_sequences
                .extend((expected..sequence).take(room));
            expected = sequence.saturating_add(1);
        }
        sequences
    }
}

fn story_text(story: &Story, at: Option<Timestamp>) -> anyhow::Result<String> {
    let Story {
        task,
        resource,
        metrics,
        sequences,
        reports,
        expired_before,
    } = story;
    let now = at.unwrap_or_else(Timestamp::now);
    let mut text = String::new();
    writeln!(text, "exec task   {}{}", shown(&task.exec_id), as_of(at))?;
    writeln!(
        text,
        "status      {} {}, reported {} ({})",
        shown(&task.status),
        percent(task.progress),
        age(&task.reported_at, now),
        shown(&task.reported_at)
    )?;
    writeln!(
        text,
        "engine      {} {}, user {}, ticket {}",
        shown(&task.engine_type),
        shown(&task.engine_instance),
        shown(&task.engine_user),
        shown(&task.ticket_id)
    )?;
    writeln!(text, "job         {}", shown(&task.job_id))?;
    let gaps = match sequences.missing {
        0 => "none missing".to_owned(),
        missing => format!(
            "{missing} missing (first {:?})",
            sequences.missing_sequences
        ),
    };
    writeln!(
        text,
        "reports     {}; sequences: {gaps}, {} repeated",
        sequences.reports, sequences.repeated
    )?;
    if let Some(before) = expired_before {
        writeln!(
            text,
            "            what was reported before {before} was removed by consumer expire"
        )?;
    }

    // The newest report that could tell its sub-jobs.
    let mut told = reports
        .iter()
        .filter_map(|report| Some((report, report.jobs.job_ids.as_ref()?)));
    if let Some((report, ids)) = told.next() {
        let jobs = &report.jobs;
        let counts = [
            &jobs.total_tasks,
            &jobs.running_tasks,
            &jobs.failed_tasks,
            &jobs.succeed_tasks,
        ];
        if !ids.is_empty() {
            writeln!(
                text,
                "\nsub-jobs, reported {}",
                age(&report.reported_at, now)
            )?;
            let mut table = table(&["id", "total", "running", "failed", "succeeded"]);
            for (i, id) in ids.iter().enumerate() {
                let counts = counts.map(|counts| {
                    let count = counts.as_ref().and_then(|counts| counts.get(i));
                    count.map_or_else(String::new, i32::to_string)
                });
                table.add_row(std::iter::once(shown(id)).chain(counts));
            }
            text.push_str(&right_aligned(&mut table, &[1, 2, 3, 4]));
        }
    }
    if let Some(held) = resource.first() {
        writeln!(
            text,
            "\nresources, reported {}",
            age(&held.reported_at, now)
        )?;
        let mut table = table(&[
            "application",
            "status",
            "queue",
            "memory",
            "cores",
            "instances",
        ]);
        for held in resource {
            table.add_row([
                shown(&held.application_id),
                shown(&held.status),
                shown(&held.queue),
                gib(held.memory_bytes),
                held.cores.to_string(),
                held.instances.to_string(),
            ]);
        }
        text.push_str(&right_aligned(&mut table, &[3, 4, 5]));
    }
    if let Some(metrics) = metrics {
        writeln!(
            text,
            "\nmetrics, reported {}",
            age(&metrics.reported_at, now)
        )?;
        let mut table = table(&["name", "value"]);
        table.add_row([
            "engine's running tasks".to_owned(),
            metrics.engine_running_tasks.to_string(),
        ]);
        if let Some(text) = &metrics.metrics {
            let metrics: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
            for (name, value) in metrics {
                table.add_row([
                    shown(&name),
                    value.as_str().map_or_else(|| value.to_string(), shown),
                ]);
            }
        }
        text.push_str(&right_aligned(&mut table, &[1]));
    }
    writeln!(
        text,
        "\n{} newest of {}",
        reports.len(),
        counted(sequences.reports, "report")
    )?;
    let mut table = table(&[
        "seq",
        "reported at",
        "status",
        "progress",
        "repaired",
        "partition@offset",
    ]);
    for report in reports {
        let adjustments = report.adjustments.as_deref().unwrap_or("[]");
        let adjustments: Vec<String> = serde_json::from_str(adjustments)?;
        table.add_row([
            report.sequence.to_string(),
            shown(&report.reported_at),
            shown(&report.status),
            percent(report.progress),
            repaired(&adjustments),
            format!("{}@{}", report.event_partition, report.event_offset),
        ]);
    }
    text.push_str(&right_aligned(&mut table, &[0, 3, 5]));
    Ok(text)
}

/// What was repaired of a report: each kind, then the first fields that were not finite, since there may be a thousand.
fn repaired(adjustments: &[String]) -> String {
    let (fields, kinds): (Vec<&String>, Vec<&String>) =
        adjustments.iter().partition(|one| one.contains('='));
    let first = fields.iter().take(FIELDS_SHOWN);
    let first = first.map(|field| match field.char_indices().nth(FIELD_CHARS) {
        Some((end, _)) => format!("{}…", &field[..end]),
        None => (*field).clone(),
    });
    let mut texts: Vec<String> = kinds.into_iter().cloned().chain(first).collect();
    if fields.len() > FIELDS_SHOWN {
        texts.push(format!(
            "and {} more, see --json",
            fields.len() - FIELDS_SHOWN
        ));
    }
    shown(&texts.join(" "))
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(header);
    table
}

/// The table with its columns of numbers aligned to the right, and a line feed.
fn right_aligned(table: &mut Table, numbers: &[usize]) -> String {
    for column in numbers {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{table}\n")
}

fn as_of(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| format!(" as of {at}"))
}

fn percent(progress: Option<f64>) -> String {
    progress.map_or_else(
        || "?".to_owned(),
        |progress| format!("{:.2} %", progress * 100.0),
    )
}

fn gib(bytes: i64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// How long ago an RFC 3339 time was: `12 s ago`, `3 min ago`, `2 h ago`, `5 d ago`.
fn age(reported_at: &str, now: Timestamp) -> String {
    let Ok(reported_at) = reported_at.parse::<Timestamp>() else {
        return shown(reported_at);
    };
    let seconds = now.duration_since(reported_at).as_secs();
    match seconds {
        ..0 => format!("in {} s", -seconds),
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_show_what_is_missing_and_what_came_twice() {
        assert_eq!(Sequences::of(&[], false), Sequences::default());
        let whole = Sequences::of(&[0, 1, 2], false);
        assert_eq!((whole.reports, whole.repeated, whole.missing), (3, 0, 0));
        let torn = Sequences::of(&[1, 1, 4, 4, 4, 5], false);
        assert_eq!((torn.reports, torn.repeated, torn.missing), (6, 3, 3));
        assert_eq!(torn.missing_sequences, [0, 2, 3]);
        let rest = Sequences::of(&[7, 8, 10], true);
        assert_eq!((rest.missing, rest.missing_sequences), (1, vec![9]));
        let far = Sequences::of(&[i64::MAX], false);
        assert_eq!(
            (far.missing, far.missing_sequences.len()),
            (i64::MAX, LISTED_SEQUENCES)
        );
    }

    #[test]
    fn the_final_statuses_of_a_query_are_those_of_the_contract() {
        use schemas::TaskStatus::{
            Cancelled, Failed, Inited, Running, Scheduled, Succeed, Timeout, Unknown, WaitForRetry,
        };
        for status in [
            Unknown,
            Inited,
            WaitForRetry,
            Scheduled,
            Running,
            Succeed,
            Failed,
            Cancelled,
            Timeout,
        ] {
            let named = FINAL.contains(&format!("'{status}'"));
            assert_eq!(named, status.is_final(), "{status}");
        }
    }

    #[test]
    fn ages_are_read_at_a_glance() {
        let now: Timestamp = "2026-11-25T14:05:00Z".parse().unwrap();
        assert_eq!(age("2026-11-25T14:04:48.123456Z", now), "11 s ago");
        assert_eq!(age("2026-11-25T13:05:00Z", now), "60 min ago");
        assert_eq!(age("2026-11-23T13:05:00Z", now), "2 d ago");
        assert_eq!(age("2026-11-25T14:05:09Z", now), "in 9 s");
    }
}
