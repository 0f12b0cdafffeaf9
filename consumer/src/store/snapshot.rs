//! One moment of a database, read in bulk: every row in the form that audits compare, whichever
//! database it comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt};
use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Executor, Row, TypeInfo, ValueRef};
use tokio::sync::mpsc;

use super::connection::{Access, Bound, Connection, Session};
use super::expiry::postgres_time;
use super::tasks::list;
use super::{Database, StoreError, stored_crc32};
use crate::ownership::Owner;
use crate::positions::Anchor;
use crate::row_format::{self, COUNTS, RowWriter, ValueSink};
use crate::rows::Part;
use crate::tables::{Kind, Table};

/// Rows are handed on in pieces of about so many bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// How a snapshot begins in PostgreSQL.
const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
const SETTINGS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL work_mem = '32MB'";

/// PostgreSQL sends some 8 KiB at a time, and to be woken for each costs both sides more than this
/// pause, in which several come.
const PAUSE: Duration = Duration::from_micros(500);

/// Whether a history's row (`h`) tells more than its task's row (`t`); see `Rows::rank`.
const OUTRANKS: &str = "(h.status IN ('Succeed', 'Failed', 'Cancelled', 'Timeout'), h.reported_at, h.sequence, \
     h.event_partition, h.event_offset) > (t.is_final, t.reported_at, t.sequence, t.event_partition, t.event_offset)";

/// Offsets of some partitions.
pub(crate) type Places = Vec<(i32, Range<i64>)>;

/// Which rows of a table, and what of them.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) table: Table,
    /// `None`: all rows.
    pub(crate) places: Option<Places>,
    /// Only what was reported then or later; not of `task`.
    pub(crate) reported_from: Option<Timestamp>,
    /// Only of these tasks.
    pub(crate) task_ids: Option<Vec<i64>>,
    /// Only at these addresses.
    pub(crate) addresses: Option<Vec<String>>,
    /// With two fields in front: the row's address in its table as text, and its `task_id`.
    pub(crate) addressed: bool,
    /// With a field in front: the row's `task_id` where it tells more than its task's row, else null.
    /// Of `task_progress` only.
    pub(crate) outranking: bool,
    /// With the row's `task_id` where its task's name would be: no other table need be looked at. Not of
    /// `task`.
    pub(crate) by_key: bool,
    /// `None`: as the database has them.
    pub(crate) order: Option<Order>,
}

/// In which order rows are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// By partition and offset.
    Place,
    /// By the bytes of the task's name, in both databases alike; of `task` only.
    ExecId,
}

impl Selection {
    /// All rows of a table, or those of some places.
    pub(crate) fn of_table(table: Table, places: Option<Places>) -> Self {
        Self {
            table,
            places,
            reported_from: None,
            task_ids: None,
            addresses: None,
            addressed: false,
            outranking: false,
            by_key: false,
            order: None,
        }
    }
}

/// A row of `consumed_offset`, of the audited topic.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeldOffset {
    pub(crate) part: Part,
    pub(crate) partition: i32,
    /// The first record ever stored; `None`: not known.
    pub(crate) first_offset: Option<i64>,
    pub(crate) next_offset: i64,
    pub(crate) cluster_id: String,
    /// `None`: not known.
    pub(crate) topic_id: Option<String>,
    pub(crate) anchor: Anchor,
}

impl HeldOffset {
    /// Whether the first offset can be one: none is below 0 or behind the next.
    pub(crate) fn is_sound(&self) -> bool {
        let first = self.first_offset.unwrap_or(0);
        (0..=self.next_offset.max(0)).contains(&first)
    }
}

/// A read-only transaction that sees one moment.
pub(crate) struct Snapshot(pub(super) Connection);

impl Snapshot {
    /// # Errors
    /// If the database cannot be reached or is not there.
    pub(crate) async fn take(database: &Database) -> Result<Self, StoreError> {
        let mut connection = database.connect(Access::Read).await?;
        connection.begin_snapshot().await?;
        if connection.is_postgres() {
            connection.execute(SETTINGS).await?;
        }
        // The first look fixes the moment.
        let first = "SELECT count(*) FROM consumed_offset";
        connection.rows::<(i64,)>(first, &[]).await?;
        Ok(Self(connection))
    }

