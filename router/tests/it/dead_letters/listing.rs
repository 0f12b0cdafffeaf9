//! Listing and showing dead letters.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Topics, info, place, run};
use rdkafka::admin::AdminOptions;
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::dead_letter::Redriven;
use schemas::{DeadLetter, Reject};
use serde_json::{Value, json};
use service::testing::{Topic, create_topics, delete_topic, kafka, until};

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_filtered_and_counted() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 2, &[], &[]).await;
    let blank = schemas::encode_info(&info(" ")).unwrap();
    topics.send(Some(0), [(Some("j"), Some(&b"{\"execId\": \"x\"}"[..]))]);
    topics.send(Some(1), [(Some("b"), Some(&blank[..])), (None, None)]);
    topics.route(3).await;
    // A letter as written by a consumer, with a later timestamp than the others.
    let reject = Reject {
        stage: "TASK_PUT",
        refused_by: "consumer::store",
        kind: "DatabaseRefused",
        message: "a \u{1b}[2J value".to_owned(),
    };
    let letter = DeadLetter {
        topic: &topics.events,
        topic_id: None,
        partition: 1,
        offset: 7,
        timestamp_ms: Some(1_764_079_500_123),
        first: None,
        service: "consumer",
        instance: "consumer-1",
        reject: &reject,
    };
    let letter = letter.letter(Some(b"c"), Some(b"value"), 1_000_000);
    let producer: ThreadedProducer<_> = topics.client().create().unwrap();
    let mut record = BaseRecord::<[u8], [u8]>::to(&topics.letters)
        .headers(service::kafka::headers(&letter.headers));
    (record.key, record.payload) = (letter.key, letter.value);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    record.timestamp = Some(now.as_millis() as i64 + 60_000);
    producer.send(record).map_err(|(error, _)| error).unwrap();
    producer.flush(Duration::from_secs(30)).unwrap();

    let all = topics.list(&[]).await;
    assert_eq!(all.len(), 4);
    let newest = &all[0];
    let expected = json!({
        "partition": newest["partition"], "offset": newest["offset"], "written_at": newest["written_at"],
        "service": "consumer", "reason": "DatabaseRefused", "message": "a \u{1b}[2J value",
        "source_topic": topics.events, "source_partition": 1, "source_offset": 7,
        "original_timestamp_ms": 1_764_079_500_123_i64, "first_topic": topics.events, "first_partition": 1,
        "first_offset": 7, "first_timestamp_ms": 1_764_079_500_123_i64, "key": "c", "value_bytes": 5, "value_omitted": false,
        "redriven_at": null, "redriven_times": 0,
    });
    assert_eq!(newest, &expected);

    let since = newest["written_at"].as_str().unwrap();
    let reasons = async |filters: &[&str]| -> BTreeSet<String> {
        let listed = topics.list(filters).await;
        let reasons = listed
            .iter()
            .map(|letter| letter["reason"].as_str().unwrap().to_owned());
        reasons.collect()
    };
    let set = |reasons: &[&str]| reasons.iter().map(|reason| (*reason).to_owned()).collect();
    let routers: BTreeSet<_> = set(&["UnknownFraming", "BlankIdentifier", "NoValue"]);
    assert_eq!(
        reasons(&["--reason", "NoValue", "--reason", "UnknownFraming"]).await,
        set(&["NoValue", "UnknownFraming"])
    );
    assert_eq!(reasons(&["--service", "router"]).await, routers);
    assert_eq!(
        reasons(&["--source-topic", &topics.events]).await,
        set(&["DatabaseRefused"])
    );
    assert_eq!(
        reasons(&["--source-partition", "1", "--service", "router"]).await,
        set(&["BlankIdentifier", "NoValue"])
    );
    assert_eq!(
        reasons(&["--since", since]).await,
        set(&["DatabaseRefused"])
    );
    assert_eq!(reasons(&["--until", since]).await, routers);
    assert_eq!(
        reasons(&["--since", "-2h", "--until", "-1h"]).await,
        set(&[])
    );

    let table = topics.run(&["list", "--limit", "1"]).await;
    assert_eq!(table.code, 0, "{}", table.err);
    for part in [
        "DatabaseRefused",
        &format!("{} 1:7", topics.events),
        "1 NoValue (1 not redriven)",
        &format!("4 letters in {}; 3 more with --limit 0", topics.letters),
    ] {
        assert!(table.out.contains(part), "{part} is not in {}", table.out);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_is_shown_with_its_headers_its_fields_and_its_bytes() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let blank = schemas::encode_info(&info(" ")).unwrap();
    let mut unknown = blank.clone();
    unknown[2..10].copy_from_slice(&0x0123_4567_89ab_cdef_u64.to_le_bytes());
    let whole = schemas::encode_info(&info("exec-1")).unwrap();
    let cut = &whole[..whole.len() - 2];
    let json = br#"{"execId": "x"}"#;
    topics.send(
        None,
        [&json[..], &blank, &unknown, cut, &[0, 0, 0, 0, 42, 9]]
            .map(|value| (Some("k"), Some(value))),
    );
    topics.route(5).await;

    let places: Vec<String> = {
        let mut letters = topics.list(&[]).await;
        letters.sort_by_key(|letter| letter["source_offset"].as_i64());
        letters.iter().map(place).collect()
    };
    let show = async |i: usize, parts: &[&str]| {
        let shown = topics.run(&["show", &places[i]]).await;
        assert_eq!(shown.code, 0, "{}", shown.err);
        for part in parts {
            assert!(shown.out.contains(part), "{part:?} is not in {}", shown.out);
        }
    };
    let from = format!("from       {} partition 0 offset 0\n", topics.source);
    show(
        0,
        &[
            &format!("letter     {} of {}\n", places[0], topics.letters),
            &from,
            "  __connect.errors.exception.class.name = UnknownFraming\n",
            "  __connect.errors.task.id = router-1\n",
            "redriven   no\n",
            "key        k\n",
            "value      15 bytes\n",
            "framing    none: JSON\n",
            "  \"execId\": \"x\"\n",
            "00000000  7b 22 65 78 65 63 49 64  22 3a 20 22 78 22 7d     |{\"execId\": \"x\"}|\n",
        ],
    )
    .await;
    show(
        1,
        &[
            "framing    a whole TaskRunningInfo",
            "problem    execId is blank\n",
            "\"reportedAt\": \"2025-11-25T14:05:00.123456Z\"",
        ],
    )
    .await;
    show(
        2,
        &["schema fingerprint 0123456789abcdef: of no released version"],
    )
    .await;
    show(
        3,
        &[
            "TaskRunningInfo of schema 944a4f9429e9c6b6\n",
            "readable before the fault\n  execId = \"exec-1\"\n  jobId = \"job\"\n  engine.instance = \"node:1\"\n",
            "  sequence = 0\n",
        ],
    )
    .await;
    show(4, &["a schema registry's, schema id 42"]).await;

    let absent = topics.run(&["show", "0:4711"]).await;
    assert_eq!(absent.code, 2);
    assert!(
        absent.err.contains("0:4711: no letter at this position"),
        "{}",
        absent.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_omitted_value_is_taken_from_the_original_record_while_that_exists() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[("max.message.bytes", "20000")]).await;
    let large = vec![b'x'; 30_000];
    topics.send(None, [(Some("large"), Some(&large[..]))]);
    topics.route(1).await;
    let letters = topics.list(&[]).await;
    assert_eq!(
        (&letters[0]["value_bytes"], &letters[0]["value_omitted"]),
        (&json!(30_000), &json!(true))
    );
    let place = place(&letters[0]);

    let shown = topics.run(&["show", &place, "--full"]).await;
    assert!(
        shown
            .out
            .contains("value      30000 bytes; omitted in the letter"),
        "{}",
        shown.out
    );
    assert!(
        shown.out.contains("00007520  78 78"),
        "the last line is dumped"
    );
    let redriven = topics.run(&["redrive", &place]).await;
    assert_eq!(redriven.code, 0, "{}", redriven.err);
    let sent = topics.redriven();
    assert_eq!(sent.len(), 1);
    assert_eq!(
        (sent[0].key(), sent[0].payload()),
        (Some(&b"large"[..]), Some(&large[..]))
    );

    // Retention deletes the original.
    let mut until = TopicPartitionList::new();
    until
        .add_partition_offset(&topics.source, 0, Offset::Offset(1))
        .unwrap();
    let deleted = topics
        .admin()
        .delete_records(&until, &AdminOptions::new())
        .await
        .unwrap();
    deleted.elements()[0].error().unwrap();
    let gone = "partition 0 now holds offsets 1 to ";
    let shown = topics.run(&["show", &place]).await;
    assert!(
        shown.code == 0
            && shown.out.contains("30000 bytes, not available")
            && shown.out.contains(gone),
        "{}",
        shown.out
    );
    let left = topics.run(&["redrive", &place, "--force"]).await;
    assert_eq!(left.code, 2);
    assert!(left.err.contains(gone), "{}", left.err);
    assert_eq!(topics.redriven().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_omitted_value_is_not_taken_from_another_record_of_a_topic_created_again() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[("max.message.bytes", "20000")]).await;
    topics.send(None, [(Some("large"), Some(&[b'x'; 30_000][..]))]);
    topics.route(1).await;
    let letter = place(&topics.list(&[]).await[0]);

    delete_topic(&topics.bootstrap, &topics.source).await;
    let again = Topic {
        name: &topics.source,
        partitions: 1,
        settings: &[],
    };
    create_topics(&topics.bootstrap, &[again]).await;
    // The same key and size, with another timestamp.
    topics.send(None, [(Some("large"), Some(&[b'y'; 30_000][..]))]);
    let left = topics.run(&["redrive", &letter]).await;
    assert_eq!(left.code, 2, "{}", left.err);
    assert!(
        left.err.contains("now holds another record"),
        "{}",
        left.err
    );
    assert_eq!((topics.redriven().len(), topics.notes().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_ten_letters_holds_ten_however_many_there_are() {
    const LETTERS: usize = 80_000;
    const BOUND_MIB: u64 = 130;
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    // 4 KiB of each letter besides the value: 312 MiB in total.
    let (key, message) = ("k".repeat(2_048), "m".repeat(2_048));
    let producer: ThreadedProducer<_> = topics.client().set("linger.ms", "20").create().unwrap();
    let send = |mut record: BaseRecord<'_, [u8], [u8]>| {
        while let Err((_, unsent)) = producer.send(record) {
            record = unsent;
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    for i in 0..LETTERS {
        let reject = Reject {
            stage: "VALUE_CONVERTER",
            refused_by: "here",
            kind: if i % 4 == 0 { "Empty" } else { "NoValue" },
            message: message.clone(),
        };
        let letter = DeadLetter {
            topic: &topics.source,
            topic_id: None,
            partition: 0,
            offset: i as i64,
            timestamp_ms: None,
            first: None,
            service: "router",
            instance: "r",
            reject: &reject,
        };
        let letter = letter.letter(Some(key.as_bytes()), Some(b"value"), 1_000_000);
        let mut record = BaseRecord::to(&topics.letters)
            .partition(0)
            .headers(service::kafka::headers(&letter.headers));
        (record.key, record.payload) = (letter.key, letter.value);
        send(record);
    }
    // The newest were redriven: with --not-redriven older ones are listed.
    let redriven = LETTERS - 20..LETTERS;
    for i in redriven.clone() {
        let note = Redriven {
            topic: &topics.letters,
            partition: 0,
            offset: i as i64,
            at: "2026-11-25T14:05:00.123Z",
        };
        let headers = service::kafka::headers(&note.headers());
        send(
            BaseRecord::to(&topics.letters)
                .partition(0)
                .headers(headers),
        );
    }
    producer.flush(Duration::from_secs(120)).unwrap();

    let mut peaks = Vec::new();
    for filters in [&["--json"][..], &["--json", "--not-redriven"], &[]] {
        let arguments = [&["list", "--limit", "10"], filters].concat();
        let mut listing = topics.start("list", &arguments);
        let mut peak = 0;
        let ended = until("the list ends", Duration::from_secs(120), async || {
            peak = listing
                .peak_memory_mib_if_running()
                .unwrap_or(peak)
                .max(peak);
            listing.status()
        })
        .await;
        assert!(ended.success(), "{}", listing.log());
        peaks.push(peak);
        let log = listing.log();
        if filters.is_empty() {
            assert!(
                log.contains(
                    "   20000 Empty (19995 not redriven)\n   60000 NoValue (59985 not redriven)\n"
                ),
                "{log}"
            );
            assert!(log.contains("80000 letters in "), "{log}");
            assert!(log.contains("; 79990 more with --limit 0"), "{log}");
            continue;
        }
        let (_, json) = log.split_once("[\n").unwrap();
        let listed: Vec<Value> = serde_json::from_str(&format!("[{json}")).unwrap();
        let offsets: BTreeSet<_> = listed
            .iter()
            .map(|letter| letter["offset"].as_u64().unwrap() as usize)
            .collect();
        assert_eq!(offsets.len(), 10);
        let expected = match filters.len() {
            1 => LETTERS - 10..LETTERS,
            _ => redriven.start - 10..redriven.start,
        };
        assert_eq!(offsets, expected.collect());
    }
    println!("at most {peaks:?} MiB");
    assert!(peaks.iter().all(|peak| *peak <= BOUND_MIB), "{peaks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unselected_letters_are_required() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (&["dead-letters", "redrive"][..], "name the letters"),
        (
            &["dead-letters", "redrive", "0:1", "--all"],
            "cannot be used with",
        ),
        (
            &["dead-letters", "redrive", "0:1", "--since", "-2h"],
            "cannot be used with",
        ),
        (&["dead-letters", "show", "17"], "expected PARTITION:OFFSET"),
        (
            &["dead-letters", "list", "--since", "yesterday"],
            "expected RFC 3339",
        ),
        (
            &["--instance-id", "r", "dead-letters", "list"],
            "dead-letters",
        ),
        (&["--max-records", "0"], "--max-records"),
    ] {
        let ended = run(&folder, arguments).await;
        assert_eq!(ended.code, 2, "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains(words), "{arguments:?}: {}", ended.err);
    }
}
