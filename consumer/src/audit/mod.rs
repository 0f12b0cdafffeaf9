//! `consumer audit`: proves that the tables equal the topic, or shows where they do not.
//!
//! ```text
//! one snapshot ──▶ consumed_offset ──▶ how far each part is stored ─┐
//!              ──▶ task, the three histories ──▶ sums of hashes ────┼──▶ equal? ──▶ where not: row against row
//! events topic, up to there ──▶ rows() ──▶ sums of hashes, SHA-256 ─┘
//! ```
//!
//! The snapshot is taken first, and rows commit together with `consumed_offset`. So up to the stored offsets, the
//! tables must hold exactly the rows that the topic expects, even while others write. Neither side is sorted or held in
//! memory: see [`fingerprint`]. Rows are compared one by one only where sums differ.
//!
//! In the order of an audit: [`rounds`] ([`config`]) runs [`auditor`]s, with the [`repair`] ([`corrections`]) between
//! them. An auditor checks `consumed_offset` ([`offsets`], [`topic`]), chooses what to compare ([`extent`], [`spans`],
//! [`backlog`], [`retention`]), and compares the [`sums`] of the [`expected`] and the [`stored`] rows. Where sums
//! differ, it [compares](compare) row by row ([`merge`], [`dead_letters`], [`misnamed`], [`moved`], [`evidence`],
//! [`tasks`]) and collects each [`finding`] (with the [`difference`] of its columns). The [`report`] contains the
//! [`verdict`].

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
