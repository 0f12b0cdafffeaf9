//! A reader concurrent with the routers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Topics;
use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::OwnedMessage;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::{reader, until};

/// Whether an error is a temporary one of an unavailable broker.
const AWAY: [RDKafkaErrorCode; 3] = [
    RDKafkaErrorCode::AllBrokersDown,
    RDKafkaErrorCode::BrokerTransportFailure,
    RDKafkaErrorCode::OperationTimedOut,
];

/// A committed reader of a whole topic, during the faults of its writers.
pub(crate) struct Alongside {
    stop: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
    thread: JoinHandle<Vec<OwnedMessage>>,
}

impl Alongside {
    pub(crate) fn start(topics: &Topics, topic: &str) -> Self {
        let consumer = reader(&topics.bootstrap);
        let mut all = TopicPartitionList::new();
        for partition in topics.partitions(topic) {
            all.add_partition_offset(topic, partition, Offset::Beginning)
                .unwrap();
        }
        assert!(all.count() > 0);
        consumer.assign(&all).unwrap();
        let (stop, seen) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (stopped, counted) = (stop.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut records = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match consumer.poll(Duration::from_millis(50)) {
                    None => {}
                    Some(Ok(record)) => {
                        records.push(record.detach());
                        counted.store(records.len(), Ordering::Relaxed);
                    }
                    Some(Err(error)) => {
                        let code = error.rdkafka_error_code();
                        assert!(code.is_some_and(|code| AWAY.contains(&code)), "{error}");
                    }
                }
            }
            records
        });
        Self { stop, seen, thread }
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    /// Waits until it has seen this number of records.
    pub(crate) async fn until(&self, count: usize, within: Duration) {
        let what = format!("{count} records are seen by the reader alongside");
        until(&what, within, async || {
            (self.count() >= count).then_some(())
        })
        .await;
    }

    /// All records that it has seen, after it has seen this number.
    pub(crate) async fn stop_at(self, count: usize) -> Vec<OwnedMessage> {
        self.until(count, Duration::from_secs(120)).await;
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
