//! Which rows of a table a scan reads, and the query for them.

use std::ops::Range;

use jiff::Timestamp;

use super::dialect::Dialect;
use crate::row_format::{self, row_length};
use crate::tables::{Kind, Table};

/// An SQL list of the final statuses.
pub(crate) const FINAL: &str = "('Succeed', 'Failed', 'Cancelled', 'Timeout')";

/// Offsets of some partitions.
pub(crate) type Places = Vec<(i32, Range<i64>)>;

/// Which rows of a table, and what of them.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    pub(crate) table: Table,
    /// `None`: all rows.
    pub(crate) places: Option<Places>,
    /// Only rows reported then or later; not of `task`.
    pub(crate) reported_from: Option<Timestamp>,
    /// Only of these tasks.
    pub(crate) task_ids: Option<Vec<i64>>,
    /// Only at these addresses.
    pub(crate) addresses: Option<Vec<String>>,
    /// With two fields in front: the row's address in its table as text, and its `task_id`.
    pub(crate) addressed: bool,
    /// With a field in front: the row's `task_id` where it outranks its task's row, or has a lower time, else null.
    /// Of `task_progress` only.
    pub(crate) outranking: bool,
    /// With the row's `task_id` in place of its task's name: no other table need be looked at. Not of
    /// `task`.
    pub(crate) by_key: bool,
    /// `None`: as the database has them.
    pub(crate) order: Option<Order>,
}

/// In which order a scan reads rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// By partition and offset.
    Place,
    /// By the bytes of the task's name, in every database alike; of `task` only.
    ExecId,
}

/// A row that a table holds, of an [addressed](Selection::addressed) selection.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    /// Its address in its table.
    pub(crate) address: String,
    pub(crate) task_id: Option<i64>,
    pub(crate) row: Vec<u8>,
}

/// Takes address and `task_id` off the front of a row.
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

    /// The query, whose columns are fields of the kinds that [`kinds`](Self::kinds) gives.
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
            columns.extend([dialect.address_text("h."), "h.task_id".to_owned()]);
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
            // A row whose task is gone is read all the same.
            select.push_str(" LEFT JOIN task t ON t.task_id = h.task_id");
        }
        let conditions: Vec<String> = [
            places.as_ref().map(are_at),
            reported_from.map(|from| format!("h.reported_at >= {}", dialect.time(from))),
            task_ids
                .as_ref()
                .map(|keys| format!("h.task_id IN ({})", list(keys))),
            addresses.as_ref().map(|addresses| dialect.is_at(addresses)),
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
        select
    }

    /// The kinds of the fields of its rows.
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

/// Keys, for `IN`.
pub(super) fn list(keys: &[i64]) -> String {
    let keys: Vec<String> = keys.iter().map(i64::to_string).collect();
    keys.join(", ")
}
