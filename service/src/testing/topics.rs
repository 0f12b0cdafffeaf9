//! Topics of a test on a real Kafka, and their records.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::environment::{ASK, service, until};

/// A topic to create.
pub struct Topic<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its partitions.
    pub partitions: i32,
    /// Its settings, if they differ from the broker's.
    pub settings: &'a [(&'a str, &'a str)],
}

fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .unwrap()
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ASK))
}

/// Creates topics, and waits until their partitions have leaders: the broker answers before.
pub async fn create_topics(bootstrap: &str, topics: &[Topic<'_>]) {
    let admin = admin(bootstrap);
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .map(
            |Topic {
                 name,
                 partitions,
                 settings,
             }| {
                let topic = NewTopic::new(name, *partitions, TopicReplication::Fixed(1));
                settings
                    .iter()
                    .fold(topic, |topic, (key, value)| topic.set(key, value))
            },
        )
        .collect();
    for created in admin.create_topics(&new, &admin_options()).await.unwrap() {
        created.unwrap();
    }
    for topic in topics {
        until_led(&admin, topic.name, topic.partitions).await;
    }
}

/// Increases a topic's partitions to `count`, and waits until they have leaders.
pub async fn add_partitions(bootstrap: &str, topic: &str, count: i32) {
    let admin = admin(bootstrap);
    let more = NewPartitions::new(topic, usize::try_from(count).unwrap());
    let added = admin.create_partitions(&[more], &admin_options()).await;
    added.unwrap()[0].as_ref().unwrap();
    until_led(&admin, topic, count).await;
}

/// Alters a setting of a topic, and waits until the broker reports the new value.
pub async fn alter_topic(bootstrap: &str, topic: &str, key: &str, value: &str) {
    let admin = admin(bootstrap);
    let specifier = ResourceSpecifier::Topic(topic);
    let altered = AlterConfig::new(specifier).set(key, value);
    let altered = admin.alter_configs([&altered], &admin_options()).await;
    altered.unwrap()[0].as_ref().unwrap();
    until(&format!("{topic} has {key}={value}"), ASK, async || {
        let described = admin.describe_configs([&specifier], &admin_options()).await;
        let described = described.unwrap().remove(0).unwrap();
        let is_so = described.get(key)?.value.as_deref() == Some(value);
        is_so.then_some(())
    })
    .await;
}

/// Alters a topic's `max.message.bytes`, as [`alter_topic`] does.
pub async fn set_max_bytes(bootstrap: &str, topic: &str, bytes: u32) {
    alter_topic(bootstrap, topic, "max.message.bytes", &bytes.to_string()).await;
}

/// Deletes a topic, and waits until the broker no longer knows it.
pub async fn delete_topic(bootstrap: &str, topic: &str) {
    let admin = admin(bootstrap);
    let deleted = admin.delete_topics(&[topic], &admin_options()).await;
    deleted.unwrap()[0].as_ref().unwrap();
    until(&format!("{topic} is gone"), ASK, async || {
        let metadata = admin.inner().fetch_metadata(None, ASK).unwrap();
        let known = metadata.topics().iter().any(|known| known.name() == topic);
        (!known).then_some(())
    })
    .await;
}

async fn until_led(admin: &AdminClient<DefaultClientContext>, topic: &str, partitions: i32) {
    let client = admin.inner();
    until(&format!("{topic} is led"), ASK, async || {
        let metadata = client.fetch_metadata(Some(topic), ASK).unwrap();
        let known = metadata.topics()[0].partitions().len() == partitions as usize;
        let is_led = |partition| client.fetch_watermarks(topic, partition, ASK).is_ok();
        (known && (0..partitions).all(is_led)).then_some(())
    })
    .await;
}

/// A read_committed consumer without a group.
pub fn reader(bootstrap: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "false")
        .create()
        .unwrap()
}

/// Every committed record of a topic, up to the current last stable offsets; in offset order within a
/// partition.
pub fn read_all(bootstrap: &str, topic: &str) -> Vec<OwnedMessage> {
    let mut records = Vec::new();
    read_each(bootstrap, topic, |record| records.push(record.detach()));
    records
}

/// [`read_all`] one by one, for topics that are larger than memory.
pub fn read_each(bootstrap: &str, topic: &str, mut take: impl FnMut(BorrowedMessage<'_>)) {
    let consumer = reader(bootstrap);
    let metadata = consumer.fetch_metadata(Some(topic), ASK).unwrap();
    let mut ends = BTreeMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let (_, end) = consumer
            .fetch_watermarks(topic, partition.id(), ASK)
            .unwrap();
        ends.insert(partition.id(), end);
        assignment
            .add_partition_offset(topic, partition.id(), Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(record) = consumer.poll(Duration::from_millis(100)) {
            let record = record.unwrap();
            let more = record.offset() + 1 < ends[&record.partition()];
            take(record);
            deadline = Instant::now() + Duration::from_secs(60);
            if more {
                continue;
            }
        }
        let position = consumer.position().unwrap();
        // Markers take offsets too, so the position decides whether the end is reached, not the last record.
        let done = ends.iter().all(|(partition, end)| {
            *end == 0
                || position
                    .find_partition(topic, *partition)
                    .and_then(|p| p.offset().to_raw())
                    .is_some_and(|p| p >= *end)
        });
        if done {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the end of {topic} was not reached: {position:?} of {ends:?}"
        );
    }
}

/// Runs the command in a program's log that creates a missing topic, as an operator would. `false` without
/// the tool for it; see [`service`].
pub fn make_topic_as_hinted(log: &str) -> bool {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return false;
    };
    let (_, command) = log
        .split_once("create it with: kafka-topics.sh ")
        .expect(log);
    let arguments = command.lines().next().unwrap().split_whitespace();
    let made = Command::new(tool)
        .args(["tool", "kafka-topics"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(made.status.success(), "{command}: {made:?}");
    true
}

/// The broker's value of a setting of a topic.
pub async fn topic_setting(bootstrap: &str, topic: &str, key: &str) -> String {
    let admin = admin(bootstrap);
    let asked = [ResourceSpecifier::Topic(topic)];
    let answers = admin.describe_configs(&asked, &admin_options()).await;
    let answer = answers.unwrap().remove(0).unwrap();
    answer.get(key).unwrap().value.clone().unwrap()
}
