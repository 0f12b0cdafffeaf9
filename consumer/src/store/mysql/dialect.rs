//! MySQL's and MariaDB's SQL. Times are microseconds since 1970, and arrays are JSON, as in SQLite.

use crate::store::dialect::{Dialect, Walk, is_contracted, list};
use crate::tables::{Kind, Table};

/// The dialect of one of the two products.
pub(super) struct MySql {
    /// The collation of texts: by bytes, trailing spaces included.
    pub(super) collation: &'static str,
    /// Lifts the server's limit of the time of a query.
    unlimited: &'static str,
}

pub(super) static MYSQL: MySql = MySql {
    collation: "utf8mb4_0900_bin",
    unlimited: "SET SESSION max_execution_time = 0",
};

pub(super) static MARIADB: MySql = MySql {
    collation: "utf8mb4_nopad_bin",
    unlimited: "SET SESSION max_statement_time = 0",
};

/// Values of one text: its 100 bytes or so for each stay below the smallest max_allowed_packet, which limits texts.
const LINES_AT_ONCE: i64 = 25_000;

impl Dialect for MySql {
    fn begin_write(&self) -> &'static str {
        "START TRANSACTION"
    }

    /// Sessions are otherwise READ COMMITTED.
    fn begin_snapshot(&self, _moment: Option<&str>) -> String {
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; START TRANSACTION READ ONLY".to_owned()
    }

    fn scan_settings(&self) -> &'static str {
        self.unlimited
    }

    fn now(&self) -> &'static str {
        "CAST(unix_timestamp(now(6)) * 1000000 AS signed)"
    }

    fn rfc3339(&self, column: &str) -> String {
        format!(
            "CASE WHEN {} THEN date_format(timestamp '1970-01-01 00:00:00' + INTERVAL {column} MICROSECOND, \
             '%Y-%m-%dT%H:%i:%s.%fZ') END",
            is_contracted(column)
        )
    }

    fn is_unreadable(&self, column: &str, kind: Kind) -> Option<String> {
        match kind {
            Kind::Time => Some(format!("NOT ({})", is_contracted(column))),
            Kind::Bool => Some(format!("{column} NOT IN (0, 1)")),
            Kind::Texts | Kind::JobTasks | Kind::Json => {
                Some(format!("NOT coalesce(json_valid({column}), true)"))
            }
            Kind::I32 | Kind::I64 | Kind::F64 | Kind::Text => None,
        }
    }

    /// A session replaces the parameter by a list.
    fn is_one_of(&self, column: &str, parameter: &str) -> String {
        format!("{column} IN ({parameter})")
    }

    /// The lower bound allows an index to be used.
    fn begins_with(&self, column: &str, parameter: &str) -> String {
        format!(
            "({column} >= {parameter} AND left({column}, char_length({parameter})) = {parameter})"
        )
    }

    /// Sums of integers are decimals of 65 digits.
    fn bounded_sum(&self, column: &str) -> String {
        format!("CAST(least(sum({column}), {}) AS signed)", i64::MAX)
    }

    fn least(&self, values: &[&str]) -> String {
        format!("least({})", values.join(", "))
    }

    fn greatest(&self, values: &[&str]) -> String {
        format!("greatest({})", values.join(", "))
    }

    /// The quotient of two integers would be a decimal of four digits.
    fn seconds_between(&self, from: &str, to: &str) -> String {
        format!("(({to} - {from}) / 1e6)")
    }

    fn number_text(&self, expression: &str) -> String {
        format!("coalesce(CAST(CAST({expression} AS double) AS char), '')")
    }

    fn lines(&self, text: &str) -> String {
        format!("group_concat({text} SEPARATOR '\\n')")
    }

    fn lines_at_once(&self) -> i64 {
        LINES_AT_ONCE
    }

    /// A quoted name of a JSON path can be any text.
    fn metric(&self, parameter: &str) -> String {
        // The collation of its result is another one than that of other texts.
        let name = format!("json_quote({parameter}) COLLATE {}", self.collation);
        let value = format!("json_extract(metrics, concat('$.', {name}))");
        format!(
            "CASE WHEN json_type({value}) IN ('INTEGER', 'UNSIGNED INTEGER', 'DOUBLE', 'DECIMAL') \
             THEN CAST(json_unquote({value}) AS double) \
             WHEN json_type({value}) = 'BOOLEAN' THEN CASE WHEN json_unquote({value}) COLLATE {} = 'true' THEN 1 ELSE 0 END END",
            self.collation
        )
    }

    fn cast(&self, expression: &str, kind: Kind) -> String {
        let name = match kind {
            Kind::F64 => "double",
            Kind::Text => "char",
            _ => "signed",
        };
        format!("CAST({expression} AS {name})")
    }

    fn differ(&self, one: &str, other: &str) -> String {
        format!("NOT ({one} <=> {other})")
    }

    /// MariaDB reads it for each use; MySQL does not know the word.
    fn materialized(&self) -> Option<&'static str> {
        None
    }

    fn sorts_by_prefix(&self) -> bool {
        false
    }

    fn is_true(&self, column: &str) -> String {
        format!("{column} = true")
    }

    /// IGNORE would also cut values that do not fit; the tables that this inserts into have room for any.
    fn insert_new(&self, into: &str) -> String {
        format!("INSERT IGNORE {into}")
    }

    fn delete(&self, table: Table, condition: &str) -> String {
        format!("DELETE h FROM {table} AS h WHERE {condition}")
    }

    /// For many values of IN, the server would scan the table, and wait for rows that others have locked.
    fn delete_tasks(&self, task_ids: &[i64]) -> String {
        format!(
            "DELETE h FROM json_table('[{}]', '$[*]' COLUMNS (k bigint PATH '$')) AS v STRAIGHT_JOIN task AS h ON h.task_id = v.k",
            list(task_ids)
        )
    }

    /// MySQL does, MariaDB does not.
    fn correlates_in_from(&self) -> bool {
        false
    }

    fn bytewise(&self) -> &'static str {
        self.collation
    }

    fn address(&self) -> &'static str {
        "row_id"
    }

    fn address_text(&self, table: Table, of: &str) -> String {
        format!("CAST({of}{} AS char)", key(table))
    }

    fn is_at(&self, table: Table, addresses: &[String]) -> String {
        let numbers: Vec<i64> = addresses.iter().filter_map(|it| it.parse().ok()).collect();
        format!("h.{} IN ({})", key(table), list(&numbers))
    }

    fn join_row_at(&self, table: &str, alias: &str, address: &str) -> String {
        format!("JOIN {table} AS {alias} ON {alias}.row_id = {address}")
    }

    /// MariaDB does not know `OF h`; rows that are only looked at in a subquery are not locked.
    fn lock_unlocked(&self) -> Option<&'static str> {
        Some("FOR UPDATE SKIP LOCKED")
    }

    fn by_name(&self) -> &'static str {
        "FORCE INDEX (task_by_name)"
    }

    fn lock_found(&self) -> Option<&'static str> {
        Some("FOR UPDATE")
    }

    fn keep_rows(&self) -> &'static str {
        "LOCK IN SHARE MODE"
    }

    fn walk(&self, table: Table) -> Walk {
        Walk::Key(key(table))
    }

    fn expiry_settings(&self) -> &'static str {
        ""
    }
}

/// The primary key of a table of rows.
fn key(table: Table) -> &'static str {
    match table {
        Table::Task => "task_id",
        Table::Progress | Table::Resource | Table::Metrics => "row_id",
    }
}
