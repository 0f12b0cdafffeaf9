//! LZF: runs of literal bytes, and copies of up to 264 bytes from up to 8 KiB before.

/// Appends the text of a chunk's data, which is `length` bytes long.
///
/// # Errors
/// If the data is not that, with the reason.
pub(super) fn decompress(
    mut data: &[u8],
    length: usize,
    text: &mut Vec<u8>,
) -> Result<(), &'static str> {
    const CUT: &str = "a chunk ends too early";
    let start = text.len();
    let mut next = || {
        let (&byte, rest) = data.split_first()?;
        data = rest;
        Some(byte)
    };
    while let Some(control) = next() {
        let control = usize::from(control);
        if control < 32 {
            for _ in 0..=control {
                text.push(next().ok_or(CUT)?);
            }
        } else {
            let mut copied = (control >> 5) + 2;
            if copied == 9 {
                copied += usize::from(next().ok_or(CUT)?);
            }
            let back = (control & 31) << 8 | usize::from(next().ok_or(CUT)?);
            let from = text.len().checked_sub(back + 1);
            let from = from.filter(|from| *from >= start);
            let from = from.ok_or("a chunk refers to bytes before it")?;
            for at in from..from + copied {
                text.push(text[at]);
            }
        }
        if text.len() - start > length {
            return Err("a chunk is longer than it says");
        }
    }
    match text.len() - start == length {
        true => Ok(()),
        false => Err("a chunk is shorter than it says"),
    }
}
