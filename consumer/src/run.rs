//! `consumer run`: from the events topic into the tables.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::topics;
use service::exit::NeedsAttention;
use service::health::Health;
use service::kafka::KafkaOptions;
use service::subscription::{Next, Subscription};
use service::telemetry::{messaging, names};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::batch::{Anchor, Batch, Positions};
use crate::letters::Letters;
use crate::rows::{Part, rows};
use crate::store::{Database, DatabaseOptions, Identity, Store, StoreError};

/// Counter: rows written. Label `db_collection_name`.
const ROWS: &str = "taskrunning_rows_total";
/// Counter: dead letters written, by kind. Label `reason`.
const DEAD_LETTERS: &str = "taskrunning_dead_letters_total";

/// How long a question about offsets may take before it is asked again.
const ASK: Duration = Duration::from_secs(10);
/// Longest pause between two tries while the database is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a consumer does, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Topic to read: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic to write what cannot be stored
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// Part to store (repeatable; default all): each part has stored offsets of its own, so parts can run as groups of their own
    #[arg(long = "part", value_name = "PART", value_enum)]
    pub parts: Vec<Part>,

    /// Consumer group; its consumers share the partitions [default: task-running-info-consumer, followed by the parts if not all]
    #[arg(long, env = "CONSUMER_GROUP")]
    pub group: Option<String>,

    /// Name of this instance, unique in the group and the same after a restart: makes it a static member
    #[arg(long, env = "CONSUMER_INSTANCE_ID", value_name = "ID")]
    pub instance_id: Option<String>,

    /// Commit at the latest so long after a transaction's first event
    #[arg(
        long,
        env = "CONSUMER_COMMIT_INTERVAL_MS",
        value_name = "MS",
        default_value_t = 50
    )]
    pub commit_interval_ms: u64,

    /// Commit at the latest after so many events
    #[arg(long, env = "CONSUMER_MAX_EVENTS", value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_events: u32,

    /// Commit at the latest after so many bytes of events
    #[arg(long, env = "CONSUMER_MAX_BYTES", value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_bytes: u32,
}

impl Config {
    /// The parts to store, each once, in a fixed order.
    fn parts(&self) -> Vec<Part> {
        Part::ALL
            .into_iter()
            .filter(|part| self.parts.is_empty() || self.parts.contains(part))
            .collect()
    }

    fn group(&self) -> String {
        let parts = self.parts();
        match &self.group {
            Some(group) => group.clone(),
            None if parts.len() == Part::ALL.len() => "task-running-info-consumer".to_owned(),
            None => {
                let names: Vec<_> = parts.iter().map(|part| part.as_str()).collect();
                format!("task-running-info-consumer-{}", names.join("-"))
            }
        }
    }
}

/// Stores events until `shutdown` is cancelled; then stores what was read and leaves the group.
///
/// # Errors
/// What a retry does not cure: a topic, a table or a right is missing, a setting is wrong, the
/// stored position is not in the topic, the database belongs to another cluster.
pub async fn run(
    config: Config,
    kafka: KafkaOptions,
    database: DatabaseOptions,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let database = Database::parse(&database)?;
    let Some(cluster) = kafka.cluster(&shutdown).await? else {
        return Ok(());
    };
    cluster.require_topic(&config.events_topic).await?;
    let instance = config
        .instance_id
        .clone()
        .unwrap_or_else(|| format!("pid {}", std::process::id()));
    let letters = Letters::connect(&kafka, &cluster, &config.dead_letters_topic, instance).await?;

    let waiting = Waiting {
        health: &health,
        shutdown: &shutdown,
        place: database.place(),
    };
    let Some(store) = waiting.open(&database).await? else {
        return Ok(());
    };
    let (parts, group_id) = (config.parts(), config.group());
    let subscription = Subscription::join(
        &kafka,
        &config.events_topic,
        &group_id,
        config.instance_id.as_deref(),
        health.clone(),
    )?;
    tracing::info!(
        cluster = cluster.id,
        group = group_id,
        "storing {} of {} in {}",
        parts
            .iter()
            .map(|part| part.as_str())
            .collect::<Vec<_>>()
            .join(", "),
        config.events_topic,
        database.place()
    );
    let identity = Identity {
        topic: config.events_topic.clone(),
        cluster_id: cluster.id,
        group_id,
    };
    let mut entrance = Entrance {
        config,
        parts,
        identity,
        waiting,
        store,
        letters,
        positions: Positions::new(),
        batch: Batch::default(),
    };
    let stored = entrance.store_until_shutdown(&subscription).await;
    subscription.leave().await;
    stored?;
    tracing::info!("stopped; all that was read is stored, or will be read again");
    Ok(())
}

