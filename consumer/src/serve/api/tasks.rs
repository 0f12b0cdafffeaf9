//! `/api/v1/tasks` and `/api/v1/tasks/{exec_id}`: lists of tasks, and one task.

use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, Uri, header};
use clap::ValueEnum;
use futures_util::FutureExt;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use service::time::duration;
use utoipa::{OpenApi, ToSchema};

use super::StatusName;
use crate::query::{
    DEFAULT_LIMIT, LARGEST_LIMIT, TaskDetails, TaskFilter, TaskOrder, TaskPage, TaskQuery,
    Thresholds, Watermark,
};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

/// Default number of reports of a task.
const REPORTS: u32 = 20;
const REPORTS_MAX: u32 = 1000;

#[derive(OpenApi)]
#[openapi(
    paths(list, one, one_by_parameter),
    components(schemas(StatusName, TaskOrder))
)]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>()
        .get::<__path_list, _>(list)
        .get::<__path_one, _>(one)
        .get::<__path_one_by_parameter, _>(one_by_parameter)
}

/// Tasks that satisfy every given condition, in pages.
#[utoipa::path(
    get,
    path = "/api/v1/tasks",
    tag = "tasks",
    params(
        ("status" = Option<Vec<StatusName>>, Query, description = "One of these statuses (repeatable)"),
        ("running" = Option<bool>, Query, description = "Neither a final status nor Unknown"),
        ("user" = Option<String>, Query, min_length = 1, description = "User of the task's engine"),
        ("engine_type" = Option<String>, Query, min_length = 1, description = "As in spark"),
        ("engine_instance" = Option<String>, Query, min_length = 1, description = "HOST:PORT"),
        ("job_id" = Option<String>, Query, min_length = 1, description = "Job that the exec task belongs to"),
        ("exec_id_prefix" = Option<String>, Query, min_length = 1, description = "Prefix of the exec task's id"),
        ("silent" = Option<bool>, Query, description = "Not ended, and no report for `silent_after`"),
        ("stalled" = Option<bool>, Query, description = "Reports arrive, but nothing has changed for `stalled_after`"),
        ("started_after" = Option<String>, Query, format = DateTime, description = "First report at this time or later"),
        ("started_before" = Option<String>, Query, format = DateTime, description = "First report before this time"),
        ("reported_after" = Option<String>, Query, format = DateTime, description = "Last report at this time or later"),
        ("reported_before" = Option<String>, Query, format = DateTime, description = "Last report before this time"),
        ("ended_after" = Option<String>, Query, format = DateTime, description = "Ended at this time or later"),
        ("ended_before" = Option<String>, Query, format = DateTime, description = "Ended before this time"),
        ("order" = Option<TaskOrder>, Query, description = "Sort key; default: `reported`. Tasks without a value come last"),
        ("descending" = Option<bool>, Query, description = "Largest or latest first; default: true"),
        ("at" = Option<String>, Query, format = DateTime, description = "As known at this time, by the engine's clock; default: now"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Maximum number of tasks; default: 100"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next` of the previous page; all other parameters except `limit` must be the same"),
        ("silent_after" = Option<String>, Query, pattern = "^[1-9][0-9]{0,4}(ms|s|m|h)$", description = "As in 90s; default: 60s or five times the task's usual interval, whichever is longer"),
        ("stalled_after" = Option<String>, Query, pattern = "^[1-9][0-9]{0,4}(ms|s|m|h)$", description = "As in 10m; 15m by default"),
    ),
    responses(
        (status = OK, body = TaskPage, headers(("Link" = String, description = "The next page, rel=\"next\", if there is one"))),
        Problem,
        (status = FORBIDDEN, body = Problem, content_type = "application/problem+json", description = "The caller may not see another user's tasks"),
    )
)]
async fn list(
    State(app): State<App>,
    uri: Uri,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    let query = task_query(parameters, &caller)?;
    let asked = app
        .readers
        .ask(move |reader| async move { reader.page(&query).await }.boxed());
    let page = asked.await?;
    page_answer(&page, page.next.as_deref(), &uri)
}

/// A page of a list, with a link to the next one.
pub(super) fn page_answer(
    page: &impl Serialize,
    next: Option<&str>,
    uri: &Uri,
) -> Result<Answer, Problem> {
    let answer = Answer::of(page)?;
    let link = next.and_then(|next| next_page(uri, next));
    Ok(match link {
        Some(link) => answer.with(header::LINK, link),
        None => answer,
    })
}

