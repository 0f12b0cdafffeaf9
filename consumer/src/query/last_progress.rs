//! The last progress that a task reported: its newest report may have none.

use super::model::SubJobs;
use super::reader::{QueryError, Reader, is_no_text};
use super::sql::NEWEST;
use crate::store::StoreError;

/// The progress part of a report.
#[derive(Debug)]
pub(crate) struct LastProgress {
    /// 0 to 1.
    pub(crate) progress: f64,
    pub(crate) jobs: SubJobs,
}

impl Reader {
    /// The progress of the task's newest report that has one; `None` if none has.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn last_progress(
        &mut self,
        exec_id: &str,
    ) -> Result<Option<LastProgress>, QueryError> {
        if is_no_text(exec_id) {
            return Ok(None);
        }
        let dialect = self.session.dialect();
        let lists = ["job_ids", "job_tasks"]
            .map(|column| format!("{} AS {column}", dialect.array_as_json(column)));
        let select = format!(
            "SELECT progress, {} FROM task_progress \
             WHERE task_id = (SELECT task_id FROM task WHERE exec_id = $1) AND progress IS NOT NULL \
             ORDER BY task_progress.{NEWEST} LIMIT 1",
            lists.join(", ")
        );
        let progress = self.session.select_one(&select, &[exec_id.into()]).await;
        let progress = progress.and_then(|row| {
            let progress = row.map(|mut row| {
                Ok::<_, StoreError>(LastProgress {
                    progress: row.take("progress")?,
                    jobs: SubJobs::try_from(&mut row)?,
                })
            });
            progress.transpose()
        });
        self.answered(progress, &format!("the task {exec_id}"))
            .await
    }
}
