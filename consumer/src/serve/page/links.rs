//! Addresses of the page. An address contains everything that a view shows, so it can be shared.

use axum::extract;
use axum::http::Uri;
use jiff::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Characters to escape in a path segment and in a query.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b':');

/// Characters that JavaScript's encodeURIComponent escapes.
const BARE: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'!')
    .remove(b'~')
    .remove(b'*')
    .remove(b'\'')
    .remove(b'(')
    .remove(b')');

pub(super) const TASKS: &str = "/tasks";
pub(super) const TASK: &str = "/task";
pub(super) const JOBS: &str = "/jobs";
pub(super) const ENGINES: &str = "/engines";
pub(super) const USAGE: &str = "/usage";

/// Names and values of a query, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Query(pub(super) Vec<(String, String)>);

/// Suffixes of parameters that are times, besides `at` and [`PERIOD`].
const TIMES: &[&str] = &["_after", "_before"];
/// Parameters of a period. Relative times are kept: `from=-1h` is always the last hour.
pub(super) const PERIOD: &[&str] = &["from", "to"];

impl Query {
    /// The query of an address; empty if it cannot be parsed.
    pub(super) fn of(uri: &Uri) -> Self {
        extract::Query::try_from_uri(uri)
            .map_or_else(|_| Self::default(), |extract::Query(pairs)| Self(pairs))
    }

    /// The normalized query, if this one is not: without empty fields, and with absolute times that have a zone. An
    /// absolute end of a period replaces a relative one, which the form carries in a hidden field.
    pub(super) fn tidied(&self) -> Option<Self> {
        let mut tidy = self.clone();
        tidy.0.retain(|(_, value)| !value.is_empty());
        for end in PERIOD {
            let is_back = |name: &str, value: &str| name == *end && value.starts_with('-');
            let mut given = tidy.0.iter().filter(|(name, _)| name == end);
            if given.any(|(name, value)| !is_back(name, value)) {
                tidy.0.retain(|(name, value)| !is_back(name, value));
            }
        }
        for (name, value) in &mut tidy.0 {
            let is_time = name == "at" || TIMES.iter().any(|end| name.ends_with(end));
            let is_end = PERIOD.contains(&name.as_str()) && !value.starts_with('-');
            if is_time || is_end {
                *value = absolute(value);
            }
        }
        (tidy != *self).then_some(tidy)
    }

    /// Adds a value.
    pub(super) fn and(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    /// Removes these parameters.
    pub(super) fn without(mut self, names: &[&str]) -> Self {
        self.0.retain(|(name, _)| !names.contains(&name.as_str()));
        self
    }

    /// Keeps only these parameters.
    pub(super) fn only(mut self, names: &[&str]) -> Self {
        self.0.retain(|(name, _)| names.contains(&name.as_str()));
        self
    }

    /// The first value of a parameter; empty if there is none.
    pub(super) fn first(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(given, _)| given == name)
            .map_or("", |(_, value)| value)
    }

    /// The address of a path with this query.
    pub(super) fn at(&self, path: &str) -> String {
        let mut address = path.to_owned();
        for (i, (name, value)) in self.0.iter().enumerate() {
            address.push(if i == 0 { '?' } else { '&' });
            address.extend(utf8_percent_encode(name, ESCAPED));
            address.push('=');
            address.extend(utf8_percent_encode(value, ESCAPED));
        }
        address
    }
}

/// Converts a relative time, or a form's time without a zone, to RFC 3339; other text as it is.
fn absolute(text: &str) -> String {
    let is_whole = text.parse::<Timestamp>().is_ok();
    let time = match text.starts_with('-') {
        true => service::time::timestamp(text).ok(),
        false => format!("{text}Z").parse().ok(),
    };
    match time {
        Some(time) if !is_whole => time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        _ => text.to_owned(),
    }
}

/// The path of a task's page. URL parsers remove the segments `.` and `..`, percent-encoded ones too (WHATWG URL, "path
/// state"), so tasks with these ids have the path [`TASK`] and the parameter `exec_id`.
pub(super) fn task_path(exec_id: &str) -> String {
    match is_dots(exec_id) {
        true => TASK.to_owned(),
        false => format!("{TASKS}/{}", utf8_percent_encode(exec_id, ESCAPED)),
    }
}

