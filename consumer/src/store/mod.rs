//! The one door to SQL: two databases with the same tables.
//!
//! Why each event is stored exactly once: [`Store::write`] first moves `consumed_offset` on, naming
//! the offset it expects to find, then writes the rows, all in one transaction. If the offset is
//! another one, somebody else stored these events: nothing is written, and the caller starts again
//! from what the database says. The row lock on the offset makes a second writer of the same
//! partition wait for the first, and then find another offset.

mod connection;
mod expiry;
mod meaning;
mod postgres;
mod repair;
#[cfg(test)]
mod schema;
mod snapshot;
mod sqlite;
mod tasks;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::Duration;

use service::address::{Address, AddressParser};
use service::exit::WrongUsage;
use sqlx::SqlStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteConnectOptions;

use self::meaning::Meaning;
use crate::batch::Record;
use crate::ownership::Owner;
use crate::positions::{Advance, Anchor, Positions};
use crate::rows::Part;

pub(crate) use connection::{Access, Bound, Connection};
pub(crate) use expiry::{Expiring, Step};
pub(crate) use repair::Repair;
pub(crate) use snapshot::{HeldOffset, Order, Places, Selection, Snapshot};

/// Option of every command that opens the database.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseOptions {
    /// sqlite:FILE or postgres://USER@HOST:PORT/NAME?sslmode=verify-full&sslrootcert=FILE (a password by PGPASSWORD or PGPASSFILE)
    #[arg(
        long,
        env = "DATABASE_URL",
        value_name = "URL",
        value_parser = database_url(),
        global = true,
        hide_env_values = true
    )]
    pub database_url: Option<Address>,
}

impl DatabaseOptions {
    /// The database's URL. There is no default: a misspelt variable would store everything in another place.
    ///
    /// # Errors
    /// If none is given, with what to type.
    pub fn url(&self) -> Result<&Address, WrongUsage> {
        self.database_url.as_ref().ok_or_else(|| {
            let why = "no database is given: add --database-url sqlite:FILE or --database-url \
                       postgres://USER@HOST/NAME, or set DATABASE_URL";
            WrongUsage(why.to_owned())
        })
    }
}

/// How the URL of a database is read, of every option that takes one.
pub(crate) fn database_url() -> AddressParser {
    AddressParser::database("PGPASSWORD, PGPASSFILE or DATABASE_URL")
}

/// Which database, and how to reach it.
#[derive(Clone)]
pub(crate) enum Database {
    Postgres(postgres::Server),
    Sqlite(Box<SqliteConnectOptions>),
}

impl Database {
    /// # Errors
    /// If there is no URL, or it is neither `sqlite:` nor `postgres:`. The URL itself is not shown: it may hold a
    /// password.
    pub(crate) fn parse(options: &DatabaseOptions) -> anyhow::Result<Self> {
        Self::parse_url("--database-url", options.url()?)
    }

    /// [`parse`](Self::parse) of the URL that another option gives.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn parse_url(option: &str, url: &Address) -> anyhow::Result<Self> {
        let url = url.reveal();
        let wrong = |error: sqlx::Error| WrongUsage(format!("{option}: {error}"));
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            Ok(Self::Postgres(postgres::Server::parse(option, url)?))
        } else if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url).map_err(wrong)?;
            let is_in_memory = url.contains(":memory:") || url.contains("mode=memory");
            if is_in_memory || options.get_filename().as_os_str().is_empty() {
                return Err(WrongUsage(format!(
                    "{option} names no file; give one, as in sqlite:tasks.db"
                ))
                .into());
            }
            Ok(Self::Sqlite(Box::new(sqlite::options(options))))
        } else {
            Err(WrongUsage(format!(
                "{option} begins with neither sqlite: nor postgres://, as in sqlite:tasks.db or \
                 postgres://taskrunning@localhost/taskrunning"
            ))
            .into())
        }
    }

    /// Where the database is, without the password.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Postgres(server) => server.place(),
            Self::Sqlite(options) => format!("SQLite {}", options.get_filename().display()),
        }
    }

    /// Whether the two are one database, as far as their URLs tell.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Postgres(one), Self::Postgres(other)) => one.is_same(other),
            (Self::Sqlite(one), Self::Sqlite(other)) => {
                let of = |options: &SqliteConnectOptions| {
                    let file = options.get_filename();
                    // A file that is not there yet is nobody's other name.
                    file.canonicalize()
                        .or_else(|_| std::path::absolute(file))
                        .unwrap_or_else(|_| file.to_owned())
                };
                of(one) == of(other)
            }
            _ => false,
        }
    }

    /// Brings the tables up to date, or leaves them if they are.
    ///
    /// # Errors
    /// If the database cannot be reached or a migration fails.
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        match self {
            // Other consumers may be waiting for the same migration: no limit but the database's.
            Self::Postgres(server) => postgres::migrate(server).await,
            Self::Sqlite(options) => sqlite::migrate(options).await,
        }
    }

    /// # Errors
    /// If the database cannot be reached.
    pub(crate) async fn open(&self) -> Result<Store, StoreError> {
        Ok(match self {
            Self::Postgres(server) => {
                Store::Postgres(Box::new(postgres::Postgres::open(server).await?))
            }
            Self::Sqlite(options) => {
                let opened = within(ANSWER, sqlite::Sqlite::open(options));
                Store::Sqlite(Box::new(opened.await?))
            }
        })
    }
}

