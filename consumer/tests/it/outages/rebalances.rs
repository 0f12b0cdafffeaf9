//! A group rebalances during an outage.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{SHORT_POLL_INTERVAL, storing};
use crate::strategies;
use crate::support::{Cluster, Kind, Pipeline, connect, on_servers};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use service::testing::until;

on_servers!(
    a_consumer_whose_database_is_away_gives_partitions_up_to_one_that_can_store,
    #[ignore = "heavy"]
    a_rebalance_during_an_outage_is_answered,
);

/// While one consumer has no database, another joins and takes half of its partitions.
async fn a_consumer_whose_database_is_away_gives_partitions_up_to_one_that_can_store(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 4).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let first = pipeline.program_on(&url, "first", SHORT_POLL_INTERVAL);
    let mut first = storing(&pipeline, first, 500).await;
    let reason = pipeline.lock_out(&url).await;
    pipeline.fill_numbered(&strategies::sample_event(), 2000, 0);
    first.until_waiting(&[reason]).await;

    let mut second = pipeline.program("second", SHORT_POLL_INTERVAL);
    let members = pipeline.until_stable(2).await;
    // The second consumer gets two of four partitions, and stores them to their ends.
    let ends = pipeline.ends();
    let stored =
        "SELECT CAST(partition AS bigint), next_offset FROM consumed_offset WHERE part = 'metrics'";
    until(
        "two partitions are stored",
        Duration::from_secs(120),
        async || {
            let mut connection = connect(&pipeline.database_url).await;
            let rows: Vec<(i64, i64)> = connection.rows(stored).await.unwrap();
            let done = rows
                .iter()
                .filter(|(p, next)| *next == ends[&(*p as i32)].1);
            (done.count() == 2).then_some(())
        },
    )
    .await;
    first.process.assert_running();
    pipeline.let_in().await;
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    first.until_ready().await;
    second.until_ready().await;
    assert_eq!(
        pipeline.until_stable(2).await,
        members,
        "nobody was put out"
    );
    // The first consumer gets its partitions back and continues.
    second.stop().await;
    pipeline.fill_numbered(&strategies::sample_event(), 500, 0);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    first.stop().await;
}

/// While nobody has a database, joining members are still answered.
async fn a_rebalance_during_an_outage_is_answered(kind: Kind) {
    let Some(cluster) = Cluster::of(kind) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 4, "").await else {
        return;
    };
    let first = pipeline.program("first", SHORT_POLL_INTERVAL);
    let mut first = storing(&pipeline, first, 500).await;
    cluster.crash();
    pipeline.fill_numbered(&strategies::sample_event(), 2000, 0);
    first.until_waiting(&[kind.product()]).await;
    let other: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("group.id", &pipeline.events)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("enable.auto.commit", "false")
        .set("session.timeout.ms", "6000")
        .create()
        .unwrap();
    other.subscribe(&[&pipeline.events]).unwrap();
    until(
        "the other has two partitions",
        Duration::from_secs(120),
        async || {
            let _ = other.poll(Duration::from_millis(100));
            (other.assignment().unwrap().count() == 2).then_some(())
        },
    )
    .await;
    let (state, members) = pipeline.members();
    assert_eq!((state.as_str(), members.len()), ("Stable", 2));
    drop(other);
    cluster.start_again();
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.until_stable(1).await;
    first.until_ready().await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    first.stop().await;
}
