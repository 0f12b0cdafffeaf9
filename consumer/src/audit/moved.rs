//! Rows at a wrong partition or offset.

use std::collections::{BTreeSet, HashMap};

use super::finding::{Correction, Findings};
use super::merge::differing;
use crate::store::Held;
use crate::tables::TASK;

/// Joins a missing row and an extra one that differ only in partition and offset into one differing row.
pub(crate) fn find_moved(findings: &mut Findings) {
    // After the field count: a field of 4 bytes and one of 8.
    const BEHIND_PLACE: usize = 2 + 8 + 12;
    let mut extras: HashMap<(&'static str, Vec<u8>), Vec<usize>> = HashMap::new();
    for (i, finding) in findings.found.iter().enumerate() {
        if let Correction::Delete { row, .. } = &finding.correction {
            let rest = row.get(BEHIND_PLACE..).unwrap_or_default().to_vec();
            extras.entry((finding.table, rest)).or_default().push(i);
        }
    }
    if extras.is_empty() {
        return;
    }
    let mut gone = BTreeSet::new();
    for i in 0..findings.found.len() {
        let Correction::Insert { table, row } = findings.found[i].correction.clone() else {
            continue;
        };
        let rest = row.get(BEHIND_PLACE..).unwrap_or_default().to_vec();
        let moved = extras.get_mut(&(table.name(), rest)).and_then(Vec::pop);
        let Some(moved) = moved else { continue };
        let Correction::Delete {
            address, row: held, ..
        } = findings.found[moved].correction.clone()
        else {
            continue;
        };
        let columns = table.differences(&row, &held);
        let held = Held {
            address,
            task_id: None,
            row: held,
        };
        findings.found[i] = differing(table, columns, held, row);
        gone.insert(moved);
    }
    let mut i = 0;
    findings.found.retain(|_| {
        i += 1;
        !gone.contains(&(i - 1))
    });
}

const _: () = assert!(TASK == 2, "BEHIND_PLACE ends where the execId begins");
