//! Finds one page of a list of tasks: filter, order, position.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Number;

use super::cursor::{altered, cursor, reported};
use super::filter::{LARGEST_LIMIT, TaskOrder, TaskQuery};
use super::item::{TaskItem, item, items_of_page};
use super::marks::Judge;
use super::reader::QueryError;
use super::sql::{self, Statement};
use crate::store::{Dialect, Row, Session, StoreError, Value};
use crate::tables::Kind;

/// The last task of a page, kept in the cursor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Position {
    /// Time of the first page, in microseconds since 1970. All pages judge silence, stalling and running times as of
    /// it.
    #[serde(rename = "m")]
    pub(super) moment: i64,
    /// The last task's sort key; `None` if it has none.
    #[serde(rename = "k")]
    key: Option<Number>,
    #[serde(rename = "e")]
    exec_id: String,
}

/// SQL: the relation that a list selects from, and the conditions.
pub(super) struct Matching {
    pub(super) tasks: String,
    pub(super) conditions: Vec<String>,
}

impl Matching {
    pub(super) fn of(
        query: &TaskQuery,
        moment: Timestamp,
        dialect: &dyn Dialect,
        statement: &mut Statement,
    ) -> Self {
        let filter = &query.filter;
        let mut conditions = filter.conditions(statement, dialect);
        let judge = Judge::of(query, moment);
        if filter.silent {
            conditions.push(judge.silent(dialect));
        }
        if filter.stalled {
            conditions.push(judge.stalled(dialect));
        }
        Self {
            tasks: sql::tasks(dialect, query.at),
            conditions,
        }
    }
}

/// A list of tasks being read.
pub(super) struct List<'a> {
    pub(super) query: &'a TaskQuery,
    pub(super) moment: Timestamp,
    pub(super) dialect: &'static dyn Dialect,
}