    /// The name of this moment, by which other connections see it too while this one lives; `None`
    /// where the database has no such thing.
    pub(crate) async fn moment(&mut self) -> Result<Option<String>, StoreError> {
        if !self.0.is_postgres() {
            return Ok(None);
        }
        let named: Option<(String,)> = self.0.row("SELECT pg_export_snapshot()", &[]).await?;
        Ok(named.map(|(name,)| name))
    }

    /// Another connection, which sees the same moment.
    ///
    /// # Errors
    /// If the database cannot be reached, or the first connection is gone.
    pub(crate) async fn of_moment(database: &Database, moment: &str) -> Result<Self, StoreError> {
        let mut connection = database.connect(Access::Read).await?;
        if !connection.is_postgres() {
            return Self::take(database).await;
        }
        // Names of moments are hexadecimal digits and hyphens.
        let begin = format!("{BEGIN}; SET TRANSACTION SNAPSHOT '{moment}'; {SETTINGS}");
        connection.execute(&begin).await?;
        Ok(Self(connection))
    }

    /// Which topics and clusters anything is stored of.
    pub(crate) async fn owners(&mut self) -> Result<BTreeSet<Owner>, StoreError> {
        let select = "SELECT DISTINCT topic, cluster_id FROM consumed_offset";
        let rows: Vec<Owner> = self.0.rows(select, &[]).await?;
        Ok(rows.into_iter().collect())
    }

    /// What is stored of the topic.
    pub(crate) async fn offsets(&mut self, topic: &str) -> Result<Vec<HeldOffset>, StoreError> {
        type OffsetRow = (
            String,
            i32,
            Option<i64>,
            i64,
            String,
            i64,
            i64,
            i64,
            Option<String>,
        );
        let select = "SELECT part, partition, first_offset, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, \
             anchor_crc32, topic_id FROM consumed_offset WHERE topic = $1 ORDER BY part, partition";
        let rows: Vec<OffsetRow> = self.0.rows(select, &[Bound::Text(topic)]).await?;
        let held = |row: OffsetRow| {
            let (
                part,
                partition,
                first_offset,
                next_offset,
                cluster_id,
                offset,
                timestamp_ms,
                crc32,
                topic_id,
            ) = row;
            let part = Part::ALL.into_iter().find(|known| known.as_str() == part)?;
            Some(
                stored_crc32(part, partition, crc32).map(|crc32| HeldOffset {
                    part,
                    partition,
                    first_offset,
                    next_offset,
                    cluster_id,
                    topic_id,
                    anchor: Anchor {
                        offset,
                        timestamp_ms,
                        crc32,
                    },
                }),
            )
        };
        rows.into_iter().filter_map(held).collect()
    }

    /// Up to when history was removed by order.
    pub(crate) async fn expired_before(&mut self) -> Result<Option<Timestamp>, StoreError> {
        self.0.expired_before().await
    }

    /// Sends the selected rows, in pieces of whole rows.
    ///
    /// # Errors
    /// If the database fails. That nobody listens any more is none.
    pub(crate) async fn scan(
        &mut self,
        selection: &Selection,
        pieces: &mpsc::Sender<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let (mut held, mut is_heard) = (Vec::with_capacity(2 * CHUNK_BYTES), true);
        self.each(selection, async |row| {
            held.extend_from_slice(row);
            if held.len() >= CHUNK_BYTES {
                is_heard = pieces.send(std::mem::take(&mut held)).await.is_ok();
            }
            is_heard
        })
        .await?;
        if is_heard {
            let _ = pieces.send(held).await;
        }
        Ok(())
    }

    /// Hands each selected row to `each`, until that gives `false`.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn each(
        &mut self,
        selection: &Selection,
        each: impl AsyncFnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        self.0.each_row(selection, each).await
    }

    /// The greatest offset of a partition that a part's table has a row of.
    pub(crate) async fn last_offset(
        &mut self,
        part: Part,
        partition: i32,
    ) -> Result<Option<i64>, StoreError> {
        let statement = format!(
            "SELECT max(event_offset) FROM {} WHERE event_partition = $1",
            part.table()
        );
        let values = [Bound::Number(partition.into())];
        let last: Option<(Option<i64>,)> = self.0.row(statement, &values).await?;
        Ok(last.and_then(|(last,)| last))
    }

    /// The least offset of each partition that a part's table has a row of.
    pub(crate) async fn least_offsets(
        &mut self,
        part: Part,
    ) -> Result<BTreeMap<i32, i64>, StoreError> {
        let statement = format!(
            "SELECT event_partition, min(event_offset) FROM {} GROUP BY event_partition",
            part.table()
        );
        let rows: Vec<(i32, i64)> = self.0.rows(statement, &[]).await?;
        Ok(rows.into_iter().collect())
    }

    /// The key of the task with this execId.
    pub(crate) async fn task_id(&mut self, exec_id: &str) -> Result<Option<i64>, StoreError> {
        let select = "SELECT task_id FROM task WHERE exec_id = $1";
        let known: Option<(i64,)> = self.0.row(select, &[Bound::Text(exec_id)]).await?;
        Ok(known.map(|(task_id,)| task_id))
    }
}

