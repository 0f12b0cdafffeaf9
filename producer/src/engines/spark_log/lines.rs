//! Text → lines, each of bounded length.

use memchr::memchr;

/// Longest line. Lines of the events that are used reach some hundred kB.
pub(super) const LINE_MAX_BYTES: usize = 32 << 20;
/// What is kept of a longer one: enough for its event's name.
const BEGINNING_BYTES: usize = 200;

/// A line, without its end.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'t> {
    Whole(&'t [u8]),
    /// Longer than [`LINE_MAX_BYTES`]: its beginning.
    TooLong(&'t [u8]),
    /// The last one, without a line feed: it may be cut.
    Unended(&'t [u8]),
}

/// Cuts text into lines as it arrives, in time linear in its bytes.
#[derive(Default)]
pub(super) struct Lines {
    /// Text that is not cut yet.
    pub(super) text: Vec<u8>,
    /// Bytes of it that hold no line feed.
    searched: usize,
    /// The beginning of a line that is too long and has not ended.
    too_long: Option<Vec<u8>>,
    number: u64,
}

impl Lines {
    /// Passes on every line of the text that has ended, and its number, from 1 on.
    ///
    /// # Errors
    /// What `each` returns.
    pub(super) fn take<E>(
        &mut self,
        mut each: impl FnMut(u64, Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut start = 0;
        while let Some(found) = memchr(b'\n', &self.text[self.searched..]) {
            let end = self.searched + found;
            self.searched = end + 1;
            self.number += 1;
            let line = &self.text[start..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            start = end + 1;
            match self.too_long.take() {
                Some(beginning) => each(self.number, Line::TooLong(&beginning))?,
                None if line.len() > LINE_MAX_BYTES => {
                    each(self.number, Line::TooLong(&line[..BEGINNING_BYTES]))?;
                }
                None => each(self.number, Line::Whole(line))?,
            }
        }
        self.text.drain(..start);
        if self.text.len() > LINE_MAX_BYTES || self.too_long.is_some() {
            let beginning = &self.text[..self.text.len().min(BEGINNING_BYTES)];
            self.too_long.get_or_insert_with(|| beginning.to_vec());
            self.text.clear();
        }
        self.searched = self.text.len();
        Ok(())
    }

    /// Passes on the last line if it has not ended.
    ///
    /// # Errors
    /// What `each` returns.
    pub(super) fn end<E>(
        &mut self,
        mut each: impl FnMut(u64, Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let rest = std::mem::take(&mut self.text);
        self.searched = 0;
        if let Some(beginning) = self.too_long.take() {
            self.number += 1;
            return each(self.number, Line::TooLong(&beginning));
        }
        if rest.trim_ascii().is_empty() {
            return Ok(());
        }
        self.number += 1;
        each(self.number, Line::Unended(&rest))
    }
}
