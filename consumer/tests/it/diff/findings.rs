//! Differences are found, and incomparable tables are refused.

use super::{Pair, run, some_row};
use crate::support::{Kind, Pipeline, on_servers};

/// Repairs the tables from the topic.
fn repair(pipeline: &Pipeline) {
    let (code, _, log) = run(&[
        "audit",
        "--repair",
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
        "--dead-letters-topic",
        &pipeline.letters,
        "--database-url",
        &pipeline.database_url,
    ]);
    assert_eq!(code, 0, "{log}");
}

on_servers!(
    #[ignore = "heavy"]
    every_row_that_is_deleted_doubled_or_altered_on_one_side_is_found_precisely,
    databases_of_other_topics_or_ranges_cannot_be_compared,
);

/// A is SQLite, B a server.
async fn every_row_that_is_deleted_doubled_or_altered_on_one_side_is_found_precisely(kind: Kind) {
    let Some(pair) = Pair::make(Kind::Sqlite, kind).await else {
        return;
    };
    pair.replay(&[]);
    pair.diff().assert_equal();
    let found = |what: &str, expected: (&str, &str, i64, i64, &[&str])| {
        let compared = pair.diff();
        let (table, fault, partition, offset, columns) = expected;
        let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
        let expected = vec![(
            table.to_owned(),
            fault.to_owned(),
            partition,
            offset,
            columns,
        )];
        assert_eq!(compared.findings(), expected, "{what}: {}", compared.log);
        assert_eq!(compared.code, 1, "{what}");
        assert_eq!(compared.report["verdict"], "unequal");
        assert_eq!(compared.total(fault), 1, "{what}");
        compared
    };
    for (side, changed) in [("a", &pair.a), ("b", &pair.b)] {
        for (table, column, value) in [
            ("task_progress", "status", "'Failed'"),
            ("task_progress", "progress", "0.123"),
            ("task_progress", "event_offset", "h.event_offset + 1"),
            (
                "task_progress",
                "task_id",
                "(SELECT min(task_id) FROM task WHERE task_id <> h.task_id)",
            ),
            ("task_resource", "queue", "h.queue || ' '"),
            ("task_resource", "application_id", "'another'"),
            ("task_metrics", "metrics", "'{\"x\": 1}'"),
            ("task", "job_id", "'another'"),
            ("task", "sequence", "h.sequence - 1"),
            ("task", "exec_id", "h.exec_id || 'x'"),
            ("task", "event_offset", "h.event_offset + 1000000"),
        ] {
            let (condition, partition, mut offset) = some_row(changed, table).await;
            changed
                .execute(&format!(
                    "UPDATE {table} AS h SET {column} = {value} WHERE {condition}"
                ))
                .await;
            if (side, column) == ("a", "event_offset") {
                offset += if table == "task" { 1_000_000 } else { 1 };
            }
            let actual = if column == "task_id" {
                "exec_id"
            } else {
                column
            };
            let compared = found(
                &format!("{table}.{column} of {side}"),
                (table, "differing", partition, offset, &[actual]),
            );
            if (table, column) == ("task", "exec_id") {
                let rows = compared.report["findings"][0]["history_rows"].as_u64();
                assert!(rows.unwrap() > 6, "{:#}", compared.report["findings"]);
            }
            if (table, column) == ("task", "job_id") {
                let columns = &compared.report["findings"][0]["columns"][0];
                assert_eq!(columns[side], "another");
            }
            repair(changed);
        }
        let (more, less) = match side {
            "a" => ("only_in_a", "only_in_b"),
            _ => ("only_in_b", "only_in_a"),
        };
        for table in ["task_progress", "task_resource", "task_metrics", "task"] {
            let (condition, partition, offset) = some_row(changed, table).await;
            changed
                .execute(&format!("DELETE FROM {table} WHERE {condition}"))
                .await;
            found(
                &format!("{table} of {side} less a row"),
                (table, less, partition, offset, &[]),
            );
            repair(changed);

            let (condition, partition, offset) = some_row(changed, table).await;
            let double = match table {
                "task" => {
                    let columns = "job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, progress, \
                         reported_at, sequence, event_partition, event_offset";
                    format!(
                        "INSERT INTO task (exec_id, {columns}) SELECT exec_id || '-again', {columns} FROM task WHERE {condition}"
                    )
                }
                _ => String::new(),
            };
            match double.as_str() {
                "" => changed.double(table, &condition).await,
                double => changed.execute(double).await,
            }
            found(
                &format!("{table} of {side} and a row again"),
                (table, more, partition, offset, &[]),
            );
            repair(changed);
        }
    }
    pair.diff().assert_equal();

    // Many findings: some are shown, and their control characters are not printed.
    let escape = match kind {
        Kind::Mariadb => "char(27)",
        _ => "chr(27)",
    };
    pair.b
        .execute(&format!(
            "UPDATE task SET exec_id = exec_id || {escape} || '[2J', job_id = 'other'"
        ))
        .await;
    pair.b
        .execute("DELETE FROM task_metrics WHERE event_partition = 1")
        .await;
    let (code, message) = pair.text(&["--limit", "3"]);
    assert_eq!(code, 1, "{message}");
    assert!(!message.contains('\u{1b}'), "{message}");
    let shown = message
        .lines()
        .filter(|line| line.starts_with("only in "))
        .count();
    assert_eq!(shown, 3, "{message}");
    assert!(message.contains("more findings"), "{message}");
    assert!(message.contains("unequal: over the offsets"), "{message}");
    let compared = pair.diff();
    assert_eq!(compared.total("only_in_a"), 97 + 200);
    assert_eq!(compared.total("only_in_b"), 97);
    assert_eq!(compared.total("differing"), 0);
}

