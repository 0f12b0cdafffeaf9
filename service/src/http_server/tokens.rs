//! Bearer tokens, known by their SHA-256 checksums.

use std::path::Path;

use axum::http::HeaderValue;
use sha2::{Digest, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::error::NeedsAttention;

/// The known tokens, each with its holder.
#[derive(Debug)]
pub struct Tokens<Holder>(Vec<Token<Holder>>);

#[derive(Debug)]
struct Token<Holder> {
    sha256: [u8; 32],
    holder: Holder,
}

/// The lines of a file of tokens: `sha256:HEX`, white space, and a holder.
pub struct TokenLines<Holder> {
    /// Parses the holder.
    pub holder: fn(&str) -> Option<Holder>,
    /// What a line has to be, after "is".
    pub expected: &'static str,
}

impl<Holder> Tokens<Holder> {
    /// Reads the file of `--tokens`.
    ///
    /// # Errors
    /// If it cannot be read or is invalid.
    pub fn read(file: &Path, lines: &TokenLines<Holder>) -> Result<Self, NeedsAttention> {
        let no_good = |why: String| NeedsAttention(format!("--tokens {}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| no_good(error.to_string()))?;
        Self::parse(&text, lines).map_err(no_good)
    }

    /// One token per line; empty lines and lines that start with `#` are skipped.
    ///
    /// # Errors
    /// What is wrong with the first invalid line. It names only the line's number, because the line may contain a plain
    /// token.
    pub fn parse(text: &str, lines: &TokenLines<Holder>) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let token = Token::parse(line, lines).ok_or_else(|| {
                format!(
                    "line {} is {}, where HEX are the 64 digits that `printf %s TOKEN | sha256sum` prints",
                    i + 1,
                    lines.expected
                )
            })?;
            let mut known = tokens.iter();
            if known.any(|known: &Token<Holder>| known.sha256 == token.sha256) {
                return Err(format!("line {} has the token of an earlier line", i + 1));
            }
            tokens.push(token);
        }
        match tokens.is_empty() {
            true => Err("no line has a token, so every request would be refused".to_owned()),
            false => Ok(Self(tokens)),
        }
    }

    /// The holder of the bearer token in an `Authorization` header.
    ///
    /// # Errors
    /// Why there is none, for an answer with status 401.
    pub fn authorized(&self, authorization: &HeaderValue) -> Result<&Holder, &'static str> {
        let given = authorization.as_bytes();
        let (scheme, token) = given.split_at_checked(7).unwrap_or_default();
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return Err("the Authorization header has no bearer token");
        }
        self.holder(token.trim_ascii())
            .ok_or("unknown bearer token")
    }

    /// The holder of a token, if it is known.
    pub fn holder(&self, token: &[u8]) -> Option<&Holder> {
        // Compares with every token in constant time, so that timing reveals nothing.
        let sha256 = <[u8; 32]>::from(Sha256::digest(token));
        let (mut found, mut index) = (Choice::from(0), 0_u32);
        for (i, token) in (0_u32..).zip(&self.0) {
            let is_it = token.sha256.ct_eq(&sha256);
            index.conditional_assign(&i, is_it);
            found |= is_it;
        }
        bool::from(found).then(|| &self.0[index as usize].holder)
    }
}

impl<Holder> Token<Holder> {
    fn parse(line: &str, lines: &TokenLines<Holder>) -> Option<Self> {
        let (sum, holder) = line.split_once(char::is_whitespace)?;
        let hex = sum.strip_prefix("sha256:")?.as_bytes();
        if hex.len() != 64 || !hex.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let mut sha256 = [0; 32];
        for (byte, digits) in sha256.iter_mut().zip(hex.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        }
        let holder = (lines.holder)(holder.trim())?;
        Some(Self { sha256, holder })
    }
}
