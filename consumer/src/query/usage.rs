//! Usage between two times: cores, memory and instances, each multiplied by the time they were held.
//!
//! Rules:
//!
//! - A report states an application's resources from its time until the next report that names the application,
//!   whichever task sends it, but for at most `longest_gap`. Later time is unknown and not counted.
//! - Usage counts for the reporting task. If several tasks report an application, it counts once at any time, for the
//!   task with the newest report.
//! - A task's first final report ends its usage. Its resources in that report or later ones do not count.
//! - Reports with the same microsecond are ordered by partition and offset of their events; the last one counts.
//! - Usage is clipped to `from`, `to` (exclusive) and the present. A report before `from` counts from `from` on.
//! - Hours and days are in UTC.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use utoipa::ToSchema;

use super::filter::{check_limit, check_text};
use super::reader::{QueryError, Reader};
use super::time::{earlier, optional_rfc3339, range, rfc3339};
use super::watermark::Watermark;
use crate::store::{Dialect, Row, Session, StoreError, Value};
use crate::tables::Kind;

/// Default for how long a report counts.
pub(crate) const DEFAULT_GAP: Duration = Duration::from_secs(5 * 60);
/// Maximum time for which a report counts.
pub(crate) const LONGEST_GAP: Duration = Duration::from_secs(60 * 60);
/// Default number of rows per period.
pub(crate) const DEFAULT_LIMIT: u32 = 100;
/// Maximum number of rows per period.
pub(crate) const MAX_LIMIT: u32 = 1_000;
/// Maximum number of periods of an answer.
const MAX_PERIODS: i64 = 1_000;
/// Maximum number of groups, over all periods.
const MAX_GROUPS: usize = 100_000;

/// Groups of usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UsageBy {
    /// The user of the task's engine.
    User,
    /// The queue named in the report.
    Queue,
    /// The type of the task's engine.
    #[value(alias = "engine_type")]
    EngineType,
    /// The task's job.
    Job,
    /// The application.
    Application,
}

/// Periods of usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UsageEvery {
    /// Hours in UTC.
    Hour,
    /// Days in UTC.
    Day,
    /// The whole time range.
    Whole,
}

/// Selects usage.
#[derive(Clone, Debug)]
pub(crate) struct UsageQuery {
    /// `None`: 24 hours before `to`.
    pub(crate) from: Option<Timestamp>,
    /// Exclusive; `None`: now.
    pub(crate) to: Option<Timestamp>,
    pub(crate) by: UsageBy,
    pub(crate) every: UsageEvery,
    /// Only tasks of this user.
    pub(crate) user: Option<String>,
    /// A report counts for at most this long; more than 0, at most an hour.
    pub(crate) longest_gap: Duration,
    /// Maximum number of rows per period, from 1 to 1,000: the keys with the most core-seconds over all periods.
    pub(crate) limit: u32,
}

/// Usage by period and key.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Usage {
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) from: Timestamp,
    /// Exclusive; not in the future.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) to: Timestamp,
    pub(crate) by: UsageBy,
    pub(crate) every: UsageEvery,
    pub(crate) longest_gap_seconds: f64,
    pub(crate) watermark: Watermark,
    /// Sorted by period, then by core-seconds, descending. Periods and keys without usage are omitted.
    pub(crate) items: Vec<UsageItem>,
    /// `consumer expire` removed the reports before this time.
    #[serde(
        serialize_with = "optional_rfc3339",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expired_before: Option<Timestamp>,
}

/// Usage of one user, queue, engine type, job or application in a period.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct UsageItem {
    /// Start of the period, clipped to the query's time range.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) from: Timestamp,
    /// Exclusive.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) to: Timestamp,
    /// The user, queue, engine type, job or application; null: all that have no row of their own.
    pub(crate) key: Option<String>,
    pub(crate) core_seconds: f64,
    pub(crate) memory_byte_seconds: f64,
    pub(crate) instance_seconds: f64,
    /// Time for which resources are known, summed over applications.
    pub(crate) application_seconds: f64,
}

impl UsageItem {
    pub(crate) fn add(&mut self, more: &Self) {
        self.core_seconds += more.core_seconds;
        self.memory_byte_seconds += more.memory_byte_seconds;
        self.instance_seconds += more.instance_seconds;
        self.application_seconds += more.application_seconds;
    }
}

impl UsageBy {
    /// The column of a task `t` or its report `r`.
    fn column(self) -> &'static str {
        match self {
            Self::User => "t.engine_user",
            Self::Queue => "r.queue",
            Self::EngineType => "t.engine_type",
            Self::Job => "t.job_id",
            Self::Application => "r.application_id",
        }
    }
}

