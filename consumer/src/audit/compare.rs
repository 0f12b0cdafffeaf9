//! Where buckets differ, row against row: what is missing, extra or different, exactly.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::fingerprint::Marks;
use super::said::{self, Topic};
use crate::row_format;
use crate::store::{HeldOffset, Order, Selection, Snapshot, StoreError};
use crate::tables::{Difference, EXEC_ID, Table, exec_id, place};

/// Findings of the histories, and misnamed rows, are each held up to this many bytes of rows; beyond it they are only
/// counted.
const HELD_BYTES: usize = 32 << 20;
/// Room of their own for findings of tasks and stored offsets, and for one misnamed row of each task: they cure the
/// most rows, and come last.
const TASK_BYTES: usize = 2 * HELD_BYTES;
/// What a held row takes beside its bytes.
const OVERHEAD_BYTES: usize = 256;

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fault {
    /// The topic says it, the table does not have it.
    Missing,
    /// The table has it, and the topic's record at its offset says something else, or says it not so often.
    Extra,
    /// Some columns are not what the topic says.
    Differing,
    /// The table has it, and no record at its offset tells whether it is right.
    Unprovable,
}

/// A row of a table that is not what the topic says.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) table: &'static str,
    pub(crate) fault: Fault,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exec_id: Option<String>,
    /// Of `consumed_offset`: whose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) part: Option<&'static str>,
    /// Which columns, where the fault lies in some of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) columns: Vec<Difference>,
    #[serde(skip)]
    pub(crate) cure: Cure,
}

