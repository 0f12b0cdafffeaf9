//! What programs print: results on standard output, remarks on standard error.
//!
//! Either may be a pipe whose reader has gone, or a file on a full disk, for which `println!` and
//! `eprintln!` panic. So everything is printed by this module; the lints `print_stdout` and
//! `print_stderr` see to that. What it prints holds no hidden character but line ends, whoever wrote the
//! text: see [`text`](crate::text).

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::text::{shown_lines, to_json_pretty};

/// Standard output does not take a result, as on a full disk.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to standard output: {0}")]
pub struct Unwritten(io::Error);

/// Prints the result of a command. If the reader has gone (`| head`), it has read enough.
///
/// # Errors
/// If standard output does not take it for another reason.
pub fn print(text: &str) -> Result<(), Unwritten> {
    unless_reader_has_gone(write(text))
}

/// [Prints](print) JSON, indented, and a line feed.
///
/// # Errors
/// If the value has no JSON form, or as [`print`].
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", to_json_pretty(value)?))?;
    Ok(())
}

/// Prints an account of work that is done. If standard output does not take it, or its reader has gone,
/// the account goes to the log instead: the work counts, and its result is the exit code.
pub fn account(text: &str) {
    if let Err(error) = write(text) {
        tracing::error!("cannot write to standard output: {error}. The summary of the work:");
        for line in text.lines() {
            tracing::error!("{line}");
        }
    }
}

/// Prints a remark, and a line feed, to standard error. It is lost if nothing takes it there.
pub fn note(text: impl Display) {
    // One write, so that the lines of several programs do not mix.
    let _ = io::stderr().write_all(shown_lines(&format!("{text}\n")).as_bytes());
}

/// Prints what clap answers to a command line: help or the version on standard output, errors on
/// standard error.
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
