//! Offsets without records for a router: transaction markers, and aborted records.

use std::collections::BTreeMap;
use std::time::Duration;

use super::send;
use crate::faults_support::{Topics, client, numbered, until_it_has_partitions};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use service::testing::{ANY_PORT, kafka, read_all, until};

/// Sends this number of good records to a partition in a transaction.
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
    // Positions do not change, so nothing more is committed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(
        topics.ends(&topics.events, "read_uncommitted").unwrap(),
        outputs
    );

    // A router that is stopped at once has committed them, too.
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
    topics.refuse_letters().await;
    topics.send_good(5_000);
    until("the lag is reported", Duration::from_secs(60), async || {
        lag().filter(|lag| (4_000.0..=5_001.0).contains(lag))
    })
    .await;
    topics.accept_letters().await;
    until("it is made up", Duration::from_secs(120), async || {
        (lag() == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(router.stop().await.code(), Some(0));
    assert_eq!(topics.audit().await, (5_010, 1));
}
