//! TaskRunningInfo → TaskRunningInfoEvent, exactly once.
//!
//! ```text
//! task-running-info ──▶ Subscription ──▶ route() ──▶ Transaction { events, dead letters, consumed offsets }
//!  (read_committed)     (group member)    (pure)      one Kafka transaction, KIP-447
//! ```
//!
//! [`run`] is the service: it reads, [`route`]s and commits; its module explains why nothing is lost or
//! duplicated. [`audit`] proves that from the topics, and [`dead_letters`] lists and redrives unusable
//! records.

// Layers, highest first: a module uses its own layer and those below.
mod audit;
mod dead_letters;
mod run;

mod config;
mod outputs;
mod topic_ids;
mod transform;

mod route;

pub use audit::{Audit, audit};
pub use config::{Config, OnNoOffset};
pub use dead_letters::{DeadLetters, dead_letters};
pub use route::{Outcome, route};
pub use run::{BACKLOG_INTERVAL, HELP, run};
