//! Finds the reports in a body: one, an array, or JSON lines.

use std::fmt;

use axum::http::{HeaderMap, StatusCode, header};
use memchr::memchr_iter;
use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::problem::Problem;

/// Reports of one request.
pub(super) const ITEMS_MAX: usize = 10_000;

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";
const GZIP: &[u8] = b"\x1F\x8B";

/// What a body is, by its Content-Type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Format {
    /// One report or an array of them.
    Json,
    /// A report a line.
    Lines,
}

impl Format {
    /// A page of another site can send some types, or none, without asking first (CORS), so one of these is required.
    ///
    /// # Errors
    /// 415 for any other type.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let given = headers.get(header::CONTENT_TYPE);
        let given = given.and_then(|given| given.to_str().ok());
        let mut parts = given.unwrap_or_default().split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let is_utf_8 = parts.all(|parameter| {
            let charset = parameter.split_once('=');
            let charset = charset.filter(|(name, _)| name.eq_ignore_ascii_case("charset"));
            charset.is_none_or(|(_, charset)| {
                let charset = charset.trim_matches('"');
                ["utf-8", "utf8", "us-ascii"]
                    .iter()
                    .any(|known| charset.eq_ignore_ascii_case(known))
            })
        });
        match media.as_str() {
            "application/json" if is_utf_8 => Ok(Self::Json),
            "application/x-ndjson"
            | "application/ndjson"
            | "application/jsonl"
            | "application/x-jsonlines"
            | "application/jsonlines"
                if is_utf_8 =>
            {
                Ok(Self::Lines)
            }
            _ => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Content-Type: expected application/json for one report or an array, or application/x-ndjson for JSON \
                 lines, in UTF-8",
            )),
        }
    }
}

/// The JSON texts of a body, not parsed yet.
///
/// # Errors
/// 400 if there is none, or an array is no JSON; 413 if there are too many.
pub(super) fn items(format: Format, body: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let body = body.trim_ascii();
    if body.is_empty() {
        return Err(bad("the body is empty"));
    }
    if body.starts_with(GZIP) {
        return Err(bad(
            "the body is compressed by gzip: send the header Content-Encoding: gzip",
        ));
    }
    match (format, body[0]) {
        (Format::Json, b'[') => array(body),
        (Format::Json, _) if !are_lines(body) => Ok(vec![body]),
        _ => lines(body),
    }
}

/// Whether a JSON text is followed by another one.
fn are_lines(body: &[u8]) -> bool {
    let mut texts = serde_json::Deserializer::from_slice(body).into_iter::<&RawValue>();
    let is_whole = texts.next().is_some_and(|text| text.is_ok());
    is_whole && texts.byte_offset() < body.len()
}

fn lines(body: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    let mut lines = Vec::new();
    let mut begins = 0;
    for end in memchr_iter(b'\n', body).chain([body.len()]) {
        let line = body[begins..end].trim_ascii();
        begins = end + 1;
        if line.is_empty() {
            continue;
        }
        if lines.len() == ITEMS_MAX {
            return Err(too_many());
        }
        lines.push(line);
    }
    Ok(lines)
}

fn array(body: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    let text = std::str::from_utf8(body)
        .map_err(|error| bad(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    match serde_json::from_str(text) {
        Ok(Array(items)) => Ok(items),
        // Of the elements nothing is judged yet.
        Err(error) if error.is_data() => Err(too_many()),
        Err(error) => Err(bad(format!("not JSON: {error}"))),
    }
}

struct Array<'a>(Vec<&'a [u8]>);

impl<'de: 'a, 'a> Deserialize<'de> for Array<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements;
        impl<'de> Visitor<'de> for Elements {
            type Value = Array<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array")
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Array<'de>, S::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element::<&RawValue>()? {
                    if items.len() == ITEMS_MAX {
                        return Err(serde::de::Error::custom("too many"));
                    }
                    items.push(item.get().as_bytes());
                }
                Ok(Array(items))
            }
        }
        deserializer.deserialize_seq(Elements)
    }
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

