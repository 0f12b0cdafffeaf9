//! One way to a Kafka client: address, any librdkafka setting, secrets from a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaResult;
use rdkafka::message::{Header, OwnedHeaders};

use crate::exit::NeedsAttention;

/// How long a question to the cluster at start may take before it is asked again.
const ASK: Duration = Duration::from_secs(10);
/// How long a command that ends by itself waits for a cluster that does not answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Kafka's default for `max.message.bytes`.
const DEFAULT_MAX_MESSAGE_BYTES: usize = 1_048_588;
/// Bytes that a batch of one record takes beside key, value and headers: at most 61 + 21 in Kafka's
/// message format 2, rounded up.
pub const BATCH_OVERHEAD_BYTES: usize = 128;
/// How often, a quarter of a second apart, a topic is looked for that is not there.
const TOPIC_TRIES: usize = 20;

/// Options of every program that talks to Kafka.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Kafka")]
pub struct KafkaOptions {
    /// Brokers to start from, host:port, comma separated
    #[arg(
        long,
        env = "KAFKA_BOOTSTRAP_SERVERS",
        value_name = "HOST:PORT,…",
        default_value = "localhost:9092",
        global = true
    )]
    pub bootstrap_servers: String,

    /// File of librdkafka settings, key=value a line, # begins a comment: the place for TLS, SASL and secrets
    #[arg(long, env = "KAFKA_CONFIG", value_name = "FILE", global = true)]
    pub kafka_config: Option<PathBuf>,

    /// Any librdkafka setting; wins over the file (repeatable)
    #[arg(short = 'X', value_name = "KEY=VALUE", value_parser = parse_setting, global = true)]
    pub settings: Vec<(String, String)>,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        }
        _ => Err("expected KEY=VALUE, e.g. fetch.min.bytes=1024".to_owned()),
    }
}

impl KafkaOptions {
    /// A client's settings: `defaults`, then the file, then `-X`, then `fixed`, which correctness
    /// rests on and nobody may change.
    ///
    /// # Errors
    /// If the file cannot be read or a line of it is no setting, or a fixed setting was given
    /// another value.
    pub fn client_config(
        &self,
        defaults: &[(&str, &str)],
        fixed: &[(&str, &str)],
    ) -> anyhow::Result<ClientConfig> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap_servers);
        for (key, value) in defaults {
            config.set(*key, *value);
        }
        let mut chosen = match &self.kafka_config {
            Some(path) => read_settings(path)?,
            None => BTreeMap::new(),
        };
        chosen.extend(self.settings.iter().cloned());
        for (key, value) in &chosen {
            if let Some((_, must)) = fixed
                .iter()
                .find(|(name, must)| name == key && must != value)
            {
                return Err(NeedsAttention(format!(
                    "Kafka setting {key}={value}: exactly-once rests on {key}={must}; leave it out"
                ))
                .into());
            }
            config.set(key, value);
        }
        for (key, value) in fixed {
            config.set(*key, *value);
        }
        Ok(config)
    }

    /// Waits until the cluster answers; `None` when `shutdown` is cancelled before.
    ///
    /// # Errors
    /// If the settings are wrong.
    pub async fn cluster(
        &self,
        shutdown: &tokio_util::sync::CancellationToken,
    ) -> anyhow::Result<Option<Cluster>> {
        let admin: AdminClient<DefaultClientContext> = self
            .client_config(&[], &[])?
            .create()
            .map_err(|error| NeedsAttention(format!("Kafka settings: {error}")))?;
        let mut cluster = Cluster {
            id: String::new(),
            bootstrap_servers: self.bootstrap_servers.clone(),
            admin,
        };
        let mut waiting = false;
        loop {
            match cluster.partitions() {
                Ok(_) => break,
                Err(error) if !waiting => {
                    waiting = true;
                    tracing::warn!(
                        "Kafka at {} does not answer, waiting for it: {error}",
                        self.bootstrap_servers
                    );
                }
                Err(_) => {}
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(None),
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        let id = tokio::task::block_in_place(|| cluster.admin.inner().fetch_cluster_id(ASK));
        cluster.id = id.context("the cluster does not tell its id")?;
        Ok(Some(cluster))
    }
}

impl KafkaOptions {
    /// The cluster, for a command that ends by itself: waited for 30 s at most; `None` when `shutdown`
    /// is cancelled before.
    ///
    /// # Errors
    /// If it does not answer, or the settings are wrong.
    pub async fn cluster_soon(
        &self,
        shutdown: &tokio_util::sync::CancellationToken,
    ) -> anyhow::Result<Option<Cluster>> {
        tokio::time::timeout(ANSWER, self.cluster(shutdown))
            .await
            .unwrap_or_else(|_| {
                Err(anyhow!(
                    "Kafka at {} does not answer within {} s",
                    self.bootstrap_servers,
                    ANSWER.as_secs()
                ))
            })
    }
}

/// Headers of a record to send.
pub fn headers(list: &[(&str, String)]) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(list.len());
    list.iter().fold(empty, |headers, (key, value)| {
        headers.insert(Header {
            key,
            value: Some(value),
        })
    })
}

