//! MySQL and MariaDB, which differ little:
//!
//! - `server`: connecting, and the settings of sessions. `watch`: waiting for answers.
//! - `codes`: the meaning of their error numbers.
//! - `write`: storing events, with `offsets`.
//! - `session`, `dialect`: everything else.
//!
//! This file has the migrations.

mod codes;
mod dialect;
mod offsets;
mod server;
mod session;
mod watch;
mod write;

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use sqlx::migrate::{Migrate, MigrateError};
use sqlx::mysql::MySqlConnection;
use sqlx::{AssertSqlSafe, Connection, SqlSafeStr};
use tokio::time::timeout;

#[cfg(test)]
pub(super) use self::codes::MEANINGS;
use self::codes::{DENIED, NO_TABLE};
use self::server::{Connected, Server};
use self::session::MySqlSession;
use self::write::MySqlWriter;
use super::migration::{migrating, migrator};
use super::{ANSWER, Access, Backend, Driver, Session, StoreError, Writer};

pub(super) const DRIVER: Driver = Driver {
    schemes: &["mysql:", "mariadb:"],
    parse: |option, url| Ok(Box::new(Server::parse(option, url)?)),
    judge: codes::judge,
};

/// Every migration ever released: its name and SQL, in which `COLLATION` is that of the server's product.
const MIGRATIONS: &[(&str, &str)] = &[(
    "tables",
    include_str!("../../../migrations/mysql/0001_tables.sql"),
)];

/// One program at a time migrates a database.
const LOCK: &str = "SELECT get_lock(concat('consumer ', md5(database())), ?)";
const UNLOCK: &str = "DO release_lock(concat('consumer ', md5(database())))";
/// A migration of large tables takes this long at most, or another program has to be started again.
const LOCK_WAIT: Duration = Duration::from_secs(3600);

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
        Ok(Box::new(MySqlWriter::open(self).await?))
    }

    async fn session(&self, access: Access) -> Result<Box<dyn Session>, StoreError> {
        Ok(Box::new(MySqlSession::open(self, access).await?))
    }
}

/// Needs no right to create tables if they are up to date.
async fn migrate(server: &Server) -> Result<(), StoreError> {
    let mut connected = server.connect().await?;
    make_tables(&mut connected).await?;
    assert_engine(&mut connected.connection).await?;
    Ok(connected.connection.close().await?)
}

async fn make_tables(connected: &mut Connected) -> Result<(), StoreError> {
    let collation = connected.dialect.collation;
    let texts = MIGRATIONS.iter().map(|(name, sql)| {
        let sql = sql.replace("COLLATE COLLATION", &format!("COLLATE {collation}"));
        (*name, AssertSqlSafe(sql).into_sql_str())
    });
    let mut migrator = migrator(texts);
    // The lock is taken here, because an unfinished migration has to be cleared under it first.
    migrator.set_locking(false);
    let connection = &mut connected.connection;
    let applied = match connection
        .list_applied_migrations(&migrator.table_name)
        .await
    {
        Ok(applied) => applied,
        Err(error) if number(&error) == Some(NO_TABLE) => Vec::new(),
        Err(error) => return Err(migrating(error)),
    };
    let known = migrator
        .iter()
        .map(|known| (known.version, &known.checksum));
    if let Some(newer) = applied
        .iter()
        .find(|made| !migrator.version_exists(made.version))
    {
        return Err(migrating(MigrateError::VersionMissing(newer.version)));
    }
    let unfinished = connection.dirty_version(&migrator.table_name).await;
    if known.eq(applied.iter().map(|made| (made.version, &made.checksum)))
        && matches!(unfinished, Ok(None))
    {
        return Ok(());
    }
    let lock = sqlx::query_scalar(LOCK).bind(LOCK_WAIT.as_secs());
    let locked: Option<i64> = lock.fetch_one(&mut *connection).await?;
    if locked != Some(1) {
        let why = "another program has been migrating the tables for an hour";
        return Err(StoreError::Retry(why.to_owned()));
    }
    let made = async {
        clear_unfinished(connection).await?;
        let made = migrator.run(&mut *connection).await;
        made.map_err(|error| match &error {
            MigrateError::Execute(denied) | MigrateError::ExecuteMigration(denied, _)
                if codes::number(denied).is_some_and(|number| DENIED.contains(&number)) =>
            {
                StoreError::MayNotMigrate(denied.to_string())
            }
            _ => migrating(error),
        })
    };
    let made = made.await;
    let unlocked = sqlx::raw_sql(UNLOCK).execute(connection).await;
    // The first error says more than that of a lost connection.
    made?;
    unlocked?;
    Ok(())
}

/// Removes the mark of a migration that was begun and not finished. It can run again: MySQL commits after each of its
/// statements, and each may be repeated.
async fn clear_unfinished(connection: &mut MySqlConnection) -> Result<(), StoreError> {
    let clear = "DELETE FROM _sqlx_migrations WHERE NOT success";
    match sqlx::raw_sql(clear).execute(connection).await {
        Err(error) if codes::number(&error) != Some(NO_TABLE) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Transactions need InnoDB: other engines keep the first half of a transaction that fails.
async fn assert_engine(connection: &mut MySqlConnection) -> Result<(), StoreError> {
    let select = "SELECT CAST(table_name AS char), CAST(engine AS char) FROM information_schema.tables \
         WHERE table_schema = database() AND table_type = 'BASE TABLE' AND engine <> 'InnoDB' \
         AND table_name IN ('task', 'task_progress', 'task_resource', 'task_metrics', 'consumed_offset', 'expiry') LIMIT 1";
    let query = sqlx::query_as(select).persistent(false);
    let other = timeout(ANSWER, query.fetch_optional(connection)).await;
    let other: Option<(String, String)> =
        other.map_err(|_| no_answer("about the engines of the tables", ANSWER))??;
    match other {
        None => Ok(()),
        Some((table, engine)) => Err(StoreError::Exit(format!(
            "the table {table} is of the engine {engine}, which has no transactions: ALTER TABLE {table} ENGINE = InnoDB"
        ))),
    }
}

fn number(error: &MigrateError) -> Option<u16> {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => {
            codes::number(error)
        }
        _ => None,
    }
}

fn no_answer(to: &str, within: Duration) -> StoreError {
    StoreError::Retry(format!("no answer {to} within {} s", within.as_secs()))
}
