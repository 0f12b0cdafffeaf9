//! Settings of a consumer group member.

use std::time::Duration;

use anyhow::Context;

use crate::client_log;
use crate::kafka::KafkaOptions;

/// Settings on which exactly-once depends.
pub(super) const FIXED: &[(&str, &str)] = &[
    // Never deliver aborted records.
    ("isolation.level", "read_committed"),
    // Start offsets are set on assignment; offsets are committed with the work.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // A start outside the log is an error, never a silent jump.
    ("auto.offset.reset", "error"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("allow.auto.create.topics", "false"),
    ("check.crcs", "true"),
    client_log::FIXED,
    // Longer than a router trusts the topic ids that it has read: see `topic_ids` there.
    ("fetch.error.backoff.ms", "500"),
];

/// Tuning, as measured.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    // The default pauses a partition for a second when its queue is full, which costs a factor of four.
    ("fetch.queue.backoff.ms", "2"),
    // Limits memory without reducing throughput.
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "16384"),
    // Maximum fetch response, for any number of partitions. It waits decompressed, several times as large:
    // half of the memory of a program with a backlog.
    ("fetch.max.bytes", "2097152"),
    // Small, so that a response contains several partitions: PostgreSQL stores two halves of it in parallel.
    // If the next batch of a partition is larger, the broker sends it only as the first one; batches of a
    // busy router have 200 to 350 KB.
    ("fetch.message.max.bytes", "524288"),
    // How long nobody reads the partitions of a crashed or stopped static member: 10 s instead of Kafka's 45,
    // because there are no garbage collection pauses.
    ("session.timeout.ms", "10000"),
    // How soon new partitions of the topic are found; Kafka's default is 5 min.
    ("topic.metadata.refresh.interval.ms", "30000"),
];

/// Interval of the statistics, which have the lag and the state of the group, of a topic with this number of
/// partitions.
///
/// The statistics of a member describe all partitions of its topic, not only its own. At this interval, they take
/// the same share of a core for any number of them.
pub(super) fn statistics_interval(partitions: usize) -> Duration {
    let per_partition = Duration::from_millis(5);
    let interval = per_partition.saturating_mul(u32::try_from(partitions).unwrap_or(u32::MAX));
    interval.clamp(Duration::from_secs(1), Duration::from_secs(10))
}

/// Session timeout: after this long without heartbeats, a member is removed from its group.
pub(crate) fn session_timeout(options: &KafkaOptions) -> anyhow::Result<Duration> {
    let config = options.client_config(DEFAULTS, FIXED)?;
    let milliseconds = config.get("session.timeout.ms").unwrap_or_default();
    let milliseconds = milliseconds.parse().context("session.timeout.ms")?;
    Ok(Duration::from_millis(milliseconds))
}
