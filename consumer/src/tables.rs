//! The catalogue: every table, its columns, and how each value of a row is derived from an event. Long because it is
//! one list.
//!
//! Writing, audit, repair, expiry, counting and documentation follow from it. A column is added here, in a migration of
//! each database, and in the contract if no field of an event has it yet; nowhere else.
//!
//! A table's rows have the same columns in the same order everywhere, except the reference to the task: a stored
//! history has the narrow `task_id`, an audited row the `exec_id`, because `task_id` is a key of one database only. The
//! order is public: the digests of audit reports depend on it.

use std::borrow::Cow;
use std::fmt;
use std::iter::once;
use std::sync::LazyLock;

use serde::Serialize;
use serde_json::{Value, json};
use service::text::hex;

use crate::row_format::{self, POSTGRES_EPOCH_MICROS, RowWriter, ValueSink};
use crate::rows::{Part, Rows};

/// A table whose rows come from events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "&'static str")]
pub(crate) enum Table {
    Progress,
    Resource,
    Metrics,
    Task,
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    I32,
    I64,
    F64,
    Bool,
    /// Microseconds since 1970-01-01T00:00:00Z in an event; the database's own time type, if it has one.
    Time,
    Text,
    Texts,
    /// See [`ValueSink::job_tasks`].
    JobTasks,
    /// Text with a JSON value.
    Json,
}

pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    #[cfg(test)]
    pub(crate) is_nullable: bool,
    /// Its description in the docs.
    #[cfg(test)]
    about: &'static str,
}

/// How a row refers to its task.
#[derive(Clone, Copy)]
pub(crate) enum TaskKey {
    /// By `exec_id`: rows of `task`, and audited rows.
    ExecId,
    /// By `task_id`, or a placeholder until it is known: rows of the histories.
    Id(i64),
}

/// The kind for a method of [`ValueSink`].
macro_rules! kind {
    (i32) => {
        Kind::I32
    };
    (i64) => {
        Kind::I64
    };
    (f64) => {
        Kind::F64
    };
    (bool) => {
        Kind::Bool
    };
    (time) => {
        Kind::Time
    };
    (text) => {
        Kind::Text
    };
    (texts) => {
        Kind::Texts
    };
    (job_tasks) => {
        Kind::JobTasks
    };
    (json) => {
        Kind::Json
    };
}

macro_rules! column {
    ($name:expr, $about:literal, optional $kind:ident) => {
        column!(@ $name, $about, $kind, true)
    };
    ($name:expr, $about:literal, $kind:ident) => {
        column!(@ $name, $about, $kind, false)
    };
    (@ $name:expr, $about:literal, $kind:ident, $is_nullable:literal) => {
        Column {
            name: $name,
            kind: kind!($kind),
            #[cfg(test)]
            is_nullable: $is_nullable,
            #[cfg(test)]
            about: $about,
        }
    };
}

macro_rules! write_value {
    ($sink:ident, $value:expr, optional $kind:ident) => {
        match $value {
            Some(value) => $sink.$kind(value),
            None => $sink.null(),
        }
    };
    ($sink:ident, $value:expr, $kind:ident) => {
        $sink.$kind($value)
    };
}

/// Tables, with the rows that an event has in each, and their columns: name, kind (a method of [`ValueSink`]) and
/// value.
macro_rules! tables {
    ($event:ident: $(
        $(#[doc = $table_about:literal])*
        $table:ident($name:literal, for $row:pat in $rows:expr) {
            $(#[doc = $about:literal] $column:ident: $($kind:ident)+ = $value:expr,)+
        }
    )+) => {
        impl Table {
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Self::$table => $name,)+
                }
            }

            /// The columns of an audited row.
            pub(crate) const fn columns(self) -> &'static [Column] {
                match self {
                    $(Self::$table => const {
                        &[
                            EVENT_PARTITION,
                            EVENT_OFFSET,
                            EXEC_ID,
                            $(column!(stringify!($column), $about, $($kind)+),)+
                        ]
                    },)+
                }
            }

            /// Writes the rows that an event has in this table; for `task`, the row if this event is the task's newest.
            pub(crate) fn write<'a>(
                self,
                sink: &mut impl ValueSink<'a>,
                $event: &Rows<'a>,
                task: TaskKey,
            ) {
                match self {
                    $(Self::$table => {
                        for $row in $rows {
                            begin(self, sink, $event, task);
                            $(
                                sink.column(stringify!($column));
                                write_value!(sink, $value, $($kind)+);
                            )+
                        }
                    })+
                }
            }
        }
    };
}

