//! TaskRunningInfo → TaskRunningInfoEvent, exactly once.
//!
//! ```text
//! task-running-info ──▶ Subscription ──▶ route() ──▶ Transaction { events, dead letters, consumed offsets }
//!  (read_committed)     (group member)    (pure)      one Kafka transaction, KIP-447
//! ```
//!
//! Why nothing is lost and nothing is doubled: the offsets consumed commit in the same transaction
//! as the output, on behalf of the group's current generation. If the transaction fails, its output
//! is never seen by a committed reader, and the input is rewound to where the transaction began; if
//! the process dies, the next owner starts at the last committed offset, which the broker withholds
//! until the dead router's transaction is settled. A revocation is answered only after the open
//! transaction has been finished.

mod route;
mod transaction;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::{Adjustment, DeadLetter, Reject, SourcePosition, topics};
use service::health::Health;
use service::kafka::{BATCH_OVERHEAD_BYTES, Cluster, KafkaOptions};
use service::subscription::{Next, Subscription};
use service::telemetry::{messaging, names};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use transaction::{Failed, Output, Transaction};

pub use route::{Outcome, route};

/// Counter: repairs made, by kind. Label `adjustment`.
const ADJUSTMENTS: &str = "taskrunning_adjustments_total";
/// Counter: dead letters written, by kind. Label `reason`.
const DEAD_LETTERS: &str = "taskrunning_dead_letters_total";

/// How long a question about offsets may take before it is asked again.
const ASK: Duration = Duration::from_secs(10);
/// What a router does, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Kafka
    #[command(flatten)]
    pub kafka: KafkaOptions,

    /// Topic to read: TaskRunningInfo
    #[arg(long, env = "SOURCE_TOPIC", value_name = "TOPIC", default_value = topics::TASK_RUNNING_INFO)]
    pub source_topic: String,

    /// Topic to write: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic to write what cannot be used
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// Consumer group; its routers share the partitions
    #[arg(long, env = "ROUTER_GROUP", default_value = "task-running-info-router")]
    pub group: String,

    /// Name of this instance, unique in the group and the same after a restart: makes it a static member. Without it the host name serves for the transactional id
    #[arg(long, env = "ROUTER_INSTANCE_ID", value_name = "ID")]
    pub instance_id: Option<String>,

    /// Commit at the latest so long after a transaction's first record
    #[arg(
        long,
        env = "ROUTER_COMMIT_INTERVAL_MS",
        value_name = "MS",
        default_value_t = 20
    )]
    pub commit_interval_ms: u64,

    /// Commit at the latest after so many records
    #[arg(long, env = "ROUTER_MAX_RECORDS", value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_records: u32,
}

/// Routes until `shutdown` is cancelled; then finishes the open transaction and leaves the group.
///
/// # Errors
/// What a retry does not cure: a topic or a right is missing, a setting is wrong, the instance was
/// fenced, the committed offset is no longer in the log.
pub async fn run(
    config: Config,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let Some(cluster) = config.kafka.cluster(&shutdown).await? else {
        return Ok(());
    };
    cluster.require_topic(&config.source_topic).await?;
    let limits = Limits {
        event_bytes: limit(&cluster, &config.events_topic).await?,
        letter_bytes: limit(&cluster, &config.dead_letters_topic).await?,
    };
    let instance = config.instance_id.clone().map_or_else(host_name, Ok)?;
    let transactional_id = format!("{}-{instance}", config.group);
    let message_max_bytes = limits.event_bytes.max(limits.letter_bytes) + BATCH_OVERHEAD_BYTES;
    let Some(mut output) = Output::start(
        &config.kafka,
        &transactional_id,
        message_max_bytes,
        &shutdown,
    )
    .await?
    else {
        return Ok(());
    };
    let subscription = Subscription::join(
        &config.kafka,
        &config.source_topic,
        &config.group,
        config.instance_id.as_deref(),
        health.clone(),
    )?;
    tracing::info!(
        cluster = cluster.id,
        group = config.group,
        transactional_id,
        "routing {} to {} and {}",
        config.source_topic,
        config.events_topic,
        config.dead_letters_topic
    );
    let router = Router {
        config,
        limits,
        instance,
        health,
        shutdown,
    };
    let routed = router
        .route_until_shutdown(&subscription, &mut output)
        .await;
    subscription.leave().await;
    routed?;
    tracing::info!("stopped; all that was read is routed and committed, or will be read again");
    Ok(())
}

/// The largest record, in bytes, that a topic takes.
async fn limit(cluster: &Cluster, topic: &str) -> anyhow::Result<usize> {
    cluster.require_topic(topic).await?;
    Ok(cluster.max_record_bytes(topic).await)
}