/// Whose offsets are stored.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) topic: String,
    pub(crate) cluster_id: String,
    /// `None` where the brokers give none.
    pub(crate) topic_id: Option<String>,
    pub(crate) group_id: String,
}

/// What to do where a table or column is missing.
const OUTDATED: &str = "tables of an older version are brought up to date by: consumer migrate";

/// Why the database did not take something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another owner moved on: read the positions again.
    #[error("{} partition {}: the stored offset is not {} any more; another consumer stored these events", .0.part.as_str(), .0.partition, .0.expected.map_or("absent".to_owned(), |offset| offset.to_string()))]
    Fenced(Advance),
    /// The database is away or busy: try again.
    #[error("{0}")]
    Retry(String),
    /// It took longer than the database, or we, allow: try again with less at once.
    #[error("{0}")]
    TooLong(String),
    /// The database is another one than it was: read the positions again.
    #[error("{0}")]
    Replaced(String),
    /// Some of the records are stored, the others are not, for this reason: read the positions again.
    #[error("{reason}")]
    Half {
        reason: String,
        /// How many records are stored.
        stored: usize,
        /// Their rows.
        rows: Vec<(Part, u64)>,
    },
    /// One of the rows is what the database cannot hold.
    #[error("{0}")]
    Refused(String),
    /// A retry does not cure it.
    #[error("{0}")]
    Exit(String),
    /// As `Exit`: the tables are not up to date, and this user may not change that.
    #[error(
        "{0}; the tables are to be made or brought up to date by their owner: consumer migrate"
    )]
    MayNotMigrate(String),
}

impl StoreError {
    /// Whether a retry does not cure it.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Exit(_) | Self::MayNotMigrate(_) => true,
            Self::Fenced(_)
            | Self::Retry(_)
            | Self::TooLong(_)
            | Self::Replaced(_)
            | Self::Half { .. } => false,
        }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let message = message(&error);
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => Meaning::Passes.of(message),
            sqlx::Error::Tls(error) if is_cut_off(&*error) => Meaning::Passes.of(message),
            sqlx::Error::Database(error) => match error.try_downcast_ref::<PgDatabaseError>() {
                Some(error) => postgres::judge(error, message),
                None => {
                    let code = error.code().unwrap_or_default();
                    sqlite::judge(code.parse().unwrap_or_default(), message)
                }
            },
            _ => Meaning::Stays.of(message),
        }
    }
}

/// An error in words. sqlx adds to PostgreSQL's message the line of PostgreSQL's own source that wrote it, which a
/// reader takes for one of a statement or a file of theirs.
fn message(error: &sqlx::Error) -> String {
    let postgres = match error {
        sqlx::Error::Database(error) => error.try_downcast_ref::<PgDatabaseError>(),
        _ => None,
    };
    match postgres {
        Some(error) => format!("error returned from database: {}", error.message()),
        None => error.to_string(),
    }
}

/// Whether a TLS handshake failed because the other side went away.
fn is_cut_off(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut causes = causes.map(|error| (error.is::<std::io::Error>(), error.to_string()));
    causes.any(|(is_io, said)| is_io || said.contains("unexpected EOF"))
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error() {
            // In the words of sqlx, by which others of this program speak to the same database.
            Some(rusqlite::ffi::Error { extended_code, .. }) => sqlite::judge(
                *extended_code,
                format!("error returned from database: (code: {extended_code}) {error}"),
            ),
            None => Self::Exit(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Exit(error.to_string())
    }
}

/// The checksum of a stored anchor, which is written from a `u32`.
///
/// # Errors
/// If it is none.
fn stored_crc32(part: Part, partition: i32, crc32: i64) -> Result<u32, StoreError> {
    u32::try_from(crc32).map_err(|_| {
        StoreError::Exit(format!(
            "consumed_offset has the anchor_crc32 {crc32} at part {}, partition {partition}, which is no CRC-32 (0 to \
             4294967295): it was altered; restore that row",
            part.as_str()
        ))
    })
}

/// The migrations whose texts these are, numbered from 1. (sqlx's `migrate!` would have both database
/// drivers compiled a second time, for the compiler's side.)
fn migrator(texts: &[(&'static str, &'static str)]) -> Migrator {
    let migrations = (1..).zip(texts).map(|(version, (description, sql))| {
        Migration::new(
            version,
            (*description).into(),
            MigrationType::Simple,
            SqlStr::from_static(sql),
            false,
        )
    });
    Migrator::with_migrations(migrations.collect())
}

/// An error of a migration: the database's own, if that was the cause.
fn migrating(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => sqlx::Error::from(other).into(),
    }
}

