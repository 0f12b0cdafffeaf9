//! Every error of the HTTP API, as RFC 9457 has them.

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
/// So many bytes of an error's text are kept.
const DETAIL_BYTES: usize = 1 << 10;
/// When to ask again while the database is away.
const AWAY: Duration = Duration::from_secs(5);

/// Why a request has no answer (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct Problem {
    /// `about:blank`: the status says what kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    #[serde(serialize_with = "code")]
    #[schema(value_type = u16)]
    status: StatusCode,
    /// What was found, and what to do.
    detail: String,
    /// The parameters that are no good.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<ParameterProblem>,
    #[serde(skip)]
    /// In a box, which keeps the results of functions that may fail small.
    headers: Box<HeaderMap>,
}

/// A parameter that is no good.
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
    /// A problem of this status.
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

    /// 400: parameters that are no good.
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

    /// 400: one parameter that is no good.
    pub(crate) fn parameter(parameter: &str, detail: impl Into<String>) -> Self {
        Self::parameters(vec![ParameterProblem {
            parameter: parameter.to_owned(),
            detail: detail.into(),
        }])
    }

    /// With a header.
    pub(crate) fn with(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// With the time after which to ask again.
    pub(crate) fn retry_after(self, pause: Duration) -> Self {
        self.with(header::RETRY_AFTER, pause.as_secs().max(1).into())
    }

    /// 503: the database does not answer. What exactly it said is for the log: it may name hosts.
    pub(crate) fn away() -> Self {
        let detail = "the database does not answer now; ask again";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(AWAY)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }
}

/// What a caller is told where a query has no answer. What the database said is not part of it.
impl From<&QueryError> for Problem {
    fn from(error: &QueryError) -> Self {
        match error {
            QueryError::Expired { at, before, .. } => Self::parameter(
                "at",
                format!("what was known at {at} was removed; ask for {before} or later"),
            ),
            QueryError::Cursor { .. } => Self::parameter("cursor", error.to_string()),
            QueryError::Parameter { name, why } => Self::parameter(name, why.clone()),
            error if error.is_too_long() => {
                let detail = "the database took too long for this; ask for less";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(AWAY)
            }
            QueryError::Store {
                source: StoreError::Refused(_),
                ..
            } => Self::new(
                StatusCode::BAD_REQUEST,
                "the database refuses a value of this request",
            ),
            QueryError::Store { .. } => Self::away(),
        }
    }
}

/// What every route may answer beside its own.
impl IntoResponses for Problem {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let problems = [
            (
                StatusCode::BAD_REQUEST,
                "A parameter is no good; each is named in errors",
            ),
            (
                StatusCode::UNAUTHORIZED,
                "Who asks has not said who they are, or not truly",
            ),
            (
                StatusCode::TOO_MANY_REQUESTS,
                "Too many others ask now: see Retry-After",
            ),
            (
                StatusCode::SERVICE_UNAVAILABLE,
                "The database does not answer, or not in time: see Retry-After",
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
        // After Json, which has a type of its own.
        let mut response = (content_type, response).into_response();
        // For those who write it in another way.
        response.extensions_mut().insert(problem);
        response
    }
}

/// Makes a problem of every error that is not one yet, nor a page: a path or method that is not served, an extractor's
/// rejection, a layer's limit.
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
            "no answer in time; ask again".to_owned()
        }
        StatusCode::METHOD_NOT_ALLOWED => "this path is only read: GET or HEAD".to_owned(),
        _ => String::from_utf8_lossy(&text).into_owned(),
    };
    let mut problem = Problem::new(status, detail);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        problem = problem.retry_after(AWAY);
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

/// 500: a handler panicked. The panic itself is in the log.
pub(crate) fn panicked(_: Box<dyn std::any::Any + Send + 'static>) -> Response<Body> {
    let detail = "a bug in this program, which its log tells of; please report it";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
}
