//! `task`: whether each task's row is that of the newest of its reports.
//!
//! The row names its event. That it is that event's row is compared like any other row; that no other
//! report tells more is asked of `task_progress`, which was compared itself.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;

use super::compare::{Cure, Fault, Finding, Findings, MissingTask};
use super::said::{self, Topic};
use super::table::{Table, exec_id, place};
use crate::batch::Record;
use crate::copy::{self, CopyWriter};
use crate::rows::Rows;
use crate::store::{Selection, Snapshot, StoreError};

/// A task's row as the database has it.
struct HeldTask {
    task_id: i64,
    row: Vec<u8>,
}

/// Tells what is wrong with the rows of these tasks, and which rows are missing.
///
/// # Errors
/// If the database or Kafka fails.
pub(crate) async fn resolve(
    snapshot: &mut Snapshot,
    topic: &Topic<'_>,
    suspects: BTreeSet<i64>,
    missing: Vec<MissingTask>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let faulty = Faulty::of(findings);
    let missing: BTreeMap<i64, String> = missing
        .into_iter()
        .map(|task| (task.task_id, task.exec_id))
        .collect();
    // Those that only have another name or key are told already.
    let renamed: BTreeSet<i64> = findings
        .found
        .iter()
        .filter_map(|finding| match finding.cure {
            Cure::Rename { task_id, .. } => Some(task_id),
            _ => None,
        })
        .collect();
    let suspects = suspects.difference(&renamed).copied();
    for task_id in suspects.chain(missing.keys().copied()) {
        let held = held(snapshot, task_id).await?;
        let exec_id = match (&held, missing.get(&task_id)) {
            (Some(held), _) => exec_id(&held.row).unwrap_or_default(),
            (None, Some(exec_id)) => exec_id,
            (None, None) => continue,
        };
        let places = faulty.sound_places(snapshot, task_id, exec_id).await?;
        let told = held.as_ref().and_then(|held| place(&held.row));
        let expired = expired(topic, told, exec_id)?;
        let expired = expired.as_ref().and_then(Record::rows);
        let known = !places.is_empty() || expired.is_some();
        let newest = newest(topic, places)?;
        let newest = newest.as_ref().and_then(Record::rows);
        let newest = newest.into_iter().chain(expired);
        let newest = newest.max_by_key(|rows| rows.rank());
        let finding = match (held, missing.get(&task_id)) {
            (None, Some(exec_id)) => Some(gone(Some(task_id), exec_id, newest)),
            (Some(held), _) => wrong(held, known, newest),
            (None, None) => None,
        };
        if let Some(finding) = finding {
            findings.push(finding);
        }
    }
    Ok(())
}

/// What is wrong in `task_progress`, by task: such rows tell nothing about the task's newest report.
struct Faulty {
    /// Where rows stand that the topic does not say.
    held: BTreeMap<String, BTreeSet<(i32, i64)>>,
    /// Where events stand whose rows are missing or differ.
    said: BTreeMap<String, BTreeSet<(i32, i64)>>,
}

impl Faulty {
    fn of(findings: &Findings) -> Self {
        let mut faulty = Self {
            held: BTreeMap::new(),
            said: BTreeMap::new(),
        };
        let of_progress = findings
            .found
            .iter()
            .filter(|finding| finding.table == Table::Progress.name());
        for finding in of_progress {
            let (held, said) = match &finding.cure {
                Cure::Insert { row, .. } => (None, Some(row)),
                Cure::Delete { row, .. } => (Some(row), None),
                Cure::Replace { held, row, .. } => (Some(held), Some(row)),
                _ => (None, None),
            };
            for (row, by_task) in [(held, &mut faulty.held), (said, &mut faulty.said)] {
                if let Some(row) = row
                    && let (Some(named), Some(place)) = (exec_id(row), place(row))
                {
                    by_task.entry(named.to_owned()).or_default().insert(place);
                }
            }
        }
        faulty
    }

    /// Where the newest report of a task stands: among these.
    async fn sound_places(
        &self,
        snapshot: &mut Snapshot,
        task_id: i64,
        exec_id: &str,
    ) -> Result<BTreeSet<(i32, i64)>, StoreError> {
        let none = BTreeSet::new();
        let held = self.held.get(exec_id).unwrap_or(&none);
        let newest = snapshot.newest_of(task_id, held.len() + 1).await?;
        let sound = newest.into_iter().find(|place| !held.contains(place));
        let said = self.said.get(exec_id).unwrap_or(&none);
        Ok(said.iter().copied().chain(sound).collect())
    }
}

