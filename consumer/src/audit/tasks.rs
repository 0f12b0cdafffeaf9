//! Checks that each row of `task` is that of the task's newest report.
//!
//! The row names its event and is compared with that event's row, as for any other table. Whether another report is
//! newer, and the earliest times of all reports, are looked up in `task_progress`, which was itself compared with the
//! topic.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rdkafka::Message;

use super::finding::{Correction, Fault, Finding, Findings};
use super::misnamed::MissingTask;
use super::spans::Spans;
use super::stored::{Rank, rank_of_task};
use super::times::HistoryGaps;
use super::topic::{Isolation, Topic, each_record};
use crate::row_format::{POSTGRES_EPOCH_MICROS, RowWriter};
use crate::rows::{Rows, rows};
use crate::store::{Held, Selection, Snapshot, StoreError, held};
use crate::tables::{LeastTimes, Table, TaskKey, exec_id, least_times, place, with_least_times};

/// Tasks examined at once: some tens of MiB, and one scan of their reports' offsets.
const AT_ONCE: usize = 20_000;
/// Reports per task in a query for many tasks; a task that needs more gets a query of its own.
const REPORTS: usize = 8;

type Place = (i32, i64);

/// Finds faults in the rows of these tasks, and missing rows.
///
/// # Errors
/// If the database or Kafka fails.
pub(crate) async fn resolve(
    snapshot: &mut Snapshot,
    topic: &Topic<'_>,
    spans: &Spans,
    gaps: HistoryGaps,
    suspects: BTreeSet<i64>,
    missing: Vec<MissingTask>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let faulty = Faulty::of(findings);
    let missing: BTreeMap<i64, String> = missing
        .into_iter()
        .map(|task| (task.task_id, task.exec_id))
        .collect();
    // Tasks that only have a wrong name or key are findings already.
    let renamed: BTreeSet<i64> = findings
        .found
        .iter()
        .filter_map(|finding| match finding.correction {
            Correction::Rename { task_id, .. } => Some(task_id),
            _ => None,
        })
        .collect();
    let suspects = suspects.difference(&renamed).copied();
    let suspects: Vec<i64> = suspects.chain(missing.keys().copied()).collect();
    for some in suspects.chunks(AT_ONCE) {
        let mut held = held_tasks(snapshot, some).await?;
        let named = some.iter().filter_map(|task_id| {
            let name = match held.get(task_id) {
                Some(held) => exec_id(&held.row).unwrap_or_default(),
                None => missing.get(task_id)?,
            };
            Some((*task_id, name.to_owned()))
        });
        let named: Vec<(i64, String)> = named.collect();
        let names: HashMap<i64, String> = named.iter().cloned().collect();
        let mut times = faulty.sound_times(snapshot, &named).await?;
        let places = faulty.sound_places(snapshot, named).await?;
        let named = held.values().filter_map(|held| place(&held.row));
        let all: BTreeSet<Place> = places.values().flatten().copied().chain(named).collect();
        let reports = Reports::read(topic, all)?;
        for (task_id, places) in &places {
            let mut times = times.remove(task_id).unwrap_or_default();
            reports.take_in_times(places, &mut times);
            let is_unprovable = |name| faulty.unprovable.contains_key(name);
            let gaps = match names.get(task_id).is_some_and(is_unprovable) {
                true => gaps.with_gaps(),
                false => gaps,
            };
            let finding = match (held.remove(task_id), missing.get(task_id)) {
                (Some(held), _) => wrong(held, places, &reports, spans, times, gaps),
                (None, Some(exec_id)) => {
                    let newest = reports.newest(places);
                    Some(gone(Some(*task_id), exec_id, newest, times))
                }
                (None, None) => None,
            };
            if let Some(finding) = finding {
                findings.push(finding);
            }
        }
    }
    Ok(())
}

/// The records at some places; `None` for an unreadable one.
struct Reports(HashMap<Place, Option<Report>>);

