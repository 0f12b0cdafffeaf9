//! `consumer run`: stores the events topic in the tables.
//!
//! ```text
//! Subscription ──▶ Source ──▶ Batch ──▶ BatchWriter ──▶ one database transaction: fence, rows, offsets
//! (group member)   (reads ahead)           │
//!                     ▲                    └─ rejects ─▶ dead letters, acknowledged before the offset moves
//!                     └─ group's offsets, for lag tools: committed afterwards
//! ```
//!
//! - `config`: the options.
//! - `event_loop`: the next step, and waiting during an outage.
//! - `assignment`: where to start reading partitions.
//! - `storing`: handles the outcomes of a write as a member of the group.
//! - `idle`: positions after the last record.
//! - `state`: the state that all of these share.
//! - `partitions`: the state of the assigned partitions.
//! - `source`: the Kafka side; `commits`: the group's offsets in Kafka.
//! - `batch_writer`: the writing half, also used by `replay`.

mod assignment;
pub(crate) mod batch_writer;
mod commits;
mod config;
mod event_loop;
mod idle;
mod partitions;
mod source;
mod state;
mod storing;

pub use self::config::Config;

use std::sync::Arc;

use schemas::topics;
use service::breaker::Breaker;
use service::health::Health;
use service::kafka::{KafkaOptions, NewTopic};
use service::lookup::Lookup;
use service::rival;
use service::settings::distinct_topics;
use service::subscription::Subscription;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::batch_writer::{BatchWriter, open};
use self::commits::Commits;
use self::partitions::Partitions;
use self::source::{IDLE_CHECK_INTERVAL, Source};
use self::state::{Entrance, KnownId, State};
use crate::batch::Batch;
use crate::letters::Letters;
use crate::schema_source::schema_source;
use crate::store::{Database, DatabaseOptions, Identity};

/// Counter: rows written. Label `db_collection_name`.
pub(crate) const ROWS: &str = "taskrunning_rows_total";

/// Stores events until `shutdown` is cancelled, then stores what was read and leaves the group. Remains a member of its
/// group while the database or Kafka is unavailable.
///
/// # Errors
/// If a retry does not help: a topic, table or right is missing, a setting is wrong, the log does not contain the
/// stored position, the topic or the database was replaced by another, or too many events are unusable.
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
    let partitions = cluster
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
    drop(cluster); // its client is no longer polled
    let Some(store) = open(&database, &health, &shutdown).await? else {
        return Ok(());
    };
    let lookup = Lookup::connect(&kafka, &config.events_topic)?;
    let subscription = Subscription::join(
        &kafka,
        &config.events_topic,
        partitions,
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
    let identity = Identity {
        topic: config.events_topic.clone(),
        cluster_id,
        topic_id: None,
        group_id,
    };
    let mut entrance = Entrance {
        config: &config,
        health: &health,
        state: State::Storing,
        source: Source {
            config: &config,
            subscription: &subscription,
            lookup,
            schemas,
            letters,
            commits: Commits::default(),
            ahead: Batch::default(),
            interruption: None,
        },
        writer: BatchWriter::new::<Source<'_>>(
            store,
            database.place(),
            "--database-url",
            parts,
            identity,
            Breaker::new(config.breaker),
            config.max_events,
        ),
        partitions: Partitions::default(),
        topic_id: KnownId::Unknown,
        batch: Batch::default(),
        next_idle_check: Instant::now() + IDLE_CHECK_INTERVAL,
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
    tracing::info!("stopped; everything read is stored or will be read again");
    Ok(())
}
