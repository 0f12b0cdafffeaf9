//! The router on a real Kafka: each record becomes one event or one dead letter, exactly once.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::{EngineInstance, TaskProgressInfo, TaskRunningInfo, TaskStatus};
use service::health::Health;
use service::testing::{Topic, create_topics, kafka, read_all, unique, until};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: router::Config,
}

/// Topics of one test and what runs on them.
struct Topics {
    bootstrap: String,
    source: String,
    events: String,
    letters: String,
}

impl Topics {
    async fn make(bootstrap: String, partitions: i32, events_settings: &[(&str, &str)]) -> Self {
        let name = unique("routing");
        let (source, events, letters) = (
            name.clone(),
            format!("{name}-events"),
            format!("{name}-letters"),
        );
        // A test's records may carry any time.
        let any_time: &[(&str, &str)] = &[
            ("message.timestamp.after.max.ms", "9223372036854775807"),
            ("retention.ms", "-1"),
        ];
        let topic = |name, partitions, settings| Topic {
            name,
            partitions,
            settings,
        };
        let made = [
            topic(&source, partitions, any_time),
            topic(&events, partitions, events_settings),
            topic(&letters, 1, &[]),
        ];
        create_topics(&bootstrap, &made).await;
        Self {
            bootstrap,
            source,
            events,
            letters,
        }
    }

    fn config(&self, more: &[&str]) -> router::Config {
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
        ];
        Arguments::parse_from(own.iter().chain(more)).config
    }

    fn start(&self, instance: &str) -> Running {
        let (stop, health) = (CancellationToken::new(), Arc::new(Health::default()));
        let config = self.config(&["--instance-id", instance]);
        Running {
            task: tokio::spawn(router::run(config, health, stop.clone())),
            stop,
        }
    }

    fn send<'a>(
        &self,
        records: impl IntoIterator<Item = (Option<&'a str>, Option<&'a [u8]>, Option<i64>)>,
    ) {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("partitioner", "murmur2_random")
            .create()
            .unwrap();
        for (key, value, timestamp) in records {
            let mut record = BaseRecord::<str, [u8]>::to(&self.source);
            (record.key, record.payload, record.timestamp) = (key, value, timestamp);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    /// Waits until the two outputs together hold so many records.
    async fn outputs(&self, count: usize) -> (Vec<OwnedMessage>, Vec<OwnedMessage>) {
        until(
            &format!("{count} records are routed"),
            Duration::from_secs(60),
            async || {
                let outputs = (
                    read_all(&self.bootstrap, &self.events),
                    read_all(&self.bootstrap, &self.letters),
                );
                (outputs.0.len() + outputs.1.len() >= count).then_some(outputs)
            },
        )
        .await
    }
}

struct Running {
    task: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

fn info(exec_id: &str, sequence: i64) -> TaskRunningInfo {
    TaskRunningInfo {
        exec_id: exec_id.into(),
        job_id: "job".into(),
        engine: EngineInstance {
            instance: "node:1".into(),
            engine_type: "test".into(),
            user: String::new(),
            ticket_id: String::new(),
            running_tasks: 1,
        },
        status: TaskStatus::Running,
        reported_at: 1_764_079_500_123_456,
        sequence,
        progress: Some(TaskProgressInfo {
            progress: 0.5,
            progress_info: vec![],
        }),
        resource: None,
        metrics: None,
    }
}

fn headers(letter: &OwnedMessage) -> BTreeMap<String, String> {
    let headers = letter.headers().unwrap();
    headers
        .iter()
        .map(|h| {
            (
                h.key.to_owned(),
                String::from_utf8(h.value.unwrap().to_vec()).unwrap(),
            )
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn good_records_become_events_and_others_dead_letters_with_their_bytes_and_reasons() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[]).await;
    let good = schemas::encode_info(&info("exec-1", 0)).unwrap();
    let blank = schemas::encode_info(&info(" ", 0)).unwrap();
    // Years after the record: a producer that gives microseconds where milliseconds are meant.
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
            "the value begins with 7B 22 65 78 (JSON), not with C3 01 and a schema fingerprint; \
             write it in Avro single-object encoding",
        ),
        ("taskrunning.original.timestamp.ms", "1764079500123"),
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
    // The events topic takes less than the source topic, so that the source record fits and the
    // event does not; the letter fits without compression only because its topic takes more.
    let topics = Topics::make(bootstrap, 1, &[("max.message.bytes", "20000")]).await;
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
    let topics = Topics::make(bootstrap, 8, &[]).await;
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

    // Once more after all have stopped: nothing came on top.
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
    let mut topics = Topics::make(bootstrap, 1, &[]).await;
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
