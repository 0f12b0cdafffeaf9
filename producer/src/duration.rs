//! Durations as people write them on a command line.

use std::time::Duration;

use jiff::SignedDuration;

/// Reads `500ms`, `5s`, `2m 30s`, `1h`; longer than nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    text.parse::<SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a time longer than 0, e.g. 500ms, 5s or 2m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_is_longer_than_nothing() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m 30s"), Ok(Duration::from_secs(150)));
        for text in ["", "5", "0s", "-5s", "five"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
