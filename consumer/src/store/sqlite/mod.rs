//! SQLite:
//!
//! - `files`: checks that its files are still in place.
//! - `codes`: the meaning of its error codes.
//! - `write`: storing events, with rusqlite.
//! - `session`, `dialect`: everything else, with sqlx.
//!
//! This file has connecting and the migrations.

mod codes;
mod dialect;
mod files;
mod session;
mod write;

use std::collections::BTreeSet;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use rusqlite::{Connection, OpenFlags};
use service::exit::WrongUsage;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _};

#[cfg(test)]
pub(super) use self::codes::MEANINGS;
use self::files::Files;
use self::session::SqliteSession;
use self::write::SqliteWriter;
use super::migration::{fixed, migrating, migrator};
use super::{ANSWER, Access, Backend, Driver, Session, StoreError, Writer, within};

pub(super) const DRIVER: Driver = Driver {
    schemes: &["sqlite:"],
    parse: |option, url| Ok(Box::new(File::parse(option, url)?)),
    judge: codes::judge,
};

/// Every migration ever released: its name and SQL.
const MIGRATIONS: &[(&str, &str)] = &[
    (
        "tables",
        include_str!("../../../migrations/sqlite/0001_tables.sql"),
    ),
    (
        "first offset",
        include_str!("../../../migrations/sqlite/0002_first_offset.sql"),
    ),
    (
        "narrow indexes",
        include_str!("../../../migrations/sqlite/0003_narrow_indexes.sql"),
    ),
    (
        "expiry",
        include_str!("../../../migrations/sqlite/0004_expiry.sql"),
    ),
    (
        "job tasks",
        include_str!("../../../migrations/sqlite/0005_job_tasks.sql"),
    ),
    (
        "topic id",
        include_str!("../../../migrations/sqlite/0006_topic_id.sql"),
    ),
    (
        "task times",
        include_str!("../../../migrations/sqlite/0007_task_times.sql"),
    ),
];

/// Maximum wait for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// A database file.
struct File(SqliteConnectOptions);

impl File {
    /// # Errors
    /// If the option's URL is invalid or names no file.
    fn parse(option: &str, url: &str) -> Result<Self, WrongUsage> {
        let options = SqliteConnectOptions::from_str(url)
            .map_err(|error| WrongUsage(format!("{option}: {error}")))?;
        let is_in_memory = url.contains(":memory:") || url.contains("mode=memory");
        if is_in_memory || options.get_filename().as_os_str().is_empty() {
            return Err(WrongUsage(format!(
                "{option} does not name a file; give one, as in sqlite:tasks.db"
            )));
        }
        let options = options
            .create_if_missing(true)
            // In WAL mode, a power cut can undo the last transactions, whole and with their offsets, but cannot corrupt
            // the file. Their events are then read again from the topic.
            .synchronous(SqliteSynchronous::Normal)
            // Writers wait for each other; after that, they retry and log it.
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        Ok(Self(options))
    }
}

#[async_trait]
impl Backend for File {
    fn place(&self) -> String {
        format!("SQLite {}", self.0.get_filename().display())
    }

    fn identities(&self) -> BTreeSet<String> {
        let file = self.0.get_filename();
        // A file that does not exist yet has no other name.
        let file = file
            .canonicalize()
            .or_else(|_| std::path::absolute(file))
            .unwrap_or_else(|_| file.to_owned());
        [format!("SQLite {file:?}")].into()
    }

    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), StoreError>> {
        migrate(&self.0).boxed_local()
    }

    async fn open(&self) -> Result<Box<dyn Writer>, StoreError> {
        let opened = within(ANSWER, SqliteWriter::open(&self.0)).await?;
        Ok(Box::new(opened))
    }

    async fn session(&self, access: Access) -> Result<Box<dyn Session>, StoreError> {
        let options = self.0.clone().create_if_missing(false);
        let options = match access {
            Access::Read => options.read_only(true),
            Access::Write => to_write(options),
        };
        let file = options.get_filename();
        let connection = options.connect().await.map_err(StoreError::from);
        let connection = connection.map_err(|error| match access {
            Access::Read => to_read(file, error),
            Access::Write => error,
        })?;
        Ok(Box::new(SqliteSession::new(connection, Files::of(file))))
    }
}

/// Options for writing: WAL mode, so that readers never wait for the writer. Readers do not change the mode, because a
/// backup may have another one.
fn to_write(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options.journal_mode(SqliteJournalMode::Wal)
}

/// Adds what to do if a file exists but cannot be read, if that is known.
fn to_read(file: &Path, error: StoreError) -> StoreError {
    const FORMAT: Range<usize> = 18..20;
    let mut start = [0; FORMAT.end];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut start));
    match error {
        StoreError::Exit(message) if read.is_ok() && start[FORMAT] == [2, 2] => {
            StoreError::Exit(format!(
                "{message}; a file in WAL mode can be read only if its folder is writable: copy the file, with its \
                 -wal if it has one, to such a folder"
            ))
        }
        error => error,
    }
}

async fn migrate(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let mut connection = to_write(options.clone()).connect().await?;
    let mut tries = 0;
    // sqlx takes no lock for SQLite migrations: if two programs start at once, the later one may fail on what the
    // earlier one has just created; its next attempt finds the migration done.
    while let Err(error) = migrator(fixed(MIGRATIONS)).run(&mut connection).await {
        tries += 1;
        if tries == 20 {
            return Err(migrating(error));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(connection.close().await?)
}

/// Opens a connection for writing, with the settings of a [`File`], to a migrated database.
fn connect(options: &SqliteConnectOptions) -> Result<(Connection, Files), StoreError> {
    let file = options.get_filename();
    let mut flags = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags |= match mode(options).as_deref() {
        Some("ro") => OpenFlags::SQLITE_OPEN_READ_ONLY,
        Some("memory") => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_MEMORY,
        // A new file in place of a removed one would be empty, and all other data lost.
        _ if is_absent(file) => {
            return Err(StoreError::Retry(format!(
                "{} no longer exists: restore it, or restart the consumer to create a new one",
                file.display()
            )));
        }
        _ => OpenFlags::SQLITE_OPEN_READ_WRITE,
    };
    let connection = Connection::open_with_flags(file, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    let files = Files::of(file);
    Ok((connection, files))
}

fn is_absent(file: &Path) -> bool {
    let is_name = !file.as_os_str().as_encoded_bytes().starts_with(b"file:");
    is_name && file.try_exists().is_ok_and(|exists| !exists)
}

/// The URL's `mode`. sqlx exposes it only in its own URL, and only if no file is to be created. (The file's name is
/// left out: not every name forms a URL.)
fn mode(options: &SqliteConnectOptions) -> Option<String> {
    let options = options.clone().filename("").create_if_missing(false);
    let url = options.to_url_lossy();
    let mut fields = url.query_pairs();
    fields.find_map(|(field, value)| (field == "mode").then(|| value.into_owned()))
}