/// The query for tasks in a request, limited to those that the caller may see.
///
/// # Errors
/// 400 if a parameter is invalid, 403 if another user's tasks are requested.
pub(in crate::serve) fn task_query(
    mut parameters: Parameters,
    caller: &Caller,
) -> Result<TaskQuery, Problem> {
    let order = |text: &str| {
        let expected = "expected started, reported, duration, progress, memory or cores";
        TaskOrder::from_str(text, false).map_err(|_| expected)
    };
    let thresholds = Thresholds::default();
    let mut query = TaskQuery {
        filter: TaskFilter {
            status: parameters.all("status"),
            running: parameters.flag("running"),
            user: parameters.text("user"),
            engine_type: parameters.text("engine_type"),
            engine_instance: parameters.text("engine_instance"),
            job_id: parameters.text("job_id"),
            exec_id_prefix: parameters.text("exec_id_prefix"),
            silent: parameters.flag("silent"),
            stalled: parameters.flag("stalled"),
            started_after: parameters.time("started_after"),
            started_before: parameters.time("started_before"),
            reported_after: parameters.time("reported_after"),
            reported_before: parameters.time("reported_before"),
            ended_after: parameters.time("ended_after"),
            ended_before: parameters.time("ended_before"),
        },
        order: parameters.read("order", order).unwrap_or_default(),
        descending: parameters.truth("descending").unwrap_or(true),
        at: parameters.time("at"),
        limit: parameters
            .number("limit", 1, LARGEST_LIMIT)
            .unwrap_or(DEFAULT_LIMIT),
        cursor: parameters.text("cursor"),
        thresholds: Thresholds {
            silent_after: parameters.read("silent_after", duration),
            stalled_after: parameters
                .read("stalled_after", duration)
                .unwrap_or(thresholds.stalled_after),
        },
    };
    parameters.end()?;
    query.filter.user = caller.narrow(query.filter.user)?;
    Ok(query)
}

/// `Link` (RFC 8288) to the page of a cursor: the same URL with another cursor.
fn next_page(uri: &Uri, cursor: &str) -> Option<HeaderValue> {
    let pairs = uri.query().unwrap_or_default().split('&');
    let of_cursor = |pair: &&str| {
        let name = pair.split('=').next().unwrap_or_default();
        name.is_empty() || percent_decode_str(name).eq(*b"cursor")
    };
    let mut pairs: Vec<&str> = pairs.filter(|pair| !of_cursor(pair)).collect();
    let cursor = format!("cursor={cursor}");
    pairs.push(&cursor);
    let link = format!("<{}?{}>; rel=\"next\"", uri.path(), pairs.join("&"));
    HeaderValue::from_str(&link).ok()
}

/// A task, as of the watermark.
#[derive(Serialize, ToSchema)]
struct TaskAnswer {
    #[serde(flatten)]
    details: TaskDetails,
    watermark: Watermark,
}

/// A task: its state, resources, sequences and newest reports.
#[utoipa::path(
    get,
    path = "/api/v1/tasks/{exec_id}",
    tag = "tasks",
    params(
        ("exec_id" = String, Path, description = "The exec task's id"),
        ("at" = Option<String>, Query, format = DateTime, description = "As known at this time, by the engine's clock; default: now"),
        ("reports" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Maximum number of its newest reports; default: 20"),
    ),
    responses(
        (status = OK, body = TaskAnswer),
        Problem,
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "There is no such task, it had not reported by then, or the caller may not see it"),
    )
)]
async fn one(
    State(app): State<App>,
    Path(exec_id): Path<String>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    task(&app, exec_id, &caller, parameters).await
}

/// A task, as `/api/v1/tasks/{exec_id}` returns it. URL parsers remove the path segments `.` and `..`: tasks with these ids
/// have no other path.
#[utoipa::path(
    get,
    path = "/api/v1/task",
    tag = "tasks",
    params(
        ("exec_id" = String, Query, min_length = 1, description = "The exec task's id"),
        ("at" = Option<String>, Query, format = DateTime, description = "As known at this time, by the engine's clock; default: now"),
        ("reports" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Maximum number of its newest reports; default: 20"),
    ),
    responses(
        (status = OK, body = TaskAnswer),
        Problem,
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "There is no such task, it had not reported by then, or the caller may not see it"),
    )
)]
async fn one_by_parameter(
    State(app): State<App>,
    caller: Caller,
    mut parameters: Parameters,
) -> Result<Answer, Problem> {
    let exec_id = parameters.required("exec_id");
    task(&app, exec_id, &caller, parameters).await
}

async fn task(
    app: &App,
    exec_id: String,
    caller: &Caller,
    mut parameters: Parameters,
) -> Result<Answer, Problem> {
    let at = parameters.time("at");
    let reports = parameters.number("reports", 1, REPORTS_MAX);
    parameters.end()?;
    let absent = format!("no exec task {exec_id:?} had reported by then, or you may not see it");
    let asked = app.readers.ask(move |reader| {
        async move {
            let details = reader
                .task(&exec_id, at, reports.unwrap_or(REPORTS))
                .await?;
            Ok((details, reader.watermark().await?))
        }
        .boxed()
    });
    let (details, watermark) = asked.await?;
    let details = details.filter(|details| caller.sees(&details.task.engine_user));
    let details = details.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, absent))?;
    Answer::of(&TaskAnswer { details, watermark })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_has_the_same_filters() {
        for (uri, link) in [
            ("/tasks", "</tasks?cursor=c-_>; rel=\"next\""),
            (
                "/tasks?user=a%20b&cursor=old",
                "</tasks?user=a%20b&cursor=c-_>; rel=\"next\"",
            ),
            (
                "/tasks?%63ursor=old&limit=3",
                "</tasks?limit=3&cursor=c-_>; rel=\"next\"",
            ),
        ] {
            assert_eq!(next_page(&uri.parse().unwrap(), "c-_").unwrap(), link);
        }
    }
}
