//! `consumer run`: from the events topic into the tables.

mod commits;
mod idle;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::{Reject, topics};
use service::backoff::Backoff;
use service::breaker::{Breaker, BreakerOptions, Tripped};
use service::exit::NeedsAttention;
use service::health::Health;
use service::kafka::{KafkaOptions, NewTopic};
use service::lookup::Lookup;
use service::pause;
use service::registry::RegistryError;
use service::repeats;
use service::rival;
use service::settings::{distinct_topics, host_name, instance_id, topic_name};
use service::subscription::{Next, OutsideTheLog, Subscription};
use service::telemetry::{messaging, names};
use service::topic_id::TopicId;
use service::warn_of_change;
use service::words::counted;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::commits::Commits;
use self::idle::unfinished;
use crate::batch::{Batch, Record, last_read};
use crate::bisect::{Bisection, Found};
use crate::failure::Failure;
use crate::letters::{Letters, MAX_UNSTORED, NotWritten, Refused};
use crate::ownership::Asked;
use crate::positions::Positions;
use crate::rows::Part;
use crate::schema_source::{SchemaSource, schema_source};
use crate::store::{
    Database, DatabaseOptions, End, Identity, StoreError, StoredOffset, Writer, owners,
};
use crate::topic_identity::{OnGap, Recognised, TopicIdentity, id_of, made_anew};

/// Counter: rows written. Label `db_collection_name`.
pub(crate) const ROWS: &str = "taskrunning_rows_total";

/// `/readyz` takes a consumer that has stored nothing for 30 s for one that hangs.
const MAX_COMMIT_INTERVAL_MS: u64 = 20_000;

/// How long Kafka may take to tell the topic's id.
const ASK: Duration = Duration::from_secs(10);

/// What a consumer does, and as whom.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Topic to read: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic to write what cannot be stored
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// Part to store (repeatable; default all): each part has stored offsets of its own, so parts can run as groups of their own
    #[arg(long = "part", value_name = "PART", value_enum)]
    pub parts: Vec<Part>,

    /// Consumer group; its consumers share the partitions [default: task-running-info-consumer, followed by the parts if not all]
    #[arg(long, env = "CONSUMER_GROUP")]
    pub group: Option<String>,

    /// Name of this instance, unique in the group and the same after a restart: makes it a static member
    #[arg(long, env = "CONSUMER_INSTANCE_ID", value_name = "ID", value_parser = instance_id)]
    pub instance_id: Option<String>,

    /// Commit at the latest so long after a transaction's first event; what is read while the database is at work makes up the next one
    #[arg(
        long,
        env = "CONSUMER_COMMIT_INTERVAL_MS",
        value_name = "MS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(..=MAX_COMMIT_INTERVAL_MS)
    )]
    pub commit_interval_ms: u64,

    /// Commit at the latest after so many events
    #[arg(long, env = "CONSUMER_MAX_EVENTS", value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_events: u32,

    /// Commit at the latest after so many bytes of events
    #[arg(long, env = "CONSUMER_MAX_BYTES", value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_bytes: u32,

    /// What to do where retention removed events before they were stored
    #[arg(long, env = "ON_GAP", value_enum, value_name = "WHAT", default_value_t = OnGap::Fail)]
    pub on_gap: OnGap,

    /// When many events are unusable
    #[command(flatten)]
    pub breaker: BreakerOptions,

    /// Folder of .avsc files of versions newer than this program, so that it reads what newer routers write
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

impl Config {
    /// The parts to store, each once, in a fixed order.
    fn parts(&self) -> Vec<Part> {
        Part::ALL
            .into_iter()
            .filter(|part| self.parts.is_empty() || self.parts.contains(part))
            .collect()
    }

    fn is_full(&self, batch: &Batch) -> bool {
        batch.records().len() >= self.max_events as usize
            || batch.bytes() >= self.max_bytes as usize
    }

