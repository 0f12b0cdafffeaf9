//! History that is removed by order, in short steps beside whoever writes.
//!
//! No index tells rows by their time: the consumer would pay for it with every row. So the tables are
//! walked once from end to end, a bounded piece a transaction: PostgreSQL's by pages, SQLite's by
//! rowid. A transaction that removes rows waits for no lock that a consumer holds while it holds one
//! itself, so the two cannot deadlock:
//!
//! - Rows of the histories are locked by nobody else but a repair.
//! - A consumer locks the tasks of its events for as long as its transaction lasts, also those whose row
//!   it leaves as it is. Tasks that are locked are skipped. One that is not is locked first, and only then
//!   asked for its history: what a consumer has put in is seen by then, and one that comes later waits
//!   and makes the task anew.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use sqlx::AssertSqlSafe;

use super::connection::{Access, Connection, on_either};
use super::{Database, StoreError};
use crate::rows::Part;
use crate::tables::Table;

/// Pages of a history that PostgreSQL looks through in one transaction: 512 KiB, some 5,000 rows.
const PAGES: i64 = 64;
/// Rows that SQLite looks through in one transaction, and tasks in either database.
const ROWS: i64 = 1_000;

/// What was removed, or would be, of a piece of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) rows: u64,
    /// How long the transaction took from when it had begun: others may have waited for it.
    pub(crate) held: Duration,
    /// Where the next piece begins; `None`: this was the last.
    pub(crate) next: Option<i64>,
}

/// A database from which what was reported before a time is removed.
pub(crate) struct Expiring {
    connection: Connection,
    before: Timestamp,
    /// Whether the time is written down as that up to which history was removed.
    is_recorded: bool,
    /// How long the last transaction that removed rows took.
    held: Duration,
    /// Pieces are made smaller by this where the database is too slow for whole ones.
    pub(crate) divisor: i64,
}

impl Connection {
    /// One number; 0 for null.
    async fn number(&mut self, select: &str) -> Result<i64, StoreError> {
        let select = AssertSqlSafe(select.to_owned());
        let number: Option<i64> = on_either!(self, connection => {
            sqlx::query_scalar(select).persistent(false).fetch_one(connection)
        });
        Ok(number.unwrap_or(0))
    }

    /// Up to when history was removed by order; `None`: none was.
    ///
    /// # Errors
    /// If the database fails, or says what cannot be: nobody removes history that is yet to come.
    pub(crate) async fn expired_before(&mut self) -> Result<Option<Timestamp>, StoreError> {
        let micros = |column: &str| match self.is_postgres() {
            true => format!(
                "CASE WHEN isfinite({column}) THEN (extract(epoch FROM {column}) * 1000000)::bigint END"
            ),
            false => column.to_owned(),
        };
        let select = format!(
            "SELECT {}, {} FROM expiry",
            micros("reported_before"),
            micros("updated_at")
        );
        let row: Option<(Option<i64>, Option<i64>)> = self.row(select, &[]).await?;
        let Some((before, noted)) = row else {
            return Ok(None);
        };
        let time = |micros: Option<i64>| Timestamp::from_microsecond(micros?).ok();
        let altered = |what: String| {
            Err(StoreError::Exit(format!(
                "the table expiry says that history was removed up to {what}, so it was altered: put back what consumer expire \
                 wrote there, or remove the row if it never ran"
            )))
        };
        match (time(before), time(noted)) {
            (Some(before), _) if before > Timestamp::now() => {
                altered(format!("{before}, which is yet to come"))
            }
            (Some(before), Some(noted)) if before <= noted => Ok(Some(before)),
            (Some(before), Some(noted)) => altered(format!(
                "{before}, and that this was noted at {noted}, before then"
            )),
            _ => altered("a time that is none".to_owned()),
        }
    }
}

impl Expiring {
    /// With `dry_run` nothing is removed, and all that is counted is of one moment.
    ///
    /// # Errors
    /// If the database cannot be reached or is not there.
    pub(crate) async fn open(
        database: &Database,
        before: Timestamp,
        dry_run: bool,
    ) -> Result<Self, StoreError> {
        let access = if dry_run { Access::Read } else { Access::Write };
        let mut connection = database.connect(access).await?;
        if connection.is_postgres() {
            // A crash may bring the last rows back, and no other: they are removed again. Every row is
            // found by its page or by an index, whatever the planner thinks of tables that are growing.
            let settings = "SET synchronous_commit = off; SET enable_seqscan = off; SET enable_hashjoin = off; \
                 SET enable_mergejoin = off; SET jit = off";
            connection.execute(settings).await?;
        }
        if dry_run {
            connection.begin_snapshot().await?;
        }
        Ok(Self {
            connection,
            before,
            is_recorded: false,
            held: Duration::ZERO,
            divisor: 1,
        })
    }

    /// How far the walk over a table goes: its first piece begins behind the start.
    pub(crate) async fn extent(
        &mut self,
        table: Table,
    ) -> Result<std::ops::Range<i64>, StoreError> {
        let name = table.name();
        if self.is_by_pages(table) {
            let pages = format!(
                "SELECT pg_relation_size('{name}') / current_setting('block_size')::bigint"
            );
            return Ok(0..self.connection.number(&pages).await?);
        }
        let key = self.key(table);
        let first = format!("SELECT min({key}) FROM {name}");
        let last = format!("SELECT max({key}) FROM {name}");
        let first = self.connection.number(&first).await?;
        Ok(first - 1..self.connection.number(&last).await?)
    }

