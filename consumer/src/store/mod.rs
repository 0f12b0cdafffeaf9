//! The only access to databases. All of them have the same tables.
//!
//! Three traits: [`Backend`] opens a database, [`Writer`] stores events, and [`Session`] does everything else with the
//! help of a [`Dialect`]. `mysql/`, `postgres/` and `sqlite/` each contain everything about one database: connecting, error
//! codes, migrations, writer, session, dialect. Another database is another such folder and a line in [`DRIVERS`]. The
//! other files are common to all databases:
//!
//! - `error`: why a database refused something, and what the caller does about it.
//! - `offsets`: rows of `consumed_offset`.
//! - `dialect`, `session`, `selection`: queries, their values, and scans of whole tables.
//! - `snapshot`, `tasks`: consistent reads.
//! - `repair`, `expiry`: correcting rows, and removing old ones.
//! - `migration`: what sqlx migrations have in common.
//! - `authorities`, `socket`: certificates and options of connections. `values`: rows for databases without arrays.
//!
//! Why each event is stored exactly once: [`Writer::write`] first moves `consumed_offset`, naming the offset it expects
//! to find, then writes the rows, in one transaction. If another offset is found, another writer has stored these
//! events: nothing is written, and the caller resumes from the stored offset. The row lock on the offset makes a second
//! writer of the same partition wait for the first, and then find another offset.

mod authorities;
mod dialect;
#[cfg(test)]
mod docs;
mod error;
mod expiry;
mod migration;
mod mysql;
mod offsets;
mod postgres;
mod repair;
#[cfg(test)]
mod schema;
mod selection;
mod session;
mod snapshot;
mod socket;
mod sqlite;
mod tasks;
mod values;

use std::collections::BTreeSet;
use std::ops::Deref;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::LocalBoxFuture;
use service::address::{Address, AddressParser};
use service::exit::WrongUsage;
use sqlx::error::DatabaseError;

use crate::batch::Record;
use crate::positions::{Advance, Positions};
use crate::rows::Part;

pub(crate) use self::dialect::{Dialect, micros};
pub(crate) use self::error::StoreError;
pub(crate) use self::expiry::{Expiring, Step};
pub(crate) use self::offsets::{HeldOffset, Identity, StoredOffset, owners};
pub(crate) use self::repair::{NewRow, Repairing};
pub(crate) use self::selection::{FINAL, Held, Order, Places, Selection, held};
pub(crate) use self::session::{Access, Row, Session, Value};
pub(crate) use self::snapshot::Snapshot;

/// Option of every command that opens a database.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseOptions {
    /// sqlite:FILE, postgres://USER@HOST:PORT/NAME?sslmode=verify-full&sslrootcert=FILE (password in PGPASSWORD or
    /// PGPASSFILE), or mysql://USER@HOST:PORT/NAME?ssl-mode=VERIFY_IDENTITY&ssl-ca=FILE (in MYSQL_PWD or MYSQL_PWD_FILE)
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
    /// The database's URL. There is no default: a misspelt variable would store everything somewhere else.
    ///
    /// # Errors
    /// If none is given; the error says what to type.
    pub fn url(&self) -> Result<&Address, WrongUsage> {
        self.database_url.as_ref().ok_or_else(|| {
            let why = "no database is given: add --database-url sqlite:FILE, --database-url \
                       postgres://USER@HOST/NAME or --database-url mysql://USER@HOST/NAME, or set DATABASE_URL";
            WrongUsage(why.to_owned())
        })
    }
}

/// The parser of every option that takes a database URL.
pub(crate) fn database_url() -> AddressParser {
    AddressParser::database("PGPASSWORD, PGPASSFILE, MYSQL_PWD, MYSQL_PWD_FILE or DATABASE_URL")
}

/// The supported databases.
const DRIVERS: &[Driver] = &[mysql::DRIVER, postgres::DRIVER, sqlite::DRIVER];

