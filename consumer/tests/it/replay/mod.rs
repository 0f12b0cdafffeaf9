//! A range of the events topic, rebuilt in another database by the real program: each event once, however often the
//! replay is killed, and never into a database with other contents.

mod equal;
mod limits;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::{Kind, Pipeline};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::Process;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// A pipeline, and a database to replay its events into.
struct Replayed {
    live: Pipeline,
    into: Pipeline,
}

/// A replay's exit status and output.
struct Ended {
    code: Option<i32>,
    log: String,
}

impl Replayed {
    async fn make(kind: Kind, partitions: i32) -> Option<Self> {
        let live = Pipeline::make(kind, partitions).await?;
        let mut into = Pipeline::make(kind, 1).await?;
        into.events.clone_from(&live.events);
        into.partitions = partitions;
        Some(Self { live, into })
    }

    fn arguments<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments = vec![
            "replay",
            "--bootstrap-servers",
            &self.live.bootstrap,
            "--events-topic",
            &self.live.events,
            "--into",
            &self.into.database_url,
        ];
        arguments.extend(more);
        arguments
    }

    /// Runs a replay to its end.
    fn replay(&self, more: &[&str]) -> Ended {
        let output = Command::new(CONSUMER)
            .args(self.arguments(more))
            .output()
            .unwrap();
        Ended {
            code: output.status.code(),
            log: [output.stdout, output.stderr]
                .map(|log| String::from_utf8(log).unwrap())
                .concat(),
        }
    }

    /// A replay that succeeds; returns its output.
    fn replays(&self, more: &[&str]) -> String {
        let Ended { code, log } = self.replay(more);
        assert_eq!(code, Some(0), "{more:?}: {log}");
        log
    }

    /// A replay that needs an operator, whose message contains these texts, and that leaves the database unchanged.
    async fn is_refused(&self, more: &[&str], reasons: &[&str]) {
        self.is_refused_with(78, more, reasons).await;
    }

    /// The same with this exit code.
    async fn is_refused_with(&self, ends: i32, more: &[&str], reasons: &[&str]) {
        let before = (self.into.contents().await, self.offsets().await);
        let Ended { code, log } = self.replay(more);
        assert_eq!(code, Some(ends), "{more:?}: {log}");
        for reason in reasons {
            assert!(log.contains(reason), "{reason} is not in\n{log}");
        }
        assert!(
            before == (self.into.contents().await, self.offsets().await),
            "{more:?} changed the database"
        );
    }

    fn start(&self, name: &str, more: &[&str]) -> Process {
        let arguments = self.arguments(more);
        Process::start(self.into.folder(), name, Path::new(CONSUMER), &arguments)
    }

    /// First and next offset of each part and partition.
    async fn offsets(&self) -> Vec<Vec<Option<String>>> {
        self.into
            .rows(
                "SELECT part, CAST(partition AS text), CAST(first_offset AS text), CAST(next_offset AS text), group_id \
                 FROM consumed_offset ORDER BY part, partition",
            )
            .await
    }

    /// First and next offset of each partition, which all parts share.
    async fn spans(&self) -> Vec<(i64, i64)> {
        let mut spans = Vec::new();
        for row in self.offsets().await {
            let number = |i: usize| row[i].as_deref().unwrap().parse::<i64>().unwrap();
            assert_eq!(row[4].as_deref(), Some("replay"));
            spans.push((number(2), number(3)));
        }
        let parts: Vec<_> = spans.chunks(spans.len() / 3).collect();
        assert!(parts.iter().all(|part| *part == parts[0]), "{spans:?}");
        parts[0].to_vec()
    }

    /// Compares all of a pipeline's tables except the keys of tasks.
    async fn assert_equal(&self) {
        for (live, replayed) in self
            .live
            .contents()
            .await
            .iter()
            .zip(&self.into.contents().await)
        {
            assert_eq!(live.len(), replayed.len());
            for (live, replayed) in live.iter().zip(replayed) {
                assert_eq!(live, replayed);
            }
        }
        assert_eq!(self.live.progress().await, self.into.progress().await);
        let states = "SELECT exec_id, CAST(progress AS text) FROM task ORDER BY exec_id";
        assert_eq!(self.live.rows(states).await, self.into.rows(states).await);
    }

    /// The offsets of a partition's rows in a table, including duplicates.
    async fn held(&self, table: &str, partition: i32) -> Vec<i64> {
        let select = format!(
            "SELECT CAST(event_offset AS text) FROM {table} WHERE event_partition = {partition}"
        );
        let rows = self.into.rows(&select).await;
        let mut offsets: Vec<i64> = rows
            .iter()
            .map(|row| row[0].as_deref().unwrap().parse().unwrap())
            .collect();
        offsets.sort_unstable();
        offsets
    }

    async fn store_live(&self) {
        let program = self.live.program("live", &[]);
        self.live.until_all_stored(Duration::from_secs(120)).await;
        program.stop().await;
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.live.bootstrap)
            .create()
            .unwrap()
    }

    async fn delete_records(&self, partition: i32, before: i64) {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.live.events, partition, Offset::Offset(before))
            .unwrap();
        self.admin()
            .delete_records(&list, &options())
            .await
            .unwrap();
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))
}
