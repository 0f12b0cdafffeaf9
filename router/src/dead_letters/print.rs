//! Letters as tables and as JSON.

use jiff::Timestamp;
use serde_json::json;
use service::grid;
use service::text::shown;

use super::letter::Letter;

/// A letter as `list --json` prints it.
pub(super) fn as_json(letter: &Letter) -> serde_json::Value {
    let (source, first) = (letter.source.as_ref(), letter.first());
    json!({
        "partition": letter.position.partition,
        "offset": letter.position.offset,
        "written_at": time(letter.written_ms),
        "service": &*letter.service,
        "reason": &*letter.kind,
        "message": &*letter.message,
        "source_topic": source.map(|source| &*source.topic),
        "source_partition": source.map(|source| source.position.partition),
        "source_offset": source.map(|source| source.position.offset),
        "original_timestamp_ms": letter.original_ms,
        "first_topic": first.map(|first| first.topic),
        "first_partition": first.map(|first| first.partition),
        "first_offset": first.map(|first| first.offset),
        "first_timestamp_ms": first.and_then(|first| first.timestamp_ms),
        "key": letter.key.as_deref().map(String::from_utf8_lossy),
        "value_bytes": letter.value_bytes,
        "value_omitted": letter.omitted,
        "redriven_at": letter.redriven.as_ref().map(|redriven| &*redriven.at),
        "redriven_times": letter.redriven.as_ref().map_or(0, |redriven| redriven.times),
    })
}

/// A table with one row per letter.
pub(super) fn table(letters: &[&Letter]) -> String {
    let mut table = grid::table(&[
        "letter", "written", "by", "reason", "from", "key", "bytes", "redriven",
    ]);
    for letter in letters {
        let from = letter.source.as_ref().map_or("-".to_owned(), |source| {
            format!("{} {}", shown(&source.topic), source.position)
        });
        let bytes = letter
            .value_bytes
            .map_or("-".to_owned(), |bytes| bytes.to_string());
        table.add_row([
            letter.position.to_string(),
            time(letter.written_ms),
            shown(&letter.service),
            shown(&letter.kind),
            from,
            letter.key.as_deref().map_or("-".to_owned(), |key| {
                shortened(&shown(&String::from_utf8_lossy(key)))
            }),
            format!("{bytes}{}", if letter.omitted { "*" } else { "" }),
            letter
                .redriven
                .as_ref()
                .map_or("no".to_owned(), |redriven| shown(&redriven.at)),
        ]);
    }
    grid::right_aligned(&mut table, [0, 6])
}

/// A key, shortened for a table.
fn shortened(text: &str) -> String {
    const CHARS: usize = 40;
    match text.char_indices().nth(CHARS) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Milliseconds since 1970 as RFC 3339.
pub(super) fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(
        |_| format!("{ms} ms since 1970"),
        |time| format!("{time:.3}"),
    )
}
