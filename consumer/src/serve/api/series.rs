//! `/api/v1/tasks/{exec_id}/series`: a task's values over time.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use futures_util::FutureExt;
use utoipa::OpenApi;

use crate::query::{DEFAULT_POINTS, MAX_POINTS, SeriesQuery, TaskSeries};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

#[derive(OpenApi)]
#[openapi(paths(series, series_by_parameter))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>()
        .get::<__path_series, _>(series)
        .get::<__path_series_by_parameter, _>(series_by_parameter)
}

/// A task's progress, memory, cores and instances over time, metrics by name, and its status changes.
#[utoipa::path(
    get,
    path = "/api/v1/tasks/{exec_id}/series",
    tag = "tasks",
    params(
        ("exec_id" = String, Path, description = "The exec task's id"),
        ("from" = Option<String>, Query, format = DateTime, description = "Only reports at this time or later, by the engine's clock"),
        ("to" = Option<String>, Query, format = DateTime, description = "Only reports at this time or earlier"),
        ("points" = Option<u32>, Query, minimum = 4, maximum = 10_000, description = "Maximum number of points of each series; default: 500. If there are more reports, the least and the greatest value of each of equal time intervals are kept"),
        ("metric" = Option<Vec<String>>, Query, max_items = 20, description = "Name of a metric (repeatable)"),
    ),
    responses(
        (status = OK, body = TaskSeries),
        Problem,
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "There is no such task, or the caller may not see it"),
    )
)]
async fn series(
    State(app): State<App>,
    Path(exec_id): Path<String>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    series_of(&app, exec_id, &caller, parameters).await
}

/// The same as `/api/v1/tasks/{exec_id}/series`, for any id: see `/api/v1/task`.
#[utoipa::path(
    get,
    path = "/api/v1/task/series",
    tag = "tasks",
    params(
        ("exec_id" = String, Query, min_length = 1, description = "The exec task's id"),
        ("from" = Option<String>, Query, format = DateTime, description = "Only reports at this time or later, by the engine's clock"),
        ("to" = Option<String>, Query, format = DateTime, description = "Only reports at this time or earlier"),
        ("points" = Option<u32>, Query, minimum = 4, maximum = 10_000, description = "Maximum number of points of each series; default: 500. If there are more reports, the least and the greatest value of each of equal time intervals are kept"),
        ("metric" = Option<Vec<String>>, Query, max_items = 20, description = "Name of a metric (repeatable)"),
    ),
    responses(
        (status = OK, body = TaskSeries),
        Problem,
        (status = NOT_FOUND, body = Problem, content_type = "application/problem+json", description = "There is no such task, or the caller may not see it"),
    )
)]
async fn series_by_parameter(
    State(app): State<App>,
    caller: Caller,
    mut parameters: Parameters,
) -> Result<Answer, Problem> {
    let exec_id = parameters.required("exec_id");
    series_of(&app, exec_id, &caller, parameters).await
}

async fn series_of(
    app: &App,
    exec_id: String,
    caller: &Caller,
    mut parameters: Parameters,
) -> Result<Answer, Problem> {
    let (from, to) = (parameters.time("from"), parameters.time("to"));
    let points = parameters.number("points", 4, MAX_POINTS);
    let metrics = parameters.all("metric");
    parameters.end()?;
    let absent = format!("there is no exec task {exec_id:?}, or you may not see it");
    let query = SeriesQuery {
        exec_id,
        user: caller.scope().map(str::to_owned),
        from,
        to,
        points: points.unwrap_or(DEFAULT_POINTS),
        metrics,
    };
    let asked = app
        .readers
        .ask(move |reader| async move { reader.series(&query).await }.boxed());
    let found = asked.await?;
    Answer::of(&found.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, absent))?)
}
