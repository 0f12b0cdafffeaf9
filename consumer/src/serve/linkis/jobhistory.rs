//! `/jobhistory/…`: lists of tasks, and one task.

use axum::extract::{Path, State};
use axum::http::Uri;
use futures_util::FutureExt;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::entrance::absent;
use super::find::find;
use super::message::{Message, Refused};
use super::parameters::{ListRequest, listed, undone};
use super::task::{BriefTask, HistoryTask, OneTask};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

#[derive(OpenApi)]
#[openapi(paths(one, list, list_undone))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>()
        .get::<__path_one, _>(one)
        .get::<__path_list, _>(list)
        .get::<__path_list_undone, _>(list_undone)
}

/// `data` of one task.
#[derive(Serialize, ToSchema)]
struct One {
    task: OneTask,
}

/// `data` of a page.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Page {
    tasks: Vec<HistoryTask>,
    /// Number of tasks on all pages, despite its name.
    total_page: u64,
}

/// A task, by its job's id or its own.
#[utoipa::path(
    get,
    path = "/api/rest_j/v1/jobhistory/{id}/get",
    tag = "linkis",
    params(
        ("id" = String, Path, description = "The job's id (taskID), or the exec task's"),
        ("brief" = Option<bool>, Query, description = "Only some fields"),
    ),
    responses((status = OK, body = Message<One>), Refused)
)]
async fn one(
    State(app): State<App>,
    uri: Uri,
    Path(id): Path<String>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    let mut parameters = parameters.lenient();
    let is_brief = parameters.flag("brief");
    parameters.end()?;
    let absent = absent(&id);
    let asked = app.readers.ask(move |reader| {
        async move {
            let Some(item) = find(reader, &id, caller.scope()).await? else {
                return Ok(None);
            };
            let last = reader.last_progress(&item.exec_id).await?;
            let details = match is_brief {
                true => None,
                false => reader.task(&item.exec_id, None, 1).await?,
            };
            Ok(Some((item, last.map(|last| last.progress), details)))
        }
        .boxed()
    });
    let (item, progress, details) = asked.await?.ok_or(absent)?;
    let task = match is_brief {
        true => OneTask::Brief(Box::new(BriefTask::of(item, progress))),
        false => OneTask::Whole(Box::new(HistoryTask::of(item, progress, details.as_ref()))),
    };
    Message::ok(&uri, One { task })
}

/// Tasks in numbered pages, newest first.
#[utoipa::path(
    get,
    path = "/api/rest_j/v1/jobhistory/list",
    tag = "linkis",
    params(
        ("startDate" = Option<i64>, Query, minimum = 0, maximum = 253_402_207_200_000_i64, description = "First report at this time or later, in ms since 1970"),
        ("endDate" = Option<i64>, Query, minimum = 0, maximum = 253_402_207_200_000_i64, description = "First report at this time or earlier, in ms since 1970; if equal to startDate: within a day of it"),
        ("status" = Option<String>, Query, pattern = "^((Unknown|Inited|WaitForRetry|Scheduled|Running|Succeed|Failed|Cancelled|Timeout)(,(Unknown|Inited|WaitForRetry|Scheduled|Running|Succeed|Failed|Cancelled|Timeout))*)?$", description = "One of these statuses, separated by commas"),
        ("pageNow" = Option<u32>, Query, minimum = 1, maximum = 100001, description = "Page number; default: 1. At most 100,000 rows may precede it"),
        ("pageSize" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "20 by default"),
        ("taskID" = Option<String>, Query, description = "The job's id"),
        ("executeApplicationName" = Option<String>, Query, description = "The engine's type"),
        ("engineInstance" = Option<String>, Query, description = "HOST:PORT"),
        ("proxyUser" = Option<String>, Query, description = "User of the task's engine"),
    ),
    responses((status = OK, body = Message<Page>), Refused)
)]
async fn list(
    State(app): State<App>,
    uri: Uri,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    page(&app, &uri, listed(parameters, &caller)?).await
}

/// Tasks that have not ended; by default those of the last day.
#[utoipa::path(
    get,
    path = "/api/rest_j/v1/jobhistory/listundonetasks",
    tag = "linkis",
    params(
        ("startDate" = Option<i64>, Query, minimum = 0, maximum = 253_402_207_200_000_i64, description = "First report at this time or later, in ms since 1970; default: a day before endDate"),
        ("endDate" = Option<i64>, Query, minimum = 0, maximum = 253_402_207_200_000_i64, description = "First report at this time or earlier, in ms since 1970; default: now"),
        ("status" = Option<String>, Query, pattern = "^((Unknown|Inited|WaitForRetry|Scheduled|Running|Succeed|Failed|Cancelled|Timeout)(,(Unknown|Inited|WaitForRetry|Scheduled|Running|Succeed|Failed|Cancelled|Timeout))*)?$", description = "One of these statuses, separated by commas; default: Running,Inited,Scheduled"),
        ("pageNow" = Option<u32>, Query, minimum = 1, maximum = 100001, description = "Page number; default: 1. At most 100,000 rows may precede it"),
        ("pageSize" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "20 by default"),
        ("engineType" = Option<String>, Query, description = "The engine's type"),
    ),
    responses((status = OK, body = Message<Page>), Refused)
)]
async fn list_undone(
    State(app): State<App>,
    uri: Uri,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    page(&app, &uri, undone(parameters, &caller)?).await
}

async fn page(app: &App, uri: &Uri, asked: ListRequest) -> Result<Answer, Problem> {
    let ListRequest { query, skip } = asked;
    let read = app.readers.ask(move |reader| {
        async move {
            let page = reader.numbered_page(&query, skip).await?;
            Ok((page.items, reader.count(&query).await?))
        }
        .boxed()
    });
    let (items, total_page) = read.await?;
    let tasks = items.into_iter().map(|item| {
        let progress = item.progress;
        HistoryTask::of(item, progress, None)
    });
    let tasks = tasks.collect();
    Message::ok(uri, Page { tasks, total_page })
}
