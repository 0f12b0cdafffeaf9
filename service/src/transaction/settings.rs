//! Settings of producers of transactions.

use std::time::Duration;

use rdkafka::config::ClientConfig;

use crate::error::NeedsAttention;
use crate::kafka::KafkaOptions;
use crate::throttling::STATISTICS;

/// How long the broker keeps a transaction open: a crashed program holds readers of what came after
/// its records at most for so long.
pub(super) const TRANSACTION_TIMEOUT: &str = "transaction.timeout.ms";
/// [`TRANSACTION_TIMEOUT`] in [`DEFAULTS`].
const DEFAULT_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings that exactly-once, and the place of a key, rest on.
pub const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("partitioner", "murmur2_random"),
];

/// Tuning, as measured.
pub const DEFAULTS: &[(&str, &str)] = &[
    // Batches fill meanwhile; a commit does not wait for it. While more than five records of a partition are
    // unanswered, librdkafka's thread polls without a pause from the moment that this has passed: with 50, two
    // routers on one core took 7 % more CPU an event.
    ("linger.ms", "200"),
    ("compression.type", "lz4"),
    ("queue.buffering.max.kbytes", "65536"),
    (TRANSACTION_TIMEOUT, "30000"),
    // The topics were there at the start: one that is gone is told sooner than after 30 s.
    ("topic.metadata.propagation.max.ms", "5000"),
    STATISTICS,
];

/// How long the brokers keep a transaction of a program with these options open.
pub(crate) fn transaction_timeout(options: &KafkaOptions) -> Duration {
    let config = options.client_config(DEFAULTS, FIXED);
    let chosen = config.and_then(|config| timeout_of(&config));
    chosen.unwrap_or(DEFAULT_TRANSACTION_TIMEOUT)
}

pub(super) fn timeout_of(config: &ClientConfig) -> anyhow::Result<Duration> {
    match config.get(TRANSACTION_TIMEOUT).map(str::parse) {
        Some(Ok(milliseconds)) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(NeedsAttention(format!(
            "Kafka setting {TRANSACTION_TIMEOUT} is not a number of milliseconds"
        ))
        .into()),
    }
}
