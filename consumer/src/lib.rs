//! Stores the reports of running tasks in a database, exactly once, and answers queries about them.
//!
//! ```text
//! task-running-info-events ──▶ Subscription ──▶ rows() ──▶ Batch ──▶ Store { offsets, task, the three histories }
//!                              (group member)   (pure)               one database transaction
//! ```
//!
//! Each command of the program is a function:
//!
//! - [`run`] stores events until it is stopped.
//! - [`migrate()`] creates the tables or brings them up to date.
//! - [`tasks()`] and [`task`] print tasks, now or as of a time.
//! - [`series()`] prints a task's values over time.
//! - [`jobs()`] and [`engines()`] print tasks aggregated by job and by engine.
//! - [`usage()`] prints what was used between two times.
//! - [`top()`] shows tasks live in a terminal.
//! - [`audit()`] proves that the tables equal the topic, or shows where they do not.
//! - [`replay()`] rebuilds the tables of a range of the topic in another database.
//! - [`diff()`] compares the tables of two databases.
//! - [`expire()`] removes old history.
//! - [`serve()`] answers queries over HTTP.

// Layers, the highest first: a module uses its own layer and those below.

mod audit;
mod diff;
mod engines;
mod expire;
mod jobs;
mod migrate;
mod replay;
mod series;
mod serve;
mod tasks;
mod top;
mod usage;

mod page_options;
mod task_options;

mod entrance;

mod bisect;
mod letters;
mod query;
mod topic_identity;

mod failure;

mod ownership;
mod store;

mod batch;

mod positions;
mod tables;

mod row_format;
mod rows;
mod schema_source;

#[cfg(test)]
#[path = "../../schemas/tests/it/adversarial/mod.rs"]
mod adversarial;
#[cfg(test)]
#[path = "../../schemas/tests/it/cost/mod.rs"]
#[expect(unsafe_code, reason = "a counting allocator")]
mod cost;
#[cfg(test)]
mod linear;
#[cfg(test)]
#[path = "../../schemas/tests/it/strategies/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the contract")]
mod strategies;

pub use audit::{Config as AuditConfig, audit};
pub use diff::{DiffOptions, diff};
pub use engines::{EnginesOptions, engines};
pub use entrance::{Config, run};
pub use expire::{ExpireOptions, expire};
pub use failure::for_an_operator;
pub use jobs::{JobsOptions, jobs};
pub use migrate::migrate;
pub use replay::{ReplayOptions, replay};
pub use rows::Part;
pub use series::{SeriesOptions, series};
pub use serve::{ServeOptions, serve};
pub use store::DatabaseOptions;
pub use task_options::TaskOptions;
pub use tasks::{task, tasks};
pub use top::{TopOptions, top};
pub use topic_identity::OnGap;
pub use usage::{UsageOptions, usage};

use service::telemetry::Help;

/// Help texts of the consumer's own metrics, as `/metrics` shows them.
pub const HELP: &[Help] = &[
    (entrance::ROWS, "Rows written, by table."),
    (
        letters::DEAD_LETTERS,
        "Dead letters written, by kind of fault.",
    ),
    (
        serve::DURATION,
        "Duration of HTTP requests until their response begins, in seconds.",
    ),
    serve::HELP[0],
    serve::HELP[1],
    serve::HELP[2],
    serve::HELP[3],
];