/// Waiting for a database that is away.
struct Waiting<'a> {
    health: &'a Health,
    shutdown: &'a CancellationToken,
    place: String,
}

impl Waiting<'_> {
    /// Migrates and opens the database; `None` when shut down while it was away.
    async fn open(&self, database: &Database) -> anyhow::Result<Option<Store>> {
        let mut pause = Pause::default();
        loop {
            let opened = match database.migrate().await {
                Ok(()) => database.open().await,
                Err(error) => Err(error),
            };
            match opened {
                Ok(store) => return Ok(Some(store)),
                Err(error) => {
                    if !self.again(&mut pause, error).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Whether to try again: after a pause for an error that passes; `false` when shut down.
    ///
    /// # Errors
    /// If the error does not pass.
    async fn again(&self, pause: &mut Pause, error: StoreError) -> anyhow::Result<bool> {
        let StoreError::Retry(error) = error else {
            return Err(NeedsAttention(format!("{} refuses: {error}", self.place)).into());
        };
        if pause.tries == 0 {
            tracing::warn!(
                "{} is away or busy, trying again until it answers: {error}",
                self.place
            );
        }
        self.health.waiting_for(format!("{}: {error}", self.place));
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(false),
            () = sleep(pause.next()) => Ok(true),
        }
    }
}

/// Pauses that double up to [`LONGEST_PAUSE`].
#[derive(Default)]
struct Pause {
    tries: u32,
}

impl Pause {
    fn next(&mut self) -> Duration {
        self.tries += 1;
        Duration::from_millis(50 << self.tries.min(10)).min(LONGEST_PAUSE)
    }
}

struct Entrance<'a> {
    config: Config,
    parts: Vec<Part>,
    identity: Identity,
    waiting: Waiting<'a>,
    store: Store,
    letters: Letters,
    /// Of the assigned partitions, as the database had them last.
    positions: Positions,
    batch: Batch,
}

impl Entrance<'_> {
    async fn store_until_shutdown(&mut self, subscription: &Subscription) -> anyhow::Result<()> {
        let commit_interval = Duration::from_millis(self.config.commit_interval_ms);
        let deadline = sleep_until(Instant::now());
        tokio::pin!(deadline);
        loop {
            let next = tokio::select! {
                biased;
                () = self.waiting.shutdown.cancelled() => {
                    return self.flush(subscription).await;
                }
                () = &mut deadline, if !self.batch.is_empty() => {
                    self.flush(subscription).await?;
                    continue;
                }
                next = subscription.next() => next?,
            };
            match next {
                Next::Record(record) => {
                    if self.batch.is_empty() {
                        deadline.as_mut().reset(Instant::now() + commit_interval);
                    }
                    self.take(&record).await?;
                    if self.batch.records >= self.config.max_events as usize
                        || self.batch.bytes >= self.config.max_bytes as usize
                    {
                        self.flush(subscription).await?;
                    }
                }
                Next::Assigned(partitions) => {
                    self.flush(subscription).await?;
                    self.begin_partitions(subscription, partitions).await?;
                }
                Next::Revoked { partitions, lost } => {
                    if lost {
                        tracing::warn!(
                            "partitions were lost to another consumer; what it stored meanwhile is not stored again"
                        );
                    }
                    // Even lost ones are tried: the fence decides.
                    self.flush(subscription).await?;
                    for partition in partitions.elements() {
                        self.positions
                            .retain(|(_, known), _| *known != partition.partition());
                    }
                    subscription.release(&partitions)?;
                }
            }
        }
    }

    /// Takes a record into the batch, unless all its parts are stored.
    async fn take(&mut self, record: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        let (partition, offset) = (record.partition(), record.offset());
        // A seek takes effect after a while, and parts can stand at different offsets.
        let stored = |part: &Part| {
            self.positions
                .get(&(*part, partition))
                .is_some_and(|next| offset < *next)
        };
        if self.parts.iter().all(stored) {
            return Ok(());
        }
        let value = record.payload();
        let anchor = Anchor {
            offset,
            timestamp_ms: record.timestamp().to_millis().unwrap_or(-1),
            crc32: crc32fast::hash(value.unwrap_or_default()),
        };
        let rows = match rows(value, partition, offset) {
            Ok(rows) => Some(rows),
            Err(reject) => {
                tracing::warn!(
                    topic = record.topic(),
                    partition,
                    offset,
                    reason = reject.kind,
                    "dead letter: {}",
                    reject.message
                );
                self.letters.send(record, &reject).await?;
                metrics::counter!(
                    names::SENT,
                    &messaging("send", &self.config.dead_letters_topic)
                )
                .increment(1);
                metrics::counter!(DEAD_LETTERS, "reason" => reject.kind).increment(1);
                None
            }
        };
        self.batch
            .push(partition, anchor, value.map_or(0, <[u8]>::len), rows);
        Ok(())
    }

    /// Writes the batch. While the database is away it waits and tries again; when another owner
    /// moved on it drops the batch and goes back to what the database says.
    async fn flush(&mut self, subscription: &Subscription) -> anyhow::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let mut pause = Pause::default();
        loop {
            let begun = Instant::now();
            let written = self
                .store
                .write(&self.batch, &self.parts, &self.positions, &self.identity)
                .await;
            metrics::histogram!(names::DB_OPERATION_DURATION, "db_system_name" => self.store.system())
                .record(begun.elapsed());
            match written {
                Ok(written) => {
                    for (part, rows) in written {
                        metrics::counter!(ROWS, "db_collection_name" => part.table())
                            .increment(rows);
                    }
                    break;
                }
                Err(StoreError::Fenced(advance)) => {
                    tracing::warn!("{}", StoreError::Fenced(advance));
                    return self.go_back(subscription).await;
                }
                Err(error) => {
                    if !self.waiting.again(&mut pause, error).await? {
                        // Not written, so not moved on: read again after the next start.
                        self.batch = Batch::default();
                        return Ok(());
                    }
                }
            }
        }
        if pause.tries > 0 {
            tracing::info!("{} answers again", self.waiting.place);
        }
        self.waiting.health.progressed();

        let batch = std::mem::take(&mut self.batch);
        let topic = &self.config.events_topic;
        metrics::counter!(names::CONSUMED, &messaging("poll", topic))
            .increment(batch.records as u64);
        let mut committed = TopicPartitionList::new();
        for (partition, next) in batch.next_offsets() {
            for part in &self.parts {
                let stored = self.positions.entry((*part, partition)).or_insert(next);
                *stored = next.max(*stored);
            }
            committed.add_partition_offset(topic, partition, Offset::Offset(next))?;
        }
        // For tools that show lag; never read back, so a failure is no harm.
        if let Err(error) = subscription
            .consumer()
            .commit(&committed, CommitMode::Async)
        {
            tracing::debug!("telling Kafka the offsets: {error}");
        }
        Ok(())
    }

    /// The stored positions, waited for; `None` when shut down meanwhile.
    async fn positions(&mut self) -> anyhow::Result<Option<Positions>> {
        let mut pause = Pause::default();
        loop {
            match self
                .store
                .positions(&self.identity.topic, &self.parts)
                .await
            {
                Ok((positions, clusters)) => {
                    if let Some(other) = clusters
                        .iter()
                        .find(|stored| **stored != self.identity.cluster_id)
                    {
                        return Err(NeedsAttention(format!(
                            "{} holds events of the Kafka cluster {other}, but this one is {}; \
                             give another --database-url or --bootstrap-servers",
                            self.waiting.place, self.identity.cluster_id
                        ))
                        .into());
                    }
                    return Ok(Some(positions));
                }
                Err(error) => {
                    if !self.waiting.again(&mut pause, error).await? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// Starts partitions where the database says.
    async fn begin_partitions(
        &mut self,
        subscription: &Subscription,
        partitions: TopicPartitionList,
    ) -> anyhow::Result<()> {
        let Some(stored) = self.positions().await? else {
            return Ok(());
        };
        let starts = self.starts(&stored, &partitions)?;
        // Taken out of the list, whose elements may not be held over a wait.
        let offsets: Vec<_> = starts
            .elements()
            .iter()
            .map(|start| (start.partition(), start.offset()))
            .collect();
        for (partition, start) in offsets {
            if let Offset::Offset(start) = start {
                self.check_in_log(subscription, partition, start).await?;
            }
        }
        tracing::info!("assigned {starts:?}");
        subscription.assign(&starts)
    }

    /// Takes the partitions' stored positions for its own, and gives where to read on: at the smallest
    /// of the parts, or at the partition's beginning where a part has nothing stored.
    fn starts(
        &mut self,
        stored: &Positions,
        partitions: &TopicPartitionList,
    ) -> anyhow::Result<TopicPartitionList> {
        let mut starts = TopicPartitionList::new();
        for partition in partitions.elements() {
            let partition = partition.partition();
            let of_parts = self
                .parts
                .iter()
                .map(|part| stored.get(&(*part, partition)).copied());
            let start = of_parts
                .collect::<Option<Vec<_>>>()
                .and_then(|offsets| offsets.into_iter().min());
            let start = start.map_or(Offset::Beginning, Offset::Offset);
            starts.add_partition_offset(&self.config.events_topic, partition, start)?;
            self.positions
                .extend(stored.iter().filter(|((_, known), _)| *known == partition));
        }
        Ok(starts)
    }

    /// A stored offset outside the log means that retention passed it, or that this is not the topic
    /// it was stored from.
    async fn check_in_log(
        &self,
        subscription: &Subscription,
        partition: i32,
        start: i64,
    ) -> anyhow::Result<()> {
        let topic = &self.config.events_topic;
        let mut pause = Pause::default();
        let (low, end) = loop {
            match block_in_place(|| {
                subscription
                    .consumer()
                    .fetch_watermarks(topic, partition, ASK)
            }) {
                Ok(watermarks) => break watermarks,
                Err(error) if pause.tries == 0 => {
                    tracing::warn!(
                        "asking for the ends of {topic} partition {partition}, trying again: {error}"
                    );
                }
                Err(_) if self.waiting.shutdown.is_cancelled() => return Ok(()),
                Err(_) => {}
            }
            sleep(pause.next()).await;
        };
        if start < low {
            return Err(NeedsAttention(format!(
                "{topic} partition {partition} begins at offset {low}, but {} has stored up to {start}: the {} offsets between \
                 were removed by retention before they were stored. Nothing was skipped; compare with: \
                 SELECT * FROM consumed_offset",
                self.waiting.place, low - start
            ))
            .into());
        }
        if start > end {
            return Err(NeedsAttention(format!(
                "{topic} partition {partition} ends at offset {end}, but {} has stored up to {start}: the topic was made anew \
                 or cut, or the database belongs to another topic. Nothing was stored; give the database of this topic \
                 by --database-url",
                self.waiting.place
            ))
            .into());
        }
        Ok(())
    }

    /// Drops the batch and reads on from what the database says.
    async fn go_back(&mut self, subscription: &Subscription) -> anyhow::Result<()> {
        self.batch = Batch::default();
        let Some(stored) = self.positions().await? else {
            return Ok(());
        };
        let assigned = subscription
            .consumer()
            .assignment()
            .context("asking for the assignment")?;
        self.positions.clear();
        let back = self.starts(&stored, &assigned)?;
        if back.count() == 0 {
            return Ok(());
        }
        let sought = block_in_place(|| subscription.consumer().seek_partitions(back, ASK))
            .context("going back")?;
        for partition in sought.elements() {
            if let Err(error) = partition.error() {
                bail!(
                    "going back in {} partition {}: {error}",
                    partition.topic(),
                    partition.partition()
                );
            }
        }
        Ok(())
    }
}
