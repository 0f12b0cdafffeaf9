//! Engine instances: their users, tasks and busy time.
//!
//! An engine is identified by its instance and type. It is known only through the reports of its exec tasks:
//!
//! - A task occupies its engine from its first report to its first final one. A task with the status `Unknown` occupies
//!   it until its last report. A task that has not ended occupies it for up to `longest_gap` after its last report.
//! - The engine is *busy* while at least one task occupies it, and *idle* between such times.
//! - Before the engine's first task in the period and after its last one, the time is unknown: neither busy nor idle.
//! - All times are clipped to `from`, `to` and the present.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cursor::{cursor, position, time};
use super::filter::{LARGEST_LIMIT, check_limit, check_text};
use super::reader::{QueryError, Reader};
use super::sql::{self, Statement};
use super::time::{earlier, range, rfc3339};
use super::usage::LONGEST_GAP;
use super::watermark::Watermark;
use crate::store::{Dialect, Row, Session, StoreError, Value};

/// Maximum number of users listed for an engine.
const MAX_USERS: i64 = 20;

/// Selects engines. The serialized fields must be the same for each page.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct EnginesQuery {
    /// Only this instance.
    pub(crate) engine_instance: Option<String>,
    /// Only engines of this type.
    pub(crate) engine_type: Option<String>,
    /// Only tasks of this user; others are not counted.
    pub(crate) user: Option<String>,
    /// Only engines whose tasks reported at this time or later; `None`: 24 hours before `to`.
    pub(crate) from: Option<Timestamp>,
    /// Only engines whose tasks reported before this time; `None`: now.
    pub(crate) to: Option<Timestamp>,
    /// A task that has not ended occupies its engine for at most this long after its last report; at most an hour.
    pub(crate) longest_gap: Duration,
    /// From 1 to [`LARGEST_LIMIT`].
    #[serde(skip)]
    pub(crate) limit: u32,
    /// `next` of the previous page.
    #[serde(skip)]
    pub(crate) cursor: Option<String>,
}

/// A page of a list of engines.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct EnginePage {
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) from: Timestamp,
    /// Exclusive; not in the future.
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) to: Timestamp,
    pub(crate) longest_gap_seconds: f64,
    /// Sorted by instance and type.
    pub(crate) items: Vec<EngineItem>,
    /// The cursor of the next page; null on the last page.
    pub(crate) next: Option<String>,
    pub(crate) watermark: Watermark,
    /// `consumer expire` removed the reports before this time.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expired_before: Option<Timestamp>,
}

/// An engine instance. Times are RFC 3339 in UTC, with microseconds. Counts are current.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub(crate) struct EngineItem {
    /// `HOST:PORT`.
    pub(crate) engine_instance: String,
    pub(crate) engine_type: String,
    /// The first twenty, sorted bytewise.
    pub(crate) users: Vec<String>,
    /// Number of users.
    pub(crate) user_count: i64,
    /// Number of exec tasks, ended ones included.
    pub(crate) tasks: i64,
    /// Number of exec tasks that have neither a final status nor `Unknown`.
    pub(crate) running_tasks: i64,
    /// The engine's own count, from the newest report of the task that reported last. Null if the query is limited to
    /// one user, or the report has expired.
    pub(crate) engine_running_tasks: Option<i64>,
    /// First report of its tasks.
    pub(crate) first_reported_at: String,
    /// Last report of its tasks.
    pub(crate) reported_at: String,
    /// Time during which at least one task occupied it.
    pub(crate) busy_seconds: f64,
    /// Time between its tasks during which none occupied it.
    pub(crate) idle_seconds: f64,
    /// Rest of the period, which is unknown.
    pub(crate) unknown_seconds: f64,
    /// `busy_seconds` divided by busy and idle time; null if both are 0.
    pub(crate) busy_share: Option<f64>,
}

impl EnginesQuery {
    fn check(&self) -> Result<(), QueryError> {
        check_limit(self.limit, LARGEST_LIMIT)?;
        if self.longest_gap.is_zero() || self.longest_gap > LONGEST_GAP {
            return Err(QueryError::Parameter {
                name: "longest_gap",
                why: "it must be more than 0 s and at most an hour".to_owned(),
            });
        }
        check_text("engine_instance", self.engine_instance.as_deref())?;
        check_text("engine_type", self.engine_type.as_deref())?;
        check_text("user", self.user.as_deref())
    }

