//! A router's log while it waits or is throttled: one line when it begins, one when it is over.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::faults_support::{Broker, Load, Topics, client, numbered, until_it_has_partitions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::{ANY_PORT, Process, kafka, service, unique, until};

const WITHIN: Duration = Duration::from_secs(180);

async fn until_logged(router: &Process, words: &str) {
    until(&format!("it logs {words:?}"), WITHIN, async || {
        router.log().contains(words).then_some(())
    })
    .await;
}

/// A producer with an open transaction, like that of a suspended router.
fn open_transaction(topics: &Topics) -> BaseProducer {
    let producer: BaseProducer = client(&topics.bootstrap)
        .set("transactional.id", unique("another"))
        .set("transaction.timeout.ms", "600000")
        .create()
        .unwrap();
    producer.init_transactions(WITHIN).unwrap();
    producer.begin_transaction().unwrap();
    producer
}

/// A line without its time, the thread that wrote it, and numbers.
fn kind(line: &str) -> String {
    let (_, line) = line.split_once(' ').unwrap();
    let (head, rest) = line.split_once("[thrd:").unwrap_or((line, ""));
    let (_, rest) = rest.split_once("]: ").unwrap_or(("", rest));
    let (rest, _) = rest.split_once(" (after ").unwrap_or((rest, ""));
    let kind = format!("{head}{rest}");
    kind.chars().filter(|c| !c.is_ascii_digit()).collect()
}

