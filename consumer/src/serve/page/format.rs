//! Formats values for the page. Scripts that update rows use the same formats (`static/clock.js`,
//! `static/rows.js`).

pub(super) use crate::tasks::gib;
use jiff::Timestamp;

/// Shown for a missing value.
pub(super) const ABSENT: &str = "—";

/// `7 s`, `12 m 04 s`, `2 h 10 m`, `3 d 04 h`.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        ..60 => format!("{s} s"),
        60..3_600 => format!("{} m {:02} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {:02} m", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {:02} h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// Only the largest unit.
pub(super) fn coarse(seconds: f64) -> String {
    let whole = duration(seconds);
    let end = whole
        .match_indices(' ')
        .nth(1)
        .map_or(whole.len(), |(end, _)| end);
    whole[..end].to_owned()
}

/// The age of an RFC 3339 time at `now`; other text as it is.
pub(super) fn ago(time: &str, now: Timestamp) -> String {
    let Ok(time) = time.parse::<Timestamp>() else {
        return service::text::shown(time);
    };
    let seconds = now.duration_since(time).as_secs_f64();
    if seconds < -1.0 {
        format!("in {}", duration(-seconds))
    } else {
        format!("{} ago", duration(seconds))
    }
}

pub(super) fn percent(progress: f64) -> String {
    format!("{:.1} %", progress * 100.0)
}

pub(super) fn or_absent<T>(value: Option<T>, shown: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| ABSENT.to_owned(), shown)
}

/// `2026-11-25 14:05:00 UTC`.
pub(super) fn moment(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// With thousands separators: `9,629`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With two decimals and thousands separators: `1,234.50`; small positive values are `< 0.01`.
pub(super) fn amount(value: f64) -> String {
    match value {
        value if value > 0.0 && value < 0.01 => "< 0.01".to_owned(),
        // Avoids digits beyond the precision of a double.
        value if value >= 1e15 => format!("{value:.3e}"),
        value => {
            let text = format!("{:.2}", value.max(0.0));
            match text.split_once('.') {
                Some((whole, part)) => {
                    format!("{}.{part}", count(whole.parse().unwrap_or_default()))
                }
                None => text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_at_a_glance() {
        assert_eq!(duration(7.9), "7 s");
        assert_eq!(duration(724.0), "12 m 04 s");
        assert_eq!(duration(7_800.0), "2 h 10 m");
        assert_eq!(duration(273_600.0), "3 d 04 h");
        assert_eq!((coarse(7.0), coarse(724.0)), ("7 s".into(), "12 m".into()));
        assert_eq!(duration(f64::NAN), "0 s");
        assert_eq!(gib(6 << 30), "6.00 GiB");
        assert_eq!(percent(0.7125), "71.2 %");
        assert_eq!(
            (count(0), count(999), count(9_629), count(1_000_000)),
            ("0".into(), "999".into(), "9,629".into(), "1,000,000".into())
        );
        let amounts = [0.0, 0.001, 0.005, 0.0149, 1_234.5, 999.999, 2e15, -1.0].map(amount);
        let read = [
            "0.00", "< 0.01", "< 0.01", "0.01", "1,234.50", "1,000.00", "2.000e15", "0.00",
        ];
        assert_eq!(amounts, read);
        assert_eq!(amount(f64::NAN), "0.00");
        let now = "2026-11-25T14:05:00Z".parse().unwrap();
        assert_eq!(ago("2026-11-25T14:04:48.2Z", now), "11 s ago");
        assert_eq!(ago("2026-11-25T14:05:09Z", now), "in 9 s");
        assert_eq!(moment(now), "2026-11-25 14:05:00 UTC");
    }
}
