//! Parses `reportedAt`, and guesses the unit of a wrong number.

use super::object::message;

/// Microseconds since 1970 of the years 1973 to 5138. A number outside is taken for another unit: in seconds, milliseconds
/// and nanoseconds, those years have other magnitudes.
const PLAUSIBLE_MICROS: std::ops::Range<i64> = 100_000_000_000_000..100_000_000_000_000_000;

/// A time in microseconds since 1970: RFC 3339 text, or that number.
pub(super) fn reported_at(json: &str) -> Result<i64, String> {
    let text: Option<String> = serde_json::from_str(json).ok();
    let given = text.as_deref().unwrap_or(json).trim();
    if let Ok(number) = given.parse::<f64>() {
        return match given.parse() {
            Ok(micros) if text.is_none() && PLAUSIBLE_MICROS.contains(&micros) => Ok(micros),
            _ => Err(wrong_unit(json, number)),
        };
    }
    let mut deserializer = serde_json::Deserializer::from_str(json);
    schemas::timestamp::deserialize(&mut deserializer).map_err(|error| {
        if given.parse::<jiff::civil::DateTime>().is_ok() {
            return format!(
                "{given:?} has no offset from UTC: end it with Z, or with one such as +08:00"
            );
        }
        message(&error).0
    })
}

fn wrong_unit(json: &str, number: f64) -> String {
    let (unit, micros) = match number {
        1e8..1e11 => ("looks like epoch seconds", Some(number * 1e6)),
        1e11..1e14 => ("looks like epoch milliseconds", Some(number * 1e3)),
        1e14..1e17 => ("is not a whole number in digits", Some(number)),
        1e17..1e20 => ("looks like epoch nanoseconds", Some(number / 1e3)),
        _ => ("is no plausible time in microseconds since 1970", None),
    };
    let meant = micros.and_then(|micros| {
        let micros = micros.round() as i64;
        Some(format!(
            ": {:?} or {micros}",
            schemas::timestamp::to_rfc3339(micros)?
        ))
    });
    let meant = meant.unwrap_or_default();
    format!(
        "{json} {unit}; give RFC 3339 text, or whole microseconds since 1970 as a number{meant}"
    )
}
