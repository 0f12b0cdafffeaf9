//! A repair fixes everything that is proven wrong, quickly, and nothing beyond that.

use std::time::Duration;

use crate::strategies;
use crate::support::{Audited, Kind, Pipeline, on_every_database};
use serde_json::Value;

on_every_database!(
    a_repair_that_would_remove_more_than_it_keeps_says_so_and_needs_yes,
    #[ignore = "heavy"]
    many_altered_rows_are_repaired_quickly,
    a_row_whose_right_task_is_gone_is_repaired,
    #[ignore = "heavy"]
    more_than_is_held_at_once_is_repaired,
);

async fn a_repair_that_would_remove_more_than_it_keeps_says_so_and_needs_yes(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 100, 0);
    pipeline.store_all().await;
    let equal = pipeline.audit(&[]);
    let contents = pipeline.contents().await;
    for table in ["task_progress", "task_resource", "task_metrics"] {
        for _ in 0..2 {
            pipeline.double(table, "1 = 1").await;
        }
    }
    let audited = pipeline.audit(&["--repair"]);
    audited.assert_code(1);
    assert_eq!(audited.total("extra"), 900);
    for words in [
        "task_metrics: write 0, remove 300, correct 0",
        "--yes",
        "nothing was repaired",
    ] {
        assert!(audited.log.contains(words), "{words}: {}", audited.log);
    }
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_metrics").await,
        400
    );
    // There is no digest for unequal tables.
    assert!(equal.report["digest"].is_string());
    assert_eq!(audited.report["digest"], Value::Null);
    let sha256 = |audited: &Audited, table: &str| {
        audited.report["partitions"][0]["tables"][table]["sha256"].clone()
    };
    assert_eq!(sha256(&audited, "task_metrics"), Value::Null);
    assert_eq!(sha256(&audited, "task"), sha256(&equal, "task"));
    let repaired = pipeline.audit(&["--repair", "--yes"]);
    repaired.assert_code(0);
    assert_eq!(repaired.report["digest"], equal.report["digest"]);
    assert_eq!(pipeline.contents().await, contents);
    // Events that are not stored yet are reported.
    pipeline.fill_numbered(&strategies::sample_event(), 7, 0);
    let audited = pipeline.audit(&[]);
    audited.assert_code(0);
    assert_eq!(audited.report["not_stored"]["events"], 7);
}

#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn many_altered_rows_are_repaired_quickly(kind: Kind) {
    const TASKS: usize = 4_000;
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill(TASKS, |i| {
        let mut event = sample.clone();
        event.info.exec_id = format!("exec-{i:05}");
        schemas::encode_event(&event).unwrap()
    });
    pipeline.store_all().await;
    let begun = std::time::Instant::now();
    pipeline.audit(&[]).assert_code(0);
    let clean = begun.elapsed();
    let contents = pipeline.contents().await;
    for alter in [
        "UPDATE task SET job_id = 'another'",
        "UPDATE task SET exec_id = exec_id || '-x'",
        "UPDATE task_metrics SET engine_running_tasks = engine_running_tasks + 1",
        "DELETE FROM task_progress",
        "DELETE FROM task",
    ] {
        pipeline.execute(alter).await;
        let begun = std::time::Instant::now();
        let repaired = pipeline.audit(&["--repair"]);
        // Two audits, with the repair between them.
        let took = begun.elapsed().saturating_sub(clean * 2);
        repaired.assert_code(0);
        println!(
            "{kind:?}: {alter}: {:.3} ms a row",
            took.as_secs_f64() * 1e3 / TASKS as f64
        );
        // It took 81 ms; the limit leaves room for a busy machine.
        assert!(
            took < Duration::from_millis(8 * TASKS as u64),
            "{alter}: {took:?}"
        );
        assert_eq!(pipeline.contents().await, contents, "{alter}");
    }
}

async fn a_row_whose_right_task_is_gone_is_repaired(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 400, 0);
    pipeline.store_all().await;
    let contents = pipeline.contents().await;
    // The rows of one task name another one, and its own row is gone.
    let of = |name: &str| format!("(SELECT task_id FROM task WHERE exec_id = '{name}')");
    for table in ["task_progress", "task_resource", "task_metrics"] {
        let update = format!(
            "UPDATE {table} SET task_id = {} WHERE task_id = {}",
            of("exec-13"),
            of("exec-12")
        );
        pipeline.execute(&update).await;
    }
    pipeline
        .execute("DELETE FROM task WHERE exec_id = 'exec-12'")
        .await;
    pipeline.audit(&[]).assert_code(1);
    pipeline.audit(&["--repair"]).assert_code(0);
    assert_eq!(pipeline.contents().await, contents);
}

/// Many rows per task, more than an audit holds at once.
async fn more_than_is_held_at_once_is_repaired(kind: Kind) {
    const EVENTS: usize = 30_000;
    const TASKS: usize = 800;
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill(EVENTS, |i| {
        let mut event = sample.clone();
        event.info.exec_id = format!("exec-{:03}-{}", i % TASKS, "x".repeat(200));
        event.info.sequence = (i / TASKS) as i64;
        event.info.reported_at += i as i64;
        schemas::encode_event(&event).unwrap()
    });
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(300)).await;
    consumer.stop().await;
    let equal = pipeline.audit(&[]);
    equal.assert_code(0);
    let of_tasks = |audited: &Audited, fault: &str| -> u64 {
        let partitions = audited.report["partitions"].as_array().unwrap();
        let counts = partitions
            .iter()
            .map(|it| it["tables"]["task"][fault].as_u64());
        counts.map(Option::unwrap).sum()
    };
    let all = "DELETE FROM task_progress; DELETE FROM task_resource; DELETE FROM task_metrics; DELETE FROM task";
    for (alter, fault, rounds) in [
        ("DELETE FROM task", "missing", 1),
        ("UPDATE task SET exec_id = exec_id || '-x'", "differing", 1),
        (all, "missing", 20),
    ] {
        pipeline.execute(alter).await;
        let audited = pipeline.audit(&["--limit", "1"]);
        audited.assert_code(1);
        assert_eq!(of_tasks(&audited, fault), TASKS as u64, "{alter}");
        let repaired = pipeline.audit(&["--repair"]);
        repaired.assert_code(0);
        assert_eq!(repaired.report["digest"], equal.report["digest"], "{alter}");
        let repairs = repaired.log.matches("to repair in").count();
        assert!(
            repairs <= rounds,
            "{alter}: {repairs} rounds: {}",
            repaired.log
        );
        assert!(!repaired.log.contains("meanwhile"), "{}", repaired.log);
    }
}
