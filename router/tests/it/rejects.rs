//! Unusable records: when they become dead letters, when they stop the router, and faults of their topic.

use std::time::Duration;

use crate::faults_support::{Broker, Topics, numbered, place};
use rdkafka::message::Message;
use service::testing::{Process, kafka, service, unique};

const JSON: &[u8] = b"{\"execId\": \"exec-1\"}";

/// Good and bad records, chosen by a function of their number.
fn records(count: i64, bad: impl Fn(i64) -> bool) -> Vec<(String, Vec<u8>)> {
    (0..count)
        .map(|i| {
            let (key, good) = numbered(i, 50);
            (key, if bad(i) { JSON.to_vec() } else { good })
        })
        .collect()
}

fn send(topics: &Topics, records: &[(String, Vec<u8>)]) {
    let records = records.iter();
    topics.send(records.map(|(key, value)| (key.as_str(), value.clone())));
}

/// Asserts that it ends with 78 and names the position of a wrong record, the reason and the option.
async fn ends_for_too_many_rejects(router: &mut Process, topics: &Topics, option: &str) {
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    for part in [&topics.source, "partition", "offset", "JSON", option] {
        assert!(last.contains(part), "{part:?} is not in: {last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_bad_records_stops_the_router_before_any_of_it_is_committed() {
    let Some(bootstrap) = kafka() else { return };
    let mut topics = Topics::make(&bootstrap, 2).await;
    send(&topics, &records(1_000, |_| true));
    // Transactions shorter than the breaker's limit, in which letters could be committed before it trips.
    for (name, more) in [("at-once", &[][..]), ("piecemeal", &["--max-records", "7"])] {
        let mut router = topics.start(name, more);
        ends_for_too_many_rejects(&mut router, &topics, "--max-rejects-in-a-row").await;
        assert_eq!(topics.committed().unwrap(), [].into(), "{name}");
        assert_eq!(topics.letters().len(), 0, "{name}");
    }

    // The right topic after all.
    let wrong = std::mem::replace(&mut topics.source, unique("right"));
    topics.create(&topics.source, 2).await;
    topics.send_good(100);
    let router = topics.start("right-topic", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (100, 0));

    // Or with a higher limit.
    topics.source = wrong;
    let router = topics.start(
        "allowed",
        &["--max-rejects-in-a-row", "0", "--max-rejects-per-1000", "0"],
    );
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    let mut places: Vec<_> = topics.letters().iter().map(place).collect();
    places.sort_unstable();
    let expected: Vec<(i32, i64)> = topics
        .ends(&topics.source, "read_committed")
        .unwrap()
        .into_iter()
        .flat_map(|(partition, end)| (0..end).map(move |offset| (partition, offset)))
        .collect();
    assert_eq!(places, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn good_records_before_a_backlog_of_bad_ones_are_routed_once_over_repeated_starts() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    send(&topics, &records(700, |i| i >= 200));
    for start in ["first", "second"] {
        let mut router = topics.start(start, &[]);
        ends_for_too_many_rejects(&mut router, &topics, "--max-rejects-in-a-row").await;
        assert_eq!(topics.letters().len(), 0, "{start}");
        let committed = topics.committed().unwrap().get(&0).copied();
        assert!(committed.unwrap_or(0) <= 200, "{start}: {committed:?}");
    }
    let router = topics.start(
        "raised",
        &[
            "--max-rejects-in-a-row",
            "501",
            "--max-rejects-per-1000",
            "1000",
        ],
    );
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (200, 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_bad_records_than_good_ones_stop_the_router_though_never_many_in_a_row() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    send(&topics, &records(3_000, |i| i % 5 < 3));
    let mut router = topics.start("router", &[]);
    ends_for_too_many_rejects(&mut router, &topics, "--max-rejects-per-1000").await;
    // Committed transactions are complete, and the rest is still unread.
    let router = topics.start("allowed", &["--max-rejects-per-1000", "0"]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (1_200, 1_800));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_bad_records_among_many_become_dead_letters() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    send(&topics, &records(1_000, |i| i % 25 == 0));
    let mut router = topics.start("router", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(topics.audit().await, (960, 40));

    // Rejects that arrive too slowly for a run become letters without waiting.
    for trickle in 1..=3 {
        send(&topics, &records(5, |_| true));
        topics.until_routed(Duration::from_secs(120)).await;
        assert_eq!(topics.letters().len(), 40 + trickle * 5);
    }
    // Fewer in a row than the limit, then good ones.
    send(&topics, &records(120, |i| i < 80));
    topics.until_routed(Duration::from_secs(120)).await;
    router.assert_running();
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (1_000, 135));
}

/// Single rejects are set aside until they reach the limit: the error counts the letters.
#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_stops_counts_the_bad_records_that_were_set_aside() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let mut router = topics.start("router", &["--max-rejects-in-a-row", "3"]);
    for count in 1..=2 {
        send(&topics, &records(1, |_| true));
        topics.until_routed(Duration::from_secs(120)).await;
        assert_eq!(topics.letters().len(), count);
    }
    send(&topics, &records(1, |_| true));
    ends_for_too_many_rejects(&mut router, &topics, "--max-rejects-in-a-row").await;
    let log = router.log();
    let letters = format!("2 of them became dead letters in {}", topics.letters);
    assert!(log.contains(&letters), "{log}");
    assert_eq!(topics.letters().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_topic_for_dead_letters_the_router_does_not_begin() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.delete(&topics.letters).await;
    send(&topics, &records(10, |i| i == 9));
    let mut router = topics.start("router", &[]);
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    assert!(
        log.contains(&format!("--create --topic {}", topics.letters)),
        "{log}"
    );
    assert_eq!(topics.committed().unwrap(), [].into());

    topics.create(&topics.letters, 1).await;
    let router = topics.start("router", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (9, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_deleted_while_running_stops_the_router_before_the_bad_record() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let mut router = topics.start("before", &[]);
    topics.send_good(100);
    topics.until_routed(Duration::from_secs(120)).await;
    topics.delete(&topics.letters).await;
    send(&topics, &records(11, |i| i == 5));
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    assert!(
        last.contains(&topics.letters) && last.contains("is gone"),
        "{last}"
    );
    let committed = topics.committed().unwrap()[&0];
    assert!(committed <= 105, "{committed} is past the wrong record");

    topics.create(&topics.letters, 1).await;
    let router = topics.start("after", &[]);
    topics.until_routed(Duration::from_secs(90)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (110, 1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn without_the_right_to_write_dead_letters_the_router_stops_and_names_the_right() {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let authorizer = [
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found=true",
    ];
    let broker = Broker::start(tool, &authorizer).await;
    let topics = Topics::make(&broker.bootstrap, 1).await;
    let allow = |user: &str, operations: &[&str]| {
        let mut arguments = vec!["tool", "kafka-acls", "--add", "--topic", &topics.letters];
        arguments.extend(["--allow-principal", user]);
        for operation in operations {
            arguments.extend(["--operation", operation]);
        }
        broker.run(&arguments);
    };
    allow("User:ANONYMOUS", &["Describe", "DescribeConfigs", "Read"]);
    send(&topics, &records(10, |i| i == 5));

    let mut router = topics.start("denied", &[]);
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    assert!(
        // Which of both texts depends on whether the broker still ended the transaction.
        last.contains("Topic authorization failed")
            && (last.contains("allow this user") || last.contains("this user needs the right")),
        "{last}"
    );
    // Only librdkafka names the topic.
    let mut lines = log.lines();
    assert!(
        lines.any(|line| line.contains(&topics.letters) && line.contains("authorization failed")),
        "{log}"
    );
    let committed = topics.committed().unwrap();
    assert_eq!(committed, [].into(), "before any commit");

    allow("User:ANONYMOUS", &["Write"]);
    let router = topics.start("allowed", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (9, 1));
    assert_eq!(topics.letters()[0].payload(), Some(JSON));
}