fn too_many() -> Problem {
    let detail = format!("the body has more than {ITEMS_MAX} reports; send fewer at once");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn found(format: Format, body: &str) -> Result<Vec<String>, u16> {
        match items(format, body.as_bytes()) {
            Ok(items) => Ok(items
                .iter()
                .map(|item| String::from_utf8_lossy(item).into_owned())
                .collect()),
            Err(problem) => Err(problem.status().as_u16()),
        }
    }

    fn ok(items: &[&str]) -> Result<Vec<String>, u16> {
        Ok(items.iter().map(|item| (*item).to_owned()).collect())
    }

    #[test]
    fn one_report_an_array_and_lines_are_told_apart() {
        use Format::{Json, Lines};
        for (format, body, expected) in [
            (Json, "{\"a\":\n1}", ok(&["{\"a\":\n1}"])),
            (Json, "\u{feff} {} \n", ok(&["{}"])),
            (
                Json,
                " [ {\"a\": [1]}, 2,\n\"]\" ] ",
                ok(&["{\"a\": [1]}", "2", "\"]\""]),
            ),
            (Json, "[]", ok(&[])),
            (Json, "{}\n\n{\"b\":1}\r\n", ok(&["{}", "{\"b\":1}"])),
            // Its faults are those of one report.
            (Json, "{\n{}", ok(&["{\n{}"])),
            (
                Lines,
                "{}\nno JSON\n\n[1,2]\n",
                ok(&["{}", "no JSON", "[1,2]"]),
            ),
            (Json, "", Err(400)),
            (Lines, " \n\n", Err(400)),
            (Json, "[{},", Err(400)),
            (Json, "[{}] x", Err(400)),
            (Json, "\x1f\u{8b}", ok(&["\x1f\u{8b}"])),
        ] {
            assert_eq!(found(format, body), expected, "{body:?}");
        }
        assert!(items(Json, b"\x1F\x8B\x08").is_err());
        assert!(items(Json, b"[\"\xFF\"]").is_err());
    }

    #[test]
    fn more_items_than_the_limit_are_413_in_every_form() {
        for (format, begin, item, end) in [
            (Format::Json, "[1", ",1", "]"),
            (Format::Lines, "1", "\n1", ""),
        ] {
            let most = format!("{begin}{}{end}", item.repeat(ITEMS_MAX - 1));
            assert_eq!(found(format, &most).unwrap().len(), ITEMS_MAX);
            let more = format!("{begin}{}{end}", item.repeat(ITEMS_MAX));
            assert_eq!(found(format, &more), Err(413));
        }
    }

    #[test]
    fn nesting_of_any_depth_is_an_item_or_a_fault() {
        let deep = "[".repeat(1 << 20);
        assert_eq!(found(Format::Json, &deep), Err(400));
        let closed = format!("[{}{}]", "[".repeat(1 << 19), "]".repeat(1 << 19));
        assert_eq!(found(Format::Json, &closed).unwrap().len(), 1);
    }

    #[test]
    fn types_that_a_foreign_page_may_send_are_415() {
        let of = |value: Option<&str>| {
            let value = value.map(|value| HeaderValue::from_str(value).unwrap());
            let headers: HeaderMap = value
                .into_iter()
                .map(|value| (header::CONTENT_TYPE, value))
                .collect();
            Format::of(&headers).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!(of(Some("application/json")).unwrap(), Format::Json);
        assert_eq!(
            of(Some("Application/JSON; charset=\"UTF-8\"")).unwrap(),
            Format::Json
        );
        assert_eq!(of(Some("application/x-ndjson")).unwrap(), Format::Lines);
        for other in [
            None,
            Some("text/plain"),
            Some("application/x-www-form-urlencoded"),
            Some("multipart/form-data; boundary=x"),
            Some("application/json; charset=utf-16"),
        ] {
            assert_eq!(of(other).unwrap_err(), 415, "{other:?}");
        }
    }
}
