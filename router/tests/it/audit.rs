//! `router audit` on a real Kafka: what routers wrote is proved equal, and each thing that was forged
//! is found, as what it is and nothing else.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::audit_support::{
    Audited, Copied, ROUTER, audit, copies, encoded, forged, run, transact,
};
use crate::faults_support::{Load, SHORT, Topics, client, info};
use crate::{audit_support, strategies};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::{Adjustment, MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::json;
use service::testing::{NOBODY, alone, kafka, read_all, until};

/// Letters of all that is bad, however many.
const PATIENT: [&str; 4] = ["--max-rejects-in-a-row", "0", "--max-rejects-per-1000", "0"];

/// A report with everything in it.
fn full(exec_id: &str, sequence: i64) -> TaskRunningInfo {
    let mut info = strategies::sample_event().info;
    (info.exec_id, info.sequence) = (exec_id.to_owned(), sequence);
    info
}

/// The `i`-th record of a mixture of good ones, some that are repaired and some that are bad.
fn mixed(i: i64) -> (String, Vec<u8>) {
    let mut info = full(&format!("exec-{}", i % 7), i);
    match i % 20 {
        3 => info.progress.as_mut().unwrap().progress = f64::NAN,
        8 => info.engine.running_tasks = -3,
        13 => info.job_id = " ".into(),
        17 => return (info.exec_id, b"no report".to_vec()),
        _ => {}
    }
    (info.exec_id.clone(), encoded(&info))
}

fn send(topics: &Topics, records: impl IntoIterator<Item = (String, Vec<u8>)>) {
    let records: Vec<_> = records.into_iter().collect();
    topics.send(
        records
            .iter()
            .map(|(key, value)| (key.as_str(), value.clone())),
    );
}

/// Topics of two partitions with so many mixed records, which a router has routed.
async fn routed(bootstrap: &str, count: i64) -> Topics {
    let topics = Topics::make(bootstrap, 2).await;
    send(&topics, (0..count).map(mixed));
    let router = topics.start_static("router-1", &PATIENT);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success());
    topics
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_of_a_source_topic_that_was_deleted_are_told_from_those_of_the_one_created_after_it()
 {
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

    // Nothing of the new topic can have been deleted where something of the old one is left.
    for partition in topics.partitions(&topics.events) {
        topics.delete_before(&topics.events, partition, 5).await;
    }
    let audited = audit(&topics, &[]).await;
    assert_eq!(audited.code, 0, "{} {}", audited.json, audited.err);
    assert!(audited.total("earlier_topic") < 60);
}

/// Audits with other outputs.
async fn audit_forged(topics: &Topics, events: &[Copied], letters: Option<&[Copied]>) -> Audited {
    let events = forged(topics, events).await;
    let mut more = vec!["--events-topic", events.as_str()];
    let letters = match letters {
        Some(letters) => forged(topics, letters).await,
        None => topics.letters.clone(),
    };
    more.extend(["--dead-letters-topic", &letters]);
    audit(topics, &more).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_routers_made_of_good_repaired_bad_aborted_and_redriven_records_is_equal_to_the_last_count()
 {
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
    // Two codecs, transactions of engines that commit and that do not, partitions that are added.
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
    // Letters that are sent back are source records again, and notes are no letters.
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
    // Twenty letters, twenty again of their redriven records, and a note for each of the first.
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

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_out_doubled_swapped_or_made_up_is_found_and_nothing_else() {
    let Some(bootstrap) = kafka() else { return };
    let topics = routed(&bootstrap, 100).await;
    let (events, letters) = (
        copies(&topics, &topics.events),
        copies(&topics, &topics.letters),
    );
    assert_eq!((events.len(), letters.len()), (90, 10));
    audit_forged(&topics, &events, Some(&letters))
        .await
        .found(&[]);
    let place = |copied: &Copied| {
        let source = copied.event().source;
        (json!(source.partition), json!(source.offset))
    };
    let about = |audited: &Audited, expected: &[(&str, u64)]| {
        let example = &audited.found(expected)[0];
        (
            example["source_partition"].clone(),
            example["source_offset"].clone(),
        )
    };

    let mut forged = events.clone();
    let gone = forged.remove(41);
    let audited = audit_forged(&topics, &forged, None).await;
    assert_eq!(about(&audited, &[("lost", 1)]), place(&gone));
    assert_eq!(
        audited.json["examples"][0]["exec_id"],
        gone.event().info.exec_id
    );

    // At once, and much later as a restart without transactions would.
    for at in [42, events.len()] {
        let mut forged = events.clone();
        forged.insert(at, events[41].clone());
        let audited = audit_forged(&topics, &forged, None).await;
        assert_eq!(about(&audited, &[("duplicate", 1)]), place(&events[41]));
    }

    let mut forged = events.clone();
    assert_eq!(forged[10].partition, forged[11].partition);
    forged.swap(10, 11);
    let audited = audit_forged(&topics, &forged, None).await;
    assert_eq!(about(&audited, &[("out_of_order", 1)]), place(&events[10]));

    let mut forged = events.clone();
    let mut made_up = events[5].clone();
    made_up.forge(|event| event.source.offset = 1_000_000);
    forged.push(made_up.clone());
    let audited = audit_forged(&topics, &forged, None).await;
    assert_eq!(about(&audited, &[("invented", 1)]), place(&made_up));

    let mut forged = letters.clone();
    forged.remove(3);
    audit_forged(&topics, &events, Some(&forged))
        .await
        .found(&[("lost", 1)]);

    let mut forged = letters.clone();
    forged.push(letters[3].clone());
    let audited = audit_forged(&topics, &events, Some(&forged)).await;
    assert_eq!(
        audited.found(&[("duplicate", 1)])[0]["dead_letters"]
            .as_array()
            .unwrap()
            .len(),
        2
    );

    // A letter about a record that became an event.
    let mut forged = letters.clone();
    let mut both = letters[3].clone();
    let headers = rdkafka::message::OwnedHeaders::new();
    let source = events[7].event().source;
    both.headers = Some(
        [
            ("__connect.errors.topic", topics.source.clone()),
            ("__connect.errors.partition", source.partition.to_string()),
            ("__connect.errors.offset", source.offset.to_string()),
            ("__connect.errors.connector.name", "router".to_owned()),
        ]
        .iter()
        .fold(headers, |headers, (key, value)| {
            headers.insert(rdkafka::message::Header {
                key,
                value: Some(value),
            })
        }),
    );
    forged.push(both);
    let audited = audit_forged(&topics, &events, Some(&forged)).await;
    assert_eq!(
        about(&audited, &[("event_and_letter", 1)]),
        place(&events[7])
    );

    // Bytes that are no event: one more, and in an event's place.
    let mut forged = events.clone();
    forged.push(Copied {
        value: Some(b"{}".to_vec()),
        ..events[0].clone()
    });
    audit_forged(&topics, &forged, None)
        .await
        .found(&[("invented", 1)]);
    forged.remove(0);
    audit_forged(&topics, &forged, None)
        .await
        .found(&[("invented", 1), ("lost", 1)]);

    // Everything at once; examples are as many as asked for, and text is safe to show.
    let mut forged = events[60..].to_vec();
    forged[29].forge(|event| event.info.exec_id = "a\u{1b}[2J".into());
    let name = audit_support::forged(&topics, &forged).await;
    let audited = audit(&topics, &["--events-topic", &name, "--examples", "3"]).await;
    assert_eq!(audited.found(&[("lost", 60), ("differing", 1)]).len(), 4);
    let (code, text, _) = run(&topics, &["--events-topic", &name, "--examples", "3"]).await;
    assert!(
        code == 1 && text.contains("60 lost") && text.contains("and 57 more"),
        "{text}"
    );
    assert!(
        text.contains("fields info.execId") && !text.contains('\u{1b}'),
        "{text}"
    );
    assert!(text.ends_with("61 faults\n"), "{text}");
}

/// Engines write a map's keys in any order; routers of this version carry them over so, older ones sorted them.
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

#[tokio::test(flavor = "multi_thread")]
async fn an_event_about_an_aborted_record_is_invented() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    let some: Vec<_> = (0..3).map(|i| encoded(&full("exec", i))).collect();
    transact(&topics, 0, &some, true);
    transact(&topics, 0, &some, false);
    topics.send_to_partition(0, 1);
    let router = topics.start_static("router-1", &PATIENT);
    until("all is routed", Duration::from_secs(120), async || {
        (read_all(&bootstrap, &topics.events).len() == 4).then_some(())
    })
    .await;
    assert!(router.stop().await.success());
    let mut events = copies(&topics, &topics.events);
    audit_forged(&topics, &events, None).await.found(&[]);
    // Its transaction's first record stands behind three records and a marker.
    let mut read = events[2].clone();
    read.forge(|event| event.source.offset = 4);
    events.insert(3, read);
    let audited = audit_forged(&topics, &events, None).await;
    assert_eq!(audited.found(&[("invented", 1)])[0]["source_offset"], 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn whichever_field_of_an_event_is_altered_is_named() {
    let Some(bootstrap) = kafka() else { return };
    let topics = routed(&bootstrap, 60).await;
    let events = copies(&topics, &topics.events);
    let good = events
        .iter()
        .position(|copied| copied.event().adjustments.is_empty())
        .unwrap();
    type Change = fn(&mut schemas::TaskRunningInfoEvent);
    let changes: [(&str, Change); 38] = [
        ("source.timestamp", |e| e.source.timestamp += 1),
        ("adjustments", |e| e.adjustments.push(Adjustment::NulInText)),
        ("notFinite", |e| {
            e.not_finite.insert("metrics.x".into(), "NaN".into());
        }),
        ("info.execId", |e| e.info.exec_id.push('x')),
        ("info.jobId", |e| e.info.job_id.push('x')),
        ("info.engine.instance", |e| e.info.engine.instance.push('x')),
        ("info.engine.engineType", |e| {
            e.info.engine.engine_type.push('x')
        }),
        ("info.engine.user", |e| e.info.engine.user.push('x')),
        ("info.engine.ticketId", |e| {
            e.info.engine.ticket_id.push('x')
        }),
        ("info.engine.runningTasks", |e| {
            e.info.engine.running_tasks += 1
        }),
        ("info.status", |e| e.info.status = TaskStatus::Succeed),
        ("info.reportedAt", |e| e.info.reported_at += 1),
        ("info.sequence", |e| e.info.sequence += 1),
        ("info.progress", |e| e.info.progress = None),
        ("info.progress.progress", |e| {
            progress(e).progress += f64::EPSILON
        }),
        ("info.progress.progressInfo", |e| {
            progress(e).progress_info.clear()
        }),
        ("info.progress.progressInfo[0].id", |e| {
            progress(e).progress_info[0].id.push('x')
        }),
        ("info.progress.progressInfo[0].totalTasks", |e| {
            progress(e).progress_info[0].total_tasks += 1
        }),
        ("info.progress.progressInfo[0].runningTasks", |e| {
            progress(e).progress_info[0].running_tasks += 1
        }),
        ("info.progress.progressInfo[0].failedTasks", |e| {
            progress(e).progress_info[0].failed_tasks += 1
        }),
        ("info.progress.progressInfo[0].succeedTasks", |e| {
            progress(e).progress_info[0].succeed_tasks += 1
        }),
        ("info.resource", |e| e.info.resource = None),
        ("info.resource.applications[app-1]", |e| {
            e.info.resource.as_mut().unwrap().applications.clear();
        }),
        ("info.resource.applications[app-1].queueMemory", |e| {
            application(e).queue_memory += 1
        }),
        ("info.resource.applications[app-1].queueCores", |e| {
            application(e).queue_cores += 1
        }),
        ("info.resource.applications[app-1].queueInstances", |e| {
            application(e).queue_instances += 1
        }),
        ("info.resource.applications[app-1].jobStatus", |e| {
            application(e).job_status.push('x')
        }),
        ("info.resource.applications[app-1].queue", |e| {
            application(e).queue.push('x')
        }),
        ("info.metrics", |e| e.info.metrics = None),
        ("info.metrics[new]", |e| metric(e, "new", MetricValue::Null)),
        ("info.metrics[count]", |e| {
            e.info.metrics.as_mut().unwrap().remove("count");
        }),
        ("info.metrics[nothing]", |e| {
            metric(e, "nothing", MetricValue::Boolean(false))
        }),
        ("info.metrics[flag]", |e| {
            metric(e, "flag", MetricValue::Boolean(false))
        }),
        ("info.metrics[count]", |e| {
            metric(e, "count", MetricValue::Long(1))
        }),
        ("info.metrics[seconds]", |e| {
            metric(e, "seconds", MetricValue::Double(12.500000000000002))
        }),
        ("info.metrics[whole]", |e| {
            metric(e, "whole", MetricValue::Long(3))
        }),
        ("info.metrics[text]", |e| {
            metric(e, "text", MetricValue::String("u".into()))
        }),
        ("info.metrics[flag]", |e| {
            metric(e, "flag", MetricValue::Double(f64::NAN))
        }),
    ];
    // Each in an event of its own, as far as events go round.
    for changes in changes.chunks(19) {
        let mut forged = events.clone();
        let mut expected = BTreeMap::new();
        let unadjusted = (good..forged.len()).filter(|i| events[*i].event().adjustments.is_empty());
        for (i, (field, change)) in unadjusted.zip(changes) {
            forged[i].forge(change);
            let source = events[i].event().source;
            expected.insert((source.partition, source.offset), *field);
        }
        assert_eq!(expected.len(), changes.len());
        let name = audit_support::forged(&topics, &forged).await;
        let audited = audit(&topics, &["--events-topic", &name, "--examples", "99"]).await;
        for example in audited.found(&[("differing", expected.len() as u64)]) {
            let at = (
                i32::try_from(example["source_partition"].as_i64().unwrap()).unwrap(),
                example["source_offset"].as_i64().unwrap(),
            );
            assert_eq!(example["fields"], json!([expected[&at]]));
        }
    }

    let altered = async |change: fn(&mut Copied)| {
        let mut forged = events.clone();
        change(&mut forged[20]);
        audit_forged(&topics, &forged, None).await
    };
    let audited = altered(|copied| copied.key = Some(b"another".to_vec())).await;
    assert_eq!(
        audited.found(&[("differing", 1)])[0]["fields"],
        json!(["key"])
    );
    let audited = altered(|copied| copied.key = None).await;
    assert_eq!(
        audited.found(&[("differing", 1)])[0]["fields"],
        json!(["key"])
    );
    // The place is what an event is found by.
    let lost = altered(|copied| copied.forge(|e| e.source.topic.push('x'))).await;
    lost.found(&[("lost", 1)]);
    assert_eq!(lost.total("foreign"), 1);
    let moved = altered(|copied| copied.forge(|e| e.source.partition = 77)).await;
    moved.found(&[("lost", 1), ("invented", 1)]);
    let moved = altered(|copied| copied.forge(|e| e.source.offset = -1)).await;
    moved.found(&[("lost", 1), ("invented", 1)]);
    // The time of routing is the router's own.
    altered(|copied| copied.forge(|e| e.routed_at += 1))
        .await
        .found(&[]);
}

fn progress(event: &mut schemas::TaskRunningInfoEvent) -> &mut schemas::TaskProgressInfo {
    event.info.progress.as_mut().unwrap()
}

fn application(event: &mut schemas::TaskRunningInfoEvent) -> &mut schemas::ResourceWithStatus {
    let resource = event.info.resource.as_mut().unwrap();
    resource.applications.get_mut("app-1").unwrap()
}

fn metric(event: &mut schemas::TaskRunningInfoEvent, name: &str, value: MetricValue) {
    event
        .info
        .metrics
        .as_mut()
        .unwrap()
        .insert(name.into(), value);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_rules_made_is_told_apart_from_corruption() {
    let Some(bootstrap) = kafka() else { return };
    let topics = routed(&bootstrap, 100).await;
    let (events, letters) = (
        copies(&topics, &topics.events),
        copies(&topics, &topics.letters),
    );
    let repaired = |kind: Adjustment| {
        let named = |copied: &Copied| copied.event().adjustments == [kind];
        events.iter().position(named).unwrap()
    };
    let nan = repaired(Adjustment::ProgressNotANumber);
    let negative = repaired(Adjustment::NegativeCount);

    // Repaired today, carried over as it was then.
    let mut forged = events.clone();
    forged[nan].forge(|event| {
        event.adjustments.clear();
        event.not_finite.clear();
        progress(event).progress = f64::NAN;
    });
    let audited = audit_forged(&topics, &forged, None).await;
    let fields = json!(["adjustments", "notFinite", "info.progress.progress"]);
    assert_eq!(audited.found(&[("other_rules", 1)])[0]["fields"], fields);

    // Not so where another field differs too, or where the repair is not named.
    forged[nan].forge(|event| event.info.sequence += 1);
    audit_forged(&topics, &forged, None)
        .await
        .found(&[("differing", 1)]);
    let mut forged = events.clone();
    forged[negative].forge(|event| event.adjustments.clear());
    audit_forged(&topics, &forged, None)
        .await
        .found(&[("differing", 1)]);
    let mut forged = events.clone();
    forged[negative].forge(|event| event.info.engine.running_tasks = 5);
    audit_forged(&topics, &forged, None)
        .await
        .found(&[("differing", 1)]);

    // A letter where there would be an event today.
    let mut forged = (events.clone(), letters.clone());
    let source = forged.0.remove(nan).event().source;
    let mut letter = letters[0].clone();
    let headers = letter.headers.as_ref().unwrap();
    let mut rewritten = rdkafka::message::OwnedHeaders::new();
    for header in rdkafka::message::Headers::iter(headers) {
        let value = match header.key {
            "__connect.errors.partition" => source.partition.to_string().into_bytes(),
            "__connect.errors.offset" => source.offset.to_string().into_bytes(),
            "__connect.errors.exception.class.name" => b"ProgressNotANumber".to_vec(),
            _ => header.value.unwrap().to_vec(),
        };
        rewritten = rewritten.insert(rdkafka::message::Header {
            key: header.key,
            value: Some(&value),
        });
    }
    letter.headers = Some(rewritten);
    forged.1.push(letter);
    let audited = audit_forged(&topics, &forged.0, Some(&forged.1)).await;
    let why = &audited.found(&[("other_rules", 1)])[0]["why"];
    assert_eq!(why, "an event today; set aside as ProgressNotANumber");

    // An event where there would be a letter today: as its record, or not.
    let sources = read_all(&bootstrap, &topics.source);
    let blank = letters
        .iter()
        .position(|letter| schemas::decode_info(letter.value.as_deref()).is_ok())
        .unwrap();
    let mut accepted = events[0].clone();
    let mut others = letters.clone();
    let letter = others.remove(blank);
    let record = sources
        .iter()
        .find(|record| rdkafka::Message::payload(*record) == letter.value.as_deref())
        .unwrap();
    accepted.forge(|event| {
        event.source.partition = rdkafka::Message::partition(record);
        event.source.offset = rdkafka::Message::offset(record);
        event.source.timestamp = rdkafka::Message::timestamp(record).to_millis().unwrap();
        event.info = schemas::decode_info(letter.value.as_deref()).unwrap();
    });
    // Where no event of its partition stands, so that it is out of no order.
    accepted.partition = 1 - rdkafka::Message::partition(record);
    let mut forged = vec![accepted.clone()];
    forged.extend(events.iter().cloned());
    let audited = audit_forged(&topics, &forged, Some(&others)).await;
    let why = audited.found(&[("other_rules", 1)])[0]["why"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(why.starts_with("a letter today: BlankIdentifier"), "{why}");
    forged[0].forge(|event| event.info.status = TaskStatus::Timeout);
    audit_forged(&topics, &forged, Some(&others))
        .await
        .found(&[("differing", 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_forged_at_random_is_counted_exactly() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = routed(&bootstrap, 3_000).await;
    let (events, letters) = (
        copies(&topics, &topics.events),
        copies(&topics, &topics.letters),
    );
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..6 {
        let mut expected: BTreeMap<&str, u64> = BTreeMap::new();
        // From a few faults to one in three.
        let rarity = [3, 30, 300][rng.random_range(0..3)];
        let (mut forged, mut late) = (Vec::new(), Vec::new());
        let of_partition = |partition| {
            events
                .iter()
                .filter(move |copied| copied.partition == partition)
        };
        for partition in [0, 1] {
            let copied: Vec<&Copied> = of_partition(partition).collect();
            for four in copied.chunks(4) {
                let mut four: Vec<Copied> = four.iter().map(|copied| (*copied).clone()).collect();
                let fault = match rng.random_range(0..rarity) {
                    0 if four.len() == 4 => rng.random_range(0..7),
                    _ => 7,
                };
                let kind = match fault {
                    0 => {
                        four.remove(1);
                        "lost"
                    }
                    1 => {
                        four.insert(1, four[0].clone());
                        "duplicate"
                    }
                    2 => {
                        late.push(four[2].clone());
                        "duplicate"
                    }
                    3 => {
                        four.swap(0, 1);
                        "out_of_order"
                    }
                    4 => {
                        four[0].forge(|event| event.info.reported_at ^= 1);
                        "differing"
                    }
                    5 => {
                        four[0].forge(|event| event.source.offset += 1 << 40);
                        *expected.entry("lost").or_default() += 1;
                        "invented"
                    }
                    6 => {
                        four[3].key = Some(b"k".to_vec());
                        "differing"
                    }
                    _ => "",
                };
                *expected.entry(kind).or_default() += 1;
                forged.append(&mut four);
            }
        }
        forged.append(&mut late);
        let mut aside = letters.clone();
        if rng.random_bool(0.5) {
            aside.remove(rng.random_range(0..aside.len()));
            *expected.entry("lost").or_default() += 1;
        }
        if rng.random_bool(0.5) {
            aside.insert(rng.random_range(0..aside.len()), aside[0].clone());
            *expected.entry("duplicate").or_default() += 1;
        }
        expected.remove("");
        println!("one in {rarity}: {expected:?}");
        let expected: Vec<_> = expected.into_iter().collect();
        audit_forged(&topics, &forged, Some(&aside))
            .await
            .found(&expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_many_mebibytes_that_are_all_lost_are_counted_within_128_mib() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 1).await;
    let empty = forged(&topics, &[]).await;
    let large = "m".repeat(400_000);
    let record = |i| {
        let mut info = info("exec", i);
        info.metrics = Some([("text".to_owned(), MetricValue::String(large.clone()))].into());
        ("exec", encoded(&info))
    };
    for first in (0..300).step_by(50) {
        topics.send((first..first + 50).map(record));
    }
    let router = topics.start_static("router-1", &PATIENT);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success());

    for (events, found) in [(&topics.events, vec![]), (&empty, vec![("lost", 300)])] {
        let mut child = Command::new(ROUTER)
            .arg("audit")
            .args(
                topics
                    .arguments(&[])
                    .iter()
                    .filter(|a| **a != "--events-topic" && **a != topics.events),
            )
            .args(["--json", "--events-topic", events])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let status = format!("/proc/{}/status", child.id());
        let mut peak_kib = 0;
        until("the audit ends", Duration::from_secs(120), async || {
            let status = std::fs::read_to_string(&status).unwrap_or_default();
            let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
            let peak = peak.map(|peak| peak.trim().trim_end_matches(" kB").parse().unwrap());
            peak_kib = peak.unwrap_or(0).max(peak_kib);
            child.try_wait().unwrap()
        })
        .await;
        let output = child.wait_with_output().unwrap();
        let audited = Audited {
            code: output.status.code().unwrap(),
            json: serde_json::from_slice(&output.stdout).unwrap(),
            err: String::new(),
        };
        audited.found(&found);
        println!("peak {} MiB", peak_kib / 1024);
        assert!(
            peak_kib > 0 && peak_kib / 1024 <= 128,
            "peak {peak_kib} KiB"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
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

    // What is not routed yet is no finding.
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
async fn what_retention_deleted_is_no_finding_and_what_it_may_have_deleted_is_not_proved() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(&bootstrap, 2).await;
    topics.send_to_partition(0, 100);
    topics.send_to_partition(1, 100);
    let router = topics.start_static("router-1", &[]);
    topics.until_routed(Duration::from_secs(120)).await;
    assert!(router.stop().await.success());

    // Records are gone and their events are there.
    topics.delete_source_before(0, 30).await;
    let audited = audit(&topics, &[]).await;
    audited.found(&[]);
    assert_eq!(
        (audited.total("records"), audited.total("expired")),
        (170, 30)
    );

    // Events are gone and their records are there.
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

    // A loss behind what is left of the log is a loss.
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
    // Behind it stands what another router has committed meanwhile.
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
async fn without_kafka_a_topic_or_the_right_group_it_cannot_tell() {
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
    // An event that a newer router wrote.
    let mut events = copies(&topics, &topics.events);
    events[3].value.as_mut().unwrap()[5] ^= 1;
    audit_forged(&topics, &events, None)
        .await
        .could_not_tell("by --schemas");
    let (code, _, err) = run(&topics, &["--schemas", "/no/such/folder"]).await;
    assert!(code == 2 && err.contains("--schemas"), "{err}");
}
