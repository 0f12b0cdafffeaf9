//! `router dead-letters` on a real Kafka: letters that a router wrote are listed, shown and sent back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::report;
use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::dead_letter::{self, Redriven};
use schemas::{DeadLetter, Reject, TaskRunningInfo};
use serde_json::{Value, json};
use service::health::Health;
use service::testing::{
    Process, Topic, alone, create_topics, delete_topic, kafka, read_all, unique, until,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: router::Config,
}

/// What a test sends.
type Record<'a> = (Option<&'a str>, Option<&'a [u8]>);

/// Topics of one test, and the program at work on them.
struct Topics {
    bootstrap: String,
    source: String,
    events: String,
    letters: String,
    folder: TempDir,
}

/// How the program ended.
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Topics {
    async fn make(
        bootstrap: String,
        partitions: i32,
        events_settings: &[(&str, &str)],
        letters_settings: &[(&str, &str)],
    ) -> Self {
        let name = unique("letters");
        let made = Self {
            bootstrap,
            source: name.clone(),
            events: format!("{name}-events"),
            letters: format!("{name}-letters"),
            folder: tempfile::tempdir().unwrap(),
        };
        let topic = |name, partitions, settings| Topic {
            name,
            partitions,
            settings,
        };
        create_topics(
            &made.bootstrap,
            &[
                topic(&made.source, partitions, &[]),
                topic(&made.events, partitions, events_settings),
                topic(&made.letters, 2, letters_settings),
            ],
        )
        .await;
        made
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.bootstrap)
            .set("partitioner", "murmur2_random");
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    fn send<'a>(&self, partition: Option<i32>, records: impl IntoIterator<Item = Record<'a>>) {
        let producer: ThreadedProducer<_> = self.client().create().unwrap();
        for (key, value) in records {
            let mut record = BaseRecord::<str, [u8]>::to(&self.source);
            (record.key, record.payload, record.partition) = (key, value, partition);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    /// Routes all that was sent, until both outputs together hold so many records.
    async fn route(&self, count: usize) {
        let own = [
            "router",
            "--bootstrap-servers",
            &self.bootstrap,
            "--source-topic",
            &self.source,
            "--events-topic",
            &self.events,
            "--dead-letters-topic",
            &self.letters,
            "--group",
            &self.source,
            "--instance-id",
            "router-1",
            // These tests are about many letters.
            "--max-rejects-in-a-row",
            "0",
            "--max-rejects-per-1000",
            "0",
        ];
        let config = Arguments::parse_from(own).config;
        let (stop, health) = (CancellationToken::new(), Arc::new(Health::default()));
        let router = tokio::spawn(router::run(config, health, stop.clone()));
        until(
            &format!("{count} records are routed"),
            Duration::from_secs(120),
            async || {
                let events = read_all(&self.bootstrap, &self.events).len();
                let letters = read_all(&self.bootstrap, &self.letters).len();
                (events + letters >= count).then_some(())
            },
        )
        .await;
        stop.cancel();
        router.await.unwrap().unwrap();
    }

    fn arguments<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let topic = [
            "--bootstrap-servers",
            &self.bootstrap,
            "--dead-letters-topic",
            &self.letters,
        ];
        [&["dead-letters"], arguments, &topic].concat()
    }

    /// Runs `router dead-letters` to its end.
    async fn run(&self, arguments: &[&str]) -> Ended {
        run(&self.folder, &self.arguments(arguments)).await
    }

    /// Starts `router dead-letters`.
    fn start(&self, name: &str, arguments: &[&str]) -> Process {
        let router = env!("CARGO_BIN_EXE_router").as_ref();
        Process::start(self.folder.path(), name, router, &self.arguments(arguments))
    }

    /// The letters that `list --json` tells.
    async fn list(&self, filters: &[&str]) -> Vec<Value> {
        let listed = self.run(&[&["list", "--json"], filters].concat()).await;
        assert_eq!(listed.code, 0, "{}", listed.err);
        serde_json::from_str(&listed.out).unwrap()
    }

    /// What was sent back to the source topic.
    fn redriven(&self) -> Vec<OwnedMessage> {
        let mut records = read_all(&self.bootstrap, &self.source);
        records.retain(|record| headers(record).contains_key(dead_letter::REDRIVEN_OFFSET));
        records
    }

    /// The notes on the dead letter topic: the letter's partition and offset.
    fn notes(&self) -> Vec<(String, String)> {
        read_all(&self.bootstrap, &self.letters)
            .iter()
            .map(headers)
            .filter(|headers| !headers.contains_key(dead_letter::TOPIC))
            .map(|headers| {
                (
                    headers[dead_letter::REDRIVEN_PARTITION].clone(),
                    headers[dead_letter::REDRIVEN_OFFSET].clone(),
                )
            })
            .collect()
    }

    /// Sends so many bad records, each of its own, and has them set aside.
    async fn fill(&self, count: usize) -> BTreeSet<Vec<u8>> {
        let values: BTreeSet<Vec<u8>> = (0..count)
            .map(|i| format!("not Avro {i}").into_bytes())
            .collect();
        self.send(
            None,
            values.iter().map(|value| (Some("key"), Some(&value[..]))),
        );
        self.route(count).await;
        values
    }

    /// Each of these values was sent back once, and each letter has one note.
    fn assert_each_redriven_once(&self, values: &BTreeSet<Vec<u8>>) {
        let redriven = self.redriven();
        let distinct: BTreeSet<Vec<u8>> = redriven
            .iter()
            .map(|record| record.payload().unwrap().to_vec())
            .collect();
        assert_eq!(&distinct, values);
        assert_eq!(redriven.len(), values.len(), "none went twice");
        let notes = self.notes();
        let letters: BTreeSet<_> = notes.iter().cloned().collect();
        assert_eq!((notes.len(), letters.len()), (values.len(), values.len()));
    }
}