const EVENT_PARTITION: Column = column!("event_partition", "the event's partition", i32);
const EVENT_OFFSET: Column = column!("event_offset", "the event's offset", i64);
pub(crate) const EXEC_ID: Column = column!("exec_id", "the exec task", text);
/// Refers to the task in a stored row of a history.
pub(crate) const TASK_ID: Column = column!("task_id", "the task's key in this database", i64);

/// The position of the task reference in a row.
pub(crate) const TASK: usize = 2;

/// Writes the columns that every row begins with.
fn begin<'a>(table: Table, sink: &mut impl ValueSink<'a>, event: &Rows<'a>, task: TaskKey) {
    sink.row(table.columns().len());
    sink.column(EVENT_PARTITION.name);
    sink.i32(event.partition);
    sink.column(EVENT_OFFSET.name);
    sink.i64(event.offset);
    match task {
        TaskKey::ExecId => {
            sink.column(EXEC_ID.name);
            sink.text(event.info.exec_id);
        }
        TaskKey::Id(task_id) => {
            sink.column(TASK_ID.name);
            sink.i64(task_id);
        }
    }
}

tables! { event:
    Progress("task_progress", for (jobs, adjustments) in once((event.jobs(), event.adjustments()))) {
        /// by the engine's clock
        reported_at: time = event.info.reported_at,
        /// 0, 1, 2 … within the task
        sequence: i64 = event.info.sequence,
        /// as in `task`
        status: text = event.info.status.as_str(),
        /// as in `task`
        progress: optional f64 = event.progress(),
        /// the jobs inside the engine; null if the report had no progress part
        job_ids: optional texts = jobs.as_ref().map(|jobs| jobs.iter().map(|job| job.id)),
        /// their task counts: `[1]` total, `[2]` running, `[3]` failed, `[4]` succeeded, each in the order of `job_ids` (in SQLite from `[0]`); the view has one list per count
        job_tasks: optional job_tasks = jobs.as_deref(),
        /// repairs by the router in any part of the report: each kind once, then each field that was NaN or infinite with its value, as in `metrics.busy=NaN`, `metrics.rate=-Infinity`, `progress.progress=Infinity`; null: none
        adjustments: optional texts = unless_empty(&adjustments),
    }
    Resource("task_resource", for application in event.applications()) {
        /// distinguishes the rows of one report
        application_id: text = application.id,
        /// by the engine's clock
        reported_at: time = event.info.reported_at,
        /// memory held, in bytes
        memory_bytes: i64 = application.memory_bytes,
        /// cores held
        cores: i32 = application.cores,
        /// containers, executors, … in addition to the driver
        instances: i32 = application.instances,
        /// the queue it was submitted to; may be empty
        queue: text = application.queue,
        /// as the engine names it
        status: text = application.status,
    }
    Metrics("task_metrics", for () in once(())) {
        /// by the engine's clock
        reported_at: time = event.info.reported_at,
        /// number of tasks the engine had
        engine_running_tasks: i32 = event.info.engine_running_tasks,
        /// an object; null if the report had no metrics part
        metrics: optional json = &event.info.metrics,
    }
    Task("task", for () in once(())) {
        /// the entrance's job of the exec task
        job_id: text = event.info.job_id,
        /// the engine, `host:port`
        engine_instance: text = event.info.engine_instance,
        /// for example spark
        engine_type: text = event.info.engine_type,
        /// the user the engine runs for
        engine_user: text = event.info.engine_user,
        /// the ticket the engine was started with
        ticket_id: text = event.info.ticket_id,
        /// Inited, WaitForRetry, Scheduled, Running, Succeed, Failed, Cancelled, Timeout (the last four final), Unknown
        status: text = event.info.status.as_str(),
        /// whether the status is final
        is_final: bool = event.info.status.is_final(),
        /// 0 to 1; null if that report had no progress
        progress: optional f64 = event.progress(),
        /// by the engine's clock
        reported_at: time = event.info.reported_at,
        /// 0, 1, 2 … within the task
        sequence: i64 = event.info.sequence,
        /// when it was first reported: the earliest `reported_at` of all its reports, in any order of arrival. For a task older than this column: the earliest that `task_progress` still had then. Null: stored by a version without the column
        first_reported_at: optional time = Some(event.first_reported_at),
        /// when it ended: the earliest `reported_at` of its final reports, as far as `first_reported_at` is known; null if there is none
        ended_at: optional time = event.ended_at,
    }
}

/// The last columns of `task`, which depend on all reports of a task: the earliest value of all. An event's own row has
/// the values for that event alone.
pub(crate) const LEAST: [&str; 2] = ["first_reported_at", "ended_at"];

