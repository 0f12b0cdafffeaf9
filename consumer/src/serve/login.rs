//! Login and logout for browsers, which cannot set an Authorization header. A form stores the token in a cookie
//! that scripts cannot read and that browsers do not send with requests from other sites. It then redirects to the
//! address that was requested. A button on every page deletes the cookie.

use askama::Template;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::{Html, IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_decode_str, utf8_percent_encode};

use super::problem::{PROBLEM_JSON, Problem};

pub(super) const PATH: &str = "/login";
pub(super) const LOGOUT: &str = "/logout";
const COOKIE: &str = "taskrunning-token";
/// Maximum length of the requested address, in bytes. After a longer one, the form redirects to the start page.
const NEXT_BYTES: usize = 4 << 10;

/// A request extension: the caller was identified by the cookie, and can log out.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoggedIn;

/// The token in a browser's cookie.
pub(super) fn token(headers: &HeaderMap) -> Option<Vec<u8>> {
    let cookies = headers.get_all(header::COOKIE).iter();
    let cookies = cookies.filter_map(|cookies| cookies.to_str().ok());
    let mut cookies = cookies.flat_map(|cookies| cookies.split(';'));
    cookies.find_map(|cookie| {
        let value = cookie.trim().strip_prefix(COOKIE)?.strip_prefix('=')?;
        BASE64_URL_SAFE_NO_PAD.decode(value).ok()
    })
}

/// Whether the client prefers HTML (RFC 9110, 12.5.1).
pub(super) fn is_browser(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter();
    let accepted = accepted.filter_map(|accepted| accepted.to_str().ok());
    let ranges: Vec<&str> = accepted.flat_map(|accepted| accepted.split(',')).collect();
    let quality = |media: &[&str]| {
        let of_media = ranges.iter().filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts.next()?;
            media
                .iter()
                .find(|media| media.eq_ignore_ascii_case(named))?;
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            Some(
                quality
                    .and_then(|quality| quality.parse().ok())
                    .unwrap_or(1.0),
            )
        });
        of_media.fold(0.0, f32::max)
    };
    let page = quality(&["text/html"]);
    page > 0.0 && page >= quality(&["application/json", PROBLEM_JSON])
}

/// An address on this server, to redirect to after login: path and query, in printable ASCII.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Next(String);

impl Next {
    /// The requested address.
    pub(super) fn asked(uri: &Uri) -> Option<Self> {
        Self::checked(uri.path_and_query()?.as_str())
    }

    /// The address in the query of the form's URL.
    pub(super) fn of_form(uri: &Uri) -> Option<Self> {
        let mut pairs = uri.query()?.split('&');
        let value = pairs.find_map(|pair| pair.strip_prefix("next="))?;
        Self::checked(&percent_decode_str(value).decode_utf8().ok()?)
    }

    /// `None` if a browser could resolve it to another server (`//host`, `/\host`, and variants with tabs or line
    /// breaks, which browsers remove: WHATWG URL, "basic URL parser"), or if it is a login address.
    fn checked(address: &str) -> Option<Self> {
        let is_printable = address.bytes().all(|byte| byte.is_ascii_graphic());
        let is_path = address.starts_with('/') && !address.starts_with("//");
        let path = address.split(['?', '#']).next().unwrap_or_default();
        let is_own = [PATH, LOGOUT].contains(&path);
        let is_good = is_printable && is_path && !is_own && !address.contains('\\');
        (is_good && address.len() <= NEXT_BYTES).then(|| Self(address.to_owned()))
    }
}

/// Redirects to the form, which keeps the requested address.
pub(super) fn redirect(next: Option<&Next>) -> Response {
    let address = match next {
        Some(Next(next)) if next != "/" => {
            format!(
                "{PATH}?next={}",
                utf8_percent_encode(next, NON_ALPHANUMERIC)
            )
        }
        _ => PATH.to_owned(),
    };
    Redirect::to(&address).into_response()
}

#[derive(Template)]
#[template(path = "login.html")]
struct Form<'a> {
    path: &'static str,
    next: &'a str,
    is_refused: bool,
}

