//! The result of an audit, as a value and as an exit code.

use serde::Serialize;
use service::exit::{FAILED, OK, USAGE};
use service::output;

/// The exit codes of `consumer audit` and `consumer diff`.
pub(crate) const EQUAL: u8 = OK;
pub(crate) const UNEQUAL: u8 = FAILED;
pub(crate) const COULD_NOT_TELL: u8 = USAGE;

/// The result of an audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// The tables hold exactly the rows that the topic expects.
    Equal,
    /// They do not.
    Unequal,
    /// Nothing wrong was found, but not everything could be proven.
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
    // The log has the error too.
    let _ = output::print_json(&object);
}
