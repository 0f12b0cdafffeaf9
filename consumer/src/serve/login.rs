//! How a person's browser, which sends no header of its own accord, comes to a bearer token: a form, and a cookie that no
//! script reads and that no other site's page makes it send.

use axum::http::StatusCode;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::response::{Html, IntoResponse, Redirect, Response};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use percent_encoding::percent_decode;

use super::problem::{PROBLEM_JSON, Problem};

pub(super) const PATH: &str = "/login";
const COOKIE: &str = "taskrunning-token";

/// The token that a browser's cookie holds.
pub(super) fn token(headers: &HeaderMap) -> Option<Vec<u8>> {
    let cookies = headers.get_all(header::COOKIE).iter();
    let cookies = cookies.filter_map(|cookies| cookies.to_str().ok());
    let mut cookies = cookies.flat_map(|cookies| cookies.split(';'));
    cookies.find_map(|cookie| {
        let value = cookie.trim().strip_prefix(COOKIE)?.strip_prefix('=')?;
        BASE64_URL_SAFE_NO_PAD.decode(value).ok()
    })
}

/// Whether a page is asked for, rather than data (RFC 9110, 12.5.1).
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

/// To the form.
pub(super) fn redirect() -> Response {
    Redirect::to(PATH).into_response()
}

/// The form; with a word on a token that was refused.
pub(super) fn form(refused: bool) -> Response {
    let word = match refused {
        true => "<p role=\"alert\">This token is not known.</p>",
        false => "",
    };
    let page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>Log in</title><main><h1>Log in</h1>{word}\
         <form method=\"post\" action=\"{PATH}\"><p><label>Bearer token <input type=\"password\" name=\"token\" \
         autocomplete=\"current-password\" required autofocus></label> <button>Log in</button></p></form></main></html>"
    );
    let status = match refused {
        true => StatusCode::FORBIDDEN,
        false => StatusCode::OK,
    };
    (status, Html(page)).into_response()
}

/// What the form sends: the token, if it comes from this site.
///
/// # Errors
/// 403 if another site's page sends it.
pub(super) fn sent(headers: &HeaderMap, body: &[u8]) -> Result<Vec<u8>, Problem> {
    let is_other = match headers.get("sec-fetch-site") {
        Some(site) => site != "same-origin" && site != "none",
        // Older browsers say only whence the form is.
        None => is_of_another_origin(headers),
    };
    if is_other {
        let detail = "another site's page cannot log anybody in";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail));
    }
    let value = body.strip_prefix(b"token=").unwrap_or_default();
    let spaced: Vec<u8> = value
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect();
    let token: Vec<u8> = percent_decode(&spaced).collect();
    Ok(token.trim_ascii().to_vec())
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

/// Lets the browser keep the token until it is closed, and leads to the page.
pub(super) fn logged_in(token: &[u8], is_https: bool) -> Response {
    let token = BASE64_URL_SAFE_NO_PAD.encode(token);
    let secure = if is_https { "; Secure" } else { "" };
    let cookie = format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{secure}");
    let Ok(mut cookie) = HeaderValue::from_str(&cookie) else {
        return form(true);
    };
    cookie.set_sensitive(true);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

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