/// The form, with an error message if a token was refused.
pub(super) fn form(next: Option<&Next>, is_refused: bool) -> Response {
    let form = Form {
        path: PATH,
        next: next.map_or("", |Next(next)| next),
        is_refused,
    };
    let status = match is_refused {
        true => StatusCode::FORBIDDEN,
        false => StatusCode::OK,
    };
    match form.render() {
        Ok(page) => (status, Html(page)).into_response(),
        Err(error) => {
            tracing::error!("the login form could not be rendered: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The form's fields.
pub(super) struct Sent {
    pub(super) token: Vec<u8>,
    pub(super) next: Option<Next>,
}

/// Reads the form's fields.
///
/// # Errors
/// 403 if the form is on another site.
pub(super) fn sent(headers: &HeaderMap, body: &[u8]) -> Result<Sent, Problem> {
    require_own_site(headers, "login from another site is not allowed")?;
    let fields = || body.split(|byte| *byte == b'&');
    let value = |name: &[u8]| fields().find_map(|field| decoded(field.strip_prefix(name)?));
    let token = value(b"token=").unwrap_or_default();
    let next = value(b"next=").and_then(|next| Next::checked(std::str::from_utf8(&next).ok()?));
    Ok(Sent {
        token: token.trim_ascii().to_vec(),
        next,
    })
}

/// Decodes a value of application/x-www-form-urlencoded.
fn decoded(value: &[u8]) -> Option<Vec<u8>> {
    let spaced = value
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte });
    let spaced: Vec<u8> = spaced.collect();
    Some(percent_decode(&spaced).collect())
}

/// # Errors
/// 403 if the request comes from another site.
fn require_own_site(headers: &HeaderMap, detail: &str) -> Result<(), Problem> {
    let is_other = match headers.get("sec-fetch-site") {
        Some(site) => site != "same-origin" && site != "none",
        // Older browsers, and all of them over plain HTTP, send only the origin.
        None => is_of_another_origin(headers),
    };
    match is_other {
        true => Err(Problem::new(StatusCode::FORBIDDEN, detail)),
        false => Ok(()),
    }
}

fn is_of_another_origin(headers: &HeaderMap) -> bool {
    let text = |name| {
        headers
            .get(name)
            .map(|value: &HeaderValue| value.to_str().unwrap_or("?"))
    };
    let (origin, host) = (text(header::ORIGIN), text(header::HOST));
    origin.is_some_and(|origin| origin.split_once("://").map(|(_, host)| host) != host)
}

/// Sets the cookie, which lasts until the browser is closed, and redirects.
pub(super) fn logged_in(token: &[u8], next: Option<&Next>, is_https: bool) -> Response {
    let token = BASE64_URL_SAFE_NO_PAD.encode(token);
    let Some(cookie) = cookie(&token, "", is_https) else {
        return form(next, true);
    };
    let next = next.map_or("/", |Next(next)| next);
    ([(header::SET_COOKIE, cookie)], Redirect::to(next)).into_response()
}

/// Deletes the cookie, and redirects to the form.
///
/// # Errors
/// 403 if the request comes from another site.
pub(super) fn logged_out(headers: &HeaderMap, is_https: bool) -> Result<Response, Problem> {
    require_own_site(headers, "logout from another site is not allowed")?;
    let cookie = cookie("", "; Max-Age=0", is_https);
    let cookie = cookie.map(|cookie| [(header::SET_COOKIE, cookie)]);
    Ok((cookie, redirect(None)).into_response())
}

fn cookie(token: &str, age: &str, is_https: bool) -> Option<HeaderValue> {
    let secure = if is_https { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{secure}{age}");
    let mut cookie = HeaderValue::from_str(&cookie).ok()?;
    cookie.set_sensitive(true);
    Some(cookie)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::Url;

    use super::*;

    /// Asserts that a browser stays on this server.
    fn stays(next: &str) {
        let base = Url::parse("https://tasks.example:8443/login").unwrap();
        if let Some(Next(next)) = Next::checked(next) {
            let joined = base.join(&next).unwrap();
            assert_eq!(joined.origin(), base.origin(), "{next:?}");
        }
    }

    proptest! {
        #[test]
        fn no_address_leads_to_another_server(next in r"[/\\.:@?#%a2fF5cC\t\n\r -]{0,12}(evil\.example)?.{0,3}") {
            stays(&next);
        }
    }

    #[test]
    fn only_addresses_of_this_server_are_led_on_to() {
        for good in [
            "/",
            "/tasks",
            "/tasks/%2F%2Fevil.example?at=2026-11-25T14:05:00Z",
            "/tasks/a?x=//b",
            "/loginx",
        ] {
            stays(good);
            assert_eq!(Next::checked(good), Some(Next(good.to_owned())));
        }
        let long = format!("/{}", "a".repeat(NEXT_BYTES));
        for bad in [
            "",
            "tasks",
            "//evil.example",
            "///evil.example",
            r"/\evil.example",
            r"\\evil.example",
            "/\t/evil.example",
            "/\n/evil.example",
            "https://evil.example/",
            "https:evil.example",
            "javascript:alert(1)",
            "@evil.example",
            " /tasks",
            "/tasks\r\nset-cookie: a=b",
            "/tâches",
            "/login",
            "/login?next=/login",
            "/logout",
            &long,
        ] {
            assert_eq!(Next::checked(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_form_hands_the_address_on() {
        let asked: Uri = "/tasks/a%26b?order=started&user=%3Cb%3E".parse().unwrap();
        let next = Next::asked(&asked).unwrap();
        let to_form = redirect(Some(&next));
        let to_form = to_form.headers()[header::LOCATION].to_str().unwrap();
        assert_eq!(Next::of_form(&to_form.parse().unwrap()), Some(next.clone()));
        let field = utf8_percent_encode(&next.0, NON_ALPHANUMERIC);
        let body = format!("next={field}&token=a%2Bb+");
        let sent = sent(&HeaderMap::new(), body.as_bytes()).unwrap();
        assert_eq!(
            (sent.token.as_slice(), sent.next),
            (&b"a+b"[..], Some(next))
        );
        for bad in [
            "/login?next=%2F%2Fevil.example",
            "/login?next=%2F%5Cevil",
            "/login?next=%FF",
            "/login",
        ] {
            assert_eq!(Next::of_form(&bad.parse().unwrap()), None, "{bad}");
        }
    }

    #[test]
    fn a_browser_prefers_pages() {
        for (accept, is) in [
            ("text/html,application/xhtml+xml,*/*;q=0.8", true),
            ("TEXT/HTML", true),
            ("application/json;q=0.5, text/html;q=0.9", true),
            ("application/json, text/html;q=0.5", false),
            ("application/problem+json, text/html;q=0.5", false),
            ("text/html;q=0", false),
            ("application/json", false),
            ("*/*", false),
            ("", false),
        ] {
            let headers = [(header::ACCEPT, HeaderValue::from_static(accept))];
            assert_eq!(is_browser(&headers.into_iter().collect()), is, "{accept}");
        }
        assert!(!is_browser(&HeaderMap::new()));
    }
}
