//! Singular and plural in messages.

use std::fmt::Display;

/// A counted noun: `1 record`, `2 records`. `thing` is the singular of a word whose plural ends in `s`; a
/// word ending in `y` after a consonant becomes `ies`, one ending in `s`, `x` or `ch` becomes `es`.
pub fn counted(count: impl Display, thing: &str) -> String {
    let count = count.to_string();
    match count.as_str() {
        "1" => format!("1 {thing}"),
        _ => format!("{count} {}", plural(thing)),
    }
}

/// `one` for 1, else `many`: for the verb or pronoun beside a number, as in `is` and `are`.
pub fn agreed<'a>(count: impl Into<u128>, one: &'a str, many: &'a str) -> &'a str {
    match count.into() {
        1 => one,
        _ => many,
    }
}

fn plural(thing: &str) -> String {
    let ends_in = |ends: &[&str]| ends.iter().any(|end| thing.ends_with(end));
    match thing.strip_suffix('y') {
        Some(stem) if !ends_in(&["ay", "ey", "oy", "uy"]) => format!("{stem}ies"),
        _ if ends_in(&["s", "x", "ch"]) => format!("{thing}es"),
        _ => format!("{thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular_and_every_other_number_plural() {
        assert_eq!(counted(0, "record"), "0 records");
        assert_eq!(counted(1, "record"), "1 record");
        assert_eq!(counted(2_u64, "dead letter"), "2 dead letters");
        assert_eq!(counted(-1, "row"), "-1 rows");
        assert_eq!(counted("1,000", "byte"), "1,000 bytes");
        assert_eq!(counted(3, "retry"), "3 retries");
        assert_eq!(counted(3, "key"), "3 keys");
        assert_eq!(counted(3, "batch"), "3 batches");
        assert_eq!(
            (agreed(1_u64, "is", "are"), agreed(2_u64, "is", "are")),
            ("is", "are")
        );
    }
}