impl UsageEvery {
    /// `None`: the whole time range.
    pub(crate) fn period(self) -> Option<Duration> {
        match self {
            Self::Hour => Some(Duration::from_secs(60 * 60)),
            Self::Day => Some(Duration::from_secs(24 * 60 * 60)),
            Self::Whole => None,
        }
    }
}

impl UsageQuery {
    fn check(&self, from: Timestamp, to: Timestamp) -> Result<(), QueryError> {
        let refused = |name, why: String| Err(QueryError::Parameter { name, why });
        if self.longest_gap.is_zero() || self.longest_gap > LONGEST_GAP {
            return refused(
                "longest_gap",
                "it must be more than 0 s and at most an hour".to_owned(),
            );
        }
        check_limit(self.limit, MAX_LIMIT)?;
        if let Some(period) = self.every.period() {
            let seconds = to.duration_since(from).as_secs();
            if seconds / period.as_secs().cast_signed() >= MAX_PERIODS {
                return refused(
                    "every",
                    format!(
                        "more than {MAX_PERIODS} periods between {from} and {to}; ask for longer periods or a shorter time range"
                    ),
                );
            }
        }
        check_text("user", self.user.as_deref())
    }
}

impl Reader {
    /// Usage between two times.
    ///
    /// # Errors
    /// [`QueryError::Parameter`], or if the database fails.
    pub(crate) async fn usage(&mut self, query: &UsageQuery) -> Result<Usage, QueryError> {
        let now = Timestamp::now();
        // The default range ends now at the latest.
        let upto = match query.from {
            Some(_) => query.to,
            None => query.to.map(|to| to.min(now)),
        };
        let (from, to) = range(query.from, upto, now)?;
        query.check(from, to)?;
        let to = to.min(now);
        let (from, expired_before) = (from.min(to), self.expired_before());
        let groups = groups(&mut *self.session, query, from, to).await;
        let groups = self.answered(groups, "the usage").await?;
        if groups.len() > MAX_GROUPS {
            return Err(QueryError::Parameter {
                name: "by",
                why: format!(
                    "more than {MAX_GROUPS} groups over all periods; ask for a shorter time range, longer periods, or by user, queue or \
                     engine_type"
                ),
            });
        }
        let watermark = self.watermark().await?;
        Ok(Usage {
            from,
            to,
            by: query.by,
            every: query.every,
            longest_gap_seconds: query.longest_gap.as_secs_f64(),
            watermark,
            items: greatest(groups, query.limit as usize),
            expired_before: expired_before
                .filter(|before| *before > earlier(from, query.longest_gap)),
        })
    }
}

/// The items of the keys with the most core-seconds, and per period the sum of the others.
fn greatest(groups: Vec<UsageItem>, limit: usize) -> Vec<UsageItem> {
    let mut totals = BTreeMap::<&Option<String>, f64>::new();
    for group in &groups {
        *totals.entry(&group.key).or_default() += group.core_seconds;
    }
    let mut keys: Vec<(&Option<String>, f64)> = totals.into_iter().collect();
    keys.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let own: BTreeSet<Option<String>> = keys
        .into_iter()
        .take(limit)
        .map(|(key, _)| key.clone())
        .collect();
    let mut others = BTreeMap::<Timestamp, UsageItem>::new();
    let mut items = Vec::new();
    for mut group in groups {
        if own.contains(&group.key) {
            items.push(group);
            continue;
        }
        group.key = None;
        others
            .entry(group.from)
            .and_modify(|sum| sum.add(&group))
            .or_insert(group);
    }
    items.extend(others.into_values());
    items.sort_by(|a, b| {
        let others_last = a.key.is_none().cmp(&b.key.is_none());
        let by_cores = b.core_seconds.total_cmp(&a.core_seconds);
        let by_period = a.from.cmp(&b.from);
        by_period
            .then(others_last)
            .then(by_cores)
            .then(a.key.cmp(&b.key))
    });
    items
}

