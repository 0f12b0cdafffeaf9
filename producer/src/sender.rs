//! Sends reports as fast as Kafka accepts them: waits while librdkafka's queue is full, and counts every
//! acknowledgement. For input that can wait; the reports of a live engine go through `Delivery`, which never
//! waits.

mod acks;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, PurgeConfig};
use schemas::{Framing, TaskRunningInfo};
use service::exit;
use service::health::Health;
use service::kafka::{KafkaOptions, wrong_settings};
use service::limits::{CLIENT_MESSAGE_MAX_BYTES, DEFAULT_RECORD_BYTES, is_too_large};
use service::producer::PolledProducer;
use service::warn_of_change;
use service::words::counted;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use self::acks::TooLarge;
use self::acks::{Acks, Refused};
use crate::client::{AT_ONCE, FIXED, LAST_ACKS, SOCKET_TIMEOUT, STATISTICS};
use crate::connection::Connection;

const DEFAULTS: &[(&str, &str)] = &[
    AT_ONCE,
    ("compression.type", "lz4"),
    ("queue.buffering.max.kbytes", "65536"),
    SOCKET_TIMEOUT,
    STATISTICS,
];

/// Maximum time for librdkafka to return unacknowledged records.
const PURGE: Duration = Duration::from_secs(1);

/// An idempotent producer with back-pressure. The caller numbers its reports in ascending order.
pub(crate) struct Sender {
    producer: PolledProducer<Acks>,
    acks: Acks,
    topic: String,
    framing: Framing,
    /// Bytes of key and value that the topic accepts, as far as known. A larger report is sent alone, so that a refusal is
    /// known at once and in order.
    together_max_bytes: usize,
    sent: u64,
    /// Buffer for a report's bytes, reused.
    value: Vec<u8>,
}

impl Sender {
    /// # Errors
    /// If a setting is wrong.
    pub(crate) async fn connect(
        connection: Connection,
        kafka: &KafkaOptions,
        topic: &str,
        health: Arc<Health>,
    ) -> anyhow::Result<Self> {
        let mut config = kafka.client_config(DEFAULTS, FIXED)?;
        if config.get("message.max.bytes").is_none() {
            config.set("message.max.bytes", CLIENT_MESSAGE_MAX_BYTES);
        }
        // Fails if this user may not describe the topic; a producer does not need that right.
        let limit = connection.cluster.max_record_bytes(topic).await;
        let allow = kafka.allow(&format!("--topic {topic}"), "Write");
        let acks = Acks::new(topic, allow, health);
        let producer = config
            .create_with_context(acks.clone())
            .map_err(wrong_settings)?;
        Ok(Self {
            producer,
            acks,
            topic: topic.to_owned(),
            framing: connection.framing,
            together_max_bytes: limit.unwrap_or(DEFAULT_RECORD_BYTES),
            sent: 0,
            value: Vec::new(),
        })
    }

