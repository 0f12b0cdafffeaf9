//! A member of a consumer group, on a real Kafka.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::Offset;
use service::kafka::KafkaOptions;
use service::subscription::{Next, Subscription};
use service::testing::{ASK, Topic, create_topics, kafka, unique};
use tokio::time::timeout;

/// Tokio's budget: number of operations before a task must yield.
const BUDGET: usize = 128;

const RECORDS: usize = 20 * BUDGET;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    kafka: KafkaOptions,
}

/// Writes all records in one batch, so that one fetch returns them all.
fn put(bootstrap: &str, topic: &str) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("linger.ms", "5000")
        .create()
        .unwrap();
    for _ in 0..RECORDS {
        let record = BaseRecord::<[u8], [u8]>::to(topic).payload(b"a record");
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(ASK).unwrap();
}

/// Reads all records, and returns the maximum number read in a row without yielding.
async fn most_in_a_row(subscription: &Subscription) -> usize {
    let (mut read, mut in_a_row, mut most) = (0, 0, 0);
    while read < RECORDS {
        let mut next = pin!(subscription.next());
        let mut let_go = false;
        let next = poll_fn(|cx| {
            let polled = next.as_mut().poll(cx);
            let_go |= matches!(polled, Poll::Pending);
            polled
        });
        match next.await.unwrap() {
            Next::Record(_) => {
                read += 1;
                in_a_row = if let_go { 0 } else { in_a_row + 1 };
                most = most.max(in_a_row);
            }
            Next::Assigned(mut partitions) => {
                partitions.set_all_offsets(Offset::Beginning).unwrap();
                subscription.assign(&partitions).unwrap();
            }
            Next::Revoked { partitions, .. } => panic!("{partitions:?} were revoked"),
        }
    }
    most
}

#[tokio::test]
async fn a_member_with_a_backlog_lets_others_have_its_thread_now_and_then() {
    let Some(bootstrap) = kafka() else { return };
    let topic = unique("backlog");
    let of_topic = Topic {
        name: &topic,
        partitions: 1,
        settings: &[],
    };
    create_topics(&bootstrap, &[of_topic]).await;
    put(&bootstrap, &topic);
    let options = Cli::parse_from(["test", "--bootstrap-servers", &bootstrap]).kafka;
    let group = unique("backlog");
    let subscription =
        Subscription::join(&options, &topic, 1, &group, None, Arc::default()).unwrap();
    let most = timeout(ASK, most_in_a_row(&subscription)).await;
    // Leave before an assertion ends the test: a dropped member waits for its group.
    subscription.leave().await;
    let most = most.unwrap();
    assert!(
        (BUDGET / 2..=BUDGET).contains(&most),
        "{most} of {RECORDS} records came in a row"
    );
}