/// A report, as far as `task` is concerned.
struct Report {
    /// The task's row if this is its newest report.
    row: Vec<u8>,
    rank: Option<Rank>,
    is_expired: bool,
}

impl Report {
    fn take_in_times(&self, times: &mut LeastTimes) {
        if let Some((is_final, reported_at, ..)) = self.rank {
            times.take_in(reported_at, is_final);
        }
    }
}

impl Reports {
    fn read(topic: &Topic<'_>, places: BTreeSet<Place>) -> anyhow::Result<Self> {
        let (mut reports, mut buffer) = (HashMap::new(), Vec::new());
        each_record(topic, places, Isolation::Committed, |record| {
            let (partition, offset) = (record.partition(), record.offset());
            let decoder = &topic.schemas.decoder;
            let event = rows(decoder, record.payload(), partition, offset, &mut buffer).ok();
            let report = event.map(|event| {
                let row = task_row(&event);
                Report {
                    rank: rank_of_task(&row[2..]),
                    is_expired: topic.is_expired(&event),
                    row,
                }
            });
            reports.insert((partition, offset), report);
            Ok(())
        })?;
        Ok(Self(reports))
    }

    /// Whether there is a record, readable or not.
    fn is_record(&self, place: Place) -> bool {
        self.0.contains_key(&place)
    }

    fn at(&self, place: Place) -> Option<&Report> {
        self.0.get(&place)?.as_ref()
    }

    /// Lowers the times to those of the reports at these places.
    fn take_in_times(&self, places: &BTreeSet<Place>, times: &mut LeastTimes) {
        for report in places.iter().filter_map(|place| self.at(*place)) {
            report.take_in_times(times);
        }
    }

    fn newest(&self, places: &BTreeSet<Place>) -> Option<&Report> {
        let reports = places.iter().filter_map(|place| self.at(*place));
        reports.max_by_key(|report| report.rank)
    }
}

/// Faults in `task_progress`, by task: these rows do not show the task's newest report.
struct Faulty {
    /// Places of stored rows that the topic does not expect.
    held: BTreeMap<String, BTreeSet<Place>>,
    /// Places of events whose rows are missing or differ.
    expected: BTreeMap<String, BTreeSet<Place>>,
    /// Places of unprovable stored rows.
    unprovable: BTreeMap<String, BTreeSet<Place>>,
}

impl Faulty {
    fn of(findings: &Findings) -> Self {
        let mut faulty = Self {
            held: BTreeMap::new(),
            expected: BTreeMap::new(),
            unprovable: BTreeMap::new(),
        };
        let of_progress = findings
            .found
            .iter()
            .filter(|finding| finding.table == Table::Progress.name());
        for finding in of_progress {
            if let (Fault::Unprovable, Some(name)) = (finding.fault, &finding.exec_id) {
                let of_task = faulty.unprovable.entry(name.clone()).or_default();
                of_task.insert((finding.partition, finding.offset));
            }
            let (held, expected) = match &finding.correction {
                Correction::Insert { row, .. } => (None, Some(row)),
                Correction::Delete { row, .. } => (Some(row), None),
                Correction::Replace { held, row, .. } => (Some(held), Some(row)),
                _ => (None, None),
            };
            for (row, by_task) in [(held, &mut faulty.held), (expected, &mut faulty.expected)] {
                if let Some(row) = row
                    && let (Some(named), Some(place)) = (exec_id(row), place(row))
                {
                    by_task.entry(named.to_owned()).or_default().insert(place);
                }
            }
        }
        faulty
    }

