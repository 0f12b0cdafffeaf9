//! Durations as people write them on a command line.

use std::time::Duration;

use jiff::SignedDuration;

/// The longest time that anything waits: sums of it and the present stay in the range of every clock.
pub(crate) const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
pub(crate) const LONGEST_SHOWN: &str = "876000h (100 years)";

/// Reads `500ms`, `5s`, `2m 30s`, `1h`; longer than nothing, and at most [`LONGEST`].
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_is_longer_than_nothing() {
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
}
