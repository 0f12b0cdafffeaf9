//! Updates `task` to the newest states of tasks.

use std::sync::LazyLock;

use sqlx::postgres::{PgArguments, PgConnection};
use sqlx::query::QueryAs;

use super::arrays::{Array, Arrays};
use super::sent_type;
use crate::batch::Tasks;
use crate::store::StoreError;
use crate::tables::{Column, Kind, LEAST, TASK, Table, UPDATE_IF_NEWER, is_lower};

static UPSERT_TASKS: LazyLock<String> = LazyLock::new(|| {
    let (states, names) = (unnest_tasks(1), Table::Task.stored_names());
    upsert_tasks_from(&format!("{states} AS sent ({names})"))
});

/// Updates `task` to the states in this table expression. Sorted by exec_id, so that two writers lock tasks in the same
/// order.
pub(super) fn upsert_tasks_from(states: &str) -> String {
    format!(
        "INSERT INTO task ({}) SELECT {} FROM {states} ORDER BY exec_id {} RETURNING task.exec_id, task.task_id",
        Table::Task.stored_names(),
        received(Table::Task, "exec_id"),
        *UPDATE_IF_NEWER
    )
}

/// The states of tasks: one array parameter per column of `task`, starting with this parameter, as bound by
/// [`bind_tasks`].
pub(super) fn unnest_tasks(first_parameter: usize) -> String {
    let columns = (first_parameter..).zip(Table::Task.stored_columns());
    let arrays = columns.map(|(place, column)| format!("${place}::{}[]", sent_type(column.kind)));
    format!("unnest({})", Vec::from_iter(arrays).join(", "))
}

/// A time from the microseconds that were sent. They are added to the epoch in two steps, because multiplying an
/// interval by a double loses microseconds.
pub(super) fn time(micros: &str) -> String {
    format!(
        "timestamptz 'epoch' + ({micros} / 1000000) * interval '1 second' \
         + ({micros} % 1000000) * interval '1 microsecond'"
    )
}

/// The columns of a table, from the values that were sent. `task`: the task's key or name.
pub(super) fn received(table: Table, task: &str) -> String {
    let columns = table.stored_columns().enumerate();
    let received = columns.map(|(place, Column { name, kind, .. })| match kind {
        _ if place == TASK => task.to_owned(),
        Kind::Time => time(name),
        _ => (*name).to_owned(),
    });
    Vec::from_iter(received).join(", ")
}

/// Looks up each task, numbered from 1, and whether the reports have a time earlier than its own. Comparing with an
/// array instead would compare each row of `task` with the whole array if PostgreSQL assumes that the table is small,
/// as after it was filled quickly. (LIMIT forces a look-up.)
static SELECT_TASKS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT sent.number, task.task_id, {} IS TRUE \
         FROM unnest($1::text[], $2::bigint[], $3::bigint[]) WITH ORDINALITY \
         AS sent (exec_id, first_reported_at, ended_at, number) LEFT JOIN LATERAL \
         (SELECT * FROM task WHERE task.exec_id = sent.exec_id LIMIT 1) AS task ON true",
        lowered_by("sent")
    )
});

/// Moves times back for tasks whose rows this transaction has locked.
static LOWER_TIMES: LazyLock<String> = LazyLock::new(|| {
    let lowered = LEAST.map(|name| {
        format!(
            "{name} = least(task.{name}, {})",
            time(&format!("sent.{name}"))
        )
    });
    format!(
        "UPDATE task SET {} FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS sent (task_id, {}) \
         WHERE task.task_id = sent.task_id",
        lowered.join(", "),
        LEAST.join(", ")
    )
});

/// The condition that a task has a later time than this relation, which has the times that were sent; null or false if
/// not.
pub(super) fn lowered_by(relation: &str) -> String {
    let [first, ended] = LEAST.map(|name| time(&format!("{relation}.{name}")));
    is_lower([&first, &ended])
}

/// Binds one array per column of the states.
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

/// Updates `task` to these states, and returns the tasks' keys.
pub(super) async fn upsert_tasks(
    connection: &mut PgConnection,
    tasks: &Tasks<'_>,
) -> Result<Vec<i64>, StoreError> {
    let upserted: Vec<(String, Option<i64>)> =
        bind_tasks(sqlx::query_as(UPSERT_TASKS.as_str()), tasks)
            .fetch_all(&mut *connection)
            .await?;
    let mut task_ids = vec![None; tasks.newest.len()];
    for (exec_id, task_id) in upserted {
        if let Some(place) = tasks.places.get(exec_id.as_str()) {
            task_ids[*place] = task_id;
        }
    }
    // Nothing was returned for a task whose state is newer already.
    let unknown: Vec<usize> = (0..task_ids.len())
        .filter(|place| task_ids[*place].is_none())
        .collect();
    if !unknown.is_empty() {
        let states = || unknown.iter().map(|place| &tasks.newest[*place]);
        let found: Vec<(i64, Option<i64>, bool)> = sqlx::query_as(SELECT_TASKS.as_str())
            .bind(Vec::from_iter(states().map(|rows| rows.info.exec_id)))
            .bind(Vec::from_iter(states().map(|rows| rows.first_reported_at)))
            .bind(Vec::from_iter(states().map(|rows| rows.ended_at)))
            .fetch_all(&mut *connection)
            .await?;
        let (mut keys, mut first, mut ended) = (Vec::new(), Vec::new(), Vec::new());
        for (number, task_id, is_lower) in found {
            let place = unknown[number as usize - 1];
            task_ids[place] = task_id;
            if is_lower {
                keys.push(task_id);
                first.push(tasks.newest[place].first_reported_at);
                ended.push(tasks.newest[place].ended_at);
            }
        }
        if !keys.is_empty() {
            let lower = sqlx::query(LOWER_TIMES.as_str());
            let lower = lower.bind(keys).bind(first).bind(ended);
            lower.execute(connection).await?;
        }
    }
    let known = task_ids.into_iter();
    known
        .map(|task_id| {
            task_id.ok_or_else(|| StoreError::Retry(sqlx::Error::RowNotFound.to_string()))
        })
        .collect()
}
