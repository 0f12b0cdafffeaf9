//! Changes of topics under a router: partitions added, records held back or deleted, the topic itself
//! deleted.

use std::time::{Duration, Instant};

use crate::faults_support::{Topics, client, numbered, until_it_has_partitions};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use service::testing::{ANY_PORT, Process, kafka, until};

#[tokio::test(flavor = "multi_thread")]
async fn records_routed_during_a_failed_commit_or_a_rebalance_are_routed_once_and_in_order() {
    const RECORDS: i64 = 60_000;
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let full_transactions = ["--max-records", "100"];
    let router = topics.start_static("router-1", &full_transactions);
    until_it_has_partitions(&router, "router-1").await;
    topics.refuse_letters().await;
    topics.send_good(RECORDS);
    until("transactions abort", Duration::from_secs(120), async || {
        router.log().contains("records aborted").then_some(())
    })
    .await;
    topics.accept_letters().await;
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
    // A letter for each partition.
    assert_eq!(topics.audit().await, (RECORDS as usize, 4));
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
async fn records_behind_an_open_transaction_count_as_held_back_and_not_as_lag() {
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
    // Without rust-rdkafka's flush, since records are sent without it, too.
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
        "held-back records are reported",
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

    // The options of an operator.
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
    // So that it has neither read nor fetched any of them: its earlier fetches were answered long before.
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

/// Asserts that it ends with 78 and names the topic, the partition and both numbers.
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

    // Kafka deletes the group's offsets of a deleted topic.
    topics.create(&topics.source, 1).await;
    topics.send_good(123);
    let router = topics.start("after", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(router.stop().await.code(), Some(0));
    let events = service::testing::read_all(&bootstrap, &topics.events);
    assert_eq!(events.len(), 321 + 123);
}
