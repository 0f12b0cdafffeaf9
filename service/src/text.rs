//! Escaping of foreign text (records, Kafka, databases, HTTP responses, files) for printing.
//!
//! Control characters control a terminal, and bidirectional or invisible ones make a text look like another.
//! They are printed as escapes: `\u{202e}` for people, `\u202e` in JSON. Visible text of any language is
//! unchanged.

use icu_properties::props::{
    BinaryProperty, DefaultIgnorableCodePoint, EmojiModifier, EnumeratedProperty,
    ExtendedPictographic, GeneralCategory, GeneralCategoryGroup,
};
use serde::Serialize;

/// `U+2800` is a symbol in Unicode, but looks like a space.
const BRAILLE_PATTERN_BLANK: char = '\u{2800}';
const LINE_SEPARATOR: char = '\u{2028}';
const PARAGRAPH_SEPARATOR: char = '\u{2029}';
const VARIATION_SELECTOR_16: char = '\u{FE0F}';
const ZERO_WIDTH_JOINER: char = '\u{200D}';

/// The text on one line: every [hidden](is_hidden) character, including line ends, is escaped.
pub fn shown(text: &str) -> String {
    escaped(text, |_| false, escape)
}

/// As [`shown`], but keeps line ends, for text whose lines are already safe.
pub fn shown_lines(text: &str) -> String {
    escaped(text, |c| c == '\n', escape)
}

/// JSON text of the same value, with every hidden character as a `\u` escape.
pub fn shown_json(json: &str) -> String {
    // In JSON, control characters below U+0020 are layout; in strings they are already escaped.
    escaped(
        json,
        |c| c < ' ',
        |c, shown| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                shown.push_str(&format!("\\u{unit:04x}"));
            }
        },
    )
}

/// Bytes in hexadecimal, lower case.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The value as indented JSON, escaped by [`shown_json`].
///
/// # Errors
/// As of serde_json.
pub fn to_json_pretty(value: &impl Serialize) -> serde_json::Result<String> {
    Ok(shown_json(&serde_json::to_string_pretty(value)?))
}

/// Whether a character is invisible or changes the appearance of others: controls, format characters
/// (including bidirectional ones), line and paragraph separators, private and unassigned code points, and
/// Unicode's default ignorable ones. Spaces are not hidden.
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    c == BRAILLE_PATTERN_BLANK
        || matches!(c, LINE_SEPARATOR | PARAGRAPH_SEPARATOR)
        || DefaultIgnorableCodePoint::for_char(c)
        || GeneralCategoryGroup::Other.contains(GeneralCategory::for_char(c))
}

fn escape(c: char, shown: &mut String) {
    shown.extend(c.escape_default());
}

fn escaped(text: &str, keep: impl Fn(char) -> bool, escape: impl Fn(char, &mut String)) -> String {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    // The last character of the current emoji. U+FE0F and U+200D select and join its pictures.
    let mut emoji = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let in_emoji = match c {
            VARIATION_SELECTOR_16 => emoji.is_some_and(|before| before != c),
            ZERO_WIDTH_JOINER => emoji.is_some() && chars.peek().is_some_and(|c| is_picture(*c)),
            _ => is_picture(c) || EmojiModifier::for_char(c),
        };
        if in_emoji || keep(c) || !is_hidden(c) {
            shown.push(c);
        } else {
            escape(c, &mut shown);
        }
        emoji = in_emoji.then_some(c);
    }
    shown
}

fn is_picture(c: char) -> bool {
    !c.is_ascii() && ExtendedPictographic::for_char(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hidden characters of each kind.
    const HIDDEN: &[char] = &[
        '\0',
        '\u{7}',
        '\u{8}',
        '\t',
        '\n',
        '\r',
        '\u{1b}',
        '\u{7f}',
        '\u{85}',
        '\u{9b}',
        '\u{ad}',
        '\u{34f}',
        '\u{61c}',
        '\u{115f}',
        '\u{17b4}',
        '\u{180e}',
        '\u{200b}',
        '\u{200c}',
        '\u{200d}',
        '\u{200e}',
        '\u{2028}',
        '\u{2029}',
        '\u{202a}',
        '\u{202e}',
        '\u{2060}',
        '\u{2066}',
        '\u{2067}',
        '\u{2069}',
        '\u{2800}',
        '\u{3164}',
        '\u{e000}',
        '\u{fe00}',
        '\u{fe0f}',
        '\u{feff}',
        '\u{ffa0}',
        '\u{fff9}',
        '\u{378}',
        '\u{e0001}',
        '\u{e0041}',
        '\u{e007f}',
        '\u{e0100}',
        '\u{10ffff}',
    ];

    #[test]
    fn hidden_characters_are_escapes() {
        for hidden in HIDDEN {
            let text = format!("a{hidden}b");
            let shown = shown(&text);
            assert_eq!(shown, format!("a{}b", hidden.escape_default()));
            assert!(!shown.contains(*hidden), "{shown}");
        }
        assert_eq!(shown("a\u{1b}[2Jb\nc"), r"a\u{1b}[2Jb\nc");
        assert_eq!(shown("exec-\u{202e}1\u{e0041}"), r"exec-\u{202e}1\u{e0041}");
    }

    #[test]
    fn visible_text_of_any_language_stays() {
        for text in [
            "",
            "exec-1 \\ \"quoted\" 'it'",
            "日本\u{3000}任务",
            "e\u{301} का\u{94d} ไทย",
            "עברית العربية",
            "\u{a0}·€",
            "❤\u{fe0f} 👩\u{200d}👩\u{200d}👧 👍🏽 👩🏽\u{200d}🚀 🏳\u{fe0f}\u{200d}🌈 🇩🇪",
        ] {
            assert_eq!(shown(text), text);
        }
    }

    #[test]
    fn joiners_of_emoji_are_hidden_elsewhere() {
        assert_eq!(shown("1\u{fe0f}a\u{200d}b"), r"1\u{fe0f}a\u{200d}b");
        assert_eq!(shown("👩\u{200d}"), r"👩\u{200d}");
        assert_eq!(shown("❤\u{fe0f}\u{fe0f}"), "❤\u{fe0f}\\u{fe0f}");
    }

    #[test]
    fn lines_keep_their_ends_and_nothing_else() {
        assert_eq!(shown_lines("a\nb\r\u{2028}\n"), "a\nb\\r\\u{2028}\n");
    }

    #[test]
    fn json_keeps_its_values() {
        let value: String = HIDDEN.iter().collect::<String>() + "日本 \"\\";
        let object = serde_json::json!({ &value: [&value] });
        for json in [
            to_json_pretty(&object).unwrap(),
            shown_json(&object.to_string()),
        ] {
            let raw = json.chars().find(|c| is_hidden(*c) && *c != '\n');
            assert_eq!(raw, None, "{json}");
            assert!(
                json.contains("日本") && json.contains("\\udb40\\udc41"),
                "{json}"
            );
            let read: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(read, object);
        }
    }
}
