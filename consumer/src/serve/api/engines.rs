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

/// The engines that were heard of between two times, a page at a time: who uses them, what they run, how busy they were.
///
/// An engine is busy while at least one of its exec tasks has reported and has not ended; one without an end counts for
/// at most `longest_gap` after its last report. It is idle between such times.
#[utoipa::path(
    get,
    path = "/api/v1/engines",
    tag = "engines",
    params(
        ("engine_instance" = Option<String>, Query, min_length = 1, description = "HOST:PORT"),
        ("engine_type" = Option<String>, Query, min_length = 1, description = "As in spark"),
        ("user" = Option<String>, Query, min_length = 1, description = "Only exec tasks of this user; of an engine no others count"),
        ("from" = Option<String>, Query, format = DateTime, description = "From this time on, by the engines' clocks; 24 hours before `to` by default"),
        ("to" = Option<String>, Query, format = DateTime, description = "Up to this time; now by default"),
        ("longest_gap" = Option<String>, Query, pattern = "^([1-9][0-9]{0,5}ms|([1-9][0-9]{0,2}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s|([1-9]|[1-5][0-9]|60)m|1h)$", description = "An exec task without an end counts for at most so long after its last report, as in 90s; 5m by default, at most 1h"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many engines; 100 by default"),
        ("cursor" = Option<String>, Query, min_length = 1, description = "next of the page before, which was asked for with the same parameters but limit"),
    ),
    responses(
        (status = OK, body = EnginePage, headers(("Link" = String, description = "The next page, rel=\"next\", if there is one"))),
        Problem,
        (status = FORBIDDEN, body = Problem, content_type = "application/problem+json", description = "Another user's tasks, which the caller does not see"),
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

/// The list of engines that a request asks for, by the tasks that the caller may see.
///
/// # Errors
/// 400 if its parameters are no good, 403 if it asks for another user's tasks.
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
