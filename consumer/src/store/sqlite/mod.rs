//! SQLite: its files, what its errors mean, its migrations, and how it is written to.

mod codes;
mod files;
mod write;

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _};

#[cfg(test)]
pub(super) use self::codes::MEANINGS;
pub(super) use self::codes::judge;
pub(super) use self::files::Files;
pub(crate) use self::write::Sqlite;
use super::StoreError;

/// Every migration ever released: its name and text.
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
];

/// How long a lock is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How the file is opened: writers wait for each other.
pub(super) fn options(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .create_if_missing(true)
        // In WAL mode a power cut can take back the last transactions, whole and with their
        // offsets, but not break the file: they are then read again from the topic.
        .synchronous(SqliteSynchronous::Normal)
        // Then it is tried again, with a word in the log.
        .busy_timeout(BUSY_TIMEOUT)
        .disable_statement_logging()
}

/// How it is opened to be written to: in WAL mode, so that readers never wait for the writer. Who only reads
/// leaves the file's mode as it is: a backup has another one.
pub(super) fn to_write(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options.journal_mode(SqliteJournalMode::Wal)
}

/// What to do where a file that is there cannot be read, if that is known.
pub(super) fn to_read(file: &Path, error: StoreError) -> StoreError {
    const FORMAT: Range<usize> = 18..20;
    let mut start = [0; FORMAT.end];
    let read = std::fs::File::open(file).and_then(|mut file| file.read_exact(&mut start));
    match error {
        StoreError::Exit(message) if read.is_ok() && start[FORMAT] == [2, 2] => {
            StoreError::Exit(format!(
                "{message}; a file in WAL mode can only be read where its folder can be written to: copy the file, with its \
                 -wal if it has one, to such a folder"
            ))
        }
        error => error,
    }
}

pub(super) async fn migrate(options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let mut connection = to_write(options.clone()).connect().await?;
    let mut tries = 0;
    // sqlx takes no lock for migrations here: of two programs that start at once the later one may
    // fail on what the earlier one has just made, and find it done on the next try.
    while let Err(error) = super::migrator(MIGRATIONS).run(&mut connection).await {
        tries += 1;
        if tries == 20 {
            return Err(super::migrating(error));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(connection.close().await?)
}

/// A connection to write on, opened like one of [`options`], to a database that is there: it was migrated.
fn connect(options: &SqliteConnectOptions) -> Result<(Connection, Files), StoreError> {
    let file = options.get_filename();
    let mut flags = OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags |= match mode(options).as_deref() {
        Some("ro") => OpenFlags::SQLITE_OPEN_READ_ONLY,
        Some("memory") => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_MEMORY,
        // A new one in place of one that was removed would be empty, and everything else gone.
        _ if is_absent(file) => {
            return Err(StoreError::Retry(format!(
                "{} is not there any more: put it back, or start the consumer again to begin a new one",
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

/// `mode` of the URL, which sqlx tells in its URL only, and there only where nothing else is to be
/// created. (The file's name has no part in it: not every one of them makes a URL.)
fn mode(options: &SqliteConnectOptions) -> Option<String> {
    let options = options.clone().filename("").create_if_missing(false);
    let url = options.to_url_lossy();
    let mut fields = url.query_pairs();
    fields.find_map(|(field, value)| (field == "mode").then(|| value.into_owned()))
}
