//! What a comparison of two databases collects.

use std::collections::BTreeMap;

use crate::audit::finding::Findings;
use crate::audit::spans::Spans;
use crate::tables::Table;

/// All that was compared.
pub(super) struct Compared {
    pub(super) spans: Spans,
    /// How many rows are compared, of A and of B.
    pub(super) rows: [BTreeMap<(Table, i32), u64>; 2],
    /// How many are not.
    pub(super) outside: [BTreeMap<(Table, i32), u64>; 2],
    pub(super) findings: Findings,
    /// By task, how many rows of the histories name it while its own row is gone from a database, or has another name
    /// there.
    pub(super) lost: BTreeMap<String, u64>,
}
