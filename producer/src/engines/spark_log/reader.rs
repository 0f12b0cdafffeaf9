//! A log's files → its lines. What there is of a file that ends in the middle is read.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::codec::{Damage, Decoder};
use super::lines::{Line, Lines};

/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 256 << 10;

/// Why a file is not read any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault<E> {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damage(#[from] Damage),
    /// What the caller's function returned.
    #[error("stopped")]
    Stopped(E),
}

/// A file of a log.
pub(super) struct Reader {
    file: File,
    decoder: Decoder,
    lines: Lines,
    bytes: Vec<u8>,
}

impl Reader {
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            decoder: Decoder::default(),
            lines: Lines::default(),
            bytes: vec![0; READ_BYTES],
        })
    }

    /// Passes on all lines that have ended, up to the file's end.
    ///
    /// # Errors
    /// If the file cannot be read or decoded; the lines before that were passed on.
    pub(super) fn read<E>(
        &mut self,
        mut each: impl FnMut(u64, Line<'_>) -> Result<(), E>,
    ) -> Result<(), Fault<E>> {
        loop {
            let read = match self.file.read(&mut self.bytes) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.decoder.feed(&self.bytes[..read]);
            loop {
                let decoded = self.decoder.decode(&mut self.lines.text);
                self.lines.take(&mut each).map_err(Fault::Stopped)?;
                if !decoded? {
                    break;
                }
            }
        }
    }

    /// Passes on the last line if it has no end. Returns whether the file ends in the middle of a frame.
    ///
    /// # Errors
    /// What `each` returns.
    pub(super) fn end<E>(
        mut self,
        mut each: impl FnMut(u64, Line<'_>) -> Result<(), E>,
    ) -> Result<bool, E> {
        let cut = self.decoder.is_cut(&mut self.lines.text);
        self.lines.take(&mut each)?;
        self.lines.end(&mut each)?;
        Ok(cut)
    }
}
