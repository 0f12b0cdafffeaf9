//! The range of an audit, and cases without a verdict.

use std::time::Duration;

use super::{PATIENT, audit_forged, mixed, routed, send};
use crate::audit_support::{Copied, audit, copies, forged, run};
use crate::faults_support::{Topics, client};
use jiff::Timestamp;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use service::testing::{NOBODY, kafka, read_all};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn only_the_range_asked_for_is_compared_and_one_outside_the_log_is_refused() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    let before = Timestamp::now().to_string();
    topics.send_to_partition(0, 50);
    topics.send_to_partition(1, 50);
    let router = topics.start_static("router-1", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success());
    let mut events = copies(&topics, &topics.events);
    let lost = events.iter().position(|copied| {
        let source = copied.event().source;
        (source.partition, source.offset) == (0, 20)
    });
    events.remove(lost.unwrap());
    let name = forged(&topics, &events).await;
    let within = async |from: &str, to: &str| {
        audit(
            &topics,
            &["--events-topic", &name, "--from", from, "--to", to],
        )
        .await
    };
    for (from, to, records, lost) in [
        ("earliest", "latest", 100, 1),
        ("offset:0=20,1=0", "offset:0=21,1=0", 1, 1),
        ("offset:0=21,1=7", "latest", 72, 0),
        ("earliest", "offset:0=20", 20, 0),
        ("offset:1=10", "latest", 40, 0),
        (&before, "latest", 100, 1),
    ] {
        let audited = within(from, to).await;
        let found = [("lost", lost)];
        audited.found(if lost > 0 { &found } else { &[] });
        assert_eq!(audited.total("records"), records, "{from} {to}");
    }
    within("-2h", "-1h")
        .await
        .could_not_tell("no record of the source topic was compared");
    within("offset:0=51", "latest")
        .await
        .could_not_tell("reaches from offset 0 to 50");
    within("earliest", "offset:2=1")
        .await
        .could_not_tell("has no partition 2");
    within("offset:0=9", "offset:0=8")
        .await
        .could_not_tell("--from 9 is behind --to 8");

    // Unrouted records are not findings.
    topics.send_to_partition(0, 5);
    let audited = audit(&topics, &["--to", "latest"]).await;
    audited.found(&[]);
    assert_eq!(
        (audited.total("records"), audited.total("pending_offsets")),
        (100, 5)
    );
    topics.delete_source_before(0, 10).await;
    within("offset:0=9", "latest")
        .await
        .could_not_tell("reaches from offset 10 to 55");
    within(&before, "latest")
        .await
        .could_not_tell("may be among them");
    let (code, _, err) = run(&topics, &["--from", "yesterday"]).await;
    assert!(code == 2 && err.contains("expected earliest"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn records_deleted_by_retention_are_not_findings_and_possibly_deleted_ones_are_unprovable() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    topics.send_to_partition(0, 100);
    topics.send_to_partition(1, 100);
    let router = topics.start_static("router-1", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success());

    // Records are deleted, and their events exist.
    topics.delete_source_before(0, 30).await;
    let audited = audit(&topics, &[]).await;
    audited.found(&[]);
    assert_eq!(
        (audited.total("records"), audited.total("expired")),
        (170, 30)
    );

    // Events are deleted, and their records exist.
    let events = read_all(&bootstrap, &topics.events);
    let first = events
        .iter()
        .find(|record| rdkafka::Message::partition(*record) == 0)
        .unwrap();
    let first = rdkafka::Message::offset(first);
    topics.delete_before(&topics.events, 0, first + 20).await;
    let left = copies(&topics, &topics.events);
    let gone = 200 - left.len() as u64;
    assert!(gone > 0);
    let audited = audit(&topics, &[]).await;
    let unprovable = audited.total("unprovable");
    audited.found(&[("unprovable", unprovable)]);
    assert!((1..=gone).contains(&unprovable), "{unprovable} of {gone}");
    let (_, text, _) = run(&topics, &[]).await;
    assert!(
        text.contains("could not tell:") && text.contains("a later --from"),
        "{text}"
    );
    // A later range is proved.
    audit(&topics, &["--from", "offset:0=90,1=90"])
        .await
        .found(&[]);

    // A loss behind the log's start is a loss.
    let newest = left.last().unwrap().event().source;
    let (partition, offset) = (newest.partition.to_string(), newest.offset);
    let from = format!("offset:{partition}={offset}");
    audit(&topics, &["--from", &from]).await.found(&[]);
    let rest: Vec<Copied> = left[..left.len() - 1].to_vec();
    let name = forged(&topics, &rest).await;
    audit(&topics, &["--from", &from, "--events-topic", &name])
        .await
        .found(&[("lost", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_on_the_events_topic_is_waited_for() {
    let Some(bootstrap) = kafka() else { return };
    let topics = routed(&bootstrap, 40).await;
    let producer: ThreadedProducer<_> = client(&bootstrap)
        .set("transactional.id", topics.source.as_str())
        .set("transaction.timeout.ms", "300000")
        .create()
        .unwrap();
    let within = Duration::from_secs(30);
    producer.init_transactions(within).unwrap();
    producer.begin_transaction().unwrap();
    let record = BaseRecord::<str, [u8]>::to(&topics.events)
        .partition(0)
        .payload(b"never seen");
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(within).unwrap();
    // Behind it are records that another router has committed meanwhile.
    send(&topics, (40..80).map(mixed));
    let router = topics.start_static("router-1", &PATIENT);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success() && topics.transaction_is_open());
    let mut audited = Box::pin(audit(&topics, &[]));
    let ended = tokio::time::timeout(Duration::from_secs(3), &mut audited).await;
    assert!(ended.is_err(), "it does not wait");
    producer.abort_transaction(within).unwrap();
    let audited = audited.await;
    audited.found(&[]);
    assert_eq!(audited.total("records"), 80);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn without_kafka_a_topic_or_the_right_group_there_is_no_verdict() {
    let Some(bootstrap) = kafka() else { return };
    let topics = routed(&bootstrap, 20).await;
    let away = ["--bootstrap-servers", NOBODY];
    let (away, no_topic, no_group) = tokio::join!(
        audit(&topics, &away),
        audit(&topics, &["--events-topic", "no-such-topic"]),
        audit(&topics, &["--group", "no-such-group"]),
    );
    away.could_not_tell("does not answer within 30 s");
    no_topic.could_not_tell("topic no-such-topic does not exist");
    no_group.could_not_tell("group no-such-group has committed no offset");
    // An event of a newer router.
    let mut events = copies(&topics, &topics.events);
    events[3].value.as_mut().unwrap()[5] ^= 1;
    audit_forged(&topics, &events, None)
        .await
        .could_not_tell("by --schemas");
    let (code, _, err) = run(&topics, &["--schemas", "/no/such/folder"]).await;
    assert!(code == 2 && err.contains("--schemas"), "{err}");
}
