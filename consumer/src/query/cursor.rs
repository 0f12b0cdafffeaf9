//! Cursors of paged lists.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use schemas::REPORTED_AT_MICROS;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::reader::{QueryError, is_no_text};

/// Increase when the meaning of a cursor changes.
const VERSION: u32 = 1;
/// Bytes of the digest that a cursor keeps. The digest detects mistakes, not forgery: a forged cursor reveals nothing
/// that its holder could not query directly.
const DIGEST_BYTES: usize = 12;

/// The cursor of the page after `position`: opaque, URL-safe text. `query` holds everything that must be the same for each
/// page.
pub(super) fn cursor(query: &impl Serialize, position: &impl Serialize) -> String {
    let text = serde_json::to_vec(&(VERSION, digest(query), position));
    URL_SAFE_NO_PAD.encode(text.unwrap_or_default())
}

/// The position encoded in a cursor; `None` if there is no cursor.
///
/// # Errors
/// If the cursor is invalid or belongs to another query.
pub(super) fn position<P: DeserializeOwned>(
    cursor: Option<&str>,
    query: &impl Serialize,
) -> Result<Option<P>, QueryError> {
    let Some(text) = cursor else {
        return Ok(None);
    };
    let read = URL_SAFE_NO_PAD.decode(text).ok();
    let read = read.and_then(|json| serde_json::from_slice::<(u32, String, Value)>(&json).ok());
    let why = match read {
        Some((version, ..)) if version != VERSION => {
            "was issued by another version of this program"
        }
        Some((_, sum, _)) if sum != digest(query) => {
            "was issued for other filters, or another order, time or threshold"
        }
        Some((.., position)) if !has_nul(&position) => {
            return serde_json::from_value(position)
                .map(Some)
                .map_err(|_| altered());
        }
        _ => return Err(altered()),
    };
    Err(QueryError::Cursor { why })
}

/// A cursor's time from microseconds since 1970.
///
/// # Errors
/// If it is out of range.
pub(super) fn time(micros: i64) -> Result<Timestamp, QueryError> {
    // `Timestamp::MAX` has nanoseconds, so its microseconds alone are in range.
    Timestamp::from_nanosecond(i128::from(micros) * 1_000).map_err(|_| altered())
}

/// A report's time in microseconds since 1970. Some reports are later than [`Timestamp::MAX`].
///
/// # Errors
/// If no report can have this time.
pub(super) fn reported(micros: i64) -> Result<i64, QueryError> {
    let contracted = REPORTED_AT_MICROS.contains(&micros);
    contracted.then_some(micros).ok_or_else(altered)
}

/// The cursor was not issued by this program.
pub(super) fn altered() -> QueryError {
    QueryError::Cursor {
        why: "was not issued by this program",
    }
}

fn digest(query: &impl Serialize) -> String {
    let asked = serde_json::to_vec(query);
    let digest = Sha256::digest(asked.unwrap_or_default());
    URL_SAFE_NO_PAD.encode(&digest[..DIGEST_BYTES])
}

/// Whether any string in it contains NUL, which PostgreSQL refuses in a parameter.
fn has_nul(position: &Value) -> bool {
    match position {
        Value::String(text) => is_no_text(text),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.values().any(has_nul),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Number;

    use super::*;

    type Position = (i64, Option<Number>, String);

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_of_its_own_query_alone() {
        let keys = [
            None,
            Some(Number::from(i64::MIN)),
            Number::from_f64(0.1 + 0.2),
        ];
        for key in keys {
            let written: Position = (1_764_079_500_123_456, key, "exec-1 '\" ü 日本".to_owned());
            let text = cursor(&"query", &written);
            assert_eq!(position(Some(&text), &"query").unwrap(), Some(written));
            let other = position::<Position>(Some(&text), &"other").unwrap_err();
            assert!(other.to_string().contains("other filters"), "{other}");
        }
        assert_eq!(position::<Position>(None, &"query").unwrap(), None);
    }

    #[test]
    fn whatever_else_is_given_as_a_cursor_is_refused() {
        let other_version = URL_SAFE_NO_PAD.encode(r#"[2,"",[]]"#);
        let other_place = cursor(&"query", &("exec-1",));
        let nul = cursor(&"query", &(0, None::<i64>, "a\0b"));
        let whole = cursor(&"query", &(0, None::<i64>, "exec-1"));
        for text in [
            "",
            "e30",
            "!",
            "AAAA",
            &other_version,
            &other_place,
            &nul,
            &whole[1..],
        ] {
            let refused = position::<Position>(Some(text), &"query")
                .unwrap_err()
                .to_string();
            assert!(refused.starts_with("the cursor was"), "{refused}");
        }
        assert!(time(i64::MAX).is_err());
    }
}
