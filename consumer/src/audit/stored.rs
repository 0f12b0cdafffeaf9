//! The rows that the tables hold: reads each once, in any order, and hashes it.

use std::collections::{BTreeSet, HashMap};

use anyhow::anyhow;
use indicatif::ProgressBar;
use jiff::Timestamp;
use schemas::TaskStatus;
use tokio_util::sync::CancellationToken;

use super::fingerprint::{Fingerprint, Marks, Plan};
use super::times::{HistoryGaps, is_of_a_report};
use crate::row_format;
use crate::store::{Database, Places, Selection, Snapshot, StoreError};
use crate::tables::{LeastTimes, TASK, Table, least_times, of_newest};

/// Maximum number of tasks kept in memory while rows are read: some 70 MiB, which a hash table of 2^19 buckets and a
/// list of times take before they grow.
const MAX_KNOWN: usize = (1 << 19) / 8 * 7;
/// Maximum number of tasks behind their history that are reported.
const MAX_OUTRANKED: usize = 10_000;
/// The progress bar moves in steps of this many rows.
const BAR_STEP: u64 = 10_000;

/// The final statuses.
const FINAL: [TaskStatus; 4] = [
    TaskStatus::Succeed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
    TaskStatus::Timeout,
];

/// The contents of `task`.
pub(super) struct StoredTasks<'a> {
    pub(super) fingerprint: Fingerprint<'a>,
    /// The events that its rows name.
    pub(super) newest: Marks,
    /// The tasks by key, so that the database need not join each row with its task. `None`: there are too many, or not
    /// all were read.
    known: Option<HashMap<i64, Known, ahash::RandomState>>,
    /// Tasks whose earliest times are wrong whatever their history is; at most [`MAX_OUTRANKED`].
    impossible: BTreeSet<i64>,
}

/// A task, as needed to check its history.
struct Known {
    /// The result of [`Plan::name`].
    name: u64,
    rank: Option<Rank>,
    times: LeastTimes,
    /// Its index in the list of earliest times.
    nth: u32,
}

/// The order of a task's reports: the greatest one is its newest state. Times are in PostgreSQL's microseconds; see
/// `Rows::rank`.
pub(super) type Rank = (bool, i64, i64, i32, i64);

impl<'a> StoredTasks<'a> {
    /// Reads the tasks of these places; `None`: all tasks.
    ///
    /// # Errors
    /// If the database fails.
    pub(super) async fn read(
        snapshot: &mut Snapshot,
        plan: &'a Plan,
        mut newest: Marks,
        places: &Option<Places>,
    ) -> Result<Self, StoreError> {
        let mut fingerprint = Fingerprint::new(plan);
        let mut known: Option<HashMap<_, _, _>> = places.is_none().then(HashMap::default);
        let mut impossible = BTreeSet::new();
        let tasks = Selection {
            addressed: true,
            ..Selection::of_table(Table::Task, places.clone())
        };
        snapshot
            .each(&tasks, |row| {
                let task_id = row_format::i64_of(row_format::fields(row).nth(1).flatten());
                let all = row_format::after(row, 2);
                let fields = of_newest(all);
                let rank = rank_of_task(fields);
                let times = least_times(&[&row[..2], all].concat());
                if let (Some(task_id), Some(rank)) = (task_id, rank)
                    && !may_be(times, rank)
                    && impossible.len() < MAX_OUTRANKED
                {
                    impossible.insert(task_id);
                }
                if let Some((partition, offset)) = fingerprint.add(Table::Task, fields) {
                    newest.set(partition, offset);
                }
                if let (Some(known), Some(task_id)) = (&mut known, task_id) {
                    let exec_id = row_format::fields(row).nth(2 + TASK).flatten();
                    let name = plan.name(exec_id);
                    let nth = known.len() as u32;
                    let of_task = Known {
                        name,
                        rank,
                        times,
                        nth,
                    };
                    known.insert(task_id, of_task);
                }
                if known.as_ref().is_some_and(|known| known.len() >= MAX_KNOWN) {
                    known = None;
                }
                true
            })
            .await?;
        Ok(Self {
            fingerprint,
            newest,
            known,
            impossible,
        })
    }
}

