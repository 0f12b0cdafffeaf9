//! A reader of committed records, outside any group.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;

use super::bound::{Bound, Position};
use crate::client_log;
use crate::error::NeedsAttention;
use crate::kafka::{KafkaOptions, LoggingContext, wrong_settings};

/// Timeout of a request to the brokers.
const ASK: Duration = Duration::from_secs(10);
/// Timeout of a poll.
const POLL: Duration = Duration::from_millis(100);
/// After this long without a record, the log's start is checked: retention may have passed the end.
const QUIET: Duration = Duration::from_secs(5);
/// After this long without progress, reading fails. Longer than a router's transaction may stay open.
const STALLED: Duration = Duration::from_secs(60);

/// Settings that guarantee complete, committed reads. If retention passes a start after it was determined,
/// reading continues at the log's new start.
const FIXED: &[(&str, &str)] = &[
    ("isolation.level", "read_committed"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "earliest"),
    ("allow.auto.create.topics", "false"),
    ("check.crcs", "true"),
    client_log::FIXED,
];
const DEFAULTS: &[(&str, &str)] = &[
    ("fetch.queue.backoff.ms", "2"),
    // Records wait decompressed, with some hundred bytes of overhead each, so the queue is small.
    ("queued.max.messages.kbytes", "2048"),
    // That limit counts values only (librdkafka 2.12); a dead letter may consist mostly of key and headers.
    ("queued.min.messages", "10000"),
    ("fetch.message.max.bytes", "262144"),
    // librdkafka requires a group to assign partitions. It is never joined, and nothing is committed for it.
    ("group.id", "none"),
];

/// Where to stop reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At the last stable offset.
    Stable,
    /// At the high watermark: waits for open transactions.
    High,
}

/// Ranges of offsets, by partition.
pub type Ranges = BTreeMap<i32, Range<i64>>;

/// A committed reader.
pub struct Reader {
    options: KafkaOptions,
    config: ClientConfig,
    committed: BaseConsumer<LoggingContext>,
    uncommitted: BaseConsumer<LoggingContext>,
}

impl Reader {
    /// # Errors
    /// If a setting is wrong.
    pub fn connect(options: &KafkaOptions) -> anyhow::Result<Self> {
        let config = options.client_config(DEFAULTS, FIXED)?;
        let mut uncommitted = config.clone();
        uncommitted.set("isolation.level", "read_uncommitted");
        Ok(Self {
            options: options.clone(),
            committed: consumer(&config, LoggingContext)?,
            uncommitted: consumer(&uncommitted, LoggingContext)?,
            config,
        })
    }

    /// The log's first offset and its end.
    ///
    /// # Errors
    /// If Kafka does not answer.
    pub fn bounds(&self, topic: &str, partition: i32, end: End) -> anyhow::Result<Range<i64>> {
        let asked = match end {
            End::Stable => &self.committed,
            End::High => &self.uncommitted,
        };
        let (low, next) = asked
            .fetch_watermarks(topic, partition, ASK)
            .with_context(|| format!("asking where {topic} partition {partition} ends"))?;
        Ok(low..next)
    }

    /// The first offset of each partition whose record has this timestamp or a later one; partitions without
    /// one are omitted.
    ///
    /// # Errors
    /// If Kafka does not answer.
    pub fn since(
        &self,
        topic: &str,
        partitions: &BTreeSet<i32>,
        since_ms: i64,
    ) -> anyhow::Result<BTreeMap<i32, i64>> {
        let mut times = TopicPartitionList::new();
        for partition in partitions {
            // Negative times have special meanings in this request.
            times.add_partition_offset(topic, *partition, Offset::Offset(since_ms.max(0)))?;
        }
        let found = self
            .committed
            .offsets_for_times(times, ASK)
            .with_context(|| format!("asking {topic} for the offsets of a time"))?;
        let mut starts = BTreeMap::new();
        for partition in found.elements() {
            partition.error().with_context(|| {
                format!(
                    "asking {topic} partition {} for the offset of a time",
                    partition.partition()
                )
            })?;
            if let Offset::Offset(offset) = partition.offset() {
                starts.insert(partition.partition(), offset);
            }
        }
        Ok(starts)
    }

