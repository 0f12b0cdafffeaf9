//! How a row of either database becomes a value of the [model](super::model).

use serde::de::DeserializeOwned;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{ColumnIndex, Decode, FromRow, Row, Type};

use super::model::{Metrics, Report, Resource, SubJobs, Task};

impl<'r, R: Row> FromRow<'r, R> for SubJobs
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
    sequence, reported_at, status, progress, adjustments, event_partition, event_offset; jobs: SubJobs
});
from_row!(Resource {
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
