//! Removes old history in short steps, while others write.
//!
//! There is no index on time: it would cost the consumer an update per row. So the tables are walked once from end to
//! end, one bounded piece per transaction, by pages or by a key, as [`Walk`] says. A removing transaction never waits
//! for a consumer's lock while it holds one itself, so the two cannot deadlock. (In MySQL, one that removes history may wait
//! for a row that a consumer is inserting behind it. The consumer does not wait for rows of a history, so that is no deadlock
//! either.)
//!
//! - Only a repair locks rows of the histories.
//! - A consumer locks the tasks of its events until its transaction ends, including tasks whose row it leaves
//!   unchanged. Expiry skips locked tasks. It locks any other task first and only then checks for history: it sees what
//!   a consumer has inserted by then, and a later consumer waits and creates the task again.
//! - Both find a task to lock by its name. MySQL locks the entry of the index first, then the row; whoever had locked the
//!   row first would wait for the entry when it removes the row.

use std::ops::Range;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::dialect::{Walk, list};
use super::session::{Access, Row, Session, Value};
use super::{Database, StoreError};
use crate::tables::Table;

/// Rows that one transaction examines in a walk by key.
const ROWS: i64 = 1_000;

/// The result for one piece of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) rows: u64,
    /// How long the transaction held locks.
    pub(crate) held: Duration,
    /// Start of the next piece; `None`: this was the last.
    pub(crate) next: Option<i64>,
}

/// A session that removes history reported before a time.
pub(crate) struct Expiring {
    session: Box<dyn Session>,
    before: Timestamp,
    /// Whether `expiry` already records this time.
    is_recorded: bool,
    /// How long the last removing transaction held locks.
    held: Duration,
    /// Divides the size of pieces if the database is too slow for whole ones.
    pub(crate) divisor: i64,
}

impl dyn Session + '_ {
    /// The number that an expression or a query without `FROM` returns; 0 for null.
    async fn number(&mut self, expression: &str, of: &str) -> Result<i64, StoreError> {
        let select = format!("SELECT {expression} AS number {of}");
        let row = self.select_one(&select, &[]).await?;
        let number: Option<i64> = row.map_or(Ok(None), |mut row| row.take("number"))?;
        Ok(number.unwrap_or(0))
    }

    /// The time up to which history was removed; `None`: none was.
    ///
    /// # Errors
    /// If the database fails, or has an impossible time: nobody removes future history.
    pub(crate) async fn expired_before(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let dialect = self.dialect();
        let select = format!(
            "SELECT {} AS reported_before, {} AS updated_at FROM expiry",
            dialect.epoch_micros("reported_before"),
            dialect.epoch_micros("updated_at")
        );
        let Some(mut row) = self.select_one(&select, &[]).await? else {
            return Ok(None);
        };
        let time = |row: &mut Row, column: &str| -> Result<_, StoreError> {
            let micros: Option<i64> = row.take(column)?;
            Ok(micros.and_then(|micros| Timestamp::from_microsecond(micros).ok()))
        };
        let altered = |what: String| {
            Err(StoreError::Exit(format!(
                "the table expiry says that history was removed up to {what}, so it was altered: restore what consumer expire \
                 wrote there, or remove the row if it never ran"
            )))
        };
        match (
            time(&mut row, "reported_before")?,
            time(&mut row, "updated_at")?,
        ) {
            (Some(before), _) if before > Timestamp::now() => {
                altered(format!("{before}, which is in the future"))
            }
            (Some(before), Some(noted)) if before <= noted => Ok(Some(before)),
            (Some(before), Some(noted)) => {
                altered(format!("{before}, recorded earlier, at {noted}"))
            }
            _ => altered("an invalid time".to_owned()),
        }
    }
}

impl Expiring {
    /// With `dry_run`, nothing is removed, and everything is counted in one snapshot.
    ///
    /// # Errors
    /// If the database cannot be reached or does not exist.
    pub(crate) async fn open(
        database: &Database,
        before: Timestamp,
        dry_run: bool,
    ) -> Result<Self, StoreError> {
        let access = if dry_run { Access::Read } else { Access::Write };
        let mut session = database.session(access).await?;
        let settings = session.dialect().expiry_settings();
        session.execute(settings, &[]).await?;
        if dry_run {
            session.begin_snapshot().await?;
        }
        Ok(Self {
            session,
            before,
            is_recorded: false,
            held: Duration::ZERO,
            divisor: 1,
        })
    }

