//! Errors of the HTTP API, as problem details (RFC 9457).

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use crate::query::QueryError;
use crate::store::StoreError;

/// The media type of a problem.
pub(crate) const PROBLEM_JSON: &str = "application/problem+json";
/// Maximum length of an error's text, in bytes.
const DETAIL_BYTES: usize = 1 << 10;
/// `Retry-After` while the database is unavailable.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// An error answer (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `about:blank`: the HTTP status defines the kind of problem.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(serialize_with = "code")]
    #[schema(value_type = u16)]
    status: StatusCode,
    /// What is wrong, and what to do.
    detail: String,
    /// The invalid parameters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<ParameterProblem>,
    #[serde(skip)]
    /// Boxed to keep `Result`s small.
    headers: Box<HeaderMap>,
}

/// An invalid parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct ParameterProblem {
    pub(crate) parameter: String,
    pub(crate) detail: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn code<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem with this status.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status,
            detail: detail.into(),
            errors: Vec::new(),
            headers: Box::default(),
        }
    }

    /// 400: invalid parameters.
    pub(crate) fn parameters(errors: Vec<ParameterProblem>) -> Self {
        let each: Vec<String> = errors
            .iter()
            .map(|error| format!("{}: {}", error.parameter, error.detail))
            .collect();
        Self {
            errors,
            ..Self::new(StatusCode::BAD_REQUEST, each.join("; "))
        }
    }

    /// 400: one invalid parameter.
    pub(crate) fn parameter(parameter: &str, detail: impl Into<String>) -> Self {
        Self::parameters(vec![ParameterProblem {
            parameter: parameter.to_owned(),
            detail: detail.into(),
        }])
    }

    /// Adds a header.
    pub(crate) fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds `Retry-After`.
    pub(crate) fn retry_after(self, pause: Duration) -> Self {
        self.with(header::RETRY_AFTER, pause.as_secs().max(1).into())
    }

    /// 503: the database is unavailable. Its error is only logged, because it may name hosts.
    pub(crate) fn unavailable() -> Self {
        let detail = "the database is unavailable; retry";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_AFTER)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }
}

/// The caller's view of a failed query. The database's own error is not part of it.
impl From<&QueryError> for Problem {
    fn from(error: &QueryError) -> Self {
        match error {
            QueryError::Expired { at, before, .. } => Self::parameter(
                "at",
                format!(
                    "history before {before} was removed, and with it the state at {at}; ask for {before} or later"
                ),
            ),
            QueryError::Cursor { .. } => Self::parameter("cursor", error.to_string()),
            QueryError::Parameter { name, why } => Self::parameter(name, why.clone()),
            error if error.is_too_long() => {
                let detail = "the query took too long; ask for less";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(RETRY_AFTER)
            }
            // The caller may not be allowed to see the task.
            QueryError::Unreadable { table, column, .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!(
                    "{table}.{column} of a task has an invalid value; the log names the task, and `consumer audit --repair` \
                     restores it"
                ),
            ),
            QueryError::Store {
                source: StoreError::Unreadable(_),
                ..
            } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the tables hold an invalid value; the log and `consumer audit` say more",
            ),
            QueryError::Store {
                source: StoreError::Refused(_),
                ..
            } => Self::new(
                StatusCode::BAD_REQUEST,
                "the database rejects a value of this request",
            ),
            QueryError::Store { .. } => Self::unavailable(),
        }
    }
}

/// Errors that every route may return.
impl IntoResponses for Problem {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let problems = [
            (
                StatusCode::BAD_REQUEST,
                "A parameter is invalid; `errors` lists each one",
            ),
            (
                StatusCode::UNAUTHORIZED,
                "Credentials are missing or invalid",
            ),
            (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many requests: see Retry-After",
            ),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "The database is unavailable or too slow: see Retry-After",
            ),
        ];
        let described = problems.map(|(status, what)| {
            let schema = Ref::from_schema_name(Self::name());
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new()
                .description(what)
                .content(PROBLEM_JSON, content);
            (status.as_str().to_owned(), response.build().into())
        });
        described.into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let content_type = [(header::CONTENT_TYPE, PROBLEM_JSON)];
        let (status, headers) = (self.status, *self.headers.clone());
        let problem = self.clone();
        let response = (status, headers, Json(self)).into_response();
        // After `Json`, which sets its own type.
        let mut response = (content_type, response).into_response();
        // For layers that render it in another format.
        response.extensions_mut().insert(problem);
        response
    }
}

/// Converts every other error to a problem, unless it is a page: unknown paths and methods, rejections by extractors,
/// and limits of layers.
pub(crate) async fn problems(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let status = response.status();
    if !(status.is_client_error() || status.is_server_error()) || is_whole(response.headers()) {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, DETAIL_BYTES).await.unwrap_or_default();
    let detail = match status {
        StatusCode::NOT_FOUND => "nothing is served at this path; see /openapi.json".to_owned(),
        StatusCode::SERVICE_UNAVAILABLE if text.is_empty() => {
            "the request timed out; retry".to_owned()
        }
        StatusCode::METHOD_NOT_ALLOWED => "this path is read-only: use GET or HEAD".to_owned(),
        _ => String::from_utf8_lossy(&text).into_owned(),
    };
    let mut problem = Problem::new(status, detail);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        problem = problem.retry_after(RETRY_AFTER);
    }
    for name in [header::ALLOW, header::RETRY_AFTER, header::WWW_AUTHENTICATE] {
        if let Some(value) = parts.headers.get(&name) {
            problem.headers.insert(name, value.clone());
        }
    }
    problem.into_response()
}

fn is_whole(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    let content_type = content_type.map_or(&b""[..], HeaderValue::as_bytes);
    content_type.starts_with(PROBLEM_JSON.as_bytes()) || content_type.starts_with(b"text/html")
}

/// 500: a handler panicked. The panic itself is logged.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response<Body> {
    let detail = "internal error: a bug, with details in the server's log; please report it";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
}
