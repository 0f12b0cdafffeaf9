//! Topics that are deleted and created again, with and without a running router, are recognised by their ids.

use std::time::Duration;

use crate::faults_support::{Topics, client, until_it_has_partitions};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::{ASK, Process, kafka, read_all, until};
use service::topic_id::{TopicId, TopicIdAnswer, topic_id};

const LONG: Duration = Duration::from_secs(120);

async fn id_of(topics: &Topics, topic: &str) -> TopicId {
    let client: BaseConsumer = client(&topics.bootstrap).create().unwrap();
    match topic_id(client.client(), topic, ASK).await.unwrap() {
        TopicIdAnswer::Id(id) => id,
        other => panic!("{topic}: {other:?}"),
    }
}

/// Deletes a topic and creates one of the same name; returns both ids.
async fn replace(topics: &Topics, topic: &str, partitions: i32) -> [TopicId; 2] {
    let before = id_of(topics, topic).await;
    topics.delete(topic).await;
    topics.create(topic, partitions).await;
    [before, id_of(topics, topic).await]
}

/// Asserts that the router ends with 78, and names the topic and both ids.
async fn ends_by(router: &mut Process, topic: &str, ids: [TopicId; 2]) {
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    for part in [topic.to_owned(), ids[0].to_string(), ids[1].to_string()] {
        assert!(last.contains(&part), "{part:?} is not in: {last}");
    }
}

/// A router that has routed this number of records of a topic.
async fn routed(topics: &Topics, count: i64) -> Process {
    let router = topics.start("router", &[]);
    topics.send_good(count);
    topics.until_routed(LONG).await;
    router
}

/// The source topic's id in each event.
fn source_ids(topics: &Topics) -> Vec<Option<TopicId>> {
    let events = read_all(&topics.bootstrap, &topics.events);
    let ids = events.iter().map(|event| {
        let event = schemas::decode_event(event.payload()).unwrap();
        event.source.topic_id.map(|id| id.parse().unwrap())
    });
    ids.collect()
}

/// Suspends a router, replaces its source topic by one with more records in each of `partitions`, and resumes
/// the router: it ends, without an event of the new topic, and without an offset of either.
async fn replaced_behind_its_back(before: i32, after: i32) {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, before).await;
    let mut router = routed(&topics, 200).await;
    router.signal("STOP");
    let ids = replace(&topics, &topics.source, after).await;
    for partition in 0..after {
        topics.send_to_partition(partition, 500);
    }
    router.signal("CONT");
    ends_by(&mut router, &topics.source, ids).await;
    assert_eq!(source_ids(&topics), vec![Some(ids[0]); 200]);
    assert_eq!(topics.committed().unwrap(), [].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_router_does_not_read_a_longer_source_topic_of_the_same_name_at_the_old_offsets()
 {
    replaced_behind_its_back(2, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_topic_of_fewer_partitions_is_distinguished_from_the_previous_one() {
    replaced_behind_its_back(4, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_topic_whose_log_begins_at_the_routers_position_is_distinguished_from_the_previous_one()
 {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let mut router = routed(&topics, 100).await;
    router.signal("STOP");
    let ids = replace(&topics, &topics.source, 1).await;
    topics.send_good(150);
    topics.delete_source_before(0, 100).await;
    router.signal("CONT");
    ends_by(&mut router, &topics.source, ids).await;
    assert_eq!(source_ids(&topics), vec![Some(ids[0]); 100]);
    assert_eq!(topics.committed().unwrap(), [].into());
}

/// As fast as by a script, while the router works.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_topic_replaced_under_a_running_router_ends_it_before_a_record_of_the_new_one_is_routed()
 {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    // With frequent metadata refreshes, librdkafka continues in the new topic as soon as possible.
    let more = ["-X", "topic.metadata.refresh.interval.ms=50"];
    let mut router = topics.start("router", &more);
    topics.send_good(100);
    topics.until_routed(LONG).await;
    let ids = replace(&topics, &topics.source, 1).await;
    topics.send_good(2_000);
    ends_by(&mut router, &topics.source, ids).await;
    assert_eq!(source_ids(&topics), vec![Some(ids[0]); 100]);
    assert_eq!(topics.committed().unwrap(), [].into());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_events_topic_replaced_under_an_idle_router_stops_it() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let mut router = routed(&topics, 50).await;
    let ids = replace(&topics, &topics.events, 1).await;
    ends_by(&mut router, &topics.events, ids).await;

    // After a restart, it writes to the new one.
    topics.send_good(20);
    let router = topics.start("again", &[]);
    topics.until_routed(LONG).await;
    assert!(router.stop().await.success());
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 20);
}

/// Commits an offset with metadata for the group, which must be empty.
fn commit(topics: &Topics, offset: i64, metadata: &str) {
    let consumer: BaseConsumer = client(&topics.bootstrap)
        .set("group.id", &topics.source)
        .create()
        .unwrap();
    let mut offsets = TopicPartitionList::new();
    let mut partition = offsets.add_partition(&topics.source, 0);
    partition.set_offset(Offset::Offset(offset)).unwrap();
    partition.set_metadata(metadata);
    consumer.commit(&offsets, CommitMode::Sync).unwrap();
}

/// The metadata of the group's committed offset.
fn committed_metadata(topics: &Topics) -> Option<String> {
    let consumer: BaseConsumer = client(&topics.bootstrap)
        .set("group.id", &topics.source)
        .create()
        .unwrap();
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topics.source, 0);
    let committed = consumer.committed_offsets(asked, ASK).ok()?;
    Some(committed.elements().first()?.metadata().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_offset_of_another_topic_is_refused_and_one_without_an_id_is_accepted() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let id = id_of(&topics, &topics.source).await;
    let other: TopicId = "ASNFZ4mrze8AESIzRFVmdw".parse().unwrap();
    topics.send_good(30);
    commit(&topics, 10, &format!("topic-id={other}"));
    let mut refused = topics.start("refused", &[]);
    ends_by(&mut refused, &topics.source, [other, id]).await;
    assert!(
        refused.log().contains("--reset-offsets"),
        "{}",
        refused.log()
    );
    assert_eq!(source_ids(&topics), []);

    // As committed by an older router or Kafka's tool.
    until("the group is empty", LONG, async || {
        let done = std::panic::catch_unwind(|| commit(&topics, 10, ""));
        done.ok()
    })
    .await;
    let router = topics.start("router", &[]);
    until_it_has_partitions(&router, "router").await;
    topics.until_routed(LONG).await;
    assert!(router.stop().await.success());
    assert_eq!(source_ids(&topics), vec![Some(id); 20]);
    assert_eq!(committed_metadata(&topics), Some(format!("topic-id={id}")));
}