/// A kind of database.
struct Driver {
    /// The prefixes of its URLs.
    schemes: &'static [&'static str],
    /// Parses the URL of an option.
    parse: fn(option: &str, url: &str) -> anyhow::Result<Box<dyn Backend>>,
    /// Classifies an error of its server or library; `None` if the error is of another database.
    judge: fn(&(dyn DatabaseError + 'static)) -> Option<StoreError>,
}

/// A database and how to reach it.
pub(crate) struct Database(Box<dyn Backend>);

impl Deref for Database {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Database {
    /// # Errors
    /// If there is no URL, or its scheme is none of the supported ones. The error does not show the URL, which
    /// may contain a password.
    pub(crate) fn parse(options: &DatabaseOptions) -> anyhow::Result<Self> {
        Self::parse_url("--database-url", options.url()?)
    }

    /// [`parse`](Self::parse) for the URL of another option.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse).
    pub(crate) fn parse_url(option: &str, url: &Address) -> anyhow::Result<Self> {
        let url = url.reveal();
        for driver in DRIVERS {
            if driver.schemes.iter().any(|scheme| url.starts_with(scheme)) {
                return (driver.parse)(option, url).map(Self);
            }
        }
        Err(WrongUsage(format!(
            "{option} must begin with sqlite:, postgres:// or mysql://, as in sqlite:tasks.db or \
             postgres://taskrunning@localhost/taskrunning"
        ))
        .into())
    }

    /// Whether both are the same database, as far as their URLs show.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        !self.identities().is_disjoint(&other.identities())
    }
}

/// A database given by a URL.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// The database for messages, without the password.
    fn place(&self) -> String;

    /// Names by which databases are compared: two with a common one are the same.
    fn identities(&self) -> BTreeSet<String>;

    /// Migrates the tables to this version, if necessary. (Not `Send`: the compiler cannot prove that a sqlx migration
    /// may move between threads, rust-lang/rust#100013.)
    ///
    /// # Errors
    /// If the database cannot be reached or a migration fails.
    fn migrate(&self) -> LocalBoxFuture<'_, Result<(), StoreError>>;

    /// Opens the database to store events.
    ///
    /// # Errors
    /// If it cannot be reached.
    async fn open(&self) -> Result<Box<dyn Writer>, StoreError>;

    /// Opens the database for everything else.
    ///
    /// # Errors
    /// If it cannot be reached or does not exist.
    async fn session(&self, access: Access) -> Result<Box<dyn Session>, StoreError>;
}

/// A database opened to store events. Reconnects after a failure.
#[async_trait]
pub(crate) trait Writer: Send {
    /// `db.system.name` of OpenTelemetry's conventions.
    fn system(&self) -> &'static str;

    /// All stored offsets, normally of one topic; see [`ExpectedOwner::check`](crate::ownership::ExpectedOwner::check).
    ///
    /// # Errors
    /// If the database fails or does not answer within 10 s.
    async fn stored(&mut self) -> Result<Vec<StoredOffset>, StoreError>;

    /// Moves the offsets forward without any rows, in one transaction.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    async fn move_on(
        &mut self,
        advances: &[Advance],
        identity: &Identity,
    ) -> Result<(), StoreError>;

    /// Writes the records' rows and moves the offsets forward, in one transaction unless `end` says otherwise. Returns
    /// the number of rows written, by part. A first offset is also [fenced](StoreError::Fenced) if the database belongs
    /// to another topic or cluster.
    ///
    /// # Errors
    /// See [`StoreError`]. Nothing is written, with three exceptions: [one half](StoreError::Half); a commit whose
    /// answer was lost (the next write is then [fenced](StoreError::Fenced)); and a write to [a file that was
    /// replaced](StoreError::Replaced).
    async fn write(
        &mut self,
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
        identity: &Identity,
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError>;

    /// Checks that the stored data is where the next process to open the database will find it.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if it is not.
    async fn is_in_place(&mut self) -> Result<(), StoreError>;
}

/// How to write records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// In one transaction.
    Commit,
    /// In two concurrent transactions with different partitions, if there are many records and the database supports
    /// it. They interact like those of two consumers.
    CommitHalves,
    /// In one transaction that is rolled back: a trial to find rows that the database refuses.
    RollBack,
}

/// Timeout for short answers.
const ANSWER: Duration = Duration::from_secs(10);
/// Timeout for a transaction, excluding connecting: shorter than a group waits for a member.
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