async fn run(folder: &TempDir, arguments: &[&str]) -> Ended {
    let path = |stream| folder.path().join(unique(stream));
    let (out, err) = (path("out"), path("err"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_router"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let status = until(
        &format!("router {arguments:?} ends; see {}", err.display()),
        Duration::from_secs(120),
        async || child.try_wait().unwrap(),
    )
    .await;
    Ended {
        code: status.code().unwrap(),
        out: std::fs::read_to_string(out).unwrap(),
        err: std::fs::read_to_string(err).unwrap(),
    }
}

fn headers(record: &OwnedMessage) -> BTreeMap<String, String> {
    record
        .headers()
        .into_iter()
        .flat_map(Headers::iter)
        .map(|header| {
            let value = String::from_utf8(header.value.unwrap().to_vec()).unwrap();
            (header.key.to_owned(), value)
        })
        .collect()
}

fn info(exec_id: &str) -> TaskRunningInfo {
    TaskRunningInfo {
        progress: None,
        ..report::info(exec_id, 0)
    }
}

/// `PARTITION:OFFSET` of a listed letter.
fn place(letter: &Value) -> String {
    format!("{}:{}", letter["partition"], letter["offset"])
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_are_listed_filtered_and_counted() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 2, &[], &[]).await;
    let blank = schemas::encode_info(&info(" ")).unwrap();
    topics.send(Some(0), [(Some("j"), Some(&b"{\"execId\": \"x\"}"[..]))]);
    topics.send(Some(1), [(Some("b"), Some(&blank[..])), (None, None)]);
    topics.route(3).await;
    // A letter as the consumer writes them, stamped later than the others.
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
        absent.err.contains("0:4711: no letter stands there"),
        "{}",
        absent.err
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_left_out_of_its_letter_is_taken_from_the_original_record_while_that_is_there() {
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
            .contains("value      30000 bytes; the letter leaves it out"),
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

    // Retention takes the original.
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
            && shown.out.contains("30000 bytes, not to be had")
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
async fn a_value_left_out_is_not_taken_from_another_record_of_a_topic_made_anew() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[("max.message.bytes", "20000")]).await;
    topics.send(None, [(Some("large"), Some(&[b'x'; 30_000][..]))]);
    topics.route(1).await;
    let letter = place(&topics.list(&[]).await[0]);

    delete_topic(&topics.bootstrap, &topics.source).await;
    let anew = Topic {
        name: &topics.source,
        partitions: 1,
        settings: &[],
    };
    create_topics(&topics.bootstrap, &[anew]).await;
    // The same key and size, at another time.
    topics.send(None, [(Some("large"), Some(&[b'y'; 30_000][..]))]);
    let left = topics.run(&["redrive", &letter]).await;
    assert_eq!(left.code, 2, "{}", left.err);
    assert!(
        left.err.contains("another record stands at"),
        "{}",
        left.err
    );
    assert_eq!((topics.redriven().len(), topics.notes().len()), (0, 0));
}

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
    let told = headers(&sent[0]);
    let (partition, offset) = letter.split_once(':').unwrap();
    let original_ms = original.timestamp().to_millis().unwrap().to_string();
    let original_partition = original.partition().to_string();
    let at = told[dead_letter::REDRIVEN_AT].clone();
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
        told,
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    );
    let notes = [(partition.to_owned(), offset.to_owned())];
    assert_eq!(topics.notes(), notes);

    // The note is no letter; it tells of one.
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
    // By a filter the rest goes, and what went before does not count against it.
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
    // Of those asked for one is a duplicate, and so is one that is not asked for.
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

    // One that comes later has no note of its own.
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

    // A partition that the topic does not have is a wrong place.
    for command in ["redrive", "show"] {
        let nowhere = topics.run(&[command, "9:1"]).await;
        assert_eq!(nowhere.code, 2, "{}", nowhere.err);
        let told = "9:1: no letter stands there in ";
        assert!(nowhere.err.contains(told), "{}", nowhere.err);
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
        // The event, the letters so far and their notes, and one letter more.
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
async fn a_list_of_ten_letters_holds_ten_however_many_there_are() {
    const LETTERS: usize = 80_000;
    const BOUND_MIB: u64 = 130;
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    // Of each letter 4 KiB besides the value: 312 MiB in all.
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
async fn a_record_too_large_for_its_topic_is_told_and_left_and_its_neighbours_go() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_fences_the_one_before_it_and_together_they_send_each_letter_once() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let values = topics.fill(400).await;
    let all = ["redrive", "--all", "--max-records", "1"];
    let mut first = topics.start("first", &all);
    until(
        "the first has sent some",
        Duration::from_secs(120),
        async || (topics.notes().len() >= 5).then_some(()),
    )
    .await;
    // It stands still until the second is at work, lest it be done before that.
    first.signal("STOP");
    let before = topics.notes().len();
    assert!(before < values.len() - 5);
    let mut second = topics.start("second", &all);
    // What the first had handed over when it was stopped is one of them at most.
    until(
        "the second has sent some",
        Duration::from_secs(120),
        async || (topics.notes().len() >= before + 2).then_some(()),
    )
    .await;
    first.signal("CONT");
    let (first_ended, second_ended) = (first.ended().await, second.ended().await);
    assert_eq!(first_ended.code(), Some(1), "{}", first.log());
    assert!(
        first.log().contains("fenced: another redrive"),
        "{}",
        first.log()
    );
    assert_eq!(second_ended.code(), Some(0), "{}", second.log());
    topics.assert_each_redriven_once(&values);
}

#[tokio::test(flavor = "multi_thread")]
async fn redrives_started_together_send_each_letter_once() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let values = topics.fill(300).await;
    let all = ["redrive", "--all", "--max-records", "7"];
    let mut redrives: Vec<Process> = ["first", "second", "third"]
        .map(|name| topics.start(name, &all))
        .into();
    let mut codes = Vec::new();
    for redrive in &mut redrives {
        codes.push(redrive.ended().await.code().unwrap());
    }
    assert!(
        codes.contains(&0),
        "whoever came last has finished: {codes:?}"
    );
    topics.assert_each_redriven_once(&values);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_killed_in_the_middle_is_finished_by_the_next() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let values = topics.fill(400).await;
    for round in 0..3 {
        let before = topics.notes().len();
        let mut killed = topics.start(
            &format!("killed-{round}"),
            &["redrive", "--all", "--max-records", "1"],
        );
        until("some are sent", Duration::from_secs(120), async || {
            (topics.notes().len() > before).then_some(())
        })
        .await;
        killed.signal("KILL");
        assert_eq!(killed.ended().await.code(), None);
    }
    let half = topics.notes().len();
    assert!(half < values.len(), "it was killed in the middle");
    let last = topics.run(&["redrive", "--all"]).await;
    assert_eq!(last.code, 0, "{}", last.err);
    topics.assert_each_redriven_once(&values);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_behind_a_transaction_that_is_still_open_is_waited_for() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    topics.fill(1).await;
    let letter = place(&topics.list(&[]).await[0]);
    let (partition, offset) = letter.split_once(':').unwrap();
    let (partition, offset): (i32, i64) = (partition.parse().unwrap(), offset.parse().unwrap());

    let transactional = |id: String| -> ThreadedProducer<_> {
        let producer: ThreadedProducer<_> = topics
            .client()
            .set("transactional.id", id)
            .create()
            .unwrap();
        producer.init_transactions(Duration::from_secs(30)).unwrap();
        producer.begin_transaction().unwrap();
        producer
    };
    let write = |producer: &ThreadedProducer<_>, headers: &[(&'static str, String)]| {
        let record = BaseRecord::<[u8], [u8]>::to(&topics.letters)
            .partition(partition)
            .headers(service::kafka::headers(headers));
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    // A router's transaction is open, and behind it another redrive has noted the letter.
    let router = transactional(unique("router"));
    write(&router, &[]);
    let other = transactional(format!("{}-redrive", topics.letters));
    let note = Redriven {
        topic: &topics.letters,
        partition,
        offset,
        at: "2026-11-25T14:05:00.123Z",
    };
    write(&other, &note.headers());
    other.commit_transaction(Duration::from_secs(30)).unwrap();
    let listed = topics.run(&["list"]).await;
    assert!(
        listed.err.contains("where a transaction is still open"),
        "{}",
        listed.err
    );

    let mut redrive = topics.start("redrive", &["redrive", &letter]);
    // The fence shows that it runs and reads.
    until(
        "the redrive has fenced the other",
        Duration::from_secs(120),
        async || {
            let _ = other.begin_transaction();
            let record = BaseRecord::<[u8], [u8]>::to(&topics.source);
            let _ = other.send(record);
            other.client().fatal_error().map(drop)
        },
    )
    .await;
    // Time in which one that does not wait for the open transaction has ended.
    tokio::time::sleep(Duration::from_secs(2)).await;
    redrive.assert_running();
    router.abort_transaction(Duration::from_secs(30)).unwrap();
    assert_eq!(redrive.ended().await.code(), Some(2), "{}", redrive.log());
    assert!(
        redrive
            .log()
            .contains("it was redriven at 2026-11-25T14:05:00.123Z"),
        "{}",
        redrive.log()
    );
    assert_eq!(topics.redriven().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_said_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, told) in [
        (&["dead-letters", "redrive"][..], "say which letters"),
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
        assert!(ended.err.contains(told), "{arguments:?}: {}", ended.err);
    }
}
