//! The meaning of the error numbers of MySQL and MariaDB. Their SQLSTATEs are too coarse: a server in read-only mode
//! and an unknown variable are both HY000.

use sqlx::error::DatabaseError;
use sqlx::mysql::MySqlDatabaseError;

use crate::store::error::Meaning::{self, Permanent, Refused, TooLong, Transient};
use crate::store::error::{OUTDATED, StoreError};

/// A key exists already.
pub(super) const DUPLICATE_KEY: u16 = 1062;
/// There is no table of this name.
pub(super) const NO_TABLE: u16 = 1146;
/// A right is missing: to a database, a table or a column.
pub(super) const DENIED: [u16; 3] = [1044, 1142, 1143];

/// All others are [`Permanent`].
pub(in crate::store) const MEANINGS: &[(u16, Meaning, &str)] = &[
    (
        1,
        Transient,
        "a temporary file cannot be created, because the disk of tmpdir is full",
    ),
    (
        3,
        Transient,
        "a temporary file cannot be written, because the disk of tmpdir is full",
    ),
    (
        126,
        Transient,
        "a temporary table is incomplete, because the disk of tmpdir is full",
    ),
    (1020, Transient, "a row has changed since it was read"),
    (1021, Transient, "the disk is full"),
    (
        1030,
        Transient,
        "an error of the storage engine, such as a full disk",
    ),
    (
        1038,
        Transient,
        "out of memory for sorting, or the disk of tmpdir is full",
    ),
    (1040, Transient, "too many connections"),
    (1041, Transient, "out of memory"),
    (1044, Permanent, "this user has no rights in the database"),
    (1045, Permanent, "wrong user or password"),
    (1048, Refused, "a column cannot be null"),
    (1049, Permanent, "the database does not exist"),
    (1053, Transient, "the server is shutting down"),
    (1054, Permanent, "a column is missing"),
    (1062, Refused, "a duplicate key"),
    (1077, Transient, "the server is shutting down"),
    (1114, Transient, "the table, or its disk, is full"),
    (1118, Refused, "a row is too large"),
    (
        1129,
        Permanent,
        "the host is blocked after many connection errors",
    ),
    (1130, Permanent, "the host may not connect"),
    (1142, Permanent, "a right is missing"),
    (1143, Permanent, "a right to a column is missing"),
    (1146, Permanent, "a table is missing"),
    (1152, Transient, "the connection was aborted"),
    (
        1153,
        Permanent,
        "a packet is larger than max_allowed_packet",
    ),
    (1158, Transient, "reading from the connection failed"),
    (1159, Transient, "net_read_timeout"),
    (1160, Transient, "writing to the connection failed"),
    (1161, Transient, "net_write_timeout"),
    (
        1180,
        Transient,
        "an error at a commit, such as a cluster without a quorum",
    ),
    (1203, Transient, "max_user_connections"),
    (1205, Transient, "innodb_lock_wait_timeout"),
    (1206, TooLong, "too many locks"),
    (
        1213,
        Transient,
        "a deadlock; in a Galera cluster, a conflict with another node",
    ),
    (1226, Transient, "a limit of this user is exceeded"),
    (1264, Refused, "a number is out of range"),
    (
        1290,
        Transient,
        "read-only mode: a replica, before or after a failover",
    ),
    (1292, Refused, "an invalid value"),
    (1317, TooLong, "the query was interrupted"),
    (1366, Refused, "a text that cannot be encoded"),
    (1390, Permanent, "too many parameters: a fault in a program"),
    (1406, Refused, "a text is too long"),
    (
        1412,
        Transient,
        "a table was altered since the transaction began",
    ),
    (1461, Transient, "too many prepared statements"),
    (1644, Refused, "SIGNAL in a trigger"),
    (1665, Permanent, "binlog_format is STATEMENT"),
    (1690, Refused, "a number is out of range in an expression"),
    (
        1792,
        Transient,
        "a read-only transaction: a replica, before or after a failover",
    ),
    (1836, Transient, "read-only mode"),
    (1927, Transient, "the connection was killed"),
    (1969, TooLong, "max_statement_time of MariaDB"),
    (3024, TooLong, "max_execution_time of MySQL"),
    (3140, Refused, "a text is no JSON"),
    (3572, Transient, "a lock is not available at once"),
    (3819, Refused, "a CHECK constraint of MySQL"),
    (4025, Refused, "a CHECK constraint of MariaDB"),
    (
        4031,
        Transient,
        "the connection was idle for longer than wait_timeout",
    ),
];

/// What to do if a right is missing.
const GRANTS: &str = "deploy/mysql/grants.sql has the rights that each role needs";
/// What to do if a user is refused.
const PASSWORD: &str = "MYSQL_PWD, MYSQL_PWD_FILE or DATABASE_URL gives the password";
/// What to do without a database.
const NO_DATABASE: &str = "create it with CREATE DATABASE, then run consumer migrate";
/// What to do about the binary log.
const BINLOG: &str =
    "set binlog_format to ROW or MIXED, or let the user set it: transactions are READ COMMITTED";

/// ENOSPC in the texts of MariaDB and of MySQL 8.
const NO_ROOM: [&str; 2] = ["Errcode: 28", "OS errno 28"];
/// What to do about temporary tables and files that have no room.
const TEMPORARY: &str = "the server's tmpdir has no room for temporary tables: free some, or let tmpdir name a larger disk";

/// Classifies an error of the server, and adds what to do if its message does not; `None`: it is not MySQL's.
pub(super) fn judge(error: &(dyn DatabaseError + 'static)) -> Option<StoreError> {
    let error = error.try_downcast_ref::<MySqlDatabaseError>()?;
    let (number, message) = (error.number(), error.message());
    let message = format!("error returned from database: {number}: {message}");
    let known = MEANINGS.iter().find(|(code, ..)| *code == number);
    Some(match number {
        _ if DENIED.contains(&number) => StoreError::Exit(format!("{message}; {GRANTS}")),
        NO_TABLE | 1054 => StoreError::Exit(format!("{message}; {OUTDATED}")),
        1045 => StoreError::Exit(format!("{message}; {PASSWORD}")),
        1049 => StoreError::Exit(format!("{message}; {NO_DATABASE}")),
        1665 => StoreError::Exit(format!("{message}; {BINLOG}")),
        1 | 3 if !NO_ROOM.iter().any(|text| message.contains(text)) => StoreError::Exit(message),
        126 if !message.contains("#sql") => StoreError::Exit(message),
        1 | 3 | 126 => StoreError::Retry(format!("{message}; {TEMPORARY}")),
        1038 => {
            let small = "the server's sort_buffer_size is too small for such rows";
            StoreError::Retry(format!("{message}; {small}, or {TEMPORARY}"))
        }
        _ => known
            .map_or(Permanent, |(_, meaning, _)| *meaning)
            .of(message),
    })
}

/// The number of a server's error.
pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    let error = error.as_database_error()?;
    let error = error.try_downcast_ref::<MySqlDatabaseError>()?;
    Some(error.number())
}