async fn databases_of_other_topics_or_ranges_cannot_be_compared(kind: Kind) {
    let Some(pair) = Pair::make(Kind::Sqlite, kind).await else {
        return;
    };
    // B has no tables; then no rows; then no common offsets.
    pair.cannot_tell(&["reading", "consumer migrate"]);
    pair.b.ask(&["migrate"]);
    pair.cannot_tell(&["nothing stored", &pair.a.events, "--events-topic"]);
    pair.replay(&["--from", "offset:0=10", "--to", "offset:0=200"]);
    pair.diff().assert_equal();
    for (change, reasons) in [
        (
            "first_offset = 200, next_offset = 300",
            vec!["no offset of", "from 200 up to 300", "from 0 up to 200"],
        ),
        ("partition = 7", vec!["no offset of", "partition 7"]),
        (
            "cluster_id = 'another'",
            vec!["cluster another", "different topics"],
        ),
        (
            "anchor_crc32 = 255",
            vec!["up to 200", "at offset 199", "000000ff"],
        ),
        (
            "anchor_timestamp_ms = 5",
            vec!["timestamp 5 ms", "the topic id is the same"],
        ),
        (
            "anchor_offset = 198",
            vec!["at offset 198", "at offset 199"],
        ),
        // Further than A, with a different record at their common offset.
        (
            "next_offset = 250, anchor_crc32 = 255",
            vec!["up to", "at offset 199", "000000ff"],
        ),
    ] {
        let columns = "partition, first_offset, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, anchor_crc32";
        pair.b
            .execute(&format!(
                "CREATE TABLE kept AS SELECT * FROM consumed_offset; UPDATE consumed_offset SET {change}"
            ))
            .await;
        pair.cannot_tell(&reasons);
        let restore = match kind {
            Kind::Mariadb => {
                let columns = columns.split(", ");
                let columns = columns.map(|it| format!("o.{it} = k.{it}"));
                let columns = columns.collect::<Vec<_>>().join(", ");
                format!("UPDATE consumed_offset o JOIN kept k ON k.part = o.part SET {columns}")
            }
            _ => format!(
                "UPDATE consumed_offset o SET ({columns}) = (SELECT {columns} FROM kept k WHERE k.part = o.part)"
            ),
        };
        pair.b.execute(&format!("{restore}; DROP TABLE kept")).await;
        pair.diff().assert_equal();
    }

    let (a, b) = (&pair.a.database_url, &pair.b.database_url);
    let says = |a: &str, b: &str, more: &[&str], reason: &str| {
        let compared = pair.diff_of(a, b, more);
        assert_eq!(compared.code, 2, "{}", compared.log);
        assert!(compared.log.contains(reason), "{}", compared.log);
        assert!(!compared.log.contains("secret"), "{}", compared.log);
    };
    says(a, b, &["--events-topic", "unheard-of"], "");
    says(a, a, &[], "one database");
    says(
        a,
        "oracle://root@localhost/x",
        &[],
        "B must begin with sqlite:",
    );
    says(a, "postgres://root:secret@localhost/x", &[], "PGPASSFILE");
    says(
        a,
        "sqlite:/nowhere/tasks.db",
        &[],
        "reading B, SQLite /nowhere/tasks.db",
    );
    let absent = match kind {
        Kind::Mariadb => "mysql://somebody@127.0.0.1:1/absent",
        _ => "postgres://somebody@127.0.0.1:1/absent",
    };
    let reading = format!("reading A, {} 127.0.0.1:1/absent", kind.product());
    says(absent, b, &[], &reading);
}
