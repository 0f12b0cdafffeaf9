//! The lines of an input, each of bounded length.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Longest line. A topic takes 1 MiB by default, and JSON is longer than Avro.
pub(super) const LINE_MAX_BYTES: usize = 1 << 20;

/// Reads lines of bounded length. A UTF-8 byte order mark before the first one is skipped.
pub(super) struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: usize,
}

#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    /// Without its end.
    Whole(&'a [u8]),
    /// Longer than [`LINE_MAX_BYTES`]; skipped to its end.
    TooLong,
    /// The first line shows that the input is not UTF-8 text.
    Foreign(Foreign),
}

/// Input that has to be converted before it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Foreign {
    /// Its encoding or format.
    pub(super) format: &'static str,
    /// The command that turns it into UTF-8 text.
    pub(super) convert: &'static str,
}

const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// Recognises formats by their first bytes.
fn foreign(beginning: &[u8]) -> Option<Foreign> {
    let (format, convert) = match beginning {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => {
            ("UTF-32 text", "iconv -f UTF-32 -t UTF-8")
        }
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => ("UTF-16 text", "iconv -f UTF-16 -t UTF-8"),
        // Without a byte order mark: ASCII characters, every second byte of which is zero.
        [1..=0xFF, 0, 1..=0xFF, ..] => ("UTF-16 text", "iconv -f UTF-16LE -t UTF-8"),
        [0, 1..=0xFF, 0, ..] => ("UTF-16 text", "iconv -f UTF-16BE -t UTF-8"),
        [0x1F, 0x8B, ..] => ("compressed by gzip", "gzip -dc"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => ("compressed by zstd", "zstd -dc"),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => ("compressed by xz", "xz -dc"),
        [b'B', b'Z', b'h', ..] => ("compressed by bzip2", "bzip2 -dc"),
        _ => return None,
    };
    Some(Foreign { format, convert })
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The number of the line that comes next, from 1 on.
    pub(super) fn next_number(&self) -> usize {
        self.number + 1
    }

    /// The next line and its number, from 1 on; `None` at the end.
    pub(super) async fn next(&mut self) -> std::io::Result<Option<(usize, Line<'_>)>> {
        self.line.clear();
        let (mut too_long, mut begun) = (false, false);
        loop {
            let chunk = self.input.fill_buf().await?;
            if chunk.is_empty() && !begun {
                return Ok(None);
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            too_long |= self.line.len() + part.len() > LINE_MAX_BYTES;
            if !too_long {
                self.line.extend_from_slice(part);
            }
            begun = true;
            let at_end_of_input = chunk.is_empty();
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.input.consume(used);
            if end.is_some() || at_end_of_input {
                break;
            }
        }
        self.number += 1;
        let mut text = self.line.as_slice();
        if self.number == 1 {
            if let Some(foreign) = foreign(text) {
                return Ok(Some((self.number, Line::Foreign(foreign))));
            }
            text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
        }
        let line = match too_long {
            true => Line::TooLong,
            false => Line::Whole(text),
        };
        Ok(Some((self.number, line)))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::BufReader;

    use super::*;

    async fn lengths(input: &[u8]) -> Vec<(usize, Option<usize>)> {
        let mut lines = Lines::new(BufReader::with_capacity(64, input));
        let mut lengths = Vec::new();
        while let Some((number, line)) = lines.next().await.unwrap() {
            let length = match line {
                Line::Whole(line) => Some(line.len()),
                Line::TooLong => None,
                Line::Foreign(foreign) => panic!("{foreign:?}"),
            };
            lengths.push((number, length));
        }
        lengths
    }

    #[tokio::test]
    async fn lines_are_counted_and_one_that_is_too_long_is_skipped_to_its_end() {
        assert_eq!(lengths(b"").await, []);
        assert_eq!(
            lengths(b"a\n\nbc").await,
            [(1, Some(1)), (2, Some(0)), (3, Some(2))]
        );
        let mut input = b"a\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', LINE_MAX_BYTES));
        input.push(b'\n');
        input.extend(std::iter::repeat_n(b'x', LINE_MAX_BYTES + 1));
        input.extend(b"\nb\n");
        assert_eq!(
            lengths(&input).await,
            [
                (1, Some(1)),
                (2, Some(LINE_MAX_BYTES)),
                (3, None),
                (4, Some(1))
            ]
        );
    }

    #[tokio::test]
    async fn a_byte_order_mark_is_skipped_at_the_beginning_only() {
        let lengths = lengths(b"\xEF\xBB\xBF{}\n\xEF\xBB\xBF{}").await;
        assert_eq!(lengths, [(1, Some(2)), (2, Some(5))]);
    }

    #[tokio::test]
    async fn other_encodings_and_compressed_files_are_recognised() {
        let utf_16 = |text: &str, bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            text.encode_utf16().flat_map(bytes).collect()
        };
        for (input, convert) in [
            (
                utf_16("\u{FEFF}{\n", u16::to_le_bytes),
                "iconv -f UTF-16 -t UTF-8",
            ),
            (
                utf_16("\u{FEFF}{\n", u16::to_be_bytes),
                "iconv -f UTF-16 -t UTF-8",
            ),
            (
                utf_16("{\"", u16::to_le_bytes),
                "iconv -f UTF-16LE -t UTF-8",
            ),
            (
                utf_16("{\"", u16::to_be_bytes),
                "iconv -f UTF-16BE -t UTF-8",
            ),
            (b"\xFF\xFE\0\0{\0\0\0".to_vec(), "iconv -f UTF-32 -t UTF-8"),
            (b"\x1F\x8B\x08\0".to_vec(), "gzip -dc"),
            (b"\x28\xB5\x2F\xFD".to_vec(), "zstd -dc"),
            (b"\xFD7zXZ\0".to_vec(), "xz -dc"),
            (b"BZh9".to_vec(), "bzip2 -dc"),
        ] {
            // Byte by byte, as a pipe may give it.
            let mut lines = Lines::new(BufReader::with_capacity(1, input.as_slice()));
            match lines.next().await.unwrap() {
                Some((1, Line::Foreign(foreign))) => assert_eq!(foreign.convert, convert),
                other => panic!("{convert}: {other:?}"),
            }
        }
    }
}
