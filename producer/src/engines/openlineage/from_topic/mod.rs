//! Events from a topic → reports, exactly once.
//!
//! Why no event is reported twice or lost: the consumed offsets commit in the same transaction as the reports, on behalf
//! of the group's current generation. If the transaction fails, no committed reader sees its reports, the runs are rolled
//! back to their state before it, and the input is rewound to where it began. If the process dies, the next owner starts
//! at the last committed offset.
//!
//! Why the reports do not depend on restarts: those of a partition follow from its events alone. A partition is read from
//! before its committed offset on: those events are not reported again, but the runs learn from them.
//!
//! ```text
//! mod         new clients whenever the outcome of a transaction is unknown
//! adapter     the loop: waits, answers rebalances, transacts
//! assignment  where assigned partitions begin
//! partition   a partition's runs, and what is committed of it
//! print       a dry run
//! ```

mod adapter;
mod assignment;
mod partition;
mod print;

use std::time::Duration;

use anyhow::Context;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use schemas::topics;
use service::backoff::Backoff;
use service::exit::{NeedsAttention, StartOver};
use service::kafka::NewTopic;
use service::limits::SizeLimits;
use service::output;
use service::rival::{self, Fenced, Identity};
use service::settings::{distinct_topics, host_name};
use service::subscription::Subscription;
use service::topic_id::TopicIdAnswer;
use service::transaction::TransactionalProducer;
use service::warn_of_change;
use service::words::counted;
use tokio::time::{Instant, sleep};

use self::adapter::{Adapter, Counts};
use super::options::Options;
use crate::connection::Connection;
use crate::session::Setup;

pub(crate) use self::adapter::DEAD_LETTERS;
pub(crate) use self::assignment::REMEMBERED;

/// After clients have worked this long, the back-off is reset.
const STABLE: Duration = Duration::from_secs(60);

/// Reports until `setup.shutdown` is cancelled; then ends the open transaction, leaves the group, and prints `sent 42
/// reports, 1 dead letter`. A dry run prints the reports of all events that the topic holds, and belongs to no group.
///
/// # Errors
/// Permanent errors: a topic or a right is missing, a setting is wrong, the instance was fenced, the committed offset is no
/// longer in the log, too many events are unusable.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
    if setup.dry_run {
        return print::run(&options, &setup).await;
    }
    distinct_topics(&[
        ("--from-topic", &options.from_topic),
        ("--topic", &setup.topic),
        ("--dead-letters-topic", &options.dead_letters_topic),
    ])?;
    let mut counts = Counts::default();
    let ended = report(&options, &setup, &mut counts).await;
    let reports = counted(counts.reports, "report");
    let letters = counted(counts.letters, "dead letter");
    output::account(&format!("sent {reports}, {letters}\n"));
    ended
}

async fn report(options: &Options, setup: &Setup, counts: &mut Counts) -> anyhow::Result<()> {
    let Setup {
        kafka,
        health,
        shutdown,
        ..
    } = setup;
    let mut backoff = Backoff::default();
    loop {
        let begun = Instant::now();
        let Err(error) = report_with_new_clients(options, setup, counts).await else {
            return Ok(());
        };
        if !error.chain().any(|cause| cause.is::<StartOver>()) {
            let identity = Identity {
                group: &options.group,
                instance_id: options.instance_id.as_deref(),
                has_client_id: true,
            };
            return rival::look_for(error, kafka, identity, health, shutdown).await;
        }
        if shutdown.is_cancelled() {
            return Ok(());
        }
        warn_of_change!("restarting from the committed offsets: {error:#}");
        health.waiting_for(format!("Kafka: {error}"));
        if begun.elapsed() > STABLE {
            backoff = Backoff::default();
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = sleep(backoff.pause()) => {}
        }
    }
}

/// Checks the cluster, connects and reports, until shutdown or an error.
async fn report_with_new_clients(
    options: &Options,
    setup: &Setup,
    counts: &mut Counts,
) -> anyhow::Result<()> {
    let Setup {
        kafka,
        topic,
        health,
        shutdown,
        ..
    } = setup;
    let (from, letters) = (&options.from_topic, &options.dead_letters_topic);
    let Some(connection) = Connection::open(kafka, topic, health, shutdown).await? else {
        return Ok(());
    };
    let Connection { cluster, framing } = connection;
    let partitions = cluster.require_topic(from, "Read", None).await?;
    let make = NewTopic {
        partitions,
        settings: topics::DEAD_LETTERS_SETTINGS,
        carries: Some(from),
    };
    cluster.require_topic(letters, "Write", Some(make)).await?;
    for topic in [topic, letters] {
        cluster.refuse_compaction(topic).await?;
    }
    let topic_id = match cluster.topic_id(from).await {
        Ok(TopicIdAnswer::Id(id)) => Some(id),
        Ok(TopicIdAnswer::Unavailable { reason }) => {
            warn_of_change!(
                "{from}: its id is unknown, so a topic of the same name that replaces it cannot be recognised: {reason}"
            );
            None
        }
        // It existed a moment ago, so this broker's metadata is stale.
        Ok(TopicIdAnswer::NoSuchTopic) => {
            let gone = KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition);
            return Err(StartOver(format!("{from}: {gone}")).into());
        }
        Err(error) => return Err(StartOver(format!("asking for the id of {from}: {error}")).into()),
    };
    let limits = SizeLimits::read(kafka, &[topic, letters]).await?;
    let instance = options.instance_id.clone().unwrap_or_else(host_name);
    if instance.is_empty() {
        let why = "this host has no name; give --instance-id".to_owned();
        return Err(NeedsAttention(why).into());
    }
    let transactional_id = format!("{}-{instance}", options.group);
    drop(cluster); // Nothing polls its client any more.
    let batch_bytes = limits.smallest();
    let written = [topic.as_str(), letters];
    let started =
        TransactionalProducer::start(kafka, &transactional_id, &written, batch_bytes, shutdown);
    let Some(mut producer) = started.await? else {
        return Ok(());
    };
    let subscription = Subscription::join(
        kafka,
        from,
        partitions,
        &options.group,
        options.instance_id.as_deref(),
        health.clone(),
    )
    .context("joining the group")?;
    tracing::info!(
        group = options.group,
        transactional_id,
        "reporting the events of {from} to {topic}"
    );
    health.answered();
    let mut adapter = Adapter::new(options, setup, framing, limits, instance, topic_id, counts)?;
    let ended = adapter.report(&subscription, &mut producer).await;
    drop(adapter);
    let is_fenced = subscription.is_fenced();
    subscription.leave().await;
    match ended {
        // A restart would fence the other process in turn.
        Err(error) if is_fenced && !error.is::<Fenced>() => Err(Fenced(format!(
            "{error:#}; meanwhile another process joined the group {} with this --instance-id",
            options.group
        ))
        .into()),
        ended => ended,
    }
}
