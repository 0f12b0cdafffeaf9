//! A log's bytes → its text, piece by piece as they arrive. A file that ends in the middle of a frame gives all that
//! comes before, and more bytes may follow.
//!
//! | Codec | Framing | Source |
//! | --- | --- | --- |
//! | zstd | standard frames, one after the other | RFC 8878 |
//! | lz4 | `LZ4Block` blocks with a checksum; an empty block ends a stream, and another may follow | lz4-java, LZ4BlockOutputStream |
//! | snappy | a header, then blocks behind their length | snappy-java, SnappyOutputStream |
//! | lzf | `ZV` chunks of at most 64 KiB | compress-lzf |
//! | gzip | members, one after the other (Databricks) | RFC 1952 |

mod blocks;
mod lzf;

use std::io::Write;

use flate2::write::MultiGzDecoder;
use zstd_safe::{DCtx, InBuffer, OutBuffer, get_error_name};

use self::blocks::Block;

/// Text that a step of zstd makes at most.
const PIECE_BYTES: usize = 256 << 10;
/// gzip makes up to a thousand times as much of this.
const GZIP_INPUT_BYTES: usize = 4 << 10;

/// What a decoder of gzip holds: its window, its tables and a piece of text.
const GZIP_BYTES: usize = 128 << 10;

/// Why no more text can be had from a file.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum Damage {
    #[error(
        "is not a Spark event log: it is neither lines of JSON nor compressed by zstd, lz4, snappy, lzf or gzip as \
         Spark does it; move it out of the folder, or name the logs themselves"
    )]
    NotALog,
    #[error("its {codec} data is damaged: {reason}")]
    Codec { codec: &'static str, reason: String },
}

/// Decodes one file, whose first bytes say how.
#[derive(Default)]
pub(super) struct Decoder {
    codec: Option<Codec>,
    input: Vec<u8>,
    /// Bytes of `input` that are decoded.
    decoded: usize,
}

enum Codec {
    Plain,
    Zstd {
        context: Box<DCtx<'static>>,
        inside: bool,
    },
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Blocks(Block),
}

const GZIP: &[u8] = b"\x1F\x8B";
const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";

impl Decoder {
    /// Takes bytes that follow in the file.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.input.drain(..self.decoded);
        self.decoded = 0;
        self.input.extend_from_slice(bytes);
    }

    /// Appends some text, at most a block or [`PIECE_BYTES`]. `false` once it needs more bytes.
    ///
    /// # Errors
    /// If the bytes cannot be decoded. Nothing behind them can then.
    pub(super) fn decode(&mut self, text: &mut Vec<u8>) -> Result<bool, Damage> {
        let input = &self.input[self.decoded..];
        if input.is_empty() && !matches!(self.codec, Some(Codec::Zstd { .. })) {
            return Ok(false);
        }
        let codec = match &mut self.codec {
            Some(codec) => codec,
            None => match Codec::of(input)? {
                Some(codec) => self.codec.insert(codec),
                None => return Ok(false),
            },
        };
        let (used, is_more) = codec.decode(input, text)?;
        self.decoded += used;
        Ok(is_more)
    }

    /// Shrinks the buffer for input to this many bytes.
    pub(super) fn shrink(&mut self, bytes: usize) {
        self.input.drain(..self.decoded);
        self.decoded = 0;
        self.input.shrink_to(bytes);
        if let Some(Codec::Gzip(decoder)) = &mut self.codec {
            decoder.get_mut().shrink_to(bytes);
        }
    }

    /// What it holds, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let context = match &self.codec {
            Some(Codec::Zstd { context, .. }) => context.sizeof(),
            Some(Codec::Gzip(_)) => GZIP_BYTES,
            None | Some(Codec::Plain | Codec::Blocks(_)) => 0,
        };
        self.input.capacity() + context
    }

    /// At the end of the file: whether it ends in the middle of a frame or block.
    pub(super) fn is_cut(&mut self, text: &mut Vec<u8>) -> bool {
        if self.decoded < self.input.len() {
            return true;
        }
        match &mut self.codec {
            None | Some(Codec::Plain) => false,
            Some(Codec::Zstd { inside, .. }) => *inside,
            Some(Codec::Gzip(decoder)) => {
                let cut = decoder.try_finish().is_err();
                text.append(decoder.get_mut());
                cut
            }
            // A block that has begun stays in the input.
            Some(Codec::Blocks(_)) => false,
        }
    }
}

impl Codec {
    /// The codec by a file's first bytes; `None` where more of them are needed.
    fn of(input: &[u8]) -> Result<Option<Self>, Damage> {
        if input[0] == b'{' || input[0].is_ascii_whitespace() {
            return Ok(Some(Self::Plain));
        }
        let mut may_be = false;
        let mut begins = |magic: &[u8]| {
            may_be |= magic.starts_with(input);
            input.starts_with(magic)
        };
        if begins(ZSTD) {
            let context = DCtx::try_create().ok_or_else(|| damage("zstd", "out of memory"))?;
            return Ok(Some(Self::Zstd {
                context: Box::new(context),
                inside: false,
            }));
        }
        if begins(GZIP) {
            let decoder = MultiGzDecoder::new(Vec::new());
            return Ok(Some(Self::Gzip(Box::new(decoder))));
        }
        for block in Block::ALL {
            if begins(block.magic()) {
                return Ok(Some(Self::Blocks(block)));
            }
        }
        match may_be {
            true => Ok(None),
            false => Err(Damage::NotALog),
        }
    }

    /// The bytes of `input` that are used up, and whether there may be more text without more input.
    fn decode(&mut self, input: &[u8], text: &mut Vec<u8>) -> Result<(usize, bool), Damage> {
        match self {
            Self::Plain => {
                text.extend_from_slice(input);
                Ok((input.len(), false))
            }
            Self::Zstd { context, inside } => {
                let before = text.len();
                text.resize(before + PIECE_BYTES, 0);
                let mut from = InBuffer::around(input);
                let mut to = OutBuffer::around(&mut text[before..]);
                let outcome = context.decompress_stream(&mut to, &mut from);
                let (made, used) = (to.pos(), from.pos);
                text.truncate(before + made);
                let hint = outcome.map_err(|code| damage("zstd", get_error_name(code)))?;
                if used > 0 || made > 0 {
                    *inside = hint > 0;
                }
                // A full piece may have left text inside of the context.
                Ok((used, used < input.len() || made == PIECE_BYTES))
            }
            Self::Gzip(decoder) => {
                let piece = &input[..input.len().min(GZIP_INPUT_BYTES)];
                let written = decoder.write_all(piece).and_then(|()| decoder.flush());
                text.append(decoder.get_mut());
                written.map_err(|error| damage("gzip", &error.to_string()))?;
                Ok((piece.len(), piece.len() < input.len()))
            }
            Self::Blocks(block) => match block.decode(input, text)? {
                Some(used) => Ok((used, used < input.len())),
                None => Ok((0, false)),
            },
        }
    }
}

fn damage(codec: &'static str, reason: &str) -> Damage {
    Damage::Codec {
        codec,
        reason: reason.to_owned(),
    }
}
