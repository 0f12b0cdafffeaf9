//! Finds the tasks whose row in `task` changed since the last poll.
//!
//! `task` has no index on its event columns, because every report would update it. Instead, each poll reads the tasks
//! that have not ended, which are few, and compares them with the previous poll. A task that is no longer among them
//! has ended.
//!
//! Two kinds remain. Tasks that began and ended between two polls are found by their keys, which are above the highest
//! key of a minute ago. Ended tasks whose end changed are found by a periodic sweep over all ended tasks: late, but
//! never missed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;

use super::reader::{QueryError, Reader};
use super::sql;
use super::watermark::Watermark;
use crate::store::{Row, Session, StoreError, Value};

/// Upper bound for a transaction that stores events: a key may become visible this long after it was assigned.
const KEYS_SETTLE: Duration = Duration::from_secs(60);
/// Minimum interval between sweeps over all ended tasks.
const SWEEP: Duration = Duration::from_secs(30);
/// A sweep pauses for at least this multiple of its own duration.
const SWEEP_SHARE: u32 = 100;

/// Tasks read by one statement.
const AT_ONCE: usize = 1_000;

/// A task that changed, with the current values of its row.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct ChangedTask {
    pub(crate) exec_id: String,
    pub(crate) job_id: String,
    pub(crate) engine_instance: String,
    pub(crate) engine_type: String,
    pub(crate) engine_user: String,
    pub(crate) ticket_id: String,
    pub(crate) status: String,
    /// 0 to 1, from the newest report; null if the engine did not report it.
    pub(crate) progress: Option<f64>,
    /// Time of the task's first report. Times are RFC 3339 in UTC, with microseconds.
    pub(crate) started_at: Option<String>,
    /// Null while the task has not ended.
    pub(crate) ended_at: Option<String>,
    pub(crate) reported_at: String,
    pub(crate) sequence: i64,
    pub(crate) event_partition: i32,
    pub(crate) event_offset: i64,
    #[serde(skip)]
    pub(crate) is_final: bool,
}

/// A task that changed, its previous status and its previous owner.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) task_id: i64,
    pub(crate) item: ChangedTask,
    /// `item` as JSON.
    pub(crate) json: Box<str>,
    pub(crate) previous_status: PreviousStatus,
    /// The previous values, if they are known and differ.
    pub(crate) previous_ownership: Option<Ownership>,
    /// The task's event was stored before the previous poll's watermark.
    pub(crate) is_late: bool,
}

/// Columns that decide who may see a task and which filters match it. A later report may change them, for example when
/// another engine takes the task over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ownership<T = String> {
    pub(crate) engine_user: T,
    pub(crate) engine_type: T,
    pub(crate) engine_instance: T,
    pub(crate) job_id: T,
}

impl ChangedTask {
    pub(crate) fn ownership(&self) -> Ownership<&str> {
        Ownership {
            engine_user: &self.engine_user,
            engine_type: &self.engine_type,
            engine_instance: &self.engine_instance,
            job_id: &self.job_id,
        }
    }
}

impl<T> Ownership<T> {
    pub(crate) fn map<U>(self, each: impl Fn(T) -> U) -> Ownership<U> {
        Ownership {
            engine_user: each(self.engine_user),
            engine_type: each(self.engine_type),
            engine_instance: each(self.engine_instance),
            job_id: each(self.job_id),
        }
    }
}

impl Ownership {
    pub(crate) fn as_ref(&self) -> Ownership<&str> {
        Ownership {
            engine_user: &self.engine_user,
            engine_type: &self.engine_type,
            engine_instance: &self.engine_instance,
            job_id: &self.job_id,
        }
    }
}

/// A task's status before the change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PreviousStatus {
    /// The task did not exist.
    NoTask,
    /// The task had this status, which was not final.
    Known(String),
    Unknown,
}

/// Result of a poll.
#[derive(Debug)]
pub(crate) enum Changes {
    /// All changes up to this watermark: late ones first, then by partition and offset of their events.
    All(Vec<Change>, Watermark),
    /// There are more changes than the limit, or the stored offsets went backwards. Start a new [`Tracker`].
    Unknown,
}

/// Partition and offset of an event.
type EventPosition = (i32, i64);

/// State carried from one poll to the next.
#[derive(Debug)]
pub(crate) struct Tracker {
    upto: Watermark,
    /// Tasks that had not ended, with their newest event and status.
    open: HashMap<i64, (EventPosition, String)>,
    /// Last values of the tasks that were returned as changed and had not ended.
    ownership: HashMap<i64, Ownership>,
    /// Highest key at each recent poll, oldest first.
    highest: VecDeque<(Instant, i64)>,
    swept: Watermark,
    /// When the next sweep is due.
    sweep_at: Instant,
    /// Newest events of the ended tasks that were returned since the last sweep.
    returned: HashMap<i64, EventPosition>,
}

/// The row of a task that has not ended.
struct Open {
    task_id: i64,
    position: EventPosition,
    status: String,
}

/// A task that changed and has to be read.
struct Found {
    task_id: i64,
    previous_status: PreviousStatus,
}

