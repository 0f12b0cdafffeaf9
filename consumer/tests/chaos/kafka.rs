//! This run's own three brokers.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use service::testing::{ASK, reader};
use tokio::time::{Instant, sleep};

const BROKERS: usize = 3;
/// Time until all replicas are in sync.
const IN_SYNC: Duration = Duration::from_secs(180);

/// Stopped when dropped; the data remain for inspection.
pub(crate) struct Kafka {
    tool: String,
    folder: PathBuf,
    pub(crate) bootstrap: String,
}

impl Kafka {
    pub(crate) fn start(tool: &str, folder: &Path, partitions: i32) -> Self {
        let mut kafka = Self {
            tool: tool.to_owned(),
            folder: folder.to_owned(),
            bootstrap: String::new(),
        };
        let brokers = BROKERS.to_string();
        kafka.bootstrap = kafka.run(folder, &["start", "--brokers", &brokers]);
        assert_eq!(kafka.bootstrap.split(',').count(), BROKERS);
        kafka.run(folder, &["topics", "--partitions", &partitions.to_string()]);
        kafka
    }

    fn run(&self, folder: &Path, arguments: &[&str]) -> String {
        let output = Command::new(&self.tool)
            .arg("--dir")
            .arg(folder)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "local-kafka {arguments:?} in {}",
            folder.display()
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn broker(&self, node: usize) -> PathBuf {
        self.folder.join(node.to_string())
    }

    /// Brokers are numbered from 1.
    pub(crate) fn nodes() -> std::ops::RangeInclusive<usize> {
        1..=BROKERS
    }

    fn pid(&self, node: usize) -> String {
        let pid = std::fs::read_to_string(self.broker(node).join("pid")).unwrap();
        pid.trim().to_owned()
    }

    pub(crate) fn signal(&self, node: usize, signal: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &self.pid(node)])
            .status();
        assert!(sent.unwrap().success(), "SIG{signal} to broker {node}");
    }

    /// Kills a broker and waits until the process is gone, so that it can be started again.
    pub(crate) async fn kill(&self, node: usize) {
        let command_line = format!("/proc/{}/cmdline", self.pid(node));
        self.signal(node, "KILL");
        let deadline = Instant::now() + Duration::from_secs(60);
        // The file is empty for a zombie.
        while std::fs::read(&command_line).is_ok_and(|line| !line.is_empty()) {
            assert!(Instant::now() < deadline, "broker {node} outlives SIGKILL");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Starts a killed broker. Its last log is kept.
    pub(crate) fn start_again(&self, node: usize) {
        let folder = self.broker(node);
        let kept = (1..)
            .map(|i| folder.join(format!("server.{i}.log")))
            .find(|kept| !kept.exists())
            .unwrap();
        std::fs::rename(folder.join("server.log"), kept).unwrap();
        self.run(&folder, &["start"]);
    }

    /// Waits until every replica of every partition is in sync.
    pub(crate) async fn until_in_sync(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + IN_SYNC;
        let bootstrap = self.bootstrap.clone();
        let consumer = tokio::task::spawn_blocking(move || reader(&bootstrap)).await?;
        // Twice in a row, because a broker that has just started may return old metadata.
        let mut times = 0;
        while times < 2 {
            let behind = tokio::task::block_in_place(|| behind(&consumer));
            times = match &behind {
                Ok(behind) if behind.is_empty() => times + 1,
                _ => 0,
            };
            ensure!(
                Instant::now() < deadline,
                "replicas are not in sync within {IN_SYNC:?}: {behind:?}"
            );
            sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Adds partitions to a topic, up to `most`; returns their number.
    pub(crate) async fn add_partitions(
        &self,
        topic: &str,
        more: i32,
        most: i32,
    ) -> anyhow::Result<i32> {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()?;
        let metadata =
            tokio::task::block_in_place(|| admin.inner().fetch_metadata(Some(topic), ASK))?;
        let have = metadata.topics()[0].partitions().len() as i32;
        let total = (have + more).min(most);
        if total > have {
            let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
            let asked = [NewPartitions::new(topic, total as usize)];
            let answers = admin.create_partitions(&asked, &options).await?;
            let answer = answers.into_iter().next().context("no answer")?;
            match answer {
                // The request was repeated after the broker that handled it was killed, or was answered by a lagging
                // broker.
                Ok(_) | Err((_, RDKafkaErrorCode::InvalidPartitions)) => {}
                Err((_, code)) => bail!("{code}"),
            }
        }
        Ok(total)
    }
}

/// Partitions without a leader or with replicas out of sync.
fn behind(consumer: &BaseConsumer) -> anyhow::Result<Vec<String>> {
    let metadata = consumer.fetch_metadata(None, ASK)?;
    ensure!(metadata.brokers().len() == BROKERS, "a broker is missing");
    let mut behind = Vec::new();
    for topic in metadata.topics() {
        for partition in topic.partitions() {
            if partition.leader() < 0
                || partition.isr().len() < partition.replicas().len()
                || partition.replicas().len() < BROKERS
            {
                behind.push(format!("{} {}", topic.name(), partition.id()));
            }
        }
    }
    Ok(behind)
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = Command::new(&self.tool)
            .arg("--dir")
            .arg(&self.folder)
            .arg("stop")
            .status();
    }
}
