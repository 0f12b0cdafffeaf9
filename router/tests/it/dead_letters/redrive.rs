//! Records that a redrive sends back, and its notes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Topics, headers, info, place, run};
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::dead_letter;
use schemas::{DeadLetter, Reject};
use serde_json::json;
use service::testing::{kafka, read_all};

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_redriven_once_as_it_was_and_again_only_by_force() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 4, &[], &[]).await;
    let value = b"\x00 not \xff Avro";
    topics.send(None, [(Some("some key"), Some(&value[..])), (None, None)]);
    topics.route(2).await;
    let letters = topics.list(&["--reason", "NoValue"]).await;
    let null = place(&letters[0]);
    let letters = topics.list(&["--reason", "NoSchemaRegistry"]).await;
    let letter = place(&letters[0]);

    let planned = topics.run(&["redrive", "--all", "--dry-run"]).await;
    assert_eq!(planned.code, 0, "{}", planned.err);
    assert!(
        planned
            .out
            .contains("2 letters would be redriven in 1 transaction"),
        "{}",
        planned.out
    );
    assert_eq!((topics.redriven().len(), topics.notes().len()), (0, 0));

    let first = topics.run(&["redrive", &letter]).await;
    assert_eq!(first.code, 0, "{}", first.err);
    assert!(
        first.out.contains("1 letter redriven in 1 transaction"),
        "{}",
        first.out
    );
    let originals = read_all(&topics.bootstrap, &topics.source);
    let original = originals
        .iter()
        .find(|record| record.key().is_some())
        .unwrap();
    let sent = topics.redriven();
    assert_eq!(sent.len(), 1);
    assert_eq!(
        (sent[0].key(), sent[0].payload(), sent[0].partition()),
        (
            Some(&b"some key"[..]),
            Some(&value[..]),
            original.partition()
        )
    );
    let found = headers(&sent[0]);
    let (partition, offset) = letter.split_once(':').unwrap();
    let original_ms = original.timestamp().to_millis().unwrap().to_string();
    let original_partition = original.partition().to_string();
    let at = found[dead_letter::REDRIVEN_AT].clone();
    let expected = [
        ("taskrunning.redriven.topic", topics.letters.as_str()),
        ("taskrunning.redriven.partition", partition),
        ("taskrunning.redriven.offset", offset),
        ("taskrunning.redriven.at", &at),
        ("taskrunning.original.timestamp.ms", &original_ms),
        ("taskrunning.first.topic", &topics.source),
        ("taskrunning.first.partition", &original_partition),
        ("taskrunning.first.offset", "0"),
        ("taskrunning.first.timestamp.ms", &original_ms),
    ];
    assert_eq!(
        found,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
    let notes = [(partition.to_owned(), offset.to_owned())];
    assert_eq!(topics.notes(), notes);

    // The note is not a letter; it names one.
    let all = topics.list(&[]).await;
    assert_eq!(all.len(), 2);
    let one = all.iter().find(|one| place(one) == letter).unwrap();
    assert_eq!(
        (&one["redriven_at"], &one["redriven_times"]),
        (&json!(at), &json!(1))
    );
    let open: Vec<String> = topics
        .list(&["--not-redriven"])
        .await
        .iter()
        .map(place)
        .collect();
    assert_eq!(open, [null]);

    let second = topics.run(&["redrive", &letter]).await;
    assert_eq!(second.code, 2);
    assert!(
        second
            .err
            .contains(&format!("{letter}: left, it was redriven at {at}; --force")),
        "{}",
        second.err
    );
    assert_eq!(topics.redriven().len(), 1);
    // A filter sends the rest; letters that were redriven before are not an error.
    let rest = topics.run(&["redrive", "--all"]).await;
    assert_eq!(rest.code, 0, "{}", rest.err);
    assert!(
        rest.out
            .contains("1 letter redriven in 1 transaction, 1 were redriven before"),
        "{}",
        rest.out
    );
    let sent = topics.redriven();
    assert_eq!(sent.len(), 2);
    assert!(
        sent.iter()
            .any(|record| record.key().is_none() && record.payload().is_none())
    );

    let forced = topics.run(&["redrive", &letter, "--force"]).await;
    assert_eq!(forced.code, 0, "{}", forced.err);
    assert_eq!(topics.redriven().len(), 3);
    let shown = topics.run(&["show", &letter]).await;
    assert!(
        shown.out.contains("redriven   2 times, last "),
        "{}",
        shown.out
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_about_the_same_record_are_sent_back_as_one_and_all_are_noted() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let producer: ThreadedProducer<_> = topics.client().create().unwrap();
    let reject = Reject {
        stage: "TASK_PUT",
        refused_by: "consumer::store",
        kind: "DatabaseRefused",
        message: "a value".to_owned(),
    };
    let set_aside = |partition, offset| {
        let letter = DeadLetter {
            topic: &topics.source,
            topic_id: None,
            partition: 0,
            offset,
            timestamp_ms: Some(1_764_079_500_123),
            first: None,
            service: "consumer",
            instance: "consumer-1",
            reject: &reject,
        };
        let letter = letter.letter(Some(b"c"), Some(b"value"), 1_000_000);
        let mut record = BaseRecord::<[u8], [u8]>::to(&topics.letters)
            .partition(partition)
            .headers(service::kafka::headers(&letter.headers));
        (record.key, record.payload) = (letter.key, letter.value);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    set_aside(0, 7);
    set_aside(1, 7);
    set_aside(1, 8);
    // One of the selected letters is a duplicate, and so is one that is not selected.
    let redriven = topics.run(&["redrive", "1:0", "1:1"]).await;
    assert_eq!(redriven.code, 0, "{}", redriven.err);
    assert!(
        redriven
            .out
            .contains("2 letters redriven in 1 transaction, 1 more about the same records noted\n"),
        "{}",
        redriven.out
    );
    assert_eq!(topics.redriven().len(), 2);
    let notes = [("0", "0"), ("1", "0"), ("1", "1")];
    let notes = notes.map(|(partition, offset)| (partition.to_owned(), offset.to_owned()));
    assert_eq!(BTreeSet::from_iter(topics.notes()), notes.into());

    // A later letter has no note.
    set_aside(0, 7);
    let listed = topics.list(&["--not-redriven"]).await;
    assert_eq!(listed.len(), 1);
    let again = topics.run(&["redrive", "--not-redriven"]).await;
    assert_eq!(again.code, 0, "{}", again.err);
    assert!(
        again
            .out
            .contains("0 letters redriven in 0 transactions, 1 were redriven before"),
        "{}",
        again.out
    );
    let by_place = topics.run(&["redrive", &place(&listed[0])]).await;
    assert_eq!(by_place.code, 2, "{}", by_place.out);
    assert!(
        by_place.err.contains("left, it was redriven at"),
        "{}",
        by_place.err
    );
    assert_eq!(topics.redriven().len(), 2);

    // A partition that the topic does not have is a wrong position.
    for command in ["redrive", "show"] {
        let nowhere = topics.run(&[command, "9:1"]).await;
        assert_eq!(nowhere.code, 2, "{}", nowhere.err);
        let found = "9:1: no letter at this position in ";
        assert!(nowhere.err.contains(found), "{}", nowhere.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_redriven_again_and_again_keeps_its_first_place_and_its_latest() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    // So that its offset is not 0.
    let good = schemas::encode_info(&info("good")).unwrap();
    topics.send(None, [(Some("key"), Some(&good[..]))]);
    topics.send(None, [(Some("key"), Some(&b"not Avro"[..]))]);
    topics.route(2).await;
    let records = read_all(&topics.bootstrap, &topics.source);
    let first_ms = records[1].timestamp().to_millis().unwrap();

    let mut header_bytes = Vec::new();
    for round in 1..=3 {
        let redriven = topics.run(&["redrive", "--all"]).await;
        assert_eq!(redriven.code, 0, "{}", redriven.err);
        // The event, the letters so far and their notes, and one further letter.
        topics.route(2 + 2 * round).await;
        let sent = topics.redriven();
        assert_eq!(sent.len(), round, "each letter was sent back once");
        let latest = sent.last().unwrap();

        let listed = topics.list(&["--not-redriven"]).await;
        assert_eq!(listed.len(), 1);
        let letter = &listed[0];
        let expected = json!({
            "source_topic": topics.source, "source_partition": 0, "source_offset": latest.offset(),
            "original_timestamp_ms": latest.timestamp().to_millis().unwrap(),
            "first_topic": topics.source, "first_partition": 0, "first_offset": 1, "first_timestamp_ms": first_ms,
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&letter[name], value, "{name} in round {round}");
        }
        let letters = read_all(&topics.bootstrap, &topics.letters);
        let letter = letters
            .iter()
            .map(headers)
            .rfind(|headers| headers.contains_key(dead_letter::TOPIC));
        let letter = letter.unwrap();
        assert_eq!(letter["taskrunning.first.topic"], topics.source);
        assert_eq!(letter["taskrunning.first.partition"], "0");
        assert_eq!(letter["taskrunning.first.offset"], "1");
        assert_eq!(
            letter["taskrunning.first.timestamp.ms"],
            first_ms.to_string()
        );
        let shown = topics.run(&["show", &place(&listed[0])]).await;
        let at_first = format!("at first   {} partition 0 offset 1, ", topics.source);
        assert!(shown.out.contains(&at_first), "{}", shown.out);
        let bytes = |headers: &BTreeMap<String, String>| -> usize {
            headers
                .iter()
                .map(|(name, text)| name.len() + text.len())
                .sum()
        };
        header_bytes.push(bytes(&letter) - letter["__connect.errors.offset"].len());
    }
    assert!(
        header_bytes.windows(2).all(|two| two[0] == two[1]),
        "{header_bytes:?}"
    );

    let audit = [
        "audit",
        "--bootstrap-servers",
        &topics.bootstrap,
        "--source-topic",
        &topics.source,
        "--events-topic",
        &topics.events,
        "--dead-letters-topic",
        &topics.letters,
        "--group",
        &topics.source,
    ];
    let audited = run(&topics.folder, &audit).await;
    assert_eq!(audited.code, 0, "{}{}", audited.out, audited.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_whose_cause_is_gone_becomes_an_event_once_it_is_redriven() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[("max.message.bytes", "2000")], &[]).await;
    let mut large = info("exec-1");
    large.engine.user = "u".repeat(500);
    large.metrics = Some(
        [(
            "text".to_owned(),
            schemas::MetricValue::String("x".repeat(3_000)),
        )]
        .into(),
    );
    let value = schemas::encode_info(&large).unwrap();
    topics.send(None, [(Some("exec-1"), Some(&value[..]))]);
    topics.route(1).await;
    assert_eq!(topics.list(&["--reason", "EventTooLarge"]).await.len(), 1);

    let raised = AlterConfig::new(ResourceSpecifier::Topic(&topics.events))
        .set("max.message.bytes", "100000");
    let altered = topics
        .admin()
        .alter_configs([&raised], &AdminOptions::new())
        .await
        .unwrap();
    altered[0].as_ref().unwrap();
    let redriven = topics.run(&["redrive", "--reason", "EventTooLarge"]).await;
    assert_eq!(redriven.code, 0, "{}", redriven.err);
    // The letter, its note, and the event.
    topics.route(3).await;
    let events = read_all(&topics.bootstrap, &topics.events);
    assert_eq!(events.len(), 1);
    let event = schemas::decode_event(events[0].payload()).unwrap();
    assert_eq!(event.info, large);
    assert_eq!(event.source.offset, topics.redriven()[0].offset());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_too_large_for_its_topic_is_reported_and_its_neighbours_are_redriven() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let large = vec![b'x'; 5_000];
    topics.send(
        None,
        [
            (Some("a"), Some(&b"small"[..])),
            (Some("a"), Some(&large)),
            (Some("a"), Some(b"small too")),
        ],
    );
    topics.route(3).await;
    let lowered =
        AlterConfig::new(ResourceSpecifier::Topic(&topics.source)).set("max.message.bytes", "4000");
    let altered = topics
        .admin()
        .alter_configs([&lowered], &AdminOptions::new())
        .await
        .unwrap();
    altered[0].as_ref().unwrap();
    let redriven = topics.run(&["redrive", "--all"]).await;
    assert_eq!(redriven.code, 2);
    assert!(
        redriven
            .err
            .contains(&format!("too large for {}", topics.source)),
        "{}",
        redriven.err
    );
    assert!(
        redriven
            .out
            .contains("2 letters redriven in 1 transaction, 1 left"),
        "{}",
        redriven.out
    );
    let sent: Vec<_> = topics
        .redriven()
        .iter()
        .map(|record| record.payload().unwrap().to_vec())
        .collect();
    assert_eq!(sent, [&b"small"[..], b"small too"]);
}
