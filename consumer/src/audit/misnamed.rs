//! Rows that are right except for the task they name.

use super::difference::Difference;
use super::finding::{Correction, Fault, Finding, Findings, Misnamed};
use super::merge::differing;
use crate::store::{Snapshot, StoreError};
use crate::tables::{Table, place};

/// Settles the rows that are right except for the task they name: either they name the wrong task, or the task's own
/// row has lost its name or its key. The task's row is at fault if none of its rows is right. Returns tasks whose own
/// row is missing.
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
    // Tasks that may have lost their name, and tasks that may have lost their key.
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
        let of_task =
            |columns: Vec<Difference>, place: Option<(i32, i64)>, correction: Correction| Finding {
                table: Table::Task.name(),
                fault: Fault::Differing,
                partition: place.map_or(partition, |(partition, _)| partition),
                offset: place.map_or(offset, |(_, offset)| offset),
                exec_id: Some(named.clone()),
                part: None,
                columns,
                correction,
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
                let correction = Correction::Rename {
                    task_id,
                    held,
                    exec_id: named.clone(),
                    new_task_id: task_id,
                };
                findings.push(of_task(vec![column], Some(found.place), correction));
                continue;
            }
            (Some(task_id), Some(other), None) if rows_of(other) == 0 => {
                let column = Difference {
                    column: "task_id",
                    expected: task_id.into(),
                    found: other.into(),
                };
                let correction = Correction::Rename {
                    task_id: other,
                    held: named.clone(),
                    exec_id: named.clone(),
                    new_task_id: task_id,
                };
                let place = by_key.get(&other).map(|task| task.place);
                findings.push(of_task(vec![column], place, correction));
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

/// A task whose row is gone while its history still refers to its key.
pub(crate) struct MissingTask {
    pub(crate) task_id: i64,
    pub(crate) exec_id: String,
}
