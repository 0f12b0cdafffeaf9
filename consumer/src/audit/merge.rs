//! Row by row: finds what is missing, extra or different, exactly.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use sha2::Digest;
use tokio::sync::mpsc;

use super::difference::Difference;
use super::finding::{Correction, Fault, Finding, Findings, Misnamed};
use super::fingerprint::Marks;
use crate::row_format;
use crate::store::{Held, held};
use crate::tables::{Table, exec_id, of_newest, place};

/// Splits pieces into rows.
pub(crate) struct Feed {
    pieces: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
    next: Option<Vec<u8>>,
}

impl Feed {
    pub(crate) fn new(pieces: mpsc::Receiver<Vec<u8>>) -> Self {
        Self {
            pieces,
            piece: Vec::new(),
            at: 0,
            next: None,
        }
    }

    pub(crate) async fn peek(&mut self) -> Option<&Vec<u8>> {
        while self.next.is_none() {
            if let Some((length, _)) = row_format::row_length(&self.piece[self.at..]) {
                self.next = Some(self.piece[self.at..self.at + length].to_vec());
                self.at += length;
            } else {
                self.piece = self.pieces.recv().await?;
                self.at = 0;
            }
        }
        self.next.as_ref()
    }

    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        self.peek().await?;
        self.next.take()
    }
}

/// Explains rows that only one side has.
pub(crate) struct Evidence<'a> {
    /// Events that have dead letters.
    pub(crate) dead_lettered: &'a Marks,
    /// The offsets at which records were read so far. `None`: an unexpected row is extra, with or without a record at
    /// its offset.
    pub(crate) records: Option<&'a Mutex<Marks>>,
}

impl Evidence<'_> {
    /// The fault of an unexpected row.
    fn of_unexpected(&self, held: &Held) -> Fault {
        let Some(records) = self.records else {
            return Fault::Extra;
        };
        let is_record = place(&held.row).is_some_and(|(partition, offset)| {
            let records = records.lock().unwrap_or_else(PoisonError::into_inner);
            records.is_set(partition, offset)
        });
        match is_record {
            true => Fault::Extra,
            false => Fault::Unprovable,
        }
    }
}

/// Merge-joins the expected rows with the stored ones, which carry their addresses. Both are ordered by partition and
/// offset.
pub(crate) async fn merge(
    (expected, stored): &mut (Feed, Feed),
    table: Table,
    evidence: &Evidence<'_>,
    findings: &mut Findings,
) {
    let at = |row: Option<&Vec<u8>>| row.and_then(|row| place(row));
    loop {
        let next_held = stored.peek().await.and_then(|row| held(row));
        let ours = next_held.as_ref().and_then(|held| place(&held.row));
        let theirs = at(expected.peek().await);
        let Some(here) = ours.into_iter().chain(theirs).min() else {
            return;
        };
        let (mut wanted, mut found) = (Vec::new(), Vec::new());
        while at(expected.peek().await) == Some(here) {
            wanted.extend(expected.next().await);
        }
        while let Some(row) = stored.peek().await {
            let Some(row) = held(row).filter(|held| place(&held.row) == Some(here)) else {
                break;
            };
            found.push(row);
            stored.next().await;
        }
        if table == Table::Task {
            // The times that depend on all reports are compared with the history.
            let of_event = |row: &[u8]| of_newest(row.get(2..).unwrap_or_default()).to_vec();
            let wanted = Vec::from_iter(wanted.iter().map(|row| of_event(row)));
            let is_wrong = |held: &&Held| !wanted.contains(&of_event(&held.row));
            let wrong = found.iter().filter(is_wrong);
            let wrong = wrong.filter_map(|held| held.task_id);
            findings.suspects.extend(wrong);
        } else {
            compare_event(table, wanted, found, evidence, findings);
        }
    }
}

