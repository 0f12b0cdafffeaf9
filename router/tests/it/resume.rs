//! Routers whose group has lost committed offsets: where they go on, and when they stop instead. And what
//! stands in a topic beside records: markers, which positions pass.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::faults_support::{Broker, Load, Topics, client, numbered, until_it_has_partitions};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::{DeadLetter, Reject};
use service::testing::{ANY_PORT, Process, kafka, read_all, service, until};

/// Letters are no reason to stop.
const ANY_LETTERS: [&str; 4] = ["--max-rejects-in-a-row", "0", "--max-rejects-per-1000", "0"];
const BAD: &[u8] = b"{}";

/// Sends so many records to a partition; those are bad that the function says.
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

/// Routes all there is, and stops.
async fn route(topics: &Topics, name: &str, more: &[&str]) -> String {
    let more = [&ANY_LETTERS[..], more].concat();
    let router = topics.start(name, &more);
    topics.until_routed(Duration::from_secs(120)).await;
    let log = router.log();
    assert_eq!(router.stop().await.code(), Some(0));
    log
}

/// It ends with 78 and names the group, the partition and both choices; gives what it says.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_router_whose_group_was_deleted_goes_on_behind_its_last_outputs() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    // Partition 0 ends with a letter, 1 has nothing but letters, 2 nothing but events, 3 nothing.
    send(&topics, 0, 300, |i| i % 7 == 0 || i > 290);
    send(&topics, 1, 100, |_| true);
    send(&topics, 2, 2_500, |_| false);
    let log = route(&topics, "before", &[]).await;
    assert!(!log.contains("resuming"), "{log}");

    // With nothing to route, and with something.
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

/// Runs a command of the program beside the routers; gives its exit code and what it printed.
fn run(topics: &Topics, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_router"));
    let servers = ["--bootstrap-servers", &topics.bootstrap];
    let ended = command.args(arguments).args(servers).output().unwrap();
    let told = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8(told).unwrap())
}

/// A consumer's letter about an event, which is on partition 0.
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

