//! Queries for many tasks at once: by name, by key, and for their newest and earliest reports.

use std::collections::HashMap;

use jiff::Timestamp;

use super::dialect::list;
use super::selection::{FINAL, Places, are_at};
use super::session::{Session, Value};
use super::{Snapshot, StoreError};
use crate::tables::{Kind, LEAST, Table};

/// Tasks per statement.
const AT_ONCE: usize = 1_000;

/// A report in `task_progress`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredReport {
    pub(crate) place: (i32, i64),
    /// Microseconds since 1970.
    pub(crate) reported_at: i64,
    pub(crate) is_final: bool,
}

/// The row of a task, in part.
#[derive(Clone, Debug)]
pub(crate) struct TaskRow {
    pub(crate) exec_id: String,
    /// Partition and offset of its event.
    pub(crate) place: (i32, i64),
}

impl dyn Session + '_ {
    /// The keys of the tasks with these names, if they exist. `kept`: keeps others from removing them before the
    /// transaction ends.
    pub(super) async fn task_ids(
        &mut self,
        names: &[&str],
        kept: bool,
    ) -> Result<HashMap<String, i64>, StoreError> {
        let dialect = self.dialect();
        let keep = if kept { dialect.keep_rows() } else { "" };
        let is_one = dialect.is_one_of("exec_id", "$1");
        let select = format!("SELECT exec_id, task_id FROM task WHERE {is_one} {keep}");
        let mut found = HashMap::new();
        for names in names.chunks(AT_ONCE) {
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            for mut row in self.select(&select, &[Value::Texts(names)]).await? {
                found.insert(row.take("exec_id")?, row.take("task_id")?);
            }
        }
        Ok(found)
    }
}

impl Snapshot {
    /// The key of the task with this execId.
    pub(crate) async fn task_id(&mut self, exec_id: &str) -> Result<Option<i64>, StoreError> {
        let select = "SELECT task_id FROM task WHERE exec_id = $1";
        let row = self.0.select_one(select, &[exec_id.into()]).await?;
        row.map(|mut row| row.take("task_id")).transpose()
    }

    /// The keys of the tasks with these names, if they exist.
    pub(crate) async fn task_ids(
        &mut self,
        names: &[&str],
    ) -> Result<HashMap<String, i64>, StoreError> {
        self.0.task_ids(names, false).await
    }

    /// The rows with these keys, if they exist.
    pub(crate) async fn tasks(
        &mut self,
        task_ids: &[i64],
    ) -> Result<HashMap<i64, TaskRow>, StoreError> {
        let mut found = HashMap::new();
        for some in task_ids.chunks(AT_ONCE) {
            let select = format!(
                "SELECT task_id, exec_id, event_partition, event_offset FROM task WHERE task_id IN ({})",
                list(some)
            );
            for mut row in self.0.select(&select, &[]).await? {
                let exec_id = row.take("exec_id")?;
                let place = (row.take("event_partition")?, row.take("event_offset")?);
                found.insert(row.take("task_id")?, TaskRow { exec_id, place });
            }
        }
        Ok(found)
    }

    /// The number of history rows of each of these tasks.
    pub(crate) async fn rows_of(
        &mut self,
        task_ids: &[i64],
    ) -> Result<HashMap<i64, u64>, StoreError> {
        let mut counts: HashMap<i64, u64> = HashMap::new();
        for some in task_ids.chunks(AT_ONCE) {
            for table in Table::HISTORIES.map(Table::name) {
                let select = format!(
                    "SELECT task_id, count(*) AS held FROM {table} WHERE task_id IN ({}) GROUP BY task_id",
                    list(some)
                );
                for mut row in self.0.select(&select, &[]).await? {
                    let held: i64 = row.take("held")?;
                    *counts.entry(row.take("task_id")?).or_default() += held.unsigned_abs();
                }
            }
        }
        Ok(counts)
    }

    /// The newest reports of each of these tasks in `task_progress`, by partition and offset; at most `at_most` per
    /// task, the newest first.
    pub(crate) async fn newest_reports(
        &mut self,
        task_ids: &[i64],
        at_most: usize,
    ) -> Result<HashMap<i64, Vec<(i32, i64)>>, StoreError> {
        let mut newest: HashMap<i64, Vec<(i32, i64)>> = HashMap::new();
        for some in task_ids.chunks(AT_ONCE) {
            let select = format!(
                "SELECT task_id, event_partition, event_offset FROM \
                 (SELECT task_id, event_partition, event_offset, row_number() OVER (PARTITION BY task_id \
                 ORDER BY status IN {FINAL} DESC, reported_at DESC, sequence DESC, event_partition DESC, \
                 event_offset DESC) AS nth \
                 FROM task_progress WHERE task_id IN ({})) AS ranked WHERE nth <= {at_most} ORDER BY task_id, nth",
                list(some)
            );
            for mut row in self.0.select(&select, &[]).await? {
                let place = (row.take("event_partition")?, row.take("event_offset")?);
                let of_task = newest.entry(row.take("task_id")?);
                of_task.or_default().push(place);
            }
        }
        Ok(newest)
    }

