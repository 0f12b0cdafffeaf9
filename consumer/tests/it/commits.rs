//! The consumer commits the group's offsets to Kafka, for tools that show lag.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::storing::report;
use crate::strategies;
use crate::support::{Kind, Pipeline, run};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::TaskStatus;
use service::testing::stopping::BlockableProxy;
use service::testing::{service, until};

const LONG: Duration = Duration::from_secs(120);
/// Latency of a commit on a busy coordinator. With a commit per one-event transaction, heartbeats would be delayed for
/// minutes.
const SLOW: Duration = Duration::from_millis(40);
const EVENTS: usize = 30_000;
const PARTITIONS: i32 = 2;
const PARTS: [&str; 3] = ["progress", "resource", "metrics"];

/// A member of the group that neither stores nor commits.
fn idle_member(pipeline: &Pipeline) -> BaseConsumer {
    let member: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("group.id", &pipeline.events)
        .set("enable.auto.commit", "false")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .create()
        .unwrap();
    member.subscribe(&[&pipeline.events]).unwrap();
    member
}

/// The group's committed offsets, by partition.
fn committed(pipeline: &Pipeline) -> BTreeMap<i32, Option<i64>> {
    let asked: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("group.id", &pipeline.events)
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_range(&pipeline.events, 0, PARTITIONS - 1);
    let committed = asked.committed_offsets(list, LONG).unwrap();
    let offset = |offset| match offset {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    };
    let elements = committed.elements().into_iter();
    elements
        .map(|element| (element.partition(), offset(element.offset())))
        .collect()
}

/// The lowest stored offset of all parts, by partition.
async fn stored(pipeline: &Pipeline) -> BTreeMap<i32, Option<i64>> {
    let select = "SELECT CAST(partition AS text), CAST(min(next_offset) AS text) FROM consumed_offset GROUP BY partition";
    let number = |value: &Option<String>| value.as_deref().unwrap().parse::<i64>().unwrap();
    let rows = pipeline.rows(select).await;
    rows.iter()
        .map(|row| (number(&row[0]) as i32, Some(number(&row[1]))))
        .collect()
}

/// At most one commit is in flight; the last one is sent before a partition is revoked and before leaving the group.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_busy_coordinator_has_one_commit_of_a_member_and_the_last_ones_arrive() {
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, PARTITIONS).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), EVENTS, 0);
    let proxy = BlockableProxy::to(&pipeline.bootstrap);
    proxy.slow_commits(SLOW);
    let broker = std::mem::replace(&mut pipeline.bootstrap, proxy.address().to_owned());
    let mut program = pipeline.program("each-event", &["--max-events", "1"]);
    pipeline.bootstrap = broker;
    let count = "SELECT count(*) FROM task_metrics";
    pipeline.until_count(count, 1_000).await;

    // A partition moves to another member, which does not change it.
    let other = idle_member(&pipeline);
    let taken = until("a partition is taken", LONG, async || {
        program.process.assert_running();
        tokio::task::block_in_place(|| other.poll(Duration::from_millis(100)));
        let assignment = other.assignment().unwrap();
        assignment.elements().first().map(|taken| taken.partition())
    })
    .await;
    let actual = committed(&pipeline)[&taken];
    assert_eq!(actual, stored(&pipeline).await[&taken]);
    assert!(actual.unwrap() < pipeline.ends()[&taken].1, "under load");
    drop(other);

    // It is stopped while it is storing.
    let before = pipeline.count(count).await;
    pipeline.until_count(count, before + 500).await;
    let log = program.log();
    assert!(!log.contains("lost to another consumer"), "{log}");
    program.stop().await;
    assert!(pipeline.count(count).await < EVENTS as i64, "under load");
    assert_eq!(committed(&pipeline), stored(&pipeline).await);
    let (commits, most_in_flight) = proxy.commits();
    assert!(commits > 10, "{commits}");
    assert_eq!(most_in_flight, 1, "of {commits}");

    // In the end the group has no lag.
    let program = pipeline.program("rest", &[]);
    pipeline.until_all_stored(LONG).await;
    let ends: BTreeMap<i32, Option<i64>> = pipeline
        .ends()
        .iter()
        .map(|(partition, (_, end))| (*partition, Some(*end)))
        .collect();
    until("the group is told all", LONG, async || {
        (committed(&pipeline) == ends).then_some(())
    })
    .await;
    program.stop().await;
}

/// The offsets and the lag that Kafka's own tool shows of a group: by topic and partition, each as printed.
fn described(tool: &str, pipeline: &Pipeline, group: &str) -> BTreeMap<(String, i32), [String; 3]> {
    let printed = run(
        tool,
        &[
            "tool",
            "kafka-consumer-groups",
            "--bootstrap-server",
            &pipeline.bootstrap,
            "--describe",
            "--group",
            group,
        ],
    );
    let lines = printed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|columns| columns.first() == Some(&group))
        .map(|columns| {
            let place = (columns[1].to_owned(), columns[2].parse().unwrap());
            (
                place,
                [columns[3], columns[4], columns[5]].map(str::to_owned),
            )
        })
        .collect()
}

/// What scales the groups by their lag counts commit markers, and takes a partition without a committed offset for one
/// that is at its beginning, or unknown (kedacore/keda#5675, #2612).
#[tokio::test(flavor = "multi_thread")]
async fn kafkas_own_tool_shows_no_lag_of_an_idle_pipeline() {
    const PARTITIONS: i32 = 3;
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, PARTITIONS).await else {
        return;
    };
    // All are of one task: two partitions of each topic never have a record.
    for sequence in 0..3 {
        pipeline.send_infos(&[report("a", sequence, 1, TaskStatus::Running, 0.5)]);
    }
    let router = pipeline.router();
    let groups: Vec<String> = PARTS
        .map(|part| format!("{}-{part}", pipeline.events))
        .into();
    let mut consumers = vec![pipeline.consumer(&[])];
    for (part, group) in PARTS.iter().zip(&groups) {
        consumers.push(pipeline.consumer(&["--part", part, "--group", group]));
    }
    for part in PARTS {
        pipeline.until_count(&Pipeline::stored(part), 3).await;
    }
    let all = [
        (&pipeline.source, &pipeline.source),
        (&pipeline.events, &pipeline.events),
    ];
    let parts = groups.iter().map(|group| (group, &pipeline.events));
    for (group, topic) in all.into_iter().chain(parts) {
        let all = (0..PARTITIONS).map(|partition| (topic.clone(), partition));
        let all: Vec<_> = all.collect();
        until("the tool shows no lag", LONG, async || {
            let shown = tokio::task::block_in_place(|| described(&tool, &pipeline, group));
            let caught_up = shown
                .values()
                .all(|[current, end, lag]| lag == "0" && current == end);
            (caught_up && shown.keys().eq(&all)).then_some(())
        })
        .await;
    }
    let events = described(&tool, &pipeline, &pipeline.events);
    let ends: Vec<_> = events
        .values()
        .map(|[current, ..]| current.parse::<i64>().unwrap())
        .collect();
    assert_eq!(ends.iter().filter(|end| **end == 0).count(), 2, "{ends:?}");
    assert!(
        ends.iter().any(|end| *end > 3),
        "no commit marker: {ends:?}"
    );
    for consumer in consumers {
        consumer.stop().await;
    }
    router.stop().await;
}
