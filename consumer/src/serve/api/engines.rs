//! `/api/v1/engines`: engine instances.

use axum::extract::State;
use axum::http::Uri;
use futures_util::FutureExt;
use service::time::duration;
use utoipa::OpenApi;

use super::tasks::page_answer;
use crate::query::{DEFAULT_GAP, DEFAULT_LIMIT, EnginePage, EnginesQuery, LARGEST_LIMIT};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

#[derive(OpenApi)]
#[openapi(paths(engines))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>().get::<__path_engines, _>(engines)
}

/// Engines whose tasks reported between two times, in pages: users, tasks, and busy time.
///
/// An engine is busy while at least one of its exec tasks has reported and has not ended. A task without an end counts
/// for at most `longest_gap` after its last report. Between such times the engine is idle.
#[utoipa::path(
    get,
    path = "/api/v1/engines",
    tag = "engines",
    params(
        ("engine_instance" = Option<String>, Query, min_length = 1, description = "HOST:PORT"),
        ("engine_type" = Option<String>, Query, min_length = 1, description = "As in spark"),
        ("user" = Option<String>, Query, min_length = 1, description = "Only exec tasks of this user; others are not counted"),
        ("from" = Option<String>, Query, format = DateTime, description = "From this time on, by the engines' clocks; default: 24 hours before `to`"),
        ("to" = Option<String>, Query, format = DateTime, description = "Up to this time, exclusive; default: now"),
        ("longest_gap" = Option<String>, Query, pattern = "^([1-9][0-9]{0,5}ms|([1-9][0-9]{0,2}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s|([1-9]|[1-5][0-9]|60)m|1h)$", description = "How long an exec task without an end counts after its last report, as in 90s; default: 5m, at most 1h"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "Maximum number of engines; default: 100"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "`next` of the previous page; all other parameters except `limit` must be the same"),
    ),
    responses(
        (status = OK, body = EnginePage, headers(("Link" = String, description = "The next page, rel=\"next\", if there is one"))),
        Problem,
        (status = FORBIDDEN, body = Problem, content_type = "application/problem+json", description = "The caller may not see another user's tasks"),
    )
)]
async fn engines(
    State(app): State<App>,
    uri: Uri,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    let query = engines_query(parameters, &caller)?;
    let asked = app
        .readers
        .ask(move |reader| async move { reader.engines(&query).await }.boxed());
    let page = asked.await?;
    page_answer(&page, page.next.as_deref(), &uri)
}

/// The query for engines in a request, limited to the tasks that the caller may see.
///
/// # Errors
/// 400 if a parameter is invalid, 403 if another user's tasks are requested.
pub(in crate::serve) fn engines_query(
    mut parameters: Parameters,
    caller: &Caller,
) -> Result<EnginesQuery, Problem> {
    let engine_instance = parameters.text("engine_instance");
    let engine_type = parameters.text("engine_type");
    let user = parameters.text("user");
    let (from, to) = (parameters.time("from"), parameters.time("to"));
    let longest_gap = parameters.read("longest_gap", duration);
    let limit = parameters.number("limit", 1, LARGEST_LIMIT);
    let cursor = parameters.text("cursor");
    parameters.end()?;
    Ok(EnginesQuery {
        engine_instance,
        engine_type,
        user: caller.narrow(user)?,
        from,
        to,
        longest_gap: longest_gap.unwrap_or(DEFAULT_GAP),
        limit: limit.unwrap_or(DEFAULT_LIMIT),
        cursor,
    })
}
