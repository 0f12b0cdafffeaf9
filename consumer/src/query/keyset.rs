//! Where a page of a list of groups ends and the next one begins.

use std::fmt::Debug;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::reader::QueryError;

/// Changes where cursors change their meaning.
const VERSION: u32 = 1;
/// Bytes of the digest that are kept: it guards against mistakes, not against forgery. A forged cursor shows nothing
/// that its holder could not ask for.
const DIGEST_BYTES: usize = 12;

/// The last group of a page, as its successor needs it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Keyset {
    #[serde(rename = "v")]
    version: u32,
    /// Of all that has to be the same on each page.
    #[serde(rename = "q")]
    digest: String,
    /// When the first page was asked for, in microseconds since 1970.
    #[serde(rename = "m")]
    moment: i64,
    /// What the list is ordered by, in microseconds since 1970, if that is a time.
    #[serde(rename = "t")]
    time: i64,
    /// The group's name.
    #[serde(rename = "k")]
    pub(super) key: Vec<String>,
}

impl Keyset {
    pub(super) fn after(
        query: &impl Debug,
        moment: Timestamp,
        time: i64,
        key: Vec<String>,
    ) -> Self {
        Self {
            version: VERSION,
            digest: digest(query),
            moment: moment.as_microsecond(),
            time,
            key,
        }
    }

    /// Opaque text, fit for a URL.
    pub(super) fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads a cursor of this query, whose names have `parts`. `query` is without its cursor and limit.
    ///
    /// # Errors
    /// If it is none, or one of another query.
    pub(super) fn read(text: &str, query: &impl Debug, parts: usize) -> Result<Self, QueryError> {
        let refused = |why| Err(QueryError::Cursor { why });
        let read = URL_SAFE_NO_PAD.decode(text).ok();
        let read = read.and_then(|json| serde_json::from_slice::<Self>(&json).ok());
        match read {
            Some(cursor) if cursor.version != VERSION => {
                refused("is of another version of this program")
            }
            Some(cursor) if cursor.digest != digest(query) => {
                refused("was given for other filters or times")
            }
            Some(cursor)
                if cursor.key.len() == parts
                    && !cursor.key.iter().any(|name| name.contains('\0')) =>
            {
                Ok(cursor)
            }
            _ => refused("is not one that this program gave"),
        }
    }

    /// When the first page was asked for.
    pub(super) fn moment(&self) -> Result<Timestamp, QueryError> {
        time(self.moment)
    }

    /// What the list is ordered by.
    pub(super) fn time(&self) -> Result<Timestamp, QueryError> {
        time(self.time)
    }
}

fn time(micros: i64) -> Result<Timestamp, QueryError> {
    Timestamp::from_microsecond(micros).map_err(|_| QueryError::Cursor {
        why: "is not one that this program gave",
    })
}

fn digest(query: &impl Debug) -> String {
    let sum = Sha256::digest(format!("{query:?}"));
    URL_SAFE_NO_PAD.encode(&sum[..DIGEST_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_by_its_own_query_only() {
        let key = || vec!["job-'1\"".to_owned(), "日本".to_owned()];
        let cursor = Keyset::after(&"query", Timestamp::UNIX_EPOCH, 7, key());
        let text = cursor.text();
        assert_eq!(Keyset::read(&text, &"query", 2).unwrap(), cursor);
        for refused in [
            Keyset::read(&text, &"other", 2),
            Keyset::read(&text, &"query", 1),
            Keyset::read(&text[1..], &"query", 2),
            Keyset::read("", &"query", 2),
        ] {
            assert!(matches!(refused, Err(QueryError::Cursor { .. })));
        }
        let far = Keyset::after(&"query", Timestamp::UNIX_EPOCH, i64::MAX, key());
        assert!(far.time().is_err());
    }
}
