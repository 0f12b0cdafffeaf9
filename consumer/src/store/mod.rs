//! The one door to SQL: two databases with the same tables.
//!
//! Why each event is stored exactly once: [`Store::write`] first moves `consumed_offset` on, naming
//! the offset it expects to find, then writes the rows, all in one transaction. If the offset is
//! another one, somebody else stored these events: nothing is written, and the caller starts again
//! from what the database says. The row lock on the offset makes a second writer of the same
//! partition wait for the first, and then find another offset.

mod postgres;
mod sqlite;

use std::str::FromStr;

use anyhow::Context;
use service::exit::NeedsAttention;
use sqlx::any::AnyConnectOptions;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, ConnectOptions, SqlStr};

use crate::batch::{Advance, Batch, Positions};
use crate::rows::Part;

/// Option of every command that opens the database.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Database")]
pub struct DatabaseOptions {
    /// sqlite:FILE or postgres://USER@HOST:PORT/NAME (a password is best given by PGPASSWORD or PGPASSFILE)
    #[arg(
        long,
        env = "DATABASE_URL",
        value_name = "URL",
        default_value = "sqlite:taskrunning.db",
        global = true,
        hide_env_values = true
    )]
    pub database_url: String,
}

/// Which database, and how to reach it.
#[derive(Clone)]
pub(crate) enum Database {
    Postgres(PgConnectOptions),
    Sqlite(SqliteConnectOptions),
}

impl Database {
    /// # Errors
    /// If the URL is neither `sqlite:` nor `postgres:`. The URL itself is not shown: it may hold a
    /// password.
    pub(crate) fn parse(options: &DatabaseOptions) -> anyhow::Result<Self> {
        let url = &options.database_url;
        let wrong = |error: sqlx::Error| NeedsAttention(format!("--database-url: {error}"));
        if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            let options = PgConnectOptions::from_str(url)
                .map_err(wrong)?
                .application_name("consumer");
            Ok(Self::Postgres(options.disable_statement_logging()))
        } else if url.starts_with("sqlite:") {
            Ok(Self::Sqlite(sqlite::options(
                SqliteConnectOptions::from_str(url).map_err(wrong)?,
            )))
        } else {
            Err(NeedsAttention(
                "--database-url begins with neither sqlite: nor postgres:".to_owned(),
            )
            .into())
        }
    }

    /// Where the database is, without the password.
    pub(crate) fn place(&self) -> String {
        match self {
            Self::Postgres(options) => {
                let name = options.get_database().unwrap_or(options.get_username());
                format!(
                    "PostgreSQL {}:{}/{name}",
                    options.get_host(),
                    options.get_port()
                )
            }
            Self::Sqlite(options) => format!("SQLite {}", options.get_filename().display()),
        }
    }

    /// Brings the tables up to date, or leaves them if they are.
    ///
    /// # Errors
    /// If the database cannot be reached or a migration fails.
    pub(crate) async fn migrate(&self) -> Result<(), StoreError> {
        match self {
            Self::Postgres(options) => postgres::migrate(options).await,
            Self::Sqlite(options) => sqlite::migrate(options).await,
        }
    }

    /// # Errors
    /// If the database cannot be reached.
    pub(crate) async fn open(&self) -> Result<Store, StoreError> {
        Ok(match self {
            Self::Postgres(options) => {
                Store::Postgres(Box::new(postgres::Postgres::open(options).await?))
            }
            Self::Sqlite(options) => Store::Sqlite(sqlite::Sqlite::open(options).await?),
        })
    }

    /// Opens the database for reading only, without making it.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) async fn read(&self) -> anyhow::Result<AnyConnection> {
        sqlx::any::install_default_drivers();
        let url = match self {
            Self::Postgres(options) => options.to_url_lossy(),
            Self::Sqlite(options) => options
                .clone()
                .create_if_missing(false)
                .read_only(true)
                .to_url_lossy(),
        };
        AnyConnectOptions::from_str(url.as_str())?
            .connect()
            .await
            .with_context(|| format!("opening {}", self.place()))
    }
}

/// Whose offsets are stored.
pub(crate) struct Identity {
    pub(crate) topic: String,
    pub(crate) cluster_id: String,
    pub(crate) group_id: String,
}

/// Why the database did not take something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another owner moved on: read the positions again.
    #[error("{} partition {}: the stored offset is not {} any more; another consumer stored these events", .0.part.as_str(), .0.partition, .0.expected.map_or("absent".to_owned(), |offset| offset.to_string()))]
    Fenced(Advance),
    /// The database is away or busy: try again.
    #[error("{0}")]
    Retry(sqlx::Error),
    /// A retry does not cure it.
    #[error("{0}")]
    Exit(sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let passes = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                match error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>() {
                    Some(_) => postgres::passes(&code),
                    None => sqlite::passes(&code),
                }
            }),
            _ => false,
        };
        if passes {
            Self::Retry(error)
        } else {
            Self::Exit(error)
        }
    }
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
        other => StoreError::Exit(other.into()),
    }
}

/// An open database, for writing.
pub(crate) enum Store {
    Postgres(Box<postgres::Postgres>),
    Sqlite(sqlite::Sqlite),
}

impl Store {
    /// `db.system.name` of OpenTelemetry's conventions.
    pub(crate) fn system(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgresql",
            Self::Sqlite(_) => "sqlite",
        }
    }

    /// The stored positions of these parts of the topic, and the ids of all clusters that anything
    /// is stored from.
    pub(crate) async fn positions(
        &mut self,
        topic: &str,
        parts: &[Part],
    ) -> Result<(Positions, Vec<String>), StoreError> {
        let rows: Vec<(String, String, i32, i64, String)> = match self {
            Self::Postgres(database) => database.consumed_offsets().await?,
            Self::Sqlite(database) => database.consumed_offsets().await?,
        };
        let mut positions = Positions::new();
        let mut clusters = Vec::new();
        for (part, stored_topic, partition, next_offset, cluster_id) in rows {
            let known = parts.iter().find(|known| known.as_str() == part);
            if let (Some(known), true) = (known, stored_topic == topic) {
                positions.insert((*known, partition), next_offset);
            }
            if !clusters.contains(&cluster_id) {
                clusters.push(cluster_id);
            }
        }
        Ok((positions, clusters))
    }

    /// Writes the batch and moves the offsets on, in one transaction. Gives the rows written of each
    /// part.
    pub(crate) async fn write(
        &mut self,
        batch: &Batch,
        parts: &[Part],
        positions: &Positions,
        identity: &Identity,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        match self {
            Self::Postgres(database) => database.write(batch, parts, positions, identity).await,
            Self::Sqlite(database) => database.write(batch, parts, positions, identity).await,
        }
    }
}
