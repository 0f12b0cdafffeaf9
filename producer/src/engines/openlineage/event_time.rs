//! Parses `eventTime`.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};
use schemas::timestamp::from_rfc3339;

/// Microseconds since 1970, rounded down. RFC 3339, also as Java writes it with its zone (`…Z[Europe/London]`), and as some
/// clients write it without an offset, which then counts as UTC.
pub(super) fn micros(text: &str) -> Option<i64> {
    let text = text.trim();
    from_rfc3339(text).or_else(|| {
        let micros = zoned_or_local(text)?.as_nanosecond().div_euclid(1_000);
        i64::try_from(micros).ok()
    })
}

fn zoned_or_local(text: &str) -> Option<Timestamp> {
    if let Ok(zoned) = text.parse::<ZonedDateTime>() {
        return Some(zoned.timestamp());
    }
    let local: DateTime = text.parse().ok()?;
    TimeZone::UTC.to_timestamp(local).ok()
}
