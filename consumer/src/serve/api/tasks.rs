//! `/api/v1/tasks/{exec_id}`: a task.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures_util::FutureExt;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};

use crate::query::{TaskDetails, Watermark};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

/// So many reports of a task are told, unless asked otherwise.
const REPORTS: u32 = 20;
const REPORTS_MAX: u32 = 1000;

#[derive(OpenApi)]
#[openapi(paths(one))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>().get::<__path_one, _>(one)
}

/// A task, as the tables were at the watermark.
#[derive(Serialize, ToSchema)]
struct TaskAnswer {
    #[serde(flatten)]
    details: TaskDetails,
    watermark: Watermark,
}

/// A task: its state, what it holds, its sequences and its newest reports.
#[utoipa::path(
    get,
    path = "/api/v1/tasks/{exec_id}",
    tag = "tasks",
    params(
        ("exec_id" = String, Path, description = "The exec task's id"),
        ("at" = Option<String>, Query, format = DateTime, description = "As it was known at this time, by the engine's clock"),
        ("reports" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many of its newest reports; 20 by default"),
    ),
    responses(
        (status = OK, body = TaskAnswer),
        (status = BAD_REQUEST, body = Problem, content_type = "application/problem+json"),
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "There is no such task, or it had not reported by then, or it is not one of the caller's"),
    )
)]
async fn one(
    State(app): State<App>,
    Path(exec_id): Path<String>,
    caller: Caller,
    mut parameters: Parameters,
) -> Result<Answer, Problem> {
    let at = parameters.time("at");
    let reports = parameters.number("reports", 1, REPORTS_MAX);
    parameters.end()?;
    let absent = format!("there is no exec task {exec_id:?} by that time, or it is not yours");
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
