//! `router dead-letters show`: letters in full, as far as they can be decoded.

use std::fmt::Write;

use rdkafka::message::{Headers, Message};
use schemas::{DecodeError, Decoder};
use service::output;
use service::range::Position;
use service::schema_source::SchemaSource;
use service::text::{shown, shown_json, to_json_pretty};
use service::words::counted;

use super::letter::{Letter, Original};
use super::letters::{Letters, Selection};
use super::print::time;
use super::topic::DeadLetterTopic;
use crate::outputs::position;

/// Bytes of a value that are dumped without `--full`.
const DUMPED_BYTES: usize = 512;

/// Prints the letters at these positions; returns the exit code.
///
/// # Errors
/// If Kafka or the schema registry does not answer.
pub(super) fn show(
    topic: &DeadLetterTopic<'_>,
    positions: Vec<Position>,
    full: bool,
    schemas: &SchemaSource<Decoder>,
) -> anyhow::Result<u8> {
    let selection = Selection::Positions(positions.into_iter().collect());
    let letters = Letters::read(topic, selection)?;
    let mut texts = Vec::new();
    let (reader, stop) = (&topic.reader, topic.stop);
    reader.scan(&topic.name, &letters.ranges(), stop, |record| {
        if let Some(letter) = letters.found.get(&position(record)) {
            let original = letter.original(record, topic)?;
            if let Ok((_, value)) = &original {
                let schema = |id| schemas.schema_soon(id, stop);
                schemas.decoder.learn(value.as_deref(), schema)?;
            }
            let decoder = &schemas.decoder;
            texts.push(text(&topic.name, letter, record, original, decoder, full)?);
        }
        Ok(())
    })?;
    output::print(&texts.join("\n"))?;
    Ok(letters.report_missing(topic))
}

/// A letter as text.
fn text(
    topic: &str,
    letter: &Letter,
    record: &impl Message,
    original: Original,
    decoder: &Decoder,
    full: bool,
) -> anyhow::Result<String> {
    let mut text = String::new();
    let source = letter.source.as_ref().map_or("unknown".to_owned(), |s| {
        format!(
            "{} partition {} offset {}",
            shown(&s.topic),
            s.position.partition,
            s.position.offset
        )
    });
    let redriven = match &letter.redriven {
        None => "no".to_owned(),
        Some(redriven) if redriven.times == 1 => shown(&redriven.at),
        Some(redriven) => format!("{} times, last {}", redriven.times, shown(&redriven.at)),
    };
    writeln!(text, "letter     {} of {topic}", letter.position)?;
    writeln!(text, "written    {}", time(letter.written_ms))?;
    writeln!(text, "from       {source}")?;
    if let Some(ms) = letter.original_ms {
        writeln!(text, "its time   {}", time(ms))?;
    }
    if let Some(first) = letter.first_before_redrives() {
        writeln!(
            text,
            "at first   {} partition {} offset {}{}",
            shown(first.topic),
            first.partition,
            first.offset,
            first
                .timestamp_ms
                .map_or(String::new(), |ms| format!(", {}", time(ms)))
        )?;
    }
    writeln!(text, "set aside  by {}", shown(&letter.service))?;
    writeln!(
        text,
        "reason     {}: {}",
        shown(&letter.kind),
        shown(&letter.message)
    )?;
    writeln!(text, "redriven   {redriven}")?;
    writeln!(text, "headers")?;
    for header in record.headers().into_iter().flat_map(Headers::iter) {
        let value = header.value.map_or("(null)".to_owned(), bytes_shown);
        writeln!(text, "  {} = {value}", shown(header.key))?;
    }
    let (key, value) = match original {
        Ok(original) => original,
        Err(why) => {
            let key = letter.key.as_deref().map_or("(none)".into(), bytes_shown);
            writeln!(text, "key        {key}")?;
            let bytes = letter.value_bytes.unwrap_or(0);
            let (bytes, why) = (counted(bytes, "byte"), shown(&why.to_string()));
            writeln!(text, "value      {bytes}, not available: {why}")?;
            return Ok(text);
        }
    };
    let key = key.as_deref().map_or("(none)".into(), bytes_shown);
    writeln!(text, "key        {key}")?;
    let Some(value) = value else {
        writeln!(text, "value      none (null)")?;
        return Ok(text);
    };
    let from = if letter.omitted {
        "; omitted in the letter, read from the original record"
    } else {
        ""
    };
    writeln!(text, "value      {}{from}", counted(value.len(), "byte"))?;
    text.push_str(&decoded(decoder, &value)?);
    text.push_str(&dump(&value, if full { usize::MAX } else { DUMPED_BYTES }));
    Ok(text)
}

