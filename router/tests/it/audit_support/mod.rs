//! Helpers of the audit's tests: running the audit, and forging topics.

use std::process::Stdio;
use std::time::Duration;

use rdkafka::message::{Message, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::{TaskRunningInfo, TaskRunningInfoEvent};
use serde_json::Value;
use service::testing::{read_all, unique};

use crate::faults_support::{Topics, client};

pub(crate) const ROUTER: &str = env!("CARGO_BIN_EXE_router");

/// The names of all kinds of findings in the report.
pub(crate) const KINDS: [&str; 8] = [
    "lost",
    "duplicate",
    "event_and_letter",
    "out_of_order",
    "differing",
    "invented",
    "other_rules",
    "unprovable",
];

/// How an audit ended.
pub(crate) struct Audited {
    pub(crate) code: i32,
    pub(crate) json: Value,
    pub(crate) err: String,
}

/// `router audit --json` of these topics; later arguments take precedence.
pub(crate) async fn audit(topics: &Topics, more: &[&str]) -> Audited {
    let (code, out, err) = run(topics, &[&["--json"], more].concat()).await;
    let json = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}"));
    Audited { code, json, err }
}

/// `router audit` of these topics: its exit code and output.
pub(crate) async fn run(topics: &Topics, more: &[&str]) -> (i32, String, String) {
    let mut arguments: Vec<String> = vec!["audit".into()];
    let given = |option: &str| more.contains(&option);
    for pair in topics.arguments(&[]).chunks(2) {
        if !given(pair[0]) {
            arguments.extend(pair.iter().map(|argument| (*argument).to_owned()));
        }
    }
    arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
    let ended = tokio::task::spawn_blocking(move || {
        std::process::Command::new(ROUTER)
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    });
    let output = ended.await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

impl Audited {
    pub(crate) fn total(&self, what: &str) -> u64 {
        let total = self.json["totals"][what].as_u64();
        total.unwrap_or_else(|| panic!("no {what}: {:#} {}", self.json, self.err))
    }

    /// Asserts exactly these numbers of findings by kind; returns the examples.
    pub(crate) fn found(&self, expected: &[(&str, u64)]) -> &[Value] {
        for kind in KINDS {
            let wanted = expected.iter().find(|(expected, _)| *expected == kind);
            let wanted = wanted.map_or(0, |(_, count)| *count);
            assert_eq!(
                self.total(kind),
                wanted,
                "{kind}, of {expected:?}: {:#}",
                self.json
            );
        }
        let is = |kinds: &[&str]| expected.iter().any(|(kind, _)| kinds.contains(kind));
        let (code, verdict) = if is(&KINDS[..6]) {
            (1, "unequal")
        } else if is(&["unprovable"]) {
            (2, "unproven")
        } else {
            (0, "equal")
        };
        assert_eq!(
            (self.code, self.json["verdict"].as_str()),
            (code, Some(verdict))
        );
        self.json["examples"].as_array().unwrap()
    }

    /// Asserts the verdict "could not tell" with this reason.
    pub(crate) fn could_not_tell(&self, reason: &str) {
        assert_eq!(self.code, 2, "{:#} {}", self.json, self.err);
        assert_eq!(self.json["verdict"], "unproven");
        let error = self.json["error"].as_str().unwrap_or("none");
        assert!(error.contains(reason), "{error}");
        assert!(self.err.contains(reason), "{}", self.err);
    }
}

/// A record of an output topic, to write to another.
#[derive(Clone)]
pub(crate) struct Copied {
    pub(crate) partition: i32,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) headers: Option<OwnedHeaders>,
}

impl Copied {
    fn of(record: &OwnedMessage) -> Self {
        Self {
            partition: record.partition(),
            key: record.key().map(Into::into),
            value: record.payload().map(Into::into),
            headers: record.headers().cloned(),
        }
    }

    pub(crate) fn event(&self) -> TaskRunningInfoEvent {
        schemas::decode_event(self.value.as_deref()).unwrap()
    }

    /// Changes the event, and the key with it.
    pub(crate) fn forge(&mut self, change: impl FnOnce(&mut TaskRunningInfoEvent)) {
        let mut event = self.event();
        change(&mut event);
        self.key = Some(event.info.exec_id.clone().into_bytes());
        self.value = Some(schemas::encode_event(&event).unwrap());
    }
}

/// All records of a topic, by partition.
pub(crate) fn copies(topics: &Topics, topic: &str) -> Vec<Copied> {
    let records = read_all(&topics.bootstrap, topic);
    let mut copies: Vec<Copied> = records.iter().map(Copied::of).collect();
    copies.sort_by_key(|copied| copied.partition);
    copies
}

/// A topic with these records in this order.
pub(crate) async fn forged(topics: &Topics, records: &[Copied]) -> String {
    let name = unique("forged");
    topics.create(&name, 2).await;
    let producer: ThreadedProducer<_> = client(&topics.bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "5")
        .create()
        .unwrap();
    for copied in records {
        let mut record = BaseRecord::<[u8], [u8]>::to(&name).partition(copied.partition);
        (record.key, record.payload) = (copied.key.as_deref(), copied.value.as_deref());
        record.headers = copied.headers.clone();
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(Duration::from_secs(60)).unwrap();
    name
}

/// Writes records to a partition of the source topic in a transaction that is committed or aborted.
pub(crate) fn transact(topics: &Topics, partition: i32, values: &[Vec<u8>], commit: bool) {
    let within = Duration::from_secs(30);
    let producer: ThreadedProducer<_> = client(&topics.bootstrap)
        .set("transactional.id", unique("engine"))
        .create()
        .unwrap();
    producer.init_transactions(within).unwrap();
    producer.begin_transaction().unwrap();
    for value in values {
        let record = BaseRecord::<str, [u8]>::to(&topics.source).partition(partition);
        producer
            .send(record.key("exec").payload(value))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    producer.flush(within).unwrap();
    if commit {
        producer.commit_transaction(within).unwrap();
    } else {
        producer.abort_transaction(within).unwrap();
    }
}

/// An engine's bytes.
pub(crate) fn encoded(info: &TaskRunningInfo) -> Vec<u8> {
    schemas::encode_info(info).unwrap()
}
