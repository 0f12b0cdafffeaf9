//! The consumer commits the group's offsets to Kafka, for tools that show lag.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::stopping::BlockableProxy;
use service::testing::until;

const LONG: Duration = Duration::from_secs(120);
/// Latency of a commit on a busy coordinator. With a commit per one-event transaction, heartbeats would be delayed for
/// minutes.
const SLOW: Duration = Duration::from_millis(40);
const EVENTS: usize = 30_000;
const PARTITIONS: i32 = 2;

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
