//! `/api/v1/changes`: a stream of changes.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use utoipa::OpenApi;

use super::StatusName;
use crate::query::{ChangedTask, Watermark, status_named};
use crate::serve::app::App;
use crate::serve::caller::Caller;
use crate::serve::live::{Refused, Scope};
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;
use crate::serve::routes::Routes;

/// `Retry-After` when there are too many streams or the database is unavailable.
const COME_BACK: Duration = Duration::from_secs(5);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx not to buffer the stream.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[derive(OpenApi)]
#[openapi(paths(changes), components(schemas(ChangedTask)))]
struct Doc;

pub(super) fn routes() -> Routes {
    Routes::of::<Doc>().get::<__path_changes, _>(changes)
}

/// Changes of tasks, as an endless stream of server-sent events.
///
/// `tasks`: `{"items": [...], "left": [...], "watermark": {...}}`. `items` are changed tasks that match the filters,
/// with their current values. `left` are the exec ids of tasks that the client may show and that no longer match. If
/// several events belong together, only the last one has a `watermark`. Resources, and whether a task is silent or
/// stalled, are not included: query the list for them. `reset`: `{"watermark": {...}}`. Reload what you show; the
/// changes after this watermark follow. Comments keep the connection alive. The id of an event is its watermark. A
/// client that reads too slowly is disconnected and resumes from its last event id. If an ended task ends again, for
/// example because its engine repeats its reports, the change arrives up to half a minute late, and possibly twice.
/// Removals by `consumer expire` are not reported.
#[utoipa::path(
    get,
    path = "/api/v1/changes",
    tag = "tasks",
    params(
        ("since" = Option<String>, Query, example = "0:123,1:99", description = "The watermark of the answer that the client shows: the stream starts after it. Default: the last poll of the tables, at most 15 s ago"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event; takes precedence over `since`"),
        ("status" = Option<Vec<StatusName>>, Query, description = "One of these statuses (repeatable)"),
        ("running" = Option<bool>, Query, description = "Neither a final status nor Unknown"),
        ("user" = Option<String>, Query, min_length = 1),
        ("engine_type" = Option<String>, Query, min_length = 1),
        ("engine_instance" = Option<String>, Query, min_length = 1),
        ("job_id" = Option<String>, Query, min_length = 1),
        ("exec_id_prefix" = Option<String>, Query, min_length = 1),
    ),
    responses(
        (status = OK, content_type = "text/event-stream", body = String),
        Problem,
        (status = SERVICE_UNAVAILABLE, body = Problem, content_type = "application/problem+json", description = "Too many streams, or the database is unavailable: see Retry-After"),
    )
)]
async fn changes(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    mut parameters: Parameters,
) -> Result<Response, Problem> {
    let mut since = parameters.read("since", str::parse::<Watermark>);
    if let Some(last) = headers.get(LAST_EVENT_ID) {
        match last.to_str().unwrap_or("?").parse() {
            Ok(last) => since = Some(last),
            Err(why) => parameters.refuse("Last-Event-ID", why),
        }
    }
    let status = parameters.all("status");
    for unknown in status.iter().filter(|name| status_named(name).is_none()) {
        parameters.refuse("status", format!("unknown status {unknown:?}"));
    }
    let scope = Scope {
        user: parameters.text("user"),
        engine_type: parameters.text("engine_type"),
        engine_instance: parameters.text("engine_instance"),
        job_id: parameters.text("job_id"),
        exec_id_prefix: parameters.text("exec_id_prefix"),
        status,
        running: parameters.flag("running"),
    };
    parameters.end()?;
    let scope = Scope {
        user: caller.narrow(scope.user)?,
        ..scope
    };
    let client = app
        .live
        .join(since, scope)
        .await
        .map_err(|refused| match refused {
            Refused::TooManyStreams => {
                let detail = "too many clients follow the changes; retry later, or poll the list";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(COME_BACK)
            }
            Refused::Unavailable => Problem::unavailable(),
        })?;
    let events = stream::unfold(client, async |mut client| {
        let bytes = client.next().await?;
        Some((Ok::<_, Infallible>(bytes), client))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (X_ACCEL_BUFFERING, "no"),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}
