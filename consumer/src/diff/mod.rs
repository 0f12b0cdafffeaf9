//! `consumer diff`: whether two databases' tables are the same over the range that both have stored.
//!
//! ```text
//! snapshot of A ──▶ consumed_offset ──┐                  ┌──▶ histories of A ──▶ sums of hashes ──┐
//!                                     ├──▶ shared range ─┤                                        ├──▶ where not equal: row against row
//! snapshot of B ──▶ consumed_offset ──┘                  └──▶ histories of B ──▶ sums of hashes ──┘
//!                                                             task of A, task of B, by execId ────▶ row against row
//! ```
//!
//! Rows commit together with `consumed_offset`, so each snapshot itself shows the offsets for which its tables are complete.
//! Where both are complete, the histories must be equal. A task's row is that of its newest report, which may be one that
//! only one of the databases has read: see [`tasks`].
//!
//! A [`command`] opens both [`side`]s, finds the [`shared`] range, compares the [`histories`] and the [`tasks`], which it
//! collects as [`compared`], and prints the [`report`].

mod command;
mod compared;
mod histories;
mod report;
mod shared;
mod side;
mod tasks;

pub use command::{DiffOptions, diff};
