//! Exit codes and their meanings, for `--help` and the docs.

use std::fmt::Write;

/// Ended as asked.
pub const OK: u8 = 0;
/// An error that a restart may cure; a supervisor should start the program again.
pub const FAILED: u8 = 1;
/// Wrong usage (clap's code), or wrong input to a command that ends by itself; a supervisor should not start
/// the program again.
pub const USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h: configuration error; needs an operator. A supervisor should not start the
/// program again (systemd: `RestartPreventExitStatus=2 78`).
pub const CONFIG: u8 = 78;

/// Kind of program; determines the meaning of its exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs until it is stopped.
    Service,
    /// Ends by itself.
    Command,
    /// Ends by itself; the exit code is its verdict.
    Audit,
}

/// Meaning of each exit code by [`Kind`]; empty if that kind never ends with it.
const MEANINGS: [(&str, [&str; 3]); 5] = [
    (
        "0",
        ["stopped as asked", "done, or stopped as asked", "equal"],
    ),
    (
        "1",
        [
            "failed: start it again",
            "failed, or stopped before it was done: start it again",
            "unequal",
        ],
    ),
    (
        "2",
        [
            "wrong usage: correct the command line or the environment",
            "wrong usage or wrong input: correct it",
            "could not tell, or wrong usage: the error says why",
        ],
    ),
    (
        "78",
        [
            "needs an operator: the error says what to change; do not restart",
            "needs an operator: the error says what to change; do not restart",
            "",
        ],
    ),
    (
        "129, 130, 143",
        ["a second SIGHUP, SIGINT or SIGTERM ended it at once"; 3],
    ),
];

/// The end of a command's `--help`: `text`, then the exit codes.
pub fn help(kind: Kind, text: &str) -> String {
    let mut help = String::new();
    if !text.is_empty() {
        let _ = writeln!(help, "{text}\n");
    }
    help.push_str("Exit codes:\n");
    for (codes, meanings) in MEANINGS {
        let meaning = meanings[kind as usize];
        if !meaning.is_empty() {
            let _ = writeln!(help, "  {codes:<15}{meaning}");
        }
    }
    help.truncate(help.trim_end().len());
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_has_the_table_of_the_code() {
        let mut table = "\
| Exit code | `router`, `consumer run` | Commands that end by themselves | `router audit`, `consumer audit`, `consumer diff` |
| --- | --- | --- | --- |
"
        .to_owned();
        for (codes, meanings) in MEANINGS {
            let cells = meanings.map(|meaning| if meaning.is_empty() { "–" } else { meaning });
            let _ = writeln!(table, "| {codes} | {} |", cells.join(" | "));
        }
        crate::testing::book::assert_generated("reference/exit-codes.md", "exit-codes", &table);
    }

    #[test]
    fn a_help_ends_with_the_codes_of_its_kind() {
        let audit = help(Kind::Audit, "Example:\n  router audit");
        assert!(
            audit.starts_with("Example:\n  router audit\n\nExit codes:\n  0              equal\n")
        );
        assert!(!audit.contains("78"), "{audit}");
        assert!(help(Kind::Service, "").contains("\n  78             needs an operator"));
    }
}
