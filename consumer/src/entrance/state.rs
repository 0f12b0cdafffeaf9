//! The state of `consumer run`. The other files of this folder act on it.

use std::time::Duration;

use service::backoff::Backoff;
use service::health::Health;
use service::topic_id::TopicId;
use tokio::time::Instant;

use super::batch_writer::BatchWriter;
use super::config::Config;
use super::partitions::Partitions;
use super::source::Source;
use crate::batch::Batch;

/// `consumer run`, between joining the group and leaving it.
pub(super) struct Entrance<'a> {
    pub(super) config: &'a Config,
    pub(super) health: &'a Health,
    pub(super) state: State,
    /// The Kafka side.
    pub(super) source: Source<'a>,
    /// The database side, with the stored positions of the assigned partitions.
    pub(super) writer: BatchWriter,
    pub(super) partitions: Partitions,
    pub(super) topic_id: KnownId,
    /// Records that were read and are not stored yet.
    pub(super) batch: Batch,
    /// Time of the next check of idle partitions.
    pub(super) next_idle_check: Instant,
}

/// Whether records can be stored.
pub(super) enum State {
    /// Records are read and stored.
    Storing,
    /// Kafka, the registry or the database is unavailable: nothing is read, and the partitions are kept.
    Waiting { backoff: Backoff, next_try: Instant },
}

/// Timeout for Kafka to return the topic's id.
pub(super) const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

/// The topic's id (KIP-516), as far as it is known.
#[derive(Clone, Copy)]
pub(super) enum KnownId {
    /// Kafka has not been asked yet, or has not answered.
    Unknown,
    /// The brokers do not provide one; this has been logged.
    Unavailable,
    /// The id that this consumer started with.
    Is(TopicId),
}

impl KnownId {
    pub(super) fn id(self) -> Option<TopicId> {
        match self {
            Self::Is(id) => Some(id),
            Self::Unknown | Self::Unavailable => None,
        }
    }
}
