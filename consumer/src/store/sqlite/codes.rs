//! The meaning of SQLite's result codes (sqlite.org/rescode.html).

use sqlx::error::DatabaseError;
use sqlx::sqlite::SqliteError;

use crate::store::error::Meaning::{self, Permanent, Refused, Transient};
use crate::store::error::{OUTDATED, StoreError};

/// Extended codes come before their primary code. All others are [`Permanent`].
pub(in crate::store) const MEANINGS: &[(i32, &str, Meaning, &str)] = &[
    (
        1,
        "ERROR",
        Permanent,
        "a table or column is missing, or this version does not know the SQL",
    ),
    (2, "INTERNAL", Permanent, "a fault in SQLite"),
    (3, "PERM", Permanent, "this user lacks the right"),
    (4, "ABORT", Transient, "aborted by a rollback"),
    (
        5,
        "BUSY",
        Transient,
        "another process is writing (also BUSY_SNAPSHOT, BUSY_RECOVERY, BUSY_TIMEOUT)",
    ),
    (6, "LOCKED", Transient, "locked inside this process"),
    (7, "NOMEM", Transient, "out of memory"),
    (
        1032,
        "READONLY_DBMOVED",
        Transient,
        "the file was removed or renamed: the path is opened again",
    ),
    (
        1288,
        "READONLY_CANTINIT",
        Transient,
        "the shared memory of the write-ahead log is being set up",
    ),
    (
        8,
        "READONLY",
        Permanent,
        "the file or its folder is not writable",
    ),
    (9, "INTERRUPT", Transient, "interrupted"),
    (8202, "IOERR_DATA", Permanent, "a page's checksum is wrong"),
    (
        8458,
        "IOERR_CORRUPTFS",
        Permanent,
        "the file system is corrupted",
    ),
    (10, "IOERR", Transient, "input or output failed"),
    (
        11,
        "CORRUPT",
        Permanent,
        "the file is corrupted: restore a backup, with the consumers stopped",
    ),
    (12, "NOTFOUND", Permanent, "a fault in a program"),
    (13, "FULL", Transient, "the disk is full"),
    (
        14,
        "CANTOPEN",
        Permanent,
        "the file or its folder does not exist",
    ),
    (15, "PROTOCOL", Transient, "a race between locks"),
    (17, "SCHEMA", Transient, "the tables changed meanwhile"),
    (18, "TOOBIG", Refused, "a text or row is too large"),
    (
        19,
        "CONSTRAINT",
        Refused,
        "a constraint, or RAISE in a trigger",
    ),
    (
        20,
        "MISMATCH",
        Refused,
        "a value is not of its column's type",
    ),
    (21, "MISUSE", Permanent, "a fault in a program"),
    (
        22,
        "NOLFS",
        Permanent,
        "the file system does not support files of this size",
    ),
    (23, "AUTH", Permanent, "not allowed"),
    (24, "FORMAT", Permanent, "not used by SQLite"),
    (25, "RANGE", Permanent, "a fault in a program"),
    (26, "NOTADB", Permanent, "the file is not a database"),
];

/// What to do if the file cannot be opened.
const ABSENT: &str =
    "check the path; consumer run and consumer migrate create the file, in a folder that exists";

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error() {
            // In sqlx's words: other parts of this program use sqlx for the same database.
            Some(rusqlite::ffi::Error { extended_code, .. }) => judge_code(
                *extended_code,
                format!("error returned from database: (code: {extended_code}) {error}"),
            ),
            None => Self::Exit(error.to_string()),
        }
    }
}

/// Classifies an error of SQLite; `None`: it is not SQLite's.
pub(super) fn judge(error: &(dyn DatabaseError + 'static)) -> Option<StoreError> {
    let error = error.try_downcast_ref::<SqliteError>()?;
    let code = error.code().unwrap_or_default();
    let message = format!("error returned from database: {error}");
    Some(judge_code(code.parse().unwrap_or_default(), message))
}

/// Classifies an error by its extended result code and message.
fn judge_code(code: i32, message: String) -> StoreError {
    let is_missing = |what: &str| message.contains(what);
    if code == 1 && (is_missing("no such table") || is_missing("no such column")) {
        return StoreError::Exit(format!("{message}; {OUTDATED}"));
    }
    if code & 0xFF == 14 {
        return StoreError::Exit(format!("{message}; {ABSENT}"));
    }
    meaning(code).of(message)
}

fn meaning(code: i32) -> Meaning {
    let of = |wanted: i32| MEANINGS.iter().find(|(code, ..)| *code == wanted);
    let known = of(code).or_else(|| of(code & 0xFF));
    known.map_or(Permanent, |(_, _, meaning, _)| *meaning)
}
