//! `/api/v1/usage`: resource usage between two times.

use axum::extract::State;
use clap::ValueEnum;
use futures_util::FutureExt;
use service::time::duration;
use utoipa::OpenApi;

use crate::query::{
    DEFAULT_GAP, DEFAULT_USAGE_LIMIT, MAX_USAGE_LIMIT, Usage, UsageBy, UsageEvery, UsageQuery,
};
use crate::serve::answer::Answer;
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

#[derive(OpenApi)]
#[openapi(paths(usage))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>().get::<__path_usage, _>(usage)
}

/// Core-seconds, memory byte-seconds and instance-seconds between two times.
///
/// A report states an application's resources until the next report that names the application, whichever exec task
/// sends it, but for at most `longest_gap`. Later time is unknown and not counted. The first final report of an exec
/// task ends its usage.
#[utoipa::path(
    get,
    path = "/api/v1/usage",
    tag = "usage",
    params(
        ("from" = Option<String>, Query, format = DateTime, description = "From this time on, by the engines' clocks; default: 24 hours before `to`"),
        ("to" = Option<String>, Query, format = DateTime, description = "Up to this time, exclusive; default: now"),
        ("by" = Option<UsageBy>, Query, description = "Groups; default: `user`"),
        ("every" = Option<UsageEvery>, Query, description = "Periods; hours and days are in UTC; default: `whole`"),
        ("user" = Option<String>, Query, min_length = 1, description = "Only exec tasks of this user"),
        ("longest_gap" = Option<String>, Query, pattern = "^([1-9][0-9]{0,5}ms|([1-9][0-9]{0,2}|[12][0-9]{3}|3[0-5][0-9]{2}|3600)s|([1-9]|[1-5][0-9]|60)m|1h)$", description = "Maximum time for which a report counts, as in 90s; default: 5m, at most 1h"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1_000, description = "Maximum number of rows per period, besides one for all others; default: 100"),
    ),
    responses(
        (status = OK, body = Usage),
        Problem,
        (status = FORBIDDEN, body = Problem, content_type = "application/problem+json", description = "The caller may not see another user's tasks"),
    )
)]
async fn usage(
    State(app): State<App>,
    caller: Caller,
    parameters: Parameters,
) -> Result<Answer, Problem> {
    let query = usage_query(parameters, &caller)?;
    let asked = app
        .readers
        .ask(move |reader| async move { reader.usage(&query).await }.boxed());
    Answer::of(&asked.await?)
}

/// The query for usage in a request, limited to the tasks that the caller may see.
///
/// # Errors
/// 400 if a parameter is invalid, 403 if another user's tasks are requested.
pub(in crate::serve) fn usage_query(
    mut parameters: Parameters,
    caller: &Caller,
) -> Result<UsageQuery, Problem> {
    let (from, to) = (parameters.time("from"), parameters.time("to"));
    let by = parameters.read("by", |text| {
        let expected = "expected user, queue, engine_type, job or application";
        UsageBy::from_str(text, false).map_err(|_| expected)
    });
    let every = parameters.read("every", |text| {
        UsageEvery::from_str(text, false).map_err(|_| "expected hour, day or whole")
    });
    let user = parameters.text("user");
    let longest_gap = parameters.read("longest_gap", duration);
    let limit = parameters.number("limit", 1, MAX_USAGE_LIMIT);
    parameters.end()?;
    Ok(UsageQuery {
        from,
        to,
        by: by.unwrap_or(UsageBy::User),
        every: every.unwrap_or(UsageEvery::Whole),
        user: caller.narrow(user)?,
        longest_gap: longest_gap.unwrap_or(DEFAULT_GAP),
        limit: limit.unwrap_or(DEFAULT_USAGE_LIMIT),
    })
}
