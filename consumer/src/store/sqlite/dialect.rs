//! SQLite's SQL. Times are microseconds since 1970, and arrays are JSON.

use crate::store::dialect::{Dialect, Walk, is_contracted, list};
use crate::tables::{Kind, Table};

pub(super) struct Sqlite;

impl Dialect for Sqlite {
    fn begin_write(&self) -> &'static str {
        "BEGIN IMMEDIATE"
    }

    fn begin_snapshot(&self, _moment: Option<&str>) -> String {
        "BEGIN".to_owned()
    }

    fn scan_settings(&self) -> &'static str {
        ""
    }

    fn now(&self) -> &'static str {
        "CAST(unixepoch('subsec') * 1000000 AS integer)"
    }

    fn rfc3339(&self, column: &str) -> String {
        let micros = format!("({column} % 1000000 + 1000000) % 1000000");
        format!(
            "CASE WHEN {} THEN strftime('%Y-%m-%dT%H:%M:%S', ({column} - {micros}) / 1000000, 'unixepoch') \
             || printf('.%06dZ', {micros}) END",
            is_contracted(column)
        )
    }

    fn is_unreadable(&self, column: &str, kind: Kind) -> Option<String> {
        let is_not = |types: &str| format!("typeof({column}) NOT IN ({types}, 'null')");
        Some(match kind {
            Kind::Time => format!("NOT ({})", is_contracted(column)),
            Kind::I32 | Kind::I64 | Kind::Bool => is_not("'integer'"),
            Kind::F64 => is_not("'real', 'integer'"),
            Kind::Text => is_not("'text'"),
            Kind::Texts | Kind::JobTasks | Kind::Json => {
                format!("NOT coalesce(json_valid({column}), true)")
            }
        })
    }

    fn is_one_of(&self, column: &str, parameter: &str) -> String {
        format!("{column} IN (SELECT value FROM json_each({parameter}))")
    }

    /// The lower bound allows an index to be used.
    fn begins_with(&self, column: &str, parameter: &str) -> String {
        format!(
            "({column} >= {parameter} AND substr({column}, 1, length({parameter})) = {parameter})"
        )
    }

    /// SQLite's sum fails on overflow, so the halves are summed.
    fn bounded_sum(&self, column: &str) -> String {
        let low = format!("sum({column} & 4294967295)");
        let high = format!("(sum({column} >> 32) + ({low} >> 32))");
        format!(
            "CASE WHEN {high} > 2147483647 THEN {} ELSE ({high} << 32) + ({low} & 4294967295) END",
            i64::MAX
        )
    }

    fn least(&self, values: &[&str]) -> String {
        format!("min({})", values.join(", "))
    }

    fn greatest(&self, values: &[&str]) -> String {
        format!("max({})", values.join(", "))
    }

    fn seconds_between(&self, from: &str, to: &str) -> String {
        format!("(({to} - {from}) / 1000000.0)")
    }

    /// Only `quote` prints as many digits as a double needs.
    fn number_text(&self, expression: &str) -> String {
        format!("quote(CAST({expression} AS real))")
    }

    fn lines(&self, text: &str) -> String {
        format!("group_concat({text}, char(10))")
    }

    /// A JSON path cannot express every name.
    fn metric(&self, parameter: &str) -> String {
        format!(
            "(SELECT CASE type WHEN 'integer' THEN value WHEN 'real' THEN value WHEN 'true' THEN 1 WHEN 'false' THEN 0 END \
             FROM json_each(metrics) WHERE key = {parameter} LIMIT 1)"
        )
    }

    fn bytewise(&self) -> &'static str {
        "BINARY"
    }

    fn address(&self) -> &'static str {
        "rowid"
    }

    fn address_text(&self, _: Table, of: &str) -> String {
        format!("CAST({of}rowid AS text)")
    }

    fn is_at(&self, _: Table, addresses: &[String]) -> String {
        let numbers: Vec<i64> = addresses.iter().filter_map(|it| it.parse().ok()).collect();
        format!("h.rowid IN ({})", list(&numbers))
    }

    fn join_row_at(&self, table: &str, alias: &str, address: &str) -> String {
        format!("JOIN {table} AS {alias} ON {alias}.rowid = {address}")
    }

    fn lock_unlocked(&self) -> Option<&'static str> {
        None
    }

    fn lock_found(&self) -> Option<&'static str> {
        None
    }

    fn keep_rows(&self) -> &'static str {
        ""
    }

    fn walk(&self, table: Table) -> Walk {
        Walk::Key(match table {
            Table::Task => "task_id",
            _ => "rowid",
        })
    }

    fn expiry_settings(&self) -> &'static str {
        ""
    }
}
