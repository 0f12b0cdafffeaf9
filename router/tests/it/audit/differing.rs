//! The audit finds events that differ from the router's result, and names the reason.

use std::collections::BTreeMap;

use super::{audit_forged, routed};
use crate::audit_support;
use crate::audit_support::{Copied, audit, copies};
use schemas::{Adjustment, MetricValue, TaskStatus};
use serde_json::json;
use service::testing::{kafka, read_all};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
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
    // Each in a separate event, while there are enough.
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
    // The source position identifies an event.
    let lost = altered(|copied| copied.forge(|e| e.source.topic.push('x'))).await;
    lost.found(&[("lost", 1)]);
    assert_eq!(lost.total("foreign"), 1);
    let moved = altered(|copied| copied.forge(|e| e.source.partition = 77)).await;
    moved.found(&[("lost", 1), ("invented", 1)]);
    let moved = altered(|copied| copied.forge(|e| e.source.offset = -1)).await;
    moved.found(&[("lost", 1), ("invented", 1)]);
    // `routedAt` is not compared.
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
#[ignore = "heavy"]
async fn events_by_other_rules_are_distinguished_from_corruption() {
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

    // Repaired by today's rules, unchanged by earlier ones.
    let mut forged = events.clone();
    forged[nan].forge(|event| {
        event.adjustments.clear();
        event.not_finite.clear();
        progress(event).progress = f64::NAN;
    });
    let audited = audit_forged(&topics, &forged, None).await;
    let fields = json!(["adjustments", "notFinite", "info.progress.progress"]);
    assert_eq!(audited.found(&[("other_rules", 1)])[0]["fields"], fields);

    // But not if another field differs, too, or the repair is not named.
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

    // A letter for a record that is an event by today's rules.
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

    // An event for a record that is a letter by today's rules: equal to its record, or not.
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
    // In a partition without events of its source partition, so that it is not out of order.
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
