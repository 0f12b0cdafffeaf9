//! A log's files → its lines. What there is of a file that ends in the middle is read.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::codec::{Damage, Decoder};
use super::lines::{Line, Lines};

/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 256 << 10;
/// Text that stays allocated while a file does not grow.
const IDLE_BYTES: usize = 4 << 10;

/// Why a file is not read any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault<E> {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damage(#[from] Damage),
    /// What the caller's function returned.
    #[error("{0}")]
    Stopped(E),
}

/// A file of a log.
pub(super) struct Reader {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    /// Bytes of the file that were read.
    read: u64,
    decoder: Decoder,
    lines: Lines,
}

/// Room for the bytes that are read at a time.
pub(super) fn buffer() -> Vec<u8> {
    vec![0; READ_BYTES]
}

impl Reader {
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self {
            identity: identity(&file.metadata()?),
            file,
            read: 0,
            decoder: Decoder::default(),
            lines: Lines::default(),
        })
    }

    /// Whether what was read is the beginning of the file that now has these metadata.
    pub(super) fn reads(&self, metadata: &Metadata) -> bool {
        self.identity == identity(metadata) && self.read <= metadata.len()
    }

    /// Passes on all lines that have ended, up to the file's end.
    ///
    /// # Errors
    /// If the file cannot be read or decoded; the lines before that were passed on.
    pub(super) fn read<E>(
        &mut self,
        mut each: impl FnMut(u64, Line<'_>) -> Result<(), E>,
    ) -> Result<(), Fault<E>> {
        let mut buffer = buffer();
        while self.read_piece(&mut buffer, &mut each)? > 0 {}
        Ok(())
    }

    /// Reads a piece of the file, and passes on the lines that have ended. Returns the bytes of text that it held, and 1
    /// if it held none; 0 at the file's end, where more may follow.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) fn read_piece<E>(
        &mut self,
        buffer: &mut [u8],
        mut each: impl FnMut(u64, Line<'_>) -> Result<(), E>,
    ) -> Result<usize, Fault<E>> {
        let read = loop {
            match self.file.read(buffer) {
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        if read == 0 {
            return Ok(0);
        }
        self.read += read as u64;
        self.decoder.feed(&buffer[..read]);
        let mut bytes = 1;
        loop {
            let before = self.lines.text.len();
            let decoded = self.decoder.decode(&mut self.lines.text);
            bytes += self.lines.text.len() - before;
            self.lines.take(&mut each).map_err(Fault::Stopped)?;
            if !decoded? {
                return Ok(bytes);
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

    /// Frees what is not needed while the file does not grow.
    pub(super) fn shrink(&mut self) {
        self.lines.text.shrink_to(IDLE_BYTES);
        self.decoder.shrink(IDLE_BYTES);
    }

    /// What it holds, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.lines.text.capacity() + self.decoder.memory_bytes()
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