fn host_name() -> anyhow::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .context("this host has no name; give --instance-id")?;
    Ok(name.trim().to_owned())
}

/// The largest records, in bytes, that the two output topics take.
struct Limits {
    event_bytes: usize,
    letter_bytes: usize,
}

struct Router {
    config: Config,
    limits: Limits,
    instance: String,
    health: Arc<Health>,
    shutdown: CancellationToken,
}

impl Router {
    async fn route_until_shutdown(
        &self,
        subscription: &Subscription,
        output: &mut Output,
    ) -> anyhow::Result<()> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                next = subscription.next() => next?,
            };
            // What interrupts a transaction is dealt with after it.
            let rebalance = match next {
                Next::Record(first) => self.transact(subscription, output, first).await?,
                rebalance => Some(rebalance),
            };
            match rebalance {
                Some(Next::Assigned(partitions)) => {
                    self.begin_partitions(subscription, partitions).await?
                }
                Some(Next::Revoked { partitions, .. }) => subscription.release(&partitions)?,
                Some(Next::Record(_)) | None => {}
            }
        }
    }

    /// Starts each partition at the group's committed offset, or at its beginning.
    async fn begin_partitions(
        &self,
        subscription: &Subscription,
        partitions: TopicPartitionList,
    ) -> anyhow::Result<()> {
        let Some(starts) = committed(subscription.consumer(), &partitions, &self.shutdown).await?
        else {
            return Ok(());
        };
        for partition in partitions.elements() {
            let (topic, id) = (partition.topic(), partition.partition());
            let mut start = starts
                .find_partition(topic, id)
                .context("the broker left out a partition")?;
            if start.offset() == Offset::Invalid {
                start.set_offset(Offset::Beginning)?;
            }
        }
        tracing::info!("assigned {}", listed(&starts));
        subscription.assign(&starts)
    }

    /// One transaction, from its first record to its commit. Gives back what interrupted it.
    async fn transact<'s>(
        &self,
        subscription: &'s Subscription,
        output: &mut Output,
        first: BorrowedMessage<'s>,
    ) -> anyhow::Result<Option<Next<'s>>> {
        let transaction = output.begin()?;
        let mut work = Work::default();
        let mut interrupted = None;

        let mut sent = self.send(&transaction, &first, &mut work).await;
        let deadline =
            sleep_until(Instant::now() + Duration::from_millis(self.config.commit_interval_ms));
        tokio::pin!(deadline);
        while sent.is_ok() && work.records < self.config.max_records {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                () = &mut deadline => break,
                next = subscription.next() => match next? {
                    Next::Record(record) => sent = self.send(&transaction, &record, &mut work).await,
                    rebalance => { interrupted = Some(rebalance); break; }
                }
            }
        }

        let lost = matches!(interrupted, Some(Next::Revoked { lost: true, .. }));
        let committed = match sent {
            Ok(()) if !lost => {
                let group = subscription
                    .consumer()
                    .group_metadata()
                    .context("no group metadata")?;
                let begun = Instant::now();
                let committed = transaction
                    .commit(&work.next_offsets(&self.config.source_topic)?, &group)
                    .await;
                metrics::histogram!(names::OPERATION_DURATION, "messaging_operation_name" => "commit")
                    .record(begun.elapsed());
                committed
            }
            sent => sent,
        };
        match committed {
            Ok(()) if !lost => {
                self.health.progressed();
                work.count(&self.config);
            }
            Err(Failed::Exit(error)) => return Err(error),
            failed => {
                if let Err(Failed::Abort(error)) = failed {
                    tracing::warn!(
                        "transaction of {} records aborted, reading them again: {error}",
                        work.records
                    );
                }
                transaction.abort().await?;
                // Whatever made it fail gets a moment to pass.
                tokio::time::sleep(Duration::from_millis(100)).await;
                rewind(
                    subscription.consumer(),
                    &self.config.source_topic,
                    &work.first,
                )
                .await?;
            }
        }
        Ok(interrupted)
    }

    /// Routes one record into the transaction.
    async fn send(
        &self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        work: &mut Work,
    ) -> Result<(), Failed> {
        let source = SourcePosition {
            topic: record.topic().to_owned(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp: record.timestamp().to_millis().unwrap_or(-1),
        };
        let routed_at = Timestamp::now().as_microsecond();
        work.read(record.partition(), record.offset());
        match route(record.payload(), source, routed_at, self.limits.event_bytes) {
            Outcome::Event {
                key,
                value,
                adjustments,
            } => {
                work.events += 1;
                work.adjustments.extend(adjustments);
                let event = BaseRecord::to(&self.config.events_topic)
                    .key(key.as_bytes())
                    .payload(value.as_slice());
                transaction.send(event).await
            }
            Outcome::DeadLetter(reject) => {
                tracing::warn!(
                    topic = record.topic(),
                    partition = record.partition(),
                    offset = record.offset(),
                    reason = reject.kind,
                    "dead letter: {}",
                    reject.message
                );
                work.rejects.push(reject.kind);
                self.send_letter(transaction, record, &reject).await
            }
        }
    }

    /// Sets a record aside: original key and value, and why.
    async fn send_letter(
        &self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        reject: &Reject,
    ) -> Result<(), Failed> {
        let letter = DeadLetter {
            topic: record.topic(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp().to_millis(),
            service: "router",
            instance: &self.instance,
            reject,
        };
        let letter = letter.letter(record.key(), record.payload(), self.limits.letter_bytes);
        let mut sent = BaseRecord::to(&self.config.dead_letters_topic)
            .headers(service::kafka::headers(&letter.headers));
        (sent.key, sent.payload) = (letter.key, letter.value);
        transaction.send(sent).await
    }
}

/// What one transaction has done so far.
#[derive(Default)]
struct Work {
    records: u32,
    events: u64,
    rejects: Vec<&'static str>,
    adjustments: Vec<Adjustment>,
    /// The first offset read of each partition.
    first: BTreeMap<i32, i64>,
    /// The next offset to read of each partition.
    next: BTreeMap<i32, i64>,
}

impl Work {
    fn read(&mut self, partition: i32, offset: i64) {
        self.records += 1;
        self.first.entry(partition).or_insert(offset);
        self.next.insert(partition, offset + 1);
    }

    fn next_offsets(&self, topic: &str) -> anyhow::Result<TopicPartitionList> {
        offsets(topic, &self.next)
    }

    /// Tells the metrics, once it is committed.
    fn count(&self, config: &Config) {
        metrics::counter!(names::CONSUMED, &messaging("poll", &config.source_topic))
            .increment(self.records.into());
        metrics::counter!(names::SENT, &messaging("send", &config.events_topic))
            .increment(self.events);
        metrics::counter!(names::SENT, &messaging("send", &config.dead_letters_topic))
            .increment(self.rejects.len() as u64);
        for reason in &self.rejects {
            metrics::counter!(DEAD_LETTERS, "reason" => *reason).increment(1);
        }
        for adjustment in &self.adjustments {
            metrics::counter!(ADJUSTMENTS, "adjustment" => adjustment.as_str()).increment(1);
        }
    }
}

fn offsets(topic: &str, by_partition: &BTreeMap<i32, i64>) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(by_partition.len());
    for (partition, offset) in by_partition {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    Ok(list)
}

/// The group's committed offsets, waited for while Kafka is away or an earlier owner's transaction
/// is not settled; `None` when shut down meanwhile.
async fn committed(
    consumer: &StreamConsumer<impl ConsumerContext>,
    partitions: &TopicPartitionList,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<TopicPartitionList>> {
    let mut told = false;
    loop {
        let asked = block_in_place(|| consumer.committed_offsets(partitions.clone(), ASK))
            .and_then(|offsets| {
                offsets
                    .elements()
                    .iter()
                    .try_for_each(|p| p.error())
                    .map(|()| offsets)
            });
        match asked {
            Ok(offsets) => return Ok(Some(offsets)),
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::warn!("asking for committed offsets, trying again: {error}");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
}

/// Goes back to where an aborted transaction began, in the partitions that are still assigned.
async fn rewind(
    consumer: &StreamConsumer<impl ConsumerContext>,
    topic: &str,
    first: &BTreeMap<i32, i64>,
) -> anyhow::Result<()> {
    let assigned = consumer.assignment().context("asking for the assignment")?;
    let mut back = first.clone();
    back.retain(|partition, _| assigned.find_partition(topic, *partition).is_some());
    if back.is_empty() {
        return Ok(());
    }
    let sought = block_in_place(|| {
        consumer
            .seek_partitions(offsets(topic, &back)?, ASK)
            .context("rewinding")
    })?;
    for partition in sought.elements() {
        // Reading on from here would lose what the transaction had read.
        partition
            .error()
            .with_context(|| format!("rewinding {topic} partition {}", partition.partition()))?;
    }
    Ok(())
}

fn listed(partitions: &TopicPartitionList) -> String {
    let each = partitions.elements();
    let each: Vec<String> = each
        .iter()
        .map(|p| format!("{}@{:?}", p.partition(), p.offset()))
        .collect();
    each.join(", ")
}
