//! JSON answers with an ETag, so that a client that already has an answer does not download it again.

use axum::extract::Request;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use service::text::hex;
use sha2::{Digest, Sha256};

use super::problem::Problem;

/// Bytes of the checksum that become the tag.
const TAG_BYTES: usize = 16;

/// A JSON answer with its tag.
pub(crate) struct Answer {
    body: Vec<u8>,
    headers: HeaderMap,
}

impl Answer {
    /// # Errors
    /// 500 if it cannot be serialized.
    pub(crate) fn of(answer: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_vec(answer).map_err(|error| {
            tracing::error!("an answer cannot be serialized as JSON: {error}");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the answer cannot be serialized as JSON",
            )
        })?;
        Ok(Self {
            body,
            headers: HeaderMap::new(),
        })
    }

    /// Adds a header.
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

/// A weak tag, computed from the uncompressed bytes: an answer also changes with time alone, and compression does not
/// change it.
pub(crate) fn tag(body: &[u8]) -> String {
    let sum = Sha256::digest(body);
    format!("W/\"{}\"", hex(&sum[..TAG_BYTES]))
}

/// Answers 304 if the client already has the answer.
pub(crate) async fn not_modified(request: Request, next: Next) -> Response {
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

/// Whether `If-None-Match` contains the tag, by weak comparison (RFC 9110, 13.1.2).
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