    /// Resolves a bound to an offset of each of these partitions, given the ends of their logs. A time later
    /// than every record resolves to the log's end; partitions that [`Bound::Offsets`] does not name are
    /// omitted. Offsets outside the log are returned unchanged.
    ///
    /// # Errors
    /// If Kafka does not answer.
    pub fn resolve(
        &self,
        topic: &str,
        bound: &Bound,
        logs: &Ranges,
    ) -> anyhow::Result<BTreeMap<i32, i64>> {
        let of_logs = |offset: fn(&Range<i64>) -> i64| {
            logs.iter()
                .map(|(partition, log)| (*partition, offset(log)))
                .collect()
        };
        Ok(match bound {
            Bound::Earliest => of_logs(|log| log.start),
            Bound::Latest => of_logs(|log| log.end),
            Bound::Offsets(offsets) => offsets
                .iter()
                .filter(|(partition, _)| logs.contains_key(partition))
                .map(|(partition, offset)| (*partition, *offset))
                .collect(),
            Bound::Time(time) => {
                let mut offsets: BTreeMap<i32, i64> = of_logs(|log| log.end);
                let partitions = logs.keys().copied().collect();
                offsets.extend(self.since(topic, &partitions, time.as_millisecond())?);
                offsets
            }
        })
    }

    /// Passes each committed record of these ranges to `each`, in offset order within a partition.
    ///
    /// # Errors
    /// If `each` fails, on a signal, or if reading stalls before the end.
    pub fn scan(
        &self,
        topic: &str,
        ranges: &Ranges,
        stop: &CancellationToken,
        each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.scan_with(&self.config, LoggingContext, topic, ranges, stop, each)
    }

    /// [`scan`](Self::scan) that also returns whether records of aborted transactions may be in these ranges.
    /// Always true if the wording of librdkafka's log is unknown for its version. For long ranges: if a range
    /// begins inside a batch, each record of the batch before it costs a log line.
    ///
    /// # Errors
    /// As there.
    pub fn scan_and_note_aborted(
        &self,
        topic: &str,
        ranges: &Ranges,
        stop: &CancellationToken,
        each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        if !client_log::is_known() {
            self.scan(topic, ranges, stop, each)?;
            return Ok(true);
        }
        let mut config = self.config.clone();
        let debug = match config.get("debug") {
            Some(chosen) => format!("{chosen},msg"),
            None => "msg".to_owned(),
        };
        config.set("debug", debug);
        config.set_log_level(RDKafkaLogLevel::Debug);
        let skipped = Skipped::default();
        self.scan_with(&config, skipped.clone(), topic, ranges, stop, each)?;
        Ok(skipped.0.load(Ordering::Relaxed))
    }

    /// [`scan`](Self::scan) including the records of aborted transactions.
    ///
    /// # Errors
    /// As there.
    pub fn scan_with_aborted(
        &self,
        topic: &str,
        ranges: &Ranges,
        stop: &CancellationToken,
        each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut config = self.config.clone();
        config.set("isolation.level", "read_uncommitted");
        self.scan_with(&config, LoggingContext, topic, ranges, stop, each)
    }