/// The address of a task's page with these parameters.
pub(super) fn task(exec_id: &str, query: &Query) -> String {
    let query = query.clone().without(&["exec_id"]);
    let query = match is_dots(exec_id) {
        true => query.and("exec_id", exec_id),
        false => query,
    };
    query.at(&task_path(exec_id))
}

/// Whether no path can contain this id.
pub(super) fn is_dots(exec_id: &str) -> bool {
    matches!(exec_id, "." | "..")
}

/// Identifies a row for the scripts: the text escaped as by JavaScript's encodeURIComponent, so that no attribute
/// contains a control character.
pub(super) fn key(text: &str) -> String {
    utf8_percent_encode(text, BARE).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_hold_any_text() {
        let query = Query::default()
            .and("user", "a&b=\"<ü>")
            .and("at", "2026-11-25T14:05:00Z");
        assert_eq!(
            query.at("/tasks"),
            "/tasks?user=a%26b%3D%22%3C%C3%BC%3E&at=2026-11-25T14:05:00Z"
        );
        assert_eq!(
            query.clone().without(&["user"]).at("/tasks"),
            "/tasks?at=2026-11-25T14:05:00Z"
        );
        assert_eq!(Query::default().at("/tasks"), "/tasks");
        let none = Query::default();
        assert_eq!(task("a/b?<c>", &none), "/tasks/a%2Fb%3F%3Cc%3E");
        assert_eq!(
            key("a-b_c.d!e~f*g'h(i)j\0\u{202e}ü&\" %"),
            "a-b_c.d!e~f*g'h(i)j%00%E2%80%AE%C3%BC%26%22%20%25"
        );
    }

    /// As a browser resolves a link.
    #[test]
    fn every_id_survives_a_url_parser() {
        let base = reqwest::Url::parse("http://tasks.example/jobs?x=1").unwrap();
        let time = Query::default().and("at", "2026-11-25T14:05:00Z");
        for id in [
            ".", "..", "...", "%2e%2e", "../..", "a/../b", ".a", "/", "?", "\\", "\t",
        ] {
            let url = base.join(&task(id, &time)).unwrap();
            let address = format!("{}?{}", url.path(), url.query().unwrap());
            let parsed: Uri = address.parse().unwrap();
            let found = match parsed.path().strip_prefix("/tasks/") {
                Some(segment) => percent_encoding::percent_decode_str(segment)
                    .decode_utf8()
                    .unwrap()
                    .into_owned(),
                None => Query::of(&parsed).first("exec_id").to_owned(),
            };
            assert_eq!(found, id, "{url}");
            assert_eq!(Query::of(&parsed).first("at"), time.first("at"), "{url}");
        }
    }

    #[test]
    fn the_fields_of_a_form_become_an_address_to_keep() {
        let of = |text: &str| Query::of(&text.parse().unwrap());
        let form = of(
            "/tasks?user=&at=2026-11-25T14:05&started_after=2026-11-25T14:05:07&status=Failed&user=",
        );
        let tidy = form.tidied().unwrap();
        assert_eq!(
            tidy.at("/tasks"),
            "/tasks?at=2026-11-25T14:05:00Z&started_after=2026-11-25T14:05:07Z&status=Failed"
        );
        assert_eq!(tidy.tidied(), None);
        assert_eq!(
            of("/tasks?at=2026-11-25T14:05:00.5%2B01:00&user=-1h").tidied(),
            None
        );
        assert_eq!(of("/tasks?at=yesterday").tidied(), None);
        let period = of("/usage?from=-1h&to=2026-11-25T14:05");
        assert_eq!(
            period.tidied().unwrap().at(USAGE),
            "/usage?from=-1h&to=2026-11-25T14:05:00Z"
        );
        let filled_in = of("/usage?from=-1h&from=2026-11-25T14:05&to=-5m&to=");
        assert_eq!(
            filled_in.tidied().unwrap().at(USAGE),
            "/usage?from=2026-11-25T14:05:00Z&to=-5m"
        );
        let back = of("/tasks?at=-2h").tidied().unwrap();
        assert!(
            back.first("at").ends_with('Z') && back.tidied().is_none(),
            "{back:?}"
        );
    }
}
