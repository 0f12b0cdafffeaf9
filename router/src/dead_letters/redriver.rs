//! Sends records of letters back to their source topics, each once, even with concurrent redrives.
//!
//! One Kafka transaction contains the records sent back and, on the dead letter topic, a note for each. All
//! redrives of a dead letter topic share one transactional id. Starting with it ([`Redriver::start`]) fences
//! other redrives and settles their open transactions. Only then are the notes read, up to the high
//! watermark, which waits for other writers' open transactions. So this redrive sees everything that another
//! one has committed, and the other one cannot commit any more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer};
use schemas::dead_letter::{self, Redriven};
use service::exit::NeedsAttention;
use service::kafka::{KafkaOptions, wrong_settings};
use service::limits::CLIENT_MESSAGE_MAX_BYTES;
use service::producer::PolledProducer;
use service::range::Position;
use service::transaction::{Deliveries, FIXED};

use super::letter::Letter;
use super::letters::Letters;
use super::topic::DeadLetterTopic;
use crate::outputs::position;

/// Timeout of a call; it is then repeated.
const CALL: Duration = Duration::from_secs(5);
/// How long a call is repeated before it counts as failed.
const GIVE_UP: Duration = Duration::from_secs(60);
/// Size of a chunk at which it is sent, in bytes.
const CHUNK_BYTES: usize = 8 << 20;

const DEFAULTS: &[(&str, &str)] = &[
    ("linger.ms", "2"),
    ("compression.type", "lz4"),
    // Maximum time for which a crashed redrive holds back readers of later records.
    ("transaction.timeout.ms", "30000"),
];

/// Result of a redrive.
#[derive(Default)]
pub(super) struct Done {
    pub(super) redriven: usize,
    /// Number of other letters about the same records, which are noted too.
    pub(super) duplicates: usize,
    pub(super) transactions: usize,
    /// Letters that cannot be sent back, and why.
    pub(super) left: Vec<String>,
}

/// A record to send back.
struct Sendable {
    letter: Letter,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

/// Context for sending letters back.
pub(super) struct Sending<'a> {
    pub(super) topic: &'a DeadLetterTopic<'a>,
    /// Maximum record size of each target topic.
    pub(super) limits: &'a BTreeMap<Arc<str>, usize>,
    pub(super) max_records: usize,
    /// `None` for a dry run.
    pub(super) redriver: Option<&'a Redriver>,
}

impl Sending<'_> {
    /// Sends these letters back in chunks, each all or nothing. After an error, `done` has the completed
    /// chunks.
    pub(super) fn send(&self, letters: &Letters, done: &mut Done) -> anyhow::Result<()> {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let DeadLetterTopic {
            name, reader, stop, ..
        } = self.topic;
        reader.scan(name, &letters.ranges(), stop, |record| {
            let position = position(record);
            let Some(letter) = letters.found.get(&position) else {
                return Ok(());
            };
            match self.sendable(letter, record)? {
                Ok(sendable) => {
                    bytes += sendable.bytes();
                    chunk.push(sendable);
                }
                Err(why) => done.left.push(format!("{position}: {why}")),
            }
            if chunk.len() >= self.max_records || bytes >= CHUNK_BYTES {
                bytes = 0;
                self.commit(std::mem::take(&mut chunk), done)?;
                if stop.is_cancelled() {
                    bail!("stopped by a signal between two transactions");
                }
            }
            Ok(())
        })?;
        self.commit(chunk, done)
    }

    fn sendable(
        &self,
        letter: &Letter,
        record: &impl rdkafka::Message,
    ) -> anyhow::Result<Result<Sendable, String>> {
        let Some(source) = &letter.source else {
            return Ok(Err(format!(
                "it does not say where it came from (no header {} with partition and offset)",
                dead_letter::TOPIC
            )));
        };
        if *source.topic == *self.topic.name {
            return Ok(Err("it came from the dead letter topic itself".to_owned()));
        }
        let (key, value) = match letter.original(record, self.topic)? {
            Ok(original) => original,
            Err(why) => return Ok(Err(why)),
        };
        let sendable = Sendable {
            letter: letter.clone(),
            key,
            value,
        };
        // The longest form of a time.
        let headers = sendable.headers(&self.topic.name, "2026-11-25T14:05:00.123Z");
        let bytes = sendable.bytes() + dead_letter::header_bytes(&headers);
        let limit = self.limits.get(&source.topic).copied().unwrap_or(0);
        if bytes > limit {
            return Ok(Err(format!(
                "too large for {topic}: {bytes} bytes with its headers, uncompressed, where the topic takes {limit}; \
                 raise its max.message.bytes by {} for it",
                bytes - limit,
                topic = source.topic,
            )));
        }
        Ok(Ok(sendable))
    }

    fn commit(&self, chunk: Vec<Sendable>, done: &mut Done) -> anyhow::Result<()> {
        // An empty transaction would commit even if the producer is fenced.
        if chunk.is_empty() {
            return Ok(());
        }
        if let Some(redriver) = self.redriver {
            redriver.transact(&self.topic.name, &chunk)?;
        }
        done.redriven += chunk.len();
        let duplicates = chunk.iter().map(|sent| sent.letter.duplicates.len());
        done.duplicates += duplicates.sum::<usize>();
        done.transactions += 1;
        Ok(())
    }
}

