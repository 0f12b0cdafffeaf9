//! Compares the newest states of the tasks.
//!
//! A task's row is that of its newest report, so the two databases may differ legitimately: one of them may have read a
//! report that the other has not. See [`TaskMerge::compare`].

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, bail};
use jiff::Timestamp;

use super::compared::Compared;
use super::side::{Side, read_both};
use crate::audit::finding::{Correction, Fault, Findings};
use crate::audit::merge::{Feed, differing, extra, missing};
use crate::row_format::{self, POSTGRES_EPOCH_MICROS};
use crate::store::{Held, Order, Selection};
use crate::tables::{TASK, Table, exec_id, least_times, of_newest, place};

/// The positions of the columns of `task` that rank its reports.
const IS_FINAL: usize = Table::Task.place_of("is_final");
const REPORTED_AT: usize = Table::Task.place_of("reported_at");
const SEQUENCE: usize = Table::Task.place_of("sequence");

/// Compares the newest states of the tasks, and settles related findings of the histories.
///
/// # Errors
/// If a database cannot be read, or its index of the tasks' names is broken.
pub(super) async fn compare_tasks(
    a: &mut Side,
    b: &mut Side,
    compared: &mut Compared,
) -> anyhow::Result<()> {
    let renamed = find_lost(a, b, compared).await?;
    let ranges = |side: &Side| -> Vec<_> {
        let stored = side.stored.iter();
        stored
            .map(|(at, stored)| (*at, stored.from, stored.next_offset))
            .collect()
    };
    let of_progress = compared.spans.iter();
    let shared: BTreeMap<i32, Range<i64>> = of_progress
        .filter(|((table, _), _)| *table == Table::Progress)
        .map(|((_, partition), span)| (*partition, span.clone()))
        .collect();
    for (partition, span) in &shared {
        compared
            .spans
            .insert((Table::Task, *partition), span.clone());
    }
    let selection = Selection {
        order: Some(Order::ExecId),
        ..Selection::of_table(Table::Task, None)
    };
    let mut tasks = TaskMerge {
        is_alike: ranges(a) == ranges(b),
        shared,
        own: [a.own(), b.own()],
        expired_before: [a.expired_before, b.expired_before],
        compared,
    };
    read_both(a, b, [selection.clone(), selection], async |feeds| {
        tasks.merge(feeds).await
    })
    .await?;
    join_renamed(&mut compared.findings, &renamed);
    Ok(())
}

/// Settles the rows of the histories that differ only in the task they refer to. If that task's row is missing from a
/// database, or has another name there, the fault lies in that one row, and the rows of its history are counted with
/// it. Returns the tasks that have another name in B, with that name.
async fn find_lost(
    a: &mut Side,
    b: &mut Side,
    compared: &mut Compared,
) -> anyhow::Result<BTreeSet<(String, String)>> {
    let mut renamed = BTreeSet::new();
    for (_, (count, rows)) in compared.findings.take_misnamed() {
        let Some(row) = rows.first() else { continue };
        let of_a = exec_id(&row.row).map(str::to_owned);
        let of_b = exec_id(&row.held.row).map(str::to_owned);
        let is_gone_from_b = match &of_a {
            Some(name) => {
                let found = b.snapshot.task_id(name).await;
                found.with_context(|| b.asking())?.is_none()
            }
            None => true,
        };
        let is_gone_from_a = match &of_b {
            Some(name) => {
                let found = a.snapshot.task_id(name).await;
                found.with_context(|| a.asking())?.is_none()
            }
            None => true,
        };
        if is_gone_from_a && is_gone_from_b {
            for name in of_a.iter().chain(&of_b) {
                *compared.lost.entry(name.clone()).or_default() += count;
            }
            renamed.extend(of_a.zip(of_b));
            continue;
        }
        let beyond = count - rows.len() as u64;
        if beyond > 0 {
            let (partition, _) = place(&row.row).unwrap_or((-1, -1));
            let at = (row.table.name(), Fault::Differing, partition);
            *compared.findings.uncounted.entry(at).or_default() += beyond;
        }
        for row in rows {
            let columns = row.table.differences(&row.row, &row.held.row);
            let finding = differing(row.table, columns, row.held, row.row);
            compared.findings.push(finding);
        }
    }
    Ok(renamed)
}

