//! SQL executions of an application over all polls.

use std::collections::BTreeMap;

use super::answers::SqlExecution;

/// SQL executions, by how they stand. Spark drops the oldest ended ones from its list.
#[derive(Default)]
pub(crate) struct SqlExecutions {
    /// As listed last: RUNNING, COMPLETED, FAILED. Before Spark 3.4, COMPLETED may be followed by RUNNING.
    listed: BTreeMap<i64, String>,
    /// Dropped from the list since.
    succeeded: i64,
    failed: i64,
}

impl SqlExecutions {
    /// Takes in what Spark lists now.
    pub(super) fn take(&mut self, list: Vec<SqlExecution>) {
        let list: BTreeMap<i64, String> =
            list.into_iter().map(|one| (one.id, one.status)).collect();
        let before = std::mem::replace(&mut self.listed, list);
        for (id, status) in before {
            if !self.listed.contains_key(&id) {
                self.succeeded += i64::from(status == SqlExecution::COMPLETED);
                self.failed += i64::from(status == SqlExecution::FAILED);
            }
        }
    }

    /// Running, succeeded and failed ones; `None` if there never was any.
    pub(crate) fn counts(&self) -> Option<[i64; 3]> {
        let count = |wanted| {
            self.listed
                .values()
                .filter(|status| *status == wanted)
                .count() as i64
        };
        let succeeded = self.succeeded + count(SqlExecution::COMPLETED);
        let failed = self.failed + count(SqlExecution::FAILED);
        let any = !self.listed.is_empty() || succeeded > 0 || failed > 0;
        any.then(|| [count(SqlExecution::RUNNING), succeeded, failed])
    }
}
