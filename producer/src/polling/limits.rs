//! Values within the limits of a report.

use schemas::{IDENTIFIER_MAX_BYTES, identifier_bytes};

/// A text that is an identifier: where it is too long for one, its beginning and a hash of it all.
pub(crate) fn identifier(text: &str) -> String {
    if identifier_bytes(text) <= IDENTIFIER_MAX_BYTES {
        return text.to_owned();
    }
    // FNV-1a, so that the same text gives the same identifier for ever.
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut bytes = 17;
    let beginning = text.chars().take_while(|character| {
        bytes += identifier_bytes(character.encode_utf8(&mut [0; 4]));
        bytes <= IDENTIFIER_MAX_BYTES
    });
    format!("{}~{hash:016x}", beginning.collect::<String>())
}

/// A count within 32 bits; one that does not fit becomes the largest (or smallest) that does.
pub(crate) fn int(count: i64) -> i32 {
    i32::try_from(count).unwrap_or(if count < 0 { i32::MIN } else { i32::MAX })
}
