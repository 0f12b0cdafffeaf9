//! The audit finds exactly the lost, duplicate, swapped and invented events and letters.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{PATIENT, audit_forged, full, routed};
use crate::audit_support;
use crate::audit_support::{
    Audited, Copied, ROUTER, audit, copies, encoded, forged, run, transact,
};
use crate::faults_support::{Topics, info};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::MetricValue;
use serde_json::json;
use service::testing::{alone, kafka, read_all, until};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn lost_duplicate_swapped_and_invented_outputs_are_found_and_nothing_else() {
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

    // Immediately, and much later, as after a restart without transactions.
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

    // Bytes that are not an event: one additional, and one instead of an event.
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

    // All at once; the number of examples is limited, and text is escaped.
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
    // Its transaction's first record comes after three records and a marker.
    let mut read = events[2].clone();
    read.forge(|event| event.source.offset = 4);
    events.insert(3, read);
    let audited = audit_forged(&topics, &events, None).await;
    assert_eq!(audited.found(&[("invented", 1)])[0]["source_offset"], 4);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
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
#[ignore = "heavy"]
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