fn read_settings(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| NeedsAttention(format!("--kafka-config {}: {error}", path.display())))?;
    let mut settings = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The line itself is not shown: it may hold a secret.
        let (key, value) = parse_setting(line).map_err(|expected| {
            NeedsAttention(format!(
                "--kafka-config {} line {}: {expected}",
                path.display(),
                i + 1
            ))
        })?;
        settings.insert(key, value);
    }
    Ok(settings)
}

/// A cluster that answers.
pub struct Cluster {
    /// Kafka's id of the cluster.
    pub id: String,
    bootstrap_servers: String,
    admin: AdminClient<DefaultClientContext>,
}

impl Cluster {
    /// The number of each topic's partitions.
    fn partitions(&self) -> KafkaResult<BTreeMap<String, usize>> {
        // All topics: asking for one by name may create it on brokers that create topics.
        let asked = || self.admin.inner().fetch_metadata(None, ASK);
        let metadata = tokio::task::block_in_place(asked)?;
        let topics = metadata.topics().iter();
        Ok(topics
            .map(|topic| (topic.name().to_owned(), topic.partitions().len()))
            .collect())
    }

    /// The number of a topic's partitions. A topic that was made a moment ago is waited for, since
    /// not every broker knows of it at once.
    ///
    /// # Errors
    /// If there is no such topic: with the command that makes it.
    pub async fn require_topic(&self, topic: &str) -> anyhow::Result<usize> {
        for _ in 0..TOPIC_TRIES {
            if let Some(count) = self
                .partitions()
                .ok()
                .and_then(|topics| topics.get(topic).copied())
            {
                return Ok(count);
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        Err(NeedsAttention(format!(
            "topic {topic} does not exist on {servers} (or may not be seen); make it with: \
             kafka-topics.sh --bootstrap-server {servers} --create --topic {topic} --partitions 8",
            servers = self.bootstrap_servers,
        ))
        .into())
    }

    /// The largest record, in bytes of key, value and headers, that a topic takes uncompressed:
    /// from its `max.message.bytes`, or from Kafka's default where the cluster does not tell, as for
    /// want of the right to describe configs.
    pub async fn max_record_bytes(&self, topic: &str) -> usize {
        let told = self.max_message_bytes(topic).await;
        let max_message_bytes = told.unwrap_or_else(|error| {
            tracing::warn!(
                "{topic}: cannot ask for max.message.bytes, taking Kafka's default of {DEFAULT_MAX_MESSAGE_BYTES}: {error:#}"
            );
            DEFAULT_MAX_MESSAGE_BYTES
        });
        max_message_bytes.saturating_sub(BATCH_OVERHEAD_BYTES)
    }

    async fn max_message_bytes(&self, topic: &str) -> anyhow::Result<usize> {
        let asked = [ResourceSpecifier::Topic(topic)];
        let options = AdminOptions::new().request_timeout(Some(ASK));
        let answers = self.admin.describe_configs(&asked, &options).await?;
        let resource = answers
            .into_iter()
            .next()
            .context("no answer")?
            .map_err(|code| anyhow!("{code}"))?;
        let entry = resource
            .get("max.message.bytes")
            .context("max.message.bytes is not told")?;
        Ok(entry
            .value
            .as_deref()
            .context("max.message.bytes has no value")?
            .parse()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(settings: &[(&str, &str)], file: Option<PathBuf>) -> KafkaOptions {
        KafkaOptions {
            bootstrap_servers: "localhost:1".into(),
            kafka_config: file,
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let path = std::env::temp_dir().join(format!("kafka-{}.properties", std::process::id()));
        std::fs::write(
            &path,
            "# comment\n\nlinger.ms = 7\nbatch.size=1\nsasl.password=a=b\n",
        )
        .unwrap();
        let config = options(&[("batch.size", "2")], Some(path.clone()))
            .client_config(&[("linger.ms", "5"), ("client.id", "x")], &[])
            .unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(config.get("linger.ms"), Some("7"));
        assert_eq!(config.get("batch.size"), Some("2"));
        assert_eq!(config.get("client.id"), Some("x"));
        assert_eq!(config.get("sasl.password"), Some("a=b"));
    }

    #[test]
    fn a_line_that_is_no_setting_is_named_by_number_and_not_shown() {
        let path =
            std::env::temp_dir().join(format!("kafka-bad-{}.properties", std::process::id()));
        std::fs::write(&path, "linger.ms=7\nhunter2\n").unwrap();
        let error = options(&[], Some(path.clone()))
            .client_config(&[], &[])
            .unwrap_err()
            .to_string();
        std::fs::remove_file(path).unwrap();
        assert!(error.contains("line 2"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_setting_that_exactly_once_rests_on_cannot_be_changed() {
        let fixed = [("isolation.level", "read_committed")];
        let other = options(&[("isolation.level", "read_uncommitted")], None);
        let error = other.client_config(&[], &fixed).unwrap_err().to_string();
        assert!(error.contains("isolation.level"), "{error}");
        let same = options(&[("isolation.level", "read_committed")], None);
        assert!(same.client_config(&[], &fixed).is_ok());
    }
}
