//! Printing: results on standard output, remarks on standard error.
//!
//! Either may be a closed pipe or a file on a full disk, for which `println!` and `eprintln!` panic. So only
//! this module prints; the lints `print_stdout` and `print_stderr` check that. Except for line ends, it
//! escapes hidden characters: see [`text`](crate::text).

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::text::{shown_lines, to_json_pretty};

/// Standard output cannot be written, for example because the disk is full.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct Unwritten(io::Error);

/// Prints the result of a command. A closed pipe (`| head`) is not an error.
///
/// # Errors
/// If standard output cannot be written for another reason.
pub fn print(text: &str) -> Result<(), Unwritten> {
    unless_reader_has_gone(write(text))
}

/// Prints one line of a result that has many, and a line feed. Returns whether anybody still reads them.
///
/// # Errors
/// As [`print`].
pub fn print_line(line: &str) -> Result<bool, Unwritten> {
    match write(&format!("{line}\n")) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Unwritten(error)),
    }
}

/// [Prints](print) JSON, indented, and a line feed.
///
/// # Errors
/// If the value cannot be serialized as JSON, or as [`print`].
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", to_json_pretty(value)?))?;
    Ok(())
}

/// Prints a summary of completed work. If standard output cannot be written, the summary goes to the log: the
/// work decides the exit code.
pub fn account(text: &str) {
    if let Err(error) = write(text) {
        tracing::error!("cannot write to standard output: {error}. The summary of the work:");
        for line in text.lines() {
            tracing::error!("{line}");
        }
    }
}

/// Prints a remark and a line feed to standard error. Ignores errors.
pub fn note(text: impl Display) {
    // One write, so that the lines of several programs do not mix.
    let _ = io::stderr().write_all(shown_lines(&format!("{text}\n")).as_bytes());
}

/// Prints clap's answer to a command line: help or version on standard output, errors on standard error.
///
/// # Errors
/// As [`print`].
pub(crate) fn print_answer(answer: &clap::Error) -> Result<(), Unwritten> {
    let printed = answer.print().and_then(|()| io::stdout().flush());
    match answer.use_stderr() {
        true => Ok(()),
        false => unless_reader_has_gone(printed),
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(shown_lines(text).as_bytes())?;
    stdout.flush()
}

fn unless_reader_has_gone(written: io::Result<()>) -> Result<(), Unwritten> {
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Unwritten(error)),
        _ => Ok(()),
    }
}
