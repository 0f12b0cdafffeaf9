//! What may befall a router: it stands still, it is doubled, its broker freezes or goes away, its
//! topic grows, or loses what it had not read.

use std::time::{Duration, Instant};

use crate::faults_support::{
    Alongside, Broker, Load, Topics, client, numbered, until_it_has_partitions,
};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use service::testing::{ANY_PORT, Process, kafka, service, until};

/// What a router says that another has taken the place of.
fn tells_that_it_was_fenced(log: &str) -> bool {
    log.contains("was fenced") || log.contains("put out of the group")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_router_that_stood_still_in_a_transaction_doubles_nothing_when_it_wakes_up() {
    a_router_that_stood_still(&["--instance-id", "sleeper"], "6000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dynamic_router_that_stood_still_in_a_transaction_doubles_nothing_when_it_wakes_up() {
    a_router_that_stood_still(&[], "6000").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_wakes_up_while_its_transaction_is_still_open_doubles_nothing() {
    a_router_that_stood_still(&[], "60000").await;
}

/// A router stops in the middle of a transaction until its session is over, and the transaction too
/// where that has the shorter time.
#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn a_router_that_stood_still(identity: &[&str], transaction_timeout_ms: &str) {
    const COMMIT_AFTER: Duration = Duration::from_secs(10);
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let timeout = format!("transaction.timeout.ms={transaction_timeout_ms}");
    let short = ["-X", "session.timeout.ms=6000", "-X", &timeout];
    let commit_after = COMMIT_AFTER.as_millis().to_string();
    // The group has committed offsets: a router without one would wait until no transaction is open.
    let before = topics.start("before", &short);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(before.stop().await.code(), Some(0));

    let more = [identity, &short, &["--commit-interval-ms", &commit_after]].concat();
    let mut sleeper = topics.start("sleeper", &more);
    topics.send_good(200);
    topics.until_transaction_is_open().await;
    sleeper.signal("STOP");
    let asleep = Instant::now();
    assert!(topics.transaction_is_open(), "it was asleep too late");

    let mut other = topics.start_static("other", &short);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    if transaction_timeout_ms == "6000" {
        // The broker looks for those that are over every 10 s.
        assert_eq!(topics.audit().await, (600, 0));
    } else {
        assert!(topics.transaction_is_open());
    }

    until("its commit is due", Duration::from_secs(60), async || {
        (asleep.elapsed() > COMMIT_AFTER).then_some(())
    })
    .await;
    sleeper.signal("CONT");
    topics.send_good(200);
    let ended = until(
        "the sleeper has ended, or works again",
        Duration::from_secs(60),
        async || match sleeper.status() {
            Some(status) => Some(Some(status)),
            None => (sleeper.log().matches("assigned ").count() > 1).then_some(None),
        },
    )
    .await;
    println!("woken, it ended with {ended:?}");
    if let Some(status) = ended {
        assert_eq!(status.code(), Some(1), "{}", sleeper.log());
        assert!(
            tells_that_it_was_fenced(&sleeper.log()),
            "{}",
            sleeper.log()
        );
    }
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    other.assert_running();
    assert_eq!(other.stop().await.code(), Some(0));
    if ended.is_none() {
        assert_eq!(sleeper.stop().await.code(), Some(0));
    }
    assert_eq!(topics.audit().await, (1_000, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_static_routers_with_one_identity_the_earlier_ends_and_says_why() {
    of_two_with_one_identity(&["--instance-id", "twin"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_routers_on_one_host_without_identities_the_earlier_ends_and_says_why() {
    of_two_with_one_identity(&[]).await;
}

/// One that stood still in a transaction wakes up after another has its identity: that one is not fenced in turn.
#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_wakes_up_after_it_was_replaced_leaves_its_successor_alone() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let more = [
        "--instance-id",
        "twin",
        "-X",
        "session.timeout.ms=6000",
        "-X",
        "transaction.timeout.ms=6000",
        "--commit-interval-ms",
        "500",
    ];
    let mut earlier = topics.start("earlier", &more);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    topics.send_good(200);
    topics.until_transaction_is_open().await;
    earlier.signal("STOP");
    let mut later = topics.start("later", &more);
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    earlier.signal("CONT");
    assert_eq!(earlier.ended().await.code(), Some(78), "{}", earlier.log());
    later.assert_running();
    topics.send_good(200);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(!later.log().contains("was fenced"), "{}", later.log());
    assert_eq!(later.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (800, 0));
}

async fn of_two_with_one_identity(identity: &[&str]) {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let alongside = Alongside::start(&topics, &topics.events);
    let load = Load::start(&topics, 300);
    let short = [
        "-X",
        "session.timeout.ms=6000",
        "--commit-interval-ms",
        "500",
    ];
    let more = [identity, &short].concat();
    let stopped = topics.start("stopped", &more);
    alongside.until(100, Duration::from_secs(120)).await;
    let mut earlier = topics.start("earlier", &more);
    // One that is to stop while it looks for its rival has nothing left to do.
    until("it is fenced", Duration::from_secs(120), async || {
        let log = stopped.log();
        log.contains("looking whether another member").then_some(())
    })
    .await;
    assert_eq!(stopped.stop().await.code(), Some(0));
    let seen = alongside.count();
    alongside.until(seen + 100, Duration::from_secs(120)).await;
    let mut later = topics.start("later", &more);
    let ended = earlier.ended().await;
    let log = earlier.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    let names_it = |said: &str| last.contains(said);
    assert!(
        tells_that_it_was_fenced(last) && names_it("--instance-id") && names_it("client.id"),
        "{last}"
    );
    // The later one goes on.
    let seen = alongside.count();
    alongside
        .until(seen + 1_000, Duration::from_secs(120))
        .await;
    later.assert_running();
    load.stop().await;
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(later.stop().await.code(), Some(0));
    let (events, letters) = topics.audit().await;
    assert_eq!(letters, 0);
    assert_eq!(alongside.stop_at(events).await.len(), events);
}

/// A session and a transaction shorter than the outages, and long enough for a busy machine.
const PATIENT: [&str; 4] = [
    "-X",
    "session.timeout.ms=6000",
    "-X",
    "transaction.timeout.ms=12000",
];

/// A router that is started again when it fails, as a supervisor does.
struct Supervised<'a> {
    topics: &'a Topics,
    instance: &'static str,
    more: &'a [&'a str],
    process: Process,
    starts: usize,
}

impl<'a> Supervised<'a> {
    fn start(topics: &'a Topics, instance: &'static str, more: &'a [&'a str]) -> Self {
        Self {
            topics,
            instance,
            more,
            process: topics.start_static(instance, more),
            starts: 1,
        }
    }

    #[expect(
        clippy::print_stdout,
        reason = "what a test prints is for whoever runs it"
    )]
    fn supervise(&mut self) {
        let Some(status) = self.process.status() else {
            return;
        };
        let log = self.process.log();
        println!("{} ended with {status}:\n{log}", self.instance);
        assert_eq!(status.code(), Some(1), "no person is to be needed:\n{log}");
        assert!(log.contains("fenced"), "the only reason to end:\n{log}");
        self.process = self.topics.start_static(self.instance, self.more);
        self.starts += 1;
    }
}

/// Supervises until all that was written is routed.
async fn until_routed_by(topics: &Topics, routers: &mut [Supervised<'_>]) {
    until("all is routed", Duration::from_secs(120), async || {
        routers.iter_mut().for_each(Supervised::supervise);
        topics.is_routed()
    })
    .await;
}

/// Supervises until the reader alongside has seen so many records.
async fn until_seen_by(alongside: &Alongside, count: usize, routers: &mut [Supervised<'_>]) {
    let what = format!("{count} records are seen by the reader alongside");
    until(&what, Duration::from_secs(120), async || {
        routers.iter_mut().for_each(Supervised::supervise);
        (alongside.count() >= count).then_some(())
    })
    .await;
}

async fn supervise_for(time: Duration, routers: &mut [Supervised<'_>]) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        routers.iter_mut().for_each(Supervised::supervise);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_freezes_twice_past_the_session_loses_and_doubles_nothing() {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let broker = Broker::start(tool, &[]).await;
    let topics = Topics::make(&broker.bootstrap, 4).await;
    let more = [&PATIENT[..], &["--commit-interval-ms", "200"]].concat();
    let mut routers = ["router-1", "router-2"].map(|name| Supervised::start(&topics, name, &more));
    let load = Load::start(&topics, 300);
    let alongside = Alongside::start(&topics, &topics.events);
    for _ in 0..2 {
        let progress = alongside.count() + 500;
        until_seen_by(&alongside, progress, &mut routers).await;
        topics.until_transaction_is_open().await;
        broker.signal("STOP");
        supervise_for(Duration::from_secs(13), &mut routers).await; // the fault
        broker.signal("CONT");
        until("work goes on", Duration::from_secs(60), async || {
            routers.iter_mut().for_each(Supervised::supervise);
            (alongside.count() > progress).then_some(())
        })
        .await;
    }
    load.stop().await;
    until_routed_by(&topics, &mut routers).await;
    for router in routers {
        println!("{} was started {} times", router.instance, router.starts);
        assert_eq!(router.process.stop().await.code(), Some(0));
    }
    let (events, letters) = topics.audit().await;
    assert_eq!(letters, 0);
    assert_eq!(alongside.stop_at(events).await.len(), events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_restarts_and_one_away_for_longer_than_a_transaction_lasts_are_waited_for() {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    // A broker that was killed may come back when its own controller has given it up.
    let broker = Broker::start(tool, &["broker.session.timeout.ms=6000"]).await;
    let topics = Topics::make(&broker.bootstrap, 4).await;
    let more = [&PATIENT[..], &["--commit-interval-ms", "500"]].concat();
    let mut routers = ["router-1", "router-2"].map(|name| Supervised::start(&topics, name, &more));
    let load = Load::start(&topics, 200);
    let alongside = Alongside::start(&topics, &topics.events);
    until_seen_by(&alongside, 500, &mut routers).await;
    topics.until_transaction_is_open().await;
    broker.run(&["stop"]);
    broker.run(&["start"]);
    let progress = alongside.count() + 500;
    until_seen_by(&alongside, progress, &mut routers).await;
    topics.until_transaction_is_open().await;
    broker.signal("KILL");
    supervise_for(Duration::from_secs(35), &mut routers).await; // the fault
    broker.run(&["start"]);
    load.stop().await;
    until_routed_by(&topics, &mut routers).await;
    for router in routers {
        // The transactions are taken up by themselves; a static member that the broker takes for its own
        // double after such a stand-still ends with code 1 and is started again.
        println!("{} was started {} times", router.instance, router.starts);
        assert_eq!(router.process.stop().await.code(), Some(0));
    }
    let (events, letters) = topics.audit().await;
    assert_eq!(letters, 0);
    assert_eq!(alongside.stop_at(events).await.len(), events);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_routed_while_a_commit_failed_or_a_rebalance_came_is_routed_once_and_in_order() {
    const RECORDS: i64 = 60_000;
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let full_transactions = ["--max-records", "100"];
    let router = topics.start_static("router-1", &full_transactions);
    until_it_has_partitions(&router, "router-1").await;
    // All are older when they arrive: the broker refuses them, and transactions that hold some abort.
    topics.limit_age_of_events(0).await;
    topics.send_good(RECORDS);
    until("transactions abort", Duration::from_secs(120), async || {
        router.log().contains("records aborted").then_some(())
    })
    .await;
    topics.limit_age_of_events(i64::MAX).await;
    until(
        "a transaction commits",
        Duration::from_secs(60),
        async || {
            topics
                .committed()?
                .values()
                .find(|offset| **offset > 0)
                .copied()
        },
    )
    .await;
    let other = topics.start_static("router-2", &full_transactions);
    until_it_has_partitions(&other, "router-2").await;
    topics.until_routed(Duration::from_secs(120)).await;
    for router in [router, other] {
        assert_eq!(router.stop().await.code(), Some(0));
    }
    assert_eq!(topics.audit().await, (RECORDS as usize, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_while_a_router_runs_or_is_stopped_are_routed_from_their_first_record() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    let more = ["-X", "topic.metadata.refresh.interval.ms=1000"];
    let router = topics.start("running", &more);
    topics.send_good(100);
    topics.until_routed(Duration::from_secs(120)).await;

    topics.grow_source(4).await;
    topics.send_to_partition(2, 100);
    topics.send_to_partition(3, 100);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));

    topics.grow_source(6).await;
    topics.send_to_partition(4, 100);
    topics.send_to_partition(5, 100);
    let router = topics.start("later", &more);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (500, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_behind_an_open_transaction_are_no_lag_but_told_as_held_back() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let router = topics.start("router", &["--metrics-listen", ANY_PORT]);
    topics.send_good(100);
    topics.until_routed(Duration::from_secs(120)).await;

    let holder: ThreadedProducer<_> = client(&bootstrap)
        .set("transactional.id", &topics.source)
        .set("transaction.timeout.ms", "300000")
        .create()
        .unwrap();
    holder.init_transactions(Duration::from_secs(30)).unwrap();
    holder.begin_transaction().unwrap();
    for i in 0..10 {
        let (key, value) = numbered(i, 10);
        let record = BaseRecord::to(&topics.source).key(key.as_bytes());
        holder.send(record.payload(&value[..])).unwrap();
    }
    // Not rust-rdkafka's flush: what is sent without one is sent all the same.
    until(
        "the transaction is open",
        Duration::from_secs(120),
        async || {
            let ends = topics.ends(&topics.source, "read_uncommitted")?;
            (ends[&0] == 110).then_some(())
        },
    )
    .await;
    topics.send_good(5);

    let metric = |name: &str| {
        let labels = format!(
            "{name}{{messaging_destination_name=\"{}\",messaging_destination_partition_id=\"0\"}} ",
            topics.source
        );
        let (_, metrics) = router.get("/metrics")?;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&labels));
        line.map(|value| value.parse::<f64>().unwrap())
    };
    const HELD_BACK: &str = "taskrunning_held_back_messages";
    const LAG: &str = "messaging_consumer_lag_messages";
    until(
        "the held back are told",
        Duration::from_secs(120),
        async || ((metric(LAG), metric(HELD_BACK)) == (Some(0.0), Some(15.0))).then_some(()),
    )
    .await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(router.get("/readyz").unwrap().0, 200);
        assert_eq!((metric(LAG), metric(HELD_BACK)), (Some(0.0), Some(15.0)));
        tokio::time::sleep(Duration::from_millis(250)).await; // a sample now and then
    }
    holder.commit_transaction(Duration::from_secs(30)).unwrap();
    until("none is held back", Duration::from_secs(120), async || {
        (metric(HELD_BACK) == Some(0.0) && metric(LAG) == Some(0.0)).then_some(())
    })
    .await;
    until("all is routed", Duration::from_secs(120), async || {
        let next = topics.committed()?.get(&0).copied();
        (next == Some(116)).then_some(()) // the marker stands behind all of them
    })
    .await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (115, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_before_they_were_routed_stop_the_router_with_both_numbers() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let router = topics.start("before", &[]);
    topics.send_good(321);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    topics.send_good(321);
    topics.delete_source_before(0, 456).await;

    let stopped = topics.start("stopped", &[]);
    ends_outside_the_log(stopped, &topics, ["321", "456"]).await;
    assert_eq!(topics.committed().unwrap()[&0], 321, "nothing is skipped");

    // What a person may then decide.
    topics.reset_offset(0, 456).await;
    let router = topics.start("after", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    let events = service::testing::read_all(&bootstrap, &topics.events);
    assert_eq!(events.len(), 321 + (642 - 456));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_under_a_running_router_stop_it_with_both_numbers() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let router = topics.start("router", &["-X", "fetch.wait.max.ms=10"]);
    topics.send_good(321);
    topics.until_routed(Duration::from_secs(120)).await;
    // So that it has read none of them, nor the broker sent it any: what it had asked for by then is
    // answered long before.
    router.signal("STOP");
    tokio::time::sleep(Duration::from_secs(1)).await;
    topics.send_good(321);
    topics.delete_source_before(0, 456).await;
    router.signal("CONT");
    ends_outside_the_log(router, &topics, ["321", "456"]).await;
    assert_eq!(topics.committed().unwrap()[&0], 321, "nothing is skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_offset_past_the_end_of_the_log_stops_the_router_with_both_numbers() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    topics.send_good(321);
    topics.reset_offset(0, 4567).await;
    let router = topics.start("router", &[]);
    ends_outside_the_log(router, &topics, ["321", "4567"]).await;
    assert_eq!(topics.committed().unwrap()[&0], 4567);
}

/// It ends with 78 and names the topic, the partition and both numbers.
async fn ends_outside_the_log(mut router: Process, topics: &Topics, numbers: [&str; 2]) {
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    let last = log.lines().rfind(|line| line.contains("ERROR")).unwrap();
    for part in [
        topics.source.as_str(),
        "partition 0",
        numbers[0],
        numbers[1],
    ] {
        assert!(last.contains(part), "{part:?} is not in: {last}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_topic_deleted_under_a_router_stops_it_and_one_created_again_is_read_from_its_beginning()
 {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let more = ["-X", "topic.metadata.refresh.interval.ms=1000"];
    let mut router = topics.start("before", &more);
    topics.send_good(321);
    topics.until_routed(Duration::from_secs(120)).await;
    topics.delete(&topics.source).await;
    let ended = router.ended().await;
    let log = router.log();
    assert_eq!(ended.code(), Some(78), "{log}");
    assert!(
        log.contains(&format!("topic {}", topics.source)) && log.contains("is gone"),
        "{log}"
    );

    // Kafka forgets the group's offsets of a topic that is deleted.
    topics.create(&topics.source, 1).await;
    topics.send_good(123);
    let router = topics.start("after", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    let events = service::testing::read_all(&bootstrap, &topics.events);
    assert_eq!(events.len(), 321 + 123);
}
