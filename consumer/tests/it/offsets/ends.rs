//! Ends of partitions, markers and gaps: stored and committed offsets, and lag.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{CONSUMER, LONG, Open, delete_records, lags, stored, until_stored};
use crate::support::{Kind, Pipeline, on_every_database, run};
use crate::{strategies, support};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::{service, until};

on_every_database!(
    #[ignore = "heavy"]
    a_partition_read_to_its_end_is_stored_and_committed_up_to_there,
    markers_that_retention_removed_are_no_loss,
    a_gap_that_opens_under_a_running_consumer_is_skipped_if_configured,
    another_part_does_not_prove_that_a_gap_had_no_records,
);

/// A group's lags according to Kafka's own tool, by partition; `None` for "-".
fn told_lags(pipeline: &Pipeline, tool: &str, group: &str) -> BTreeMap<i32, Option<i64>> {
    let classes = run(tool, &["classpath"]);
    let output = Command::new("java")
        .args(["-cp", &classes])
        .arg("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand")
        .args(["--bootstrap-server", &pipeline.bootstrap])
        .args(["--describe", "--group", group])
        .output()
        .unwrap();
    let actual = String::from_utf8(output.stdout).unwrap();
    let lines = actual
        .lines()
        .map(|line| Vec::from_iter(line.split_whitespace()));
    lines
        .filter(|line| line.get(1) == Some(&pipeline.events.as_str()))
        .map(|line| (line[2].parse().unwrap(), line[5].parse().ok()))
        .collect()
}

/// One partition has committed events, one only aborted ones, and one is empty.
#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn a_partition_read_to_its_end_is_stored_and_committed_up_to_there(kind: Kind) {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let Some(pipeline) = Pipeline::make(kind, 3).await else {
        return;
    };
    Open::send(&pipeline, 0, 5).commit();
    Open::send(&pipeline, 1, 3).abort();
    let groups = [
        (pipeline.events.clone(), vec!["progress", "resource"]),
        (format!("{}-metrics", pipeline.events), vec!["metrics"]),
    ];
    let mut programs = Vec::new();
    for (group, parts) in &groups {
        let mut more = vec!["--group", group];
        more.extend(parts.iter().flat_map(|part| ["--part", part]));
        let mut program = pipeline.program(group, &more);
        until_stored(&pipeline, &mut program, parts).await;
        programs.push(program);
    }
    let none: BTreeMap<i32, Option<i64>> = (0..3).map(|p| (p, Some(0))).collect();
    for (group, _) in &groups {
        until("the tool shows no lag", LONG, async || {
            let lags = told_lags(&pipeline, &tool, group);
            println!("{lags:?}");
            (lags == none).then_some(())
        })
        .await;
    }
    // Events after an open transaction do not count as lag, for longer than a stalled service stays ready.
    let open = Open::send(&pipeline, 0, 4);
    for program in &mut programs {
        program.until_ready().await;
    }
    let zero: BTreeMap<i32, f64> = (0..3).map(|p| (p, 0.0)).collect();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(35) {
        for program in &programs {
            assert!(program.is_ready(), "{:?}", program.process.get("/readyz"));
            assert_eq!(lags(&pipeline, program), zero);
        }
        tokio::time::sleep(Duration::from_millis(500)).await; // a sample now and then
    }
    open.commit();
    for (program, (_, parts)) in programs.iter_mut().zip(&groups) {
        until_stored(&pipeline, program, parts).await;
    }
    pipeline
        .until_count("SELECT count(*) FROM task_metrics", 9)
        .await;
    for program in programs {
        program.stop().await;
    }
    let audit = Command::new(CONSUMER)
        .arg("audit")
        .args(["--bootstrap-servers", &pipeline.bootstrap])
        .args(["--events-topic", &pipeline.events])
        .args(["--dead-letters-topic", &pipeline.letters])
        .args(["--database-url", &pipeline.database_url])
        .output()
        .unwrap();
    assert_eq!(audit.status.code(), Some(0), "{audit:?}");
}

async fn markers_that_retention_removed_are_no_loss(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    Open::send(&pipeline, 0, 5).commit();
    Open::send(&pipeline, 1, 3).abort();
    let parts = ["progress", "resource", "metrics"];
    let mut program = pipeline.program("first", &[]);
    until_stored(&pipeline, &mut program, &parts).await;
    program.stop().await;
    for (partition, (_, end)) in pipeline.ends() {
        delete_records(&pipeline, partition, end).await;
    }
    let mut program = pipeline.program("second", &["--on-gap", "continue"]);
    Open::send(&pipeline, 0, 2).commit();
    Open::send(&pipeline, 1, 2).commit();
    until_stored(&pipeline, &mut program, &parts).await;
    let log = program.log();
    assert!(!log.contains("gap: retention removed"), "{log}");
    program.stop().await;
    assert_eq!(pipeline.count("SELECT count(*) FROM task_metrics").await, 9);

    // Stored as "last record + 1", as before positions were: records in between cannot be ruled out.
    let (_, end) = pipeline.ends()[&0];
    pipeline
        .execute("UPDATE consumed_offset SET next_offset = anchor_offset + 1 WHERE partition = 0")
        .await;
    delete_records(&pipeline, 0, end).await;
    let log = pipeline.program("unknown", &[]).needs_attention().await;
    assert!(
        log.contains("can no longer be determined") && log.contains("--on-gap"),
        "{log}"
    );
    // Another part does not prove it either, as it may have skipped them.
    pipeline
        .execute(&format!(
            "UPDATE consumed_offset SET next_offset = {end} WHERE partition = 0 AND part = 'metrics'"
        ))
        .await;
    let log = pipeline.program("known", &[]).needs_attention().await;
    assert!(log.contains("Nothing was skipped"), "{log}");
}

