//! A topic's id, on a real Kafka.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::Offset;
use service::kafka::{Cluster, KafkaOptions};
use service::subscription::{Next, Subscription};
use service::testing::{
    ASK, NOBODY, Topic, create_topics, delete_topic, kafka, service as tool, unique, until,
};
use service::topic_id::{TopicId, TopicIdAnswer, topic_id};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaOptions,
}

fn options(bootstrap: &str) -> KafkaOptions {
    Cli::parse_from(["test", "--bootstrap-servers", bootstrap]).kafka
}

async fn cluster(bootstrap: &str) -> Cluster {
    let (options, shutdown) = (options(bootstrap), CancellationToken::new());
    options.cluster(&shutdown).await.unwrap().unwrap()
}

async fn create(bootstrap: &str, name: &str) {
    let topic = Topic {
        name,
        partitions: 1,
        settings: &[],
    };
    create_topics(bootstrap, &[topic]).await;
}

/// As `kafka-topics.sh --describe` prints it.
fn printed_by_kafka(tool: &str, bootstrap: &str, topic: &str) -> TopicId {
    let output = Command::new(tool)
        .args(["tool", "kafka-topics", "--bootstrap-server", bootstrap])
        .args(["--describe", "--topic", topic])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (_, rest) = text.split_once("TopicId: ").expect(&text);
    rest.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topics_id_equals_that_of_kafkas_tool_and_changes_after_it_was_deleted_and_created() {
    let (Some(bootstrap), Some(tool)) = (kafka(), tool("TEST_KAFKA_TOOL")) else {
        return;
    };
    let topic = unique("topic-id");
    let cluster = cluster(&bootstrap).await;
    let ask = async || cluster.topic_id(&topic).await.unwrap();
    assert_eq!(ask().await, TopicIdAnswer::NoSuchTopic);

    create(&bootstrap, &topic).await;
    let first = printed_by_kafka(&tool, &bootstrap, &topic);
    assert_eq!(ask().await, TopicIdAnswer::Id(first));

    delete_topic(&bootstrap, &topic).await;
    assert_eq!(ask().await, TopicIdAnswer::NoSuchTopic);

    create(&bootstrap, &topic).await;
    let second = printed_by_kafka(&tool, &bootstrap, &topic);
    assert_eq!(ask().await, TopicIdAnswer::Id(second));
    assert_ne!(first, second);
}

/// As in the consumer, whose loop has one thread.
#[tokio::test(flavor = "current_thread")]
async fn a_member_of_a_group_gets_the_topic_id_while_it_reads() {
    let Some(bootstrap) = kafka() else { return };
    let topic = unique("topic-id");
    create(&bootstrap, &topic).await;
    let member = Subscription::join(
        &options(&bootstrap),
        &topic,
        1,
        &topic,
        None,
        Arc::default(),
    )
    .unwrap();
    let assign = |mut partitions: rdkafka::TopicPartitionList| {
        partitions.set_all_offsets(Offset::Beginning).unwrap();
        member.assign(&partitions).unwrap();
    };
    let received = until(
        "the id is received while the member reads",
        ASK,
        async || {
            tokio::select! {
                biased;
                next = member.next() => {
                    match next.unwrap() {
                        Next::Assigned(partitions) => assign(partitions),
                        other => panic!("{other:?}"),
                    }
                    None
                }
                received = member.topic_id(ASK) => Some(received.unwrap()),
            }
        },
    );
    let TopicIdAnswer::Id(id) = received.await else {
        panic!("no id");
    };
    let cluster = cluster(&bootstrap).await;
    assert_eq!(cluster.topic_id(&topic).await, Ok(TopicIdAnswer::Id(id)));
    member.leave().await;
}

#[tokio::test]
async fn a_request_to_a_silent_cluster_ends_after_the_callers_timeout() {
    let client: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", NOBODY)
        .create()
        .unwrap();
    let asked = Instant::now();
    let answer = topic_id(client.client(), "topic", Duration::from_millis(300)).await;
    assert!(answer.is_err(), "{answer:?}");
    assert!(asked.elapsed() < ASK, "{:?}", asked.elapsed());
    // An abandoned request does not affect the client.
    let _ = tokio::time::timeout(
        Duration::from_millis(5),
        topic_id(client.client(), "topic", ASK),
    )
    .await;
    drop(client);
}
