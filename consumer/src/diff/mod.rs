//! `consumer diff`: checks that two databases have the same tables over the range that both have stored.
//!
//! ```text
//! snapshot of A ──▶ consumed_offset ──┐                  ┌──▶ histories of A ──▶ sums of hashes ──┐
//!                                     ├──▶ shared range ─┤                                        ├──▶ where not equal: row against row
//! snapshot of B ──▶ consumed_offset ──┘                  └──▶ histories of B ──▶ sums of hashes ──┘
//!                                                             task of A, task of B, by execId ────▶ row against row
//! ```
//!
//! Rows commit together with `consumed_offset`, so each snapshot shows for which offsets its tables are complete. Where
//! both are complete, the histories must be equal. A task's row is that of its newest report, which only one of the
//! databases may have read: see [`tasks`].
//!
//! A [`command`] opens both [`side`]s, finds the [`shared`] range, compares the [`histories`] and the [`tasks`],
//! collects the results as [`compared`], and prints the [`report`].

mod command;
mod compared;
mod histories;
mod report;
mod shared;
mod side;
mod tasks;

pub use command::{DiffOptions, diff};
