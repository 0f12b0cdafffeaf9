//! SQL that differs between databases. SQL common to all is in the other files of this folder, and in queries. It uses
//! neither words that one of the databases reserves as names, nor the three arguments of `lead`, nor divisions of
//! integers; the column `partition`, which MySQL reserves, is quoted.

use std::time::Duration;

use jiff::Timestamp;
use schemas::REPORTED_AT_MICROS;

use crate::tables::{Kind, Table};

/// A database's SQL where the standard leaves it open. `h` is the alias of the statement's table. Unless a database says
/// otherwise, its times are integers of microseconds since 1970, so are its intervals, and JSON and arrays are text.
pub(crate) trait Dialect: Sync {
    /// Begins a writing transaction.
    fn begin_write(&self) -> &'static str;
    /// Begins a read-only transaction with one snapshot: that of its first query, or a [named](Self::name_moment) one.
    fn begin_snapshot(&self, moment: Option<&str>) -> String;
    /// Settings of a transaction with small queries; may be empty.
    fn query_settings(&self) -> &'static str {
        ""
    }
    /// Settings of a transaction that scans whole tables; may be empty.
    fn scan_settings(&self) -> &'static str;
    /// A query that names this transaction's snapshot (column `moment`), so that other sessions can share it while the
    /// transaction lasts.
    fn name_moment(&self) -> Option<&'static str> {
        None
    }

    /// A time literal.
    fn time(&self, time: Timestamp) -> String {
        // Rounded down, as PostgreSQL does.
        time.as_nanosecond().div_euclid(1_000).to_string()
    }
    /// A time literal from microseconds since 1970, for any time that a report may have.
    fn time_of(&self, micros: i64) -> String {
        micros.to_string()
    }
    /// The current time.
    fn now(&self) -> &'static str;
    /// Microseconds since 1970 of a time column; null if it has no finite time.
    fn epoch_micros(&self, column: &str) -> String {
        column.to_owned()
    }
    /// RFC 3339 text of a time column, with microseconds; null for a time outside the years 1 to 9999.
    fn rfc3339(&self, column: &str) -> String;
    /// The condition that a column of this kind has an invalid value: a time outside the years 1 to 9999, or a value of
    /// another type. `None` if the database accepts no such value.
    fn is_unreadable(&self, column: &str, kind: Kind) -> Option<String>;
    /// Text of a JSON column.
    fn json_text(&self, column: &str) -> String {
        column.to_owned()
    }
    /// JSON text of an array column.
    fn array_as_json(&self, column: &str) -> String {
        column.to_owned()
    }
    /// The condition that a column equals one of the [texts](super::Value::Texts) or [integers](super::Value::Integers)
    /// of a parameter.
    fn is_one_of(&self, column: &str, parameter: &str) -> String;
    /// The condition that a text column starts with the text of a parameter.
    fn begins_with(&self, column: &str, parameter: &str) -> String;
    /// The sum of an integer column, or the largest integer if the sum is larger; null if there are no rows.
    fn bounded_sum(&self, column: &str) -> String;
    /// The smallest of these values, none of them null.
    fn least(&self, values: &[&str]) -> String;
    /// The largest of these values, none of them null.
    fn greatest(&self, values: &[&str]) -> String;
    /// A time plus a duration.
    fn later(&self, time: &str, by: Duration) -> String {
        format!("({time} + {})", by.as_micros())
    }
    /// The number of seconds between two times.
    fn seconds_between(&self, from: &str, to: &str) -> String;
    /// The interval between two times; null if either is null or infinite.
    fn interval(&self, from: &str, to: &str) -> String {
        format!("({to} - {from})")
    }
    /// An [interval](Self::interval) literal.
    fn interval_of(&self, micros: i64) -> String {
        micros.to_string()
    }
    /// The microseconds of an [interval](Self::interval).
    fn interval_micros(&self, interval: &str) -> String {
        interval.to_owned()
    }
    /// The start of the period that contains a time, for periods of this length since 1970.
    fn period_start(&self, time: &str, period: Duration) -> String {
        let micros = period.as_micros();
        format!("({time} - ({time} % {micros} + {micros}) % {micros})")
    }
    /// Text of a numeric expression that parses to the same double; not a number for null.
    fn number_text(&self, expression: &str) -> String;
    /// An aggregate that joins the texts of rows, one per line.
    fn lines(&self, text: &str) -> String;
    /// The number of values that [lines](Self::lines) may have, if the database limits the length of a text.
    fn lines_at_once(&self) -> i64 {
        i64::MAX
    }
    /// The number in `task_metrics.metrics` under the name given by a parameter; 1 or 0 for a boolean; otherwise null.
    fn metric(&self, parameter: &str) -> String;
    /// An expression as a value of this kind: [`Kind::I64`], [`Kind::F64`] or [`Kind::Text`].
    fn cast(&self, expression: &str, kind: Kind) -> String {
        let name = match kind {
            Kind::F64 => "double precision",
            Kind::Text => "text",
            _ => "bigint",
        };
        format!("CAST({expression} AS {name})")
    }
    /// The condition that two values differ; null differs from everything but null.
    fn differ(&self, one: &str, other: &str) -> String {
        format!("{one} IS DISTINCT FROM {other}")
    }
    /// The word of a common table expression that is read once, although it is used several times. `None`: it is read for
    /// each use.
    fn materialized(&self) -> Option<&'static str> {
        Some("MATERIALIZED")
    }
    /// Whether tasks that an index orders by the first column of an order are sorted by the others as they come. If not,
    /// all are sorted, even for the first few.
    fn sorts_by_prefix(&self) -> bool {
        true
    }
    /// The condition that a boolean column is true, in the form that an index which begins with it serves. MySQL would also
    /// use that index where it is slower than a scan.
    fn is_true(&self, column: &str) -> String {
        column.to_owned()
    }
    /// An INSERT of what follows `INSERT`, which inserts nothing if its row exists.
    fn insert_new(&self, into: &str) -> String {
        format!("INSERT {into} ON CONFLICT DO NOTHING")
    }
    /// Removes the rows (`h`) of a table that satisfy a condition.
    fn delete(&self, table: Table, condition: &str) -> String {
        format!("DELETE FROM {table} AS h WHERE {condition}")
    }
    /// Removes the tasks with these keys, and locks no others.
    fn delete_tasks(&self, task_ids: &[i64]) -> String {
        self.delete(Table::Task, &format!("h.task_id IN ({})", list(task_ids)))
    }
    /// Whether a subquery in FROM can use the columns of the query around its own. If not, values of tasks are computed
    /// for a whole relation of tasks, and looked up.
    fn correlates_in_from(&self) -> bool {
        true
    }
    /// The collation that compares texts by bytes.
    fn bytewise(&self) -> &'static str;

    /// The column with a row's address in the table of a history. An update may change it.
    fn address(&self) -> &'static str;
    /// A row's address in this table as text; `of` is empty, or an alias with its dot.
    fn address_text(&self, table: Table, of: &str) -> String;
    /// The condition that a row of this table has one of these addresses.
    fn is_at(&self, table: Table, addresses: &[String]) -> String;
    /// Joins the one row of a table that has this address, a subquery.
    fn join_row_at(&self, table: &str, alias: &str, address: &str) -> String;

    /// A SELECT's suffix that locks its rows (`h`) and omits those that others have locked. `None`: a writing transaction
    /// locks the whole database instead.
    fn lock_unlocked(&self) -> Option<&'static str>;
    /// The part of a SELECT that follows `task` and its alias, to find tasks by the index of their names; may be empty.
    fn by_name(&self) -> &'static str {
        ""
    }
    /// A SELECT's suffix that keeps its rows as they are until the transaction ends, to remove them. `None`: `DELETE …
    /// RETURNING` returns those that were removed, and so had not changed.
    fn lock_found(&self) -> Option<&'static str>;
    /// A SELECT's suffix that keeps others from removing its rows before the transaction ends; may be empty.
    fn keep_rows(&self) -> &'static str;
    /// How expiry walks a table.
    fn walk(&self, table: Table) -> Walk;
    /// Settings of a session that removes expired rows; may be empty.
    fn expiry_settings(&self) -> &'static str;
}

/// The condition that a time is a number in the years 1 to 9999, the range of the contract. In SQLite, every text is greater
/// than any number.
pub(super) fn is_contracted(column: &str) -> String {
    let (first, last) = (REPORTED_AT_MICROS.start(), REPORTED_AT_MICROS.end());
    format!("{column} BETWEEN {first} AND {last}")
}

/// A list of keys for `IN`.
pub(super) fn list(keys: &[i64]) -> String {
    let keys: Vec<String> = keys.iter().map(i64::to_string).collect();
    keys.join(", ")
}

/// Microseconds of a duration, or the maximum if there are more.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// How to walk a table in bounded pieces without an index on time.
pub(crate) enum Walk {
    /// By the pages of the table's file.
    Pages {
        /// An expression for their number.
        count: String,
        /// The condition that a row is on a page from the first number up to the second, exclusive.
        are_between: fn(i64, i64) -> String,
        /// Pages per piece.
        at_once: i64,
    },
    /// By a numeric key.
    Key(&'static str),
}