    /// Removes what is to go of the next piece, in a transaction of its own. With `dry_run` it is only
    /// counted.
    ///
    /// # Errors
    /// If the database fails. Nothing of the piece is removed then, but where the answer to a commit was
    /// lost.
    pub(crate) async fn step(
        &mut self,
        table: Table,
        from: i64,
        end: i64,
        dry_run: bool,
    ) -> Result<Step, StoreError> {
        let (piece, upto) = if self.is_by_pages(table) {
            let upto = from + (PAGES / self.divisor).max(1);
            (
                format!("h.ctid >= '({from},0)' AND h.ctid < '({upto},0)'"),
                upto,
            )
        } else {
            let (key, name) = (self.key(table), table.name());
            let count = (ROWS / self.divisor).max(1);
            let last = format!(
                "SELECT coalesce(max(k), {end}) FROM (SELECT {key} AS k FROM {name} WHERE {key} > {from} ORDER BY {key} \
                 LIMIT {count}) AS piece"
            );
            let upto = self.connection.number(&last).await?;
            (format!("h.{key} > {from} AND h.{key} <= {upto}"), upto)
        };
        let is_old = format!("{piece} AND h.reported_at < {}", self.time(self.before));
        self.held = Duration::ZERO;
        let rows = match (table, dry_run) {
            (Table::Task, true) => {
                // Without a report that stays.
                let stays = format!("AND reported_at >= {}", self.time(self.before));
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
        let name = table.name();
        let count = format!("SELECT count(*) FROM {name} h WHERE {condition}");
        Ok(self.connection.number(&count).await? as u64)
    }

    async fn remove(&mut self, table: Table, condition: &str) -> Result<u64, StoreError> {
        let mut begin = "BEGIN";
        if matches!(self.connection, Connection::Sqlite(_)) {
            // Whoever only looks keeps no writer waiting.
            if self.count(table, condition).await? == 0 {
                return Ok(0);
            }
            begin = "BEGIN IMMEDIATE";
        }
        self.connection.execute(begin).await?;
        self.delete(table, condition, Instant::now()).await
    }

    async fn remove_tasks(&mut self, is_old: &str) -> Result<u64, StoreError> {
        let condition = format!("{is_old} AND {}", without_history(""));
        if !self.connection.is_postgres() {
            return self.remove(Table::Task, &condition).await;
        }
        self.connection.execute("BEGIN").await?;
        let begun = Instant::now();
        let lock =
            format!("SELECT task_id FROM task h WHERE {condition} FOR UPDATE OF h SKIP LOCKED");
        let locked: Vec<i64> = on_either!(&mut self.connection, connection => {
            let lock = sqlx::query_scalar(AssertSqlSafe(lock)).persistent(false);
            lock.fetch_all(connection)
        });
        if locked.is_empty() {
            self.connection.execute("COMMIT").await?;
            return Ok(0);
        }
        let locked: Vec<String> = locked.iter().map(i64::to_string).collect();
        // A statement of its own: it sees what was committed before the locks were had.
        let condition = format!(
            "h.task_id IN ({}) AND {}",
            locked.join(", "),
            without_history("")
        );
        self.delete(Table::Task, &condition, begun).await
    }

    /// Removes rows and commits the transaction, which has begun then.
    async fn delete(
        &mut self,
        table: Table,
        condition: &str,
        begun: Instant,
    ) -> Result<u64, StoreError> {
        let delete = format!("DELETE FROM {} AS h WHERE {condition}", table.name());
        let removed = self.connection.execute(&delete).await?;
        let records = removed > 0 && !self.is_recorded;
        if records {
            self.record().await?;
        }
        self.connection.execute("COMMIT").await?;
        self.connection.is_in_place()?;
        self.is_recorded |= records;
        self.held = begun.elapsed();
        Ok(removed)
    }

    /// Writes down up to when history was removed: audits then know that it is not missing.
    async fn record(&mut self) -> Result<(), StoreError> {
        let (before, now) = (self.time(self.before), self.time(Timestamp::now()));
        let record = format!(
            "INSERT INTO expiry (reported_before, updated_at) VALUES ({before}, {now}) ON CONFLICT (only_row) DO UPDATE SET \
             reported_before = excluded.reported_before, updated_at = excluded.updated_at \
             WHERE excluded.reported_before > expiry.reported_before"
        );
        self.connection.execute(&record).await?;
        Ok(())
    }

    fn is_by_pages(&self, table: Table) -> bool {
        matches!(self.connection, Connection::Postgres(_)) && table != Table::Task
    }

    /// What a table is walked by where not by pages.
    fn key(&self, table: Table) -> &'static str {
        match table {
            Table::Task => "task_id",
            _ => "rowid",
        }
    }

    /// A time, as SQL.
    fn time(&self, time: Timestamp) -> String {
        match self.connection {
            Connection::Postgres(_) => postgres_time(time),
            Connection::Sqlite(_) => time.as_microsecond().to_string(),
        }
    }
}

/// A time as SQL for PostgreSQL: a constant, where a sum of an epoch and an interval is added up anew for
/// each row.
pub(super) fn postgres_time(time: Timestamp) -> String {
    format!("timestamptz '{time:.6}'")
}

/// An SQL condition on `task` (`h`): no history of it is there, of which `more` holds.
fn without_history(more: &str) -> String {
    let none = Part::ALL.map(|part| {
        let table = part.table();
        format!("NOT EXISTS (SELECT 1 FROM {table} WHERE {table}.task_id = h.task_id {more})")
    });
    none.join(" AND ")
}
