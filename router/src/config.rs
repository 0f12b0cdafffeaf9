//! A router's settings.

use std::path::PathBuf;

use anyhow::bail;
use schemas::topics;
use service::breaker::BreakerOptions;
use service::exit::NeedsAttention;
use service::kafka::KafkaOptions;
use service::settings::{host_name, instance_id, topic_name};

/// Brokers abort a transaction after `transaction.timeout.ms` (default: 30 s), so a router with a longer
/// interval would never commit.
const MAX_COMMIT_INTERVAL_MS: u64 = 20_000;

/// Options of a router.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Kafka
    #[command(flatten)]
    pub kafka: KafkaOptions,

    /// Topic to read: TaskRunningInfo
    #[arg(long, env = "SOURCE_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO)]
    pub source_topic: String,

    /// Topic to write: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic to write dead letters to
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// Consumer group; its routers share the partitions
    #[arg(long, env = "ROUTER_GROUP", default_value = "task-running-info-router")]
    pub group: String,

    /// Where to begin a partition without a committed offset: Kafka deletes those of a stopped group after offsets.retention.minutes, 7 days by default
    #[arg(
        long,
        env = "ON_NO_OFFSET",
        value_enum,
        value_name = "WHAT",
        default_value = "resume"
    )]
    pub on_no_offset: OnNoOffset,

    /// Name of this instance, unique in the group and the same after a restart; makes it a static member. By default, the transactional id has the host name
    #[arg(long, env = "ROUTER_INSTANCE_ID", value_name = "ID", value_parser = instance_id)]
    pub instance_id: Option<String>,

    /// Commit this long after a transaction's first record; under backlog, after up to 500 ms
    #[arg(
        long,
        env = "ROUTER_COMMIT_INTERVAL_MS",
        value_name = "MS",
        default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(..=MAX_COMMIT_INTERVAL_MS)
    )]
    pub commit_interval_ms: u64,

    /// Maximum number of records in a transaction
    #[arg(long, env = "ROUTER_MAX_RECORDS", value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_records: u32,

    /// Circuit breaker
    #[command(flatten)]
    pub breaker: BreakerOptions,

    /// Folder of .avsc files of versions newer than this program, to read records of newer engines
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

/// What to do with a partition without a committed offset. (Not needed if the output topics were never
/// written, or the partition has no records: then nothing can be duplicated.) A partition added to the source
/// topic counts as one without an offset. Offsets of other partitions prove nothing: the first member that
/// commits gives a deleted group offsets again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnNoOffset {
    /// Resume behind the last record that has an event or a dead letter; stop if that cannot be proved
    Resume,
    /// Stop
    Fail,
    /// Route from the first record of the partition; duplicates everything routed before
    Beginning,
}

impl Config {
    /// The name of this instance: its instance id, or else its host name.
    ///
    /// # Errors
    /// If it has neither.
    pub(crate) fn instance(&self) -> anyhow::Result<String> {
        let instance = self.instance_id.clone().unwrap_or_else(host_name);
        if instance.is_empty() {
            bail!(NeedsAttention(
                "this host has no name; give --instance-id".to_owned()
            ));
        }
        Ok(instance)
    }
}