fn write(topics: &Topics, record: BaseRecord<'_, [u8], [u8]>) {
    let producer: ThreadedProducer<_> = client(&topics.bootstrap).create().unwrap();
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(60)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_redriven_is_no_output_to_a_router_without_offsets_or_an_audit() {
    let Some(bootstrap) = kafka() else { return };
    let mut topics = Topics::make(&bootstrap, 2).await;
    topics.events = format!("{}-one", topics.events);
    topics.create(&topics.events, 1).await;
    send(&topics, 0, 100, |_| false);
    route(&topics, "before", &[]).await;
    // So many that the tail that is read first holds nothing of partition 0 but the copy.
    send(&topics, 1, 1_500, |_| false);
    route(&topics, "between", &[]).await;
    let events = read_all(&bootstrap, &topics.events);
    let event = schemas::decode_event(events[5].payload()).unwrap();
    assert_eq!((event.source.partition, event.source.offset), (0, 5));
    set_aside(&topics, &events[5]);
    let letters = ["--dead-letters-topic", &topics.letters];
    let redrive = [&["dead-letters", "redrive", "--all"], &letters[..]].concat();
    let (code, told) = run(&topics, &redrive);
    assert_eq!(code, Some(0), "{told}");
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
        let (code, told) = run(&topics, &audit);
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("       1 redriven, no fault"), "{told}");
        let equal = format!(
            "equal: {records} records of {}, {records} events",
            topics.source
        );
        assert!(told.contains(&equal), "{told}");
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
async fn an_event_of_the_last_possible_offset_that_no_router_wrote_stops_a_router_without_offsets()
{
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    send(&topics, 0, 10, |_| false);
    route(&topics, "before", &[]).await;
    let events = read_all(&bootstrap, &topics.events);
    let mut event = schemas::decode_event(events[0].payload()).unwrap();
    event.source.offset = i64::MAX;
    let value = schemas::encode_event(&event).unwrap();
    let record = BaseRecord::to(&topics.events).payload(&value[..]);
    write(&topics, record);
    topics.delete_group().await;
    let why = stops_with_both_choices(topics.start("stops", &[]), &topics).await;
    assert!(why.contains("or another program wrote into"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_whose_offsets_have_expired_goes_on_behind_its_last_outputs() {
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
async fn partitions_that_lost_their_offsets_go_on_beside_those_that_kept_them() {
    let Some(bootstrap) = kafka() else { return };
    let mut topics = Topics::make(&bootstrap, 4).await;
    // Keys have other partitions there.
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
async fn what_a_killed_router_left_open_is_settled_before_another_resumes() {
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
    // By another transactional id, so that nothing but time ends the transaction.
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
async fn without_an_offset_a_router_stops_or_begins_again_where_it_is_told_to() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    topics.send_good(200);
    // Where nothing was routed yet there is nothing to double.
    route(&topics, "before", &["--on-no-offset", "fail"]).await;
    assert_eq!(topics.audit().await, (200, 0));
    topics.delete_group().await;

    let router = topics.start("fails", &["--on-no-offset", "fail"]);
    stops_with_both_choices(router, &topics).await;
    assert_eq!(topics.audit().await, (200, 0));

    let log = route(&topics, "again", &["--on-no-offset", "beginning"]).await;
    assert!(log.contains("--on-no-offset beginning"), "{log}");
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_retention_has_deleted_the_outputs_a_router_stops_and_a_new_partition_begins() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.send_good(200);
    route(&topics, "before", &[]).await;
    let end = topics.ends(&topics.events, "read_uncommitted").unwrap()[&0];
    topics.delete_before(&topics.events, 0, end).await;
    topics.delete_group().await;
    topics.send_good(50);
    let why = stops_with_both_choices(topics.start("unproved", &[]), &topics).await;
    assert!(
        why.contains(&format!(
            "{} partition 0, whose log begins at offset {end}",
            topics.events
        )),
        "{why}"
    );
    topics.reset_offset(0, 200).await;
    route(&topics, "decided", &[]).await;
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 50);

    // What is left there is older than the new partition's first record, and so was what is gone.
    let (old, now) = (3 * 86_400_000, 86_400_000);
    let producer: ThreadedProducer<_> = client(&bootstrap).create().unwrap();
    let another = format!("{}-other", topics.events);
    topics.create(&another, 1).await;
    for age in [old, old, now] {
        let record = BaseRecord::<(), [u8]>::to(&another).payload(b"another's");
        let stamp = jiff::Timestamp::now().as_millisecond() - age;
        let sent = producer.send(record.timestamp(stamp));
        sent.map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    topics.delete_before(&another, 0, 1).await;
    let mut topics = topics;
    topics.events = another;
    topics.grow_source(2).await;
    topics.send_to_partition(1, 70);
    let log = route(&topics, "grown", &[]).await;
    assert!(log.contains("neither events nor dead letters"), "{log}");
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 2 + 70);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_source_topic_that_was_deleted_do_not_tell_where_to_begin_its_successor() {
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

/// Sends so many good records to a partition in a transaction.
fn send_in_transaction(topics: &Topics, partition: i32, count: i64, commits: bool) {
    let producer: ThreadedProducer<_> = client(&topics.bootstrap)
        .set("transactional.id", &topics.source)
        .create()
        .unwrap();
    let within = Duration::from_secs(60);
    producer.init_transactions(within).unwrap();
    producer.begin_transaction().unwrap();
    for i in 0..count {
        let (key, value) = numbered(i, 50);
        let record = BaseRecord::to(&topics.source).partition(partition);
        let sent = producer.send(record.key(key.as_bytes()).payload(&value[..]));
        sent.map_err(|(error, _)| error).unwrap();
    }
    producer.flush(within).unwrap();
    match commits {
        true => producer.commit_transaction(within).unwrap(),
        false => producer.abort_transaction(within).unwrap(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_behind_markers_are_committed_so_that_retention_may_pass_the_last_record() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let router = topics.start("router", &[]);
    until_it_has_partitions(&router, "router").await;
    send_in_transaction(&topics, 0, 10, true);
    send_in_transaction(&topics, 1, 10, false);
    send(&topics, 2, 10, |_| false);
    let ends = BTreeMap::from([(0, 11), (1, 11), (2, 10), (3, 0)]);
    assert_eq!(topics.ends(&topics.source, "read_committed").unwrap(), ends);
    let committed = async || (topics.committed()? == ends).then_some(());
    until("all is committed", Duration::from_secs(60), committed).await;
    let outputs = topics.ends(&topics.events, "read_uncommitted").unwrap();
    // Nothing moves, so nothing more is committed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        topics.ends(&topics.events, "read_uncommitted").unwrap(),
        outputs
    );

    // One that is stopped at once has committed them too.
    send_in_transaction(&topics, 3, 10, true);
    until("it is routed", Duration::from_secs(60), async || {
        (*topics.committed()?.get(&3)? >= 10).then_some(())
    })
    .await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.committed().unwrap()[&3], 11);

    for (partition, end) in topics.ends(&topics.source, "read_committed").unwrap() {
        topics.delete_source_before(partition, end).await;
    }
    topics.send_good(100);
    let router = topics.start("later", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(read_all(&bootstrap, &topics.events).len(), 30 + 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_router_cannot_route_are_its_lag() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let more = ["--metrics-listen", ANY_PORT, "--max-records", "10"];
    let router = topics.start("router", &more);
    until_it_has_partitions(&router, "router").await;
    let lag = || {
        let labels = format!(
            "messaging_consumer_lag_messages{{messaging_destination_name=\"{}\",messaging_destination_partition_id=\"0\"}} ",
            topics.source
        );
        let (_, metrics) = router.get("/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&labels));
        line.map(|value| value.parse::<f64>().unwrap())
    };
    topics.send_good(10);
    topics.until_routed(Duration::from_secs(60)).await;
    until("no lag", Duration::from_secs(60), async || {
        (lag() == Some(0.0)).then_some(())
    })
    .await;
    // Transactions abort from here on.
    topics.limit_age_of_events(0).await;
    topics.send_good(5_000);
    until("the lag is told", Duration::from_secs(60), async || {
        lag().filter(|lag| (4_000.0..=5_000.0).contains(lag))
    })
    .await;
    topics.limit_age_of_events(i64::MAX).await;
    until("it is made up", Duration::from_secs(120), async || {
        (lag() == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (5_010, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_nobody_can_read_among_the_events_stops_only_where_it_may_be_the_next_event()
{
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.send_good(500);
    route(&topics, "before", &[]).await;
    // An event of an unknown schema, as a newer router's would be.
    let unreadable = [&[0xC3, 0x01][..], &[0xAB; 8], b"whatever"].concat();
    let send_unreadable = |key: &str| {
        let producer: ThreadedProducer<_> = client(&bootstrap).create().unwrap();
        let record = BaseRecord::to(&topics.events)
            .key(key.as_bytes())
            .payload(&unreadable[..]);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(60)).unwrap();
    };
    send_unreadable("a-stranger");
    topics.delete_group().await;
    topics.send_good(100);
    let log = route(&topics, "after", &[]).await;
    assert!(log.contains("partition 0: resuming at"), "{log}");
    let events = |topics: &Topics| read_all(&bootstrap, &topics.events).len();
    assert_eq!(events(&topics), 500 + 1 + 100);

    let (key, _) = numbered(0, 50);
    send_unreadable(&key);
    topics.delete_group().await;
    topics.send_good(100);
    let log = stops_with_both_choices(topics.start("stops", &ANY_LETTERS), &topics).await;
    assert!(log.contains("--schemas"), "{log}");
    assert_eq!(events(&topics), 500 + 1 + 100 + 1);
}
