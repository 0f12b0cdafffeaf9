//! Settings and health of the producer's Kafka clients.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::statistics::Statistics;
use service::health::{Health, Reading};

/// Settings that the order of a task's reports and the partition of a key depend on.
pub(crate) const FIXED: &[(&str, &str)] = &[
    ("enable.idempotence", "true"),
    ("acks", "all"),
    // As Kafka's Java client has it, so that engines on the JVM and in Rust agree on a key's partition.
    ("partitioner", "murmur2_random"),
];

/// Maximum time for a broker's response (librdkafka's default: 60 s). While more than five records of a
/// partition are in flight and others wait, the threads of an idempotent client spin
/// (`rd_kafka_toppar_producer_serve` of librdkafka 2.12), so give up a dead connection sooner.
pub(crate) const SOCKET_TIMEOUT: (&str, &str) = ("socket.timeout.ms", "10000");

/// Sends a report without delay. While five requests are in flight, later reports form a batch anyway.
pub(crate) const AT_ONCE: (&str, &str) = ("linger.ms", "0");

/// The interval of the statistics that [`HealthMonitor`] reads.
pub(crate) const STATISTICS: (&str, &str) = ("statistics.interval.ms", "1000");

/// How long to wait for acknowledgements after a signal.
pub(crate) const LAST_ACKS: Duration = Duration::from_secs(5);

/// Updates [`Health`] from the client's statistics: a producer is ready while it is connected and either
/// records are being acknowledged or none is waiting.
pub(crate) struct HealthMonitor {
    health: Arc<Health>,
    acknowledged_before: AtomicU64,
}

impl HealthMonitor {
    pub(crate) fn new(health: Arc<Health>) -> Self {
        Self {
            health,
            acknowledged_before: AtomicU64::new(0),
        }
    }

    pub(crate) fn observe(&self, statistics: &Statistics, acknowledged: u64) {
        let mut brokers = statistics.brokers.values();
        let connected = brokers.any(|broker| broker.state == "UP");
        let before = self
            .acknowledged_before
            .swap(acknowledged, Ordering::Relaxed);
        if acknowledged > before {
            self.health.progressed();
        }
        let waiting = i64::try_from(statistics.msg_cnt).unwrap_or(i64::MAX);
        // There is no group that it could have failed to join.
        let reading = Reading {
            position: i64::try_from(acknowledged).unwrap_or(i64::MAX),
            lag: Some(waiting),
        };
        self.health
            .observed(connected, true, BTreeMap::from([(0, reading)]));
    }
}
