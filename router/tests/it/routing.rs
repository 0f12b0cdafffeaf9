//! The router on a real Kafka: each record becomes one event or one dead letter, exactly once.

use crate::support::{Settings, Topics, headers, info};
use rdkafka::message::Message;
use service::testing::{kafka, read_all, unique};

#[tokio::test(flavor = "multi_thread")]
async fn good_records_become_events_and_others_dead_letters_with_their_bytes_and_reasons() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, Settings::default()).await;
    let good = schemas::encode_info(&info("exec-1", 0)).unwrap();
    let blank = schemas::encode_info(&info(" ", 0)).unwrap();
    // Years later: a producer that writes microseconds instead of milliseconds.
    let odd_time = 1_764_079_500_123_456;
    topics.send([
        (Some("exec-1"), Some(&good[..]), Some(odd_time)),
        (
            Some("k"),
            Some(b"{\"execId\": \"x\"}"),
            Some(1_764_079_500_123),
        ),
        (None, None, Some(0)),
        (Some("k"), Some(&blank), None),
    ]);
    let router = topics.start("router-1");
    let (events, letters) = topics.outputs(4).await;
    router.stop().await;

    assert_eq!((events.len(), letters.len()), (1, 3));
    let event = schemas::decode_event(events[0].payload()).unwrap();
    assert_eq!(event.info, info("exec-1", 0));
    assert_eq!(event.adjustments, []);
    assert_eq!(event.source.topic, topics.source);
    assert_eq!(
        (
            event.source.partition,
            event.source.offset,
            event.source.timestamp
        ),
        (0, 0, odd_time)
    );
    assert_eq!(events[0].key(), Some(&b"exec-1"[..]));
    let topic_id = event.source.topic_id.unwrap();

    let json = headers(&letters[0]);
    assert_eq!(letters[0].key(), Some(&b"k"[..]));
    assert_eq!(letters[0].payload(), Some(&b"{\"execId\": \"x\"}"[..]));
    let expected = [
        ("__connect.errors.topic", topics.source.as_str()),
        ("__connect.errors.partition", "0"),
        ("__connect.errors.offset", "1"),
        ("__connect.errors.connector.name", "router"),
        ("__connect.errors.task.id", "router-1"),
        ("__connect.errors.stage", "VALUE_CONVERTER"),
        ("__connect.errors.class.name", "schemas::DecodeError"),
        ("__connect.errors.exception.class.name", "UnknownFraming"),
        (
            "__connect.errors.exception.message",
            "the value begins with 7B 22 65 78 (JSON), not with C3 01 and a schema fingerprint, nor with 00 and a schema id; \
             write it in Avro single-object encoding",
        ),
        ("taskrunning.original.timestamp.ms", "1764079500123"),
        ("taskrunning.original.topic.id", topic_id.as_str()),
    ];
    assert_eq!(
        json,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );

    assert_eq!((letters[1].key(), letters[1].payload()), (None, None));
    assert_eq!(
        headers(&letters[1])["__connect.errors.exception.class.name"],
        "NoValue"
    );
    assert_eq!(letters[2].payload(), Some(&blank[..]));
    assert_eq!(
        headers(&letters[2])["__connect.errors.exception.message"],
        "execId is blank"
    );
    assert_eq!(
        headers(&letters[2])["__connect.errors.stage"],
        "TRANSFORMATION"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_for_its_topic_is_a_dead_letter_and_its_neighbours_are_events() {
    let Some(bootstrap) = kafka() else { return };
    // The events topic has a lower limit than the source topic, so the source record fits and the event does
    // not; the uncompressed letter fits only because its topic has a higher limit.
    let topics = Topics::make(
        bootstrap,
        1,
        Settings {
            events: &[("max.message.bytes", "20000")],
            ..Settings::default()
        },
    )
    .await;
    let mut large = info("large", 0);
    large.metrics = Some(
        [(
            "text".to_owned(),
            schemas::MetricValue::String("x".repeat(30_000)),
        )]
        .into(),
    );
    let records: Vec<_> = (0..200)
        .map(|i| {
            if i == 100 {
                large.clone()
            } else {
                info(&format!("small-{i}"), 0)
            }
        })
        .map(|info| (info.exec_id.clone(), schemas::encode_info(&info).unwrap()))
        .collect();
    topics.send(
        records
            .iter()
            .map(|(key, value)| (Some(key.as_str()), Some(&value[..]), None)),
    );
    let router = topics.start("router-1");
    let (events, letters) = topics.outputs(200).await;
    router.stop().await;
    assert_eq!((events.len(), letters.len()), (199, 1));
    assert_eq!(
        headers(&letters[0])["__connect.errors.exception.class.name"],
        "EventTooLarge"
    );
    assert_eq!(letters[0].payload(), Some(&records[100].1[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn routers_that_come_and_go_route_each_record_once() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 8, Settings::default()).await;
    const RECORDS: i64 = 10_000;
    let send = |from: i64, to: i64| {
        let records: Vec<_> = (from..to)
            .map(|i| {
                (
                    format!("exec-{}", i % 100),
                    schemas::encode_info(&info(&format!("exec-{}", i % 100), i / 100)).unwrap(),
                )
            })
            .collect();
        topics.send(
            records
                .iter()
                .map(|(key, value)| (Some(key.as_str()), Some(&value[..]), None)),
        );
    };
    let first = topics.start("router-1");
    send(0, RECORDS / 2);
    let second = topics.start("router-2");
    send(RECORDS / 2, RECORDS);
    first.stop().await;
    let third = topics.start("router-3");
    let (events, letters) = topics.outputs(RECORDS as usize).await;
    second.stop().await;
    third.stop().await;

    // Again after all have stopped: nothing was added.
    let after = read_all(&topics.bootstrap, &topics.events);
    assert_eq!(
        (events.len(), letters.len(), after.len()),
        (RECORDS as usize, 0, RECORDS as usize)
    );
    let mut sources: Vec<_> = after
        .iter()
        .map(|event| schemas::decode_event(event.payload()).unwrap().source)
        .map(|source| (source.partition, source.offset))
        .collect();
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(
        sources.len(),
        RECORDS as usize,
        "each source record has one event"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_named_with_the_command_that_makes_it() {
    let Some(bootstrap) = kafka() else { return };
    let mut topics = Topics::make(bootstrap, 1, Settings::default()).await;
    topics.letters = unique("absent");
    let error = topics
        .start("router-1")
        .task
        .await
        .unwrap()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&topics.letters) && error.contains("--create"),
        "{error}"
    );
}
