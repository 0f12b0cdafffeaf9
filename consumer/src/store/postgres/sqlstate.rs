//! The meaning of PostgreSQL's error codes (PostgreSQL manual, appendix A).

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnection, PgDatabaseError};

use crate::store::error::Meaning::{self, Permanent, Refused, TooLong, Transient};
use crate::store::error::{OUTDATED, StoreError};

/// A class (two characters), or a code of five characters, which comes before its class. All others are [`Permanent`].
pub(in crate::store) const MEANINGS: &[(&str, Meaning, &str)] = &[
    ("08", Transient, "connection exception"),
    (
        "0A000",
        Permanent,
        "feature not supported; a cached plan that a table change has invalidated is retried",
    ),
    ("21", Refused, "cardinality violation, in a trigger"),
    (
        "22",
        Refused,
        "data exception: a number out of range, a text that cannot be encoded",
    ),
    ("23", Refused, "integrity constraint violation"),
    (
        "25006",
        Transient,
        "read-only transaction: a standby, before or after a failover",
    ),
    ("25P02", Transient, "the transaction has failed before"),
    ("25P03", Transient, "idle_in_transaction_session_timeout"),
    ("25P04", TooLong, "transaction_timeout"),
    ("25", Permanent, "other invalid transaction states"),
    (
        "26",
        Permanent,
        "a prepared statement does not exist: a connection pooler in transaction mode",
    ),
    ("28", Permanent, "wrong user or password, or pg_hba.conf"),
    ("3D", Permanent, "the database does not exist"),
    ("3F", Permanent, "the schema does not exist"),
    (
        "40",
        Transient,
        "transaction rollback: serialization failure (40001), deadlock (40P01)",
    ),
    (
        "42P05",
        Permanent,
        "a prepared statement exists already: a connection pooler in transaction mode",
    ),
    ("42", Permanent, "a table, column or right is missing"),
    ("44", Refused, "WITH CHECK OPTION violation"),
    ("53200", TooLong, "out of memory"),
    (
        "53400",
        TooLong,
        "a configured limit is exceeded: temp_file_limit",
    ),
    (
        "53",
        Transient,
        "insufficient resources: disk full (53100), too many connections (53300)",
    ),
    (
        "54",
        Refused,
        "program limit exceeded: a row or key too long",
    ),
    (
        "55000",
        Transient,
        "not in prerequisite state: a database that currently accepts no connections",
    ),
    ("55006", Transient, "object in use"),
    ("55P03", TooLong, "lock_timeout"),
    ("55", Permanent, "other prerequisites"),
    ("57014", TooLong, "statement_timeout, or a cancelled query"),
    (
        "57",
        Transient,
        "operator intervention: shutdown (57P01), crash (57P02), starting up (57P03), idle_session_timeout (57P05)",
    ),
    ("58", Transient, "system error: input and output (58030)"),
    ("72", Transient, "snapshot too old"),
    ("F0", Transient, "the server's configuration files"),
    ("HV00N", Transient, "a foreign server is unavailable"),
    ("P0", Refused, "raised by a trigger (P0001)"),
    ("XX001", Permanent, "data are corrupted"),
    ("XX002", Permanent, "an index is corrupted"),
    ("XX", Transient, "internal error"),
    (
        "other",
        Permanent,
        "warnings, and codes that no statement of these programs can cause",
    ),
];

/// What to do if a proxy shares sessions.
const POOLER: &str = "a connection pooler in transaction or statement mode shares sessions, and with them prepared \
     statements: connect directly, or to a pool in session mode";

/// A right is missing.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";
/// No table of this name is found in the schemas that this user may use.
pub(super) const UNDEFINED_TABLE: &str = "42P01";

/// Whether a statement names a table that was not found.
pub(super) fn is_undefined_table(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(|error| error.code().as_deref() == Some(UNDEFINED_TABLE))
}

/// What to do if a right is missing.
const GRANTS: &str = "deploy/postgres/grants.sql has the rights that each role needs; the owner of the tables runs it after \
     each consumer migrate";

/// An error if the tables are in a schema of the search path that this user may not use: PostgreSQL then reports them
/// as missing. Tables in other schemas belong to another installation.
pub(super) async fn hidden_tables(connection: &mut PgConnection) -> Option<StoreError> {
    let select = "SELECT quote_ident(nspname), quote_ident(current_user) FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace \
         WHERE relname = 'consumed_offset' AND relkind IN ('r', 'p') AND NOT has_schema_privilege(n.oid, 'USAGE') \
         AND to_regclass('consumed_offset') IS NULL AND nspname IN (SELECT CASE btrim(name, ' \"') \
         WHEN '$user' THEN current_user::text ELSE btrim(name, ' \"') END \
         FROM unnest(string_to_array(current_setting('search_path'), ',')) name) LIMIT 1";
    let found: Result<Option<(String, String)>, _> =
        sqlx::query_as(select).fetch_optional(connection).await;
    let (schema, user) = found.ok()??;
    Some(StoreError::Exit(format!(
        "permission denied for schema {schema}, which has the tables; grant it as the schema's owner: GRANT USAGE ON SCHEMA \
         {schema} TO {user}"
    )))
}

fn meaning(sqlstate: &str) -> Meaning {
    let known = MEANINGS
        .iter()
        .find(|(code, ..)| sqlstate.starts_with(code));
    known.map_or(Permanent, |(_, meaning, _)| *meaning)
}

/// An error as text. sqlx adds the line of PostgreSQL's own source that raised it, which readers mistake for a line of
/// a statement or file of theirs.
pub(super) fn message(error: &sqlx::Error) -> String {
    let server = match error {
        sqlx::Error::Database(error) => error.try_downcast_ref::<PgDatabaseError>(),
        _ => None,
    };
    server.map_or_else(|| error.to_string(), of_server)
}

fn of_server(error: &PgDatabaseError) -> String {
    format!("error returned from database: {}", error.message())
}

/// Classifies an error of the server, and adds what to do if its message does not; `None`: it is not PostgreSQL's.
pub(super) fn judge(error: &(dyn DatabaseError + 'static)) -> Option<StoreError> {
    let error = error.try_downcast_ref::<PgDatabaseError>()?;
    let (code, message) = (error.code(), of_server(error));
    Some(match code {
        // PgBouncer's code for most rejections.
        "08P01" if error.message().contains("unsupported startup parameter") => {
            StoreError::Exit(format!(
                "{message}; a connection pooler rejects this: connect directly, or remove it from the URL"
            ))
        }
        "0A000" if error.routine() == Some("RevalidateCachedQuery") => StoreError::Retry(message),
        "26000" | "42P05" => StoreError::Exit(format!("{message}; {POOLER}")),
        INSUFFICIENT_PRIVILEGE => StoreError::Exit(format!("{message}; {GRANTS}")),
        UNDEFINED_TABLE | "42703" => StoreError::Exit(format!("{message}; {OUTDATED}")),
        _ => meaning(code).of(message),
    })
}
