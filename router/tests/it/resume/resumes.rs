//! A router without committed offsets resumes behind its last outputs.

use std::path::Path;
use std::time::Duration;

use super::{route, send, write};
use crate::faults_support::{Broker, Load, Topics};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::BaseRecord;
use schemas::{DeadLetter, Reject};
use service::testing::{Process, kafka, read_all, service, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_router_whose_group_was_deleted_resumes_behind_its_last_outputs() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    // Partition 0 ends with a letter, 1 has only letters, 2 only events, 3 nothing.
    send(&topics, 0, 300, |i| i % 7 == 0 || i > 290);
    send(&topics, 1, 100, |_| true);
    send(&topics, 2, 2_500, |_| false);
    let log = route(&topics, "before", &[]).await;
    assert!(!log.contains("resuming"), "{log}");

    // Without and with records to route.
    for (count, name) in [(0, "idle"), (400, "with-a-backlog")] {
        topics.delete_group().await;
        for partition in 0..4 {
            send(&topics, partition, count, |i| i % 9 == 0);
        }
        let log = route(&topics, name, &[]).await;
        assert!(
            log.contains("partition 2: resuming at offset 2500"),
            "{log}"
        );
    }
    let letters = 43 + 9 - 1 + 100 + 4 * 45;
    let events = 300 + 100 + 2_500 + 1_600 - letters;
    assert_eq!(topics.audit().await, (events, letters));
}

/// Runs a command of the program beside the routers; returns its exit code and output.
fn run(topics: &Topics, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_router"));
    let servers = ["--bootstrap-servers", &topics.bootstrap];
    let ended = command.args(arguments).args(servers).output().unwrap();
    let printed = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8(printed).unwrap())
}