impl Connection {
    /// Begins a transaction that only reads, and sees one moment: that of the first look.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) async fn begin_snapshot(&mut self) -> Result<(), StoreError> {
        let begin = if self.is_postgres() { BEGIN } else { "BEGIN" };
        self.execute(begin).await.map(drop)
    }

    /// Hands each selected row to `each`, until that gives `false`.
    ///
    /// # Errors
    /// If the database fails.
    pub(super) async fn each_row(
        &mut self,
        selection: &Selection,
        mut each: impl AsyncFnMut(&[u8]) -> bool,
    ) -> Result<(), StoreError> {
        match self {
            Connection::Postgres(Session { connection, watch }) => {
                let statement = format!(
                    "COPY ({}) TO STDOUT (FORMAT binary)",
                    select(selection, "h.ctid::text", by_ctid, "\"C\"", postgres_time)
                );
                let mut told = watch.answer(connection.copy_out_raw(&statement)).await?;
                // A row a message (PostgreSQL manual, "COPY Operations"), but that the file's header
                // is in front of the first one, and that its trailer, which is shorter than any row,
                // ends it.
                let mut header = row_format::HEADER.len();
                loop {
                    let next = match told.try_next().now_or_never() {
                        Some(next) => next?,
                        None => {
                            std::thread::sleep(PAUSE);
                            watch.answer(told.try_next()).await?
                        }
                    };
                    let Some(message) = next else { break };
                    let row = message.get(header..).unwrap_or_default();
                    header = 0;
                    if row.len() > row_format::TRAILER.len() && !each(row).await {
                        return Ok(());
                    }
                }
            }
            Connection::Sqlite(connection) => {
                let statement = select(
                    selection,
                    "CAST(h.rowid AS text)",
                    by_rowid,
                    "BINARY",
                    |time| time.as_microsecond().to_string(),
                );
                let mut kinds: Vec<Kind> = Vec::new();
                if selection.addressed {
                    kinds.extend([Kind::Text, Kind::I64]);
                }
                if selection.outranking {
                    kinds.push(Kind::I64);
                }
                kinds.extend(
                    selection
                        .table
                        .columns()
                        .iter()
                        .map(|column| match column.name {
                            "exec_id" if selection.by_key => Kind::I64,
                            _ => column.kind,
                        }),
                );
                let mut rows = connection.fetch(AssertSqlSafe(statement));
                let mut copy = RowWriter::default();
                while let Some(row) = rows.try_next().await? {
                    copy.clear();
                    write(&mut copy, &row, &kinds)?;
                    if !each(copy.rows()).await {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }
}

/// The query of a selection; `address` is the row's address in its table, as text, `at` the condition that it is one
/// of some, and `bytewise` the collation that goes by bytes.
fn select(
    selection: &Selection,
    address: &str,
    at: impl Fn(&[String]) -> String,
    bytewise: &str,
    time: impl Fn(Timestamp) -> String,
) -> String {
    let Selection {
        table,
        places,
        reported_from,
        task_ids,
        addresses,
        addressed,
        outranking,
        by_key,
        order,
    } = selection;
    let of_task = *table == Table::Task;
    let mut columns = Vec::new();
    if *addressed {
        columns.extend([address.to_owned(), "h.task_id".to_owned()]);
    }
    if *outranking {
        columns.push(format!("CASE WHEN {OUTRANKS} THEN h.task_id END"));
    }
    columns.extend(table.columns().iter().map(|column| match column.name {
        "exec_id" if *by_key => "h.task_id".to_owned(),
        "exec_id" if !of_task => "t.exec_id".to_owned(),
        name => format!("h.{name}"),
    }));
    let mut select = format!("SELECT {} FROM {} h", columns.join(", "), table.name());
    if !of_task && (!by_key || *outranking) {
        // A row whose task is gone is told all the same.
        select.push_str(" LEFT JOIN task t ON t.task_id = h.task_id");
    }
    let conditions: Vec<String> = [
        places
            .as_ref()
            .map(|places| format!("({})", condition(places))),
        reported_from.map(|from| format!("h.reported_at >= {}", time(from))),
        task_ids
            .as_ref()
            .map(|keys| format!("h.task_id IN ({})", list(keys))),
        addresses.as_ref().map(|addresses| at(addresses)),
    ]
    .into_iter()
    .flatten()
    .collect();
    if !conditions.is_empty() {
        select.push_str(&format!(" WHERE {}", conditions.join(" AND ")));
    }
    match order {
        Some(Order::Place) => select.push_str(" ORDER BY h.event_partition, h.event_offset"),
        Some(Order::ExecId) => {
            select.push_str(&format!(" ORDER BY h.exec_id COLLATE {bytewise}"));
        }
        None => {}
    }
    select
}

/// That a row of PostgreSQL stands at one of these addresses, each as `(12,3)`.
pub(super) fn by_ctid(addresses: &[String]) -> String {
    let quoted: Vec<String> = addresses
        .iter()
        .map(|address| format!("\"{}\"", address.replace(['\'', '"', '\\'], "")))
        .collect();
    format!("h.ctid = ANY('{{{}}}'::tid[])", quoted.join(","))
}

/// That a row of SQLite stands at one of these addresses, each a number.
pub(super) fn by_rowid(addresses: &[String]) -> String {
    let numbers: Vec<i64> = addresses.iter().filter_map(|it| it.parse().ok()).collect();
    format!("h.rowid IN ({})", list(&numbers))
}

fn condition(places: &Places) -> String {
    let condition = |(partition, offsets): &(i32, Range<i64>)| {
        format!(
            "(h.event_partition = {partition} AND h.event_offset >= {} AND h.event_offset < {})",
            offsets.start, offsets.end
        )
    };
    match places.as_slice() {
        [] => "1 = 0".to_owned(),
        places => places
            .iter()
            .map(condition)
            .collect::<Vec<_>>()
            .join(" OR "),
    }
}

/// Writes a row of SQLite as PostgreSQL would: a value that is not of its column's type is written as
/// text or bytes, and so is equal to none that is.
fn write(copy: &mut RowWriter, row: &SqliteRow, kinds: &[Kind]) -> Result<(), StoreError> {
    copy.row(kinds.len());
    for (i, kind) in kinds.iter().enumerate() {
        let value = row.try_get_raw(i)?;
        if value.is_null() {
            copy.null();
            continue;
        }
        let found = value.type_info();
        match (kind, found.name()) {
            (Kind::I32 | Kind::I64 | Kind::Bool | Kind::Time, "INTEGER") => {
                let number: i64 = row.try_get_unchecked(i)?;
                match kind {
                    Kind::I32 => match i32::try_from(number) {
                        Ok(number) => copy.i32(number),
                        Err(_) => copy.i64(number),
                    },
                    Kind::Bool if number == 0 || number == 1 => copy.bool(number == 1),
                    Kind::Time => copy.time(number),
                    _ => copy.i64(number),
                }
            }
            (Kind::F64, "REAL") => copy.f64(row.try_get_unchecked(i)?),
            (Kind::Texts, "TEXT") => {
                let text: &str = row.try_get_unchecked(i)?;
                match serde_json::from_str::<Vec<String>>(text) {
                    Ok(texts) => copy.texts(texts.iter().map(String::as_str)),
                    Err(_) => copy.text(text),
                }
            }
            (Kind::JobTasks, "TEXT") => {
                let text: &str = row.try_get_unchecked(i)?;
                match serde_json::from_str::<[Vec<i32>; COUNTS.len()]>(text) {
                    Ok(counts) if counts.iter().all(|count| count.len() == counts[0].len()) => {
                        copy.counts(counts.map(Vec::into_iter));
                    }
                    _ => copy.text(text),
                }
            }
            _ => copy.field(row.try_get_unchecked::<&[u8], _>(i)?),
        }
    }
    Ok(())
}
