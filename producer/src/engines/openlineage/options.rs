//! The options of `producer openlineage`.

use std::time::Duration;

use schemas::topics;
use service::breaker::BreakerOptions;
use service::settings::{instance_id, topic_name};
use service::time::duration;

/// Which events are read, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Topic to read: OpenLineage events, one JSON object a record, as OpenLineage's Kafka transport writes them
    #[arg(long, env = "OPENLINEAGE_TOPIC", value_name = "TOPIC", value_parser = topic_name)]
    pub from_topic: String,

    /// Topic to write dead letters to: events that cannot be reported
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// Consumer group; its members share the partitions
    #[arg(
        long,
        env = "OPENLINEAGE_GROUP",
        default_value = "task-running-info-openlineage"
    )]
    pub group: String,

    /// Name of this instance, unique in the group and the same after a restart; makes it a static member. By default, the transactional id has the host name
    #[arg(long, env = "PRODUCER_INSTANCE_ID", value_name = "ID", value_parser = instance_id)]
    pub instance_id: Option<String>,

    /// What to do with a partition for which the group has no committed offset. Kafka deletes those of a stopped group after offsets.retention.minutes, 7 days by default
    #[arg(long, value_enum, value_name = "WHAT", default_value = "beginning")]
    pub on_no_offset: OnNoOffset,

    /// At the start of a partition, read its events of this time before the committed offset again, without reporting them, to know the runs that have begun or ended
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub remember: Duration,

    /// Maximum number of runs that are remembered of a partition; the one without events for the longest time is forgotten first
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub runs: u32,

    /// Circuit breaker
    #[command(flatten)]
    pub breaker: BreakerOptions,
}

/// What to do with a partition without a committed offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnNoOffset {
    /// Report its events from the first one on
    Beginning,
    /// Stop
    Fail,
}
