//! A log's files → its lines. What there is of a file that ends in the middle is read.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::SystemTime;

use super::codec::{Damage, Decoder};
use super::lines::{Line, Lines};

/// Bytes of a file that are read at a time.
const READ_BYTES: usize = 256 << 10;
/// Text that stays allocated while a file does not grow.
const IDLE_BYTES: usize = 4 << 10;
/// The beginning that a file is recognised by: bytes that are read at a time before it is long enough, and bytes at most.
const BEGINNING_PIECE_BYTES: usize = 8 << 10;
const BEGINNING_MAX_BYTES: u64 = 1 << 20;

/// Why a file is not read any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault<E> {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damage(#[from] Damage),
    /// What was read before is no longer the beginning of the file: it was written anew.
    #[error("was written anew while it was read; the rest of it is not read")]
    Rewritten,
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
    beginning: Beginning,
    /// Length and time of the file when its beginning was last found to be the same.
    unchanged: Option<(u64, Option<SystemTime>)>,
    decoder: Decoder,
    lines: Lines,
}

/// The bytes that a file is recognised by. Whoever writes a file anew begins with them.
struct Beginning {
    bytes: u64,
    checksum: crc32fast::Hasher,
    is_whole: bool,
}

impl Beginning {
    fn add(&mut self, bytes: &[u8]) {
        if !self.is_whole {
            self.bytes += bytes.len() as u64;
            self.checksum.update(bytes);
            self.is_whole = self.bytes >= BEGINNING_MAX_BYTES;
        }
    }

    fn is_of(&self, file: &File) -> io::Result<bool> {
        let mut checksum = crc32fast::Hasher::new();
        let mut piece = vec![0; BEGINNING_PIECE_BYTES];
        let mut read = 0;
        while read < self.bytes {
            let bytes = BEGINNING_PIECE_BYTES.min((self.bytes - read) as usize);
            match file.read_exact_at(&mut piece[..bytes], read) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                done => done?,
            }
            checksum.update(&piece[..bytes]);
            read += bytes as u64;
        }
        Ok(checksum.finalize() == self.checksum.clone().finalize())
    }
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
            beginning: Beginning {
                bytes: 0,
                checksum: crc32fast::Hasher::new(),
                is_whole: false,
            },
            unchanged: None,
            decoder: Decoder::default(),
            lines: Lines::default(),
        })
    }

    /// Whether the file that is read has these metadata, whatever it holds now.
    pub(super) fn reads(&self, metadata: &Metadata) -> bool {
        self.identity == identity(metadata)
    }

    /// What was read so far is enough to recognise the file by.
    pub(super) fn end_beginning(&mut self) {
        self.beginning.is_whole = true;
    }

    /// Opens the file again, after it could not be read.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) fn reopen(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.read))?;
        self.identity = identity(&file.metadata()?);
        self.file = file;
        self.unchanged = None;
        Ok(())
    }

    /// Whether the file begins with what was read of it, and so many bytes more. Asked behind a read, this covers what was
    /// read: whoever writes a file anew does so from its start.
    fn is_same(&mut self, more: u64) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        let read = self.read + more;
        // Some filesystems do not show the length of a file that is open.
        if metadata.len() < read && self.file.read_at(&mut [0], read - 1)? == 0 {
            return Ok(false);
        }
        let now = (metadata.len(), metadata.modified().ok());
        let is_same = self.unchanged == Some(now) || self.beginning.is_of(&self.file)?;
        self.unchanged = is_same.then_some(now);
        Ok(is_same)
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
        let room = match self.beginning.is_whole {
            true => buffer.len(),
            false => buffer.len().min(BEGINNING_PIECE_BYTES),
        };
        let read = loop {
            match self.file.read(&mut buffer[..room]) {
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        if !self.is_same(read as u64)? {
            return Err(Fault::Rewritten);
        }
        if read == 0 {
            return Ok(0);
        }
        self.read += read as u64;
        self.beginning.add(&buffer[..read]);
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
