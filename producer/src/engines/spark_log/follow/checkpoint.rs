//! Up to where a log's reports are in the topic.

use serde::{Deserialize, Serialize};

/// After a line of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Position {
    /// The file's number in the log's series.
    pub(super) file: u64,
    /// The line's number in the file.
    pub(super) line: u64,
}

/// What a restart goes on from. The same lines give the same reports with the same sequences, so those up to the position
/// are not sent again. If the lines are no longer the same (a History Server compacts logs), later reports are numbered
/// from `next` on: numbers are skipped, and none is used twice.
///
/// Exactly these fields: records of another program, which may be JSON objects too, are not taken for checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_other_programs_are_not_checkpoints() {
        let written = Checkpoint::default().to_bytes();
        assert_eq!(
            Checkpoint::from_bytes(&written).unwrap(),
            Checkpoint::default()
        );
        let mut more: serde_json::Value = serde_json::from_slice(&written).unwrap();
        more["connector"] = "sink".into();
        let more = more.to_string();
        for foreign in [
            "",
            "{}",
            "[]",
            "null",
            r#"{"properties":{"name":"sink"}}"#,
            r#"{"state":"RUNNING","trace":null}"#,
            r#"{"position":{"file":1,"line":2}}"#,
            more.as_str(),
        ] {
            assert!(
                Checkpoint::from_bytes(foreign.as_bytes()).is_err(),
                "{foreign}"
            );
        }
    }
}
