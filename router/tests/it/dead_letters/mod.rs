//! `router dead-letters` on a real Kafka: letters of a router are listed, shown and redriven.

mod listing;
mod redrive;
mod redrive_once;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::report;
use crate::support::router_arguments;
use clap::Parser;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::TaskRunningInfo;
use schemas::dead_letter;
use serde_json::Value;
use service::health::Health;
use service::testing::{Process, Topic, create_topics, read_all, unique, until};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: router::Config,
}

/// A record of a test.
type Record<'a> = (Option<&'a str>, Option<&'a [u8]>);

/// Topics of one test, and the program on them.
struct Topics {
    bootstrap: String,
    source: String,
    events: String,
    letters: String,
    folder: TempDir,
}

/// Exit of the program.
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

    /// Routes until both outputs together have this number of records.
    async fn route(&self, count: usize) {
        let topics = router_arguments(&self.bootstrap, &self.source, &self.events, &self.letters);
        let own = [
            "--instance-id",
            "router-1",
            // These tests are about many letters.
            "--max-rejects-in-a-row",
            "0",
            "--max-rejects-per-1000",
            "0",
        ];
        let arguments = [&["router"], &topics[..], &own].concat();
        let config = Arguments::parse_from(arguments).config;
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

    /// The letters in `list --json`.
    async fn list(&self, filters: &[&str]) -> Vec<Value> {
        let listed = self.run(&[&["list", "--json"], filters].concat()).await;
        assert_eq!(listed.code, 0, "{}", listed.err);
        serde_json::from_str(&listed.out).unwrap()
    }

    /// The records sent back to the source topic.
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

    /// Sends this number of distinct bad records, and has them set aside.
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

    /// Asserts that each of these values was sent back once, and each letter has one note.
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
