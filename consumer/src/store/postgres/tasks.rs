//! Bringing `task` up to the newest states of tasks.

use std::sync::LazyLock;

use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::QueryAs;

use super::arrays::{Array, Arrays};
use super::sent_type;
use crate::batch::Tasks;
use crate::store::StoreError;
use crate::tables::{Column, Kind, TASK, Table, UPDATE_IF_NEWER};

static UPSERT_TASKS: LazyLock<String> = LazyLock::new(|| {
    let (states, names) = (unnest_tasks(1), Table::Task.stored_names());
    upsert_tasks_from(&format!("{states} AS said ({names})"))
});

/// Brings `task` up to the states that this table expression has. Sorted by exec_id, so that two writers lock tasks in
/// the same order.
pub(super) fn upsert_tasks_from(states: &str) -> String {
    format!(
        "INSERT INTO task ({}) SELECT {} FROM {states} ORDER BY exec_id {} RETURNING task.exec_id, task.task_id",
        Table::Task.stored_names(),
        received(Table::Task, "exec_id"),
        *UPDATE_IF_NEWER
    )
}

/// The states of tasks: an array of each column of `task`, which are parameters from this one on, as [`bind_tasks`]
/// binds them.
pub(super) fn unnest_tasks(first_parameter: usize) -> String {
    let columns = (first_parameter..).zip(Table::Task.stored_columns());
    let arrays = columns.map(|(place, column)| format!("${place}::{}[]", sent_type(column.kind)));
    format!("unnest({})", Vec::from_iter(arrays).join(", "))
}

/// The columns of a table, of the values that were sent for them: of `task` the task's key or name. Microseconds are
/// added to the epoch in two steps, since an interval multiplied by a double loses them.
pub(super) fn received(table: Table, task: &str) -> String {
    let columns = table.stored_columns().enumerate();
    let received = columns.map(|(place, Column { name, kind, .. })| match kind {
        _ if place == TASK => task.to_owned(),
        Kind::Time => format!(
            "timestamptz 'epoch' + ({name} / 1000000) * interval '1 second' \
             + ({name} % 1000000) * interval '1 microsecond'"
        ),
        _ => (*name).to_owned(),
    });
    Vec::from_iter(received).join(", ")
}

/// A look-up for each, numbered from 1: compared with an array, each row of `task` would be compared with all of it
/// where PostgreSQL thinks the table small, as it does of one that was filled a moment ago.
const SELECT_TASKS: &str = "SELECT said.number, (SELECT task_id FROM task WHERE task.exec_id = said.exec_id) \
     FROM unnest($1::text[]) WITH ORDINALITY AS said (exec_id, number)";

/// An array of each column of the states.
pub(super) fn bind_tasks<'q, O>(
    query: QueryAs<'q, sqlx::Postgres, O, PgArguments>,
    tasks: &Tasks<'q>,
) -> QueryAs<'q, sqlx::Postgres, O, PgArguments> {
    let columns = Arrays::of(tasks).columns.into_iter();
    columns.fold(query, |query, array| match array {
        Array::I32(values) => query.bind(values),
        Array::I64(values) => query.bind(values),
        Array::F64(values) => query.bind(values),
        Array::Bool(values) => query.bind(values),
        Array::Text(values) => query.bind(values),
    })
}

/// Brings `task` up to these states and gives the tasks' keys.
pub(super) async fn upsert_tasks(
    connection: &mut PgConnection,
    tasks: &Tasks<'_>,
) -> Result<Vec<i64>, StoreError> {
    let told: Vec<(String, Option<i64>)> = bind_tasks(sqlx::query_as(UPSERT_TASKS.as_str()), tasks)
        .fetch_all(&mut *connection)
        .await?;
    let mut task_ids = vec![None; tasks.newest.len()];
    for (exec_id, task_id) in told {
        if let Some(place) = tasks.places.get(exec_id.as_str()) {
            task_ids[*place] = task_id;
        }
    }
    // Of a task whose state is newer already nothing was returned.
    let unknown: Vec<usize> = (0..task_ids.len())
        .filter(|place| task_ids[*place].is_none())
        .collect();
    if !unknown.is_empty() {
        let of_place = |place: &usize| tasks.newest[*place].info.exec_id;
        let found: Vec<(i64, Option<i64>)> = sqlx::query_as(SELECT_TASKS)
            .bind(unknown.iter().map(of_place).collect::<Vec<_>>())
            .fetch_all(connection)
            .await?;
        for (number, task_id) in found {
            task_ids[unknown[number as usize - 1]] = task_id;
        }
    }
    let known = task_ids.into_iter();
    known
        .map(|task_id| {
            task_id.ok_or_else(|| StoreError::Retry(sqlx::Error::RowNotFound.to_string()))
        })
        .collect()
}
