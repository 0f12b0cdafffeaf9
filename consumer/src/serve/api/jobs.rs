//! `/api/v1/jobs` and `/api/v1/jobs/{job_id}`: exec tasks aggregated by job.

use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use futures_util::FutureExt;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use super::tasks::page_answer;
use crate::query::{DEFAULT_LIMIT, JobItem, JobPage, JobsQuery, LARGEST_LIMIT, Watermark};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

#[derive(OpenApi)]
#[openapi(paths(list, one))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>()
        .get::<__path_list, _>(list)
        .get::<__path_one, _>(one)
}

/// A job, as of the watermark.
#[derive(Serialize, ToSchema)]
struct JobAnswer {
    #[serde(flatten)]
    job: JobItem,
    watermark: Watermark,
}

/// Jobs, in pages; the latest to start first.
#[utoipa::path(
    get,
    path = "/api/v1/jobs",
    tag = "jobs",
    params(
        ("job_id" = Option<String>, Query, min_length = 1, description = "Only this job"),
        ("user" = Option<String>, Query, min_length = 1, description = "Only exec tasks of this user; others are not counted"),
        ("running" = Option<bool>, Query, description = "Only jobs with an exec task whose status is neither final nor Unknown"),
        ("at" = Option<String>, Query, format = DateTime, description = "As known at this time, by the engine's clock; default: now"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Maximum number of jobs; default: 100"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next` of the previous page; all other parameters except `limit` must be the same"),
    ),
    responses(
        (status = OK, body = JobPage, headers(("Link" = String, description = "The next page, rel=\"next\", if there is one"))),
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
    let page = ask(&app, jobs_query(parameters, &caller)?).await?;
    page_answer(&page, page.next.as_deref(), &uri)
}

/// The query for jobs in a request, limited to the tasks that the caller may see.
///
/// # Errors
/// 400 if a parameter is invalid, 403 if another user's jobs are requested.
pub(in crate::serve) fn jobs_query(
    mut parameters: Parameters,
    caller: &Caller,
) -> Result<JobsQuery, Problem> {
    let job_id = parameters.text("job_id");
    let user = parameters.text("user");
    let running = parameters.flag("running");
    let at = parameters.time("at");
    let limit = parameters.number("limit", 1, LARGEST_LIMIT);
    let cursor = parameters.text("cursor");
    parameters.end()?;
    Ok(JobsQuery {
        job_id,
        user: caller.narrow(user)?,
        running,
        at,
        limit: limit.unwrap_or(DEFAULT_LIMIT),
        cursor,
    })
}

/// A job: its exec tasks, limited to those that the caller may see.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{job_id}",
    tag = "jobs",
    params(
        ("job_id" = String, Path, description = "The job's id"),
        ("at" = Option<String>, Query, format = DateTime, description = "As known at this time, by the engine's clock; default: now"),
    ),
    responses(
        (status = OK, body = JobAnswer),
        Problem,
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "No exec task of this job had reported by then, or the caller may not see it"),
    )
)]
async fn one(
    State(app): State<App>,
    Path(job_id): Path<String>,
    caller: Caller,
    mut parameters: Parameters,
) -> Result<Answer, Problem> {
    let at = parameters.time("at");
    parameters.end()?;
    let absent = format!("no job {job_id:?} had reported by then, or you may not see it");
    let query = JobsQuery {
        job_id: Some(job_id),
        user: caller.narrow(None)?,
        running: false,
        at,
        limit: 1,
        cursor: None,
    };
    let JobPage {
        items, watermark, ..
    } = ask(&app, query).await?;
    let job = items.into_iter().next();
    let job = job.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, absent))?;
    Answer::of(&JobAnswer { job, watermark })
}

async fn ask(app: &App, query: JobsQuery) -> Result<JobPage, Problem> {
    let asked = app
        .readers
        .ask(move |reader| async move { reader.jobs(&query).await }.boxed());
    asked.await
}
