//! The audited tables, and the one form of a row: what an event says and what a table holds are the
//! same bytes exactly when they say the same.
//!
//! A row is a row of PostgreSQL's binary COPY format with the columns of [`Table::columns`]; it names
//! its task by `exec_id`, since `task_id` is a key of one database only.

use serde::Serialize;
use serde_json::{Value, json};

use crate::row_format::{self, POSTGRES_EPOCH_MICROS, RowWriter};
use crate::rows::{Part, Rows};

/// An audited table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(into = "&'static str")]
pub(crate) enum Table {
    Progress,
    Resource,
    Metrics,
    Task,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    I32,
    I64,
    F64,
    Bool,
    Time,
    Text,
    Texts,
    /// See [`RowWriter::job_tasks`].
    JobTasks,
}

pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

const fn column(name: &'static str, kind: Kind) -> Column {
    Column { name, kind }
}

const PROGRESS: &[Column] = &[
    column("event_partition", Kind::I32),
    column("event_offset", Kind::I64),
    column("exec_id", Kind::Text),
    column("reported_at", Kind::Time),
    column("sequence", Kind::I64),
    column("status", Kind::Text),
    column("progress", Kind::F64),
    column("job_ids", Kind::Texts),
    column("job_tasks", Kind::JobTasks),
    column("adjustments", Kind::Texts),
];

const RESOURCE: &[Column] = &[
    column("event_partition", Kind::I32),
    column("event_offset", Kind::I64),
    column("exec_id", Kind::Text),
    column("application_id", Kind::Text),
    column("reported_at", Kind::Time),
    column("memory_bytes", Kind::I64),
    column("cores", Kind::I32),
    column("instances", Kind::I32),
    column("queue", Kind::Text),
    column("status", Kind::Text),
];

const METRICS: &[Column] = &[
    column("event_partition", Kind::I32),
    column("event_offset", Kind::I64),
    column("exec_id", Kind::Text),
    column("reported_at", Kind::Time),
    column("engine_running_tasks", Kind::I32),
    column("metrics", Kind::Text),
];

const TASK: &[Column] = &[
    column("event_partition", Kind::I32),
    column("event_offset", Kind::I64),
    column("exec_id", Kind::Text),
    column("job_id", Kind::Text),
    column("engine_instance", Kind::Text),
    column("engine_type", Kind::Text),
    column("engine_user", Kind::Text),
    column("ticket_id", Kind::Text),
    column("status", Kind::Text),
    column("is_final", Kind::Bool),
    column("progress", Kind::F64),
    column("reported_at", Kind::Time),
    column("sequence", Kind::I64),
];

/// Where the columns stand that every table begins with.
pub(crate) const EXEC_ID: usize = 2;
/// `task_resource`: tells the rows of one event apart.
const APPLICATION_ID: usize = 3;

impl From<Table> for &'static str {
    fn from(table: Table) -> Self {
        table.name()
    }
}

impl Table {
    /// The histories.
    pub(crate) const HISTORIES: [Self; 3] = [Self::Progress, Self::Resource, Self::Metrics];
    pub(crate) const ALL: [Self; 4] = [Self::Progress, Self::Resource, Self::Metrics, Self::Task];

    pub(crate) fn of(part: Part) -> Self {
        match part {
            Part::Progress => Self::Progress,
            Part::Resource => Self::Resource,
            Part::Metrics => Self::Metrics,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Progress => Part::Progress.table(),
            Self::Resource => Part::Resource.table(),
            Self::Metrics => Part::Metrics.table(),
            Self::Task => "task",
        }
    }

