//! The intermediate result of a comparison of two databases.

use std::collections::BTreeMap;

use crate::audit::finding::Findings;
use crate::audit::spans::Spans;
use crate::tables::Table;

/// Everything that was compared.
pub(super) struct Compared {
    pub(super) spans: Spans,
    /// Number of compared rows, of A and of B.
    pub(super) rows: [BTreeMap<(Table, i32), u64>; 2],
    /// Number of rows that were not compared.
    pub(super) outside: [BTreeMap<(Table, i32), u64>; 2],
    pub(super) findings: Findings,
    /// By task: number of history rows that refer to it although its own row is missing from a database, or has another
    /// name there.
    pub(super) lost: BTreeMap<String, u64>,
}
