//! Many tasks asked for at once: by their names, by their keys, and where their newest reports stand.

use std::collections::HashMap;

use sqlx::AssertSqlSafe;

use super::connection::{Connection, Session};
use super::{Snapshot, StoreError};
use crate::tables::Table;

/// Tasks that one statement asks for.
const AT_ONCE: usize = 1_000;

/// What the row of a task says of it.
#[derive(Clone, Debug)]
pub(crate) struct TaskRow {
    pub(crate) exec_id: String,
    /// Partition and offset of its event.
    pub(crate) place: (i32, i64),
}

impl Connection {
    /// The keys of the tasks with these names, as far as there are such. `locked`: so that none is removed before
    /// the transaction ends.
    pub(super) async fn task_ids(
        &mut self,
        names: &[&str],
        locked: bool,
    ) -> Result<HashMap<String, i64>, StoreError> {
        let mut found = HashMap::new();
        for names in names.chunks(AT_ONCE) {
            let rows: Vec<(String, i64)> = match self {
                Self::Postgres(Session { connection, watch }) => {
                    let lock = if locked { " FOR KEY SHARE" } else { "" };
                    let select =
                        format!("SELECT exec_id, task_id FROM task WHERE exec_id = ANY($1){lock}");
                    let asked = sqlx::query_as(AssertSqlSafe(select)).bind(names);
                    watch.answer(asked.fetch_all(&mut **connection)).await?
                }
                Self::Sqlite(connection) => {
                    let select = "SELECT exec_id, task_id FROM task WHERE exec_id IN (SELECT value FROM json_each($1))";
                    sqlx::query_as(select)
                        .bind(serde_json::to_string(names)?)
                        .fetch_all(&mut **connection)
                        .await?
                }
            };
            found.extend(rows);
        }
        Ok(found)
    }
}

impl Snapshot {
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
            let rows: Vec<(i64, String, i32, i64)> = self.0.rows(select, &[]).await?;
            let row = |(task_id, exec_id, partition, offset)| {
                let place = (partition, offset);
                (task_id, TaskRow { exec_id, place })
            };
            found.extend(rows.into_iter().map(row));
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
            let list = list(some);
            for table in Table::HISTORIES {
                let select = format!(
                    "SELECT task_id, count(*) FROM {table} WHERE task_id IN ({list}) GROUP BY task_id"
                );
                let rows: Vec<(i64, i64)> = self.0.rows(select, &[]).await?;
                for (task_id, rows) in rows {
                    *counts.entry(task_id).or_default() += rows.unsigned_abs();
                }
            }
        }
        Ok(counts)
    }

    /// Partition and offset of the newest reports of each of these tasks that `task_progress` has: at most so many
    /// of each, the newest first.
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
                 ORDER BY status IN ('Succeed', 'Failed', 'Cancelled', 'Timeout') DESC, reported_at DESC, \
                 sequence DESC, event_partition DESC, event_offset DESC) AS nth \
                 FROM task_progress WHERE task_id IN ({})) AS ranked WHERE nth <= {at_most} ORDER BY task_id, nth",
                list(some)
            );
            let rows: Vec<(i64, i32, i64)> = self.0.rows(select, &[]).await?;
            for (task_id, partition, offset) in rows {
                newest.entry(task_id).or_default().push((partition, offset));
            }
        }
        Ok(newest)
    }
}

/// Keys, for `IN`.
pub(super) fn list(keys: &[i64]) -> String {
    let keys: Vec<String> = keys.iter().map(i64::to_string).collect();
    keys.join(", ")
}
