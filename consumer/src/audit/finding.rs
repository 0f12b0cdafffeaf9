//! What a comparison finds, how to correct it, and how many findings are kept in memory.

use std::collections::BTreeMap;

use serde::Serialize;
use sha2::Sha256;

use super::difference::Difference;
use super::fingerprint::Marks;
use crate::store::{Held, HeldOffset, Value};
use crate::tables::{Table, exec_id, place};

/// Findings of the histories, and misnamed rows, are each kept up to this many bytes of rows; beyond that they are only
/// counted.
const HELD_BYTES: usize = 32 << 20;
/// Space reserved for findings of tasks and stored offsets, and for one misnamed row of each task: they correct the
/// most rows and are found last.
const TASK_BYTES: usize = 2 * HELD_BYTES;
/// Memory that a row takes in addition to its bytes.
const OVERHEAD_BYTES: usize = 256;

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fault {
    /// The topic expects it; the table does not have it.
    Missing,
    /// The table has it; the record at its offset expects something else, or expects it fewer times.
    Extra,
    /// Some columns differ from what the topic expects.
    Differing,
    /// The table has it; no record at its offset proves it right or wrong.
    Unprovable,
}

impl Fault {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Differing => "differing",
            Self::Unprovable => "unprovable",
        }
    }
}

/// A row that differs from what the topic expects.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) table: &'static str,
    pub(crate) fault: Fault,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exec_id: Option<String>,
    /// For `consumed_offset`: the part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) part: Option<&'static str>,
    /// The differing columns, if the fault is limited to some.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) columns: Vec<Difference>,
    #[serde(skip)]
    pub(crate) correction: Correction,
}

/// How to correct a row.
#[derive(Clone, Debug)]
pub(crate) enum Correction {
    /// Insert this row.
    Insert { table: Table, row: Vec<u8> },
    /// Delete the row at this address.
    Delete {
        table: Table,
        address: String,
        row: Vec<u8>,
    },
    /// Replace the row at this address.
    Replace {
        table: Table,
        address: String,
        held: Vec<u8>,
        row: Vec<u8>,
    },
    /// Insert the task's row, under this key or a new one.
    NewTask { task_id: Option<i64>, row: Vec<u8> },
    /// Replace the task's row.
    Task { held: Held, row: Vec<u8> },
    /// Delete the task's row.
    NoTask { held: Held },
    /// Give the task this name or key, provided that its name still is `held`.
    Rename {
        task_id: i64,
        held: String,
        exec_id: String,
        new_task_id: i64,
    },
    /// None: only an operator can decide.
    None,
    /// Correct columns of `consumed_offset`, provided that the row still is `held`.
    Offset {
        held: Box<HeldOffset>,
        columns: Vec<(&'static str, Value)>,
    },
    /// Insert a row of `consumed_offset`.
    NewOffset(Box<HeldOffset>),
}

impl Correction {
    /// Whether this corrects anything.
    pub(crate) fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// A row that is right except for the task it names.
#[derive(Clone, Debug)]
pub(crate) struct Misnamed {
    pub(crate) table: Table,
    pub(crate) held: Held,
    /// The row that the topic expects.
    pub(crate) row: Vec<u8>,
}

/// Rows by the key they carry and the task they should name: their number, and those kept in memory.
pub(crate) type AllMisnamed = BTreeMap<(Option<i64>, String), (u64, Vec<Misnamed>)>;

/// All findings of an audit.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) found: Vec<Finding>,
    /// Bytes of the histories' findings.
    history_bytes: usize,
    /// Bytes of all other findings.
    task_bytes: usize,
    /// Bytes of misnamed rows: the first of each task, and all others.
    first_misnamed_bytes: usize,
    misnamed_bytes: usize,
    /// Findings that are only counted, by table, fault and partition.
    pub(crate) uncounted: BTreeMap<(&'static str, Fault, i32), u64>,
    /// Events without rows that have a dead letter: the database refused their rows.
    pub(crate) set_aside: Marks,
    /// Their missing rows: number and digest.
    pub(crate) set_aside_rows: BTreeMap<(Table, i32), (u64, Sha256)>,
    misnamed: AllMisnamed,
    /// Tasks whose row does not match the event it names.
    pub(super) suspects: Vec<i64>,
}

impl Findings {
    pub(super) fn misnamed(&mut self, misnamed: Misnamed) {
        let named = exec_id(&misnamed.row).unwrap_or_default().to_owned();
        let bytes = misnamed.row.len() + misnamed.held.row.len() + OVERHEAD_BYTES;
        let key = (misnamed.held.task_id, named);
        if let Some((count, rows)) = self.misnamed.get_mut(&key) {
            *count += 1;
            if self.misnamed_bytes + bytes <= HELD_BYTES {
                self.misnamed_bytes += bytes;
                rows.push(misnamed);
            }
        } else if self.first_misnamed_bytes <= TASK_BYTES {
            self.first_misnamed_bytes += bytes;
            self.misnamed.insert(key, (1, vec![misnamed]));
        } else {
            let (partition, _) = place(&misnamed.row).unwrap_or((-1, -1));
            let at = (misnamed.table.name(), Fault::Differing, partition);
            *self.uncounted.entry(at).or_default() += 1;
        }
    }

    /// Takes out the rows that differ only in the task they name.
    pub(crate) fn take_misnamed(&mut self) -> AllMisnamed {
        (self.first_misnamed_bytes, self.misnamed_bytes) = (0, 0);
        std::mem::take(&mut self.misnamed)
    }

    pub(crate) fn push(&mut self, finding: Finding) {
        let bytes = match &finding.correction {
            Correction::Insert { row, .. } | Correction::NewTask { row, .. } => row.len(),
            Correction::Task { held, row } => row.len() + held.row.len(),
            Correction::Delete { row, .. } => 2 * row.len(),
            Correction::Replace { row, held, .. } => 2 * row.len() + held.len(),
            _ => 0,
        };
        let bytes = bytes + OVERHEAD_BYTES;
        let of_histories = Table::HISTORIES.map(Table::name).contains(&finding.table);
        let (held_bytes, at_most) = match of_histories {
            true => (&mut self.history_bytes, HELD_BYTES),
            false => (&mut self.task_bytes, TASK_BYTES),
        };
        if *held_bytes + bytes <= at_most {
            *held_bytes += bytes;
            self.found.push(finding);
        } else {
            let at = (finding.table, finding.fault, finding.partition);
            *self.uncounted.entry(at).or_default() += 1;
        }
    }

    /// Whether some findings were only counted.
    pub(crate) fn is_cut(&self) -> bool {
        !self.uncounted.is_empty()
    }

    /// Findings by table, fault and partition.
    pub(crate) fn counts(&self) -> BTreeMap<(&'static str, Fault, i32), u64> {
        let mut counts = self.uncounted.clone();
        for finding in &self.found {
            let at = (finding.table, finding.fault, finding.partition);
            *counts.entry(at).or_default() += 1;
        }
        counts
    }
}
