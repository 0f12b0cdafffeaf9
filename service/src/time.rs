//! Parsing of durations and times on a command line.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};

/// Maximum that [`duration`] accepts; added to the current time, it stays in the range of every clock.
pub const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
/// [`LONGEST`], for people.
pub const LONGEST_SHOWN: &str = "876000h (100 years)";
/// The year 1, in seconds since 1970.
const YEAR_1_SECONDS: i64 = -62_135_596_800;

/// Parses a duration: `500ms`, `5s`, `2m 30s`, `1h`; more than 0, and at most [`LONGEST`].
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero() && *duration <= LONGEST)
        .ok_or_else(|| {
            format!(
                "expected a time longer than 0, e.g. 500ms, 5s or 2m, and at most {LONGEST_SHOWN}"
            )
        })
}

/// Parses an age: `30d`, `12h`, `1w 1d`. Days have 24 hours.
///
/// # Errors
/// What was expected.
pub fn age(text: &str) -> Result<SignedDuration, String> {
    text.parse::<Span>()
        .and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()))
        .ok()
        .filter(|age| !age.is_negative())
        .ok_or_else(|| "expected an age in weeks, days or less, as in 30d, 12h or 8w".to_owned())
}

/// Parses a time: RFC 3339, where seconds and minutes of the offset may be omitted (`2026-11-25T14:05Z`), or
/// back from now (`-2h`).
///
/// # Errors
/// What was expected.
pub fn timestamp(text: &str) -> Result<Timestamp, String> {
    let back = text
        .strip_prefix('-')
        .and_then(|ago| ago.parse::<SignedDuration>().ok());
    let timestamp = match back {
        Some(ago) => Timestamp::now().checked_sub(ago).ok(),
        None => text.parse().ok(),
    };
    let timestamp = timestamp.filter(|timestamp| timestamp.as_second() >= YEAR_1_SECONDS);
    timestamp.ok_or_else(|| {
        "expected RFC 3339 as in 2026-11-25T14:05:00Z, or a time back from now as in -2h; in the years 1 to 9999"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_is_not_zero() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m 30s"), Ok(Duration::from_secs(150)));
        assert_eq!(duration("876000h"), Ok(LONGEST));
        for text in [
            "",
            "5",
            "0s",
            "-5s",
            "five",
            "876001h",
            "2562047788015215h",
            "9223372036854775807s",
            "99999999999999999999s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_age_is_in_weeks_days_or_less() {
        for (text, hours) in [("30d", 720), ("12h", 12), ("1w 1d", 192), ("0s", 0)] {
            assert_eq!(age(text), Ok(SignedDuration::from_hours(hours)), "{text}");
        }
        for text in ["", "30", "-1d", "1mo", "a month"] {
            assert!(age(text).is_err(), "{text}");
        }
    }
}