    fn scan_with(
        &self,
        config: &ClientConfig,
        context: impl ConsumerContext + 'static,
        topic: &str,
        ranges: &Ranges,
        stop: &CancellationToken,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut ends = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for (partition, range) in ranges.iter().filter(|(_, range)| !range.is_empty()) {
            ends.insert(*partition, range.end);
            assignment.add_partition_offset(topic, *partition, Offset::Offset(range.start))?;
        }
        if ends.is_empty() {
            return Ok(());
        }
        // A new consumer, because one that has read a partition before already has a position in it.
        let consumer = consumer(config, context)?;
        consumer.assign(&assignment)?;
        let (mut read, mut last_step, mut trouble) = (0, Instant::now(), None);
        let mut held_back = HeldBack::default();
        let mut reached = BTreeMap::new();
        loop {
            match consumer.poll(POLL) {
                Some(Ok(record)) => {
                    let end = ends.get(&record.partition()).copied();
                    if end.is_some_and(|end| record.offset() < end) {
                        read += 1;
                        each(&record)?;
                    }
                    if end.is_some_and(|end| record.offset() + 1 >= end) {
                        ends.remove(&record.partition());
                    } else if read % 1_000 != 0 {
                        continue;
                    }
                }
                Some(Err(error)) => trouble = Some(self.passing(error, topic)?),
                None => {}
            }
            // Commit markers and aborted records take offsets too, so the position decides whether the end is
            // reached, not the last record.
            let position = consumer.position()?;
            ends.retain(|partition, end| {
                let at = position
                    .find_partition(topic, *partition)
                    .and_then(|at| at.offset().to_raw());
                if reached.insert(*partition, at) != Some(at) {
                    last_step = Instant::now();
                }
                at.is_none_or(|at| at < *end)
            });
            let Some((partition, end)) = ends.first_key_value() else {
                return Ok(());
            };
            if stop.is_cancelled() {
                bail!("stopped by a signal while reading {topic}");
            }
            let quiet = last_step.elapsed();
            if quiet > STALLED {
                let at = reached.get(partition).copied().flatten();
                bail!(
                    "{topic} partition {partition}: no progress at offset {} of {end} for {} s; {}. Try again later",
                    at.map_or("?".to_owned(), |at| at.to_string()),
                    quiet.as_secs(),
                    trouble.as_deref().unwrap_or(
                        "a transaction is open there; its writer or its transaction.timeout.ms will end it"
                    ),
                );
            }
            if quiet > QUIET
                && let Ok(log) = self.bounds(topic, *partition, End::Stable)
            {
                let (partition, end) = (*partition, *end);
                held_back.note(topic, partition, log.end, end);
                if log.start >= end {
                    ends.remove(&partition);
                    if ends.is_empty() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// The text of a temporary error; a permanent one is returned as an error.
    fn passing(&self, error: KafkaError, topic: &str) -> anyhow::Result<String> {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::TopicAuthorizationFailed) => {
                let allow = self.options.allow(&format!("--topic {topic}"), "Read");
                Err(NeedsAttention(format!("reading {topic}: {error}; {allow}")).into())
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition) => {
                Err(NeedsAttention(format!("reading {topic}: {error}")).into())
            }
            _ => Ok(error.to_string()),
        }
    }

    /// The record at one offset, or why there is none.
    ///
    /// # Errors
    /// If Kafka does not answer, or on a signal.
    pub fn record(
        &self,
        topic: &str,
        position: Position,
        stop: &CancellationToken,
    ) -> anyhow::Result<Result<OwnedMessage, String>> {
        let Position { partition, offset } = position;
        let log = match self.committed.fetch_watermarks(topic, partition, ASK) {
            Ok((low, next)) => low..next,
            Err(error) => {
                return match error.rdkafka_error_code() {
                    Some(
                        RDKafkaErrorCode::UnknownTopicOrPartition
                        | RDKafkaErrorCode::UnknownTopic
                        | RDKafkaErrorCode::UnknownPartition,
                    ) => Ok(Err(format!("{topic} partition {partition} is gone"))),
                    _ => Err(error).with_context(|| format!("reading {topic} {position}")),
                };
            }
        };
        if !log.contains(&offset) {
            return Ok(Err(format!(
                "the log of {topic} partition {partition} now holds offsets {} to {}",
                log.start,
                log.end - 1
            )));
        }
        let mut found = None;
        let one = Ranges::from([(partition, offset..offset + 1)]);
        self.scan(topic, &one, stop, |record| {
            found = Some(record.detach());
            Ok(())
        })?;
        Ok(found.ok_or_else(|| format!("{topic} has no record at {position} any more")))
    }
}

fn consumer<C: ConsumerContext + 'static>(
    config: &ClientConfig,
    context: C,
) -> anyhow::Result<BaseConsumer<C>> {
    config
        .create_with_context(context)
        .map_err(|error| wrong_settings(error).into())
}

/// Logs once that a scan waits for a transaction, and when that has ended.
#[derive(Default)]
struct HeldBack(Option<(String, Instant)>);

impl HeldBack {
    fn note(&mut self, topic: &str, partition: i32, stable: i64, end: i64) {
        if stable >= end || self.0.is_some() {
            return;
        }
        tracing::warn!(
            "waiting for an open transaction: it holds back {topic} partition {partition} from offset {stable} until it \
             commits or aborts, at the latest after its transaction.timeout.ms; giving up after {} s",
            STALLED.as_secs()
        );
        self.0 = Some((topic.to_owned(), Instant::now()));
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        if let Some((topic, since)) = &self.0 {
            let seconds = since.elapsed().as_secs();
            tracing::info!(
                "no longer waiting for an open transaction of {topic}, after {seconds} s"
            );
        }
    }
}

/// Whether a client has skipped records of an aborted transaction, according to its log.
#[derive(Clone, Default)]
struct Skipped(Arc<AtomicBool>);

impl ConsumerContext for Skipped {}

impl ClientContext for Skipped {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if client_log::skips_aborted(message) {
            self.0.store(true, Ordering::Relaxed);
        }
        LoggingContext.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        LoggingContext.error(error, reason);
    }
}
