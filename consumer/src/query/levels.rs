//! Counts of the tasks that have not ended, for gauges.

use jiff::Timestamp;

use super::filter::Thresholds;
use super::marks::Judge;
use super::reader::{QueryError, Reader};
use crate::store::StoreError;

/// The tasks of one engine type and status that have not ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Level {
    pub(crate) engine_type: String,
    pub(crate) status: String,
    pub(crate) tasks: i64,
    pub(crate) silent: i64,
    /// Age of the newest report of the task that has been without a report the longest; `None` for the status
    /// `Unknown`.
    pub(crate) oldest_report_seconds: Option<f64>,
}

impl Reader {
    /// Counts the tasks that have not ended.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn levels(
        &mut self,
        thresholds: Thresholds,
    ) -> Result<Vec<Level>, QueryError> {
        let moment = Timestamp::now();
        let judge = judge(&thresholds, moment);
        let session = self.session();
        let dialect = session.dialect();
        let reported = "min(CASE WHEN task.status <> 'Unknown' THEN task.reported_at END)";
        let select = format!(
            "SELECT task.engine_type, task.status, count(*) AS tasks, \
             sum(CASE WHEN {} THEN 1 ELSE 0 END) AS silent, {} AS oldest FROM task WHERE NOT task.is_final \
             GROUP BY task.engine_type, task.status",
            judge.silent(dialect),
            dialect.epoch_micros(reported),
        );
        let levels = async {
            let rows = session.select(&select, &[]).await?.into_iter();
            let level = rows.map(|mut row| {
                let oldest: Option<i64> = row.take("oldest")?;
                let age = |oldest| moment.as_microsecond().saturating_sub(oldest).max(0);
                Ok(Level {
                    engine_type: row.take("engine_type")?,
                    status: row.take("status")?,
                    tasks: row.take("tasks")?,
                    silent: row.take("silent")?,
                    oldest_report_seconds: oldest.map(|oldest| age(oldest) as f64 / 1e6),
                })
            });
            level.collect::<Result<_, StoreError>>()
        };
        let levels = levels.await;
        self.answered(levels, "the tasks that have not ended").await
    }

    /// Number of stalled tasks by engine type and status, without zeros. Reads the histories of the tasks that may be
    /// stalled.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn stalled(
        &mut self,
        thresholds: Thresholds,
    ) -> Result<Vec<(String, String, i64)>, QueryError> {
        let judge = judge(&thresholds, Timestamp::now());
        let session = self.session();
        let select = format!(
            "SELECT task.engine_type, task.status, count(*) AS stalled FROM task WHERE {} \
             GROUP BY task.engine_type, task.status",
            judge.stalled(session.dialect()),
        );
        let stalled = async {
            let rows = session.select(&select, &[]).await?.into_iter();
            let each = rows.map(|mut row| {
                let (engine_type, status) = (row.take("engine_type")?, row.take("status")?);
                Ok((engine_type, status, row.take("stalled")?))
            });
            each.collect::<Result<_, StoreError>>()
        };
        let stalled = stalled.await;
        self.answered(stalled, "the tasks that get no further")
            .await
    }
}

fn judge(thresholds: &Thresholds, moment: Timestamp) -> Judge<'_> {
    Judge {
        moment,
        thresholds,
        at: None,
    }
}