fn value_of<'a>(page: &'a str, metric: &str) -> Option<&'a str> {
    page.lines().find_map(|line| line.strip_prefix(metric))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_waits_for_offsets_in_an_open_transaction_logs_that_and_the_longest_wait() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.send_good(10);
    let other = open_transaction(&topics);
    let group: BaseConsumer = client(&bootstrap)
        .set("group.id", &topics.source)
        .create()
        .unwrap();
    let mut offsets = TopicPartitionList::new();
    offsets
        .add_partition_offset(&topics.source, 0, Offset::Offset(0))
        .unwrap();
    let metadata = group.group_metadata().unwrap();
    other
        .send_offsets_to_transaction(&offsets, &metadata, WITHIN)
        .unwrap();

    let more = [
        "--metrics-listen",
        ANY_PORT,
        "-X",
        "transaction.timeout.ms=25000",
    ];
    let router = topics.start("router", &more);
    until_logged(
        &router,
        "waiting for the committed offsets: an open transaction",
    )
    .await;
    let log = router.log();
    assert!(
        log.contains(&format!("of group {}", topics.source)),
        "{log}"
    );
    assert!(log.contains("transaction.timeout.ms (25 s"), "{log}");
    assert!(!log.contains("OperationTimedOut"), "{log}");
    let (code, why) = router.get("/readyz").unwrap();
    assert!(code == 503 && why.contains("open transaction"), "{why}");

    other.commit_transaction(WITHIN).unwrap();
    topics.until_routed(WITHIN).await;
    let waits = router
        .log()
        .matches("waiting for the committed offsets")
        .count();
    assert_eq!(waits, 1, "{}", router.log());
    assert_eq!(router.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_behind_an_open_transaction_are_logged_once_and_their_release_too() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    topics.send_good(10);
    let router = topics.start("router", &[]);
    topics.until_routed(WITHIN).await;
    let other = open_transaction(&topics);
    let (key, value) = numbered(1, 1);
    let record = BaseRecord::to(&topics.source).partition(1).key(&key);
    other
        .send(record.payload(&value))
        .map_err(|(error, _)| error)
        .unwrap();
    other.flush(WITHIN).unwrap();

    until_logged(&router, "waiting for an open transaction, ").await;
    let log = router.log();
    let found = log
        .lines()
        .find(|line| line.contains("waiting for an open"))
        .unwrap();
    let stable = topics.ends(&topics.source, "read_committed").unwrap()[&1];
    let place = format!("in {}, partition 1 from offset {stable}.", topics.source);
    assert!(
        found.contains(&place) && found.contains("transaction.timeout.ms"),
        "{found}"
    );

    other.commit_transaction(WITHIN).unwrap();
    until_logged(
        &router,
        &format!(
            "the open transaction that held back {} has ended",
            topics.source
        ),
    )
    .await;
    topics.until_routed(WITHIN).await;
    let log = router.log();
    assert_eq!(
        log.matches("waiting for an open transaction").count(),
        1,
        "{log}"
    );
    assert_eq!(router.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_quota_that_slows_a_router_down_is_named_with_its_broker_and_so_is_its_end() {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let broker = Broker::start(tool, &[]).await;
    let topics = Topics::make(&broker.bootstrap, 1).await;
    let set_quota = |change: [&str; 2]| {
        let own = [
            "tool",
            "kafka-configs",
            "--bootstrap-server",
            &broker.bootstrap,
        ];
        let clients = ["--alter", "--entity-type", "clients", "--entity-default"];
        broker.run(&[&own[..], &clients, &change].concat());
    };
    let router = topics.start_static("router", &["--metrics-listen", ANY_PORT]);
    until_it_has_partitions(&router, "router").await;
    let throttled = |client: &str| {
        let (_, page) = router.get("/metrics")?;
        let metric = format!("taskrunning_throttled_seconds{{client=\"{client}\"}} ");
        value_of(&page, &metric)?.parse::<f64>().ok()
    };
    until("it says that it is not throttled", WITHIN, async || {
        (throttled("producer") == Some(0.0) && throttled("consumer") == Some(0.0)).then_some(())
    })
    .await;
    let load = Load::start(&topics, 200);
    set_quota(["--add-config", "producer_byte_rate=2000"]);
    let named = format!("the broker {} throttles this producer", broker.bootstrap);
    until_logged(&router, &named).await;
    let log = router.log();
    let found = log.lines().find(|line| line.contains(&named)).unwrap();
    assert!(
        found.contains(" waits up to ") && found.contains("kafka-configs.sh"),
        "{found}"
    );
    until("the metric says so", WITHIN, async || {
        (throttled("producer")? > 0.0).then_some(())
    })
    .await;

    set_quota(["--delete-config", "producer_byte_rate"]);
    load.stop().await;
    let over = format!(
        "the broker {} does not throttle this producer any more: it did for ",
        broker.bootstrap
    );
    until_logged(&router, &over).await;
    assert_eq!(router.log().matches(&named).count(), 1, "{}", router.log());
    topics.until_routed(WITHIN).await;
    assert_eq!(router.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_broker_that_is_away_is_one_line_of_each_kind_and_one_when_it_is_over() {
    /// Suppressed lines, at level debug.
    const LEFT_OUT: usize = 12;
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let broker = Broker::start(tool, &[]).await;
    let topics = Topics::make(&broker.bootstrap, 4).await;
    let debug = [
        "--log-level",
        "info,librdkafka=debug,router=debug,service=debug",
    ];
    let router = topics.start_static("router", &debug);
    topics.send_good(100);
    topics.until_routed(WITHIN).await;
    broker.run(&["stop"]);
    let refused = |levels: &[&str]| -> Vec<String> {
        let log = router.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("Connection refused"));
        let lines = lines.filter(|line| levels.iter().any(|level| line.contains(level)));
        lines.map(str::to_owned).collect()
    };
    until("lines are left out", WITHIN, async || {
        (refused(&["DEBUG"]).len() >= LEFT_OUT).then_some(())
    })
    .await;
    let loud = refused(&[" WARN ", "ERROR"]);
    let kinds: BTreeSet<String> = loud.iter().map(|line| kind(line)).collect();
    assert!(!loud.is_empty() && kinds.len() == loud.len(), "{loud:#?}");

    broker.run(&["start"]);
    until_logged(&router, "over after ").await;
    let log = router.log();
    let over = log
        .lines()
        .find(|line| line.contains("over after "))
        .unwrap();
    assert!(over.contains("left out"), "{over}");
    topics.send_good(100);
    topics.until_routed(WITHIN).await;
    assert_eq!(router.stop().await.code(), Some(0));
}