    /// The earliest times of each task's stored reports except faulty ones, in PostgreSQL's microseconds.
    async fn sound_times(
        &self,
        snapshot: &mut Snapshot,
        tasks: &[(i64, String)],
    ) -> Result<HashMap<i64, LeastTimes>, StoreError> {
        let none = BTreeSet::new();
        let held = |name: &str| self.held.get(name).unwrap_or(&none);
        let unprovable = |name: &str| self.unprovable.get(name).unwrap_or(&none);
        let faults = |name: &str| held(name).len() + unprovable(name).len();
        let (batched, single): (Vec<_>, Vec<_>) =
            tasks.iter().partition(|(_, name)| faults(name) < REPORTS);
        let batched: Vec<i64> = batched.into_iter().map(|(task_id, _)| *task_id).collect();
        let mut earliest = snapshot.earliest_reports(&batched, REPORTS).await?;
        for (task_id, name) in single {
            let at_most = faults(name) + 1;
            earliest.extend(snapshot.earliest_reports(&[*task_id], at_most).await?);
        }
        let times = tasks.iter().map(|(task_id, name)| {
            let mut times = LeastTimes::default();
            let reports = earliest.remove(task_id).unwrap_or_default().into_iter();
            let is_sound =
                |place: &Place| !held(name).contains(place) && !unprovable(name).contains(place);
            for report in reports.filter(|report| is_sound(&report.place)) {
                let reported_at = report.reported_at.wrapping_sub(POSTGRES_EPOCH_MICROS);
                times.take_in(reported_at, report.is_final);
            }
            (*task_id, times)
        });
        Ok(times.collect())
    }

    /// Places that include that of each task's newest report.
    async fn sound_places(
        &self,
        snapshot: &mut Snapshot,
        tasks: Vec<(i64, String)>,
    ) -> Result<BTreeMap<i64, BTreeSet<Place>>, StoreError> {
        let none = BTreeSet::new();
        let faults = |name: &str| self.held.get(name).unwrap_or(&none);
        let (batched, single): (Vec<_>, Vec<_>) = tasks
            .iter()
            .partition(|(_, name)| faults(name).len() < REPORTS);
        let batched: Vec<i64> = batched.into_iter().map(|(task_id, _)| *task_id).collect();
        let mut newest = snapshot.newest_reports(&batched, REPORTS).await?;
        for (task_id, name) in single {
            let at_most = faults(name).len() + 1;
            newest.extend(snapshot.newest_reports(&[*task_id], at_most).await?);
        }
        let mut places = BTreeMap::new();
        for (task_id, name) in tasks {
            let newest = newest.remove(&task_id).unwrap_or_default();
            let held = faults(&name);
            let sound = newest.into_iter().find(|place| !held.contains(place));
            let expected = self.expected.get(&name).unwrap_or(&none);
            let of_task = expected.iter().copied().chain(sound);
            places.insert(task_id, of_task.collect());
        }
        Ok(places)
    }
}

/// Finds tasks without any trace: their own row is gone, and the rows of their histories are gone or name another task.
/// The newest report is among the events of those rows.
///
/// # Errors
/// If the database or Kafka fails.
pub(crate) async fn find_lost(
    snapshot: &mut Snapshot,
    topic: &Topic<'_>,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut places: BTreeMap<&str, BTreeSet<Place>> = BTreeMap::new();
    for finding in &findings.found {
        if let Correction::Insert { row, .. } | Correction::Replace { row, .. } =
            &finding.correction
            && let (Some(named), Some(place)) = (exec_id(row), place(row))
        {
            places.entry(named).or_default().insert(place);
        }
    }
    let of_tasks = findings
        .found
        .iter()
        .filter(|finding| finding.table == Table::Task.name());
    for known in of_tasks.filter_map(|finding| finding.exec_id.as_deref()) {
        places.remove(known);
    }
    let names: Vec<&str> = places.keys().copied().collect();
    let there = snapshot.task_ids(&names).await?;
    places.retain(|name, _| !there.contains_key(*name));
    let all = places.values().flatten().copied().collect();
    let reports = Reports::read(topic, all)?;
    let lost = places.iter().filter_map(|(name, places)| {
        let (newest, mut times) = (reports.newest(places)?, LeastTimes::default());
        reports.take_in_times(places, &mut times);
        Some(gone(None, name, Some(newest), times))
    });
    let lost: Vec<Finding> = lost.collect();
    for finding in lost {
        findings.push(finding);
    }
    Ok(())
}