/// Compares the rows of one event, matched by hash because there can be many.
pub(crate) fn compare_event(
    table: Table,
    mut expected: Vec<Vec<u8>>,
    mut found: Vec<Held>,
    evidence: &Evidence<'_>,
    findings: &mut Findings,
) {
    let mut same: HashMap<Vec<u8>, usize> = HashMap::new();
    for held in &found {
        *same.entry(held.row.clone()).or_default() += 1;
    }
    let mut paired: HashMap<Vec<u8>, usize> = HashMap::new();
    expected.retain(|row| match same.get_mut(row) {
        Some(count @ 1..) => {
            *count -= 1;
            *paired.entry(row.clone()).or_default() += 1;
            false
        }
        _ => true,
    });
    found.retain(|held| match paired.get_mut(&held.row) {
        Some(count @ 1..) => {
            *count -= 1;
            false
        }
        _ => true,
    });
    // Among the rest, rows with the same key are one changed row.
    let mut by_key: HashMap<Vec<u8>, VecDeque<usize>> = HashMap::new();
    for (i, held) in found.iter().enumerate() {
        let key = table.key(&held.row).to_vec();
        by_key.entry(key).or_default().push_back(i);
    }
    let mut found: Vec<Option<Held>> = found.into_iter().map(Some).collect();
    let mut left = found.len();
    expected.retain(|row| {
        let of_key = by_key.get_mut(table.key(row));
        let twin = match of_key.and_then(VecDeque::pop_front) {
            None if left == 1 && table == Table::Resource => {
                found.iter_mut().find_map(Option::take)
            }
            twin => twin.and_then(|i| found.get_mut(i)?.take()),
        };
        let Some(held) = twin else { return true };
        left -= 1;
        let columns = table.differences(row, &held.row);
        match columns.as_slice() {
            [only] if only.column == "exec_id" => findings.misnamed(Misnamed {
                table,
                held,
                row: row.clone(),
            }),
            _ => findings.push(differing(table, columns, held, row.clone())),
        }
        false
    });
    for row in expected {
        let Some((partition, offset)) = place(&row) else {
            continue;
        };
        if evidence.dead_lettered.is_set(partition, offset) {
            findings.set_aside.set(partition, offset);
            let of_table = findings.set_aside_rows.entry((table, partition));
            let (count, digest) = of_table.or_default();
            *count += 1;
            digest.update(&row);
            continue;
        }
        findings.push(missing(table, row));
    }
    for held in found.into_iter().flatten() {
        let fault = evidence.of_unexpected(&held);
        findings.push(unexpected(table, fault, held));
    }
}

pub(crate) fn missing(table: Table, row: Vec<u8>) -> Finding {
    let (partition, offset) = place(&row).unwrap_or((-1, -1));
    Finding {
        table: table.name(),
        fault: Fault::Missing,
        partition,
        offset,
        exec_id: exec_id(&row).map(str::to_owned),
        part: None,
        columns: Vec::new(),
        correction: Correction::Insert { table, row },
    }
}

pub(crate) fn extra(table: Table, held: Held) -> Finding {
    unexpected(table, Fault::Extra, held)
}

/// A row that the topic does not expect. (If it stays [unprovable](Fault::Unprovable), its correction is removed
/// later.)
fn unexpected(table: Table, fault: Fault, held: Held) -> Finding {
    let (partition, offset) = place(&held.row).unwrap_or((-1, -1));
    Finding {
        table: table.name(),
        fault,
        partition,
        offset,
        exec_id: exec_id(&held.row).map(str::to_owned),
        part: None,
        columns: Vec::new(),
        correction: Correction::Delete {
            table,
            address: held.address,
            row: held.row,
        },
    }
}

pub(crate) fn differing(
    table: Table,
    columns: Vec<Difference>,
    held: Held,
    row: Vec<u8>,
) -> Finding {
    let (partition, offset) = place(&row).unwrap_or((-1, -1));
    Finding {
        table: table.name(),
        fault: Fault::Differing,
        partition,
        offset,
        exec_id: exec_id(&row).map(str::to_owned),
        part: None,
        columns,
        correction: Correction::Replace {
            table,
            address: held.address,
            held: held.row,
            row,
        },
    }
}
