//! Where a page ends and the next one begins.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Number;
use sha2::{Digest, Sha256};

use super::filter::TaskQuery;
use super::reader::QueryError;

/// Changes where cursors change their meaning.
const VERSION: u32 = 1;
/// Bytes of the digest that are kept: it guards against mistakes, not against forgery. A forged cursor shows nothing
/// that its holder could not ask for.
const DIGEST_BYTES: usize = 12;

/// The last task of a page, as its successor needs it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cursor {
    #[serde(rename = "v")]
    version: u32,
    /// Of all that has to be the same on each page.
    #[serde(rename = "q")]
    digest: String,
    /// Microseconds since 1970: when silence, stalling and running times were judged on the first page, and are on
    /// each.
    #[serde(rename = "m")]
    pub(super) moment: i64,
    /// What the last task is ordered by; `None` if it has no such value.
    #[serde(rename = "k")]
    pub(super) key: Option<Number>,
    #[serde(rename = "e")]
    pub(super) exec_id: String,
}

impl Cursor {
    pub(super) fn after(
        query: &TaskQuery,
        moment: Timestamp,
        key: Option<Number>,
        exec_id: &str,
    ) -> Self {
        Self {
            version: VERSION,
            digest: digest(query),
            moment: moment.as_microsecond(),
            key,
            exec_id: exec_id.to_owned(),
        }
    }

    /// Opaque text, fit for a URL.
    pub(super) fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// The cursor of a query, if it has one.
    ///
    /// # Errors
    /// If it is none, or one of another query.
    pub(super) fn of(query: &TaskQuery) -> Result<Option<Self>, QueryError> {
        let Some(text) = &query.cursor else {
            return Ok(None);
        };
        let refused = |why| Err(QueryError::Cursor { why });
        let read = URL_SAFE_NO_PAD.decode(text).ok();
        let read = read.and_then(|json| serde_json::from_slice::<Self>(&json).ok());
        match read {
            Some(cursor) if cursor.version != VERSION => {
                refused("is of another version of this program")
            }
            Some(cursor) if cursor.digest != digest(query) => {
                refused("was given for other filters, another order, time or threshold")
            }
            Some(cursor) if !cursor.exec_id.contains('\0') => Ok(Some(cursor)),
            _ => refused("is not one that this program gave"),
        }
    }

    /// When silence, stalling and running times are judged.
    pub(super) fn moment(&self) -> Result<Timestamp, QueryError> {
        Timestamp::from_microsecond(self.moment).map_err(|_| QueryError::Cursor {
            why: "is not one that this program gave",
        })
    }
}

fn digest(query: &TaskQuery) -> String {
    let TaskQuery {
        filter,
        order,
        descending,
        at,
        thresholds,
        limit: _,
        cursor: _,
    } = query;
    let asked = serde_json::to_vec(&(filter, order, descending, at, thresholds));
    let digest = Sha256::digest(asked.unwrap_or_default());
    URL_SAFE_NO_PAD.encode(&digest[..DIGEST_BYTES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::{TaskFilter, TaskOrder, Thresholds};

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_of_its_own_query_alone() {
        let query = TaskQuery::default();
        let moment = Timestamp::from_microsecond(1_764_079_500_123_456).unwrap();
        let keys = [
            None,
            Some(Number::from(i64::MIN)),
            Number::from_f64(0.1 + 0.2),
        ];
        for key in keys {
            let written = || Cursor::after(&query, moment, key.clone(), "exec-1 \" ü");
            let mut next = TaskQuery {
                cursor: Some(written().text()),
                limit: 1,
                ..query.clone()
            };
            assert_eq!(Cursor::of(&next).unwrap(), Some(written()));
            assert_eq!(written().moment().unwrap(), moment);
            next.descending = false;
            assert!(Cursor::of(&next).is_err());
        }
        let cursor = Some(Cursor::after(&query, Timestamp::now(), None, "exec-1").text());
        let another = |change: fn(&mut TaskQuery)| {
            let mut other = TaskQuery {
                cursor: cursor.clone(),
                ..query.clone()
            };
            change(&mut other);
            Cursor::of(&other).unwrap_err().to_string()
        };
        for change in [
            (|query| query.order = TaskOrder::Started) as fn(&mut TaskQuery),
            |query| query.at = Some(Timestamp::UNIX_EPOCH),
            |query| query.filter.user = Some("ada".to_owned()),
            |query| {
                query.filter = TaskFilter {
                    ended_after: Some(Timestamp::UNIX_EPOCH),
                    ..TaskFilter::default()
                }
            },
            |query| {
                query.thresholds = Thresholds {
                    silent_after: Some(std::time::Duration::from_secs(1)),
                    ..Thresholds::default()
                }
            },
        ] {
            assert!(another(change).contains("other filters"));
        }
    }

    #[test]
    fn whatever_else_is_given_as_a_cursor_is_refused() {
        let altered = URL_SAFE_NO_PAD.encode(r#"{"v":2,"q":"","m":0,"k":null,"e":""}"#);
        for text in ["", "e30", "!", "AAAA", &altered] {
            let query = TaskQuery {
                cursor: Some(text.to_owned()),
                ..TaskQuery::default()
            };
            let refused = Cursor::of(&query).unwrap_err().to_string();
            assert!(refused.starts_with("the cursor is"), "{refused}");
        }
    }
}
