//! The envelope of every answer: `{method, status, message, data}`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Request;
use axum::http::{StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, ToSchema};

use super::BASE;
use crate::serve::answer::Answer;
use crate::serve::problem::Problem;

/// The caller is not logged in.
const NOT_LOGGED_IN: i32 = -1;
const SUCCESS: i32 = 0;
const ERROR: i32 = 1;
const NO_PERMISSION: i32 = 3;

/// An answer in its envelope.
#[derive(Serialize, ToSchema)]
pub(super) struct Message<T> {
    /// The path, without `rest_j/v1`.
    method: String,
    /// 0: success, 1: error, 3: no permission, -1: not logged in.
    status: i32,
    /// `OK`, or an error message.
    message: String,
    data: T,
}

/// An error: `data` is empty.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "only for the OpenAPI document; sent as a Message without data"
)]
pub(super) struct Refused {
    method: String,
    status: i32,
    message: String,
    data: BTreeMap<String, String>,
}

impl<T: Serialize> Message<T> {
    /// A successful answer to the request for `uri`.
    ///
    /// # Errors
    /// 500 if it cannot be serialized.
    pub(super) fn ok(uri: &Uri, data: T) -> Result<Answer, Problem> {
        Answer::of(&Self {
            method: method(uri),
            status: SUCCESS,
            message: "OK".to_owned(),
            data,
        })
    }
}

/// Wraps an error at one of these paths in the envelope. The HTTP status stays that of the problem, which is also
/// Linkis' for the errors that Linkis knows; it has none for 405, 429, 503 and others.
pub(in crate::serve) async fn in_envelope(request: Request, next: Next) -> Response {
    let uri = request.uri().clone();
    let mut response = next.run(request).await;
    // Other paths have their own error format.
    if !uri.path().starts_with(BASE) {
        return response;
    }
    let Some(problem) = response.extensions_mut().remove::<Problem>() else {
        return response;
    };
    let status = match problem.status() {
        StatusCode::UNAUTHORIZED => NOT_LOGGED_IN,
        StatusCode::FORBIDDEN => NO_PERMISSION,
        _ => ERROR,
    };
    let message = Message {
        method: method(&uri),
        status,
        message: problem.detail().to_owned(),
        data: BTreeMap::<String, String>::new(),
    };
    // Keeps headers such as `Retry-After` and `WWW-Authenticate`.
    let mut headers = std::mem::take(response.headers_mut());
    headers.remove(header::CONTENT_TYPE);
    headers.remove(header::CONTENT_LENGTH);
    let mut response = (problem.status(), Json(message)).into_response();
    response.headers_mut().extend(headers);
    response
}

fn method(uri: &Uri) -> String {
    let path = uri.path();
    let path = path.strip_prefix(BASE).unwrap_or(path);
    format!("/api/{}", percent_decode_str(path).decode_utf8_lossy())
}

/// Errors that every route may return.
impl IntoResponses for Refused {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let refusals = [
            (
                StatusCode::BAD_REQUEST,
                "A parameter is invalid, there is no such task, or the caller may not see it",
            ),
            (
                StatusCode::UNAUTHORIZED,
                "Credentials are missing or invalid",
            ),
            (
                StatusCode::FORBIDDEN,
                "The caller may not see another user's tasks",
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
        let described = refusals.map(|(status, what)| {
            let schema = Ref::from_schema_name(Self::name());
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new()
                .description(what)
                .content("application/json", content);
            (status.as_str().to_owned(), response.build().into())
        });
        described.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_is_the_path_as_linkis_writes_it() {
        for (path, method_of_it) in [
            (
                "/api/rest_j/v1/jobhistory/list?pageNow=1",
                "/api/jobhistory/list",
            ),
            (
                "/api/rest_j/v1/entrance/a%2Fb%20%C3%BC/status",
                "/api/entrance/a/b ü/status",
            ),
        ] {
            assert_eq!(method(&path.parse().unwrap()), method_of_it);
        }
    }
}
