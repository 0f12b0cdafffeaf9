//! Migrations by sqlx, whose table `_sqlx_migrations` remembers those that were made.

use sqlx::SqlStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::StoreError;

/// The migrations whose texts these are, numbered from 1. (sqlx's `migrate!` would have both database
/// drivers compiled a second time, for the compiler's side.)
pub(super) fn migrator(texts: &[(&'static str, &'static str)]) -> Migrator {
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
pub(super) fn migrating(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => sqlx::Error::from(other).into(),
    }
}
