//! The answer of an audit, as a value and as an exit code.

use serde::Serialize;
use service::exit::{FAILED, OK, USAGE};
use service::output;

/// The exit codes of `consumer audit` and `consumer diff`.
pub(crate) const EQUAL: u8 = OK;
pub(crate) const UNEQUAL: u8 = FAILED;
pub(crate) const COULD_NOT_TELL: u8 = USAGE;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The tables hold the rows that the topic expects, no more and no less.
    Equal,
    /// They do not.
    Unequal,
    /// Nothing was found wrong, but not everything asked for could be proven.
    Unproven,
}

impl Verdict {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Unequal => "unequal",
            Self::Unproven => "unproven",
        }
    }
}

/// Prints JSON that says that an audit or a diff could not tell, and why.
pub(crate) fn print_unproven(error: &anyhow::Error) {
    let object = serde_json::json!({"verdict": "unproven", "error": format!("{error:#}")});
    // The log has it too.
    let _ = output::print_json(&object);
}