impl Tracker {
    pub(crate) fn upto(&self) -> &Watermark {
        &self.upto
    }

    /// Compares the tasks that have not ended with those of the previous poll, and keeps them for the next one. Returns
    /// the tasks that changed and those that are gone.
    fn compare(&mut self, open: Vec<Open>) -> Vec<Found> {
        let mut found = Vec::new();
        let mut before = std::mem::take(&mut self.open);
        self.open.reserve(open.len());
        for Open {
            task_id,
            position,
            status,
        } in open
        {
            let (partition, offset) = position;
            let known = before.remove(&task_id);
            let is_same = known.as_ref().is_some_and(|(known, _)| *known == position);
            // The same event counts again if it is not before the watermark: another part of it may have been stored
            // since.
            if !is_same || offset >= self.upto.next_offset(partition) {
                let previous_status = known.map_or(PreviousStatus::NoTask, |(_, status)| {
                    PreviousStatus::Known(status)
                });
                found.push(Found {
                    task_id,
                    previous_status,
                });
            }
            self.open.insert(task_id, (position, status));
        }
        let ended = before.into_iter();
        found.extend(ended.map(|(task_id, (_, status))| Found {
            task_id,
            previous_status: PreviousStatus::Known(status),
        }));
        found
    }

    /// Tasks with higher keys may not have been visible at the previous poll.
    fn settled_key(&mut self, now: Instant) -> i64 {
        while let Some((at, _)) = self.highest.get(1)
            && now.saturating_duration_since(*at) >= KEYS_SETTLE
        {
            self.highest.pop_front();
        }
        self.highest.front().map_or(0, |(_, key)| *key)
    }
}

impl Reader {
    /// Starts to track changes from this snapshot on.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn track(&mut self) -> Result<Tracker, QueryError> {
        let upto = self.watermark().await?;
        let now = Instant::now();
        let mut tracker = Tracker {
            upto: upto.clone(),
            open: HashMap::new(),
            ownership: HashMap::new(),
            highest: VecDeque::new(),
            swept: upto,
            sweep_at: now + SWEEP,
            returned: HashMap::new(),
        };
        let session = self.session();
        let read = async {
            tracker
                .highest
                .push_back((now, highest_key(session).await?));
            let open = open_tasks(session).await?;
            tracker.open = open
                .into_iter()
                .map(|row| (row.task_id, (row.position, row.status)))
                .collect();
            Ok(())
        };
        let read: Result<(), StoreError> = read.await;
        self.answered(read, "the tasks that have not ended").await?;
        Ok(tracker)
    }

    /// Changes between the previous call and this snapshot; [`Changes::Unknown`] if there are more than `limit`. After
    /// an error, discard the tracker and start a new one.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn changes(
        &mut self,
        tracker: &mut Tracker,
        limit: usize,
    ) -> Result<Changes, QueryError> {
        let upto = self.watermark().await?;
        let now = Instant::now();
        let is_sweep = now >= tracker.sweep_at && upto != tracker.swept;
        if upto == tracker.upto && !is_sweep {
            return Ok(Changes::All(Vec::new(), upto));
        }
        if !upto.covers(&tracker.upto) {
            return Ok(Changes::Unknown);
        }
        let session = self.session();
        let found = async {
            let found = find(session, tracker, now, is_sweep, limit).await?;
            match found.len() > limit {
                true => Ok(None),
                false => read(session, found).await.map(Some),
            }
        };
        let found = found.await;
        let found = self.answered(found, "the changes of tasks").await?;
        let from = std::mem::replace(&mut tracker.upto, upto.clone());
        if is_sweep {
            tracker.swept = upto.clone();
        }
        let Some(mut changes) = found else {
            return Ok(Changes::Unknown);
        };
        for change in &mut changes {
            let (partition, offset) = (change.item.event_partition, change.item.event_offset);
            change.is_late = offset < from.next_offset(partition);
            let ownership = change.item.ownership().map(str::to_owned);
            let known = match change.item.is_final {
                true => tracker.ownership.remove(&change.task_id),
                false => tracker.ownership.insert(change.task_id, ownership.clone()),
            };
            change.previous_ownership = known.filter(|known| *known != ownership);
            if change.item.is_final {
                tracker.returned.insert(change.task_id, (partition, offset));
            }
        }
        changes.sort_unstable_by_key(|change| {
            (
                !change.is_late,
                change.item.event_partition,
                change.item.event_offset,
            )
        });
        Ok(Changes::All(changes, upto))
    }
}

