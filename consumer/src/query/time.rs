//! Time ranges of queries, and the time format of answers.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serializer;

use super::reader::QueryError;

/// Default length of a query's time range.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// RFC 3339 in UTC with microseconds: the format of every time in an answer.
pub(super) fn rfc3339<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

pub(super) fn optional_rfc3339<S: Serializer>(
    time: &Option<Timestamp>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// `time - by`, or `Timestamp::MIN`.
pub(super) fn earlier(time: Timestamp, by: Duration) -> Timestamp {
    let by = SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX);
    time.checked_sub(by).unwrap_or(Timestamp::MIN)
}

/// The range from `from` (default: 24 hours before the end) to `to` (default: now).
///
/// # Errors
/// If it is empty.
pub(super) fn range(
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    now: Timestamp,
) -> Result<(Timestamp, Timestamp), QueryError> {
    let to = to.unwrap_or(now);
    let from = from.unwrap_or_else(|| earlier(to, DAY));
    match from < to {
        true => Ok((from, to)),
        false => Err(QueryError::Parameter {
            name: "to",
            why: format!("{to} is not after from, {from}"),
        }),
    }
}
