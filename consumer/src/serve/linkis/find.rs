//! Resolves an id of Linkis to a task.

use crate::query::{QueryError, Reader, TaskFilter, TaskItem, TaskOrder, TaskQuery};

/// The exec task with this id, or else the latest to start of the job with this id (Linkis' taskID), running ones
/// preferred. `None` if there is none that `user` may see (`None`: the caller may see all).
///
/// # Errors
/// If the database fails, or the text cannot be an id.
pub(super) async fn find(
    reader: &mut Reader,
    id: &str,
    user: Option<&str>,
) -> Result<Option<TaskItem>, QueryError> {
    let item = reader.item(id, None).await?;
    let is_theirs = |item: &TaskItem| user.is_none_or(|user| user == item.engine_user);
    if let Some(item) = item.filter(is_theirs) {
        return Ok(Some(item));
    }
    for running in [true, false] {
        let of_job = TaskQuery {
            filter: TaskFilter {
                job_id: Some(id.to_owned()),
                user: user.map(str::to_owned),
                running,
                ..TaskFilter::default()
            },
            order: TaskOrder::Started,
            limit: 1,
            ..TaskQuery::default()
        };
        let mut page = reader.page(&of_job).await?;
        if let Some(item) = page.items.pop() {
            return Ok(Some(item));
        }
    }
    Ok(None)
}