async fn find(
    session: &mut dyn Session,
    tracker: &mut Tracker,
    now: Instant,
    is_sweep: bool,
    limit: usize,
) -> Result<Vec<Found>, StoreError> {
    let highest = highest_key(session).await?;
    let mut found = tracker.compare(open_tasks(session).await?);
    let mut known: HashSet<i64> = found.iter().map(|found| found.task_id).collect();
    let mut add = |task_id| {
        if known.insert(task_id) {
            found.push(Found {
                task_id,
                previous_status: PreviousStatus::Unknown,
            });
        }
    };
    let settled = tracker.settled_key(now);
    for (task_id, _) in ended_tasks(session, &tracker.upto, Some(settled), limit).await? {
        add(task_id);
    }
    if is_sweep {
        let returned = std::mem::take(&mut tracker.returned);
        // The limit allows for tasks that were already returned, so exceeding it means too many new ones.
        let ended = ended_tasks(session, &tracker.swept, None, limit + returned.len()).await?;
        let missed = ended
            .into_iter()
            .filter(|(task_id, position)| returned.get(task_id) != Some(position));
        missed.for_each(|(task_id, _)| add(task_id));
        tracker.sweep_at = Instant::now() + SWEEP.max(now.elapsed() * SWEEP_SHARE);
    }
    tracker.highest.push_back((now, highest));
    Ok(found)
}

/// Reads the rows of these tasks. A task that expired meanwhile has none.
async fn read(session: &mut dyn Session, found: Vec<Found>) -> Result<Vec<Change>, StoreError> {
    let dialect = session.dialect();
    let select = format!(
        "SELECT {}, {} AS started_at, {} AS ended_at, CASE WHEN task.is_final THEN 1 ELSE 0 END AS ended FROM task WHERE {}",
        sql::task_columns(dialect),
        dialect.rfc3339("task.first_reported_at"),
        dialect.rfc3339("task.ended_at"),
        dialect.is_one_of("task.task_id", "$1")
    );
    let mut previous: HashMap<i64, PreviousStatus> = found
        .into_iter()
        .map(|found| (found.task_id, found.previous_status))
        .collect();
    let keys: Vec<i64> = previous.keys().copied().collect();
    let mut changes = Vec::with_capacity(keys.len());
    for keys in keys.chunks(AT_ONCE) {
        for mut row in session
            .select(&select, &[Value::Integers(keys.to_vec())])
            .await?
        {
            let task_id = row.take("task_id")?;
            let item = ChangedTask::try_from(&mut row)?;
            changes.push(Change {
                task_id,
                json: serde_json::to_string(&item)?.into(),
                previous_status: previous.remove(&task_id).unwrap_or(PreviousStatus::Unknown),
                previous_ownership: None,
                is_late: false,
                item,
            });
        }
    }
    Ok(changes)
}

impl TryFrom<&mut Row> for ChangedTask {
    type Error = StoreError;

    fn try_from(row: &mut Row) -> Result<Self, StoreError> {
        Ok(Self {
            exec_id: row.take("exec_id")?,
            job_id: row.take("job_id")?,
            engine_instance: row.take("engine_instance")?,
            engine_type: row.take("engine_type")?,
            engine_user: row.take("engine_user")?,
            ticket_id: row.take("ticket_id")?,
            status: row.take("status")?,
            progress: row.take("progress")?,
            started_at: row.take("started_at")?,
            ended_at: row.take("ended_at")?,
            reported_at: row.take("reported_at")?,
            sequence: row.take("sequence")?,
            event_partition: row.take("event_partition")?,
            event_offset: row.take("event_offset")?,
            is_final: row.take::<i64>("ended")? == 1,
        })
    }
}

async fn highest_key(session: &mut dyn Session) -> Result<i64, StoreError> {
    let select = "SELECT coalesce(max(task_id), 0) AS highest FROM task";
    let row = session.select_one(select, &[]).await?;
    row.map_or(Ok(0), |mut row| row.take("highest"))
}

async fn open_tasks(session: &mut dyn Session) -> Result<Vec<Open>, StoreError> {
    let select =
        "SELECT task_id, event_partition, event_offset, status FROM task WHERE NOT is_final";
    let rows = session.select(select, &[]).await?.into_iter();
    rows.map(|mut row| {
        Ok(Open {
            task_id: row.take("task_id")?,
            position: (row.take("event_partition")?, row.take("event_offset")?),
            status: row.take("status")?,
        })
    })
    .collect()
}

/// Keys and newest events of ended tasks whose event is not before the watermark and whose key is above `above`.
/// Returns at most one more than the limit.
async fn ended_tasks(
    session: &mut dyn Session,
    since: &Watermark,
    above: Option<i64>,
    limit: usize,
) -> Result<Vec<(i64, EventPosition)>, StoreError> {
    let mut values: Vec<Value> = vec![(limit as i64 + 1).into()];
    let mut behind = String::from("0");
    if !since.0.is_empty() {
        behind = String::from("CASE event_partition");
        for (partition, next) in &since.0 {
            values.extend([(*partition).into(), (*next).into()]);
            let _ = write!(behind, " WHEN ${} THEN ${}", values.len() - 1, values.len());
        }
        behind += " ELSE 0 END";
    }
    let mut select = format!(
        "SELECT task_id, event_partition, event_offset FROM task WHERE is_final AND event_offset >= {behind}"
    );
    if let Some(above) = above {
        values.push(above.into());
        let _ = write!(select, " AND task_id > ${}", values.len());
    }
    select += " LIMIT $1";
    let rows = session.select(&select, &values).await?.into_iter();
    rows.map(|mut row| {
        let position = (row.take("event_partition")?, row.take("event_offset")?);
        Ok((row.take("task_id")?, position))
    })
    .collect()
}
