//! The outputs of routers equal the results of the audit.

use std::process::Command;
use std::time::Duration;

use super::{PATIENT, audit_forged, full, mixed, routed, send};
use crate::audit_support::{Copied, ROUTER, audit, copies, encoded, run, transact};
use crate::faults_support::{Load, SHORT, Topics, client};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::MetricValue;
use serde_json::json;
use service::testing::{alone, kafka, read_all, until};

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_deleted_source_topic_are_distinguished_from_those_of_its_successor() {
    let Some(bootstrap) = kafka() else { return };
    let topics = routed(&bootstrap, 60).await;
    let of_the_first = audit(&topics, &[]).await;
    assert_eq!(of_the_first.code, 0, "{}", of_the_first.err);
    let outputs = of_the_first.total("events") + of_the_first.total("dead_letters");
    assert_eq!(outputs, 60);

    topics.delete(&topics.source).await;
    topics.create(&topics.source, 2).await;
    send(&topics, (0..40).map(mixed));
    let router = topics.start_static("router-1", &PATIENT);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success());
    let audited = audit(&topics, &[]).await;
    assert_eq!(audited.code, 0, "{} {}", audited.json, audited.err);
    let counts = ["records", "earlier_topic", "expired", "foreign"];
    assert_eq!(counts.map(|name| audited.total(name)), [40, 60, 0, 0]);
    let (_, text, _) = run(&topics, &[]).await;
    assert!(
        text.contains("60 of an earlier topic of that name"),
        "{text}"
    );

    // If outputs of the old topic are left, retention cannot have deleted any of the new one.
    for partition in topics.partitions(&topics.events) {
        topics.delete_before(&topics.events, partition, 5).await;
    }
    let audited = audit(&topics, &[]).await;
    assert_eq!(audited.code, 0, "{} {}", audited.json, audited.err);
    assert!(audited.total("earlier_topic") < 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_good_repaired_bad_aborted_and_redriven_records_are_equal_with_exact_counts() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    let router = topics.start_static(
        "router-1",
        &[
            &PATIENT[..],
            &["-X", "topic.metadata.refresh.interval.ms=1000"],
        ]
        .concat(),
    );
    // Two codecs, committed and aborted transactions of engines, and added partitions.
    for (codec, records) in [("gzip", 0..100), ("zstd", 100..200)] {
        let producer: ThreadedProducer<_> = client(&bootstrap)
            .set("partitioner", "murmur2_random")
            .set("compression.type", codec)
            .create()
            .unwrap();
        for i in records {
            let (key, value) = mixed(i);
            let record = BaseRecord::to(&topics.source).key(&key).payload(&value);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }
    let some: Vec<_> = (0..5).map(|i| encoded(&full("exec", i))).collect();
    transact(&topics, 0, &some, false);
    transact(&topics, 1, &some, true);
    transact(&topics, 1, &some, false);
    topics.grow_source(4).await;
    topics.send_to_partition(2, 10);
    topics.send_to_partition(3, 10);
    let outputs = async |count: usize| {
        until("all is routed", Duration::from_secs(120), async || {
            let events = read_all(&bootstrap, &topics.events).len();
            let letters = topics.letters();
            let notes = letters
                .iter()
                .filter(|letter| letter_topic(letter).is_none());
            (events + letters.len() - notes.count() >= count).then_some(())
        })
        .await;
    };
    outputs(225).await;
    // Redriven records are source records again, and notes are not letters.
    let redriven = Command::new(ROUTER)
        .args(["dead-letters", "redrive", "--all", "--bootstrap-servers"])
        .args([&bootstrap, "--dead-letters-topic", &topics.letters])
        .output()
        .unwrap();
    assert!(redriven.status.success(), "{redriven:?}");
    outputs(245).await;
    let audited = audit(&topics, &[]).await;
    assert!(router.stop().await.success());

    audited.found(&[]);
    let counts = ["records", "events", "dead_letters", "expired", "foreign"];
    // Twenty letters, twenty of their redriven records, and a note for each of the first.
    assert_eq!(
        counts.map(|count| audited.total(count)),
        [245, 205, 40, 0, 20]
    );
    let partitions = audited.json["partitions"].as_array().unwrap();
    let records = partitions
        .iter()
        .map(|partition| partition["records"].as_u64());
    let records: Vec<u64> = records.map(Option::unwrap).collect();
    assert!(
        records.len() == 4 && records[2..].iter().all(|count| *count >= 10),
        "{records:?}"
    );
    assert_eq!(audited.json["source"]["topic"], topics.source.as_str());
    assert_eq!(
        audited.json["schemas"]["TaskRunningInfo"],
        json!(["944a4f9429e9c6b6"])
    );
    assert_eq!(audited.json["max_event_bytes"], 1_048_588 - 128);
    let (code, text, err) = run(&topics, &[]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let line = format!(
        "equal: 245 records of {}, 205 events, 40 dead letters\n",
        topics.source
    );
    assert!(text.ends_with(&line), "{text}");
}

fn letter_topic(letter: &rdkafka::message::OwnedMessage) -> Option<&[u8]> {
    use rdkafka::message::{Headers, Message};
    let mut headers = letter.headers()?.iter();
    headers
        .find(|header| header.key == "__connect.errors.topic")?
        .value
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_routers_that_are_killed_under_load_an_audit_finds_no_fault() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 4).await;
    let mut routers = ["router-1", "router-2"].map(|name| Some(topics.start_static(name, &SHORT)));
    let load = Load::start(&topics, 300);
    let more_is_routed = async |than: u64| {
        until("more is routed", Duration::from_secs(120), async || {
            let committed = topics.committed()?;
            let routed = committed.values().sum::<i64>().unsigned_abs();
            (routed > than).then_some(())
        })
        .await;
    };
    let mut records = 0;
    for round in 0..6 {
        more_is_routed(records).await;
        let name = ["router-1", "router-2"][round % 2];
        routers[round % 2].take().unwrap().kill();
        let (audited, ()) = tokio::join!(audit(&topics, &[]), async {
            load.until(300 * (round as i64 + 2)).await;
            routers[round % 2] = Some(topics.start_static(name, &SHORT));
        });
        audited.found(&[]);
        assert!(audited.total("records") > records);
        records = audited.total("records");
    }
    load.stop().await;
    topics.until_routed(Duration::from_secs(120)).await;
    let audited = audit(&topics, &[]).await;
    audited.found(&[]);
    assert_eq!(audited.total("pending_offsets"), 0);
    let (events, _) = topics.audit().await;
    assert_eq!(audited.total("events"), events as u64);
}

/// Engines write a map's keys in any order; routers of this version keep it, older ones sorted them.
#[tokio::test(flavor = "multi_thread")]
async fn events_that_say_the_same_in_other_bytes_are_equal() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    let backwards = |i: i64| {
        let mut info = full(&format!("exec-{}", i % 7), i);
        info.metrics = None;
        let mut value = encoded(&info);
        // The branch of the metrics; then b = 1 in one block, and a = null in the next.
        *value.last_mut().unwrap() = 2;
        value.extend_from_slice(b"\x02\x02b\x04\x02\x02\x02a\x00\x00");
        (info.exec_id, value)
    };
    send(&topics, (0..100).map(backwards));
    let router = topics.start_static("router-1", &[]);
    topics.until_routed(Duration::from_secs(60)).await;
    assert!(router.stop().await.success());
    let events = copies(&topics, &topics.events);
    let carried_over = |copied: &Copied| {
        let value = copied.value.as_deref().unwrap();
        value.ends_with(b"\x02\x02b\x04\x02\x02\x02a\x00\x00")
    };
    assert!(events.len() == 100 && events.iter().all(carried_over));
    audit(&topics, &[]).await.found(&[]);
    let mut older = events.clone();
    for copied in &mut older[20..] {
        copied.forge(|_| {});
        assert!(!carried_over(copied));
    }
    audit_forged(&topics, &older, None).await.found(&[]);
    let mut altered = older;
    altered[50].forge(|event| {
        let metrics = event.info.metrics.as_mut().unwrap();
        metrics.insert("a".into(), MetricValue::Long(1));
    });
    let audited = audit_forged(&topics, &altered, None).await;
    let examples = audited.found(&[("differing", 1)]);
    assert_eq!(examples[0]["fields"], json!(["info.metrics[a]"]));
}