    /// Conditions on `task`.
    fn filters(&self, statement: &mut Statement) -> Vec<String> {
        let filters = [
            ("engine_instance", &self.engine_instance),
            ("engine_type", &self.engine_type),
            ("engine_user", &self.user),
        ];
        let filters = filters.into_iter().filter_map(|(column, text)| {
            let text = statement.bind(text.as_deref()?);
            Some(format!("task.{column} = {text}"))
        });
        filters.collect()
    }
}

impl Reader {
    /// One page of the matching engines.
    ///
    /// # Errors
    /// If a parameter or the cursor is invalid, or the database fails.
    pub(crate) async fn engines(&mut self, query: &EnginesQuery) -> Result<EnginePage, QueryError> {
        query.check()?;
        let position: Option<Position> = position(query.cursor.as_deref(), query)?;
        let moment = match &position {
            Some(position) => time(position.moment)?,
            None => Timestamp::now(),
        };
        let (from, to) = range(query.from, query.to, moment)?;
        let to = to.min(moment);
        let asked = ResolvedQuery {
            query,
            from: from.min(to),
            to,
            after: position,
        };
        let read = asked.page(&mut *self.session).await;
        let (items, has_more) = self.answered(read, "the engines").await?;
        let last = items.last().filter(|_| has_more);
        let next = last.map(|last| {
            let position = Position {
                moment: moment.as_microsecond(),
                instance: last.engine_instance.clone(),
                engine_type: last.engine_type.clone(),
            };
            cursor(query, &position)
        });
        Ok(EnginePage {
            from: asked.from,
            to,
            longest_gap_seconds: query.longest_gap.as_secs_f64(),
            items,
            next,
            watermark: self.watermark().await?,
            expired_before: self.expired_before(),
        })
    }
}

/// A query with its times resolved.
struct ResolvedQuery<'a> {
    query: &'a EnginesQuery,
    from: Timestamp,
    to: Timestamp,
    after: Option<Position>,
}

/// The last engine of a page, kept in the cursor.
#[derive(Debug, Serialize, Deserialize)]
struct Position {
    /// When the first page was requested, in microseconds since 1970.
    moment: i64,
    instance: String,
    engine_type: String,
}

