//! Authentication: none on loopback, bearer tokens, or a header from a trusted proxy.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;
use service::exit::NeedsAttention;
use service::http_server::{Peer, TokenLines, Tokens};
use service::reloaded::Reloaded;

use super::caller::Caller;
use super::login;
use super::options::ServeOptions;
use super::problem::Problem;

/// How callers are authenticated.
#[derive(Debug)]
pub(super) struct Authentication {
    tokens: Option<Reloaded<Tokens<Caller>>>,
    proxy: Option<Proxy>,
}

const TOKEN_LINES: TokenLines<Caller> = TokenLines {
    holder: |role| match role.split_once('=') {
        None if role == "operator" => Some(Caller::Operator),
        Some(("viewer", user)) if !user.is_empty() => Some(Caller::Viewer {
            user: user.to_owned(),
        }),
        _ => None,
    },
    expected: "neither `sha256:HEX operator` nor `sha256:HEX viewer=USER`",
};

/// Proxies whose user header is trusted.
#[derive(Debug)]
struct Proxy {
    header: HeaderName,
    trusted: Vec<IpNet>,
    operators: BTreeSet<String>,
}

impl Authentication {
    /// # Errors
    /// If the token file is invalid.
    pub(super) fn of(options: &ServeOptions) -> Result<Self, NeedsAttention> {
        let proxy = options.user_header.clone().map(|header| Proxy {
            header,
            trusted: options.trusted_proxy.clone(),
            operators: options.operator.iter().cloned().collect(),
        });
        let tokens = options.tokens.clone().map(|file| {
            let files = vec![file.clone()];
            Reloaded::of(files, move || Tokens::read(&file, &TOKEN_LINES))
        });
        let tokens = tokens.transpose()?;
        Ok(Self { tokens, proxy })
    }

    /// The caller; `None` if the request has no credentials.
    ///
    /// # Errors
    /// 401 if the token is invalid, 403 if the user header is invalid or from an untrusted address.
    fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Option<Caller>, Problem> {
        if self.tokens.is_none() && self.proxy.is_none() {
            return Ok(Some(Caller::Operator));
        }
        let by_proxy = match &self.proxy {
            Some(proxy) => proxy.caller(headers, peer)?,
            None => None,
        };
        let Some(tokens) = self.tokens.as_ref().map(Reloaded::current) else {
            return Ok(by_proxy);
        };
        if let Some(given) = headers.get(header::AUTHORIZATION) {
            let caller = tokens.authorized(given).map_err(unauthorized)?;
            return Ok(Some(caller.clone()));
        }
        // An unknown token in a cookie counts as none; otherwise its browser could not reach the login form.
        let by_cookie = login::token(headers).and_then(|token| tokens.holder(&token).cloned());
        Ok(by_cookie.or(by_proxy))
    }

    /// Whether the token is known.
    pub(super) fn knows(&self, token: &[u8]) -> bool {
        let tokens = self.tokens.as_ref().map(Reloaded::current);
        tokens.is_some_and(|tokens| tokens.holder(token).is_some())
    }

    /// Whether the cookie identifies the caller.
    fn is_by_cookie(&self, headers: &HeaderMap) -> bool {
        !headers.contains_key(header::AUTHORIZATION)
            && login::token(headers).is_some_and(|token| self.knows(&token))
    }

    /// Whether people can log in with a token.
    pub(super) fn has_tokens(&self) -> bool {
        self.tokens.is_some()
    }

    fn challenge(&self) -> Option<HeaderValue> {
        let bearer = HeaderValue::from_static("Bearer realm=\"taskrunning\"");
        self.tokens.as_ref().map(|_| bearer)
    }
}

impl Proxy {
    fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Option<Caller>, Problem> {
        let mut given = headers.get_all(&self.header).iter();
        let (user, more) = (given.next(), given.next());
        let Some(user) = user else {
            return Ok(None);
        };
        let peer = peer.to_canonical();
        if !self.trusted.iter().any(|trusted| trusted.contains(&peer)) {
            let detail = format!(
                "the header {} is not trusted from this address",
                self.header
            );
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        let user = std::str::from_utf8(user.as_bytes())
            .unwrap_or_default()
            .trim();
        if user.is_empty() || more.is_some() {
            let detail = format!("the header {} must name exactly one user", self.header);
            return Err(Problem::new(StatusCode::FORBIDDEN, detail));
        }
        Ok(Some(match self.operators.contains(user) {
            true => Caller::Operator,
            false => Caller::Viewer {
                user: user.to_owned(),
            },
        }))
    }
}

fn unauthorized(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, detail)
}