    /// The earliest reports of each of these tasks in `task_progress`, and the earliest final ones; at most `at_most`
    /// of each.
    pub(crate) async fn earliest_reports(
        &mut self,
        task_ids: &[i64],
        at_most: usize,
    ) -> Result<HashMap<i64, Vec<StoredReport>>, StoreError> {
        let dialect = self.0.dialect();
        let is_final = format!("CASE WHEN status IN {FINAL} THEN 1 ELSE 0 END");
        let mut earliest: HashMap<i64, Vec<StoredReport>> = HashMap::new();
        for some in task_ids.chunks(AT_ONCE) {
            let select = format!(
                "SELECT task_id, event_partition, event_offset, {} AS micros, {} AS is_final FROM \
                 (SELECT task_id, event_partition, event_offset, reported_at, status, \
                 row_number() OVER (PARTITION BY task_id ORDER BY reported_at) AS nth, \
                 row_number() OVER (PARTITION BY task_id, status IN {FINAL} ORDER BY reported_at) AS nth_of_kind \
                 FROM task_progress WHERE task_id IN ({})) AS ranked \
                 WHERE nth <= {at_most} OR (status IN {FINAL} AND nth_of_kind <= {at_most})",
                dialect.cast(&dialect.epoch_micros("reported_at"), Kind::I64),
                dialect.cast(&is_final, Kind::I64),
                list(some)
            );
            for mut row in self.0.select(&select, &[]).await? {
                let place = (row.take("event_partition")?, row.take("event_offset")?);
                let micros: Option<i64> = row.take("micros")?;
                let is_final: i64 = row.take("is_final")?;
                let of_task = earliest.entry(row.take("task_id")?).or_default();
                of_task.extend(micros.map(|reported_at| StoredReport {
                    place,
                    reported_at,
                    is_final: is_final == 1,
                }));
            }
        }
        Ok(earliest)
    }

    /// Tasks of these places (`None`: all) whose earliest times differ from those of their reports in `task_progress`.
    /// An earlier time counts only if `has_all` says that no other report explains it. History before `expired_before`
    /// is ignored, and explains any time before then. At most `at_most` tasks.
    pub(crate) async fn with_other_times(
        &mut self,
        places: &Option<Places>,
        expired_before: Option<Timestamp>,
        has_all: bool,
        at_most: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let dialect = self.0.dialect();
        let of_places = places.as_ref().map(|places| {
            let are_at = are_at(places);
            format!("task_id IN (SELECT h.task_id FROM task h WHERE {are_at})")
        });
        let is_left =
            expired_before.map(|before| format!("reported_at >= {}", dialect.time(before)));
        let conditions: Vec<String> = of_places.into_iter().chain(is_left).collect();
        let condition = match conditions.is_empty() {
            true => String::new(),
            false => format!("WHERE {}", conditions.join(" AND ")),
        };
        let is_other = LEAST.map(|name| {
            let is_higher = format!("t.{name} > of_task.{name}");
            if !has_all {
                return is_higher;
            }
            let is_known = expired_before.map_or_else(String::new, |before| {
                format!(" AND t.{name} >= {}", dialect.time(before))
            });
            format!(
                "{is_higher} OR ((t.{name} < of_task.{name} \
                 OR (t.{name} IS NOT NULL AND of_task.{name} IS NULL)){is_known})"
            )
        });
        let [first_reported_at, ended_at] = LEAST;
        let select = format!(
            "SELECT t.task_id FROM (SELECT task_id, min(reported_at) AS {first_reported_at}, \
             min(CASE WHEN status IN {FINAL} THEN reported_at END) AS {ended_at} \
             FROM task_progress {condition} GROUP BY task_id) AS of_task JOIN task t ON t.task_id = of_task.task_id \
             WHERE {} LIMIT {at_most}",
            is_other.join(" OR ")
        );
        let rows = self.0.select(&select, &[]).await?.into_iter();
        rows.map(|mut row| row.take("task_id")).collect()
    }
}
