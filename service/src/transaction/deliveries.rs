//! The acknowledgements of a transaction's records.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::ProducerContext;
use rdkafka::statistics::Statistics;
use tokio::sync::Notify;

use crate::repeats;
use crate::throttling::Throttling;

/// Delivery reports of a transaction's records.
#[derive(Clone, Default)]
pub struct Deliveries(Arc<Answers>);

#[derive(Default)]
struct Answers {
    /// Error of the first undelivered record.
    error: Mutex<Option<KafkaError>>,
    /// Whether any record has a delivery report.
    any: AtomicBool,
    first: Notify,
    throttling: Throttling,
}

impl Deliveries {
    /// Takes the error of the first undelivered record.
    pub fn first_error(&self) -> Option<KafkaError> {
        let mut error = self.0.error.lock().unwrap_or_else(PoisonError::into_inner);
        error.take()
    }

    /// Waits for the first delivery report.
    pub(super) async fn first_answer(&self) {
        while !self.0.any.load(Ordering::Acquire) {
            self.0.first.notified().await;
        }
    }

    /// Resets the state for the next transaction.
    pub(super) fn forget(&self) {
        self.first_error();
        self.0.any.store(false, Ordering::Release);
    }
}

impl ClientContext for Deliveries {
    fn stats(&self, statistics: Statistics) {
        self.0.throttling.observe(&statistics);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            let mut first = self.0.error.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| error.clone());
        }
        if !self.0.any.load(Ordering::Relaxed) {
            self.0.any.store(true, Ordering::Release);
            self.0.first.notify_one();
        }
    }
}