/// Usage per group and period; at most [`MAX_GROUPS`] + 1.
async fn groups(
    session: &mut dyn Session,
    query: &UsageQuery,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<UsageItem>, StoreError> {
    let values: Vec<Value> = query.user.as_deref().map(Value::from).into_iter().collect();
    let statement = statement(session.dialect(), query, from, to);
    let rows = session.select(&statement, &values).await?;
    let item = |mut row: Row| -> Result<UsageItem, StoreError> {
        let start: Option<i64> = row.take("start")?;
        let start = start.and_then(|start| Timestamp::from_microsecond(start).ok());
        let end = start.zip(query.every.period()).and_then(|(start, period)| {
            let period = SignedDuration::try_from(period).ok()?;
            start.checked_add(period).ok()
        });
        Ok(UsageItem {
            from: start.map_or(from, |start| start.max(from)),
            to: end.map_or(to, |end| end.min(to)),
            key: Some(row.take("group_key")?),
            core_seconds: row.take("core_seconds")?,
            memory_byte_seconds: row.take("memory_byte_seconds")?,
            instance_seconds: row.take("instance_seconds")?,
            application_seconds: row.take("application_seconds")?,
        })
    };
    rows.into_iter().map(item).collect()
}

/// SQL: orders each application's reports, computes how long each one holds, splits that into periods, and sums it up.
///
/// The histories have no index on time: `task` narrows down the tasks that may have reports in the range.
fn statement(dialect: &dyn Dialect, query: &UsageQuery, from: Timestamp, to: Timestamp) -> String {
    let key = query.by.column();
    let bytewise = dialect.bytewise();
    let (since, from_time, to_time) = (
        dialect.time(earlier(from, query.longest_gap)),
        dialect.time(from),
        dialect.time(to),
    );
    let user = match query.user {
        Some(_) => "WHERE engine_user = $1",
        None => "",
    };
    let tasks = format!(
        "SELECT task_id, job_id, engine_type, engine_user, \
         CASE WHEN is_final THEN coalesce(ended_at, reported_at) ELSE {to_time} END AS ended_at \
         FROM task WHERE reported_at > {since} AND coalesce(first_reported_at < {to_time}, true)"
    );
    let reports = format!(
        "SELECT {key} AS group_key, t.engine_user, r.memory_bytes, r.cores, r.instances, r.reported_at AS at, t.ended_at, \
         coalesce(lead(r.reported_at) OVER (PARTITION BY r.application_id COLLATE {bytewise} \
         ORDER BY r.reported_at, r.event_partition, r.event_offset), {to_time}) AS next_at \
         FROM t JOIN task_resource r ON r.task_id = t.task_id \
         WHERE r.reported_at > {since} AND r.reported_at < {to_time} AND r.reported_at < t.ended_at"
    );
    let begun = dialect.greatest(&["at", &from_time]);
    let until = dialect.least(&[
        "next_at",
        "ended_at",
        &to_time,
        &dialect.later("at", query.longest_gap),
    ]);
    let held = format!(
        "SELECT group_key, memory_bytes, cores, instances, {begun} AS begun, {until} AS until FROM ({reports}) AS reports {user}"
    );
    // A report holds for at most an hour, so it spans at most two periods.
    let parts = match query.every.period() {
        None => format!(
            "SELECT group_key, memory_bytes, cores, instances, {} AS start, {} AS seconds FROM ({held}) AS held \
             WHERE until > begun",
            dialect.cast("NULL", Kind::I64),
            dialect.seconds_between("begun", "until")
        ),
        Some(period) => {
            let start = dialect.period_start("begun", period);
            let next = dialect.later("start", period);
            let first = dialect.seconds_between("begun", &dialect.least(&["until", "next"]));
            let second = dialect.seconds_between("next", "until");
            format!(
                "SELECT group_key, memory_bytes, cores, instances, CASE part WHEN 0 THEN {} ELSE {} END AS start, \
                 CASE part WHEN 0 THEN {first} ELSE {second} END AS seconds \
                 FROM (SELECT started.*, {next} AS next FROM (SELECT held.*, {start} AS start FROM ({held}) AS held \
                 WHERE until > begun) AS started) AS split \
                 JOIN (SELECT 0 AS part UNION ALL SELECT 1) AS parts ON part = 0 OR until > next",
                dialect.epoch_micros("start"),
                dialect.epoch_micros("next")
            )
        }
    };
    let sum = |column: &str| format!("sum({} * seconds)", dialect.cast(column, Kind::F64));
    format!(
        "WITH t AS ({tasks}) SELECT group_key, start, {} AS core_seconds, {} AS memory_byte_seconds, {} AS instance_seconds, \
         sum(seconds) AS application_seconds FROM ({parts}) AS used GROUP BY group_key, start LIMIT {}",
        sum("cores"),
        sum("memory_bytes"),
        sum("instances"),
        MAX_GROUPS + 1
    )
}