/// The value, as far as it can be decoded.
fn decoded(decoder: &Decoder, value: &[u8]) -> anyhow::Result<String> {
    let mut text = String::new();
    let framing = match value.first() {
        Some(0) => "a schema registry's framing",
        _ => "single-object encoding",
    };
    let error = match decoder.info(Some(value)) {
        Ok(info) => {
            writeln!(text, "framing    a whole TaskRunningInfo, {framing}")?;
            for problem in info.problems() {
                writeln!(text, "problem    {}", shown(&problem.to_string()))?;
            }
            writeln!(text, "{}", to_json_pretty(&info)?)?;
            return Ok(text);
        }
        Err(error) => error,
    };
    let error = match decoder.event(Some(value)) {
        Ok(event) => {
            writeln!(text, "framing    a whole TaskRunningInfoEvent, {framing}")?;
            writeln!(text, "{}", to_json_pretty(&event)?)?;
            return Ok(text);
        }
        // The error of the record type whose schema is known.
        Err(other)
            if matches!(
                error,
                DecodeError::UnknownSchema { .. } | DecodeError::OtherSchema { .. }
            ) =>
        {
            other
        }
        Err(_) => error,
    };
    match &error {
        DecodeError::UnknownSchema { fingerprint, .. } => writeln!(
            text,
            "framing    single-object encoding, schema fingerprint {fingerprint:016x}: of no released version of TaskRunningInfo or TaskRunningInfoEvent"
        )?,
        DecodeError::UnknownFraming { .. } => {
            if let Ok(json) = serde_json::from_slice::<serde_json::Value>(value) {
                writeln!(text, "framing    none: JSON")?;
                writeln!(text, "{}", to_json_pretty(&json)?)?;
            } else {
                writeln!(text, "framing    {}", shown(&error.to_string()))?;
            }
        }
        DecodeError::NoSchemaRegistry { id } => writeln!(
            text,
            "framing    a schema registry's, schema id {id} (if it is one); --schema-registry tells more"
        )?,
        DecodeError::UnknownSchemaId { .. } | DecodeError::OtherSchema { .. } => {
            writeln!(text, "framing    {framing}")?;
            writeln!(text, "fault      {}", shown(&error.to_string()))?;
        }
        DecodeError::NoValue | DecodeError::Empty => {}
        DecodeError::Malformed { record, writer, .. } => {
            writeln!(text, "framing    {framing}, {record} of {writer}")?;
            writeln!(text, "fault      {}", shown(&error.to_string()))?;
        }
        DecodeError::TrailingBytes { record, .. } => {
            writeln!(text, "framing    {framing}, {record}")?;
            writeln!(text, "fault      {}", shown(&error.to_string()))?;
        }
    }
    let fields = schemas::readable_fields(decoder, value);
    if !fields.is_empty() {
        writeln!(text, "readable before the fault")?;
        for (field, json) in fields {
            writeln!(text, "  {} = {}", shown(&field), shown_json(&json))?;
        }
    }
    Ok(text)
}

/// A hexadecimal dump, as `hexdump -C` writes it.
fn dump(bytes: &[u8], at_most: usize) -> String {
    let mut text = String::new();
    for (line, chunk) in bytes[..bytes.len().min(at_most)].chunks(16).enumerate() {
        let (mut hex, mut ascii) = (String::new(), String::new());
        for (i, byte) in chunk.iter().enumerate() {
            let gap = if i == 8 { "  " } else { " " };
            let _ = write!(hex, "{gap}{byte:02x}");
            ascii.push(match byte {
                0x20..=0x7e => char::from(*byte),
                _ => '.',
            });
        }
        let _ = writeln!(text, "{:08x} {hex:<49}  |{ascii}|", line * 16);
    }
    if bytes.len() > at_most {
        let _ = writeln!(
            text,
            "… {} more; all with --full",
            counted(bytes.len() - at_most, "byte")
        );
    }
    text
}

/// Bytes as text if they are UTF-8, otherwise in hexadecimal.
fn bytes_shown(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).map_or_else(
        |_| {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{} (bytes)", hex.join(" "))
        },
        shown,
    )
}

#[cfg(test)]
mod tests {
    use super::dump;

    #[test]
    fn a_dump_has_sixteen_bytes_per_line_and_counts_the_omitted_ones() {
        let bytes: Vec<u8> = (0x3c..=0x4d).chain([0xff]).collect();
        assert_eq!(
            dump(&bytes, 18),
            "00000000  3c 3d 3e 3f 40 41 42 43  44 45 46 47 48 49 4a 4b  |<=>?@ABCDEFGHIJK|\n\
             00000010  4c 4d                                             |LM|\n\
             … 1 byte more; all with --full\n"
        );
        assert_eq!(dump(&[], 16), "");
    }
}