/// What puts a row right.
#[derive(Clone, Debug)]
pub(crate) enum Cure {
    /// Put this row in.
    Insert { table: Table, row: Vec<u8> },
    /// Take the row at this address out.
    Delete {
        table: Table,
        address: String,
        row: Vec<u8>,
    },
    /// Put the row in the place of the one at this address.
    Replace {
        table: Table,
        address: String,
        held: Vec<u8>,
        row: Vec<u8>,
    },
    /// Put the task's row in, under this key or a new one.
    NewTask { task_id: Option<i64>, row: Vec<u8> },
    /// Make the task's row this one.
    Task { held: Held, row: Vec<u8> },
    /// Take the task's row out.
    NoTask { held: Held },
    /// Give the task this name or key, as long as it has the name `held`.
    Rename {
        task_id: i64,
        held: String,
        exec_id: String,
        new_task_id: i64,
    },
    /// Nothing that could be told from here.
    None,
    /// Put columns of `consumed_offset` right, as long as the row is still `held`.
    Offset {
        held: Box<HeldOffset>,
        columns: Vec<(&'static str, OffsetValue)>,
    },
    /// Put a row of `consumed_offset` in.
    NewOffset(Box<HeldOffset>),
}

impl Cure {
    /// Whether this puts anything right.
    pub(crate) fn is_one(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// A value of `consumed_offset`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum OffsetValue {
    Number(i64),
    Text(String),
}

/// A row that a table holds.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Where it stands in its table.
    pub(crate) address: String,
    pub(crate) task_id: Option<i64>,
    pub(crate) row: Vec<u8>,
}

/// A row that is right but for the task it names.
#[derive(Clone, Debug)]
pub(crate) struct Misnamed {
    pub(crate) table: Table,
    pub(crate) held: Held,
    /// As the topic says it.
    pub(crate) row: Vec<u8>,
}

/// Rows by the key that they carry and the task that they should name: how many, and those held.
pub(crate) type AllMisnamed = BTreeMap<(Option<i64>, String), (u64, Vec<Misnamed>)>;

/// All that was found.
#[derive(Default)]
pub(crate) struct Findings {
    pub(crate) found: Vec<Finding>,
    /// Of findings of the histories.
    history_bytes: usize,
    /// Of all other findings.
    task_bytes: usize,
    /// Of misnamed rows: the first of each task, and all others.
    first_misnamed_bytes: usize,
    misnamed_bytes: usize,
    /// By table, fault and partition, beyond what is held.
    pub(crate) uncounted: BTreeMap<(&'static str, Fault, i32), u64>,
    /// Events without rows that have a dead letter: the database refused their rows.
    pub(crate) set_aside: Marks,
    /// Their missing rows: how many, and a digest.
    pub(crate) set_aside_rows: BTreeMap<(Table, i32), (u64, Sha256)>,
    misnamed: AllMisnamed,
    /// Tasks whose row is not that of the event it names.
    suspects: Vec<i64>,
}

impl Findings {
    fn misnamed(&mut self, misnamed: Misnamed) {
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

    /// Takes out the rows that differ in nothing but the task they name.
    pub(crate) fn take_misnamed(&mut self) -> AllMisnamed {
        (self.first_misnamed_bytes, self.misnamed_bytes) = (0, 0);
        std::mem::take(&mut self.misnamed)
    }

    pub(crate) fn push(&mut self, finding: Finding) {
        let bytes = match &finding.cure {
            Cure::Insert { row, .. } | Cure::NewTask { row, .. } => row.len(),
            Cure::Task { held, row } => row.len() + held.row.len(),
            Cure::Delete { row, .. } => 2 * row.len(),
            Cure::Replace { row, held, .. } => 2 * row.len() + held.len(),
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

    /// Whether more was found than is held.
    pub(crate) fn is_cut(&self) -> bool {
        !self.uncounted.is_empty()
    }

    /// By table, fault and partition.
    pub(crate) fn counts(&self) -> BTreeMap<(&'static str, Fault, i32), u64> {
        let mut counts = self.uncounted.clone();
        for finding in &self.found {
            let at = (finding.table, finding.fault, finding.partition);
            *counts.entry(at).or_default() += 1;
        }
        counts
    }
}

/// Rows one after the other, out of pieces.
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

/// Takes address and `task_id` off the front of a row.
pub(crate) fn held(addressed: &[u8]) -> Option<Held> {
    let (_, count) = row_format::row_length(addressed)?;
    let mut fields = row_format::fields(addressed);
    let address = row_format::text_of(fields.next()?)?.to_owned();
    let task_id = row_format::i64_of(fields.next()?);
    let front = 2 + 4 + address.len() + 4 + task_id.map_or(0, |_| 8);
    let mut row = i16::try_from(count - 2).ok()?.to_be_bytes().to_vec();
    row.extend_from_slice(addressed.get(front..)?);
    Some(Held {
        address,
        task_id,
        row,
    })
}

/// What tells of rows that only one side has.
pub(crate) struct Evidence<'a> {
    /// Events that have dead letters.
    pub(crate) lettered: &'a Marks,
    /// Where records were read, as far as reading has come. `None`: a row that is not expected is extra whatever
    /// stands at its offset.
    pub(crate) records: Option<&'a Mutex<Marks>>,
}

impl Evidence<'_> {
    /// What a row is that is not expected.
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

/// Compares a table's rows of some offsets of a partition with what the topic says: `span` bounds what
/// it says of the table, beyond it nothing is known.
///
/// # Errors
/// If the topic or the database cannot be read to the end.
#[expect(clippy::too_many_arguments, reason = "two sides and where they meet")]
pub(crate) async fn compare(
    topic: &Topic<'_>,
    snapshot: &mut Snapshot,
    table: Table,
    partition: i32,
    span: &Range<i64>,
    places: &[Range<i64>],
    lettered: &Marks,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let places = said::join(places, said::NEAR);
    let said_of: Vec<Range<i64>> = places
        .iter()
        .map(|place| place.start.max(span.start)..place.end.min(span.end))
        .filter(|place| !place.is_empty())
        .collect();
    let of_partition = places.iter().map(|place| (partition, place.clone()));
    let selection = Selection {
        addressed: true,
        order: Some(Order::Place),
        reported_from: topic.expired_before.filter(|_| table != Table::Task),
        ..Selection::of_table(table, Some(of_partition.collect()))
    };
    let records = Mutex::new(Marks::new(&[(partition, span.clone())].into()));
    let evidence = Evidence {
        lettered,
        records: Some(&records),
    };
    let (pieces, told) = mpsc::channel(4);
    let (said_pieces, said) = mpsc::channel(4);
    let mut feeds = (Feed::new(said), Feed::new(told));
    // The scan of the topic blocks, and borrows: a thread of its own while this one drives the rest.
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let pieces = said_pieces; // closed at the end
                said::rows_of(topic, table, partition, &said_of, &records, &pieces)
            });
            let both = async {
                let scan = async {
                    let scanned = snapshot.scan(&selection, &pieces).await;
                    drop(pieces);
                    scanned
                };
                let merge = merge(&mut feeds, table, &evidence, findings);
                let (scanned, ()) = tokio::join!(scan, merge);
                scanned
            };
            let scanned: Result<(), StoreError> = tokio::runtime::Handle::current().block_on(both);
            let read = reading.join();
            scanned?;
            read.map_err(|_| anyhow::anyhow!("reading {} failed", topic.name))?
        })
    })
}

