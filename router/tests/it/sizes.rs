//! Records that are, or seem, too large for their outputs.

use std::collections::BTreeMap;

use crate::support::{Settings, Topics, headers, info};
use rdkafka::message::{Message, OwnedMessage};
use schemas::{MetricValue, TaskRunningInfo};
use service::limits::FRESH;
use service::testing::{kafka, read_all, set_max_bytes};

/// Kafka's default of `max.message.bytes`, and a limit for the records used here.
const MIB_8: (&str, &str) = ("max.message.bytes", "8388608");
const OMITTED: &str = "taskrunning.original.value.omitted.bytes";

/// A record whose key and value have exactly this size; the text is compressible or not.
fn sized(exec_id: &str, bytes: usize, repeats: bool) -> Vec<u8> {
    let encode = |text: &str| {
        let mut info: TaskRunningInfo = info(exec_id, 0);
        info.metrics = Some([("text".to_owned(), MetricValue::String(text.to_owned()))].into());
        schemas::encode_info(&info).unwrap()
    };
    // Incompressible letters: a linear congruential sequence.
    let mut state = 12_345_u64;
    let text: String = (0..bytes)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            if repeats {
                'x'
            } else {
                char::from(b'!' + (state >> 33) as u8 % 90)
            }
        })
        .collect();
    let over = encode(&text).len() + exec_id.len() - bytes;
    let value = encode(&text[..bytes - over]);
    assert_eq!(value.len() + exec_id.len(), bytes);
    value
}

fn send(topics: &Topics, producer: &[(&str, &str)], records: &[(String, Vec<u8>)]) {
    let records = records
        .iter()
        .map(|(key, value)| (Some(key.as_str()), Some(&value[..]), None));
    topics.send_as(
        &[producer, &[("message.max.bytes", "10000000")]].concat(),
        records,
    );
}

fn small(i: usize) -> (String, Vec<u8>) {
    let exec_id = format!("small-{i}");
    let value = schemas::encode_info(&info(&exec_id, 0)).unwrap();
    (exec_id, value)
}

fn reason(headers: &BTreeMap<String, String>) -> &str {
    &headers["__connect.errors.exception.class.name"]
}

