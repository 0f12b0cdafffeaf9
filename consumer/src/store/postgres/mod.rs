//! PostgreSQL:
//!
//! - `url`, `server`: connecting. `watch`: waiting for answers.
//! - `sqlstate`: the meaning of its error codes.
//! - `write`, `small_batch`: storing events, with `offsets`, `tasks` and `arrays`.
//! - `session`, `dialect`: everything else.
//!
//! This file has the migrations.

mod arrays;
mod dialect;
mod offsets;
mod server;
mod session;
mod small_batch;
mod sqlstate;
mod tasks;
mod url;
mod watch;
mod write;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use sqlx::Connection;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::postgres::PgConnection;

use self::server::Server;
use self::session::PgSession;
#[cfg(test)]
pub(super) use self::sqlstate::MEANINGS;
use self::sqlstate::{INSUFFICIENT_PRIVILEGE, UNDEFINED_TABLE};
use self::write::PgWriter;
use super::migration::{fixed, migrating, migrator};
use super::{Access, Backend, Driver, End, Identity, Session, StoreError, Writer};
use crate::positions::Positions;
use crate::rows::Part;
use crate::tables::Kind;

pub(super) const DRIVER: Driver = Driver {
    schemes: &["postgres:", "postgresql:"],
    parse: |option, url| Ok(Box::new(Server::parse(option, url)?)),
    judge: sqlstate::judge,
};

/// Every migration ever released: its name and SQL.
const MIGRATIONS: &[(&str, &str)] = &[
    (
        "tables",
        include_str!("../../../migrations/postgres/0001_tables.sql"),
    ),
    (
        "first offset",
        include_str!("../../../migrations/postgres/0002_first_offset.sql"),
    ),
    (
        "narrow indexes",
        include_str!("../../../migrations/postgres/0003_narrow_indexes.sql"),
    ),
    (
        "expiry",
        include_str!("../../../migrations/postgres/0004_expiry.sql"),
    ),
    (
        "job tasks",
        include_str!("../../../migrations/postgres/0005_job_tasks.sql"),
    ),
    (
        "topic id",
        include_str!("../../../migrations/postgres/0006_topic_id.sql"),
    ),
    (
        "task times",
        include_str!("../../../migrations/postgres/0007_task_times.sql"),
    ),
];

#[async_trait]
impl Backend for Server {
    fn place(&self) -> String {
        Server::place(self)
    }

    fn identities(&self) -> BTreeSet<String> {
        Server::identities(self)
    }

    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        migrate(self).boxed_local()
    }

    async fn open(&self) -> Result<Box<dyn Writer>, StoreError> {
        Ok(Box::new(PgWriter::open(self).await?))
    }

    async fn session(&self, access: Access) -> Result<Box<dyn Session>, StoreError> {
        Ok(Box::new(PgSession::open(self, access).await?))
    }
}

/// What a transaction writes besides its records.
#[derive(Clone, Copy)]
struct Writing<'a> {
    parts: &'a [Part],
    positions: &'a Positions,
    identity: &'a Identity,
    end: End,
}

/// Needs no right to create tables if they are up to date. Other programs may be running the same migration, and tables
/// may be large: waits as long as the server is working on it.
async fn migrate(server: &Server) -> Result<(), StoreError> {
    let mut session = PgSession::open(server, Access::Write).await?;
    let made = async {
        // Returns a migration error as a value, because only sqlx errors can be watched.
        Ok(make_tables(&mut session.connection).await)
    };
    session.watch.answer(made).await??;
    Ok(session.connection.close().await?)
}

async fn make_tables(connection: &mut PgConnection) -> Result<(), StoreError> {
    let migrator = migrator(fixed(MIGRATIONS));
    if is_up_to_date(connection, &migrator).await? {
        return Ok(());
    }
    if let Some(hidden) = sqlstate::hidden_tables(connection).await {
        return Err(hidden);
    }
    migrator
        .run(connection)
        .await
        .map_err(|error| match &error {
            MigrateError::Execute(denied) | MigrateError::ExecuteMigration(denied, _)
                if has_state(&error, INSUFFICIENT_PRIVILEGE) =>
            {
                StoreError::MayNotMigrate(sqlstate::message(denied))
            }
            _ => migrating(error),
        })
}

/// Whether all of these migrations were applied.
///
/// # Errors
/// If more were applied than this version knows, or if this user may not check.
async fn is_up_to_date(
    connection: &mut PgConnection,
    migrator: &Migrator,
) -> Result<bool, StoreError> {
    let applied = match connection
        .list_applied_migrations(&migrator.table_name)
        .await
    {
        Ok(applied) => applied,
        Err(error) if has_state(&error, UNDEFINED_TABLE) => return Ok(false),
        Err(error) => return Err(migrating(error)),
    };
    if let Some(newer) = applied
        .iter()
        .find(|made| !migrator.version_exists(made.version))
    {
        return Err(migrating(MigrateError::VersionMissing(newer.version)));
    }
    let known = migrator
        .iter()
        .map(|known| (known.version, &known.checksum));
    Ok(known.eq(applied.iter().map(|made| (made.version, &made.checksum))))
}

fn has_state(error: &MigrateError, sqlstate: &str) -> bool {
    let (MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _)) = error else {
        return false;
    };
    let error = error.as_database_error();
    error.is_some_and(|error| error.code().is_some_and(|code| code == sqlstate))
}

fn no_answer(to: &str, within: Duration) -> StoreError {
    StoreError::Retry(format!("no answer {to} within {} s", within.as_secs()))
}

/// The type of columns of this kind.
pub(super) fn column_type(kind: Kind) -> &'static str {
    match kind {
        Kind::I32 => "integer",
        Kind::I64 => "bigint",
        Kind::F64 => "double precision",
        Kind::Bool => "boolean",
        Kind::Time => "timestamp with time zone",
        Kind::Text => "text",
        Kind::Texts => "text[]",
        Kind::JobTasks => "integer[]",
        Kind::Json => "json",
    }
}

/// The type in which values of this kind are sent in arrays and JSON.
fn sent_type(kind: Kind) -> &'static str {
    match kind {
        Kind::Time => column_type(Kind::I64), // microseconds
        _ => column_type(kind),
    }
}
