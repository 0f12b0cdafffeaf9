//! What the databases write in different ways. SQL that is the same in every database stands in the files beside this one.

use std::time::Duration;

use jiff::Timestamp;

use crate::tables::Table;

/// How a database writes what SQL does not settle. `h` is the alias of the table that a statement is about.
pub(crate) trait Dialect: Sync {
    /// Begins a transaction that writes.
    fn begin_write(&self) -> &'static str;
    /// Begins a transaction that only reads, and sees one moment: that of its first query, or a [named](Self::name_moment)
    /// one.
    fn begin_snapshot(&self, moment: Option<&str>) -> String;
    /// Settings of a transaction that answers small queries; may be empty.
    fn query_settings(&self) -> &'static str;
    /// Settings of a transaction that reads whole tables; may be empty.
    fn scan_settings(&self) -> &'static str;
    /// A query for a name (`moment`) by which other sessions can see the same moment as this transaction, while it lasts.
    fn name_moment(&self) -> Option<&'static str>;

    /// A constant time.
    fn time(&self, time: Timestamp) -> String;
    /// A constant time in microseconds since 1970, of all that reports may have.
    fn time_of(&self, micros: i64) -> String;
    /// The current time.
    fn now(&self) -> &'static str;
    /// Microseconds since 1970 of a time column; null if it holds no finite time.
    fn epoch_micros(&self, column: &str) -> String;
    /// RFC 3339 text of a time column, with microseconds.
    fn rfc3339(&self, column: &str) -> String;
    /// Text of a JSON column.
    fn json_text(&self, column: &str) -> String;
    /// JSON text of an array column.
    fn array_as_json(&self, column: &str) -> String;
    /// The condition that a column is one of the [texts](super::Value::Texts) or [integers](super::Value::Integers) of a
    /// parameter.
    fn is_one_of(&self, column: &str, parameter: &str) -> String;
    /// The condition that a text column begins with the text of a parameter.
    fn begins_with(&self, column: &str, parameter: &str) -> String;
    /// The sum of an integer column, or the largest integer if that is less; null of no rows.
    fn bounded_sum(&self, column: &str) -> String;
    /// The least of these values, of which none is null.
    fn least(&self, values: &[&str]) -> String;
    /// The greatest of these values, of which none is null.
    fn greatest(&self, values: &[&str]) -> String;
    /// A time, so much later.
    fn later(&self, time: &str, by: Duration) -> String;
    /// How many seconds lie between two times.
    fn seconds_between(&self, from: &str, to: &str) -> String;
    /// The time between two times; null where either is null or infinite.
    fn interval(&self, from: &str, to: &str) -> String;
    /// A constant [interval](Self::interval).
    fn interval_of(&self, micros: i64) -> String;
    /// Microseconds of an [interval](Self::interval).
    fn interval_micros(&self, interval: &str) -> String;
    /// When the period begins that a time lies in, of periods of this length since 1970.
    fn period_start(&self, time: &str, period: Duration) -> String;
    /// Text of a numeric expression that reads as the same double; no number of a null.
    fn number_text(&self, expression: &str) -> String;
    /// An aggregate that joins the texts of rows to the lines of one.
    fn lines(&self, text: &str) -> String;
    /// The number that `task_metrics.metrics` holds under the name that a parameter gives, 1 or 0 of a truth value, else
    /// null.
    fn metric(&self, parameter: &str) -> String;
    /// The collation that compares the bytes of texts.
    fn bytewise(&self) -> &'static str;

    /// The column with a row's address in its table. An update may change it.
    fn address(&self) -> &'static str;
    /// The address as text; `of` is empty, or an alias with its dot.
    fn address_text(&self, of: &str) -> String;
    /// The condition that a row has one of these addresses.
    fn is_at(&self, addresses: &[String]) -> String;
    /// Joins the one row of a table that has this address, a subquery.
    fn join_row_at(&self, table: &str, alias: &str, address: &str) -> String;

    /// Whether a transaction locks single rows, so that others write beside it; else the whole database.
    fn locks_rows(&self) -> bool;
    /// Ends a SELECT so that nobody removes its rows before the transaction ends; may be empty.
    fn keep_rows(&self) -> &'static str;
    /// How expiry walks over a table.
    fn walk(&self, table: Table) -> Walk;
    /// Settings of a session that removes expired rows; may be empty.
    fn expiry_settings(&self) -> &'static str;
}

/// Microseconds of a duration, or the most that there can be.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// How to walk over a table in bounded pieces, without an index on time.
pub(crate) enum Walk {
    /// By the pages of the table's file.
    Pages {
        /// An expression for how many there are.
        count: String,
        /// The condition that a row is on a page from the first number up to the second, exclusive.
        are_between: fn(i64, i64) -> String,
        /// Pages of one piece.
        at_once: i64,
    },
    /// By a numeric key.
    Key(&'static str),
}