/// Whether a task whose newest report has this rank can have these times.
fn may_be(times: LeastTimes, (is_final, reported_at, ..): Rank) -> bool {
    times.first_reported_at.is_some_and(|first| {
        let ended = times.ended_at;
        is_of_a_report(first)
            && first <= reported_at
            && ended.is_some() == is_final
            && ended.is_none_or(|ended| first <= ended && ended <= reported_at)
    })
}

/// The positions of the fields that ranks are read from.
const _: () = {
    let (task, progress) = (Table::Task, Table::Progress);
    assert!(task.place_of("is_final") == 2 + 7);
    assert!(task.place_of("reported_at") == task.place_of("is_final") + 2);
    assert!(task.place_of("sequence") == task.place_of("reported_at") + 1);
    assert!(progress.place_of("reported_at") == TASK + 1);
    assert!(progress.place_of("sequence") == TASK + 2);
    assert!(progress.place_of("status") == TASK + 3);
};

/// The rank of a row of `task`, given its fields.
pub(super) fn rank_of_task(fields: &[u8]) -> Option<Rank> {
    let mut fields = row_format::split_fields(fields);
    let partition = row_format::i32_of(fields.next()?)?;
    let offset = row_format::i64_of(fields.next()?)?;
    let is_final = fields.nth(7)?? == [1];
    let reported_at = row_format::i64_of(fields.nth(1)?)?;
    let sequence = row_format::i64_of(fields.next()?)?;
    Some((is_final, reported_at, sequence, partition, offset))
}

/// The task and the rank of a row of `task_progress`, given its fields.
fn rank_of_report(fields: &[u8]) -> Option<(i64, Rank)> {
    let mut fields = row_format::split_fields(fields);
    let partition = row_format::i32_of(fields.next()?)?;
    let offset = row_format::i64_of(fields.next()?)?;
    let task_id = row_format::i64_of(fields.next()?)?;
    let reported_at = row_format::i64_of(fields.next()?)?;
    let sequence = row_format::i64_of(fields.next()?)?;
    let status = row_format::text_of(fields.next()?)?;
    let is_final = FINAL.iter().any(|of_end| of_end.as_str() == status);
    let rank = (is_final, reported_at, sequence, partition, offset);
    Some((task_id, rank))
}

/// The contents of the histories.
pub(super) struct StoredRows<'a> {
    pub(super) fingerprint: Fingerprint<'a>,
    /// Tasks that are behind their history, or whose earliest times differ from it; at most [`MAX_OUTRANKED`] of each
    /// kind.
    pub(super) outranked: BTreeSet<i64>,
}

/// How to read the histories.
#[derive(Clone, Copy)]
pub(super) struct Scan<'a, 'p> {
    pub(super) plan: &'p Plan,
    pub(super) tasks: &'a StoredTasks<'p>,
    pub(super) places: &'a Option<Places>,
    /// Skip rows reported before this time.
    pub(super) reported_from: Option<Timestamp>,
    /// Whether `task_progress` holds every report that `task` reflects, except those before `reported_from`.
    pub(super) progress_has_all: bool,
    pub(super) bar: &'a ProgressBar,
    pub(super) stop: &'a CancellationToken,
}