fn gone(
    task_id: Option<i64>,
    exec_id: &str,
    newest: Option<&Report>,
    times: LeastTimes,
) -> Finding {
    let newest = newest.map(|newest| with_least_times(&newest.row, times));
    let (partition, offset) = newest.as_deref().and_then(place).unwrap_or((-1, -1));
    Finding {
        table: Table::Task.name(),
        fault: Fault::Missing,
        partition,
        offset,
        exec_id: Some(exec_id.to_owned()),
        part: None,
        columns: Vec::new(),
        correction: newest.map_or(Correction::None, |row| Correction::NewTask { task_id, row }),
    }
}

/// The fault of a task's row, if any. The task's newest report is at one of these places; `times` are those of its
/// history.
fn wrong(
    held: Held,
    places: &BTreeSet<Place>,
    reports: &Reports,
    spans: &Spans,
    mut times: LeastTimes,
    gaps: HistoryGaps,
) -> Option<Finding> {
    let named = place(&held.row)?;
    let name = exec_id(&held.row).map(str::to_owned);
    let span = spans.get(&(Table::Task, named.0));
    let is_record = span.is_some_and(|span| span.contains(&named.1)) && reports.is_record(named);
    let own = reports
        .at(named)
        .filter(|own| exec_id(&own.row) == name.as_deref());
    // If `consumer expire` removed the history, only this row has the task's state.
    let expired = own.filter(|own| own.is_expired);
    let newest = reports.newest(places).into_iter().chain(expired);
    let newest = newest.max_by_key(|report| report.rank);
    let (fault, columns, correction, at) = match newest.or(own.filter(|_| is_record)) {
        Some(newest) => {
            newest.take_in_times(&mut times);
            let times = gaps.expected(
                least_times(&held.row),
                times,
                newest.rank.is_some_and(|(is_final, ..)| is_final),
            );
            let row = with_least_times(&newest.row, times);
            let columns = Table::Task.differences(&row, &held.row);
            if columns.is_empty() {
                return None;
            }
            let at = place(&newest.row).unwrap_or(named);
            // Without a record, the stored row may be the right one, unless it is older.
            let state =
                |rank: Option<Rank>| rank.map(|(is_final, at, nth, ..)| (is_final, at, nth));
            match is_record || state(newest.rank) >= state(rank_of_task(&held.row[2..])) {
                true => (
                    Fault::Differing,
                    columns,
                    Correction::Task { held, row },
                    at,
                ),
                false => (Fault::Unprovable, Vec::new(), Correction::None, named),
            }
        }
        None if !is_record => (Fault::Unprovable, Vec::new(), Correction::None, named),
        None if !places.is_empty() => (Fault::Differing, Vec::new(), Correction::None, named),
        None => (Fault::Extra, Vec::new(), Correction::NoTask { held }, named),
    };
    let (partition, offset) = at;
    Some(Finding {
        table: Table::Task.name(),
        fault,
        partition,
        offset,
        exec_id: name,
        part: None,
        columns,
        correction,
    })
}

fn task_row(event: &Rows<'_>) -> Vec<u8> {
    let mut copy = RowWriter::default();
    Table::Task.write(&mut copy, event, TaskKey::ExecId);
    copy.take()
}

/// The rows of these tasks.
async fn held_tasks(
    snapshot: &mut Snapshot,
    task_ids: &[i64],
) -> Result<HashMap<i64, Held>, StoreError> {
    let mut tasks = HashMap::new();
    for some in task_ids.chunks(1_000) {
        let selection = Selection {
            task_ids: Some(some.to_vec()),
            addressed: true,
            ..Selection::of_table(Table::Task, None)
        };
        let each = |row: &[u8]| {
            if let Some(held) = held(row)
                && let Some(task_id) = held.task_id
            {
                tasks.insert(task_id, held);
            }
            true
        };
        snapshot.each(&selection, each).await?;
    }
    Ok(tasks)
}