/// An open database, for writing.
pub(crate) enum Store {
    Postgres(Box<postgres::Postgres>),
    Sqlite(Box<sqlite::Sqlite>),
}

impl Store {
    /// `db.system.name` of OpenTelemetry's conventions.
    pub(crate) fn system(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgresql",
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// All that is stored: of one topic, unless [`Asked::check`](crate::ownership::Asked::check) says otherwise.
    ///
    /// # Errors
    /// If the database does not answer within 10 s, or not well.
    pub(crate) async fn stored(&mut self) -> Result<Vec<StoredOffset>, StoreError> {
        let rows = match self {
            Self::Postgres(database) => database.consumed_offsets().await,
            Self::Sqlite(database) => within(ANSWER, database.consumed_offsets()).await,
        }?;
        let known = rows.into_iter().filter_map(|row| {
            let (
                part,
                topic,
                partition,
                next_offset,
                cluster_id,
                offset,
                timestamp_ms,
                crc32,
                group_id,
                first_offset,
                topic_id,
            ) = row;
            let part = Part::ALL.into_iter().find(|known| known.as_str() == part)?;
            Some(
                stored_crc32(part, partition, crc32).map(|crc32| StoredOffset {
                    part,
                    topic,
                    partition,
                    first_offset,
                    next_offset,
                    anchor: Anchor {
                        offset,
                        timestamp_ms,
                        crc32,
                    },
                    cluster_id,
                    topic_id,
                    group_id,
                }),
            )
        });
        known.collect()
    }

    /// Moves the offsets on without any rows, in one transaction.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(crate) async fn move_on(
        &mut self,
        advances: &[Advance],
        identity: &Identity,
    ) -> Result<(), StoreError> {
        match self {
            Self::Postgres(database) => database.move_on(advances, identity).await,
            Self::Sqlite(database) => within(ANSWER, database.move_on(advances, identity)).await,
        }
    }

    /// Writes the records' rows and moves the offsets on, in one transaction, but for what `end` says.
    /// Gives the rows written of each part. A first offset is [fenced](StoreError::Fenced) too where the database
    /// belongs to another topic or cluster.
    ///
    /// # Errors
    /// See [`StoreError`]. Nothing is written, but for [a half](StoreError::Half), for a commit whose
    /// answer was lost (the next one is then [fenced](StoreError::Fenced)), and for what went into [a file
    /// that is no longer in place](StoreError::Replaced).
    pub(crate) async fn write(
        &mut self,
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
        identity: &Identity,
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        let records: &[&Record] = &Vec::from_iter(records);
        match self {
            Self::Postgres(database) => {
                database
                    .write(records, parts, positions, identity, end)
                    .await
            }
            Self::Sqlite(database) => {
                let written = database.write(records, parts, positions, identity, end);
                within(WRITE, written).await
            }
        }
    }

    /// Makes sure that what was stored is where the next one will look for it.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if not.
    pub(crate) async fn is_in_place(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(_) => Ok(()),
            Self::Sqlite(database) => within(ANSWER, database.is_in_place()).await,
        }
    }
}

/// How records are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In one transaction.
    Commit,
    /// In two at once, each of other partitions, where there are many records and the database works on
    /// two: they stand to each other as those of two consumers do.
    CommitHalves,
    /// In one that is taken back: a trial finds out which row the database refuses.
    RollBack,
}

/// How far a part of a partition is stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredOffset {
    pub(crate) part: Part,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The first offset ever stored; `None`: not known, of rows that are older than the column.
    pub(crate) first_offset: Option<i64>,
    /// The position of a committed reader: behind the last record stored, and behind the commit markers and
    /// aborted records that were read after it.
    pub(crate) next_offset: i64,
    /// The last record stored; [`Anchor::NONE`]: none yet.
    pub(crate) anchor: Anchor,
    pub(crate) cluster_id: String,
    /// `None`: not known.
    pub(crate) topic_id: Option<String>,
    /// Who stored it last.
    pub(crate) group_id: String,
}

/// A row of `consumed_offset`: part, topic, partition, next offset, cluster id, the anchor's offset,
/// timestamp and checksum, group id, first offset, topic id.
type OffsetRow = (
    String,
    String,
    i32,
    i64,
    String,
    i64,
    i64,
    i64,
    String,
    Option<i64>,
    Option<String>,
);

const SELECT_OFFSETS: &str = "SELECT part, topic, partition, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, \
     anchor_crc32, group_id, first_offset, topic_id FROM consumed_offset";

/// Which topics and clusters these offsets are of.
pub(crate) fn owners(stored: &[StoredOffset]) -> BTreeSet<Owner> {
    let owner = |offset: &StoredOffset| (offset.topic.clone(), offset.cluster_id.clone());
    stored.iter().map(owner).collect()
}

/// How long the database may take for a short answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take for a transaction, once there is a connection: shorter than a group waits for one of its members.
const WRITE: Duration = Duration::from_secs(30);

async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, answer)
        .await
        .unwrap_or_else(|_| {
            Err(StoreError::TooLong(format!(
                "no answer within {} s",
                limit.as_secs()
            )))
        })
}
