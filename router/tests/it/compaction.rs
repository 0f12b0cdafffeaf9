//! Compacted topics: routers do not write to them, and in an audit, absent records prove nothing.

use std::time::Duration;

use crate::audit_support::audit;
use crate::faults_support::{Topics, client};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use service::testing::{kafka, read_all, until};

async fn alter(topics: &Topics, topic: &str, settings: &[(&str, &str)]) {
    let admin: AdminClient<DefaultClientContext> = client(&topics.bootstrap).create().unwrap();
    let mut altered = AlterConfig::new(ResourceSpecifier::Topic(topic));
    for (name, value) in settings {
        altered = altered.set(name, value);
    }
    let answers = admin.alter_configs([&altered], &AdminOptions::new());
    for answer in answers.await.unwrap() {
        answer.unwrap();
    }
}

const COMPACT: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "100"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("max.compaction.lag.ms", "100"),
];

#[tokio::test(flavor = "multi_thread")]
async fn events_deleted_by_compaction_are_unprovable_and_not_lost() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let router = topics.start_static("router-1", &[]);
    topics.send_good(300);
    topics.until_routed(Duration::from_secs(120)).await;
    audit(&topics, &[]).await.found(&[]);
    alter(&topics, &topics.events, &COMPACT).await;
    let events = || read_all(&bootstrap, &topics.events).len();
    let mut sent = 300;
    until("events are gone", Duration::from_secs(240), async || {
        topics.send_good(1);
        sent += 1;
        topics.until_routed(Duration::from_secs(60)).await;
        tokio::time::sleep(Duration::from_millis(300)).await; // the rate of the load
        (events() < 200).then_some(())
    })
    .await;
    assert!(router.stop().await.success());

    let audited = audit(&topics, &[]).await;
    audited.could_not_tell("cleanup.policy=compact");
    assert_eq!((audited.total("records"), audited.total("lost")), (sent, 0));
    assert!(audited.total("unprovable") >= 100, "{:#}", audited.json);
    let mut refused = topics.start_static("router-1", &[]);
    assert_eq!(refused.ended().await.code(), Some(78));
    let log = refused.log();
    assert!(
        log.contains("cleanup.policy=compact") && log.contains("kafka-configs.sh"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_record_compaction_deleted_is_not_invented() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    alter(&topics, &topics.source, &COMPACT).await;
    // The owners of the source topic may compact it: the router logs that and routes.
    let router = topics.start_static("router-1", &[]);
    topics.send_good(300);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(
        router.log().contains("cleanup.policy=compact"),
        "{}",
        router.log()
    );
    until("records are gone", Duration::from_secs(240), async || {
        topics.send_good(1);
        tokio::time::sleep(Duration::from_millis(300)).await; // the rate of the load
        (read_all(&bootstrap, &topics.source).len() < 200).then_some(())
    })
    .await;
    topics.until_routed(Duration::from_secs(60)).await;
    assert!(router.stop().await.success());
    let audited = audit(&topics, &[]).await;
    audited.could_not_tell("cleanup.policy=compact");
    assert_eq!(audited.total("invented"), 0, "{:#}", audited.json);
    assert!(audited.total("unprovable") >= 100, "{:#}", audited.json);
}
