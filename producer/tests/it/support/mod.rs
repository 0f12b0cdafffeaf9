//! What these tests share: a topic, the program, and what it wrote.

pub(crate) mod own_kafka;
pub(crate) mod polled;
pub(crate) mod spark;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use rdkafka::message::Message;
use schemas::TaskRunningInfo;
use service::testing::{Topic, create_topics, kafka, read_all, unique};

/// A topic of a test's own.
pub(crate) struct Reports {
    pub(crate) bootstrap: String,
    pub(crate) topic: String,
}

impl Reports {
    /// `None`, and the test is to return, without a Kafka.
    pub(crate) async fn make(name: &str) -> Option<Self> {
        let bootstrap = kafka()?;
        let topic = unique(name);
        let new = Topic {
            name: &topic,
            partitions: 4,
            settings: &[],
        };
        create_topics(&bootstrap, &[new]).await;
        Some(Self { bootstrap, topic })
    }

    /// Arguments of the program that make it write here.
    pub(crate) fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = more.to_vec();
        arguments.extend([
            "--bootstrap-servers",
            &self.bootstrap,
            "--topic",
            &self.topic,
        ]);
        arguments
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_producer"))
            .args(self.arguments(arguments))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It may end before it has read all.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// Everything in the topic, by exec task and in offset order; each under its own key.
    pub(crate) fn by_task(&self) -> BTreeMap<String, Vec<TaskRunningInfo>> {
        let mut tasks: BTreeMap<String, Vec<TaskRunningInfo>> = BTreeMap::new();
        for record in read_all(&self.bootstrap, &self.topic) {
            let info = schemas::decode_info(record.payload()).unwrap();
            assert_eq!(record.key(), Some(info.exec_id.as_bytes()));
            tasks.entry(info.exec_id.clone()).or_default().push(info);
        }
        tasks
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The number before a word, e.g. of `sent 42 reports of 4 tasks` before `reports`.
pub(crate) fn number_before(line: &str, word: &str) -> usize {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|found| *found == word);
    let at = at.unwrap_or_else(|| panic!("no {word:?} in {line:?}"));
    words[at - 1].parse().unwrap()
}
