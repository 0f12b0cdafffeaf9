//! The entrance: stores what engines said in tables, and tells it.
//!
//! ```text
//! task-running-info-events ──▶ Subscription ──▶ rows() ──▶ Batch ──▶ Store { offsets, task, the three histories }
//!                              (group member)   (pure)               one database transaction
//! ```
//!
//! - [`run`]: stores events until it is told to stop.
//! - [`migrate`]: brings the tables up to date.
//! - [`replay()`]: the tables of a range of the topic, in another database.
//! - [`tasks`], [`task`]: what the tables say, now or as of a time.
//! - [`audit`]: whether they say what the topic says.
//! - [`expire()`]: old history removed.
//! - [`diff()`]: whether two databases' tables say the same.

mod audit;
mod batch;
mod bisect;
mod diff;
mod entrance;
mod expire;
mod failure;
mod grid;
mod letters;
mod ownership;
mod positions;
mod query;
mod replay;
mod row_format;
mod rows;
mod store;
mod tables;
mod tasks;
mod topic_identity;
mod writers;

#[cfg(test)]
#[path = "../../schemas/tests/it/adversarial/mod.rs"]
mod adversarial;
#[cfg(test)]
#[path = "../../schemas/tests/it/cost/mod.rs"]
#[expect(
    unsafe_code,
    reason = "allocations are counted by an allocator of its own"
)]
mod cost;
#[cfg(test)]
mod linear;
#[cfg(test)]
#[path = "../../schemas/tests/it/strategies/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the contract")]
mod strategies;

pub use audit::{Config as AuditConfig, audit};
pub use diff::{DiffOptions, diff};
pub use entrance::{Config, run};
pub use expire::{ExpireOptions, expire};
pub use replay::{ReplayOptions, replay};
pub use rows::Part;
pub use store::DatabaseOptions;
pub use tasks::{task, tasks};
pub use topic_identity::OnGap;

use anyhow::Context;
use service::exit::NeedsAttention;
use service::output;
use service::telemetry::Help;

/// What `/metrics` says of the consumer's own metrics.
pub const HELP: &[Help] = &[
    (entrance::ROWS, "Rows written, by table."),
    (
        letters::DEAD_LETTERS,
        "Dead letters written, by kind of fault.",
    ),
];

/// An error of any command: one of the database that no retry cures is for an operator, whichever command
/// meets it.
pub fn for_an_operator(error: anyhow::Error) -> anyhow::Error {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<store::StoreError>());
    match causes.any(store::StoreError::is_lasting) {
        true => NeedsAttention(format!("{error:#}")).into(),
        false => error,
    }
}

/// Brings the tables up to date, or leaves them if they are.
///
/// # Errors
/// If the database cannot be reached or does not take it.
pub async fn migrate(options: &DatabaseOptions) -> anyhow::Result<()> {
    let database = store::Database::parse(options)?;
    database
        .migrate()
        .await
        .with_context(|| format!("migrating {}", database.place()))?;
    output::account(&format!("{} is up to date\n", database.place()));
    Ok(())
}
