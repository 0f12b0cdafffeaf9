//! Queries for many tasks at once: by name, by key, and for the places of their newest reports.

use std::collections::HashMap;

use super::selection::{FINAL, list};
use super::session::{Session, Value};
use super::{Snapshot, StoreError};
use crate::tables::Table;

/// Tasks of one statement.
const AT_ONCE: usize = 1_000;

/// What the row of a task says of it.
#[derive(Clone, Debug)]
pub(crate) struct TaskRow {
    pub(crate) exec_id: String,
    /// Partition and offset of its event.
    pub(crate) place: (i32, i64),
}

impl dyn Session + '_ {
    /// The keys of the tasks with these names, as far as there are such. `kept`: so that nobody removes one before the
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

    /// The keys of the tasks with these names, as far as there are such.
    pub(crate) async fn task_ids(
        &mut self,
        names: &[&str],
    ) -> Result<HashMap<String, i64>, StoreError> {
        self.0.task_ids(names, false).await
    }

    /// What the rows under these keys say, as far as there are such.
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

    /// How many rows of the histories each of these tasks has.
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

    /// Partition and offset of the newest reports of each of these tasks in `task_progress`: at most so many of each, the
    /// newest first.
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
}
