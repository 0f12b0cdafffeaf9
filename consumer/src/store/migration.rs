//! Migrations by sqlx, which records applied ones in the table `_sqlx_migrations`.

use sqlx::SqlStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::StoreError;

/// A migrator for these texts, numbered from 1. (sqlx's `migrate!` would compile all database drivers a second time,
/// for the macro.)
pub(super) fn migrator(texts: impl IntoIterator<Item = (&'static str, SqlStr)>) -> Migrator {
    let migrations = (1..).zip(texts).map(|(version, (description, sql))| {
        Migration::new(
            version,
            description.into(),
            MigrationType::Simple,
            sql,
            false,
        )
    });
    Migrator::with_migrations(migrations.collect())
}

/// Migrations whose SQL is the same on every server.
pub(super) fn fixed(
    texts: &'static [(&'static str, &'static str)],
) -> impl Iterator<Item = (&'static str, SqlStr)> {
    texts
        .iter()
        .map(|(description, sql)| (*description, SqlStr::from_static(sql)))
}

/// The error of a migration: the database's own, if that was the cause.
pub(super) fn migrating(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => error.into(),
        other => sqlx::Error::from(other).into(),
    }
}
