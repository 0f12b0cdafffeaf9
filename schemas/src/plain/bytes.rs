//! Reading Avro's primitive values from bytes.

use crate::check::{IDENTIFIER_MAX_BYTES, Rules};

/// Unread bytes. Each method consumes its value from the beginning; `None` if the bytes are too few or
/// something else.
#[derive(Clone, Debug)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8], pub(super) Rules);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    #[inline(always)]
    pub(super) fn long(&mut self) -> Option<i64> {
        let (first, left) = self.0.split_first()?;
        if *first < 0x80 {
            self.0 = left;
            return Some(unzigzag(u64::from(*first)));
        }
        self.long_of_many_bytes()
    }

    fn long_of_many_bytes(&mut self) -> Option<i64> {
        let mut zigzag = 0_u64;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            if i == 9 && *byte > 1 {
                return None;
            }
            zigzag |= u64::from(byte & 0x7F) << (7 * i);
            if *byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(unzigzag(zigzag));
            }
        }
        None
    }

    pub(super) fn int(&mut self) -> Option<i32> {
        i32::try_from(self.long()?).ok()
    }

    pub(super) fn count(&mut self) -> Option<i32> {
        self.int().filter(|count| *count >= 0)
    }

    /// The index of a symbol or branch, or a size.
    pub(super) fn index(&mut self) -> Option<usize> {
        usize::try_from(self.long()?).ok()
    }

    pub(super) fn double(&mut self) -> Option<f64> {
        let (bytes, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(f64::from_le_bytes(*bytes))
    }

    pub(super) fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.index()?;
        self.take(length)
    }

    pub(super) fn any_text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.sized()?).ok()
    }

    /// A text without NUL, which PostgreSQL cannot store.
    pub(super) fn text(&mut self) -> Option<&'a str> {
        let bytes = self.sized()?;
        // Texts are short and mostly ASCII, so a branch-free pass is faster than std's aligned one.
        let is_ascii = bytes
            .iter()
            .fold(true, |so_far, byte| so_far & (1..0x80).contains(byte));
        match is_ascii {
            #[expect(unsafe_code, reason = "std would check the same again, and slower")]
            // SAFETY: ASCII is UTF-8.
            true => Some(unsafe { std::str::from_utf8_unchecked(bytes) }),
            false => std::str::from_utf8(bytes)
                .ok()
                .filter(|text| !text.contains('\0')),
        }
    }

    pub(super) fn identifier(&mut self) -> Option<&'a str> {
        self.text()
            .filter(|text| text.len() <= IDENTIFIER_MAX_BYTES)
    }
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}
