//! Settings of a member of a consumer group.

use std::time::Duration;

use anyhow::Context;

use crate::client_log;
use crate::kafka::KafkaOptions;

/// Settings that exactly-once rests on.
pub(super) const FIXED: &[(&str, &str)] = &[
    // Aborted records are never seen.
    ("isolation.level", "read_committed"),
    // Where to start is decided on assignment; offsets are committed with the work.
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // A start that the log does not hold is an error, never a silent jump.
    ("auto.offset.reset", "error"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("allow.auto.create.topics", "false"),
    ("check.crcs", "true"),
    client_log::FIXED,
    // Longer than a router trusts an answer about the topic's id: see its `topic_ids`.
    ("fetch.error.backoff.ms", "500"),
];

/// Tuning, as measured.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    // The default parks a partition for a second when its queue is full: a factor of four.
    ("fetch.queue.backoff.ms", "2"),
    // Bounds memory without costing throughput.
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "16384"),
    // The largest answer to a fetch, whatever the number of partitions. It waits decompressed, several times as large:
    // half of the memory of a program that has a backlog.
    ("fetch.max.bytes", "2097152"),
    // So that an answer, and what is stored at once, is of several partitions: PostgreSQL works on two halves of it.
    // Of a partition whose next batch is larger a broker sends nothing, unless it is the first: batches of a busy
    // router take 200 to 350 KB.
    ("fetch.message.max.bytes", "524288"),
    ("statistics.interval.ms", "1000"),
    // How long the partitions of a crashed member, or of a static one that stopped, stand still:
    // 10 s rather than Kafka's 45, since nothing in here pauses for garbage.
    ("session.timeout.ms", "10000"),
    // How long partitions that were added to the topic may go unnoticed: Kafka's default is 5 min.
    ("topic.metadata.refresh.interval.ms", "30000"),
];

/// After how long without a sign of life a member is put out of its group.
pub(crate) fn session_timeout(options: &KafkaOptions) -> anyhow::Result<Duration> {
    let config = options.client_config(DEFAULTS, FIXED)?;
    let milliseconds = config.get("session.timeout.ms").unwrap_or_default();
    let milliseconds = milliseconds.parse().context("session.timeout.ms")?;
    Ok(Duration::from_millis(milliseconds))
}