/// Identifies the caller. A request without credentials continues without a [`Caller`]; every route that extracts one
/// rejects it.
pub(super) async fn authenticate(
    State(authentication): State<Arc<Authentication>>,
    mut request: Request,
    next: Next,
) -> Response {
    let Some(Peer(peer)) = request.extensions().get().copied() else {
        return Problem::new(StatusCode::UNAUTHORIZED, "no peer").into_response();
    };
    let is_browser = login::is_browser(request.headers());
    let address = login::Next::asked(request.uri());
    let response = match authentication.caller(request.headers(), peer.ip()) {
        Err(problem) => problem.into_response(),
        Ok(caller) => {
            if authentication.is_by_cookie(request.headers()) {
                request.extensions_mut().insert(login::LoggedIn);
            }
            if let Some(caller) = caller {
                request.extensions_mut().insert(caller);
            }
            next.run(request).await
        }
    };
    match (response.status(), authentication.challenge()) {
        (StatusCode::UNAUTHORIZED, Some(_)) if is_browser => login::redirect(address.as_ref()),
        (StatusCode::UNAUTHORIZED, Some(challenge)) => {
            ([(header::WWW_AUTHENTICATE, challenge)], response).into_response()
        }
        _ => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tokens are `secret` and `other`.
    const FILE: &str = "# who may ask\n\n\
        sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b viewer=ada=1\n  \
        sha256:D9298A10D1B0735837DC4BD85DAC641B0F3CEF27A47E5D53A54F2F3F5B2FCFFA\toperator\n";

    fn viewer(user: &str) -> Caller {
        Caller::Viewer {
            user: user.to_owned(),
        }
    }

    fn authorized(value: &str) -> HeaderMap {
        let value = HeaderValue::from_str(value).unwrap();
        [(header::AUTHORIZATION, value)].into_iter().collect()
    }

    #[test]
    fn a_token_is_known_by_its_checksum() {
        let tokens = Reloaded::of(Vec::new(), || {
            Tokens::parse(FILE, &TOKEN_LINES).map_err(NeedsAttention)
        });
        let tokens = tokens.unwrap();
        let authentication = Authentication {
            tokens: Some(tokens),
            proxy: None,
        };
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let caller = |headers: &HeaderMap| authentication.caller(headers, loopback);
        assert_eq!(
            caller(&authorized("Bearer secret")).unwrap(),
            Some(viewer("ada=1"))
        );
        assert_eq!(
            caller(&authorized("bearer other")).unwrap(),
            Some(Caller::Operator)
        );
        assert_eq!(caller(&HeaderMap::new()).unwrap(), None);
        for wrong in [
            "Bearer secre",
            "Bearer secrets",
            "Bearer ",
            "Bearer",
            "Basic secret",
            "",
        ] {
            let refused = caller(&authorized(wrong)).unwrap_err();
            assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{wrong}");
        }
    }

    #[test]
    fn an_invalid_line_is_named_but_not_shown() {
        let sum = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        for bad in [
            "hunter2 operator".to_owned(),
            format!("{sum} operator"),
            format!("sha256:{sum}"),
            format!("sha256:{sum} viewer"),
            format!("sha256:{sum} viewer="),
            format!("sha256:{sum} admin"),
            format!("sha256:{sum} operator=ada"),
            format!("sha256:{sum}0 operator"),
            format!("sha256:g{} operator", &sum[1..]),
        ] {
            let why = Tokens::parse(&format!("# x\n{bad}\n"), &TOKEN_LINES).unwrap_err();
            assert!(why.starts_with("line 2 "), "{why}");
            assert!(!why.contains("hunter2") && !why.contains(sum), "{why}");
        }
        let twice = format!("sha256:{sum} operator\nsha256:{sum} viewer=a");
        let why = Tokens::parse(&twice, &TOKEN_LINES).unwrap_err();
        assert!(why.starts_with("line 2 has"));
        assert!(Tokens::parse("# none\n", &TOKEN_LINES).is_err());
    }

    #[test]
    fn a_header_is_believed_from_listed_proxies_only() {
        let header = HeaderName::from_static("x-user");
        let proxy = Proxy {
            header: header.clone(),
            trusted: vec![IpAddr::from([10, 0, 0, 1]).into()],
            operators: ["root".to_owned()].into(),
        };
        let authentication = Authentication {
            tokens: None,
            proxy: Some(proxy),
        };
        let trusted: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        let named = |users: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for user in users {
                headers.append(&header, HeaderValue::from_bytes(user).unwrap());
            }
            headers
        };
        let caller = |users: &[&[u8]], peer| authentication.caller(&named(users), peer);
        assert_eq!(caller(&[b"ada"], trusted).unwrap(), Some(viewer("ada")));
        assert_eq!(
            caller(&["ünal".as_bytes()], trusted).unwrap(),
            Some(viewer("ünal"))
        );
        assert_eq!(caller(&[b"root"], trusted).unwrap(), Some(Caller::Operator));
        assert_eq!(caller(&[], trusted).unwrap(), None);
        for other in ["10.0.0.2", "127.0.0.1", "::1"] {
            let refused = caller(&[b"root"], other.parse().unwrap()).unwrap_err();
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{other}");
        }
        for users in [&[&b""[..]][..], &[b"ada", b"root"], &[b"\xff"]] {
            let refused = caller(users, trusted).unwrap_err();
            assert_eq!(refused.status(), StatusCode::FORBIDDEN, "{users:?}");
        }
    }
}
