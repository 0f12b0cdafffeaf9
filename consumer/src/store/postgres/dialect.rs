//! PostgreSQL's SQL.

use std::time::Duration;

use jiff::Timestamp;

use crate::store::dialect::{Dialect, Walk, micros};
use crate::tables::{Kind, Table};

/// Pages of a history per transaction: 512 KiB, some 5,000 rows.
const PAGES: i64 = 64;
/// The year 1: PostgreSQL's literals before it differ from RFC 3339.
const FIRST_MICROS: i64 = -62_135_596_800_000_000;

pub(super) struct Postgres;

impl Dialect for Postgres {
    fn begin_write(&self) -> &'static str {
        "BEGIN"
    }

    fn begin_snapshot(&self, moment: Option<&str>) -> String {
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        match moment {
            // Snapshot names consist of hexadecimal digits and hyphens.
            Some(moment) => format!("{begin}; SET TRANSACTION SNAPSHOT '{moment}'"),
            None => begin.to_owned(),
        }
    }

    /// Compiling a query takes longer than running it. Plans are made for the actual values: limits and time ranges
    /// decide which index is best.
    fn query_settings(&self) -> &'static str {
        "SET LOCAL jit = off; SET LOCAL plan_cache_mode = force_custom_plan"
    }

    fn scan_settings(&self) -> &'static str {
        "SET LOCAL statement_timeout = 0; SET LOCAL work_mem = '32MB'"
    }

    fn name_moment(&self) -> Option<&'static str> {
        Some("SELECT pg_export_snapshot() AS moment")
    }

    /// A literal: PostgreSQL would add an epoch and an interval for each row.
    fn time(&self, time: Timestamp) -> String {
        match time.as_microsecond() {
            FIRST_MICROS.. => format!("timestamptz '{time:.6}'"),
            _ => "timestamptz '-infinity'".to_owned(),
        }
    }

    fn time_of(&self, micros: i64) -> String {
        format!(
            "(timestamptz '1970-01-01 00:00:00Z' + {})",
            interval(micros)
        )
    }

    fn now(&self) -> &'static str {
        "now()"
    }

    fn epoch_micros(&self, column: &str) -> String {
        format!(
            "CASE WHEN isfinite({column}) THEN (extract(epoch FROM {column}) * 1000000)::bigint END"
        )
    }

    fn rfc3339(&self, column: &str) -> String {
        format!(
            r#"CASE WHEN {} THEN to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') END"#,
            is_contracted(column)
        )
    }

    fn is_unreadable(&self, column: &str, kind: Kind) -> Option<String> {
        matches!(kind, Kind::Time).then(|| format!("NOT ({})", is_contracted(column)))
    }

    fn json_text(&self, column: &str) -> String {
        format!("{column}::text")
    }

    fn array_as_json(&self, column: &str) -> String {
        format!("array_to_json({column})::text")
    }

    fn is_one_of(&self, column: &str, parameter: &str) -> String {
        format!("{column} = ANY({parameter})")
    }

    fn begins_with(&self, column: &str, parameter: &str) -> String {
        format!("starts_with({column}, {parameter})")
    }

    fn bounded_sum(&self, column: &str) -> String {
        let (sum, largest) = (format!("sum({column})"), i64::MAX);
        format!("CASE WHEN {sum} > {largest} THEN {largest} ELSE {sum}::bigint END")
    }

    fn least(&self, values: &[&str]) -> String {
        format!("least({})", values.join(", "))
    }

    fn greatest(&self, values: &[&str]) -> String {
        format!("greatest({})", values.join(", "))
    }

    fn later(&self, time: &str, by: Duration) -> String {
        format!("({time} + {})", interval(micros(by)))
    }

    fn seconds_between(&self, from: &str, to: &str) -> String {
        format!("date_part('epoch', {to} - {from})")
    }

    fn interval(&self, from: &str, to: &str) -> String {
        format!("CASE WHEN isfinite({from}) AND isfinite({to}) THEN {to} - {from} END")
    }

    fn interval_of(&self, micros: i64) -> String {
        interval(micros)
    }

    fn interval_micros(&self, interval: &str) -> String {
        format!("(extract(epoch FROM {interval}) * 1000000)::bigint")
    }

    fn period_start(&self, time: &str, period: Duration) -> String {
        format!(
            "date_bin({}, {time}, timestamptz '1970-01-01 00:00:00Z')",
            interval(micros(period))
        )
    }

    fn number_text(&self, expression: &str) -> String {
        format!("coalesce(({expression})::double precision::text, '')")
    }

    fn lines(&self, text: &str) -> String {
        format!("string_agg({text}, E'\\n')")
    }

    fn metric(&self, parameter: &str) -> String {
        format!(
            "(SELECT CASE json_typeof(value) WHEN 'number' THEN (value #>> '{{}}')::double precision \
             WHEN 'boolean' THEN CASE value #>> '{{}}' WHEN 'true' THEN 1 ELSE 0 END END \
             FROM (SELECT metrics -> {parameter}::text AS value OFFSET 0) AS metric)"
        )
    }

    fn bytewise(&self) -> &'static str {
        "\"C\""
    }

    fn address(&self) -> &'static str {
        "ctid"
    }

    fn address_text(&self, _: Table, of: &str) -> String {
        format!("{of}ctid::text")
    }

    /// Addresses look like `(12,3)`.
    fn is_at(&self, _: Table, addresses: &[String]) -> String {
        let quoted: Vec<String> = addresses
            .iter()
            .map(|address| format!("\"{}\"", address.replace(['\'', '"', '\\'], "")))
            .collect();
        format!("h.ctid = ANY('{{{}}}'::tid[])", quoted.join(","))
    }

    /// OFFSET 0 prevents the planner from hashing the whole table.
    fn join_row_at(&self, table: &str, alias: &str, address: &str) -> String {
        format!(
            "JOIN LATERAL (SELECT * FROM {table} WHERE ctid = {address} OFFSET 0) AS {alias} ON true"
        )
    }

    fn lock_unlocked(&self) -> Option<&'static str> {
        Some("FOR UPDATE OF h SKIP LOCKED")
    }

    fn lock_found(&self) -> Option<&'static str> {
        None
    }

    fn keep_rows(&self) -> &'static str {
        "FOR KEY SHARE"
    }

    fn walk(&self, table: Table) -> Walk {
        match table {
            Table::Task => Walk::Key("task_id"),
            _ => Walk::Pages {
                count: format!(
                    "pg_relation_size('{}') / current_setting('block_size')::bigint",
                    table.name()
                ),
                are_between: |from, upto| {
                    format!("h.ctid >= '({from},0)' AND h.ctid < '({upto},0)'")
                },
                at_once: PAGES,
            },
        }
    }

    /// A crash may only restore the last removed rows, which are then removed again. Every row is found by its page or
    /// by an index, whatever the planner assumes about growing tables.
    fn expiry_settings(&self) -> &'static str {
        "SET synchronous_commit = off; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
         SET jit = off"
    }
}

/// The condition that a time is in the years 1 to 9999, the range of the contract.
fn is_contracted(column: &str) -> String {
    format!(
        "{column} >= timestamptz '0001-01-01 00:00:00Z' AND {column} < timestamptz '10000-01-01 00:00:00Z'"
    )
}

/// An interval literal. Before version 14, PostgreSQL reads no number of more than 32 bits in it, so each unit is
/// written separately.
fn interval(micros: i64) -> String {
    const SECOND: i64 = 1_000_000;
    const HOUR: i64 = 3_600 * SECOND;
    let (hours, seconds, rest) = (micros / HOUR, micros % HOUR / SECOND, micros % SECOND);
    format!("interval '{hours} hours {seconds} seconds {rest} microseconds'")
}
