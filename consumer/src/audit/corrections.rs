//! Applies corrections: one transaction per partition, many rows per statement.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::finding::Correction;
use crate::store::{Database, NewRow, Repairing, StoreError};
use crate::tables::{Table, exec_id};

/// `group_id` of a stored offset that an audit inserted.
const GROUP: &str = "audit";

/// What a repair did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Repair {
    /// Rows inserted, or columns corrected.
    pub(super) written: u64,
    /// Rows removed, including those that were replaced.
    pub(super) removed: u64,
    /// Findings that no longer matched the database and were skipped.
    pub(super) left: u64,
    /// Rows that were skipped because their task has no row.
    pub(super) without_task: u64,
}

/// Applies these corrections, all of one partition, in one transaction.
///
/// # Errors
/// See [`StoreError`]; nothing is written then.
pub(super) async fn apply(
    database: &Database,
    topic: &str,
    corrections: &[&Correction],
) -> Result<Repair, StoreError> {
    let mut transaction = Repairing::begin(database).await?;
    let done = apply_in(&mut transaction, topic, corrections).await?;
    transaction.commit().await?;
    Ok(done)
}

/// A row to remove, and its replacement.
struct Change<'a> {
    address: &'a str,
    held: &'a [u8],
    new: Option<NewRow<'a>>,
}

/// By table: rows to change and rows to insert.
#[derive(Default)]
struct Plan<'a> {
    changes: BTreeMap<Table, Vec<Change<'a>>>,
    rows: BTreeMap<Table, Vec<NewRow<'a>>>,
}

async fn apply_in(
    transaction: &mut Repairing,
    topic: &str,
    corrections: &[&Correction],
) -> Result<Repair, StoreError> {
    let (mut plan, mut done) = (Plan::default(), Repair::default());
    for correction in corrections {
        match correction {
            Correction::Insert { table, row } => plan.insert(*table, (None, row)),
            Correction::NewTask { task_id, row } => plan.insert(Table::Task, (*task_id, row)),
            Correction::Delete {
                table,
                address,
                row,
            } => plan.change(*table, address, row, None),
            Correction::Replace {
                table,
                address,
                held,
                row,
            } => plan.change(*table, address, held, Some((None, row))),
            Correction::Task { held, row } => {
                let new = Some((held.task_id, row.as_slice()));
                plan.change(Table::Task, &held.address, &held.row, new);
            }
            Correction::NoTask { held } => plan.change(Table::Task, &held.address, &held.row, None),
            Correction::None => done.left += 1,
            Correction::Rename { .. } | Correction::Offset { .. } | Correction::NewOffset(_) => {}
        }
    }
    plan.leave_new_tasks_that_are_there(transaction, &mut done)
        .await?;
    plan.leave_rows_without_task(transaction, corrections, &mut done)
        .await?;
    let Plan { changes, mut rows } = plan;
    // Histories first: their rows are compared by their tasks' names.
    for (table, changes) in &changes {
        let held = changes.iter().map(|change| (change.address, change.held));
        let gone = transaction.remove(*table, &held.collect()).await?;
        for change in changes {
            match (gone.contains(change.address), change.new) {
                (false, _) => done.left += 1,
                (true, Some(row)) => {
                    // A task's row is corrected in place; any other is replaced.
                    done.removed += u64::from(*table != Table::Task);
                    rows.entry(*table).or_default().push(row);
                }
                (true, None) => done.removed += 1,
            }
        }
    }
    for correction in corrections {
        let (is_done, columns) = match correction {
            Correction::Rename {
                task_id,
                held,
                exec_id,
                new_task_id,
            } => {
                let renamed = transaction.rename(*task_id, held, exec_id, *new_task_id);
                (renamed.await?, 1)
            }
            Correction::Offset { held, columns } => {
                let corrected = transaction.correct_offset(topic, held, columns);
                (corrected.await?, columns.len() as u64)
            }
            Correction::NewOffset(offset) => {
                let inserted = transaction.insert_offset(topic, GROUP, offset);
                (inserted.await?, 1)
            }
            _ => continue,
        };
        match is_done {
            true => done.written += columns,
            false => done.left += 1,
        }
    }
    done.written += rows.values().map(|rows| rows.len() as u64).sum::<u64>();
    if let Some(tasks) = rows.remove(&Table::Task) {
        transaction.insert_tasks(&tasks).await?;
    }
    for (table, rows) in rows {
        let rows: Vec<&[u8]> = rows.into_iter().map(|(_, row)| row).collect();
        transaction.insert_history(table, &rows).await?;
    }
    Ok(done)
}

impl<'a> Plan<'a> {
    fn insert(&mut self, table: Table, row: NewRow<'a>) {
        self.rows.entry(table).or_default().push(row);
    }

    fn change(&mut self, table: Table, address: &'a str, held: &'a [u8], new: Option<NewRow<'a>>) {
        let change = Change { address, held, new };
        self.changes.entry(table).or_default().push(change);
    }

    /// Skips tasks that someone else has inserted meanwhile.
    async fn leave_new_tasks_that_are_there(
        &mut self,
        transaction: &mut Repairing,
        done: &mut Repair,
    ) -> Result<(), StoreError> {
        let Some(tasks) = self.rows.get_mut(&Table::Task) else {
            return Ok(());
        };
        let names: Vec<&str> = tasks.iter().filter_map(|(_, row)| exec_id(row)).collect();
        let there = transaction.task_ids(&names).await?;
        let count = tasks.len();
        tasks.retain(|(_, row)| exec_id(row).is_none_or(|name| !there.contains_key(name)));
        done.left += (count - tasks.len()) as u64;
        Ok(())
    }

    /// Skips rows whose task has no row and gets none now: another round creates the tasks first.
    async fn leave_rows_without_task(
        &mut self,
        transaction: &mut Repairing,
        corrections: &[&Correction],
        done: &mut Repair,
    ) -> Result<(), StoreError> {
        let Self { changes, rows } = self;
        let of_histories = |table: &&Table| **table != Table::Task;
        let mut names: HashSet<&str> = HashSet::new();
        for table in rows.keys().filter(of_histories) {
            names.extend(rows[table].iter().filter_map(|(_, row)| exec_id(row)));
        }
        for table in changes.keys().filter(of_histories) {
            let new = changes[table].iter().filter_map(|change| change.new);
            names.extend(new.filter_map(|(_, row)| exec_id(row)));
        }
        let names = Vec::from_iter(names);
        let there: HashMap<String, i64> = transaction.task_ids(&names).await?;
        let made: HashSet<&str> = corrections
            .iter()
            .filter_map(|correction| match correction {
                Correction::NewTask { row, .. } | Correction::Task { row, .. } => exec_id(row),
                Correction::Rename { exec_id, .. } => Some(exec_id),
                _ => None,
            })
            .collect();
        let has_task = |row: &[u8]| {
            exec_id(row).is_some_and(|name| there.contains_key(name) || made.contains(name))
        };
        let mut left = 0;
        for (_, rows) in rows.iter_mut().filter(|(table, _)| of_histories(table)) {
            let count = rows.len();
            rows.retain(|(_, row)| has_task(row));
            left += count - rows.len();
        }
        for (_, changes) in changes.iter_mut().filter(|(table, _)| of_histories(table)) {
            let count = changes.len();
            changes.retain(|change| change.new.is_none_or(|(_, row)| has_task(row)));
            left += count - changes.len();
        }
        done.without_task += left as u64;
        Ok(())
    }
}
