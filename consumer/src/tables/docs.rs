//! The tables in the book, and the lists of tables outside this program, are those of the catalogue. Two more tables
//! have no rows of events; they are described here for that.

use service::testing::book::{assert_generated, read};

use super::*;

/// How far each part of each partition is stored.
const CONSUMED_OFFSET: &[Column] = &[
    column!("part", "`progress`, `resource` or `metrics`", text),
    column!("topic", "the events topic", text),
    column!(
        "partition",
        "its partition; with `part` and `topic` the key",
        i32
    ),
    column!("first_offset", "the first record ever stored; where there was none yet, where reading began; null: stored before there was this column", optional i64),
    column!(
        "next_offset",
        "the position of a committed reader: behind the last record stored, and behind the commit markers and aborted records read after it",
        i64
    ),
    column!("cluster_id", "the Kafka cluster", text),
    column!("topic_id", "Kafka's id of the topic; null: stored before there was this column, or the brokers give none", optional text),
    column!(
        "anchor_offset",
        "the last record's offset; it, its timestamp and its checksum identify the topic too. -1: no record was stored yet",
        i64
    ),
    column!(
        "anchor_timestamp_ms",
        "its timestamp in milliseconds; -1: no record was stored yet",
        i64
    ),
    column!(
        "anchor_crc32",
        "the CRC-32 of its value; 0: no record was stored yet",
        i64
    ),
    column!("group_id", "who stored it last", text),
    column!("updated_at", "when", time),
];

/// Up to when history was removed by order.
const EXPIRY: &[Column] = &[
    column!("only_row", "true: there is at most one row", bool),
    column!(
        "reported_before",
        "up to when history was removed; older rows may be there or not",
        time
    ),
    column!("updated_at", "when that was ordered", time),
];

/// Every table, with all columns that a database has of it.
pub(crate) fn schema() -> Vec<(&'static str, Vec<&'static Column>)> {
    let stored = |table: Table| {
        // The database makes the key of `task`.
        let key = (table == Table::Task).then_some(&TASK_ID);
        let columns = key.into_iter().chain(table.stored_columns()).collect();
        (table.name(), columns)
    };
    let mut tables = Vec::from(Table::ALL.map(stored));
    tables.push(("consumed_offset", CONSUMED_OFFSET.iter().collect()));
    tables.push(("expiry", EXPIRY.iter().collect()));
    tables
}

fn assert_has(file: &str, text: &str) {
    assert!(read(file).contains(text), "not in {file}:\n{text}");
}

fn quoted(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::I32 => "integer",
        Kind::I64 => "bigint",
        Kind::F64 => "double",
        Kind::Bool => "boolean",
        Kind::Time => "time",
        Kind::Text => "text",
        Kind::Texts => "text[]",
        Kind::JobTasks => "integer[][]",
        Kind::Json => "json",
    }
}

/// What one row of a table stands for.
fn row_of(table: &str) -> &'static str {
    match table {
        "task" => {
            "An exec task's newest state: the greatest of its reports by (final status, `reported_at`, `sequence`), \
             and the earliest times of all its reports, so that the order of arrival never matters. These times stay when \
             `consumer expire` removes the reports they came from. A task that was removed whole and reports again begins \
             anew."
        }
        "task_progress" => "One row per report.",
        "task_resource" => "One row per application in a report's resource part.",
        "task_metrics" => "One row per report.",
        "consumed_offset" => "How far each part of each partition is stored.",
        "expiry" => "At most one row, once `consumer expire` has removed history.",
        other => panic!("say what a row of {other} is"),
    }
}

#[test]
fn the_book_describes_each_table() {
    let in_every_history = |column: &&'static Column| {
        let mut histories = Table::HISTORIES.into_iter();
        histories.all(|table| {
            let mut names = table.stored_columns().map(|column| column.name);
            names.any(|name| name == column.name)
        })
    };
    let shared = Table::Progress.stored_columns().filter(in_every_history);
    let shared: Vec<&str> = shared.map(|column| column.name).collect();
    let mut text = String::new();
    let mut tables = schema();
    // The histories refer to it.
    tables.sort_by_key(|(table, _)| *table != "task");
    for (table, columns) in tables {
        let is_history = Table::HISTORIES.map(Table::name).contains(&table);
        text.push_str(&format!("## {table}\n\n{}", row_of(table)));
        if is_history {
            let shared = quoted(&shared);
            text.push_str(&format!(" Besides {shared}, which are as in `task`:"));
        }
        text.push_str("\n\n| Column | Type | |\n| --- | --- | --- |\n");
        for Column {
            name, kind, about, ..
        } in columns
        {
            if !(is_history && shared.contains(name)) {
                let (kind, about) = (name_of(*kind), about.trim());
                text.push_str(&format!("| `{name}` | {kind} | {about} |\n"));
            }
        }
        text.push('\n');
    }
    assert_generated("reference/tables.md", "tables", &text);
}

/// Anyone may compute the digest of an audit's report.
#[test]
fn the_book_says_which_columns_a_digest_is_of() {
    let names = |columns: &[Column]| {
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        quoted(&names)
    };
    let (first, _) = Table::Task.columns().split_at(TASK + 1);
    let mut text = format!(
        "| Table | Columns, in this order, after {} |\n| --- | --- |\n",
        names(first)
    );
    for table in Table::ALL {
        let order = match table {
            Table::Resource => "; within an event in the order of `application_id COLLATE \"C\"`",
            _ => "",
        };
        let (_, others) = table.event_columns().split_at(TASK + 1);
        text.push_str(&format!("| `{table}` | {}{order} |\n", names(others)));
    }
    assert_generated("auditing/consumer-audit.md", "digest", &text);
}

#[test]
fn rights_and_benchmarks_name_each_history() {
    let names = Table::HISTORIES.map(Table::name);
    let insert = format!("GRANT INSERT ON {} TO", names.join(", "));
    assert_has("deploy/postgres/grants.sql", &insert);
    let list = format!("HISTORIES = (\"{}\")", names.join("\", \""));
    assert_has("deploy/bench/run", &list);
    assert_has("deploy/bench/sqlite_limit.py", &list);
}