    pub(crate) fn columns(self) -> &'static [Column] {
        match self {
            Self::Progress => PROGRESS,
            Self::Resource => RESOURCE,
            Self::Metrics => METRICS,
            Self::Task => TASK,
        }
    }

    /// Writes the rows of this table that an event stands for; for `task` the row that it has while
    /// this event is the task's newest.
    pub(crate) fn write(self, copy: &mut RowWriter, event: &Rows<'_>) {
        let fields = self.columns().len() as i16;
        let info = &event.info;
        let begin = |copy: &mut RowWriter| {
            copy.row(fields);
            copy.i32(event.partition);
            copy.i64(event.offset);
            copy.text(info.exec_id);
        };
        match self {
            Self::Progress => {
                begin(copy);
                copy.time(info.reported_at);
                copy.i64(info.sequence);
                copy.text(info.status.as_str());
                copy.optional_f64(event.progress());
                copy.jobs(info.progress.map(|(_, jobs)| jobs));
                copy.adjustments(&event.adjustments());
            }
            Self::Resource => {
                for held in info.resource.iter().flat_map(|list| list.sorted()) {
                    begin(copy);
                    copy.text(held.id);
                    copy.time(info.reported_at);
                    copy.i64(held.memory_bytes);
                    copy.i32(held.cores);
                    copy.i32(held.instances);
                    copy.text(held.queue);
                    copy.text(held.status);
                }
            }
            Self::Metrics => {
                begin(copy);
                copy.time(info.reported_at);
                copy.i32(info.engine_running_tasks);
                copy.metrics(info.metrics);
            }
            Self::Task => {
                begin(copy);
                copy.text(info.job_id);
                copy.text(info.engine_instance);
                copy.text(info.engine_type);
                copy.text(info.engine_user);
                copy.text(info.ticket_id);
                copy.text(info.status.as_str());
                copy.bool(info.status.is_final());
                copy.optional_f64(event.progress());
                copy.time(info.reported_at);
                copy.i64(info.sequence);
            }
        }
    }

    /// How many rows [`write`](Self::write) writes.
    pub(crate) fn rows_of(self, event: &Rows<'_>) -> u64 {
        match self {
            Self::Resource => event.applications() as u64,
            _ => 1,
        }
    }

    /// What tells this row from the others of its event.
    pub(crate) fn key(self, row: &[u8]) -> &[u8] {
        match self {
            Self::Resource => row_format::fields(row).nth(APPLICATION_ID).flatten(),
            _ => None,
        }
        .unwrap_or_default()
    }

    /// The columns in which two rows differ, with what is expected and what was found.
    pub(crate) fn differences(self, expected: &[u8], found: &[u8]) -> Vec<Difference> {
        let both = row_format::fields(expected).zip(row_format::fields(found));
        let columns = self.columns().iter().zip(both);
        columns
            .filter(|(_, (expected, found))| expected != found)
            .map(|(column, (expected, found))| Difference {
                column: column.name,
                expected: column.kind.value(expected),
                found: column.kind.value(found),
            })
            .collect()
    }
}

/// A column in which a table's row is not what the topic says.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Difference {
    pub(crate) column: &'static str,
    pub(crate) expected: Value,
    pub(crate) found: Value,
}

/// Partition and offset of a row.
pub(crate) fn place(row: &[u8]) -> Option<(i32, i64)> {
    let mut fields = row_format::fields(row);
    Some((
        row_format::i32_of(fields.next()?)?,
        row_format::i64_of(fields.next()?)?,
    ))
}

/// [`Table::key`], where it is a text.
pub(crate) fn key_text(table: Table, row: &[u8]) -> Option<String> {
    let key = std::str::from_utf8(table.key(row)).ok()?;
    (!key.is_empty()).then(|| key.to_owned())
}

/// The task that a row names; `None` where the database has no such task.
pub(crate) fn exec_id(row: &[u8]) -> Option<&str> {
    row_format::text_of(row_format::fields(row).nth(EXEC_ID)?)
}

impl Kind {
    /// A field for a person, or for a program: what is not of its column's kind is shown in
    /// hexadecimal.
    pub(crate) fn value(self, field: Option<&[u8]>) -> Value {
        let Some(bytes) = field else {
            return Value::Null;
        };
        self.read(bytes).unwrap_or_else(|| {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!(format!("\\x{hex}"))
        })
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
            Self::Text => json!(row_format::text_of(field)?),
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
