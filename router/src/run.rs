//! The service: reads the source topic as a member of a consumer group, routes each record, and commits events, dead
//! letters and consumed offsets together.
//!
//! Why no record is lost or duplicated: the consumed offsets commit in the same transaction as the output, on
//! behalf of the group's current generation. If the transaction fails, no committed reader sees its output,
//! and the input is rewound to where the transaction began. If the process dies, the next owner starts at the
//! last committed offset, which the broker withholds until the dead router's transaction has ended. A
//! revocation is answered only after the open transaction has ended, including the prepared events.
//!
//! ```text
//! run              new clients whenever the outcome of a transaction is unknown
//! router           the loop: waits, answers rebalances, transacts
//! transaction      one transaction: fill, commit or abort
//! prepared_events  events prepared while the previous transaction commits
//! assignment       start offsets of assigned partitions; resume: without a committed offset
//! ```

mod assignment;
mod commit;
mod commit_pause;
mod limits;
mod outage;
mod positions;
mod prepared_events;
mod resume;
mod router;
mod transaction;
mod work;

use std::sync::Arc;
use std::time::Duration;

use schemas::{CURRENT_EVENT, Decoder, Framing, topics};
use service::backoff::Backoff;
use service::exit::{NeedsAttention, StartOver};
use service::health::Health;
use service::kafka::{Cluster, NewTopic};
use service::registry::{Registry, until_answered};
use service::rival::{self, Fenced, Identity};
use service::schema_source::SchemaSource;
use service::settings::distinct_topics;
use service::subscription::Subscription;
use service::transaction::TransactionalProducer;
use service::warn_of_change;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::topic_ids::{NotTheSame, TopicIds};
use crate::transform::Codec;

use limits::Limits;
use router::Router;

pub use transaction::BACKLOG_INTERVAL;
pub use work::HELP;

/// After clients have worked this long, the back-off is reset.
const STABLE: Duration = Duration::from_secs(60);

/// Routes until `shutdown` is cancelled; then ends the open transaction and leaves the group. Waits while
/// Kafka is unavailable. If the outcome of a transaction is unknown, restarts with new clients from the
/// committed offsets.
///
/// # Errors
/// Permanent errors: a topic or a right is missing, a setting is wrong, the instance was fenced, the
/// committed offset is no longer in the log, too many records are unusable.
pub async fn run(
    config: Config,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    distinct_topics(&[
        ("--source-topic", &config.source_topic),
        ("--events-topic", &config.events_topic),
        ("--dead-letters-topic", &config.dead_letters_topic),
    ])?;
    let folder = config.schemas.as_deref();
    let schemas = SchemaSource::of(&config.kafka, |registry| Decoder::of(folder, registry))?;
    for version in schemas.decoder.newer_schemas() {
        tracing::info!("reads newer {version} too");
    }
    let framing = register(&config, schemas.registry.as_ref(), &health, &shutdown).await?;
    let Some(framing) = framing else {
        return Ok(());
    };
    let codec = Codec { schemas, framing };
    let mut backoff = Backoff::default();
    let mut topic_ids = None;
    loop {
        let begun = Instant::now();
        let ended =
            route_with_new_clients(&config, &codec, &mut topic_ids, &health, &shutdown).await;
        let Err(error) = ended else { break };
        if !error.chain().any(|cause| cause.is::<StartOver>()) {
            let identity = Identity {
                group: &config.group,
                instance_id: config.instance_id.as_deref(),
                has_client_id: true,
            };
            return rival::look_for(error, &config.kafka, identity, &health, &shutdown).await;
        }
        if shutdown.is_cancelled() {
            break;
        }
        warn_of_change!("restarting from the committed offsets: {error:#}");
        health.waiting_for(format!("Kafka: {error}"));
        if begun.elapsed() > STABLE {
            backoff = Backoff::default();
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = sleep(backoff.pause()) => {}
        }
    }
    tracing::info!(
        "stopped; every record that was read is routed and committed, or will be read again"
    );
    Ok(())
}

