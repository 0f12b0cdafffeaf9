//! `consumer replay`: the tables of a range of the events topic, rebuilt in another database.
//!
//! ```text
//! range of the topic ──▶ Reader (a thread) ──▶ rows() ──▶ Batch ──▶ Store { offsets, task, histories } in --into
//!                        (no group)            (pure)               one database transaction
//! ```
//!
//! The rows are derived and written as by [`run`](crate::run()), `consumed_offset` included. So what
//! `--into` holds says by itself how far it has come: a replay that was ended in any way goes on there
//! when it is started again, and stores each row once. Before that the target has to be recognised as
//! the beginning of the same range: see [`Target`].

mod progress;
mod range;
mod reading;
mod target;
mod writing;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use schemas::topics;
use service::address::Address;
use service::breaker::{Breaker, BreakerOptions};
use service::exit::{NeedsAttention, WrongUsage};
use service::health::Health;
use service::kafka::{Cluster, KafkaOptions};
use service::lookup::Lookup;
use service::range::{Bound, Reader};
use service::settings::topic_name;
use service::topic_id::TopicId;
use tokio::sync::mpsc;
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::progress::{Account, Progress};
use self::range::range;
use self::reading::Reading;
use self::target::Target;
use self::writing::{Replay, Writing};
use crate::batch::Batch;
use crate::entrance::batch_writer::{BatchWriter, open};
use crate::failure::Failure;
use crate::rows::Part;
use crate::schema_source::schema_source;
use crate::store::{Database, DatabaseOptions, Identity, database_url};
use crate::topic_identity::{id_of, recreated};

/// Stands in `consumed_offset.group_id` of what a replay has stored.
const GROUP: &str = "replay";
/// How often the topic's id is asked for again.
const ID_EVERY: Duration = Duration::from_secs(5);
/// So many records that the database refuses are no bad records, but the wrong tables.
const MAX_REFUSED: BreakerOptions = BreakerOptions {
    max_rejects_in_a_row: 100,
    max_rejects_per_1000: 500,
};

/// What is replayed, and where to.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayOptions {
    /// Topic to read: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Begin at: earliest, offset:PARTITION=OFFSET,… (other partitions are left out), or the first event that was written at a time: 2026-11-25T10:00Z, or -2h back from now
    #[arg(
        long,
        value_name = "BOUND",
        default_value = "earliest",
        allow_hyphen_values = true
    )]
    pub from: Bound,

    /// End before: latest, or as --from; what lies behind an open transaction is left out
    #[arg(
        long,
        value_name = "BOUND",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    pub to: Bound,

    /// Database to rebuild the tables in, as --database-url: an empty one, or one that the same replay has begun
    #[arg(long, value_name = "URL", value_parser = database_url())]
    pub into: Address,

    /// Commit after so many events
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_events: u32,

    /// Commit after so many bytes of events
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_bytes: u32,

    /// Folder of .avsc files of versions newer than this program, so that it reads what newer routers write
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