/// A consumer's letter about an event on partition 0.
fn set_aside(topics: &Topics, event: &OwnedMessage) {
    let letter = DeadLetter {
        topic: &topics.events,
        topic_id: None,
        partition: 0,
        offset: event.offset(),
        timestamp_ms: event.timestamp().to_millis(),
        first: None,
        service: "consumer",
        instance: "consumer-1",
        reject: &Reject {
            stage: "TASK_PUT",
            refused_by: "consumer::store",
            kind: "DatabaseRefused",
            message: "a value".to_owned(),
        },
    };
    let letter = letter.letter(event.key(), event.payload(), 1_000_000);
    let mut record = BaseRecord::<[u8], [u8]>::to(&topics.letters)
        .headers(service::kafka::headers(&letter.headers));
    (record.key, record.payload) = (letter.key, letter.value);
    write(topics, record);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redriven_event_does_not_count_as_output_for_a_router_without_offsets_or_an_audit() {
    let Some(bootstrap) = kafka() else { return };
    let mut topics = Topics::make(&bootstrap, 2).await;
    topics.events = format!("{}-one", topics.events);
    topics.create(&topics.events, 1).await;
    send(&topics, 0, 100, |_| false);
    route(&topics, "before", &[]).await;
    // So many that the first tail contains only the copy of partition 0.
    send(&topics, 1, 1_500, |_| false);
    route(&topics, "between", &[]).await;
    let events = read_all(&bootstrap, &topics.events);
    let event = schemas::decode_event(events[5].payload()).unwrap();
    assert_eq!((event.source.partition, event.source.offset), (0, 5));
    set_aside(&topics, &events[5]);
    let letters = ["--dead-letters-topic", &topics.letters];
    let redrive = [&["dead-letters", "redrive", "--all"], &letters[..]].concat();
    let (code, printed) = run(&topics, &redrive);
    assert_eq!(code, Some(0), "{printed}");
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 1_601);

    let audit = [
        "audit",
        "--source-topic",
        &topics.source,
        "--events-topic",
        &topics.events,
        "--group",
        &topics.source,
        letters[0],
        letters[1],
    ];
    let is_equal = |records: u32| {
        let (code, printed) = run(&topics, &audit);
        assert_eq!(code, Some(0), "{printed}");
        assert!(
            printed.contains("       1 redriven, not a fault"),
            "{printed}"
        );
        let equal = format!(
            "equal: {records} records of {}, {records} events",
            topics.source
        );
        assert!(printed.contains(&equal), "{printed}");
    };
    is_equal(1_600);
    topics.delete_group().await;
    send(&topics, 0, 20, |_| false);
    let log = route(&topics, "after", &[]).await;
    assert!(
        log.contains("partition 0: resuming at offset 100,"),
        "{log}"
    );
    is_equal(1_620);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_router_whose_offsets_have_expired_resumes_behind_its_last_outputs() {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let soon = [
        "offsets.retention.minutes=1",
        "offsets.retention.check.interval.ms=1000",
    ];
    let broker = Broker::start(tool, &soon).await;
    let topics = Topics::make(&broker.bootstrap, 2).await;
    topics.send_good(500);
    route(&topics, "before", &[]).await;
    until("the offsets expire", Duration::from_secs(300), async || {
        topics.committed()?.is_empty().then_some(())
    })
    .await;
    topics.send_good(500);
    route(&topics, "after", &[]).await;
    assert_eq!(topics.audit().await, (1_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_of_another_group_does_not_begin_beside_those_that_route_the_topic() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    let load = Load::start(&topics, 300);
    let router = topics.start_static("router", &[]);
    until("records are routed", Duration::from_secs(60), async || {
        topics
            .committed()?
            .values()
            .find(|offset| **offset > 100)
            .copied()
    })
    .await;
    let (group, folder) = (
        format!("{}-renamed", topics.source),
        tempfile::tempdir().unwrap(),
    );
    let mut arguments = topics.arguments(&[]);
    *arguments.last_mut().unwrap() = &group;
    let program = Path::new(env!("CARGO_BIN_EXE_router"));
    let mut renamed = Process::start(folder.path(), "renamed", program, &arguments);
    let ended = renamed.ended().await;
    let log = renamed.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    assert!(log.contains("routers of another group"), "{log}");
    load.stop().await;
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    let (_, letters) = topics.audit().await;
    assert_eq!(letters, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_lost_their_offsets_resume_beside_those_that_kept_them() {
    let Some(bootstrap) = kafka() else { return };
    let mut topics = Topics::make(&bootstrap, 4).await;
    // Keys belong to other partitions there.
    topics.events = format!("{}-fewer", topics.events);
    topics.create(&topics.events, 3).await;
    topics.send_good(3_000);
    route(&topics, "before", &[]).await;
    let kept = topics.committed().unwrap();
    topics.delete_group().await;
    for partition in [0, 2] {
        topics.reset_offset(partition, kept[&partition]).await;
    }
    topics.send_good(1_000);
    let log = route(&topics, "after", &[]).await;
    for partition in 0..4 {
        let resumed = log.contains(&format!("partition {partition}: resuming at"));
        assert_eq!(resumed, partition % 2 == 1, "{log}");
    }
    assert_eq!(topics.audit().await, (4_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_routers_transaction_is_settled_before_another_resumes() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    let short = [
        "-X",
        "session.timeout.ms=6000",
        "-X",
        "transaction.timeout.ms=8000",
    ];
    topics.send_good(500);
    let slow = [&short[..], &["--commit-interval-ms", "5000"]].concat();
    let killed = topics.start("killed", &slow);
    topics.until_routed(Duration::from_secs(120)).await;
    topics.send_good(500);
    topics.until_transaction_is_open().await;
    killed.kill();
    topics.delete_group().await;
    assert!(topics.transaction_is_open(), "the group lived too long");
    // With another transactional id, so that only the timeout ends the transaction.
    let router = topics.start_static("another", &short);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(
        router.log().contains("resuming at offset"),
        "{}",
        router.log()
    );
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (1_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_deleted_source_topic_do_not_count_for_the_start_of_its_successor() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.send_good(321);
    route(&topics, "before", &[]).await;
    for count in [123, 400] {
        topics.delete(&topics.source).await;
        topics.create(&topics.source, 1).await;
        topics.send_good(count);
        route(&topics, &format!("begins-{count}"), &[]).await;
    }
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 321 + 123 + 400);
}
