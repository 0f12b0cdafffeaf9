//! `consumer audit`: proves that the tables equal the topic, or shows where they do not.
//!
//! ```text
//! one snapshot ──▶ consumed_offset ──▶ how far each part is stored ─┐
//!              ──▶ task, the three histories ──▶ sums of hashes ────┼──▶ equal? ──▶ where not: row against row
//! events topic, up to there ──▶ rows() ──▶ sums of hashes, SHA-256 ─┘
//! ```
//!
//! The snapshot is taken first, and rows commit together with `consumed_offset`. So up to the stored offsets the tables must
//! hold exactly the rows that the topic expects, whoever writes meanwhile. Neither side is sorted or held in memory: see
//! [`fingerprint`]. Only where sums differ are rows compared one by one.
//!
//! In the order of an audit: [`rounds`] ([`config`]) runs one [`auditor`] after the other and the [`repair`] ([`corrections`]) between
//! them. An auditor checks `consumed_offset` ([`offsets`], [`topic`]), chooses what is compared ([`extent`], [`spans`],
//! [`backlog`], [`retention`]), and compares the [`sums`] of what the topic expects ([`expected`]) and what the tables
//! store ([`stored`]). Where they differ it [compares](compare) row against row ([`merge`], [`dead_letters`],
//! [`misnamed`], [`moved`], [`evidence`], [`tasks`]) and collects each [`finding`] (with the [`difference`] of its
//! columns). The [`report`] gives the [`verdict`].

mod auditor;
mod backlog;
mod compare;
mod config;
mod corrections;
mod dead_letters;
pub(crate) mod difference;
mod evidence;
mod expected;
mod extent;
pub(crate) mod finding;
pub(crate) mod fingerprint;
pub(crate) mod merge;
mod misnamed;
pub(crate) mod moved;
mod offsets;
mod progress;
mod repair;
mod report;
mod report_file;
mod retention;
mod rounds;
pub(crate) mod spans;
mod stored;
mod sums;
mod tasks;
mod times;
mod topic;
mod verdict;

pub use config::Config;
pub(crate) use progress::spinner;
pub use rounds::audit;
pub(crate) use verdict::{COULD_NOT_TELL, EQUAL, UNEQUAL, print_unproven};
