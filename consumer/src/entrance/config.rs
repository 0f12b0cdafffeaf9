//! The options of `consumer run`.

use std::path::PathBuf;

use schemas::topics;
use service::breaker::BreakerOptions;
use service::settings::{host_name, instance_id, topic_name};

use crate::batch::Batch;
use crate::rows::Part;
use crate::topic_identity::OnGap;

/// `/readyz` reports a consumer that has stored nothing for 30 s as stuck.
const MAX_COMMIT_INTERVAL_MS: u64 = 20_000;

/// Options of `consumer run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Topic to read: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic for dead letters: events that cannot be stored
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// Part to store (repeatable; default all). Each part has its own stored offsets, so groups can each store some of
    /// the parts
    #[arg(long = "part", value_name = "PART", value_enum)]
    pub parts: Vec<Part>,

    /// Consumer group whose members share the partitions [default: task-running-info-consumer, followed by the parts if
    /// not all]
    #[arg(long, env = "CONSUMER_GROUP")]
    pub group: Option<String>,

    /// Name of this instance, unique in the group and stable across restarts: makes it a static member
    #[arg(long, env = "CONSUMER_INSTANCE_ID", value_name = "ID", value_parser = instance_id)]
    pub instance_id: Option<String>,

    /// Maximum time from a transaction's first event to its commit; events read while the database is writing go into
    /// the next transaction
    #[arg(
        long,
        env = "CONSUMER_COMMIT_INTERVAL_MS",
        value_name = "MS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(..=MAX_COMMIT_INTERVAL_MS)
    )]
    pub commit_interval_ms: u64,

    /// Maximum number of events per transaction
    #[arg(long, env = "CONSUMER_MAX_EVENTS", value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_events: u32,

    /// Maximum size of a transaction, in bytes of events
    #[arg(long, env = "CONSUMER_MAX_BYTES", value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_bytes: u32,

    /// What to do if retention removed events before they were stored
    #[arg(long, env = "ON_GAP", value_enum, value_name = "WHAT", default_value_t = OnGap::Fail)]
    pub on_gap: OnGap,

    /// When many events are unusable
    #[command(flatten)]
    pub breaker: BreakerOptions,

    /// Folder of .avsc files of versions newer than this program, so that it can read what newer routers write
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

impl Config {
    /// The parts to store, each once, in a fixed order.
    pub(super) fn parts(&self) -> Vec<Part> {
        Part::ALL
            .into_iter()
            .filter(|part| self.parts.is_empty() || self.parts.contains(part))
            .collect()
    }

    /// Whether a transaction takes no more records.
    pub(super) fn is_full(&self, batch: &Batch) -> bool {
        batch.records().len() >= self.max_events as usize
            || batch.bytes() >= self.max_bytes as usize
    }

    /// The writer's name in dead letters and transactional ids: unique to the process unless an instance id is given.
    pub(super) fn instance(&self) -> String {
        self.instance_id.clone().unwrap_or_else(|| {
            let started = jiff::Timestamp::now().as_microsecond();
            format!("{}-{}-{started}", host_name(), std::process::id())
        })
    }

    pub(super) fn group(&self) -> String {
        let parts = self.parts();
        match &self.group {
            Some(group) => group.clone(),
            None if parts.len() == Part::ALL.len() => "task-running-info-consumer".to_owned(),
            None => {
                let names: Vec<_> = parts.iter().map(|part| part.as_str()).collect();
                format!("task-running-info-consumer-{}", names.join("-"))
            }
        }
    }
}