const _: () = {
    let first = Table::Task.place_of(LEAST[0]);
    assert!(Table::Task.place_of(LEAST[1]) == first + 1);
    assert!(Table::Task.columns().len() == first + LEAST.len());
};

/// The number of columns of `task` that depend on its newest report only.
const OF_NEWEST: usize = Table::Task.columns().len() - LEAST.len();

/// The fields of a row of `task` that depend on its newest report only.
pub(crate) fn of_newest(fields: &[u8]) -> &[u8] {
    row_format::first_fields(fields, OF_NEWEST)
}

/// The [earliest](LEAST) times of a row of `task`, in PostgreSQL's microseconds.
pub(crate) fn least_times(row: &[u8]) -> LeastTimes {
    let mut fields = row_format::fields(row).skip(OF_NEWEST);
    let mut next = || row_format::i64_of(fields.next().flatten());
    LeastTimes {
        first_reported_at: next(),
        ended_at: next(),
    }
}

/// This row of `task` with other earliest times.
pub(crate) fn with_least_times(row: &[u8], times: LeastTimes) -> Vec<u8> {
    let mut copy = RowWriter::default();
    copy.row(Table::Task.columns().len());
    copy.fields(of_newest(row.get(2..).unwrap_or_default()));
    for time in [times.first_reported_at, times.ended_at] {
        match time {
            Some(time) => copy.i64(time),
            None => copy.null(),
        }
    }
    copy.take()
}

/// The earliest times of a task's reports, in any unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeastTimes {
    pub(crate) first_reported_at: Option<i64>,
    pub(crate) ended_at: Option<i64>,
}

impl LeastTimes {
    pub(crate) fn take_in(&mut self, reported_at: i64, is_final: bool) {
        let lower = |held: &mut Option<i64>| {
            *held = Some(held.map_or(reported_at, |held| held.min(reported_at)));
        };
        lower(&mut self.first_reported_at);
        if is_final {
            lower(&mut self.ended_at);
        }
    }
}

/// Null if nothing was repaired.
fn unless_empty<'t>(texts: &'t [Cow<'_, str>]) -> Option<impl ExactSizeIterator<Item = &'t str>> {
    (!texts.is_empty()).then(|| texts.iter().map(AsRef::as_ref))
}

impl Part {
    /// The part's table.
    pub(crate) const fn table(self) -> Table {
        match self {
            Self::Progress => Table::Progress,
            Self::Resource => Table::Resource,
            Self::Metrics => Table::Metrics,
        }
    }
}

impl Table {
    /// The histories.
    pub(crate) const HISTORIES: [Self; 3] = [Self::Progress, Self::Resource, Self::Metrics];
    pub(crate) const ALL: [Self; 4] = [Self::Progress, Self::Resource, Self::Metrics, Self::Task];

    /// The columns that depend on one event only; these are digested.
    pub(crate) const fn event_columns(self) -> &'static [Column] {
        match self {
            Self::Task => Self::Task.columns().split_at(OF_NEWEST).0,
            _ => self.columns(),
        }
    }

    /// The columns of a stored row: those of an audited one, except that a history has `task_id` instead of `exec_id`.
    pub(crate) fn stored_columns(self) -> impl Iterator<Item = &'static Column> {
        let stored = move |(place, column)| match place {
            TASK if self != Self::Task => &TASK_ID,
            _ => column,
        };
        self.columns().iter().enumerate().map(stored)
    }

    /// The names of the columns of a stored row, for SQL.
    pub(crate) fn stored_names(self) -> String {
        let names: Vec<&str> = self.stored_columns().map(|column| column.name).collect();
        names.join(", ")
    }

    /// The index of a column in a row. Call it in constants only: an unknown name then fails to compile.
    pub(crate) const fn place_of(self, name: &str) -> usize {
        let columns = self.columns();
        let mut place = 0;
        while !is_same(columns[place].name, name) {
            place += 1;
        }
        place
    }

    /// The number of rows that [`write`](Self::write) writes.
    pub(crate) fn rows_of(self, event: &Rows<'_>) -> u64 {
        match self {
            Self::Resource => event.application_count() as u64,
            _ => 1,
        }
    }

    /// Distinguishes this row from the others of its event.
    pub(crate) fn key(self, row: &[u8]) -> &[u8] {
        const APPLICATION_ID: usize = Table::Resource.place_of("application_id");
        match self {
            Self::Resource => row_format::fields(row).nth(APPLICATION_ID).flatten(),
            _ => None,
        }
        .unwrap_or_default()
    }
}

