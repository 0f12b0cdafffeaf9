//! The lines of an input, each of bounded length.

use std::io;

use futures_util::StreamExt;
use tokio::io::AsyncRead;
use tokio_util::bytes::{Bytes, BytesMut};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Decoder, FramedRead};

use crate::json::REPORT_MAX_BYTES;

/// Initial size of the buffer.
const BUFFER_BYTES: usize = 1 << 16;

/// Reads lines of bounded length. A UTF-8 byte order mark before the first one is skipped.
pub(super) struct Lines<R> {
    lines: FramedRead<R, LineCodec>,
    number: usize,
}

#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// Without its end.
    Whole(Bytes),
    /// Longer than [`REPORT_MAX_BYTES`]; skipped to its end.
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

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        let codec = LineCodec {
            lines: AnyDelimiterCodec::new_with_max_length(
                b"\n".to_vec(),
                Vec::new(),
                REPORT_MAX_BYTES,
            ),
            is_first: true,
        };
        Self {
            lines: FramedRead::with_capacity(input, codec, BUFFER_BYTES),
            number: 0,
        }
    }

    /// The number of the line that comes next, from 1 on.
    pub(super) fn next_number(&self) -> usize {
        self.number + 1
    }

    /// The next line and its number, from 1 on; `None` at the end.
    pub(super) async fn next(&mut self) -> io::Result<Option<(usize, Line)>> {
        let line = self.lines.next().await.transpose()?;
        self.number += usize::from(line.is_some());
        Ok(line.map(|line| (self.number, line)))
    }
}

/// Not `LinesCodec`: it fails at bytes that are not UTF-8 and drops them, where a bad line must have a number and its
/// fault. And too long a line is an item here, since `FramedRead` ends after an error.
struct LineCodec {
    lines: AnyDelimiterCodec,
    is_first: bool,
}

impl LineCodec {
    /// `rest` is the buffer behind what was decoded: of too long a line, its beginning.
    fn line(
        &mut self,
        decoded: Result<Option<Bytes>, AnyDelimiterCodecError>,
        rest: &[u8],
    ) -> io::Result<Option<Line>> {
        let line = match decoded {
            Ok(None) => return Ok(None),
            Ok(Some(line)) => Line::Whole(line),
            Err(AnyDelimiterCodecError::MaxChunkLengthExceeded) => Line::TooLong,
            Err(AnyDelimiterCodecError::Io(error)) => return Err(error),
        };
        if !std::mem::take(&mut self.is_first) {
            return Ok(Some(line));
        }
        let beginning = match &line {
            Line::Whole(line) => line,
            _ => rest,
        };
        Ok(Some(match (foreign(beginning), line) {
            (Some(foreign), _) => Line::Foreign(foreign),
            (None, Line::Whole(mut text)) if text.starts_with(BYTE_ORDER_MARK) => {
                Line::Whole(text.split_off(BYTE_ORDER_MARK.len()))
            }
            (None, line) => line,
        }))
    }
}

impl Decoder for LineCodec {
    type Item = Line;
    type Error = io::Error;

    fn decode(&mut self, input: &mut BytesMut) -> io::Result<Option<Line>> {
        let decoded = self.lines.decode(input);
        self.line(decoded, input)
    }

    fn decode_eof(&mut self, input: &mut BytesMut) -> io::Result<Option<Line>> {
        let decoded = self.lines.decode_eof(input);
        self.line(decoded, input)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    async fn lengths(input: &[u8]) -> Vec<(usize, Option<usize>)> {
        let mut lines = Lines::new(input);
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
        input.extend(std::iter::repeat_n(b'x', REPORT_MAX_BYTES));
        input.push(b'\n');
        input.extend(std::iter::repeat_n(b'x', REPORT_MAX_BYTES + 1));
        input.extend(b"\nb\n");
        assert_eq!(
            lengths(&input).await,
            [
                (1, Some(1)),
                (2, Some(REPORT_MAX_BYTES)),
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
            let (mut pipe, output) = tokio::io::duplex(1);
            tokio::spawn(async move { pipe.write_all(&input).await });
            let mut lines = Lines::new(output);
            match lines.next().await.unwrap() {
                Some((1, Line::Foreign(foreign))) => assert_eq!(foreign.convert, convert),
                other => panic!("{convert}: {other:?}"),
            }
        }
    }
}