    /// The range of the walk over a table: its first piece begins after the start.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn extent(&mut self, table: Table) -> Result<Range<i64>, StoreError> {
        match self.session.dialect().walk(table) {
            Walk::Pages { count, .. } => Ok(0..self.session.number(&count, "").await?),
            Walk::Key(key) => {
                let of = format!("FROM {}", table.name());
                let first = self.session.number(&format!("min({key})"), &of).await?;
                let last = self.session.number(&format!("max({key})"), &of).await?;
                Ok(first - 1..last)
            }
        }
    }

    /// Removes the expired rows of the next piece, in a transaction of its own. With `dry_run`, only counts them.
    ///
    /// # Errors
    /// If the database fails. Nothing of the piece is then removed, unless the answer to a commit was lost.
    pub(crate) async fn step(
        &mut self,
        table: Table,
        from: i64,
        end: i64,
        dry_run: bool,
    ) -> Result<Step, StoreError> {
        let dialect = self.session.dialect();
        let (piece, upto) = match dialect.walk(table) {
            Walk::Pages {
                are_between,
                at_once,
                ..
            } => {
                let upto = from + (at_once / self.divisor).max(1);
                (are_between(from, upto), upto)
            }
            Walk::Key(key) => {
                let count = (ROWS / self.divisor).max(1);
                let piece = format!(
                    "FROM (SELECT {key} AS k FROM {} WHERE {key} > {from} ORDER BY {key} LIMIT {count}) AS piece",
                    table.name()
                );
                let last = format!("coalesce(max(k), {end})");
                let upto = self.session.number(&last, &piece).await?;
                (format!("h.{key} > {from} AND h.{key} <= {upto}"), upto)
            }
        };
        let before = dialect.time(self.before);
        let is_old = format!("{piece} AND h.reported_at < {before}");
        self.held = Duration::ZERO;
        let rows = match (table, dry_run) {
            (Table::Task, true) => {
                // Without a report that remains.
                let stays = format!("AND reported_at >= {before}");
                self.count(table, &format!("{is_old} AND {}", without_history(&stays)))
                    .await?
            }
            (_, true) => self.count(table, &is_old).await?,
            (Table::Task, false) => self.remove_tasks(&is_old).await?,
            (_, false) => self.remove(table, &is_old).await?,
        };
        Ok(Step {
            rows,
            held: self.held,
            next: (upto < end).then_some(upto),
        })
    }

    async fn count(&mut self, table: Table, condition: &str) -> Result<u64, StoreError> {
        let of = format!("FROM {} h WHERE {condition}", table.name());
        Ok(self.session.number("count(*)", &of).await? as u64)
    }

    async fn remove(&mut self, table: Table, condition: &str) -> Result<u64, StoreError> {
        let dialect = self.session.dialect();
        // If writers lock the whole database, an empty removal should not block them.
        if dialect.lock_unlocked().is_none() && self.count(table, condition).await? == 0 {
            return Ok(0);
        }
        self.session.execute(dialect.begin_write(), &[]).await?;
        self.delete(&dialect.delete(table, condition), Instant::now())
            .await
    }

    async fn remove_tasks(&mut self, is_old: &str) -> Result<u64, StoreError> {
        let dialect = self.session.dialect();
        let condition = format!("{is_old} AND {}", without_history(""));
        let Some(lock) = dialect.lock_unlocked() else {
            return self.remove(Table::Task, &condition).await;
        };
        let select = format!("SELECT exec_id FROM task h WHERE {condition}");
        let found = self.session.select(&select, &[]).await?.into_iter();
        let found: Vec<String> = found
            .map(|mut row| row.take("exec_id"))
            .collect::<Result<_, _>>()?;
        if found.is_empty() {
            return Ok(0);
        }
        self.session.execute(dialect.begin_write(), &[]).await?;
        let begun = Instant::now();
        let lock = format!(
            "SELECT task_id FROM task AS h {} WHERE {} {lock}",
            dialect.by_name(),
            dialect.is_one_of("h.exec_id", "$1")
        );
        let locked = self.session.select(&lock, &[Value::Texts(found)]).await?;
        let locked: Vec<i64> = locked
            .into_iter()
            .map(|mut row| row.take("task_id"))
            .collect::<Result<_, _>>()?;
        if locked.is_empty() {
            self.session.execute("COMMIT", &[]).await?;
            return Ok(0);
        }
        // A separate statement, so that it sees what was committed before the locks were acquired. Not the condition of a
        // DELETE, which in MySQL would wait for rows of the histories that a consumer is inserting.
        let select = format!(
            "SELECT task_id FROM task h WHERE h.task_id IN ({}) AND {condition}",
            list(&locked)
        );
        let expired = self.session.select(&select, &[]).await?.into_iter();
        let expired: Vec<i64> = expired
            .map(|mut row| row.take("task_id"))
            .collect::<Result<_, _>>()?;
        if expired.is_empty() {
            self.session.execute("COMMIT", &[]).await?;
            return Ok(0);
        }
        self.delete(&dialect.delete_tasks(&expired), begun).await
    }

    /// Removes rows by a statement and commits the transaction, which began at `begun`.
    async fn delete(&mut self, statement: &str, begun: Instant) -> Result<u64, StoreError> {
        let removed = self.session.execute(statement, &[]).await?;
        let records = removed > 0 && !self.is_recorded;
        if records {
            self.record().await?;
        }
        self.session.execute("COMMIT", &[]).await?;
        self.session.is_in_place()?;
        self.is_recorded |= records;
        self.held = begun.elapsed();
        Ok(removed)
    }

    /// Records up to when history was removed, so that audits do not expect it.
    async fn record(&mut self) -> Result<(), StoreError> {
        let dialect = self.session.dialect();
        let (before, now) = (dialect.time(self.before), dialect.time(Timestamp::now()));
        // In this order: an insert waits for that of another session, and the update then sees its time.
        let first = format!("INTO expiry (reported_before, updated_at) VALUES ({before}, {now})");
        let later = format!(
            "UPDATE expiry SET reported_before = {before}, updated_at = {now} WHERE reported_before < {before}"
        );
        self.session
            .execute(&dialect.insert_new(&first), &[])
            .await?;
        self.session.execute(&later, &[]).await?;
        Ok(())
    }
}

/// An SQL condition on `task` (`h`): it has no history that satisfies `more`.
fn without_history(more: &str) -> String {
    let none = Table::HISTORIES.map(|table| {
        let table = table.name();
        format!("NOT EXISTS (SELECT 1 FROM {table} WHERE {table}.task_id = h.task_id {more})")
    });
    none.join(" AND ")
}
