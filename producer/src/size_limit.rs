//! The largest report that the topic takes, as far as it is known.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use service::kafka::KafkaOptions;
use service::limits::DEFAULT_RECORD_BYTES;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// The limit is not read again before this.
const FRESH: Duration = Duration::from_secs(5);
/// Once a report was refused as too large, or while Kafka has not answered, the limit is read this often:
/// somebody may raise it.
const AGAIN: Duration = Duration::from_secs(60);

/// The limit; [`watch`](Self::watch) reads it from the topic.
pub(crate) struct SizeLimit {
    bytes: AtomicUsize,
    /// By `message.max.bytes`.
    chosen: Option<usize>,
    refused: Notify,
}

impl SizeLimit {
    pub(crate) fn of(config: &ClientConfig) -> Self {
        let chosen = config.get("message.max.bytes");
        let chosen = chosen.and_then(|bytes| bytes.parse().ok());
        Self {
            bytes: AtomicUsize::new(chosen.unwrap_or(DEFAULT_RECORD_BYTES)),
            chosen,
            refused: Notify::new(),
        }
    }

    /// Bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Something was refused as too large: the limit is read again soon.
    pub(crate) fn doubt(&self) {
        self.refused.notify_one();
    }

    /// Reads the limit, and again when it is doubted. Where this user may not ask (a producer needs no right to),
    /// it stays as it was chosen, or Kafka's default.
    pub(crate) async fn watch(&self, kafka: &KafkaOptions, topic: &str) {
        let mut refused = false;
        loop {
            let read = kafka.max_record_bytes(topic).await;
            let away = matches!(&read, Err(error) if error.is::<KafkaError>());
            match read {
                Ok(read) => {
                    let bytes = read.min(self.chosen.unwrap_or(usize::MAX));
                    let before = self.bytes.swap(bytes, Ordering::Relaxed);
                    if refused && before != bytes {
                        tracing::info!("{topic} takes reports of at most {bytes} bytes now");
                    }
                }
                Err(error) => {
                    tracing::debug!("{topic}: cannot ask for max.message.bytes: {error:#}")
                }
            }
            sleep(FRESH).await;
            if refused || away {
                refused |= timeout(AGAIN, self.refused.notified()).await.is_ok();
            } else {
                self.refused.notified().await;
                refused = true;
            }
        }
    }
}