pub(super) enum Failed {
    Query(QueryError),
    Store(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Ends a subquery that the databases must not inline, because its key reads each task's history.
const NOT_INLINED: &str = "LIMIT 9223372036854775807";

impl List<'_> {
    /// The tasks of a page, and the cursor of the next one. Tasks with a sort key come first, then the others. Reads
    /// one task more to see whether there is a next page.
    pub(super) async fn read(
        &self,
        session: &mut dyn Session,
        position: Option<Position>,
        limit: Option<u32>,
        skip: u32,
    ) -> Result<(Vec<TaskItem>, Option<String>), Failed> {
        let wanted = limit.map_or(i64::MAX, |limit| i64::from(limit) + 1);
        let lacks = |rows: &Vec<Row>| wanted.saturating_sub_unsigned(rows.len() as u64);
        let (mut rows, mut behind) = (Vec::new(), None);
        match position {
            Some(Position {
                key: None, exec_id, ..
            }) => behind = Some(exec_id),
            position => {
                let mut statement = Statement::default();
                let chosen = self
                    .with_key(session, position, wanted, skip, &mut statement)
                    .await?;
                rows = self.items(session, &chosen, &statement).await?;
            }
        }
        // Numbered pages include the tasks without a key.
        if skip == 0 && lacks(&rows) > 0 {
            let mut statement = Statement::default();
            let more = self.without_key(behind, lacks(&rows), &mut statement);
            if let Some(more) = more {
                rows.extend(self.items(session, &more, &statement).await?);
            }
        }
        let is_last = lacks(&rows) > 0;
        if !is_last {
            rows.pop();
        }
        let judge = Judge::of(self.query, self.moment);
        let (mut items, mut last_key) = (Vec::with_capacity(rows.len()), None);
        for mut row in rows {
            items.push(item(&mut row, &judge)?);
            last_key = match self.query.order {
                TaskOrder::Progress => {
                    let progress: Option<f64> = row.take("cursor_key")?;
                    progress.and_then(Number::from_f64)
                }
                _ => row.take::<Option<i64>>("cursor_key")?.map(Number::from),
            };
        }
        let last = items.last().filter(|_| !is_last);
        let next = last.map(|last| {
            let position = Position {
                moment: self.moment.as_microsecond(),
                key: last_key,
                exec_id: last.exec_id.clone(),
            };
            cursor(self.query, &position)
        });
        Ok((items, next))
    }

    /// SQL: the tasks after a position that have a sort key. A list of now selects ended and other tasks separately: an
    /// index orders ended tasks by start and last report, and the others are few.
    async fn with_key(
        &self,
        session: &mut dyn Session,
        position: Option<Position>,
        limit: i64,
        skip: u32,
        statement: &mut Statement,
    ) -> Result<String, Failed> {
        let query = self.query;
        let matching = Matching::of(query, self.moment, self.dialect, statement);
        let behind = match position {
            Some(Position {
                key: Some(key),
                exec_id,
                ..
            }) => {
                let value = self.value(&key, statement).map_err(Failed::Query)?;
                Some((value, statement.bind(exec_id)))
            }
            _ => None,
        };
        let apart: &[Option<bool>] = match (query.at, query.filter.ended()) {
            (Some(_), _) => &[None],
            (None, None) => &[Some(false), Some(true)],
            (None, Some(false)) => &[Some(false)],
            (None, Some(true)) => &[Some(true)],
        };
        let of_branch = limit.saturating_add(skip.into());
        let mut branches = Vec::new();
        for ended in apart {
            let Some(mut key) = self.key(*ended) else {
                continue;
            };
            let mut conditions = matching.conditions.clone();
            conditions.extend(ended.map(|ended| match ended {
                // It is the first column of the index by start.
                true if query.order == TaskOrder::Started => self.dialect.is_true("task.is_final"),
                true => "task.is_final".to_owned(),
                false => "NOT task.is_final".to_owned(),
            }));
            let names = self.names();
            let mut from = format!("SELECT {names}, {key} AS order_key FROM {}", matching.tasks);
            if let TaskOrder::Memory | TaskOrder::Cores = query.order {
                let inner = sql::clause("WHERE", &std::mem::take(&mut conditions));
                from = format!(
                    "SELECT {names}, task.order_key FROM ({from} {inner} {NOT_INLINED}) AS task"
                );
                "task.order_key".clone_into(&mut key);
            }
            conditions.push(format!("{key} IS NOT NULL"));
            if let Some((value, exec_id)) = &behind {
                let beyond = if query.descending { "<" } else { ">" };
                let bytewise = self.dialect.bytewise();
                conditions.push(format!(
                    "{key} {beyond}= {value} AND ({key} {beyond} {value} OR task.exec_id COLLATE {bytewise} > {exec_id})"
                ));
            }
            let is_indexed = matches!(query.order, TaskOrder::Started | TaskOrder::Reported);
            let is_limited = of_branch < i64::MAX;
            let picks_last = is_indexed && is_limited && !self.dialect.sorts_by_prefix();
            if *ended == Some(true) && picks_last {
                let from = format!("{} {}", matching.tasks, sql::clause("WHERE", &conditions));
                let last = self.last_key(session, &key, &from, of_branch, statement);
                conditions.extend(last.await?);
            }
            branches.push(format!(
                "{from} {} ORDER BY {} LIMIT {of_branch}",
                sql::clause("WHERE", &conditions),
                self.order()
            ));
        }
        if skip > 0 {
            branches.extend(self.without_key(None, of_branch, statement));
        }
        let each = branches.iter().enumerate();
        let each: Vec<_> = each
            .map(|(i, branch)| format!("SELECT * FROM ({branch}) AS branch_{i}"))
            .collect();
        Ok(match each.as_slice() {
            // No ended task has a key.
            [] => format!(
                "SELECT {}, {} AS order_key FROM task WHERE false",
                self.names(),
                self.dialect.cast("NULL", Kind::I64)
            ),
            each => format!(
                "SELECT * FROM ({}) AS task ORDER BY order_key IS NULL, {} LIMIT {limit} OFFSET {skip}",
                each.join(" UNION ALL "),
                self.order()
            ),
        })
    }

    /// The condition that a task's key is at most the key of the last task of so many: for a database that would sort all
    /// tasks where an index has only the first of two columns to order by. `None` if there are fewer tasks.
    async fn last_key(
        &self,
        session: &mut dyn Session,
        key: &str,
        from: &str,
        tasks: i64,
        statement: &Statement,
    ) -> Result<Option<String>, StoreError> {
        let (direction, within) = match self.query.descending {
            true => ("DESC", ">="),
            false => ("ASC", "<="),
        };
        let select = format!(
            "SELECT {key} AS order_key FROM {from} ORDER BY order_key {direction} LIMIT 1 OFFSET {}",
            tasks - 1
        );
        let last = session.select_one(&select, &statement.values).await?;
        let last: Option<i64> = last.map(|mut row| row.take("order_key")).transpose()?;
        Ok(last.map(|last| format!("{key} {within} {}", self.dialect.time_of(last))))
    }

    /// SQL: the tasks after a position that have no sort key; `None` if every task has one.
    fn without_key(
        &self,
        behind: Option<String>,
        limit: i64,
        statement: &mut Statement,
    ) -> Option<String> {
        let nothing = match self.query.order {
            TaskOrder::Reported => return None,
            TaskOrder::Duration => self
                .dialect
                .interval("task.first_reported_at", "task.ended_at"),
            TaskOrder::Started => "task.first_reported_at".to_owned(),
            TaskOrder::Progress => "task.progress".to_owned(),
            TaskOrder::Memory | TaskOrder::Cores => self.dialect.cast("NULL", Kind::I64),
        };
        let mut matching = Matching::of(self.query, self.moment, self.dialect, statement);
        let key = self.key(None)?;
        matching.conditions.push(format!("{key} IS NULL"));
        let name = format!("task.exec_id COLLATE {}", self.dialect.bytewise());
        if let Some(exec_id) = behind {
            let exec_id = statement.bind(exec_id);
            matching.conditions.push(format!("{name} > {exec_id}"));
        }
        Some(format!(
            "SELECT {}, {nothing} AS order_key FROM {} {} ORDER BY {name} LIMIT {limit}",
            self.names(),
            matching.tasks,
            sql::clause("WHERE", &matching.conditions),
        ))
    }

    /// SQL: the sort key of ended tasks, of other tasks, or (`None`) of all. Returns `None` if no such task has one.
    fn key(&self, ended: Option<bool>) -> Option<String> {
        let interval = |to: &str| self.dialect.interval("task.first_reported_at", to);
        let held =
            |column| (ended != Some(true)).then(|| sql::held(self.dialect, column, self.query.at));
        Some(match (self.query.order, ended) {
            (TaskOrder::Started, _) => "task.first_reported_at".to_owned(),
            // For ended tasks, an index has this column.
            (TaskOrder::Reported, Some(true)) => "task.final_reported_at".to_owned(),
            (TaskOrder::Reported, _) => "task.reported_at".to_owned(),
            (TaskOrder::Duration, Some(true)) => interval("task.ended_at"),
            (TaskOrder::Duration, Some(false)) => format!(
                "CASE WHEN task.status = 'Unknown' THEN {} ELSE {} END",
                interval("task.reported_at"),
                interval(&self.dialect.time(self.moment)),
            ),
            (TaskOrder::Duration, None) => format!(
                "CASE WHEN task.is_final THEN {} ELSE {} END",
                self.key(Some(true))?,
                self.key(Some(false))?,
            ),
            (TaskOrder::Progress, _) => "task.progress".to_owned(),
            (TaskOrder::Memory, _) => held("memory_bytes")?,
            (TaskOrder::Cores, _) => held("cores")?,
        })
    }

    /// SQL: a key of a cursor, for comparison.
    fn value(&self, key: &Number, statement: &mut Statement) -> Result<String, QueryError> {
        let whole = || key.as_i64().ok_or_else(altered);
        Ok(match self.query.order {
            TaskOrder::Started | TaskOrder::Reported => self.dialect.time_of(reported(whole()?)?),
            TaskOrder::Duration => self.dialect.interval_of(whole()?),
            TaskOrder::Progress => statement.bind(key.as_f64().ok_or_else(altered)?),
            TaskOrder::Memory | TaskOrder::Cores => statement.bind(whole()?),
        })
    }

    /// SQL: the order of tasks that have a key. Nulls come where the indexes have them, so that an index can serve it.
    fn order(&self) -> String {
        let direction = if self.query.descending { "DESC" } else { "ASC" };
        let bytewise = self.dialect.bytewise();
        format!("order_key {direction}, exec_id COLLATE {bytewise}")
    }

    /// SQL: the columns of the chosen tasks: of all that [items](Self::items) need, or of the key.
    fn names(&self) -> String {
        match self.dialect.materialized() {
            Some(_) => sql::task_names(),
            None => "task.task_id, task.exec_id".to_owned(),
        }
    }

    /// The items of the chosen tasks, in order.
    async fn items(
        &self,
        session: &mut dyn Session,
        chosen: &str,
        statement: &Statement,
    ) -> Result<Vec<Row>, StoreError> {
        if self.dialect.materialized().is_some() {
            let items = self.select_items(chosen);
            return session.select(&items, &statement.values).await;
        }
        // Chosen first, because the items use the page several times.
        let mut keys = Vec::new();
        for mut row in session.select(chosen, &statement.values).await? {
            keys.push((row.take("task_id")?, row.take::<Value>("order_key")?));
        }
        let is_chosen = self.dialect.is_one_of("task.task_id", "$1");
        let items = self.select_items(&format!(
            "SELECT {}, {} AS order_key FROM {} WHERE {is_chosen}",
            sql::task_names(),
            self.dialect.cast("NULL", Kind::I64),
            sql::tasks_of(self.dialect, self.query.at, &is_chosen),
        ));
        let mut rows = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LARGEST_LIMIT as usize) {
            let task_ids = keys.iter().map(|(task_id, _)| *task_id).collect();
            let mut found = HashMap::with_capacity(keys.len());
            for mut row in session.select(&items, &[Value::Integers(task_ids)]).await? {
                found.insert(row.take::<i64>("task_id")?, row);
            }
            for (task_id, key) in keys {
                // A page must not look shorter, and so like the last one, than what was chosen for it.
                let mut row = found.remove(task_id).ok_or_else(|| {
                    let why =
                        format!("task_id {task_id} was chosen for a list, and its row is missing");
                    StoreError::Exit(why)
                })?;
                row.put("cursor_key", key.clone());
                rows.push(row);
            }
        }
        Ok(rows)
    }

    /// SQL: the [items](items_of_page) of the chosen tasks, in order, with the sort key as a number.
    fn select_items(&self, chosen: &str) -> String {
        let key = match self.query.order {
            TaskOrder::Started | TaskOrder::Reported => self.dialect.epoch_micros("task.order_key"),
            TaskOrder::Duration => self.dialect.interval_micros("task.order_key"),
            _ => "task.order_key".to_owned(),
        };
        let judge = Judge::of(self.query, self.moment);
        let key = format!(", {key} AS cursor_key");
        let page = items_of_page(chosen, &judge, self.dialect, &key);
        format!("{page} ORDER BY order_key IS NULL, {}", self.order())
    }
}
