//! Converts rows to the values of the [model](super::model).

use serde::de::DeserializeOwned;

use super::model::{Metrics, Report, Resource, SubJobs, Task};
use crate::store::{Row, StoreError};

impl TryFrom<&mut Row> for SubJobs {
    type Error = StoreError;

    fn try_from(row: &mut Row) -> Result<Self, StoreError> {
        let mut counts = json::<Vec<Vec<i32>>>(row, "job_tasks")?.map(Vec::into_iter);
        // Without jobs, PostgreSQL returns an empty outer array.
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
fn json<T: DeserializeOwned>(row: &mut Row, column: &str) -> Result<Option<T>, StoreError> {
    let text: Option<String> = row.take(column)?;
    let read = text.map(|text| serde_json::from_str(&text)).transpose();
    read.map_err(|error| StoreError::Unreadable(format!("the column {column}: {error}")))
}

/// Reads a row's fields by the names of their columns.
macro_rules! from_row {
    ($value:ident { $($field:ident),* $(; $nested:ident)? }) => {
        impl TryFrom<&mut Row> for $value {
            type Error = StoreError;

            fn try_from(row: &mut Row) -> Result<Self, StoreError> {
                Ok(Self {
                    $($field: row.take(stringify!($field))?,)*
                    $($nested: row.try_into()?,)?
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
    sequence, reported_at, status, progress, adjustments, event_partition, event_offset; jobs
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
