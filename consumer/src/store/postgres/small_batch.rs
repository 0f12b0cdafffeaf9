//! Stores a few events in one statement, which is its own transaction: one round trip instead of ten.

use std::sync::LazyLock;

use schemas::Job;
use serde::Serialize;
use sqlx::postgres::PgConnection;

use super::offsets::{OFFSET_PARAMETERS, WITH_LOCKED, bind_offsets, move_locked};
use super::tasks::{bind_tasks, lowered_by, received, unnest_tasks, upsert_tasks_from};
use super::{Writing, sent_type};
use crate::batch::{Tasks, is_unstored};
use crate::positions::Advance;
use crate::row_format::{COUNTS, ValueSink, append_json};
use crate::rows::{Part, Rows};
use crate::store::StoreError;
use crate::tables::{Table, TaskKey};

/// Upper bound of a small batch: beyond some 60 records, JSON costs more than the round trips it saves.
pub(super) const MAX_RECORDS: usize = 32;

/// All or nothing: writes no row if an offset is not the expected one. Rows of the histories are sent as JSON, whose
/// values PostgreSQL parses like literals; their `task_id` is the index of their task among the states, from 1. The key
/// of a task whose stored state is newer is read from the statement's snapshot; locking the row ensures that nobody has
/// removed it since. Two kinds of keys are not found: of a task whose time a late report moves back, which the general
/// method does, and of a row that someone has inserted since. A task without a key makes the statement divide by zero.
static STORE: LazyLock<String> = LazyLock::new(|| {
    let only_if = " AND (SELECT count(*) FROM locked WHERE is_expected) = cardinality($4::text[])";
    let (states, names) = (
        unnest_tasks(OFFSET_PARAMETERS + 1),
        Table::Task.stored_names(),
    );
    let mut statement = format!(
        "{WITH_LOCKED}, moved AS ({}), \
         states AS (SELECT * FROM {states} WITH ORDINALITY AS states ({names}, place) \
         WHERE (SELECT count(*) FROM moved) = cardinality($4::text[])), stored AS ({}), \
         keys AS (SELECT place, coalesce(stored.task_id, \
         (SELECT task_id FROM task WHERE task.exec_id = states.exec_id AND {} IS NOT TRUE FOR KEY SHARE)) AS task_id \
         FROM states LEFT JOIN stored USING (exec_id))",
        move_locked(only_if),
        upsert_tasks_from("states"),
        lowered_by("states"),
    );
    let first = OFFSET_PARAMETERS + Table::Task.columns().len() + 1;
    for (parameter, part) in (first..).zip(Part::ALL) {
        let (name, table) = (part.as_str(), part.table());
        let columns = table.stored_columns();
        let columns = columns.map(|column| format!("{} {}", column.name, sent_type(column.kind)));
        statement.push_str(&format!(
            ", {name} AS (INSERT INTO {table} ({}) SELECT {} FROM json_to_recordset(${parameter}::json) AS sent ({}) \
             JOIN keys ON keys.place = sent.task_id RETURNING 1)",
            table.stored_names(),
            received(table, "keys.task_id"),
            Vec::from_iter(columns).join(", ")
        ));
    }
    let counts = Part::ALL.map(|part| format!("(SELECT count(*) FROM {})", part.as_str()));
    statement.push_str(&format!(
        " SELECT (SELECT count(*) FROM moved) / \
         (SELECT CASE WHEN count(*) = count(task_id) THEN 1 ELSE 0 END FROM keys), ARRAY[{}]",
        counts.join(", ")
    ));
    statement
});

/// Rows as a JSON array of objects, keyed by column name.
#[derive(Default)]
struct JsonRows(Vec<u8>);

impl JsonRows {
    fn end(mut self) -> Result<String, StoreError> {
        let end: &[u8] = if self.0.is_empty() { b"[]" } else { b"}]" };
        self.0.extend_from_slice(end);
        String::from_utf8(self.0).map_err(|error| StoreError::Exit(error.to_string()))
    }

    fn value(&mut self, value: impl Serialize) {
        append_json(&mut self.0, |serializer| value.serialize(serializer));
    }
}

impl<'a> ValueSink<'a> for JsonRows {
    fn row(&mut self, _columns: usize) {
        let begin: &[u8] = if self.0.is_empty() { b"[{" } else { b"},{" };
        self.0.extend_from_slice(begin);
    }

    fn column(&mut self, name: &'static str) {
        if self.0.last() != Some(&b'{') {
            self.0.push(b',');
        }
        self.value(name);
        self.0.push(b':');
    }

    fn null(&mut self) {
        self.value(());
    }

    fn i32(&mut self, value: i32) {
        self.value(value);
    }

    fn i64(&mut self, value: i64) {
        self.value(value);
    }

    fn f64(&mut self, value: f64) {
        self.value(value);
    }

    fn bool(&mut self, value: bool) {
        self.value(value);
    }

    fn time(&mut self, micros: i64) {
        self.value(micros);
    }

    fn text(&mut self, text: &'a str) {
        self.value(text);
    }

    fn texts<'t>(&mut self, texts: impl ExactSizeIterator<Item = &'t str>) {
        self.value(Vec::from_iter(texts));
    }

    fn job_tasks(&mut self, jobs: &[Job<'_>]) {
        match jobs.is_empty() {
            true => self.value([(); 0]), // an empty array has no dimensions
            false => self.value(COUNTS.map(|count| Vec::from_iter(jobs.iter().map(count)))),
        }
    }

    fn json(&mut self, value: &impl Serialize) {
        self.value(value);
    }
}

/// Stores events, moves the offsets forward, and returns the number of rows written by part; `None` if an offset is not
/// the expected one, and nothing was done. `of_events`: the index in `tasks` of each event's task.
pub(super) async fn store(
    connection: &mut PgConnection,
    events: &[Rows<'_>],
    tasks: &Tasks<'_>,
    of_events: &[usize],
    advances: &[&Advance],
    writing: Writing<'_>,
) -> Result<Option<Vec<(Part, u64)>>, StoreError> {
    let mut of_parts = Part::ALL.map(|_| JsonRows::default());
    for (rows, task) in events.iter().zip(of_events) {
        for &part in writing.parts {
            if is_unstored(rows, part, writing.positions) {
                let task = TaskKey::Id(*task as i64 + 1);
                part.table().write(&mut of_parts[part as usize], rows, task);
            }
        }
    }
    let query = bind_offsets(sqlx::query_as(STORE.as_str()), advances, writing.identity);
    let mut query = bind_tasks(query, tasks);
    for rows in of_parts {
        query = query.bind(rows.end()?);
    }
    let (moved, written): (i64, Vec<i64>) = query.fetch_one(connection).await?;
    if moved as usize != advances.len() {
        return Ok(None);
    }
    let of_part = |part: &Part| (*part, written[*part as usize] as u64);
    Ok(Some(writing.parts.iter().map(of_part).collect()))
}
