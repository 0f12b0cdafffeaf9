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

/// Nobody is logged in.
const NOT_LOGGED_IN: i32 = -1;
const SUCCESS: i32 = 0;
const ERROR: i32 = 1;
const NO_PERMISSION: i32 = 3;

/// An answer in its envelope.
#[derive(Serialize, ToSchema)]
pub(super) struct Message<T> {
    /// The path, without `rest_j/v1`.
    method: String,
    /// 0: success, 1: error, 3: no permission, -1: nobody is logged in.
    status: i32,
    /// `OK`, or what is wrong.
    message: String,
    data: T,
}

/// What is said instead of an answer: `data` is empty.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described: it is a Message of nothing")]
pub(super) struct Refused {
    method: String,
    status: i32,
    message: String,
    data: BTreeMap<String, String>,
}

impl<T: Serialize> Message<T> {
    /// A successful answer to what was asked at this address.
    ///
    /// # Errors
    /// 500 if it is no JSON.
    pub(super) fn ok(uri: &Uri, data: T) -> Result<Answer, Problem> {
        Answer::of(&Self {
            method: method(uri),
            status: SUCCESS,
            message: "OK".to_owned(),
            data,
        })
    }
}

/// Puts what went wrong at one of these paths into the envelope. HTTP's status is that of the problem, which is Linkis'
/// own where that has one; the others (405, 429, 503, …) it has none for.
pub(in crate::serve) async fn in_envelope(request: Request, next: Next) -> Response {
    let uri = request.uri().clone();
    let mut response = next.run(request).await;
    // Those of other paths are for others to tell.
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
    // The headers of the problem stay: when to ask again, how to log in.
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

/// What every route may answer beside its own.
impl IntoResponses for Refused {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        let refusals = [
            (
                StatusCode::BAD_REQUEST,
                "A parameter is no good, or there is no such task, or it is not one of the caller's",
            ),
            (
                StatusCode::UNAUTHORIZED,
                "Who asks has not said who they are, or not truly",
            ),
            (
                StatusCode::FORBIDDEN,
                "Another user's tasks, which the caller does not see",
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
