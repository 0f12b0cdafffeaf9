//! Every altered, lost or omitted value is found and repaired.

use super::{EVENTS, stored};
use crate::support::{Kind, on_every_database};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

on_every_database!(
    #[ignore = "heavy"]
    every_row_that_is_deleted_doubled_or_altered_is_found_precisely_and_repaired,
    a_lost_tail_a_lost_task_and_an_emptied_table_are_found_and_repaired,
);

/// A different value for each column of each table, by database.
fn alterations(kind: Kind) -> Vec<(&'static str, &'static str, &'static str)> {
    let has_no_arrays = kind != Kind::Postgres;
    let other_task = "(SELECT min(task_id) FROM task WHERE task_id <> h.task_id)";
    let (later, texts, counts) = match has_no_arrays {
        true => ("h.reported_at + 1", "'[\"x\"]'", "'[[7],[6],[5],[4]]'"),
        false => (
            "h.reported_at + interval '1 microsecond'",
            "ARRAY['x']",
            "ARRAY[[7], [6], [5], [4]]",
        ),
    };
    let is_final = if has_no_arrays {
        "1 - h.is_final"
    } else {
        "NOT h.is_final"
    };
    let (heard_later, heard_earlier, ended_earlier) = match has_no_arrays {
        true => (
            "h.first_reported_at + 1",
            "h.first_reported_at - 1",
            "coalesce(h.ended_at, h.reported_at) - 1",
        ),
        false => (
            "h.first_reported_at + interval '1 microsecond'",
            "h.first_reported_at - interval '1 microsecond'",
            "coalesce(h.ended_at, h.reported_at) - interval '1 microsecond'",
        ),
    };
    // An offset after the last stored one would not be audited.
    let another_offset = "h.event_offset + CASE WHEN h.event_offset < 10 THEN 1 ELSE -1 END";
    let mut all = vec![
        ("task_progress", "sequence", "h.sequence + 1"),
        ("task_progress", "status", "'Failed'"),
        ("task_progress", "progress", "0.123"),
        ("task_progress", "job_ids", texts),
        ("task_progress", "job_tasks", counts),
        ("task_progress", "adjustments", texts),
        ("task_resource", "application_id", "'another'"),
        ("task_resource", "memory_bytes", "h.memory_bytes + 1"),
        ("task_resource", "cores", "h.cores + 1"),
        ("task_resource", "instances", "h.instances + 1"),
        ("task_resource", "queue", "h.queue || ' '"),
        ("task_resource", "status", "'another'"),
        (
            "task_metrics",
            "engine_running_tasks",
            "h.engine_running_tasks + 1",
        ),
        ("task_metrics", "metrics", "'{\"x\": 1}'"),
        ("task", "task_id", "h.task_id + 1000000"),
        ("task", "exec_id", "h.exec_id || 'x'"),
        ("task", "job_id", "'another'"),
        ("task", "engine_instance", "'another'"),
        ("task", "engine_type", "'another'"),
        ("task", "engine_user", "'another'"),
        ("task", "ticket_id", "'another'"),
        ("task", "status", "'Failed'"),
        ("task", "is_final", is_final),
        ("task", "progress", "0.123"),
        ("task", "reported_at", later),
        ("task", "sequence", "h.sequence - 1"),
        ("task", "first_reported_at", heard_later),
        ("task", "first_reported_at", heard_earlier),
        ("task", "first_reported_at", "NULL"),
        ("task", "ended_at", ended_earlier),
        ("task", "event_partition", "(h.event_partition + 1) % 3"),
        ("task", "event_offset", another_offset),
        ("consumed_offset", "next_offset", "h.next_offset - 5"),
        ("consumed_offset", "next_offset", "h.next_offset + 5"),
        ("consumed_offset", "first_offset", "h.first_offset + 7"),
        ("consumed_offset", "cluster_id", "'another'"),
        ("consumed_offset", "anchor_offset", "h.anchor_offset - 3"),
        (
            "consumed_offset",
            "anchor_timestamp_ms",
            "h.anchor_timestamp_ms + 1",
        ),
        ("consumed_offset", "anchor_crc32", "h.anchor_crc32 + 1"),
    ];
    for table in ["task_progress", "task_resource", "task_metrics"] {
        all.extend([
            (table, "task_id", other_task),
            (table, "reported_at", later),
            (table, "event_partition", "(h.event_partition + 1) % 3"),
            (table, "event_offset", another_offset),
        ]);
    }
    all
}

