//! Answers that refuse a request, as problem details (RFC 9457).

use std::time::Duration;

use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

/// `Retry-After` when too much is under way.
const FULL: Duration = Duration::from_secs(1);
/// `Retry-After` while Kafka does not acknowledge.
const UNAVAILABLE: Duration = Duration::from_secs(5);

/// A refused request.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    /// What is wrong, and what to do.
    detail: String,
    /// What became of each report: further members of the problem.
    results: Option<Value>,
    /// Boxed to keep `Result`s small.
    headers: Box<HeaderMap>,
}

#[derive(Serialize)]
struct Body<'a> {
    /// The HTTP status defines the kind of problem.
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(flatten)]
    results: Option<&'a Value>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            status,
            detail: detail.into(),
            results: None,
            headers: Box::default(),
        }
    }

    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Adds the members of an object.
    pub(super) fn with_results(mut self, results: &impl Serialize) -> Self {
        // It has only text and numbers.
        self.results = serde_json::to_value(results).ok();
        self
    }

    fn retry_after(self, pause: Duration) -> Self {
        self.with(header::RETRY_AFTER, pause.as_secs().into())
    }

    /// 429: there is no room for more requests.
    pub(super) fn full() -> Self {
        let detail = "too many reports are waiting for Kafka; send again later";
        Self::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(FULL)
    }

    /// 503: Kafka does not acknowledge.
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(UNAVAILABLE)
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = Body {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            results: self.results.as_ref(),
        };
        // It has only text and numbers.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        (self.status, *self.headers, content_type, body).into_response()
    }
}