/// Another part that began after the gap, or skipped it on request, has not read the deleted records.
async fn another_part_does_not_prove_that_a_gap_had_no_records(kind: Kind) {
    for skips in [false, true] {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let sample = strategies::sample_event();
        pipeline.fill_numbered(&sample, 3, 0);
        let groups = ["progress", "resource"].map(|part| format!("{}-{part}", pipeline.events));
        let of_part = |name: &str, group: usize, more: &[&str]| {
            let part = ["progress", "resource"][group];
            let mut args = vec!["--group", groups[group].as_str(), "--part", part];
            args.extend(more);
            pipeline.program(name, &args)
        };
        let first: &[usize] = if skips { &[0, 1] } else { &[0] };
        for &group in first {
            let mut program = of_part(&format!("first-{group}"), group, &[]);
            until_stored(&pipeline, &mut program, &[["progress", "resource"][group]]).await;
            program.stop().await;
        }
        pipeline.fill_numbered(&sample, 3, 0);
        delete_records(&pipeline, 0, 6).await;
        let mut program = of_part("other", 1, &["--on-gap", "continue"]);
        until_stored(&pipeline, &mut program, &["resource"]).await;
        program.stop().await;
        let log = of_part("stops", 0, &[]).needs_attention().await;
        for message in ["begins at offset 6", "up to 3", "Nothing was skipped"] {
            assert!(log.contains(message), "{message}: {log}");
        }
        assert_eq!(stored(&pipeline, "progress").await, [(0, 3)].into());
    }
}

/// Retention deletes records that a stalled process was about to read.
async fn a_gap_that_opens_under_a_running_consumer_is_skipped_if_configured(kind: Kind) {
    for on_gap in ["continue", "fail"] {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let parts = ["progress", "resource", "metrics"];
        Open::send(&pipeline, 0, 5).commit();
        let mut program = pipeline.program("consumer", &["--on-gap", on_gap]);
        until_stored(&pipeline, &mut program, &parts).await;
        program.process.signal("STOP");
        // A waiting fetch is answered and read all the same.
        for _ in 0..5 {
            Open::send(&pipeline, 0, 5).commit();
        }
        delete_records(&pipeline, 0, pipeline.ends()[&0].1).await;
        Open::send(&pipeline, 0, 2).commit();
        program.process.signal("CONT");
        if on_gap == "fail" {
            let log = program.needs_attention().await;
            assert!(log.contains("--on-gap continue"), "{log}");
            continue;
        }
        until_stored(&pipeline, &mut program, &parts).await;
        assert!(
            program.log().contains("gap: retention removed"),
            "{}",
            program.log()
        );
        program.stop().await;
    }
}

/// Members join and leave under load: offsets refused during a rebalance are committed again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_group_has_no_lag_after_rebalances_under_load() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let mut program = pipeline.program("first", &[]);
    for round in 0..4 {
        let other = pipeline.program(&format!("other-{round}"), &[]);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            pipeline.fill_numbered(&sample, 8, 0);
        }
        other.stop().await;
    }
    let parts = ["progress", "resource", "metrics"];
    until_stored(&pipeline, &mut program, &parts).await;
    let ends = pipeline.ends();
    let asked: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("group.id", &pipeline.events)
        .create()
        .unwrap();
    until("the group is told all", LONG, async || {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&pipeline.events, 0, 3);
        let actual = asked.committed_offsets(list, LONG).unwrap();
        let actual = actual.elements().into_iter();
        let actual: Vec<_> = actual.map(|p| (p.partition(), p.offset())).collect();
        println!("{actual:?} of {ends:?}");
        actual
            .iter()
            .all(|(p, actual)| *actual == Offset::Offset(ends[p].1))
            .then_some(())
    })
    .await;
    program.stop().await;
}

/// A replay's stored offset is past the markers of its range, so it can continue after retention has deleted them.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_continues_after_retention_removed_the_markers_at_its_end() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    Open::send(&pipeline, 0, 5).commit();
    Open::send(&pipeline, 1, 3).abort();
    let file = pipeline.folder().join("into.db");
    let into = format!("sqlite:{}", file.display());
    let replay = || {
        let ended = Command::new(Path::new(CONSUMER))
            .args(["replay", "--bootstrap-servers", &pipeline.bootstrap])
            .args(["--events-topic", &pipeline.events, "--into", &into])
            .args(["--database-url", &pipeline.database_url])
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    };
    replay();
    for (partition, (_, end)) in pipeline.ends() {
        delete_records(&pipeline, partition, end).await;
    }
    Open::send(&pipeline, 0, 2).commit();
    Open::send(&pipeline, 1, 2).commit();
    replay();
    let mut database = support::connect(&into).await;
    let count = database.number("SELECT count(*) FROM task_metrics").await;
    assert_eq!(count.unwrap(), 9);
}