#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn every_row_that_is_deleted_doubled_or_altered_is_found_precisely_and_repaired(kind: Kind) {
    let Some(pipeline) = stored(kind).await else {
        return;
    };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let clean = pipeline.audit(&[]);
    clean.assert_equal();
    assert_eq!(clean.total("events"), EVENTS as u64);
    let contents = pipeline.contents().await;

    let found = |what: &str, expected: (&str, &str, i64, i64, &[&str])| {
        let audited = pipeline.audit(&[]);
        let (table, fault, partition, offset, columns) = expected;
        let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
        let expected = vec![(
            table.to_owned(),
            fault.to_owned(),
            partition,
            offset,
            columns,
        )];
        assert_eq!(
            audited.findings(),
            expected,
            "{what}, seed {seed}: {}",
            audited.log
        );
        assert_eq!(audited.code, 1, "{what}");
        assert_eq!(audited.report["verdict"], "unequal");
        let repaired = pipeline.audit(&["--repair"]);
        repaired.assert_equal();
        assert!(
            repaired.log.contains("repaired partition"),
            "{}",
            repaired.log
        );
        assert_eq!(repaired.report["digest"], clean.report["digest"], "{what}");
    };

    for (table, column, value) in alterations(kind) {
        let what = format!("{table}.{column}");
        let (condition, partition, offset) = match table {
            "consumed_offset" => {
                let (part, partition) = ("resource", rng.random_range(0..3));
                let next = format!(
                    "SELECT next_offset FROM consumed_offset WHERE part = '{part}' AND partition = {partition}"
                );
                let next = pipeline.count(&next).await;
                (
                    format!("part = '{part}' AND partition = {partition}"),
                    partition,
                    next,
                )
            }
            _ => {
                let (address, partition, offset) = pipeline.any_row(table, &mut rng).await;
                (pipeline.addressed(table, &address), partition, offset)
            }
        };
        pipeline
            .execute(&format!(
                "UPDATE {table} AS h SET {column} = {value} WHERE {condition}"
            ))
            .await;
        found(&what, (table, "differing", partition, offset, &[column]));
    }
    for table in ["task_progress", "task_resource", "task_metrics", "task"] {
        let (address, partition, offset) = pipeline.any_row(table, &mut rng).await;
        let condition = pipeline.addressed(table, &address);
        pipeline
            .execute(&format!("DELETE FROM {table} WHERE {condition}"))
            .await;
        found(
            &format!("{table} less a row"),
            (table, "missing", partition, offset, &[]),
        );

        let (address, partition, offset) = pipeline.any_row(table, &mut rng).await;
        let condition = pipeline.addressed(table, &address);
        let double = match table {
            "task" => {
                let columns = "job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, progress, \
                     reported_at, sequence, first_reported_at, ended_at, event_partition, event_offset";
                format!(
                    "INSERT INTO task (exec_id, {columns}) SELECT exec_id || '-again', {columns} FROM task WHERE {condition}"
                )
            }
            _ => String::new(),
        };
        match double.as_str() {
            "" => pipeline.double(table, &condition).await,
            double => pipeline.execute(double).await,
        }
        found(
            &format!("{table} and a row again"),
            (table, "extra", partition, offset, &[]),
        );
    }
    let of_offsets = "part = 'metrics' AND partition = 1";
    let next = format!("SELECT next_offset FROM consumed_offset WHERE {of_offsets}");
    let next = pipeline.count(&next).await;
    pipeline
        .execute(&format!("DELETE FROM consumed_offset WHERE {of_offsets}"))
        .await;
    found(
        "consumed_offset less a row",
        ("consumed_offset", "missing", 1, next, &[]),
    );
    assert_eq!(pipeline.contents().await, contents);
}

async fn a_lost_tail_a_lost_task_and_an_emptied_table_are_found_and_repaired(kind: Kind) {
    let Some(pipeline) = stored(kind).await else {
        return;
    };
    let clean = pipeline.audit(&[]);
    let contents = pipeline.contents().await;
    let count = async |table: &str, condition: &str| {
        let select = format!("SELECT count(*) FROM {table} WHERE {condition}");
        pipeline.count(&select).await as u64
    };
    let tail = "event_partition = 1 AND event_offset >= 150";
    let of_task = "task_id = (SELECT task_id FROM task WHERE exec_id = 'exec-42')";
    let histories = ["task_progress", "task_resource", "task_metrics"];

    // The end of a partition, in all three tables.
    let mut lost = 0;
    for table in histories {
        lost += count(table, tail).await;
        pipeline
            .execute(&format!("DELETE FROM {table} WHERE {tail}"))
            .await;
    }
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 1);
    assert_eq!(
        (audited.total("missing"), audited.total("extra")),
        (lost, 0),
        "{:#}",
        audited.report["counts"]
    );
    let missing_at: Vec<_> = audited.findings();
    assert!(missing_at.iter().filter(|(table, ..)| table != "task").all(
        |(_, fault, partition, offset, _)| fault == "missing" && *partition == 1 && *offset >= 150
    ));
    pipeline.audit(&["--repair"]).assert_equal();
    assert_eq!(pipeline.contents().await, contents);

    // All rows of a task.
    let mut lost = 1;
    for table in histories {
        lost += count(table, of_task).await;
        pipeline
            .execute(&format!("DELETE FROM {table} WHERE {of_task}"))
            .await;
    }
    pipeline
        .execute("DELETE FROM task WHERE exec_id = 'exec-42'")
        .await;
    let audited = pipeline.audit(&[]);
    assert_eq!(
        (
            audited.total("missing"),
            audited.total("extra"),
            audited.total("differing")
        ),
        (lost, 0, 0),
        "{:#}",
        audited.report["counts"]
    );
    pipeline.audit(&["--repair"]).assert_equal();
    assert_eq!(pipeline.contents().await, contents);

    // A whole table, and rows of a partition that the topic does not have.
    let lost = count("task_metrics", "1 = 1").await;
    pipeline.execute("DELETE FROM task_metrics").await;
    pipeline
        .double("task_resource", "event_partition = 2")
        .await;
    pipeline
        .execute("UPDATE task_resource SET event_partition = 77 WHERE event_offset < 10")
        .await;
    let audited = pipeline.audit(&[]);
    assert_eq!((audited.code, audited.total("missing") >= lost), (1, true));
    let repaired = pipeline.audit(&["--repair"]);
    repaired.assert_equal();
    assert_eq!(repaired.report["digest"], clean.report["digest"]);
    assert_eq!(pipeline.contents().await, contents);
}