    /// Hands a report to the producer; waits while its queue is full. Returns whether it was handed over: once `shutdown`
    /// is cancelled, it does not wait for a full queue. A report that is refused for its size is in
    /// [`take_too_large`](Self::take_too_large), at once if the topic's limit is known.
    ///
    /// # Errors
    /// If this report or an earlier one cannot be delivered. Send nothing after that: it would arrive before the
    /// undelivered ones.
    pub(crate) async fn send(
        &mut self,
        info: &TaskRunningInfo,
        number: usize,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<bool> {
        self.value.clear();
        schemas::write_info(info, self.framing, &mut self.value);
        let alone = info.exec_id.len() + self.value.len() > self.together_max_bytes;
        if alone || self.acks.0.any_refused.load(Ordering::Acquire) {
            let settled = async {
                self.send_refused().await?;
                if alone {
                    self.until_answered().await;
                    self.send_refused().await?;
                }
                anyhow::Ok(())
            };
            tokio::select! {
                biased;
                settled = settled => settled?,
                () = shutdown.cancelled() => return Ok(false),
            }
        }
        self.acks.0.alone.store(alone, Ordering::Release);
        let mut record = BaseRecord::with_opaque_to(&self.topic, number)
            .key(info.exec_id.as_bytes())
            .payload(self.value.as_slice());
        loop {
            self.acks.check(&self.topic)?;
            match self.producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    if shutdown.is_cancelled() {
                        return Ok(false);
                    }
                    record = unsent;
                    sleep(Duration::from_millis(1)).await;
                }
                Err((error, unsent)) if is_too_large(&error) => {
                    let bytes = info.exec_id.len() + self.value.len();
                    self.acks.0.too_large().push(TooLarge {
                        number: unsent.delivery_opaque,
                        reason: format!(
                            "the report has {bytes} bytes in Avro, more than the producer's message.max.bytes takes; \
                             report less at once, or set it higher"
                        ),
                    });
                    return Ok(true);
                }
                Err((error, _)) => {
                    return Err(error).with_context(|| {
                        format!(
                            "sending a report of {} ({} bytes) to {}",
                            info.exec_id,
                            self.value.len(),
                            self.topic
                        )
                    });
                }
            }
        }
        self.sent += 1;
        if alone {
            tokio::select! {
                biased;
                () = self.until_answered() => self.acks.0.alone.store(false, Ordering::Release),
                () = shutdown.cancelled() => {}
            }
        }
        Ok(true)
    }

    /// The reports that were refused for their size since the last call.
    pub(crate) fn take_too_large(&self) -> Vec<TooLarge> {
        std::mem::take(&mut *self.acks.0.too_large())
    }

    /// Reports that Kafka has acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acks.0.acknowledged.load(Ordering::Acquire)
    }

    /// The number of the first report that failed or, after [`finish`](Self::finish), was not acknowledged.
    pub(crate) fn first_failed(&self) -> Option<usize> {
        let first = self.acks.0.first_failed.load(Ordering::Acquire);
        (first != usize::MAX).then_some(first)
    }

    /// Sends the records of refused batches again, one at a time: only a record that is refused by itself cannot be
    /// delivered. They arrive after in-flight reports of their tasks; `sequence` gives the order.
    async fn send_refused(&self) -> anyhow::Result<()> {
        let acks = &self.acks.0;
        if !acks.any_refused.load(Ordering::Acquire) {
            return Ok(());
        }
        self.until_answered().await;
        warn_of_change!(
            "{} has refused a batch of {}; they are sent again one by one",
            self.topic,
            counted(acks.refused().len(), "report")
        );
        acks.alone.store(true, Ordering::Release);
        let next = || acks.refused().pop_front();
        while let Some(Refused { number, key, value }) = next() {
            let record = BaseRecord::with_opaque_to(&self.topic, number)
                .key(&key)
                .payload(&value);
            if let Err((error, _)) = self.producer.send(record) {
                acks.failed_at(number);
                return Err(error)
                    .with_context(|| format!("sending a report to {} again", self.topic));
            }
            self.until_answered().await;
        }
        acks.any_refused.store(false, Ordering::Release);
        acks.alone.store(false, Ordering::Release);
        Ok(())
    }

    /// Bounded by `message.timeout.ms`.
    async fn until_answered(&self) {
        while self.producer.in_flight_count() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until every record is acknowledged or has failed (bounded by `message.timeout.ms`, and by 5 s once `shutdown`
    /// is cancelled). Returns the number of acknowledged ones. Records that were refused for their size are not failures.
    ///
    /// # Errors
    /// If records failed: how many, and the reason of the first.
    pub(crate) async fn finish(&self, shutdown: &CancellationToken) -> anyhow::Result<u64> {
        let _waiting = exit::waiting("Kafka's acknowledgement of the last reports");
        let settled = async {
            self.until_answered().await;
            self.send_refused().await
        };
        let too_late = async {
            shutdown.cancelled().await;
            sleep(LAST_ACKS).await;
        };
        tokio::select! {
            biased;
            settled = settled => if let Err(error) = settled {
                // The rest of a refused batch is not in the order of its numbers.
                self.give_up().await;
                return Err(error);
            },
            () = too_late => self.give_up().await,
        }
        self.acks.check(&self.topic)?;
        let acknowledged = self.acknowledged();
        let settled = acknowledged + self.acks.0.refused_for_size.load(Ordering::Acquire);
        if settled < self.sent {
            bail!(
                "Kafka has not acknowledged {} of {} sent to {}",
                self.sent - settled,
                counted(self.sent, "report"),
                self.topic
            );
        }
        Ok(acknowledged)
    }

    /// Takes unacknowledged records back, so that [`first_failed`](Self::first_failed) includes them.
    async fn give_up(&self) {
        self.producer
            .purge(PurgeConfig::default().queue().inflight());
        let _ = timeout(PURGE, self.until_answered()).await;
        for refused in self.acks.0.refused().iter() {
            self.acks.0.failed_at(refused.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;

    use super::*;

    #[tokio::test]
    async fn where_sending_again_fails_the_first_that_was_not_sent_is_named() {
        const BYTES_MAX: usize = 1_000;
        let acks = Acks::new("reports", String::new(), Arc::default());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", "127.0.0.1:9");
        config.set("message.max.bytes", BYTES_MAX.to_string());
        let sender = Sender {
            producer: config.create_with_context(acks.clone()).unwrap(),
            acks,
            topic: "reports".to_owned(),
            framing: Framing::SingleObject,
            together_max_bytes: BYTES_MAX,
            sent: 3,
            value: Vec::new(),
        };
        // In the order of their refusals; the client accepts none of them again.
        for number in [7, 9, 3] {
            sender.acks.0.refused().push_back(Refused {
                number,
                key: Vec::new(),
                value: vec![0; 2 * BYTES_MAX],
            });
        }
        sender.acks.0.any_refused.store(true, Ordering::Release);
        let finished = sender.finish(&CancellationToken::new()).await;
        let error = finished.unwrap_err().to_string();
        assert_eq!(error, "sending a report to reports again");
        assert_eq!(sender.first_failed(), Some(3));
    }
}
