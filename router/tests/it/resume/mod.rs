//! Routers whose group has lost committed offsets: where they resume, and when they stop. Also transaction
//! markers, which positions pass.

mod markers;
mod resumes;
mod stops;

use std::time::Duration;

use crate::faults_support::{Topics, client, numbered};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use service::testing::Process;

/// Letters must not stop the router.
const ANY_LETTERS: [&str; 4] = ["--max-rejects-in-a-row", "0", "--max-rejects-per-1000", "0"];

const BAD: &[u8] = b"{}";

/// Sends this number of records to a partition; the function chooses the bad ones.
fn send(topics: &Topics, partition: i32, count: i64, bad: impl Fn(i64) -> bool) {
    let producer: ThreadedProducer<_> = client(&topics.bootstrap).create().unwrap();
    for i in 0..count {
        let (key, good) = numbered(i, 50);
        let value = if bad(i) { BAD } else { &good[..] };
        let record = BaseRecord::to(&topics.source).partition(partition);
        let sent = producer.send(record.key(key.as_bytes()).payload(value));
        sent.map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

/// Routes all records, and stops.
async fn route(topics: &Topics, name: &str, more: &[&str]) -> String {
    let more = [&ANY_LETTERS[..], more].concat();
    let router = topics.start(name, &more);
    topics.until_routed(Duration::from_secs(120)).await;
    let log = router.log();
    assert_eq!(router.stop().await.code(), Some(0));
    log
}

/// Asserts that it ends with 78 and names the group, the partition and both choices; returns its log.
async fn stops_with_both_choices(mut router: Process, topics: &Topics) -> String {
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    for part in [
        topics.source.as_str(),
        "no committed offset",
        "partition",
        "--on-no-offset resume",
        "--on-no-offset beginning",
        "--reset-offsets --to-offset",
    ] {
        assert!(last.contains(part), "{part:?} is not in: {last}");
    }
    last.to_owned()
}

fn write(topics: &Topics, record: BaseRecord<'_, [u8], [u8]>) {
    let producer: ThreadedProducer<_> = client(&topics.bootstrap).create().unwrap();
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(60)).unwrap();
}
