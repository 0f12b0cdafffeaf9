//! The size of the largest report that the topic accepts, as far as known.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use service::kafka::KafkaOptions;
use service::limits::{DEFAULT_RECORD_BYTES, FRESH};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

/// How often to read the limit after a report was refused as too large, or while Kafka has not answered: somebody may raise
/// it.
const AGAIN: Duration = Duration::from_secs(60);

/// The limit; [`watch`](Self::watch) reads it from the topic.
pub(crate) struct SizeLimit {
    known: Mutex<Known>,
    /// `message.max.bytes`, if set.
    chosen: Option<usize>,
    refused: Notify,
}

#[derive(Clone, Copy)]
struct Known {
    bytes: usize,
    /// `None`: assumed.
    read: Option<Instant>,
}

/// Whether a report is within the limit.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    Fits,
    /// It is above a limit that was not read recently: the broker has to decide.
    Unsure,
    /// With what was found and what to do.
    TooLarge(String),
}

impl SizeLimit {
    pub(crate) fn of(config: &ClientConfig) -> Self {
        let chosen = config.get("message.max.bytes");
        let chosen = chosen.and_then(|bytes| bytes.parse().ok());
        Self {
            known: Mutex::new(Known {
                bytes: chosen.unwrap_or(DEFAULT_RECORD_BYTES),
                read: None,
            }),
            chosen,
            refused: Notify::new(),
        }
    }

    /// Bytes of key and value.
    pub(crate) fn bytes(&self) -> usize {
        self.known().bytes
    }

    /// Whether the topic accepts this many bytes of key and value. If that is not known any more, the limit is read again
    /// soon.
    pub(crate) fn judge(&self, bytes: usize, topic: &str) -> Verdict {
        let Known { bytes: limit, read } = self.known();
        if bytes <= limit {
            return Verdict::Fits;
        }
        self.doubt();
        if let Some(chosen) = self.chosen.filter(|chosen| bytes > *chosen) {
            return Verdict::TooLarge(format!(
                "it has {bytes} bytes where message.max.bytes is set to {chosen}; report less at once, or set it higher"
            ));
        }
        if read.is_none_or(|read| read.elapsed() > FRESH) {
            return Verdict::Unsure;
        }
        Verdict::TooLarge(format!(
            "it has {bytes} bytes where {topic} takes {limit}; report less at once, or raise the topic's \
             max.message.bytes"
        ))
    }

    fn known(&self) -> Known {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A report was refused as too large: read the limit again soon.
    pub(crate) fn doubt(&self) {
        self.refused.notify_one();
    }

    /// Reads the limit, and again when it is in doubt. If this user may not describe the topic (a producer does not need
    /// that right), it stays `message.max.bytes` or Kafka's default.
    pub(crate) async fn watch(&self, kafka: &KafkaOptions, topic: &str) {
        let mut refused = false;
        loop {
            let read = kafka.max_record_bytes(topic).await;
            let away = matches!(&read, Err(error) if error.is::<KafkaError>());
            match read {
                Ok(read) => {
                    let bytes = read.min(self.chosen.unwrap_or(usize::MAX));
                    let read = Some(Instant::now());
                    let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                    let before = std::mem::replace(&mut *known, Known { bytes, read });
                    drop(known);
                    if refused && before.bytes != bytes {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(settings: &[(&str, &str)], known: Option<Known>) -> SizeLimit {
        let mut config = ClientConfig::new();
        for (key, value) in settings {
            config.set(*key, *value);
        }
        let limit = SizeLimit::of(&config);
        if let Some(known) = known {
            *limit.known.lock().unwrap() = known;
        }
        limit
    }

    #[test]
    fn only_a_limit_that_was_read_lately_or_chosen_refuses_a_report() {
        let judged = |limit: &SizeLimit, bytes| match limit.judge(bytes, "reports") {
            Verdict::TooLarge(why) => why,
            other => format!("{other:?}"),
        };
        let assumed = limit(&[], None);
        assert_eq!(judged(&assumed, DEFAULT_RECORD_BYTES), "Fits");
        assert_eq!(judged(&assumed, DEFAULT_RECORD_BYTES + 1), "Unsure");
        let read = |ago| {
            let read = Instant::now().checked_sub(ago);
            limit(&[], Some(Known { bytes: 100, read }))
        };
        assert_eq!(judged(&read(FRESH * 2), 101), "Unsure");
        let lately = read(Duration::ZERO);
        assert_eq!(judged(&lately, 100), "Fits");
        let why = "it has 101 bytes where reports takes 100; report less at once, or raise the topic's max.message.bytes";
        assert_eq!(judged(&lately, 101), why);
        let chosen = limit(&[("message.max.bytes", "5000")], None);
        let why = "it has 5001 bytes where message.max.bytes is set to 5000; report less at once, or set it higher";
        assert_eq!(judged(&chosen, 5_001), why);
    }
}