/// Joins two tasks that differ only in the name, one only in A and one only in B, into one that differs.
fn join_renamed(findings: &mut Findings, renamed: &BTreeSet<(String, String)>) {
    if renamed.is_empty() {
        return;
    }
    let mut of_b: BTreeMap<String, usize> = BTreeMap::new();
    for (i, finding) in findings.found.iter().enumerate() {
        if let (Correction::Delete { .. }, Some(name), "task") =
            (&finding.correction, &finding.exec_id, finding.table)
        {
            of_b.insert(name.clone(), i);
        }
    }
    let mut joined = BTreeSet::new();
    for i in 0..findings.found.len() {
        let finding = &findings.found[i];
        let (Correction::Insert { row, .. }, Some(name), "task") =
            (&finding.correction, &finding.exec_id, finding.table)
        else {
            continue;
        };
        let from = (name.clone(), String::new());
        let others = renamed.range(from..).take_while(|(of_a, _)| of_a == name);
        let twin = others
            .filter_map(|(_, of_b_name)| of_b.get(of_b_name))
            .find_map(|&j| {
                let Correction::Delete { row: held, .. } = &findings.found[j].correction else {
                    return None;
                };
                let columns = Table::Task.differences(row, held);
                matches!(columns.as_slice(), [only] if only.column == "exec_id")
                    .then(|| (j, columns, held.clone()))
            });
        if let Some((j, columns, held)) = twin {
            findings.found[i] = differing(Table::Task, columns, unaddressed(held), row.clone());
            joined.insert(j);
        }
    }
    let mut i = 0;
    findings.found.retain(|_| {
        i += 1;
        !joined.contains(&(i - 1))
    });
}

fn unaddressed(row: Vec<u8>) -> Held {
    Held {
        address: String::new(),
        task_id: None,
        row,
    }
}

/// Compares the rows of `task`, in the order of their names.
struct TaskMerge<'a> {
    /// Whether both have stored the same ranges, so that neither has read more than the other.
    is_alike: bool,
    /// Offsets of the progress part that both have stored. (Storing an event's progress also updates its task's row.)
    shared: BTreeMap<i32, Range<i64>>,
    /// Offsets that each has stored of any part.
    own: [BTreeMap<i32, Range<i64>>; 2],
    /// `consumer expire` removed older reports, and tasks with them.
    expired_before: [Option<Timestamp>; 2],
    compared: &'a mut Compared,
}