impl ResolvedQuery<'_> {
    /// The engines of the page, and whether there are more.
    async fn page(&self, session: &mut dyn Session) -> Result<(Vec<EngineItem>, bool), StoreError> {
        let mut statement = Statement::default();
        let select = self.select(session.dialect(), &mut statement);
        let rows = session.select(&select, &statement.values).await?;
        let mut items = rows.into_iter().map(item).collect::<Result<Vec<_>, _>>()?;
        let has_more = items.len() > self.query.limit as usize;
        items.truncate(self.query.limit as usize);
        if items.is_empty() {
            return Ok((items, false));
        }
        let instances: Vec<String> = items
            .iter()
            .map(|item| item.engine_instance.clone())
            .collect();
        self.add_users(session, &instances, &mut items).await?;
        self.add_times(session, &instances, &mut items).await?;
        if self.query.user.is_none() {
            self.add_own_count(session, &instances, &mut items).await?;
        }
        Ok((items, has_more))
    }

    /// SQL: when a task stops occupying its engine.
    fn until(&self, dialect: &dyn Dialect) -> String {
        format!(
            "CASE WHEN task.is_final THEN coalesce(task.ended_at, task.reported_at) WHEN task.status = 'Unknown' THEN task.reported_at ELSE {} END",
            dialect.later("task.reported_at", self.query.longest_gap)
        )
    }

    /// SQL: the matching tasks with their `started` and `until`.
    fn tasks(&self, dialect: &dyn Dialect, filters: &[String]) -> String {
        format!(
            "(SELECT task.task_id, task.engine_instance, task.engine_type, task.engine_user, task.status, task.is_final, \
             task.reported_at, coalesce(task.first_reported_at, task.reported_at) AS started, {} AS until FROM task {}) AS task",
            self.until(dialect),
            sql::clause("WHERE", filters)
        )
    }

    fn select(&self, dialect: &dyn Dialect, statement: &mut Statement) -> String {
        let mut filters = self.query.filters(statement);
        let bytewise = dialect.bytewise();
        let (instance, engine_type) = (
            format!("task.engine_instance COLLATE {bytewise}"),
            format!("task.engine_type COLLATE {bytewise}"),
        );
        if let Some(last) = &self.after {
            let last_instance = statement.bind(last.instance.as_str());
            let last_type = statement.bind(last.engine_type.as_str());
            filters.push(format!(
                "({instance} > {last_instance} OR ({instance} = {last_instance} AND {engine_type} > {last_type}))"
            ));
        }
        format!(
            "SELECT task.engine_instance, task.engine_type, count(DISTINCT task.engine_user) AS user_count, count(*) AS tasks, \
             sum(CASE WHEN NOT task.is_final AND task.status <> 'Unknown' THEN 1 ELSE 0 END) AS running_tasks, \
             {} AS first_reported_at, {} AS reported_at FROM {} GROUP BY task.engine_instance, task.engine_type \
             HAVING max(task.until) >= {} AND min(task.started) < {} ORDER BY {instance}, {engine_type} LIMIT {}",
            dialect.rfc3339("min(task.started)"),
            dialect.rfc3339("max(task.reported_at)"),
            self.tasks(dialect, &filters),
            dialect.time(self.from),
            dialect.time(self.to),
            statement.bind(i64::from(self.query.limit) + 1)
        )
    }

    /// Conditions that select the tasks of these instances.
    fn of_instances(
        &self,
        dialect: &dyn Dialect,
        instances: &[String],
        statement: &mut Statement,
    ) -> Vec<String> {
        let mut filters = self.query.filters(statement);
        let instances = statement.bind(Value::Texts(instances.to_vec()));
        filters.push(dialect.is_one_of("task.engine_instance", &instances));
        filters
    }

    async fn add_users(
        &self,
        session: &mut dyn Session,
        instances: &[String],
        items: &mut [EngineItem],
    ) -> Result<(), StoreError> {
        let dialect = session.dialect();
        let mut statement = Statement::default();
        let filters = self.of_instances(dialect, instances, &mut statement);
        let select = format!(
            "SELECT engine_instance, engine_type, engine_user FROM (SELECT engine_instance, engine_type, engine_user, \
             row_number() OVER (PARTITION BY engine_instance, engine_type ORDER BY engine_user COLLATE {}) AS nth \
             FROM (SELECT DISTINCT task.engine_instance, task.engine_type, task.engine_user FROM task {}) AS users) AS users \
             WHERE nth <= {MAX_USERS} ORDER BY nth",
            dialect.bytewise(),
            sql::clause("WHERE", &filters)
        );
        let mut users = BTreeMap::<(String, String), Vec<String>>::new();
        for mut row in session.select(&select, &statement.values).await? {
            let user = row.take("engine_user")?;
            users.entry(engine(&mut row)?).or_default().push(user);
        }
        for item in items {
            item.users = users.remove(&item.engine()).unwrap_or_default();
        }
        Ok(())
    }

    /// Adds busy and idle times: each task contributes the part of its time that no earlier task occupies.
    async fn add_times(
        &self,
        session: &mut dyn Session,
        instances: &[String],
        items: &mut [EngineItem],
    ) -> Result<(), StoreError> {
        let dialect = session.dialect();
        let mut statement = Statement::default();
        let mut filters = self.of_instances(dialect, instances, &mut statement);
        // Tasks that reported last before this time occupy nothing of the period.
        let since = earlier(self.from, self.query.longest_gap);
        filters.push(format!("task.reported_at > {}", dialect.time(since)));
        let (from, to) = (dialect.time(self.from), dialect.time(self.to));
        let fresh = dialect.greatest(&["begun", "coalesce(occupied, begun)"]);
        let select = format!(
            "SELECT engine_instance, engine_type, {} AS known_seconds, \
             sum(CASE WHEN until > {fresh} THEN {} ELSE 0 END) AS busy_seconds \
             FROM (SELECT clipped.*, max(until) OVER (PARTITION BY engine_instance, engine_type ORDER BY begun, task_id \
             ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS occupied \
             FROM (SELECT task.engine_instance, task.engine_type, task.task_id, {} AS begun, {} AS until FROM {} \
             WHERE task.until > {from} AND task.started < {to}) AS clipped) AS ordered \
             GROUP BY engine_instance, engine_type",
            dialect.seconds_between("min(begun)", "max(until)"),
            dialect.seconds_between(&fresh, "until"),
            dialect.greatest(&["task.started", &from]),
            dialect.least(&["task.until", &to]),
            self.tasks(dialect, &filters),
        );
        let mut times = BTreeMap::<(String, String), (f64, f64)>::new();
        for mut row in session.select(&select, &statement.values).await? {
            let known = row.take("known_seconds")?;
            let busy = row.take("busy_seconds")?;
            times.insert(engine(&mut row)?, (known, busy));
        }
        let whole = self.to.duration_since(self.from).as_secs_f64();
        for item in items {
            let (known, busy) = times.remove(&item.engine()).unwrap_or_default();
            item.busy_seconds = busy;
            // Rounding must not make a time negative.
            item.idle_seconds = (known - busy).max(0.0);
            item.unknown_seconds = (whole - known).max(0.0);
            item.busy_share = (known > 0.0).then(|| (busy / known).min(1.0));
        }
        Ok(())
    }

    async fn add_own_count(
        &self,
        session: &mut dyn Session,
        instances: &[String],
        items: &mut [EngineItem],
    ) -> Result<(), StoreError> {
        let dialect = session.dialect();
        let mut statement = Statement::default();
        let filters = self.of_instances(dialect, instances, &mut statement);
        let select = format!(
            "SELECT engine_instance, engine_type, engine_running_tasks FROM (SELECT latest.engine_instance, latest.engine_type, \
             m.engine_running_tasks, row_number() OVER (PARTITION BY latest.engine_instance, latest.engine_type \
             ORDER BY m.reported_at DESC, m.event_partition DESC, m.event_offset DESC) AS nth \
             FROM (SELECT task.task_id, task.engine_instance, task.engine_type, row_number() OVER \
             (PARTITION BY task.engine_instance, task.engine_type ORDER BY task.reported_at DESC, task.event_partition DESC, \
             task.event_offset DESC) AS nth FROM task {}) AS latest CROSS JOIN task_metrics AS m \
             WHERE m.task_id = latest.task_id AND latest.nth = 1) AS newest WHERE nth = 1",
            sql::clause("WHERE", &filters)
        );
        let mut counts = BTreeMap::<(String, String), i64>::new();
        for mut row in session.select(&select, &statement.values).await? {
            let count = row.take("engine_running_tasks")?;
            counts.insert(engine(&mut row)?, count);
        }
        for item in items {
            item.engine_running_tasks = counts.remove(&item.engine());
        }
        Ok(())
    }
}

impl EngineItem {
    fn engine(&self) -> (String, String) {
        (self.engine_instance.clone(), self.engine_type.clone())
    }
}

/// The engine's instance and type.
fn engine(row: &mut Row) -> Result<(String, String), StoreError> {
    Ok((row.take("engine_instance")?, row.take("engine_type")?))
}

/// An engine before users and times are added.
fn item(mut row: Row) -> Result<EngineItem, StoreError> {
    let (engine_instance, engine_type) = engine(&mut row)?;
    Ok(EngineItem {
        engine_instance,
        engine_type,
        users: Vec::new(),
        user_count: row.take("user_count")?,
        tasks: row.take("tasks")?,
        running_tasks: row.take("running_tasks")?,
        engine_running_tasks: None,
        first_reported_at: row.take("first_reported_at")?,
        reported_at: row.take("reported_at")?,
        busy_seconds: 0.0,
        idle_seconds: 0.0,
        unknown_seconds: 0.0,
        busy_share: None,
    })
}