impl<'p> Scan<'_, 'p> {
    /// Reads the histories as `snapshot` sees them; in PostgreSQL on two more connections, each with its own thread.
    /// Blocks.
    ///
    /// # Errors
    /// If the database fails.
    pub(super) fn read(
        self,
        database: &Database,
        snapshot: &mut Snapshot,
    ) -> anyhow::Result<StoredRows<'p>> {
        let runtime = tokio::runtime::Handle::current();
        let Some(moment) = runtime.block_on(snapshot.moment())? else {
            return Ok(runtime.block_on(self.tables(snapshot, &Table::HISTORIES))?);
        };
        let moment = moment.as_str();
        let (progress, others) = Table::HISTORIES.split_at(1); // about half of the work each
        std::thread::scope(|scope| {
            let beside = |tables| scope.spawn(move || self.beside(database, moment, tables));
            let threads = [progress, others].map(beside);
            let [progress, others] = threads.map(|thread| {
                let failed = |_| Err(anyhow!("reading the tables failed"));
                thread.join().unwrap_or_else(failed)
            });
            let mut stored = progress?;
            stored.fingerprint.take_in(others?.fingerprint);
            Ok(stored)
        })
    }

    /// Reads some of the histories on a connection of its own. The thread has its own runtime: with thousands of rows,
    /// wake-ups from another thread would cost more than the reading.
    fn beside(
        self,
        database: &Database,
        moment: &str,
        tables: &[Table],
    ) -> anyhow::Result<StoredRows<'p>> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let mut snapshot = Snapshot::of_moment(database, moment).await?;
            Ok(self.tables(&mut snapshot, tables).await?)
        })
    }

    async fn tables(
        self,
        snapshot: &mut Snapshot,
        tables: &[Table],
    ) -> Result<StoredRows<'p>, StoreError> {
        let Self { plan, tasks, .. } = self;
        let mut fingerprint = Fingerprint::new(plan);
        let mut outranked = BTreeSet::new();
        let mut behind = |task_id| {
            if outranked.len() < MAX_OUTRANKED {
                outranked.insert(task_id);
            }
        };
        let mut rows = 0;
        let known = tasks.known.as_ref();
        let of_progress = known.filter(|_| tables.contains(&Table::Progress));
        let mut least = vec![LeastTimes::default(); of_progress.map_or(0, HashMap::len)];
        for &table in tables {
            let outranking = table == Table::Progress && tasks.known.is_none();
            let selection = Selection {
                outranking,
                by_key: tasks.known.is_some(),
                reported_from: self.reported_from,
                ..Selection::of_table(table, self.places.clone())
            };
            let each = |row: &[u8]| {
                let mut fields = row.get(2..).unwrap_or_default();
                if outranking {
                    let (task_id, after) = row_format::split_field(fields).unwrap_or_default();
                    row_format::i64_of(task_id)
                        .into_iter()
                        .for_each(&mut behind);
                    fields = after;
                }
                match &tasks.known {
                    None => fingerprint.add(table, fields),
                    Some(known) => {
                        if table == Table::Progress
                            && let Some((task_id, rank)) = rank_of_report(fields)
                            && let Some(of_task) = known.get(&task_id)
                        {
                            least[of_task.nth as usize].take_in(rank.1, rank.0);
                            if of_task.rank.is_some_and(|of_task| rank > of_task) {
                                behind(task_id);
                            }
                        }
                        fingerprint.add_named(table, fields, |task_id| {
                            let known = row_format::i64_of(task_id).and_then(|id| known.get(&id));
                            known.map_or_else(|| plan.name(None), |known| known.name)
                        })
                    }
                };
                rows += 1;
                if rows % BAR_STEP == 0 {
                    self.bar.inc(BAR_STEP);
                }
                !self.stop.is_cancelled()
            };
            snapshot.each(&selection, each).await?;
        }
        if tables.contains(&Table::Progress) {
            let gaps = HistoryGaps::new(self.reported_from, !self.progress_has_all);
            tasks.impossible.iter().copied().for_each(&mut behind);
            match known {
                Some(known) => {
                    let with_others = known.iter().filter(|(_, of_task)| {
                        let of_history = least[of_task.nth as usize];
                        let is_final = of_task.rank.is_some_and(|(is_final, ..)| is_final);
                        of_history.first_reported_at.is_some()
                            && gaps.expected(of_task.times, of_history, is_final) != of_task.times
                    });
                    with_others
                        .map(|(task_id, _)| *task_id)
                        .for_each(&mut behind);
                }
                None => {
                    let (from, has_all) = (self.reported_from, self.progress_has_all);
                    let others = snapshot
                        .with_other_times(self.places, from, has_all, MAX_OUTRANKED)
                        .await?;
                    others.into_iter().for_each(&mut behind);
                }
            }
        }
        Ok(StoredRows {
            fingerprint,
            outranked,
        })
    }
}
