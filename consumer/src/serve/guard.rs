//! Security headers of every answer, and the host names that are served.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::options::ServeOptions;
use super::problem::Problem;

/// Set on every answer. The policy allows a page to load only from this server.
const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
];

/// Sets the headers of every answer. Caching is off unless the route allows it.
pub(super) async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    let cached = headers.entry(header::CACHE_CONTROL);
    cached.or_insert(HeaderValue::from_static("private, no-cache"));
    response
}

/// The allowed host names. They protect against DNS rebinding: a foreign page whose name was made to resolve to
/// loopback sends that name as the host.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Any name is allowed: an attacker's page gains no access that the browser does not already have.
    any: bool,
    /// Allowed names in addition to loopback's, in lower case, without ports.
    more: Vec<String>,
}

impl Names {
    pub(super) fn of(options: &ServeOptions) -> Self {
        let more = options.allow_host.iter();
        Self {
            any: !options.listen.ip().is_loopback() && options.allow_host.is_empty(),
            more: more.map(|name| name.to_ascii_lowercase()).collect(),
        }
    }

    fn include(&self, headers: &HeaderMap, authority: Option<&str>) -> bool {
        let mut given = headers.get_all(header::HOST).iter();
        let (first, second) = (given.next(), given.next());
        let host = first.and_then(|host| host.to_str().ok());
        // The authority of an absolute request target takes precedence (RFC 9112, 3.2.2).
        let Some(host) = authority.or(host).filter(|_| second.is_none()) else {
            return false;
        };
        let name = without_port(host).to_ascii_lowercase();
        let is_loopback = name == "localhost"
            || name.ends_with(".localhost")
            || name
                .trim_matches(['[', ']'])
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback());
        is_loopback || self.more.contains(&name)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Rejects requests for other host names (421).
pub(super) async fn only_by_name(
    State(names): State<Names>,
    request: Request,
    next: Next,
) -> Response {
    let authority = request.uri().authority().map(|name| name.as_str());
    if names.any || names.include(request.headers(), authority) {
        return next.run(request).await;
    }
    let detail = "host name not allowed; start the server with --allow-host NAME to allow names other than localhost";
    Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_loopback_and_those_given_are_answered() {
        let names = Names {
            any: false,
            more: vec!["tasks.example".to_owned()],
        };
        for (host, is) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("a.localhost:1", true),
            ("127.0.0.1:8080", true),
            ("127.9.9.9", true),
            ("[::1]:8080", true),
            ("[::1]", true),
            ("tasks.example:443", true),
            ("Tasks.Example", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:8080", false),
            ("10.0.0.1:8080", false),
            ("", false),
            ("localhost:8080:evil", false),
        ] {
            let headers = [(header::HOST, HeaderValue::from_str(host).unwrap())];
            let headers: HeaderMap = headers.into_iter().collect();
            assert_eq!(names.include(&headers, None), is, "{host:?}");
            assert!(!names.include(&headers, Some("evil.example")), "{host:?}");
        }
        assert!(!names.include(&HeaderMap::new(), None));
    }
}
