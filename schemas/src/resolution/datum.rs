//! Bounds-checked reading of a datum: no length in the bytes is trusted.

use std::fmt;

/// Maximum size of a number: 64 bits in groups of seven.
const LONGEST_NUMBER: usize = 10;

/// Where and why bytes do not match the schema.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Names of fields, innermost first.
    path: Vec<&'static str>,
    /// Offset in the datum.
    at: usize,
    reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, field) in self.path.iter().rev().enumerate() {
            write!(f, "{}{field}", if i > 0 { "." } else { "" })?;
        }
        let space = if self.path.is_empty() { "" } else { " " };
        write!(f, "{space}at byte {}: {}", self.at, self.reason)
    }
}

pub(super) fn within(mut fault: Fault, field: &'static str) -> Fault {
    fault.path.push(field);
    fault
}

/// A datum and the read position.
pub(super) struct Input<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    /// See [`Parsed::least_bytes`].
    pub(super) least: usize,
}

/// The head of a block of items.
pub(super) struct Block {
    /// Not 0.
    pub(super) items: usize,
    /// Claimed offset of the block's end, if any.
    end: Option<usize>,
}

impl Fault {
    pub(super) fn new(at: usize, reason: impl Into<String>) -> Self {
        Self {
            path: Vec::new(),
            at,
            reason: reason.into(),
        }
    }
}

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            least: 0,
        }
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn counted<T>(
        &mut self,
        least: usize,
        read: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.least += least;
        read(self)
    }

    pub(super) fn fault(&self, reason: impl Into<String>) -> Fault {
        Fault::new(self.at, reason)
    }

    pub(super) fn take(&mut self, size: usize, what: &str) -> Result<&'a [u8], Fault> {
        let left = &self.bytes[self.at..];
        let Some(taken) = left.get(..size) else {
            return Err(self.fault(format!("cut off: {what}, {} bytes left", left.len())));
        };
        self.at += size;
        Ok(taken)
    }

    pub(super) fn boolean(&mut self) -> Result<u8, Fault> {
        match self.take(1, "a boolean")? {
            [byte @ (0 | 1)] => Ok(*byte),
            other => Err(Fault::new(self.at - 1, format!("a boolean of {other:?}"))),
        }
    }

    pub(super) fn long(&mut self) -> Result<i64, Fault> {
        let mut zigzag = 0_u64;
        for (i, byte) in self.bytes[self.at..].iter().enumerate() {
            if i == LONGEST_NUMBER {
                return Err(self.fault("a number of more than 10 bytes"));
            }
            if i + 1 == LONGEST_NUMBER && *byte & 0x7F > 1 {
                return Err(self.fault("a number of more than 64 bits"));
            }
            zigzag |= u64::from(byte & 0x7F) << (7 * i);
            if byte & 0x80 == 0 {
                self.at += i + 1;
                return Ok((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64));
            }
        }
        Err(self.fault(format!("cut off: a number, {} bytes left", self.left())))
    }

    pub(super) fn int(&mut self) -> Result<i64, Fault> {
        let at = self.at;
        let number = self.long()?;
        match i32::try_from(number) {
            Ok(_) => Ok(number),
            Err(_) => Err(Fault::new(at, format!("{number} is no int of 32 bits"))),
        }
    }

    /// The index of one of `count` symbols or branches.
    pub(super) fn index(&mut self, what: &str, count: usize) -> Result<usize, Fault> {
        let at = self.at;
        let index = self.long()?;
        usize::try_from(index)
            .ok()
            .filter(|index| *index < count)
            .ok_or_else(|| Fault::new(at, format!("{what} {index} of {count}")))
    }

    /// Length-prefixed bytes.
    pub(super) fn text(&mut self) -> Result<&'a [u8], Fault> {
        let at = self.at;
        let length = self.long()?;
        let size = usize::try_from(length)
            .ok()
            .filter(|size| *size <= self.left());
        match size {
            Some(size) => self.take(size, "a text"),
            None => Err(Fault::new(
                at,
                format!("a text of {length} bytes, where {} are left", self.left()),
            )),
        }
    }

    /// The next block of an array or map; `None` after the last. `each_takes_bytes`: whether an item takes at
    /// least one byte.
    pub(super) fn block(&mut self, each_takes_bytes: bool) -> Result<Option<Block>, Fault> {
        let at = self.at;
        let count = self.long()?;
        let end = if count < 0 {
            let claimed = self.long()?;
            let size = usize::try_from(claimed)
                .ok()
                .filter(|size| *size <= self.left());
            let Some(size) = size else {
                return Err(Fault::new(
                    at,
                    format!("a block of {claimed} bytes, where {} are left", self.left()),
                ));
            };
            Some(self.at + size)
        } else {
            None
        };
        let items = usize::try_from(count.unsigned_abs())
            .ok()
            .filter(|items| !each_takes_bytes || *items <= self.left());
        match items {
            Some(0) => Ok(None),
            Some(items) => Ok(Some(Block { items, end })),
            None => Err(Fault::new(
                at,
                format!(
                    "a block of {} items, where {} bytes are left",
                    count.unsigned_abs(),
                    self.left()
                ),
            )),
        }
    }

    /// Checks the end of a block against its claim.
    pub(super) fn end(&self, block: &Block) -> Result<(), Fault> {
        match block.end {
            Some(end) if end != self.at => Err(self.fault(format!(
                "a block of {} items that should end at byte {end} ends here",
                block.items
            ))),
            _ => Ok(()),
        }
    }
}