/// Compares rows that are told in the order of their places: on the one side as they are to be, on the
/// other with their addresses.
pub(crate) async fn merge(
    (said, told): &mut (Feed, Feed),
    table: Table,
    evidence: &Evidence<'_>,
    findings: &mut Findings,
) {
    let at = |row: Option<&Vec<u8>>| row.and_then(|row| place(row));
    loop {
        let next_held = told.peek().await.and_then(|row| held(row));
        let ours = next_held.as_ref().and_then(|held| place(&held.row));
        let theirs = at(said.peek().await);
        let Some(here) = ours.into_iter().chain(theirs).min() else {
            return;
        };
        let (mut expected, mut found) = (Vec::new(), Vec::new());
        while at(said.peek().await) == Some(here) {
            expected.extend(said.next().await);
        }
        while let Some(row) = told.peek().await {
            let Some(row) = held(row).filter(|held| place(&held.row) == Some(here)) else {
                break;
            };
            found.push(row);
            told.next().await;
        }
        if table == Table::Task {
            let right = |held: &&Held| !expected.contains(&held.row);
            let wrong = found.iter().filter(right).filter_map(|held| held.task_id);
            findings.suspects.extend(wrong);
        } else {
            judge(table, expected, found, evidence, findings);
        }
    }
}

/// The rows of one event: what the topic says, and what the table has. An event can have many, so each
/// is looked up.
pub(crate) fn judge(
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
    // What is left over here and there: the same row changed, if there is one with its key.
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
        if evidence.lettered.is_set(partition, offset) {
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
        cure: Cure::Insert { table, row },
    }
}

pub(crate) fn extra(table: Table, held: Held) -> Finding {
    unexpected(table, Fault::Extra, held)
}

/// A row that the topic does not say. (Of an [unprovable](Fault::Unprovable) one the cure is taken back.)
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
        cure: Cure::Delete {
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
        cure: Cure::Replace {
            table,
            address: held.address,
            held: held.row,
            row,
        },
    }
}

