//! Adapters: they report for engines that know nothing of us.

pub mod publish;
pub mod simulate;
pub mod spark;
