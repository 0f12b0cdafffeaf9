//! The state of `consumer run`. What is done with it is in the files above this one.

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
    /// Records that were read and are not stored.
    pub(super) batch: Batch,
    /// When to look at the positions of idle partitions.
    pub(super) next_look: Instant,
}

/// Whether anything can be stored.
pub(super) enum State {
    /// Records are read and stored.
    Storing,
    /// Kafka, the registry or the database is away: nothing is read, and the partitions are kept.
    Waiting { backoff: Backoff, next_try: Instant },
}

/// How long Kafka may take to return the topic's id.
pub(super) const ASK: Duration = Duration::from_secs(10);

/// What is known of the topic's id (KIP-516).
#[derive(Clone, Copy)]
pub(super) enum KnownId {
    /// Kafka has not been asked yet, or has not answered.
    Unknown,
    /// The brokers have none to tell; this has been logged.
    Unavailable,
    /// The id that this consumer began with.
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
