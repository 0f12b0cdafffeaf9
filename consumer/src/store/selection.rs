//! Selects the rows of a scan, and builds its query.

use std::ops::Range;

use jiff::Timestamp;

use super::dialect::{Dialect, list};
use crate::row_format::{self, row_length};
use crate::tables::{Kind, Table};

/// An SQL list of the final statuses.
pub(crate) const FINAL: &str = "('Succeed', 'Failed', 'Cancelled', 'Timeout')";

/// Ranges of offsets, with their partitions.
pub(crate) type Places = Vec<(i32, Range<i64>)>;

/// Which rows of a table to read, and in which form.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) table: Table,
    /// `None`: all rows.
    pub(crate) places: Option<Places>,
    /// Only rows reported at this time or later; not for `task`.
    pub(crate) reported_from: Option<Timestamp>,
    /// Only rows of these tasks.
    pub(crate) task_ids: Option<Vec<i64>>,
    /// Only rows at these addresses, [locked](Dialect::lock_found) to be removed.
    pub(crate) addresses: Option<Vec<String>>,
    /// Adds two fields in front: the row's address in its table as text, and its `task_id`.
    pub(crate) addressed: bool,
    /// Adds a field in front: the row's `task_id` if it outranks its task's row or has an earlier time, otherwise null.
    /// Only for `task_progress`.
    pub(crate) outranking: bool,
    /// Has the row's `task_id` instead of its task's name, which avoids a join. Not for `task`.
    pub(crate) by_key: bool,
    /// `None`: in any order.
    pub(crate) order: Option<Order>,
}

/// The order of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// By partition and offset.
    Place,
    /// By the bytes of the task's name, the same in every database; only for `task`.
    ExecId,
}

/// A row of a table, from an [addressed](Selection::addressed) selection.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Its address in its table.
    pub(crate) address: String,
    pub(crate) task_id: Option<i64>,
    pub(crate) row: Vec<u8>,
}

/// Splits address and `task_id` off the front of a row.
pub(crate) fn held(addressed: &[u8]) -> Option<Held> {
    let (_, count) = row_length(addressed)?;
    let mut fields = row_format::fields(addressed);
    let address = row_format::text_of(fields.next()?)?.to_owned();
    let task_id = row_format::i64_of(fields.next()?);
    let front = 2 + 4 + address.len() + 4 + task_id.map_or(0, |_| 8);
    let mut row = i16::try_from(count - 2).ok()?.to_be_bytes().to_vec();
    row.extend_from_slice(addressed.get(front..)?);
    Some(Held {
        address,
        task_id,
        row,
    })
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

    /// The query; its columns are fields of the [`kinds`](Self::kinds).
    pub(super) fn query(&self, dialect: &dyn Dialect) -> String {
        let Self {
            table,
            places,
            reported_from,
            task_ids,
            addresses,
            addressed,
            outranking,
            by_key,
            order,
        } = self;
        let of_task = *table == Table::Task;
        let mut columns = Vec::new();
        if *addressed {
            columns.extend([dialect.address_text(*table, "h."), "h.task_id".to_owned()]);
        }
        if *outranking {
            // See `Rows::rank`.
            let rank = "reported_at, h.sequence, h.event_partition, h.event_offset";
            columns.push(format!(
                "CASE WHEN (h.status IN {FINAL}, h.{rank}) > (t.is_final, t.reported_at, t.sequence, \
                 t.event_partition, t.event_offset) OR h.reported_at < t.first_reported_at \
                 OR (h.reported_at < t.ended_at AND h.status IN {FINAL}) THEN h.task_id END"
            ));
        }
        columns.extend(table.columns().iter().map(|column| match column.name {
            "exec_id" if *by_key => "h.task_id".to_owned(),
            "exec_id" if !of_task => "t.exec_id".to_owned(),
            name => format!("h.{name}"),
        }));
        let mut select = format!("SELECT {} FROM {} h", columns.join(", "), table.name());
        if !of_task && (!by_key || *outranking) {
            // Includes rows whose task is gone.
            select.push_str(" LEFT JOIN task t ON t.task_id = h.task_id");
        }
        let conditions: Vec<String> = [
            places.as_ref().map(are_at),
            reported_from.map(|from| format!("h.reported_at >= {}", dialect.time(from))),
            task_ids
                .as_ref()
                .map(|keys| format!("h.task_id IN ({})", list(keys))),
            addresses
                .as_ref()
                .map(|addresses| dialect.is_at(*table, addresses)),
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
                let bytewise = dialect.bytewise();
                select.push_str(&format!(" ORDER BY h.exec_id COLLATE {bytewise}"));
            }
            None => {}
        }
        if let (Some(_), Some(lock)) = (addresses, dialect.lock_found()) {
            select.push_str(&format!(" {lock}"));
        }
        select
    }

    /// The kinds of a row's fields.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        if self.addressed {
            kinds.extend([Kind::Text, Kind::I64]);
        }
        if self.outranking {
            kinds.push(Kind::I64);
        }
        let columns = self.table.columns().iter();
        kinds.extend(columns.map(|column| match column.name {
            "exec_id" if self.by_key => Kind::I64,
            _ => column.kind,
        }));
        kinds
    }
}

/// The condition that a row's event is at one of these places.
pub(super) fn are_at(places: &Places) -> String {
    let condition = |(partition, offsets): &(i32, Range<i64>)| {
        format!(
            "(h.event_partition = {partition} AND h.event_offset >= {} AND h.event_offset < {})",
            offsets.start, offsets.end
        )
    };
    match places.as_slice() {
        [] => "1 = 0".to_owned(),
        places => {
            let conditions: Vec<String> = places.iter().map(condition).collect();
            format!("({})", conditions.join(" OR "))
        }
    }
}
