//! Authentication: none on loopback, bearer tokens, or a header from a trusted proxy.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use service::exit::NeedsAttention;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::caller::Caller;
use super::login;
use super::options::ServeOptions;
use super::problem::Problem;
use super::reloaded::Reloaded;
use super::server::Peer;

/// How callers are authenticated.
#[derive(Debug)]
pub(super) struct Authentication {
    tokens: Option<Reloaded<Tokens>>,
    proxy: Option<Proxy>,
}

/// The known bearer tokens.
#[derive(Debug)]
struct Tokens(Vec<Token>);

#[derive(Debug)]
struct Token {
    sha256: [u8; 32],
    caller: Caller,
}

/// Proxies whose user header is trusted.
#[derive(Debug)]
struct Proxy {
    header: HeaderName,
    trusted: BTreeSet<IpAddr>,
    operators: BTreeSet<String>,
}

impl Authentication {
    /// # Errors
    /// If the token file is invalid.
    pub(super) fn of(options: &ServeOptions) -> Result<Self, NeedsAttention> {
        let proxy = options.user_header.clone().map(|header| Proxy {
            header,
            trusted: options
                .trusted_proxy
                .iter()
                .map(IpAddr::to_canonical)
                .collect(),
            operators: options.operator.iter().cloned().collect(),
        });
        let tokens = options.tokens.clone().map(|file| {
            let files = vec![file.clone()];
            Reloaded::of(files, move || Tokens::read(&file))
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
            return tokens.authorized(given).map(Some);
        }
        // An unknown token in a cookie counts as none; otherwise its browser could not reach the login form.
        let by_cookie = login::token(headers).and_then(|token| tokens.caller(&token).ok());
        Ok(by_cookie.or(by_proxy))
    }

    /// Whether the token is known.
    pub(super) fn knows(&self, token: &[u8]) -> bool {
        let tokens = self.tokens.as_ref().map(Reloaded::current);
        tokens.is_some_and(|tokens| tokens.caller(token).is_ok())
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

impl Tokens {
    fn read(file: &Path) -> Result<Self, NeedsAttention> {
        let no_good = |why: String| NeedsAttention(format!("--tokens {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| no_good(error.to_string()))?;
        Self::parse(&text).map_err(no_good)
    }

    /// One token per line; empty lines and lines that start with `#` are skipped. Errors name only the line's number,
    /// because the line may contain a plain token.
    fn parse(text: &str) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let token = Token::parse(line).ok_or_else(|| {
                format!(
                    "line {} is neither `sha256:HEX operator` nor `sha256:HEX viewer=USER`, where HEX are the 64 digits that \
                     `printf %s TOKEN | sha256sum` prints",
                    i + 1
                )
            })?;
            if tokens
                .iter()
                .any(|known: &Token| known.sha256 == token.sha256)
            {
                return Err(format!("line {} has the token of an earlier line", i + 1));
            }
            tokens.push(token);
        }
        match tokens.is_empty() {
            true => Err("no line has a token, so every request would be refused".to_owned()),
            false => Ok(Self(tokens)),
        }
    }

    fn authorized(&self, authorization: &HeaderValue) -> Result<Caller, Problem> {
        let given = authorization.as_bytes();
        let (scheme, token) = given.split_at_checked(7).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err(unauthorized("the Authorization header has no bearer token"));
        }
        self.caller(token.trim_ascii())
    }

    fn caller(&self, token: &[u8]) -> Result<Caller, Problem> {
        // Compares with every token in constant time, so that timing reveals nothing.
        let sha256 = <[u8; 32]>::from(Sha256::digest(token));
        let (mut found, mut index) = (Choice::from(0), 0_u32);
        for (i, token) in (0_u32..).zip(&self.0) {
            let is_it = token.sha256.ct_eq(&sha256);
            index.conditional_assign(&i, is_it);
            found |= is_it;
        }
        let token = bool::from(found).then(|| &self.0[index as usize]);
        let caller = token.map(|token| token.caller.clone());
        caller.ok_or_else(|| unauthorized("unknown bearer token"))
    }
}

impl Token {
    fn parse(line: &str) -> Option<Self> {
        let (sum, role) = line.split_once(char::is_whitespace)?;
        let hex = sum.strip_prefix("sha256:")?.as_bytes();
        if hex.len() != 64 || !hex.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut sha256 = [0; 32];
        for (byte, digits) in sha256.iter_mut().zip(hex.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let caller = match role.trim().split_once('=') {
            None if role.trim() == "operator" => Caller::Operator,
            Some(("viewer", user)) if !user.is_empty() => Caller::Viewer {
                user: user.to_owned(),
            },
            _ => return None,
        };
        Some(Self { sha256, caller })
    }
}

impl Proxy {
    fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Option<Caller>, Problem> {
        let mut given = headers.get_all(&self.header).iter();
        let (user, more) = (given.next(), given.next());
        let Some(user) = user else {
            return Ok(None);
        };
        if !self.trusted.contains(&peer.to_canonical()) {
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
        let tokens = Reloaded::of(Vec::new(), || Tokens::parse(FILE).map_err(NeedsAttention));
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
            let why = Tokens::parse(&format!("# x\n{bad}\n")).unwrap_err();
            assert!(why.starts_with("line 2 "), "{why}");
            assert!(!why.contains("hunter2") && !why.contains(sum), "{why}");
        }
        let twice = format!("sha256:{sum} operator\nsha256:{sum} viewer=a");
        assert!(Tokens::parse(&twice).unwrap_err().starts_with("line 2 has"));
        assert!(Tokens::parse("# none\n").is_err());
    }

    #[test]
    fn a_header_is_believed_from_listed_proxies_only() {
        let header = HeaderName::from_static("x-user");
        let proxy = Proxy {
            header: header.clone(),
            trusted: [IpAddr::from([10, 0, 0, 1])].into(),
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
