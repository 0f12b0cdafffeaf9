//! A log's lines → the replay, and the messages about bad ones.

use std::borrow::Cow;
use std::path::Path;

use schemas::TaskRunningInfo;

use super::Stopped;
use super::events::{self, Event};
use super::lines::{LINE_MAX_BYTES, Line};
use super::replay::Replay;

/// Bad lines of a log that are named one by one.
const LINES_NAMED: u64 = 100;
/// Bad lines before the first event of a log; more of them are not a log.
pub(super) const LINES_BEFORE_EVENT: usize = 10;
/// Why a log's next lines are not read.
#[derive(Debug)]
pub(super) enum Halt {
    /// The reports are not wanted any more.
    Stopped,
    /// The line with this number is of another application: its id.
    Another(u64, String),
    /// The log is not that of the application that it was taken for.
    Mistaken,
    /// No line so far is an event.
    NotALog,
}

impl From<Stopped> for Halt {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

impl std::fmt::Display for Halt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => f.write_str("is not read any further"),
            Self::Mistaken => f.write_str("is the log of another application than before"),
            Self::Another(number, id) => write!(
                f,
                "line {number} begins another application, {id}: the rest of the file is not read. Give each application a \
                 file of its own"
            ),
            Self::NotALog => f.write_str("is not read any further: it holds no event so far"),
        }
    }
}

/// Takes in a line of a file. Returns the reports that it gives rise to; `None` if it is cut. A bad line is counted, and
/// named if `is_new`.
pub(super) fn take_line(
    path: &Path,
    number: u64,
    line: &Line<'_>,
    is_new: bool,
    replay: &mut Replay,
) -> Result<Option<Vec<TaskRunningInfo>>, Halt> {
    let (text, reason) = match line {
        Line::Whole(text) if text.trim_ascii().is_empty() => return Ok(Some(Vec::new())),
        Line::Whole(text) | Line::Unended(text) => match take(text, replay) {
            Ok(reports) => {
                for fault in replay.unnamed.drain(..).filter(|_| is_new) {
                    tracing::error!("{fault}");
                }
                return Ok(Some(reports));
            }
            Err(Refused::Another(id)) => return Err(Halt::Another(number, id)),
            Err(Refused::Bad(_)) if matches!(line, Line::Unended(_)) => return Ok(None),
            Err(Refused::Bad(reason)) => (*text, reason),
        },
        Line::TooLong(beginning) => {
            let name = events::name(beginning);
            if name.is_some_and(|name| !events::is_used(name)) {
                return Ok(Some(Vec::new()));
            }
            let reason = format!("is longer than {} MiB", LINE_MAX_BYTES >> 20);
            (*beginning, reason)
        }
    };
    let event = events::name(text);
    replay.lose_line(events::decides_jobs(event));
    let event = event.map_or_else(String::new, |name| format!(" ({name})"));
    let fault = format!("{} line {number}{event}: {reason}", path.display());
    if replay.counts.events == 0 {
        replay.unnamed.push(fault);
        if replay.unnamed.len() >= LINES_BEFORE_EVENT {
            return Err(Halt::NotALog);
        }
    } else if !is_new {
        // It was named before.
    } else if replay.broken_lines <= LINES_NAMED {
        tracing::error!("{fault}");
    } else if replay.broken_lines == LINES_NAMED + 1 {
        tracing::error!("{}: further bad lines are only counted", path.display());
    }
    Ok(Some(Vec::new()))
}

/// Why a line gives no reports.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is not an event, for this reason.
    Bad(String),
    /// It is of another application: its id.
    Another(String),
}

/// Takes in a line. Returns the reports that it gives rise to.
pub(super) fn take(line: &[u8], replay: &mut Replay) -> Result<Vec<TaskRunningInfo>, Refused> {
    let mut taken = |event: Event<'_>| match replay.another(&event) {
        Some(id) => Err(Refused::Another(id)),
        None => Ok(replay.take(event, line.len())),
    };
    let reason = match events::read(line) {
        Ok(event) => return taken(event),
        Err(reason) => reason,
    };
    match String::from_utf8_lossy(line) {
        Cow::Borrowed(_) => Err(Refused::Bad(reason)),
        // Before Spark 3.0, logs were written in the driver's charset.
        Cow::Owned(text) => taken(events::read(text.as_bytes()).map_err(Refused::Bad)?),
    }
}

/// Why there is nothing to report of a log, and what to do.
pub(super) fn why_no_report(replay: &Replay) -> String {
    const ELSE: &str = "move it out of the folder, or name the logs themselves";
    match (replay.counts.events, replay.unnamed.first()) {
        (0, Some(first)) => {
            format!("is not a Spark event log: no event is among its first lines ({first}); {ELSE}")
        }
        (0, None) => "holds no event: Spark has not written one yet, or they are lost".to_owned(),
        _ => {
            "holds no event with a time: Spark has only begun to write it, or its beginning is lost"
                .to_owned()
        }
    }
}