impl Sendable {
    fn bytes(&self) -> usize {
        let size = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        size(&self.key) + size(&self.value)
    }

    /// Headers with the letter's position, and the record's last and first positions and times. The record
    /// gets the current time as its timestamp, so that retention does not delete it at once.
    fn headers(&self, topic: &str, at: &str) -> Vec<(&'static str, String)> {
        let mut headers = redriven_headers(topic, self.letter.position, at);
        let original = self.letter.original_ms;
        headers.extend(original.map(|ms| (dead_letter::TIMESTAMP_MS, ms.to_string())));
        let first = self.letter.first();
        headers.extend(first.iter().flat_map(dead_letter::First::headers));
        headers
    }
}

/// Headers of a redrive of the letter at this position.
fn redriven_headers(topic: &str, letter: Position, at: &str) -> Vec<(&'static str, String)> {
    Redriven {
        topic,
        partition: letter.partition,
        offset: letter.offset,
        at,
    }
    .headers()
}

/// The transactional producer of all redrives of one dead letter topic.
pub(super) struct Redriver {
    producer: PolledProducer<Deliveries>,
    transactional_id: String,
    /// The commands that grant the necessary rights.
    allow: String,
}

impl Redriver {
    /// Fences any other redrive of this dead letter topic, and settles its open transaction.
    ///
    /// # Errors
    /// If a setting is wrong, a right is missing, or Kafka does not answer.
    pub(super) fn start(
        options: &KafkaOptions,
        topic: &str,
        limits: &BTreeMap<Arc<str>, usize>,
    ) -> anyhow::Result<Self> {
        let transactional_id = format!("{topic}-redrive");
        let mut config = options.client_config(DEFAULTS, FIXED)?;
        let smallest = limits.values().min().copied().unwrap_or(0);
        config.set("transactional.id", &transactional_id);
        config.set("message.max.bytes", CLIENT_MESSAGE_MAX_BYTES);
        // A topic's limit applies to batches; a record that fits is sent alone if necessary.
        config.set("batch.size", smallest.clamp(1, 1_000_000).to_string());
        let producer: PolledProducer<Deliveries> = config
            .create_with_context(Deliveries::default())
            .map_err(wrong_settings)?;
        let begun = Instant::now();
        while let Err(error) = producer.init_transactions(CALL) {
            if matches!(&error, KafkaError::Transaction(e) if e.is_fatal())
                || error.rdkafka_error_code()
                    == Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed)
            {
                let allow =
                    options.allow(&format!("--transactional-id {transactional_id}"), "Write");
                return Err(NeedsAttention(format!(
                    "transactional.id {transactional_id}: {error}; nothing was redriven; {allow}"
                ))
                .into());
            }
            if begun.elapsed() > GIVE_UP {
                return Err(anyhow!(error)).with_context(|| {
                    format!("starting transactions as {transactional_id}; nothing was redriven")
                });
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let topics = limits.keys().map(|target| &**target).chain([topic]);
        let allow = topics.map(|topic| options.allow(&format!("--topic {topic}"), "Write"));
        Ok(Self {
            producer,
            transactional_id,
            allow: allow.collect::<Vec<_>>().join(", or "),
        })
    }

    /// Sends a chunk and its notes in one transaction.
    fn transact(&self, topic: &str, chunk: &[Sendable]) -> anyhow::Result<()> {
        self.producer
            .begin_transaction()
            .map_err(|error| self.explain(error))?;
        let sent = self
            .send_all(topic, chunk)
            .and_then(|()| self.repeat(|| self.producer.commit_transaction(CALL)));
        let Err(error) = sent else { return Ok(()) };
        // librdkafka may report the delivery error of one record instead of the cause; every call in a failed
        // transaction returns the cause.
        let cause = match self.producer.begin_transaction() {
            Err(cause @ KafkaError::Transaction(_)) => cause.rdkafka_error_code(),
            _ => None,
        };
        let denied = Some(RDKafkaErrorCode::TopicAuthorizationFailed);
        if cause == denied || error.rdkafka_error_code() == denied {
            // There may be nothing left to abort.
            let _ = self.repeat(|| self.producer.abort_transaction(CALL));
            let allow = &self.allow;
            return Err(NeedsAttention(format!(
                "writing is not allowed: Topic authorization failed; nothing of the chunk in progress was committed; {allow}"
            ))
            .into());
        }
        if self.producer.client().fatal_error().is_some() {
            return Err(self.explain(error));
        }
        if matches!(&error, KafkaError::Transaction(e) if e.is_retriable() && !e.txn_requires_abort())
        {
            return Err(anyhow!(error).context(
                "unknown whether the chunk in progress was committed; run it again: the notes then decide",
            ));
        }
        match self.repeat(|| self.producer.abort_transaction(CALL)) {
            Ok(()) => Err(anyhow!(error)
                .context("the chunk in progress was aborted; run it again for the rest")),
            Err(aborting) => Err(self.explain(aborting)),
        }
    }

    fn send_all(&self, topic: &str, chunk: &[Sendable]) -> Result<(), KafkaError> {
        let at = format!("{:.3}", Timestamp::now());
        for sendable in chunk {
            let Some(source) = &sendable.letter.source else {
                continue;
            };
            let mut back = BaseRecord::<[u8], [u8]>::to(&source.topic)
                .headers(service::kafka::headers(&sendable.headers(topic, &at)));
            (back.key, back.payload) = (sendable.key.as_deref(), sendable.value.as_deref());
            self.send(back)?;
            let letter = &sendable.letter;
            for position in [&letter.position].into_iter().chain(&letter.duplicates) {
                let note = redriven_headers(topic, *position, &at);
                self.send(
                    BaseRecord::to(topic)
                        .partition(position.partition)
                        .headers(service::kafka::headers(&note)),
                )?;
            }
        }
        self.producer.flush_now(CALL);
        self.producer.context().first_error().map_or(Ok(()), Err)
    }

    fn send(&self, mut record: BaseRecord<'_, [u8], [u8]>) -> Result<(), KafkaError> {
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), unsent)) => {
                    record = unsent;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error),
            }
        }
    }

    /// Repeats a call that timed out, which resumes it.
    fn repeat(&self, call: impl Fn() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
        let begun = Instant::now();
        loop {
            let Err(error) = call() else { return Ok(()) };
            let passes = matches!(&error, KafkaError::Transaction(e)
                if e.is_retriable() && !e.is_fatal() && !e.txn_requires_abort());
            if !passes || begun.elapsed() > GIVE_UP {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn explain(&self, error: KafkaError) -> anyhow::Error {
        let id = &self.transactional_id;
        let fatal = self.producer.client().fatal_error();
        let code = fatal
            .as_ref()
            .map(|(code, _)| *code)
            .or(error.rdkafka_error_code());
        let fenced = matches!(
            code,
            Some(
                RDKafkaErrorCode::Fenced
                    | RDKafkaErrorCode::ProducerFenced
                    | RDKafkaErrorCode::InvalidProducerEpoch
            )
        );
        anyhow!(error).context(if fenced {
            format!(
                "fenced: another redrive of this dead letter topic was started after this one (transactional.id {id}); \
                 this one commits nothing more, and `list` shows which letters were redriven"
            )
        } else {
            format!("the transactional producer {id} has failed")
        })
    }
}
