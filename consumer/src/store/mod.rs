//! The one door to databases, which all have the same tables.
//!
//! The seam: [`Backend`] opens a database, [`Writer`] stores events, [`Session`] does everything else with the help of
//! a [`Dialect`]. `postgres/` and `sqlite/` each hold all of one database: connecting, what its error codes mean, its
//! migrations, its writer, its sessions, its dialect. Another database is a folder like these, and a line in
//! [`DRIVERS`]. What is the same in every database stands in the other files:
//!
//! - `error`: why a database did not take something, and what that means.
//! - `offsets`: rows of `consumed_offset`.
//! - `dialect`, `session`, `selection`: queries, their values, and scans of whole tables.
//! - `snapshot`, `tasks`: reading at one moment.
//! - `repair`, `expiry`: putting rows right, and removing old ones.
//! - `migration`: what migrations by sqlx have in common.
//!
//! Why each event is stored exactly once: [`Writer::write`] first moves `consumed_offset` on, naming
//! the offset it expects to find, then writes the rows, all in one transaction. If the offset is
//! another one, somebody else stored these events: nothing is written, and the caller starts again
//! from what the database says. The row lock on the offset makes a second writer of the same
//! partition wait for the first, and then find another offset.

mod dialect;
#[cfg(test)]
mod docs;
mod error;
mod expiry;
mod migration;
mod offsets;
mod postgres;
mod repair;
#[cfg(test)]
mod schema;
mod selection;
mod session;
mod snapshot;
mod sqlite;
mod tasks;

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

/// The databases that are known.
const DRIVERS: &[Driver] = &[postgres::DRIVER, sqlite::DRIVER];

/// A kind of database.
struct Driver {
    /// How its URLs begin.
    schemes: &'static [&'static str],
    /// Reads a URL that an option gives.
    parse: fn(option: &str, url: &str) -> anyhow::Result<Box<dyn Backend>>,
    /// What an error means that its server or library reported; `None` if it is another database's.
    judge: fn(&(dyn DatabaseError + 'static)) -> Option<StoreError>,
}

/// A database, and how to reach it.
pub(crate) struct Database(Box<dyn Backend>);

impl Deref for Database {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
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
        for driver in DRIVERS {
            if driver.schemes.iter().any(|scheme| url.starts_with(scheme)) {
                return (driver.parse)(option, url).map(Self);
            }
        }
        Err(WrongUsage(format!(
            "{option} begins with neither sqlite: nor postgres://, as in sqlite:tasks.db or \
             postgres://taskrunning@localhost/taskrunning"
        ))
        .into())
    }

    /// Whether the two are one database, as far as their URLs tell.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        !self.identities().is_disjoint(&other.identities())
    }
}

/// A database that a URL names.
#[async_trait]
pub(crate) trait Backend: Send + Sync {
    /// Where the database is, without the password.
    fn place(&self) -> String;

    /// What the URL tells it from others by. Two databases with a common one are the same.
    fn identities(&self) -> BTreeSet<String>;

    /// Brings the tables up to date, or leaves them if they are. (The compiler does not see that a migration by sqlx
    /// could move to another thread: rust-lang/rust#100013.)
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
    /// If it cannot be reached or is not there.
    async fn session(&self, access: Access) -> Result<Box<dyn Session>, StoreError>;
}

/// A database that is open to store events. It connects again after a failure.
#[async_trait]
pub(crate) trait Writer: Send {
    /// `db.system.name` of OpenTelemetry's conventions.
    fn system(&self) -> &'static str;

    /// All that is stored: of one topic, unless [`Asked::check`](crate::ownership::Asked::check) says otherwise.
    ///
    /// # Errors
    /// If the database does not answer within 10 s, or not well.
    async fn stored(&mut self) -> Result<Vec<StoredOffset>, StoreError>;

    /// Moves the offsets on without any rows, in one transaction.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    async fn move_on(
        &mut self,
        advances: &[Advance],
        identity: &Identity,
    ) -> Result<(), StoreError>;

    /// Writes the records' rows and moves the offsets on, in one transaction, but for what `end` says.
    /// Gives the rows written of each part. A first offset is [fenced](StoreError::Fenced) too where the database
    /// belongs to another topic or cluster.
    ///
    /// # Errors
    /// See [`StoreError`]. Nothing is written, but for [a half](StoreError::Half), for a commit whose
    /// answer was lost (the next one is then [fenced](StoreError::Fenced)), and for what went into [a file
    /// that is no longer in place](StoreError::Replaced).
    async fn write(
        &mut self,
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
        identity: &Identity,
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError>;

    /// Makes sure that what was stored is where the next one will look for it.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if not.
    async fn is_in_place(&mut self) -> Result<(), StoreError>;
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
