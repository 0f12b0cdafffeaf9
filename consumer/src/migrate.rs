//! `consumer migrate`.

use anyhow::Context;
use service::output;

use crate::store::{Database, DatabaseOptions};

/// Creates the tables, or migrates them to this version.
///
/// # Errors
/// If the database cannot be reached or refuses a migration.
pub async fn migrate(options: &DatabaseOptions) -> anyhow::Result<()> {
    let database = Database::parse(options)?;
    database
        .migrate()
        .await
        .with_context(|| format!("migrating {}", database.place()))?;
    output::account(&format!("{} is up to date\n", database.place()));
    Ok(())
}
