//! Answers in JSON, with a tag by which a client that has one already is spared it.

use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use service::text::hex;
use sha2::{Digest, Sha256};

use super::problem::Problem;

/// So much of an answer's checksum is its tag.
const TAG_BYTES: usize = 16;

/// An answer in JSON, with its tag.
pub(crate) struct Answer {
    body: Vec<u8>,
    headers: HeaderMap,
}

impl Answer {
    /// # Errors
    /// 500 if it is no JSON.
    pub(crate) fn of(answer: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_vec(answer).map_err(|error| {
            tracing::error!("an answer is no JSON: {error}");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer cannot be written as JSON",
            )
        })?;
        Ok(Self {
            body,
            headers: HeaderMap::new(),
        })
    }

    /// With a header.
    pub(crate) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let own = [
            (header::CONTENT_TYPE, "application/json".to_owned()),
            (header::ETAG, tag(&self.body)),
        ];
        (self.headers, own, self.body).into_response()
    }
}

/// Of the bytes themselves: what an answer says may change by the passage of time alone, and each state of the tables
/// may be told in several ways. Weak, since it is the same whether they are compressed or not.
pub(crate) fn tag(body: &[u8]) -> String {
    let sum = Sha256::digest(body);
    format!("W/\"{}\"", hex(&sum[..TAG_BYTES]))
}

/// Answers 304 to a client that has the answer already.
pub(crate) async fn spare(request: Request, next: Next) -> Response {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let held = request.headers().get_all(header::IF_NONE_MATCH);
    let held: Vec<HeaderValue> = held.iter().cloned().collect();
    let mut response = next.run(request).await;
    let tag = response.headers().get(header::ETAG);
    if is_read && response.status() == StatusCode::OK && tag.is_some_and(|tag| is_held(&held, tag))
    {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response.headers_mut().remove(header::CONTENT_TYPE);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = axum::body::Body::empty();
    }
    response
}

/// Whether `If-None-Match` names the tag (RFC 9110, 13.1.2: by weak comparison).
fn is_held(held: &[HeaderValue], tag: &HeaderValue) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let Ok(tag) = tag.to_str().map(opaque) else {
        return false;
    };
    let held = held.iter().filter_map(|held| held.to_str().ok());
    let mut held = held.flat_map(|held| held.split(','));
    held.any(|held| held.trim() == "*" || opaque(held) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_as_the_protocol_says() {
        let tag = HeaderValue::from_static("W/\"ab\"");
        for (held, is) in [
            ("W/\"ab\"", true),
            ("\"ab\"", true),
            ("\"cd\", W/\"ab\"", true),
            ("*", true),
            ("\"abc\"", false),
            ("ab", false),
        ] {
            let held = [HeaderValue::from_str(held).unwrap()];
            assert_eq!(is_held(&held, &tag), is, "{held:?}");
        }
        assert!(!is_held(&[], &tag));
    }
}
