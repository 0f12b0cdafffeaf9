//! The commands in a router's errors solve the problem.

use std::time::Duration;

use crate::faults_support::Topics;
use service::testing::{alter_topic, kafka, make_topic_as_hinted, topic_setting};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn output_topics_made_as_hinted_hold_what_the_source_holds() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 3).await;
    topics.delete(&topics.events).await;
    topics.delete(&topics.letters).await;
    alter_topic(&bootstrap, &topics.source, "max.message.bytes", "3000000").await;
    for (i, missing) in [&topics.events, &topics.letters].into_iter().enumerate() {
        let mut router = topics.start(&format!("router-{i}"), &[]);
        assert_eq!(router.ended().await.code(), Some(78), "{}", router.log());
        let log = router.log();
        assert!(
            log.contains(&format!("topic {missing} does not exist on ")),
            "{log}"
        );
        if !make_topic_as_hinted(&log) {
            return;
        }
    }
    for (topic, max_bytes) in [(&topics.events, "3065536"), (&topics.letters, "4048564")] {
        assert_eq!(topics.partitions(topic).len(), 3);
        assert_eq!(
            topic_setting(&bootstrap, topic, "max.message.bytes").await,
            max_bytes
        );
        assert_eq!(
            topic_setting(&bootstrap, topic, "cleanup.policy").await,
            "delete"
        );
    }
    let router = topics.start("router", &[]);
    topics.send_good(20);
    topics.until_routed(Duration::from_secs(120)).await;
    assert_eq!(topics.audit().await, (20, 0));
    assert_eq!(router.stop().await.code(), Some(0));

    // For a topic that is only read, an empty one does not help.
    topics.delete(&topics.events).await;
    let arguments = [
        "audit",
        "--bootstrap-servers",
        &bootstrap,
        "--source-topic",
        &topics.source,
        "--events-topic",
        &topics.events,
        "--dead-letters-topic",
        &topics.letters,
        "--group",
        &topics.source,
    ];
    let audit = std::process::Command::new(env!("CARGO_BIN_EXE_router"))
        .args(arguments)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&audit.stderr).into_owned();
    assert!(
        stderr.contains(&format!("topic {} does not exist", topics.events)),
        "{stderr}"
    );
    assert!(
        stderr.contains(" --list") && !stderr.contains("--create"),
        "{stderr}"
    );
}