/// The framing of events. With a schema registry, registers the event schema and returns the registry's
/// framing. `None` on shutdown while the registry was unavailable.
async fn register(
    config: &Config,
    registry: Option<&Registry>,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Framing>> {
    let Some(registry) = registry else {
        return Ok(Some(Framing::SingleObject));
    };
    let subject = format!("{}-value", config.events_topic);
    let register = || registry.register(&subject, CURRENT_EVENT.avsc);
    let id = until_answered(register, health, shutdown).await?;
    if let Some(id) = id {
        tracing::info!(
            "events have the schema id {id} of {subject} in the schema registry {}",
            registry.shown()
        );
    }
    Ok(id.map(Framing::Registry))
}

/// Checks the cluster, connects and routes, until shutdown or an error.
async fn route_with_new_clients(
    config: &Config,
    codec: &Codec,
    known_ids: &mut Option<TopicIds>,
    health: &Arc<Health>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let Some(cluster) = config.kafka.cluster(shutdown).await? else {
        return Ok(());
    };
    let partitions = require_topics(config, &cluster).await?;
    let limits = Limits::read(config).await?;
    let asked = TopicIds::ask(config, cluster.client()).await;
    let topic_ids =
        asked.map_err(|error| StartOver(format!("{:#}", anyhow::Error::from(error))))?;
    let topic_ids = match known_ids {
        Some(before) => topic_ids.after(before)?,
        None => topic_ids,
    };
    let topic_ids = &*known_ids.insert(topic_ids);
    let mut router = Router::new(config, codec, limits, topic_ids, health, shutdown)?;
    let transactional_id = format!("{}-{}", config.group, router.instance);
    let cluster_id = cluster.id.clone();
    drop(cluster); // Nothing polls its client any more.
    let written = [&*config.events_topic, &config.dead_letters_topic];
    let started = TransactionalProducer::start(
        &config.kafka,
        &transactional_id,
        &written,
        router.limits.batch_bytes(),
        shutdown,
    );
    let Some(mut producer) = started.await? else {
        return Ok(());
    };
    let subscription = Subscription::join(
        &config.kafka,
        &config.source_topic,
        partitions,
        &config.group,
        config.instance_id.as_deref(),
        health.clone(),
    )?;
    tracing::info!(
        cluster = cluster_id,
        source_topic_id = router.transform.source_topic_id,
        group = config.group,
        transactional_id,
        "routing {} to {} and {}",
        config.source_topic,
        config.events_topic,
        config.dead_letters_topic
    );
    health.answered();
    let routed = router
        .route_until_shutdown(&subscription, &mut producer)
        .await;
    let routed = match routed {
        Err(error) => Err(explained(error, topic_ids, &producer).await),
        ended => ended,
    };
    let is_fenced = subscription.is_fenced();
    subscription.leave().await;
    match routed {
        // A restart would fence the other process in turn.
        Err(error) if is_fenced && !error.is::<Fenced>() => Err(Fenced(format!(
            "{error:#}; meanwhile another process joined the group {} with this --instance-id",
            config.group
        ))
        .into()),
        ended => ended,
    }
}

/// Checks that the three topics exist, that this user may use them, and that the output topics are not
/// compacted.
/// Returns the number of the source topic's partitions.
async fn require_topics(config: &Config, cluster: &Cluster) -> anyhow::Result<usize> {
    let source = &config.source_topic;
    let make = NewTopic::with(topics::REPORTS_SETTINGS);
    let partitions = cluster.require_topic(source, "Read", Some(make)).await?;
    // Compaction of the source topic is its owners' choice; deleted records need not be routed.
    match cluster.compaction(source).await {
        Ok(Some(why)) => warn_of_change!("{why}"),
        Ok(None) => {}
        Err(error) => tracing::info!("{error:#}"),
    }
    for (topic, settings) in [
        (&config.events_topic, topics::EVENTS_SETTINGS),
        (&config.dead_letters_topic, topics::DEAD_LETTERS_SETTINGS),
    ] {
        let make = NewTopic {
            partitions,
            settings,
            carries: Some(source),
        };
        cluster.require_topic(topic, "Write", Some(make)).await?;
        cluster.refuse_compaction(topic).await?;
    }
    Ok(partitions)
}

/// The error that ended routing, or the change of a topic that caused it.
async fn explained(
    error: anyhow::Error,
    topic_ids: &TopicIds,
    producer: &TransactionalProducer,
) -> anyhow::Error {
    if !error.chain().any(|cause| cause.is::<NeedsAttention>()) {
        return error;
    }
    match topic_ids.compare(producer.client()).await {
        Err(NotTheSame::Changed(change)) => {
            tracing::warn!("{error:#}");
            change.into()
        }
        _ => error,
    }
}