    /// What dead letters and their transactions name as their writer: another one for each process
    /// where no instance id is given.
    fn instance(&self) -> String {
        self.instance_id.clone().unwrap_or_else(|| {
            let started = jiff::Timestamp::now().as_microsecond();
            format!("{}-{}-{started}", host_name(), std::process::id())
        })
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
/// While the database or Kafka is away it waits, as a member of its group.
///
/// # Errors
/// What a retry does not cure: a topic, a table or a right is missing, a setting is wrong, the
/// stored position is not in the topic, the topic or the database is another one than it was, too
/// many events are unusable.
pub async fn run(
    config: Config,
    kafka: KafkaOptions,
    database: DatabaseOptions,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    distinct_topics(&[
        ("--events-topic", &config.events_topic),
        ("--dead-letters-topic", &config.dead_letters_topic),
    ])?;
    let schemas = schema_source(config.schemas.as_deref(), &kafka)?;
    let database = Database::parse(&database)?;
    let Some(cluster) = kafka.cluster(&shutdown).await? else {
        return Ok(());
    };
    let make = NewTopic::with(topics::EVENTS_SETTINGS);
    cluster
        .require_topic(&config.events_topic, "Read", Some(make))
        .await?;
    let make = NewTopic {
        carries: Some(&config.events_topic),
        ..NewTopic::with(topics::DEAD_LETTERS_SETTINGS)
    };
    cluster
        .require_topic(&config.dead_letters_topic, "Write", Some(make))
        .await?;
    cluster.refuse_compaction(&config.events_topic).await?;
    cluster
        .refuse_compaction(&config.dead_letters_topic)
        .await?;
    let (parts, group_id) = (config.parts(), config.group());
    let letters = Letters::start(
        &kafka,
        &config.dead_letters_topic,
        &group_id,
        config.instance(),
        &shutdown,
    );
    let Some(letters) = letters.await? else {
        return Ok(());
    };
    let cluster_id = cluster.id.clone();
    drop(cluster); // nobody listens any more to what its client says of itself
    let Some(store) = open(&database, &health, &shutdown).await? else {
        return Ok(());
    };
    let lookup = Lookup::connect(&kafka, &config.events_topic)?;
    let subscription = Subscription::join(
        &kafka,
        &config.events_topic,
        &group_id,
        config.instance_id.as_deref(),
        health.clone(),
    )?;
    tracing::info!(
        cluster = cluster_id,
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
    let mut entrance = Entrance {
        schemas,
        identity: Identity {
            topic: config.events_topic.clone(),
            cluster_id,
            topic_id: None,
            group_id,
        },
        breaker: Breaker::new(config.breaker),
        piece: config.max_events as usize,
        in_halves: true,
        config: &config,
        parts,
        place: database.place(),
        health: &health,
        subscription: &subscription,
        lookup,
        store,
        letters,
        stored: 0,
        positions: Positions::default(),
        unnamed: BTreeSet::new(),
        lows: BTreeMap::new(),
        commits: Commits::default(),
        next_look: Instant::now() + idle::EVERY,
        topic_id: None,
        without_id: false,
        unstarted: BTreeSet::new(),
        batch: Batch::default(),
        begun: Instant::now(),
        ahead: Batch::default(),
        ahead_begun: Instant::now(),
        met: None,
        outage: None,
    };
    let stored = tokio::select! {
        stored = entrance.store_until(&shutdown) => stored,
        never = subscription.watch_topic_id() => match never {},
    };
    entrance.settle_commits().await;
    drop(entrance);
    subscription.leave().await;
    if let Err(error) = stored {
        let identity = rival::Identity {
            group: &config.group(),
            instance_id: config.instance_id.as_deref(),
            has_client_id: false, // consumers of one host share it
        };
        return rival::look_for(error, &kafka, identity, &health, &shutdown).await;
    }
    tracing::info!("stopped; all that was read is stored, or will be read again");
    Ok(())
}

/// Migrates and opens the database, waiting while it is away; `None` when shut down meanwhile.
///
/// # Errors
/// If waiting does not help.
pub(crate) async fn open(
    database: &Database,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Box<dyn Writer>>> {
    let mut backoff = Backoff::default();
    health.waiting_for(format!("{}: to be opened", database.place()));
    loop {
        let opened = async {
            database.migrate().await?;
            database.open().await
        };
        let opened = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            opened = opened => opened,
        };
        let place = database.place();
        match opened.map_err(|error| Failure::of(error, &place)) {
            Ok(store) => {
                health.answered();
                return Ok(Some(store));
            }
            Err(Failure::Exit(error)) => return Err(error),
            Err(Failure::Retry(what)) => {
                warn_of_change!("waiting for {what}");
                health.waiting_for(what);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = sleep(backoff.pause()) => {}
        }
    }
}

/// A time in which nothing can be stored.
struct Outage {
    backoff: Backoff,
    next_try: Instant,
}

struct Entrance<'a> {
    schemas: SchemaSource,
    config: &'a Config,
    parts: Vec<Part>,
    identity: Identity,
    /// Where the database is.
    place: String,
    health: &'a Health,
    subscription: &'a Subscription,
    lookup: Lookup,
    store: Box<dyn Writer>,
    letters: Letters,
    breaker: Breaker,
    /// Events stored since the start.
    stored: u64,
    /// Of the assigned partitions, as the database had them last.
    positions: Positions,
    /// What is stored of them without the topic's id, which is known by now.
    unnamed: BTreeSet<(Part, i32)>,
    /// The first offset of their logs, as it was when they were begun: where nothing was stored they begin
    /// there.
    lows: BTreeMap<i32, i64>,
    /// What Kafka was told of them.
    commits: Commits<'a>,
    /// When to look at the positions again.
    next_look: Instant,
    /// What the topic is recognised by; `None`: not known yet, or not told.
    topic_id: Option<TopicId>,
    /// It was said that the id is not told.
    without_id: bool,
    /// Assigned partitions of which it is not known yet where to begin.
    unstarted: BTreeSet<i32>,
    batch: Batch,
    /// When the batch's first record was read.
    begun: Instant,
    /// What was read while the database was at work.
    ahead: Batch,
    /// When the first of it was read.
    ahead_begun: Instant,
    /// What was met then that is no record: it is dealt with next.
    met: Option<anyhow::Result<Next<'a>>>,
    /// At most so many records are stored at once: fewer where the database is too slow for all.
    piece: usize,
    /// Not after a half has failed, until something is stored: alone it is told what to do about it.
    in_halves: bool,
    outage: Option<Outage>,
}

impl Entrance<'_> {
    async fn store_until(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        loop {
            if shutdown.is_cancelled() {
                // One try: what cannot be stored now is read again after the next start.
                if self.outage.is_some() {
                    return Ok(());
                }
                self.work().await?;
                self.store.is_in_place().await.map_err(|error| {
                    anyhow::anyhow!(
                        "{}: {error}; the next start goes on from what is stored in the one that is there then",
                        self.place
                    )
                })?;
                return match self.outage {
                    None => self.look().await,
                    Some(_) => Ok(()),
                };
            }
            let next = match (self.met.take(), self.due()) {
                (Some(met), _) => self.known(met).await?,
                (None, Some(due)) if due <= Instant::now() => {
                    self.work().await?;
                    self.look_if_due().await?;
                    continue;
                }
                (None, due) => tokio::select! {
                    biased;
                    () = shutdown.cancelled() => continue,
                    () = pause::until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        self.take_waiting();
                        self.work().await?;
                        self.look_if_due().await?;
                        continue;
                    }
                    next = self.subscription.next() => self.known(next).await?,
                    // While there are records it comes after they are stored.
                    () = sleep_until(self.next_look) => {
                        self.look().await?;
                        continue;
                    }
                },
            };
            match next {
                None => {}
                Some(Next::Record(record)) => {
                    self.take(Record::read(&self.schemas.decoder, &record));
                    if self.is_full() {
                        self.work().await?;
                        self.look_if_due().await?;
                    }
                }
                Some(Next::Assigned(partitions)) => self.begin(&partitions).await?,
                Some(Next::Revoked { partitions, lost }) => {
                    if lost {
                        tracing::warn!(
                            "partitions were lost to another consumer; what it stored meanwhile is not stored again"
                        );
                    }
                    // What can be finished is kept. Even lost ones are tried: the fence decides.
                    if self.outage.is_none() {
                        self.work().await?;
                    }
                    if self.outage.is_none() && !lost {
                        self.look().await?;
                    }
                    if !lost {
                        self.settle_commits().await;
                    }
                    self.forget(&partitions);
                    self.subscription.release(&partitions)?;
                }
            }
        }
    }

    /// What was met; an error by its cause, where that is a topic that was made anew, or a log that does not
    /// hold the position any more. `None`: it was dealt with.
    async fn known<'n>(
        &mut self,
        met: anyhow::Result<Next<'n>>,
    ) -> anyhow::Result<Option<Next<'n>>> {
        let error = match met {
            Ok(next) => return Ok(Some(next)),
            Err(error) => error,
        };
        if self.topic_id.is_some() {
            // What it answers is compared below.
            let _ = self.subscription.topic_id(ASK).await;
            self.is_the_topic().map_err(Failure::into_error)?;
        }
        if !error.is::<OutsideTheLog>() {
            return Err(error);
        }
        tracing::warn!("{error:#}");
        if self.outage.is_none() {
            self.work().await?;
        }
        // As after a start, `--on-gap` says what comes next.
        match self.go_back().await {
            Ok(()) => Ok(None),
            Err(Failure::Retry(what)) => self.wait_for(what).map(|()| None),
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    /// Takes the records that are there, as many as make a batch.
    fn take_waiting(&mut self) {
        while !self.is_full() {
            match self.subscription.waiting().transpose() {
                None => break,
                Some(Ok(Next::Record(record))) => {
                    self.take(Record::read(&self.schemas.decoder, &record));
                }
                other => {
                    self.met = other;
                    break;
                }
            }
        }
    }

    /// When there is something to do, whatever else happens.
    fn due(&self) -> Option<Instant> {
        if let Some(outage) = &self.outage {
            return Some(outage.next_try);
        }
        if self.batch.records().is_empty() {
            return None;
        }
        let commit_interval = Duration::from_millis(self.config.commit_interval_ms);
        // A run of rejects is not stored before it is known to be a short one.
        let patience = match self.undecided() {
            true => commit_interval.max(Breaker::PATIENCE),
            false => commit_interval,
        };
        Some(self.begun + patience)
    }

    fn is_full(&self) -> bool {
        self.config.is_full(&self.batch) && !self.undecided() && self.outage.is_none()
    }

    /// Whether the batch ends with rejects, of which what comes next tells whether they are few or many.
    fn undecided(&self) -> bool {
        let rejects = self.batch.rejects_at_end();
        let all = rejects == self.batch.records().len();
        self.breaker.would_be_undecided(rejects, all)
    }

    /// Whether all parts of a record are stored.
    fn is_stored(&self, partition: i32, offset: i64) -> bool {
        // Parts can stand at different offsets.
        self.parts.iter().all(|part| {
            let next = self.positions.get(&(*part, partition));
            next.is_some_and(|next| offset < *next)
        })
    }

    /// Takes a record into the batch, unless all its parts are stored: a seek takes effect after a while.
    fn take(&mut self, record: Record) {
        let (partition, offset) = (record.partition, record.anchor.offset);
        if self.unstarted.contains(&partition) || self.is_stored(partition, offset) {
            return;
        }
        if self.batch.records().is_empty() {
            self.begun = Instant::now();
        }
        self.batch.push(record);
    }

    /// Judges the first `count` records, of each of which it is known what becomes of it.
    ///
    /// # Errors
    /// If too many are rejects.
    fn judge(&mut self, count: usize) -> anyhow::Result<()> {
        self.breaker.take_back();
        (0..count).try_for_each(|place| self.judge_next(place))
    }

    /// Judges the record at this place, after all those before it.
    ///
    /// # Errors
    /// If it is one reject too many.
    fn judge_next(&mut self, place: usize) -> anyhow::Result<()> {
        match &self.batch.records()[place].event {
            Ok(_) => {
                self.breaker.accept();
                Ok(())
            }
            Err(_) => {
                let judged = self.breaker.reject();
                judged.map_err(|tripped| self.too_many(tripped, place))
            }
        }
    }

    /// Why the consumer stops at the reject at this place.
    fn too_many(&self, tripped: Tripped, place: usize) -> anyhow::Error {
        let (records, topic) = (self.batch.records(), &self.config.events_topic);
        let record = &records[place];
        let (partition, offset) = (record.partition, record.anchor.offset);
        let why = record.event.as_ref().err();
        let mut of_partition = records
            .iter()
            .filter(|record| record.partition == partition);
        let first = of_partition
            .next()
            .map_or(offset, |record| record.anchor.offset);
        NeedsAttention(format!(
            "{tripped} ({}), the last one {topic} partition {partition} offset {offset}: {}. {}. Since its start this \
             consumer stored {} and wrote {}; of partition {partition} nothing is stored from offset \
             {first} on. Is it the wrong --events-topic or --database-url, has a table a rule of its own, or does the \
             router write with another schema? Correct it and start again, or let them become dead letters with a \
             higher limit",
            tripped.option(),
            why.map_or("", |reject| &reject.message),
            tripped.letters(&self.config.dead_letters_topic),
            counted(self.stored, "event"),
            counted(self.letters.count, "dead letter"),
        ))
        .into()
    }

    /// Does what is due, as far as that is possible now.
    ///
    /// # Errors
    /// If something is in the way that does not pass by itself.
    async fn work(&mut self) -> anyhow::Result<()> {
        let done = async {
            self.start_partitions().await?;
            self.store_batch().await?;
            if self.outage.is_some() {
                self.stored().await?;
            }
            Ok(())
        };
        match done.await {
            Ok(()) => self.answered(),
            Err(Failure::Retry(what)) => self.wait_for(what),
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    /// Something is away: nothing more is read until it answers, but the group is kept.
    fn wait_for(&mut self, what: String) -> anyhow::Result<()> {
        warn_of_change!("waiting for {what}");
        let outage = match &mut self.outage {
            Some(outage) => outage,
            None => {
                self.subscription.pause()?;
                self.outage.insert(Outage {
                    backoff: Backoff::default(),
                    next_try: Instant::now(),
                })
            }
        };
        outage.next_try = Instant::now() + outage.backoff.pause();
        self.health.waiting_for(what);
        Ok(())
    }

    fn answered(&mut self) -> anyhow::Result<()> {
        if self.outage.take().is_some() {
            let after = repeats::end(module_path!());
            tracing::info!("what was waited for answers again, {after}");
            self.health.answered();
            self.subscription.resume()?;
        }
        Ok(())
    }

    /// Begins with assigned partitions, where the database says; where it does not answer, they are
    /// taken at once all the same, so that the group need not wait for it.
    async fn begin(&mut self, partitions: &TopicPartitionList) -> anyhow::Result<()> {
        let numbers: BTreeSet<i32> = partitions
            .elements()
            .iter()
            .map(|p| p.partition())
            .collect();
        let starts = match self.outage {
            None => self.starts(&numbers).await,
            Some(_) => Err(Failure::Retry(self.place.clone())),
        };
        let topic = &self.config.events_topic;
        match starts {
            Ok(starts) => {
                tracing::info!("assigned {starts:?}");
                let mut list = TopicPartitionList::new();
                for (partition, start) in starts {
                    list.add_partition_offset(topic, partition, start)?;
                }
                self.subscription.assign(&list)
            }
            Err(Failure::Retry(what)) => {
                let mut list = TopicPartitionList::new();
                for partition in &numbers {
                    list.add_partition_offset(topic, *partition, Offset::Beginning)?;
                }
                self.subscription.assign(&list)?;
                self.unstarted.extend(numbers);
                self.subscription.pause()?;
                self.wait_for(what)
            }
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    /// Goes to where partitions begin that could not be begun with.
    async fn start_partitions(&mut self) -> Result<(), Failure> {
        if self.unstarted.is_empty() {
            return Ok(());
        }
        let starts = self.starts(&self.unstarted.clone()).await?;
        tracing::info!("reading on from {starts:?}");
        self.subscription.seek(&starts).map_err(Failure::kafka)?;
        self.unstarted.clear();
        Ok(())
    }

    /// What the database has of the topic.
    async fn stored(&mut self) -> Result<Vec<StoredOffset>, Failure> {
        let asked = self.store.stored().await;
        let stored = asked.map_err(|error| Failure::of(error, &self.place))?;
        let asked = Asked {
            topic: &self.identity.topic,
            cluster_id: Some(&self.identity.cluster_id),
            place: &self.place,
            option: "--database-url",
        };
        asked.check(&owners(&stored)).map_err(anyhow::Error::from)?;
        Ok(stored)
    }

    /// Asks for the topic's id.
    async fn learn_topic_id(&mut self) -> Result<(), Failure> {
        let topic = &self.config.events_topic;
        match id_of(topic, self.subscription.topic_id(ASK).await)? {
            Ok(id) => {
                let known = *self.topic_id.get_or_insert(id);
                self.identity.topic_id = Some(known.to_string());
                self.letters.topic_id = self.identity.topic_id.clone();
            }
            Err(reason) => {
                if !std::mem::replace(&mut self.without_id, true) {
                    tracing::warn!(
                        "the id of {topic} is not told: {reason}. The topic is recognised by its last stored records alone"
                    );
                }
            }
        }
        self.is_the_topic()
    }

    /// Whether the topic is still the one that this began with: asked before anything is stored of it.
    fn is_the_topic(&self) -> Result<(), Failure> {
        let other = |id| Some((id, self.subscription.other_topic_id(id)?));
        match self.topic_id.and_then(other) {
            None => Ok(()),
            Some((id, other)) => Err(made_anew(
                &self.config.events_topic,
                &other.to_string(),
                &id.to_string(),
                &self.place,
                "--database-url",
            )),
        }
    }

    /// Where to begin with these partitions: at the smallest of the parts' stored offsets, or at the
    /// partition's beginning where a part has nothing stored. Takes the stored offsets for its own.
    async fn starts(
        &mut self,
        partitions: &BTreeSet<i32>,
    ) -> Result<BTreeMap<i32, Offset>, Failure> {
        self.learn_topic_id().await?;
        let mut stored = self.stored().await?;
        let identity = TopicIdentity {
            subscription: self.subscription,
            lookup: &self.lookup,
            parts: &self.parts,
            id: self.topic_id,
            place: &self.place,
            on_gap: self.config.on_gap,
        };
        let Recognised { low, committed } = identity.recognise(partitions, &stored)?;
        self.letters.take_over(&committed);
        stored.retain(|offset| {
            partitions.contains(&offset.partition) && self.parts.contains(&offset.part)
        });

        let mut starts = BTreeMap::new();
        self.commits.take_over(&committed);
        for &partition in partitions {
            self.positions.retain(|(_, known), _| *known != partition);
            self.unnamed.retain(|(_, known)| *known != partition);
            let of_partition = stored.iter().filter(|offset| offset.partition == partition);
            self.positions.extend(
                of_partition
                    .clone()
                    .map(|offset| ((offset.part, partition), offset.next_offset)),
            );
            let unnamed = of_partition
                .clone()
                .filter(|offset| offset.topic_id.is_none());
            if self.topic_id.is_some() {
                self.unnamed
                    .extend(unnamed.map(|offset| (offset.part, partition)));
            }
            let start = match of_partition.clone().count() == self.parts.len() {
                true => of_partition.map(|offset| offset.next_offset).min(),
                false => None,
            };
            // Beyond a gap, if there is one.
            let low = low.get(&partition).copied().unwrap_or_default();
            self.lows.insert(partition, low);
            let start = start.map_or(Offset::Beginning, |start| Offset::Offset(start.max(low)));
            starts.insert(partition, start);
        }
        Ok(starts)
    }

    /// Writes the batch, and takes what was read meanwhile for the next one.
    async fn store_batch(&mut self) -> Result<(), Failure> {
        if self.learn_schemas().await? && self.undecided() {
            // What comes next tells whether these rejects are few or many.
            self.begun = Instant::now();
            return Ok(());
        }
        let stored = self.store_records(self.batch.records().len()).await;
        if self.batch.records().is_empty() {
            self.begun = self.ahead_begun;
        }
        let begun = self.begun;
        for record in self.ahead.take() {
            self.take(record);
        }
        self.begun = begun;
        stored
    }

    /// Asks the schema registry for the ids of this batch that are not known yet, and reads their
    /// records. Gives whether any became a reject.
    async fn learn_schemas(&mut self) -> Result<bool, Failure> {
        let (mut rejected, mut from) = (false, 0);
        while let Some((place, id)) = self.batch.unread(from) {
            let record = &self.batch.records()[place];
            let value = record.event.as_deref().ok();
            if self.schemas.decoder.unknown_id(value).is_some() {
                match self.schemas.schema(id).await {
                    Ok(schema) => self.schemas.decoder.learn_id(id, schema.as_deref()),
                    Err(RegistryError::Away(what)) => return Err(Failure::Retry(what)),
                    Err(RegistryError::Refused(why)) => {
                        return Err(Failure::Exit(NeedsAttention(why).into()));
                    }
                }
            }
            self.batch.read(place, &self.schemas.decoder);
            rejected |= self.batch.records()[place].event.is_err();
            from = place;
        }
        Ok(rejected)
    }

    /// Writes the first `left` records, in as few transactions as the database takes. What holds dead
    /// letters is tried first, so that it is known what becomes of each record, and all of them are
    /// judged, before a letter is written.
    async fn store_records(&mut self, mut left: usize) -> Result<(), Failure> {
        // So many of the first were tried and judged.
        let mut judged = 0;
        while left > 0 {
            self.is_the_topic()?;
            let (count, end) = self.next_piece(left, judged);
            if end != End::RollBack {
                self.write_letters(count).await?;
            }
            let begun = Instant::now();
            let written = self.write(0..count, end).await;
            metrics::histogram!(names::DB_OPERATION_DURATION, "db_system_name" => self.store.system())
                .record(begun.elapsed());
            match written {
                Ok(_) if end == End::RollBack => {
                    self.judge(count)?;
                    judged = count;
                }
                Ok(rows) => {
                    self.count(count, rows);
                    self.judge(count)?;
                    self.breaker.settle();
                    self.moved_on(count)?;
                    self.in_halves = true;
                    (left, judged) = (left - count, judged.saturating_sub(count));
                }
                Err(StoreError::Half {
                    reason,
                    stored,
                    rows,
                }) => {
                    warn_of_change!(
                        "{}: {reason}; {stored} of {} are stored, the others are read again",
                        self.place,
                        counted(count, "event")
                    );
                    self.count(stored, rows);
                    self.in_halves = false;
                    let tried = self.batch.take();
                    self.go_back().await?;
                    self.judge_stored(&tried[..count]);
                    return Ok(());
                }
                Err(fenced @ StoreError::Fenced(_)) => {
                    warn_of_change!("{fenced}");
                    return self.go_back().await;
                }
                Err(replaced @ StoreError::Replaced(_)) => return self.find_place(replaced).await,
                Err(StoreError::TooLong(reason)) if count > 1 => {
                    self.piece = count / 2;
                    let slow = format!(
                        "{}: {reason}; storing at most {} at once",
                        self.place,
                        counted(self.piece, "event")
                    );
                    warn_of_change!("{slow}");
                    self.health.waiting_for(slow);
                }
                Err(StoreError::Refused(message)) => {
                    judged = 0;
                    let found = self.find_refused(count, message).await?;
                    if found && self.undecided() {
                        // What comes next tells whether these are few or many.
                        self.begun = Instant::now();
                        return Ok(());
                    }
                }
                Err(error) => return Err(Failure::of(error, &self.place)),
            }
        }
        Ok(())
    }

    /// How many of the first `left` records to write at once, of which `judged` are judged, and how it
    /// ends: as many as the database takes in time. What holds rejects that are not judged is only
    /// tried; of the judged ones as many as the group's offsets can tell about letters.
    fn next_piece(&self, left: usize, judged: usize) -> (usize, End) {
        let count = if judged > 0 { judged } else { left };
        let records = &self.batch.records()[..count.min(self.piece)];
        let rejects = records
            .iter()
            .enumerate()
            .filter(|(_, record)| record.event.is_err());
        let mut rejects = rejects.map(|(place, _)| place);
        let end = match self.in_halves {
            true => End::CommitHalves,
            false => End::Commit,
        };
        match judged > 0 {
            true => (rejects.nth(MAX_UNSTORED).unwrap_or(records.len()), end),
            false if rejects.next().is_some() => (records.len(), End::RollBack),
            false => (records.len(), end),
        }
    }

    /// Judges those of these records, which are not in the batch any more, that are stored.
    fn judge_stored(&mut self, records: &[Record]) {
        for record in records {
            if !self.is_stored(record.partition, record.anchor.offset) {
                continue;
            }
            match &record.event {
                Ok(_) => self.breaker.accept(),
                // Should it be one too many, the next one will be so too.
                Err(_) => {
                    let _ = self.breaker.reject();
                }
            }
        }
        self.breaker.settle();
    }

    /// Writes these records of the batch, and reads on meanwhile, as much as makes another batch.
    async fn write(
        &mut self,
        records: Range<usize>,
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        let batch = &self.batch;
        let records = &batch.records()[records];
        let mut look = Instant::now() + idle::EVERY;
        let written = self
            .store
            .write(records, &self.parts, &self.positions, &self.identity, end);
        tokio::pin!(written);
        loop {
            let reads_on = self.met.is_none() && !self.config.is_full(&self.ahead);
            tokio::select! {
                biased;
                written = &mut written => return written,
                next = self.subscription.next(), if reads_on => match next {
                    Ok(Next::Record(record)) => {
                        if self.ahead.records().is_empty() {
                            self.ahead_begun = Instant::now();
                        }
                        self.ahead.push(Record::read(&self.schemas.decoder, &record));
                    }
                    met => self.met = Some(met),
                },
                () = sleep_until(look) => {
                    look = Instant::now() + idle::EVERY;
                    self.subscription.set_unfinished(unfinished([batch, &self.ahead]));
                }
            }
        }
    }

    /// Writes the letters of the first `count` records.
    async fn write_letters(&mut self, count: usize) -> Result<(), Failure> {
        let is_reject = |record: &Record| record.event.is_err();
        if !self.batch.records()[..count].iter().any(is_reject) {
            return Ok(());
        }
        self.until_answered().await?;
        let records = &self.batch.records()[..count];
        let refused = records.iter().filter_map(|record| {
            let reject = record.event.as_ref().err()?;
            Some(Refused {
                partition: record.partition,
                offset: record.anchor.offset,
                bytes: record.bytes_in_topic,
                reject,
            })
        });
        let refused: Vec<Refused<'_>> = refused.collect();
        // Where nothing is stored yet, everything before the batch has been read all the same.
        let mut stored = BTreeMap::new();
        for record in records {
            stored
                .entry(record.partition)
                .or_insert(record.anchor.offset);
        }
        let rejected: BTreeSet<i32> = refused.iter().map(|event| event.partition).collect();
        stored.retain(|partition, _| rejected.contains(partition));
        for (partition, first) in &mut stored {
            let of_parts = self.parts.iter();
            let of_parts = of_parts.map(|part| self.positions.get(&(*part, *partition)));
            let next = of_parts.map(|next| next.map_or(*first, |next| *next)).min();
            *first = next.unwrap_or(*first);
        }
        let written = self
            .letters
            .write(self.subscription, &self.lookup, &refused, &stored)
            .await;
        match written {
            Ok(()) => Ok(()),
            Err(NotWritten::Yet(what)) => Err(Failure::Retry(format!(
                "the dead letters of {} to be written to {}: {what}",
                self.config.events_topic, self.config.dead_letters_topic
            ))),
            Err(NotWritten::Ever(error)) => Err(Failure::Exit(error)),
        }
    }

    /// Tells the metrics what is stored.
    fn count(&self, events: usize, rows: Vec<(Part, u64)>) {
        let topic = &self.config.events_topic;
        metrics::counter!(names::CONSUMED, &messaging("poll", topic)).increment(events as u64);
        for (part, rows) in rows {
            metrics::counter!(ROWS, "db_collection_name" => part.table().name()).increment(rows);
        }
    }

    /// The first `count` records are stored.
    fn moved_on(&mut self, count: usize) -> Result<(), Failure> {
        let records = &self.batch.records()[..count];
        let events = records.iter().filter(|record| record.event.is_ok());
        self.stored += events.count() as u64;
        let stored = last_read(records);
        self.batch.stored(count);
        self.piece = (self.piece * 2).min(self.config.max_events as usize).max(1);
        self.health.progressed();

        for (&partition, anchor) in &stored {
            let next = anchor.offset + 1;
            for part in &self.parts {
                let stored = self.positions.entry((*part, partition)).or_insert(next);
                *stored = next.max(*stored);
            }
        }
        let finished = stored.iter().map(|(p, anchor)| (*p, anchor.offset + 1));
        self.subscription.set_finished(finished);
        self.commit();
        if self.batch.records().is_empty() && self.ahead.records().is_empty() {
            self.subscription.set_unfinished(BTreeMap::new());
        }
        Ok(())
    }

    /// Finds out by trial which of the first `count` records the database refuses; they become dead
    /// letters. `message` is what it said of all of them. Gives whether any was found: each may be fine
    /// by itself.
    async fn find_refused(&mut self, count: usize, message: String) -> Result<bool, Failure> {
        let (mut found, mut trial) = (false, Bisection::new(count, message));
        // Where too many are refused, the rest need not be tried.
        self.breaker.take_back();
        loop {
            let tried = trial
                .next(async |piece| self.write(piece, End::RollBack).await)
                .await;
            match tried.map_err(|error| Failure::of(error, &self.place))? {
                None => break,
                Some(Found::Accepted(mut places)) => {
                    places.try_for_each(|place| self.judge_next(place))?;
                }
                Some(Found::Refused { place, message }) => {
                    found = true;
                    let reject = Reject {
                        stage: "TASK_PUT",
                        refused_by: "consumer::store",
                        kind: "DatabaseRefused",
                        message: format!("{}: {message}", self.place),
                    };
                    self.batch.reject(place, reject);
                    self.judge_next(place)?;
                }
            }
        }
        if !found {
            self.piece = (count / 2).max(1);
        }
        Ok(found)
    }

    /// The database is not where it was: reads on from what the one in its place says.
    async fn find_place(&mut self, error: StoreError) -> Result<(), Failure> {
        if !matches!(error, StoreError::Replaced(_)) {
            return Err(Failure::of(error, &self.place));
        }
        tracing::warn!(
            "{}: {error}; reading on from what is there now says",
            self.place
        );
        self.health.waiting_for(format!("{}: {error}", self.place));
        self.go_back().await?;
        self.health.answered();
        Ok(())
    }

    /// More is stored than was known: drops the batch and reads on from what the database says.
    async fn go_back(&mut self) -> Result<(), Failure> {
        self.batch.clear();
        self.ahead.clear();
        self.breaker.take_back();
        let assigned = self.subscription.assignment()?;
        self.unstarted = assigned.elements().iter().map(|p| p.partition()).collect();
        self.start_partitions().await
    }

    /// Forgets partitions that go to another owner.
    fn forget(&mut self, partitions: &TopicPartitionList) {
        let partitions: Vec<i32> = partitions
            .elements()
            .iter()
            .map(|p| p.partition())
            .collect();
        self.batch.forget(&partitions);
        self.positions
            .retain(|(_, partition), _| !partitions.contains(partition));
        self.unnamed
            .retain(|(_, partition)| !partitions.contains(partition));
        self.lows
            .retain(|partition, _| !partitions.contains(partition));
        self.commits.forget(&partitions);
        self.letters.forget(&partitions);
        self.unstarted
            .retain(|partition| !partitions.contains(partition));
    }
}
