//! The host names that a server answers for.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use axum::http::{HeaderMap, header};

/// The allowed host names. They protect against DNS rebinding: a foreign page whose name was made to resolve to
/// loopback sends that name as the host.
#[derive(Clone, Debug)]
pub struct HostNames {
    /// Any name is allowed: an attacker's page gains no access that the browser does not already have.
    any: bool,
    /// Allowed names in addition to loopback's, in lower case, without ports.
    more: Vec<String>,
}

impl HostNames {
    /// A server on loopback allows only names of loopback and `more`; others allow any name unless there are `more`.
    pub fn of(listen: SocketAddr, more: &[String]) -> Self {
        Self {
            any: !listen.ip().is_loopback() && more.is_empty(),
            more: more.iter().map(|name| name.to_ascii_lowercase()).collect(),
        }
    }

    /// Whether the request is for an allowed name.
    ///
    /// # Errors
    /// What to do, for an answer with status 421.
    pub fn check(&self, request: &Request) -> Result<(), &'static str> {
        let authority = request.uri().authority().map(|name| name.as_str());
        match self.any || self.include(request.headers(), authority) {
            true => Ok(()),
            false => Err(
                "host name not allowed; start the server with --allow-host NAME to allow names other than localhost",
            ),
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

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_names_of_loopback_and_those_given_are_answered() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 8080));
        let names = HostNames::of(listen, &["Tasks.example".to_owned()]);
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