/// Tasks of which rows are missing and that are not there themselves: nothing is left of them, and
/// their newest report is among those that are missing.
///
/// # Errors
/// If the database or Kafka fails.
pub(crate) async fn find_lost(
    snapshot: &mut Snapshot,
    topic: &Topic<'_>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut places: BTreeMap<String, BTreeSet<(i32, i64)>> = BTreeMap::new();
    for finding in findings.found.iter() {
        if let (Cure::Insert { .. }, Some(exec_id)) = (&finding.cure, &finding.exec_id) {
            let of_task = places.entry(exec_id.clone()).or_default();
            of_task.insert((finding.partition, finding.offset));
        }
    }
    let known: BTreeSet<String> = findings
        .found
        .iter()
        .filter(|finding| finding.table == Table::Task.name())
        .filter_map(|finding| finding.exec_id.clone())
        .collect();
    places.retain(|exec_id, _| !known.contains(exec_id));
    for (exec_id, places) in places {
        if snapshot.task_id(&exec_id).await?.is_some() {
            continue;
        }
        if let Some(newest) = newest(topic, places)?.as_ref().and_then(Record::rows) {
            findings.push(gone(None, &exec_id, Some(newest)));
        }
    }
    Ok(())
}

fn gone(task_id: Option<i64>, exec_id: &str, newest: Option<Rows<'_>>) -> Finding {
    let (partition, offset) = newest.map_or((-1, -1), |newest| (newest.partition, newest.offset));
    Finding {
        table: Table::Task.name(),
        fault: Fault::Missing,
        partition,
        offset,
        exec_id: Some(exec_id.to_owned()),
        part: None,
        columns: Vec::new(),
        cure: newest.map_or(Cure::None, |newest| Cure::Task {
            task_id,
            held: None,
            row: task_row(&newest),
        }),
    }
}

/// What is wrong with a task's row; `known` says whether anything of its history is known, `newest` is
/// the newest of its reports that the topic still has.
fn wrong(held: HeldTask, known: bool, newest: Option<Rows<'_>>) -> Option<Finding> {
    let told = place(&held.row)?;
    let (fault, columns, cure) = match newest {
        None if known => (Fault::Differing, Vec::new(), Cure::None),
        None => {
            let cure = Cure::NoTask {
                task_id: held.task_id,
                held: told,
            };
            (Fault::Extra, Vec::new(), cure)
        }
        Some(newest) => {
            let row = task_row(&newest);
            let columns = Table::Task.differences(&row, &held.row);
            if columns.is_empty() {
                return None;
            }
            let cure = Cure::Task {
                task_id: Some(held.task_id),
                held: Some(told),
                row,
            };
            (Fault::Differing, columns, cure)
        }
    };
    let (partition, offset) = newest.map_or(told, |newest| (newest.partition, newest.offset));
    Some(Finding {
        table: Table::Task.name(),
        fault,
        partition,
        offset,
        exec_id: exec_id(&held.row).map(str::to_owned),
        part: None,
        columns,
        cure,
    })
}

fn task_row(event: &Rows<'_>) -> Vec<u8> {
    let mut copy = CopyWriter::default();
    Table::Task.write(&mut copy, event);
    copy.take()
}

/// The newest report of those whose events stand at these places, as far as they are there.
fn newest(topic: &Topic<'_>, places: BTreeSet<(i32, i64)>) -> anyhow::Result<Option<Record>> {
    let records = said::records(topic, places)?.into_iter();
    let events = records.map(|record| Record::read(&topic.writers.decoder, &record));
    Ok(events
        .filter(|event| event.event.is_ok())
        .max_by_key(|event| event.rows().map(|rows| rows.rank())))
}

/// The report at the place that a task's row names, where it is one of that task whose history was
/// removed by order: then only this row tells of it.
fn expired(
    topic: &Topic<'_>,
    told: Option<(i32, i64)>,
    exec_id: &str,
) -> anyhow::Result<Option<Record>> {
    if topic.expired_before.is_none() {
        return Ok(None);
    }
    let event = newest(topic, told.into_iter().collect())?;
    Ok(event.filter(|event| {
        let rows = event.rows();
        rows.is_some_and(|rows| rows.info.exec_id == exec_id && topic.is_expired(&rows))
    }))
}

/// A task's row.
async fn held(snapshot: &mut Snapshot, task_id: i64) -> Result<Option<HeldTask>, StoreError> {
    let selection = Selection::of_task(task_id);
    let (pieces, mut told) = mpsc::channel(2);
    snapshot.scan(&selection, &pieces).await?;
    drop(pieces);
    let piece = told.recv().await.unwrap_or_default();
    let row = copy::rows(&piece).next().map(<[u8]>::to_vec);
    Ok(row.map(|row| HeldTask { task_id, row }))
}
