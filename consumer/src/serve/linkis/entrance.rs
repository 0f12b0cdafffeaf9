//! `/entrance/{id}/…`: a task's status, progress and resources.

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use futures_util::FutureExt;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::find::find;
use super::message::{Message, Refused};
use super::yarn::{Held, QueueLimits};
use crate::query::{LastProgress, Resource, SubJobs, TaskItem};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

#[derive(OpenApi)]
#[openapi(
    paths(status, progress, progress_with_resource),
    components(schemas(Refused))
)]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>()
        .get::<__path_status, _>(status)
        .get::<__path_progress, _>(progress)
        .get::<__path_progress_with_resource, _>(progress_with_resource)
}

/// `data` of a status.
#[derive(Serialize, ToSchema)]
struct Status {
    /// Inited, WaitForRetry, Scheduled, Running, Succeed, Failed, Cancelled, Timeout; Unknown if the engine
    /// disappeared.
    status: String,
    #[serde(rename = "execID")]
    exec_id: String,
    /// The job's id.
    #[serde(rename = "taskID")]
    task_id: String,
}

/// `data` of a progress.
#[derive(Serialize, ToSchema)]
struct Progress {
    /// 0 to 1.
    progress: f64,
    #[serde(rename = "execID")]
    exec_id: String,
    /// The job's id.
    #[serde(rename = "taskID")]
    task_id: String,
    #[serde(rename = "progressInfo")]
    progress_info: Vec<JobProgress>,
}

/// As [`Progress`], with the resources that the task holds or, if it has ended, last held.
#[derive(Serialize, ToSchema)]
struct ProgressWithResource {
    #[serde(flatten)]
    progress: Progress,
    #[serde(flatten)]
    held: Held,
}

/// A sub-job.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct JobProgress {
    id: String,
    succeed_tasks: i32,
    failed_tasks: i32,
    running_tasks: i32,
    total_tasks: i32,
}

/// A task, with its last reported progress.
struct Found {
    item: TaskItem,
    last_progress: Option<LastProgress>,
    resource: Vec<Resource>,
}

/// A task's status.
#[utoipa::path(
    get,
    path = "/api/rest_j/v1/entrance/{id}/status",
    tag = "linkis",
    params(("id" = String, Path, description = "The exec task's id, or its job's (taskID)")),
    responses((status = OK, body = Message<Status>), Refused)
)]
async fn status(
    State(app): State<App>,
    uri: Uri,
    Path(id): Path<String>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    parameters.lenient().end()?;
    let absent = absent(&id);
    let asked = app
        .readers
        .ask(move |reader| async move { find(reader, &id, caller.scope()).await }.boxed());
    let item = asked.await?.ok_or(absent)?;
    let status = Status {
        status: item.status,
        exec_id: item.exec_id,
        task_id: item.job_id,
    };
    Message::ok(&uri, status)
}

/// Progress of a task and its sub-jobs. It is kept after the task has ended.
#[utoipa::path(
    get,
    path = "/api/rest_j/v1/entrance/{id}/progress",
    tag = "linkis",
    params(("id" = String, Path, description = "The exec task's id, or its job's (taskID)")),
    responses((status = OK, body = Message<Progress>), Refused)
)]
async fn progress(
    State(app): State<App>,
    uri: Uri,
    Path(id): Path<String>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    parameters.lenient().end()?;
    let found = found(&app, id, caller, false).await?;
    Message::ok(&uri, Progress::of(found.item, found.last_progress)?)
}

/// Progress of a task and its sub-jobs, and the resources of its applications. All are kept after the task has ended.
#[utoipa::path(
    get,
    path = "/api/rest_j/v1/entrance/{id}/progressWithResource",
    tag = "linkis",
    params(("id" = String, Path, description = "The exec task's id, or its job's (taskID)")),
    responses((status = OK, body = Message<ProgressWithResource>), Refused)
)]
async fn progress_with_resource(
    State(app): State<App>,
    Extension(limits): Extension<QueueLimits>,
    uri: Uri,
    Path(id): Path<String>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    parameters.lenient().end()?;
    let found = found(&app, id, caller, true).await?;
    let answer = ProgressWithResource {
        held: Held::of(&found.resource, limits),
        progress: Progress::of(found.item, found.last_progress)?,
    };
    Message::ok(&uri, answer)
}

async fn found(
    app: &App,
    id: String,
    caller: Caller,
    with_resource: bool,
) -> Result<Found, Problem> {
    let absent = absent(&id);
    let asked = app.readers.ask(move |reader| {
        async move {
            let Some(item) = find(reader, &id, caller.scope()).await? else {
                return Ok(None);
            };
            let last_progress = reader.last_progress(&item.exec_id).await?;
            let details = match with_resource {
                true => reader.task(&item.exec_id, None, 1).await?,
                false => None,
            };
            Ok(Some(Found {
                item,
                last_progress,
                resource: details.map_or(Vec::new(), |details| details.resource),
            }))
        }
        .boxed()
    });
    asked.await?.ok_or(absent)
}

/// Linkis has no 404: a missing task is a general error.
pub(super) fn absent(id: &str) -> Problem {
    let detail = format!("there is no exec task or job {id:?}, or you may not see it");
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

/// Progress as Linkis defines it: a task is complete only if it succeeded, whatever its engine reported last.
pub(super) fn progress_of(status: &str, last_progress: Option<f64>) -> Option<f64> {
    match status {
        "Succeed" => Some(1.0),
        _ => last_progress,
    }
}

impl Progress {
    /// # Errors
    /// 400 if no progress was reported, as in Linkis.
    fn of(item: TaskItem, last_progress: Option<LastProgress>) -> Result<Self, Problem> {
        let last = last_progress
            .as_ref()
            .map(|last_progress| last_progress.progress);
        let Some(progress) = progress_of(&item.status, last) else {
            let detail = format!(
                "no progress was reported for the task {:?}, which is {}",
                item.exec_id, item.status
            );
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        };
        Ok(Self {
            progress,
            exec_id: item.exec_id,
            task_id: item.job_id,
            progress_info: last_progress
                .map_or(Vec::new(), |last_progress| sub_jobs(last_progress.jobs)),
        })
    }
}

/// Sub-jobs that have tasks; Linkis omits the others.
fn sub_jobs(jobs: SubJobs) -> Vec<JobProgress> {
    let counts = [
        jobs.total_tasks,
        jobs.running_tasks,
        jobs.failed_tasks,
        jobs.succeed_tasks,
    ];
    let counts = counts.map(Option::unwrap_or_default);
    let ids = jobs.job_ids.unwrap_or_default();
    let each = ids.into_iter().enumerate().map(|(i, id)| {
        let count = |which: usize| counts[which].get(i).copied().unwrap_or_default();
        JobProgress {
            id,
            total_tasks: count(0),
            running_tasks: count(1),
            failed_tasks: count(2),
            succeed_tasks: count(3),
        }
    });
    each.filter(|job| job.total_tasks > 0).collect()
}
