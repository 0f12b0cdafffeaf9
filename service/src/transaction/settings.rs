//! Settings of transactional producers.

use std::time::Duration;

use rdkafka::config::ClientConfig;

use crate::error::NeedsAttention;
use crate::kafka::KafkaOptions;
use crate::throttling::STATISTICS;

/// How long the broker keeps a transaction open: the maximum time for which a crashed program holds back
/// readers of later records.
pub(super) const TRANSACTION_TIMEOUT: &str = "transaction.timeout.ms";
/// [`TRANSACTION_TIMEOUT`] in [`DEFAULTS`].
const DEFAULT_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings on which exactly-once and the partition of a key depend.
pub const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("partitioner", "murmur2_random"),
];

/// Tuning, as measured.
pub const DEFAULTS: &[(&str, &str)] = &[
    // Batches fill during this time; a commit does not wait for it. While more than five records of a
    // partition are unacknowledged, librdkafka's thread polls busily after this time: with 50, two routers on
    // one core took 7 % more CPU per event.
    ("linger.ms", "200"),
    ("compression.type", "lz4"),
    ("queue.buffering.max.kbytes", "65536"),
    (TRANSACTION_TIMEOUT, "30000"),
    // The topics existed at the start: report a deleted one sooner than after 30 s.
    ("topic.metadata.propagation.max.ms", "5000"),
    STATISTICS,
];

/// `transaction.timeout.ms` of a program with these options.
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
