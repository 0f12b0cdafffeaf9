//! Up to where a log's reports are in the topic.

use serde::{Deserialize, Serialize};

/// After a line of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Position {
    /// The file's number in the log's series.
    pub(super) file: u64,
    /// The line's number in the file.
    pub(super) line: u64,
}

/// What a restart goes on from. The same lines give the same reports with the same sequences, so those up to the position
/// are not sent again. If the lines are no longer the same (a History Server compacts logs), later reports are numbered
/// from `next` on: numbers are skipped, and none is used twice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Checkpoint {
    /// After the line that gave rise to the last report.
    pub(super) position: Position,
    /// Of all lines up to there, and of the options that reports depend on.
    pub(super) checksum: u32,
    /// One more than the highest sequence of a report so far, as the log's lines number them.
    pub(super) counted: i64,
    /// What is added to these numbers in reports.
    pub(super) base: i64,
    /// One more than the highest sequence in the topic.
    pub(super) next: i64,
    /// Where reports were sent because the log did not grow for long.
    pub(super) given_up: Vec<Position>,
    /// The last reports were sent: nothing more follows.
    pub(super) concluded: bool,
}

impl Checkpoint {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // A struct of numbers has no key that is not text.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// # Errors
    /// If the bytes are something else.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }
}
