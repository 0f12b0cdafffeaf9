//! What librdkafka calls back, with a receiver for the result of each record.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::ProducerContext;
use rdkafka::statistics::Statistics;
use service::health::Health;
use service::limits::refuses_batch;
use service::throttling::Throttling;
use tokio::sync::oneshot;

use crate::client::HealthMonitor;

/// Receives the log, errors, statistics and delivery results of the client.
#[derive(Clone)]
pub(crate) struct Observer(pub(crate) Arc<Observed>);

pub(crate) struct Observed {
    /// The client's last error, in its words.
    pub(crate) last_error: Mutex<Option<String>>,
    pub(crate) delivered: AtomicU64,
    health: Option<HealthMonitor>,
    throttling: Throttling,
}

/// Why a record was not delivered.
pub(crate) struct Failed {
    pub(crate) error: KafkaError,
    /// Key and value, if the [whole batch was refused](refuses_batch): the record may be accepted alone.
    pub(crate) record: Option<(Vec<u8>, Vec<u8>)>,
}

/// The result of a record.
pub(crate) type Delivered = Result<(), Box<Failed>>;

impl Observer {
    pub(crate) fn new(health: Option<Arc<Health>>) -> Self {
        Self(Arc::new(Observed {
            last_error: Mutex::default(),
            delivered: AtomicU64::new(0),
            health: health.map(HealthMonitor::new),
            throttling: Throttling::default(),
        }))
    }
}

impl ClientContext for Observer {
    fn stats(&self, statistics: Statistics) {
        if let Some(health) = &self.0.health {
            health.observe(&statistics, self.0.delivered.load(Ordering::Relaxed));
        }
        self.0.throttling.observe(&statistics);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        service::repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
        // That all brokers are down says less than the error of each.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            *self
                .0
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
    }
}

impl ProducerContext for Observer {
    /// Receives the result.
    type DeliveryOpaque = Box<oneshot::Sender<Delivered>>;

    fn delivery(&self, result: &DeliveryResult<'_>, result_to: Self::DeliveryOpaque) {
        let delivered = result.as_ref().map(|_| ()).map_err(|(error, record)| {
            let owned = |part: Option<&[u8]>| part.unwrap_or_default().to_vec();
            Box::new(Failed {
                error: error.clone(),
                record: refuses_batch(error)
                    .then(|| (owned(record.key()), owned(record.payload()))),
            })
        });
        // The receiver may be gone.
        let _ = result_to.send(delivered);
    }
}