/// Rows that stand at another partition or offset than they should are not one missing and one unexpected.
pub(crate) fn find_moved(findings: &mut Findings) {
    // Behind the field count, a field of 4 bytes and one of 8.
    const BEHIND_PLACE: usize = 2 + 8 + 12;
    let mut extras: HashMap<(&'static str, Vec<u8>), Vec<usize>> = HashMap::new();
    for (i, finding) in findings.found.iter().enumerate() {
        if let Cure::Delete { row, .. } = &finding.cure {
            let rest = row.get(BEHIND_PLACE..).unwrap_or_default().to_vec();
            extras.entry((finding.table, rest)).or_default().push(i);
        }
    }
    if extras.is_empty() {
        return;
    }
    let mut gone = std::collections::BTreeSet::new();
    for i in 0..findings.found.len() {
        let Cure::Insert { table, row } = findings.found[i].cure.clone() else {
            continue;
        };
        let rest = row.get(BEHIND_PLACE..).unwrap_or_default().to_vec();
        let moved = extras.get_mut(&(table.name(), rest)).and_then(Vec::pop);
        let Some(moved) = moved else { continue };
        let Cure::Delete {
            address, row: held, ..
        } = findings.found[moved].cure.clone()
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

/// Rows that are right but for the task they name: either they name the wrong one, or the task's own
/// row has lost its name or its key. The fault lies with the task's row where no row at all is right by
/// it.
///
/// # Errors
/// If the database fails.
pub(crate) async fn find_misnamed(
    snapshot: &mut Snapshot,
    findings: &mut Findings,
) -> Result<Vec<MissingTask>, StoreError> {
    let misnamed = findings.take_misnamed();
    let names: Vec<&str> = misnamed.keys().map(|(_, named)| named.as_str()).collect();
    let by_name = snapshot.task_ids(&names).await?;
    let keys: Vec<i64> = misnamed
        .keys()
        .filter_map(|(task_id, _)| *task_id)
        .collect();
    let mut by_key = snapshot.tasks(&keys).await?;
    // Those that may have lost their name, and those that may have lost their key.
    let others: Vec<i64> = by_name.values().copied().collect();
    by_key.extend(snapshot.tasks(&others).await?);
    let unnamed = misnamed.keys().filter_map(|(task_id, named)| {
        let is_unnamed = !by_name.contains_key(named);
        task_id.filter(|_| is_unnamed)
    });
    let suspects: Vec<i64> = unnamed.chain(others).collect();
    let rows_of = snapshot.rows_of(&suspects).await?;
    let rows_of = |task_id: i64| rows_of.get(&task_id).copied().unwrap_or(0);
    let mut missing = Vec::new();
    for ((task_id, named), (count, rows)) in misnamed {
        let under_name = by_name.get(&named).copied();
        let under_key = task_id.and_then(|task_id| by_key.get(&task_id)).cloned();
        let (partition, offset) = place(&rows[0].row).unwrap_or((-1, -1));
        let of_task = |columns: Vec<Difference>, place: Option<(i32, i64)>, cure: Cure| Finding {
            table: Table::Task.name(),
            fault: Fault::Differing,
            partition: place.map_or(partition, |(partition, _)| partition),
            offset: place.map_or(offset, |(_, offset)| offset),
            exec_id: Some(named.clone()),
            part: None,
            columns,
            cure,
        };
        match (task_id, under_name, under_key) {
            (Some(task_id), None, None) => {
                missing.push(MissingTask {
                    task_id,
                    exec_id: named,
                });
                continue;
            }
            (Some(task_id), None, Some(found)) if rows_of(task_id) == count => {
                let held = found.exec_id;
                let column = Difference {
                    column: "exec_id",
                    expected: named.clone().into(),
                    found: held.clone().into(),
                };
                let cure = Cure::Rename {
                    task_id,
                    held,
                    exec_id: named.clone(),
                    new_task_id: task_id,
                };
                findings.push(of_task(vec![column], Some(found.place), cure));
                continue;
            }
            (Some(task_id), Some(other), None) if rows_of(other) == 0 => {
                let column = Difference {
                    column: "task_id",
                    expected: task_id.into(),
                    found: other.into(),
                };
                let cure = Cure::Rename {
                    task_id: other,
                    held: named.clone(),
                    exec_id: named.clone(),
                    new_task_id: task_id,
                };
                let place = by_key.get(&other).map(|task| task.place);
                findings.push(of_task(vec![column], place, cure));
                continue;
            }
            _ => {}
        }
        let beyond = count - rows.len() as u64;
        if beyond > 0 {
            let at = (rows[0].table.name(), Fault::Differing, partition);
            *findings.uncounted.entry(at).or_default() += beyond;
        }
        for Misnamed { table, held, row } in rows {
            let column = Difference {
                column: "task_id",
                expected: under_name.map_or_else(
                    || format!("that of {named}").into(),
                    serde_json::Value::from,
                ),
                found: task_id.into(),
            };
            findings.push(differing(table, vec![column], held, row));
        }
    }
    Ok(missing)
}

/// A task whose row is gone, while rows of its history still have its key.
pub(crate) struct MissingTask {
    pub(crate) task_id: i64,
    pub(crate) exec_id: String,
}

/// The tasks whose row is not that of the event it names.
pub(crate) fn suspects(findings: &mut Findings) -> Vec<i64> {
    std::mem::take(&mut findings.suspects)
}

const _: () = assert!(EXEC_ID == 2, "BEHIND_PLACE ends where the execId begins");