/// Stores a range of the events topic in another database, or goes on with that; until it is done, or
/// `shutdown` is cancelled. While the database is away it waits. Prints what it did.
///
/// # Errors
/// If Kafka does not answer or no longer holds the range; if the database holds anything else than a
/// beginning of it, or is the one that a consumer stores in; or what a retry does not cure.
pub async fn replay(
    options: ReplayOptions,
    kafka: KafkaOptions,
    database: &DatabaseOptions,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let schemas = schema_source(options.schemas.as_deref(), &kafka)?;
    let into = Database::parse_url("--into", &options.into)?;
    if database.database_url.is_some() && into.is_same(&Database::parse(database)?) {
        return Err(wrong_usage(format!(
            "--into is {}, the database that consumers store in (--database-url): give another one",
            into.place()
        )));
    }
    let Some(cluster) = kafka.cluster_soon(&shutdown).await? else {
        return Ok(());
    };
    let topic = &options.events_topic;
    let partitions = cluster.require_topic(topic, "Read", None).await?;
    let topic_id = match id_of(topic, cluster.topic_id(topic).await).map_err(Failure::into_error)? {
        Ok(id) => Some(id),
        Err(reason) => {
            tracing::warn!(
                "the id of {topic} is not told: {reason}. It is recognised by its records alone"
            );
            None
        }
    };
    let reader = Reader::connect(&kafka)?;
    let (logs, range) = block_in_place(|| range(&reader, &options, partitions))?;

    let Some(mut store) = open(&into, &Health::default(), &shutdown).await? else {
        return Ok(());
    };
    let place = into.place();
    let stored = store.stored().await;
    let stored = stored.map_err(|error| Failure::of(error, &place).into_error())?;
    let target = Target {
        place: &place,
        topic,
        cluster_id: &cluster.id,
        topic_id,
        from: &options.from,
        logs: &logs,
        range: &range,
        stored: &stored,
    };
    let lookup = Lookup::connect(&kafka, topic)?;
    let left = block_in_place(|| target.left(&reader, &lookup, &shutdown))?;
    for (partition, held) in &left {
        if held.start > range[partition].start && !range[partition].is_empty() {
            tracing::info!(
                "{topic} partition {partition}: {place} holds its events up to offset {}; going on to {}",
                held.start,
                held.end
            );
        }
    }

    let (batches, mut read) = mpsc::channel(1);
    let reading = Reading {
        topic: topic.clone(),
        schemas,
        max_events: options.max_events as usize,
        max_bytes: options.max_bytes as usize,
        next: left.iter().map(|(p, range)| (*p, range.start)).collect(),
        first_gap: BTreeMap::new(),
        batch: Batch::default(),
        batches,
    };
    let (ranges, stop) = (left.clone(), shutdown.child_token());
    let stopped = stop.clone();
    let reading = spawn_blocking(move || reading.read(&reader, &ranges, &stopped));

    let identity = Identity {
        topic: topic.clone(),
        cluster_id: cluster.id.clone(),
        topic_id: topic_id.map(|id| id.to_string()),
        group_id: GROUP.to_owned(),
    };
    let mut writer = BatchWriter::new::<Replay>(
        store,
        place.clone(),
        "--into",
        Part::ALL.into(),
        identity,
        Breaker::new(MAX_REFUSED),
        options.max_events,
    );
    writer.positions = target.positions();
    let mut writing = Writing {
        writer,
        progress: Progress::over(&left),
        account: Account::over(&left),
        shutdown: &shutdown,
    };
    let mut written = Ok(());
    let mut asked_at = Instant::now();
    while let Some(batch) = read.recv().await {
        if asked_at.elapsed() >= ID_EVERY {
            written = is_the_topic(&cluster, topic, topic_id, &place).await;
            asked_at = Instant::now();
            if written.is_err() {
                break;
            }
        }
        written = writing.write(batch).await;
        if written.is_err() || writing.given_up() {
            break;
        }
    }
    let ended_early = written.is_err() || writing.given_up();
    // Where writing has ended early, the reader may be reading on, or waiting to hand something over.
    stop.cancel();
    drop(read);
    let ended = reading.await?;
    if ended.is_ok() && !ended_early && !shutdown.is_cancelled() {
        // All of the ranges was read and is in the log still.
        written = is_the_topic(&cluster, topic, topic_id, &place).await;
        if written.is_ok() {
            written = writing.reach(&left).await;
        }
    }
    let given_up = writing.given_up();
    let Writing {
        progress, account, ..
    } = writing;
    progress.end();
    account.print(topic, &place);
    written?;
    if !shutdown.is_cancelled() || (ended.is_ok() && !given_up) {
        return ended;
    }
    let hint = match options.from {
        Bound::Time(_) => format!(
            " (but a time back from now is another one then: give --from {})",
            Bound::Offsets(range.iter().map(|(p, range)| (*p, range.start)).collect())
        ),
        _ => String::new(),
    };
    tracing::info!(
        "stopped before the end; the same command again goes on from what is stored{hint}"
    );
    Ok(())
}

/// Whether the topic is still the one that the replay began with.
async fn is_the_topic(
    cluster: &Cluster,
    topic: &str,
    begun: Option<TopicId>,
    place: &str,
) -> anyhow::Result<()> {
    let Some(begun) = begun else { return Ok(()) };
    match id_of(topic, cluster.topic_id(topic).await) {
        Ok(Ok(id)) if id != begun => {
            let (id, begun) = (id.to_string(), begun.to_string());
            Err(recreated(topic, &id, &begun, place, "--into").into_error())
        }
        // Without an answer nothing speaks against it; reading tells what is wrong.
        _ => Ok(()),
    }
}

fn wrong(message: String) -> anyhow::Error {
    NeedsAttention(message).into()
}

fn wrong_usage(message: String) -> anyhow::Error {
    WrongUsage(message).into()
}