impl From<Table> for &'static str {
    fn from(table: Table) -> Self {
        table.name()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The columns that rank a task's events; the greatest event is the newest. See [`Rows::rank`].
pub(crate) const RANK: [&str; 5] = [
    "is_final",
    "reported_at",
    "sequence",
    "event_partition",
    "event_offset",
];

/// The end of an INSERT into `task`, in the SQL of PostgreSQL and SQLite: if the inserted state is newer, the stored
/// row takes it, with the earliest times of both. Otherwise only the times may have to be [moved back](is_lower), by
/// another statement: reports rarely arrive late, and this statement need not choose between two values of each column.
pub(crate) static UPDATE_IF_NEWER: LazyLock<String> = LazyLock::new(|| {
    let names = Table::Task.columns().iter().map(|column| column.name);
    let names: Vec<&str> = names
        .filter(|name| *name != EXEC_ID.name && !LEAST.contains(name))
        .collect();
    let of = |row: &str, names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| format!("{row}.{name}")).collect();
        names.join(", ")
    };
    let least = LEAST.map(|name| {
        format!(
            "{name} = CASE WHEN excluded.{name} < task.{name} THEN excluded.{name} \
             ELSE coalesce(task.{name}, excluded.{name}) END"
        )
    });
    format!(
        "ON CONFLICT (exec_id) DO UPDATE SET ({}) = ({}), {} WHERE ({}) > ({})",
        names.join(", "),
        of("excluded", &names),
        least.join(", "),
        of("excluded", &RANK),
        of("task", &RANK)
    )
});

/// The SQL condition that one of the [earliest](LEAST) times of a stored row is later than one of these expressions;
/// null or false if none is.
pub(crate) fn is_lower(times: [&str; LEAST.len()]) -> String {
    let [first, ended] = times;
    let [first_reported_at, ended_at] = LEAST;
    format!("({first} < task.{first_reported_at} OR {ended} < task.{ended_at})")
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut at = 0;
    while at < one.len() && at < other.len() && one[at] == other[at] {
        at += 1;
    }
    at == one.len() && at == other.len()
}

/// Partition and offset of a row.
pub(crate) fn place(row: &[u8]) -> Option<(i32, i64)> {
    let mut fields = row_format::fields(row);
    Some((
        row_format::i32_of(fields.next()?)?,
        row_format::i64_of(fields.next()?)?,
    ))
}

/// The task that a row refers to; `None` if the database has no such task.
pub(crate) fn exec_id(row: &[u8]) -> Option<&str> {
    row_format::text_of(row_format::fields(row).nth(TASK)?)
}

impl Kind {
    /// A field as a JSON value. A field that does not have its column's kind becomes hexadecimal text.
    pub(crate) fn value(self, field: Option<&[u8]>) -> Value {
        let Some(bytes) = field else {
            return Value::Null;
        };
        self.read(bytes)
            .unwrap_or_else(|| json!(format!("\\x{}", hex(bytes))))
    }

    fn read(self, bytes: &[u8]) -> Option<Value> {
        let field = Some(bytes);
        Some(match self {
            Self::I32 => json!(row_format::i32_of(field)?),
            Self::I64 => json!(row_format::i64_of(field)?),
            Self::F64 => {
                let number = f64::from_be_bytes(bytes.try_into().ok()?);
                serde_json::Number::from_f64(number)
                    .map_or_else(|| json!(number.to_string()), Value::Number)
            }
            Self::Bool => json!(*bytes == [1]),
            Self::Time => {
                let micros = row_format::i64_of(field)?.wrapping_add(POSTGRES_EPOCH_MICROS);
                match jiff::Timestamp::from_microsecond(micros) {
                    Ok(time) => json!(format!("{time:.6}")),
                    Err(_) => json!(format!("{micros} µs since 1970")),
                }
            }
            Self::Text | Self::Json => json!(row_format::text_of(field)?),
            Self::Texts => {
                let (dimensions, texts) = row_format::elements(bytes)?;
                let texts = texts.into_iter().map(std::str::from_utf8);
                let texts = texts.collect::<Result<Vec<_>, _>>().ok()?;
                (dimensions.len() < 2).then(|| json!(texts))?
            }
            Self::JobTasks => {
                let (dimensions, numbers) = row_format::elements(bytes)?;
                let numbers = numbers
                    .into_iter()
                    .map(|number| row_format::i32_of(Some(number)));
                let numbers = numbers.collect::<Option<Vec<_>>>()?;
                match dimensions.as_slice() {
                    [] => json!(row_format::COUNTS.map(|_| [0; 0])),
                    [_] => json!(numbers),
                    [_, jobs @ (1..)] => json!(Vec::from_iter(numbers.chunks(*jobs))),
                    _ => return None,
                }
            }
        })
    }
}

#[cfg(test)]
mod docs;
#[cfg(test)]
pub(crate) use docs::schema;
