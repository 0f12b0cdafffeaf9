//! `consumer replay`: rebuilds the tables for a range of the events topic in another database.
//!
//! ```text
//! range of the topic ──▶ Reader (a thread) ──▶ rows() ──▶ Batch ──▶ Store { offsets, task, histories } in --into
//!                        (no group)            (pure)               one database transaction
//! ```
//!
//! Rows are derived and written as by [`run`](crate::run()), including `consumed_offset`. So `--into` itself records
//! the progress: an interrupted replay resumes when it is started again, and stores each row once. Before that, the
//! target must prove to be a beginning of the same range: see [`Target`].

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

/// `consumed_offset.group_id` of rows stored by a replay.
const GROUP: &str = "replay";
/// Interval at which the topic's id is checked again.
const ID_EVERY: Duration = Duration::from_secs(5);
/// More refused records than this mean wrong tables, not bad records.
const MAX_REFUSED: BreakerOptions = BreakerOptions {
    max_rejects_in_a_row: 100,
    max_rejects_per_1000: 500,
};

/// Options of `consumer replay`.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayOptions {
    /// Topic to read: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Start: earliest, offset:PARTITION=OFFSET,… (other partitions are omitted), or the first event written at a time:
    /// 2026-11-25T10:00Z, or relative to now as in -2h
    #[arg(
        long,
        value_name = "BOUND",
        default_value = "earliest",
        allow_hyphen_values = true
    )]
    pub from: Bound,

    /// End, exclusive: latest, or as for --from; events after an open transaction are omitted
    #[arg(
        long,
        value_name = "BOUND",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    pub to: Bound,

    /// Database to rebuild the tables in, as for --database-url: an empty one, or one in which the same replay was
    /// started
    #[arg(long, value_name = "URL", value_parser = database_url())]
    pub into: Address,

    /// Maximum number of events per transaction
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_events: u32,

    /// Maximum size of a transaction, in bytes of events
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_bytes: u32,

    /// Folder of .avsc files of versions newer than this program, so that it can read what newer routers write
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

/// Stores a range of the events topic in another database, or resumes that, until it is complete or `shutdown` is
/// cancelled. Waits while the database is unavailable. Prints a summary.
///
/// # Errors
/// If Kafka does not answer or no longer holds the range; if the database holds anything other than a beginning of the
/// range, or is the one that a consumer stores in; or if a retry does not help.
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
            "--into is {}, the database that consumers store in (--database-url); give another one",
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
                "the id of {topic} is unavailable: {reason}. Only its records identify the topic"
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
                "{topic} partition {partition}: {place} holds its events up to offset {}; continuing to {}",
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
    // If writing ended early, the reader may still be reading or waiting to send a batch.
    stop.cancel();
    drop(read);
    let ended = reading.await?;
    if ended.is_ok() && !ended_early && !shutdown.is_cancelled() {
        // Everything was read and is still in the log.
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
            " (but a relative time then means another one: give --from {})",
            Bound::Offsets(range.iter().map(|(p, range)| (*p, range.start)).collect())
        ),
        _ => String::new(),
    };
    tracing::info!("stopped before the end; run the same command again to continue{hint}");
    Ok(())
}

/// Checks that the topic is still the one that the replay started with.
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
        // No answer is no evidence of another topic; reading reports its own errors.
        _ => Ok(()),
    }
}

fn wrong(message: String) -> anyhow::Error {
    NeedsAttention(message).into()
}

fn wrong_usage(message: String) -> anyhow::Error {
    WrongUsage(message).into()
}
