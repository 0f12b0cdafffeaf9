//! Framings of blocks that are decoded one by one.

use twox_hash::XxHash32;

use super::{Damage, damage, lzf};

/// Longest block, of text and of data. LZ4BlockOutputStream takes up to 32 MiB; Spark's default is 32 KiB.
const BLOCK_MAX_BYTES: usize = 32 << 20;
/// Seed of the checksums, of which lz4-java keeps 28 bits (LZ4BlockOutputStream.DEFAULT_SEED, StreamingXXHash32.asChecksum).
const LZ4_SEED: u32 = 0x9747_B28C;
const LZ4_CHECKSUM: u32 = 0x0FFF_FFFF;
const LZ4: &[u8] = b"LZ4Block";
/// Magic, token, both lengths and checksum.
const LZ4_HEADER_BYTES: usize = 21;
const SNAPPY: &[u8] = b"\x82SNAPPY\0";
/// Magic, version, oldest version that can read it.
const SNAPPY_HEADER_BYTES: usize = 16;
const LZF: &[u8] = b"ZV";

/// How a stream is cut into blocks.
#[derive(Clone, Copy)]
pub(super) enum Block {
    Lz4,
    Snappy,
    Lzf,
}

impl Block {
    pub(super) const ALL: [Self; 3] = [Self::Lz4, Self::Snappy, Self::Lzf];

    /// What a stream begins with.
    pub(super) fn magic(self) -> &'static [u8] {
        match self {
            Self::Lz4 => LZ4,
            Self::Snappy => SNAPPY,
            Self::Lzf => LZF,
        }
    }

    /// Appends the text of the block that `input` begins with. Gives its length, `None` where it is not whole.
    pub(super) fn decode(self, input: &[u8], text: &mut Vec<u8>) -> Result<Option<usize>, Damage> {
        match self {
            Self::Lz4 => lz4(input, text).map_err(|reason| damage("lz4", &reason)),
            Self::Snappy => snappy(input, text).map_err(|reason| damage("snappy", &reason)),
            Self::Lzf => lzf_chunk(input, text).map_err(|reason| damage("lzf", &reason)),
        }
    }
}

/// Four bytes at `at`; `None` where they are not there.
fn four(input: &[u8], at: usize) -> Option<[u8; 4]> {
    input.get(at..at + 4)?.try_into().ok()
}

fn length(bytes: u32) -> Result<usize, String> {
    let length = bytes as usize;
    match length <= BLOCK_MAX_BYTES {
        true => Ok(length),
        false => Err(format!("a block says that it has {length} bytes")),
    }
}

fn lz4(input: &[u8], text: &mut Vec<u8>) -> Result<Option<usize>, String> {
    const RAW: u8 = 0x10;
    const COMPRESSED: u8 = 0x20;
    if input.len() < LZ4_HEADER_BYTES {
        return match LZ4.starts_with(&input[..input.len().min(LZ4.len())]) {
            true => Ok(None),
            false => Err("no block where one should begin".to_owned()),
        };
    }
    if !input.starts_with(LZ4) {
        return Err("no block where one should begin".to_owned());
    }
    let number = |at| four(input, at).map_or(0, u32::from_le_bytes);
    let (compressed, original, checksum) = (length(number(9))?, length(number(13))?, number(17));
    let end = LZ4_HEADER_BYTES + compressed;
    let Some(data) = input.get(LZ4_HEADER_BYTES..end) else {
        return Ok(None);
    };
    let start = text.len();
    match input[8] & 0xF0 {
        RAW if compressed == original => text.extend_from_slice(data),
        COMPRESSED => {
            text.resize(start + original, 0);
            let made = lz4_flex::block::decompress_into(data, &mut text[start..]);
            if made.as_ref().ok() != Some(&original) {
                text.truncate(start);
                return Err(match made {
                    Ok(_) => "a block is shorter than it says".to_owned(),
                    Err(error) => error.to_string(),
                });
            }
        }
        _ => return Err("a block of a kind that is not known".to_owned()),
    }
    // The empty block that ends a stream has none.
    if original > 0 && XxHash32::oneshot(LZ4_SEED, &text[start..]) & LZ4_CHECKSUM != checksum {
        text.truncate(start);
        return Err("a block's checksum is wrong".to_owned());
    }
    Ok(Some(end))
}

fn snappy(input: &[u8], text: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let Some(head) = four(input, 0) else {
        return Ok(None);
    };
    // A stream may follow another.
    if SNAPPY.starts_with(&head) {
        return match input.len() >= SNAPPY_HEADER_BYTES {
            true if input.starts_with(SNAPPY) => Ok(Some(SNAPPY_HEADER_BYTES)),
            true => Err("no header where one should be".to_owned()),
            false => Ok(None),
        };
    }
    let end = 4 + length(u32::from_be_bytes(head))?;
    let Some(data) = input.get(4..end) else {
        return Ok(None);
    };
    if data.is_empty() {
        return Ok(Some(end));
    }
    let original = snap::raw::decompress_len(data).map_err(|error| error.to_string())?;
    let original = length(u32::try_from(original).unwrap_or(u32::MAX))?;
    let start = text.len();
    text.resize(start + original, 0);
    let made = snap::raw::Decoder::new().decompress(data, &mut text[start..]);
    made.map_err(|error| {
        text.truncate(start);
        error.to_string()
    })?;
    Ok(Some(end))
}

fn lzf_chunk(input: &[u8], text: &mut Vec<u8>) -> Result<Option<usize>, String> {
    let two = |at: usize| {
        let bytes: Option<[u8; 2]> = input.get(at..at + 2).and_then(|two| two.try_into().ok());
        bytes.map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    };
    let begins = &input[..input.len().min(2)];
    if !LZF.starts_with(begins) {
        return Err("no chunk where one should begin".to_owned());
    }
    let (Some(kind), Some(stored)) = (input.get(2), two(3)) else {
        return Ok(None);
    };
    match kind {
        0 => {
            let end = 5 + stored;
            let Some(data) = input.get(5..end) else {
                return Ok(None);
            };
            text.extend_from_slice(data);
            Ok(Some(end))
        }
        1 => {
            let end = 7 + stored;
            let (Some(original), Some(data)) = (two(5), input.get(7..end)) else {
                return Ok(None);
            };
            let start = text.len();
            lzf::decompress(data, original, text).map_err(|reason| {
                text.truncate(start);
                reason.to_owned()
            })?;
            Ok(Some(end))
        }
        _ => Err("a chunk of a kind that is not known".to_owned()),
    }
}