impl TaskMerge<'_> {
    /// Both sides are ordered by the bytes of their names.
    async fn merge(&mut self, (mut a, mut b): (Feed, Feed)) -> anyhow::Result<()> {
        let name = |row: Option<&Vec<u8>>| {
            row.map(|row| {
                row_format::fields(row)
                    .nth(TASK)
                    .flatten()
                    .unwrap_or_default()
                    .to_vec()
            })
        };
        let mut last = None;
        loop {
            let (of_a, of_b) = (name(a.peek().await), name(b.peek().await));
            let Some(least) = of_a.iter().chain(&of_b).min().cloned() else {
                return Ok(());
            };
            if last.as_ref() == Some(&least) {
                bail!(
                    "a database has the task {} twice: its unique key is broken; REINDEX it",
                    lossy(&least)
                );
            }
            if last.as_ref() > Some(&least) {
                bail!(
                    "a database did not return its tasks in the order of their names: {} came late; its index is broken; REINDEX it",
                    lossy(&least)
                );
            }
            let row_a = if of_a.as_ref() == Some(&least) {
                a.next().await
            } else {
                None
            };
            let row_b = if of_b.as_ref() == Some(&least) {
                b.next().await
            } else {
                None
            };
            self.compare(row_a, row_b);
            last = Some(least);
        }
    }

    fn is_shared(&self, row: &[u8]) -> bool {
        place(row).is_some_and(|(partition, offset)| {
            let span = self.shared.get(&partition);
            span.is_some_and(|span| span.contains(&offset))
        })
    }

    /// Whether this side may have read this report while the other side has not.
    fn is_further(&self, side: usize, row: &[u8]) -> bool {
        let own = place(row).is_some_and(|(partition, offset)| {
            let own = self.own[side].get(&partition);
            own.is_some_and(|own| own.contains(&offset))
        });
        own && !self.is_alike && !self.is_shared(row)
    }

    /// Compares the rows of one task.
    ///
    /// - Both are of shared events, or of the same one: they must be equal.
    /// - One is of a shared event, so the other database has read that event too: its row must be of a newer report,
    ///   one that only it has read.
    /// - Both are of events that only their own database has read: nothing is known.
    /// - The newer one, or the only one, is of a report that `consumer expire` may have removed from the other
    ///   database: nothing is known.
    fn compare(&mut self, a: Option<Vec<u8>>, b: Option<Vec<u8>>) {
        let (is_compared, is_right) = match (&a, &b) {
            _ if self.may_be_expired(a.as_deref(), b.as_deref()) => (false, true),
            (Some(a), Some(b)) => match (self.is_further(0, a), self.is_further(1, b)) {
                _ if place(a) == place(b) => (true, self.are_equal(a, b)),
                (false, false) => (true, self.are_equal(a, b)),
                (false, true) => (false, self.is_behind(a, b)),
                (true, false) => (false, self.is_behind(b, a)),
                (true, true) => (false, true),
            },
            (Some(row), None) => self.alone(0, row),
            (None, Some(row)) => self.alone(1, row),
            (None, None) => return,
        };
        for (side, row) in [&a, &b].into_iter().enumerate() {
            if let Some(row) = row {
                let (partition, _) = place(row).unwrap_or((-1, -1));
                let counted = match is_compared || !is_right {
                    true => &mut self.compared.rows[side],
                    false => &mut self.compared.outside[side],
                };
                *counted.entry((Table::Task, partition)).or_default() += 1;
            }
        }
        if is_right {
            return;
        }
        let finding = match (a, b) {
            (Some(a), Some(b)) => {
                let columns = Table::Task.differences(&a, &b);
                differing(Table::Task, columns, unaddressed(b), a)
            }
            (Some(a), None) => missing(Table::Task, a),
            (None, Some(b)) => extra(Table::Task, unaddressed(b)),
            (None, None) => return,
        };
        self.compared.findings.push(finding);
    }

    /// Whether two rows of one report are equal, except for times that are earlier because of reports that only their
    /// own database may have read, or that `consumer expire` may have removed from the other.
    fn are_equal(&self, a: &[u8], b: &[u8]) -> bool {
        let [newest_of_a, newest_of_b] = [a, b].map(|row| of_newest(row_format::after(row, 0)));
        let [of_a, of_b] = [a, b].map(least_times);
        newest_of_a == newest_of_b
            && self.is_explained(of_a.first_reported_at, of_b.first_reported_at)
            && self.is_explained(of_a.ended_at, of_b.ended_at)
    }

    /// Whether this row, of a shared event, is of an older report than the row of a database that has read more.
    fn is_behind(&self, row: &[u8], further: &[u8]) -> bool {
        self.is_shared(row) && rank(row) < rank(further)
    }

    /// Whether both databases can legitimately have these earliest times of a task, A's and B's.
    fn is_explained(&self, of_a: Option<i64>, of_b: Option<i64>) -> bool {
        let [a, b] = [of_a, of_b].map(|time| time.unwrap_or(i64::MAX));
        let (lower, least) = match a.cmp(&b) {
            Ordering::Equal => return true,
            Ordering::Less => (0, a),
            Ordering::Greater => (1, b),
        };
        let least = least.wrapping_add(POSTGRES_EPOCH_MICROS);
        let before = self.expired_before[1 - lower].map(Timestamp::as_microsecond);
        self.has_own(lower) || before.is_some_and(|before| least < before)
    }

    /// Whether this side may have read any report that the other side has not.
    fn has_own(&self, side: usize) -> bool {
        let is_beyond = |(partition, own): (&i32, &Range<i64>)| {
            let shared = self.shared.get(partition);
            shared.is_none_or(|shared| own.start < shared.start || own.end > shared.end)
        };
        !self.is_alike && self.own[side].iter().any(is_beyond)
    }

    fn may_be_expired(&self, a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
        let (row, other) = match (a, b) {
            (Some(a), Some(b)) if place(a) == place(b) => return false,
            (Some(a), Some(b)) if rank(a) > rank(b) => (a, 1),
            (_, Some(b)) => (b, 0),
            (Some(a), None) => (a, 1),
            (None, None) => return false,
        };
        let reported_at = row_format::fields(row).nth(REPORTED_AT).flatten();
        let reported_at = row_format::i64_of(reported_at)
            .map(|micros| micros.wrapping_add(POSTGRES_EPOCH_MICROS));
        let before = self.expired_before[other].map(Timestamp::as_microsecond);
        !self.is_lost(row)
            && reported_at
                .zip(before)
                .is_some_and(|(at, before)| at < before)
    }

    fn is_lost(&self, row: &[u8]) -> bool {
        exec_id(row).is_some_and(|name| self.compared.lost.contains_key(name))
    }

    /// Judges a task that only one side has: whether it counts as compared, and whether it is right.
    fn alone(&self, side: usize, row: &[u8]) -> (bool, bool) {
        let is_further = self.is_further(side, row) && !self.is_lost(row);
        (!is_further, is_further)
    }
}

/// Ranks reports of a task: the greatest is the newest; see `Rows::rank`.
fn rank(row: &[u8]) -> impl PartialOrd {
    let field = |at: usize| row_format::fields(row).nth(at).flatten();
    (
        field(IS_FINAL) == Some(&[1]),
        row_format::i64_of(field(REPORTED_AT)),
        row_format::i64_of(field(SEQUENCE)),
        place(row),
    )
}

fn lossy(name: &[u8]) -> String {
    service::text::shown(&String::from_utf8_lossy(name))
}