/// The source position in a letter.
fn stood(topics: &Topics, letter: &OwnedMessage) -> OwnedMessage {
    let headers = headers(letter);
    assert_eq!(headers["__connect.errors.topic"], topics.source);
    let number = |name: &str| -> i64 { headers[name].parse().unwrap() };
    let records = read_all(&topics.bootstrap, &topics.source);
    records
        .into_iter()
        .find(|record| {
            i64::from(record.partition()) == number("__connect.errors.partition")
                && record.offset() == number("__connect.errors.offset")
        })
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_whose_event_is_too_large_is_one_letter_and_its_two_hundred_neighbours_are_events()
{
    let Some(bootstrap) = kafka() else { return };
    // With a dead letter topic for the record and its headers, and with one of Kafka's default size, which is
    // too small.
    for (settings, whole) in [(&[MIB_8][..], true), (&[][..], false)] {
        let settings = Settings {
            letters: settings,
            ..Settings::default()
        };
        let topics = Topics::make(bootstrap.clone(), 1, settings).await;
        let large = ("large".to_owned(), sized("large", 1_048_480, false));
        let mut records: Vec<_> = (0..200).map(small).collect();
        records.insert(100, large.clone());
        send(&topics, &[], &records);

        let router = topics.start("router-1");
        topics.outputs(201).await;
        router.stop().await;
        // The next start continues behind the record.
        send(&topics, &[], &[small(200)]);
        let router = topics.start("router-1");
        let (events, letters) = topics.outputs(202).await;
        router.stop().await;

        assert_eq!((events.len(), letters.len()), (201, 1), "whole: {whole}");
        let letter = &letters[0];
        let headers = headers(letter);
        assert_eq!(reason(&headers), "EventTooLarge");
        assert_eq!(letter.key(), Some(&b"large"[..]));
        if whole {
            assert_eq!(letter.payload(), Some(&large.1[..]));
            assert!(!headers.contains_key(OMITTED));
        } else {
            assert_eq!(letter.payload(), None);
            assert_eq!(headers[OMITTED], large.1.len().to_string());
        }
        let record = stood(&topics, letter);
        assert_eq!(record.payload(), Some(&large.1[..]));
    }
}

/// The rule: a record's size before compression counts, on every topic.
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_only_compression_makes_small_is_judged_by_its_size_without_it() {
    let Some(bootstrap) = kafka() else { return };
    const CODECS: [&str; 4] = ["zstd", "lz4", "gzip", "snappy"];
    let records: Vec<_> = CODECS
        .iter()
        .map(|codec| ((*codec).to_owned(), sized(codec, 2 << 20, true)))
        .collect();
    for (events_settings, routed) in [(&[MIB_8][..], true), (&[][..], false)] {
        // The source topic has Kafka's default of 1 MiB, which the broker compares with the
        // compressed size.
        let settings = Settings {
            events: events_settings,
            ..Settings::default()
        };
        let topics = Topics::make(bootstrap.clone(), 1, settings).await;
        for (record, codec) in records.iter().zip(CODECS) {
            send(
                &topics,
                &[("compression.type", codec)],
                std::slice::from_ref(record),
            );
        }
        send(&topics, &[], &[small(0)]);
        let router = topics.start("router-1");
        let (events, letters) = topics.outputs(5).await;
        router.stop().await;

        let expected = if routed { (5, 0) } else { (1, 4) };
        assert_eq!((events.len(), letters.len()), expected);
        for (event, record) in events.iter().zip(&records).take(4 * usize::from(routed)) {
            let event = schemas::decode_event(event.payload()).unwrap();
            assert_eq!(schemas::encode_info(&event.info).unwrap(), record.1);
        }
        for (letter, record) in letters.iter().zip(&records) {
            let headers = headers(letter);
            assert_eq!(reason(&headers), "EventTooLarge");
            let message = &headers["__connect.errors.exception.message"];
            assert!(message.contains("uncompressed"), "{message}");
            // The letter would be as large, so it omits the body.
            assert_eq!(letter.key(), Some(record.0.as_bytes()));
            assert_eq!(letter.payload(), None);
            assert_eq!(headers[OMITTED], record.1.len().to_string());
            assert_eq!(stood(&topics, letter).payload(), Some(&record.1[..]));
        }
    }
}

/// Records that fit are sent in batches that fit, for any limit of the topic.
#[tokio::test(flavor = "multi_thread")]
async fn many_small_records_are_routed_to_a_topic_whose_limit_is_below_their_batch() {
    let Some(bootstrap) = kafka() else { return };
    // Lower than that of the other topic, for which the same producer sends letters.
    let settings = Settings {
        events: &[("max.message.bytes", "30000")],
        ..Settings::default()
    };
    let topics = Topics::make(bootstrap, 1, settings).await;
    let records: Vec<_> = (0..200)
        .map(|i| {
            // The event of every second one is too large.
            let bytes = if i % 2 == 0 { 20_000 } else { 29_900 };
            let exec_id = format!("incompressible-{i}");
            let value = sized(&exec_id, bytes, false);
            (exec_id, value)
        })
        .collect();
    send(&topics, &[], &records);
    let router = topics.start("router-1");
    let (events, letters) = topics.outputs(200).await;
    router.stop().await;
    assert_eq!((events.len(), letters.len()), (100, 100));
}

/// Records in flight do not fail permanently: those that no longer fit are set aside, once.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_limit_is_lowered_records_that_no_longer_fit_are_set_aside_and_others_are_routed() {
    let Some(bootstrap) = kafka() else { return };
    let settings = Settings {
        letters: &[MIB_8],
        ..Settings::default()
    };
    let topics = Topics::make(bootstrap, 1, settings).await;
    let router = topics.start("router-1");
    send(&topics, &[], &[small(0)]);
    topics.outputs(1).await;

    set_max_bytes(&topics.bootstrap, &topics.events, 20_000).await;
    let large = ("large".to_owned(), sized("large", 30_000, false));
    // Each of these fits, but not many in a batch.
    let mut records: Vec<_> = (1..20)
        .map(|i| (format!("r-{i}"), sized(&format!("r-{i}"), 5_000, false)))
        .collect();
    records.insert(10, large.clone());
    send(&topics, &[], &records);
    let (events, letters) = topics.outputs(21).await;
    assert_eq!((events.len(), letters.len()), (20, 1));
    let letter_headers = headers(&letters[0]);
    assert_eq!(reason(&letter_headers), "EventTooLarge");
    let message = &letter_headers["__connect.errors.exception.message"];
    assert!(message.contains("takes 19872"), "{message}");
    assert_eq!(letters[0].payload(), Some(&large.1[..]));

    // So is a letter that no longer fits into its topic.
    set_max_bytes(&topics.bootstrap, &topics.letters, 25_000).await;
    send(&topics, &[], &[large.clone(), small(20)]);
    let (events, letters) = topics.outputs(23).await;
    assert_eq!((events.len(), letters.len()), (21, 2));
    assert_eq!(letters[1].payload(), None);
    assert_eq!(headers(&letters[1])[OMITTED], large.1.len().to_string());
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_limit_is_raised_records_that_fit_become_events() {
    let Some(bootstrap) = kafka() else { return };
    let settings = Settings {
        events: &[("max.message.bytes", "20000")],
        letters: &[("max.message.bytes", "20000")],
        ..Settings::default()
    };
    let topics = Topics::make(bootstrap, 1, settings).await;
    let router = topics.start("router-1");
    let of_bytes = |name: &str, bytes| (name.to_owned(), sized(name, bytes, false));
    send(&topics, &[], &[of_bytes("before", 30_000), small(0)]);
    let (events, letters) = topics.outputs(2).await;
    assert_eq!((events.len(), letters.len()), (1, 1));
    assert_eq!(letters[0].payload(), None);

    // More than the initial limit of the router's client.
    set_max_bytes(&topics.bootstrap, &topics.events, 4_000_000).await;
    set_max_bytes(&topics.bootstrap, &topics.letters, 8_000_000).await;
    // The last limit was read within seconds: records may still be set aside meanwhile.
    tokio::time::sleep(FRESH).await;
    let too_large = of_bytes("too-large", 5_000_000);
    set_max_bytes(&topics.bootstrap, &topics.source, 8_388_608).await;
    let after = of_bytes("after", 3_000_000);
    send(&topics, &[], &[after.clone(), too_large.clone(), small(1)]);
    let (events, letters) = topics.outputs(5).await;
    router.stop().await;
    assert_eq!((events.len(), letters.len()), (3, 2));
    assert_eq!(events[1].key(), Some(&b"after"[..]));
    assert_eq!(letters[1].payload(), Some(&too_large.1[..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_too_small_for_a_letters_headers_stops_the_router_with_the_bytes_needed() {
    let Some(bootstrap) = kafka() else { return };
    let settings = Settings {
        letters: &[("max.message.bytes", "400")],
        ..Settings::default()
    };
    let topics = Topics::make(bootstrap, 1, settings).await;
    send(
        &topics,
        &[],
        &[small(0), ("bad".to_owned(), b"bad".to_vec())],
    );
    let router = topics.start("router-1");
    let ended = router.task.await.unwrap().unwrap_err();
    assert!(ended.is::<service::exit::NeedsAttention>(), "{ended:#}");
    let ended = format!("{ended:#}");
    let expected = format!(
        "topic {} takes records of at most 272 bytes, and ",
        topics.letters
    );
    assert!(ended.contains(&expected), "{ended}");
    assert_eq!(read_all(&topics.bootstrap, &topics.events).len(), 0);
}
