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
//! transaction has been finished, and with it what was routed while the one before was committed.

mod audit;
mod config;
mod dead_letters;
mod limits;
mod positions;
mod resume;
mod route;
mod settling;
mod topic_ids;
mod writers;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use rdkafka::consumer::{Consumer, ConsumerGroupMetadata};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::dead_letter::First;
use schemas::{Adjustment, CURRENT_EVENT, DeadLetter, Framing, PlainSource, Reject, topics};
use service::backoff::Backoff;
use service::breaker::Breaker;
use service::exit::{NeedsAttention, StartOver};
use service::health::Health;
use service::kafka::NewTopic;
use service::limits::is_too_large;
use service::pause;
use service::registry::{Registry, RegistryError, until_answered};
use service::repeats;
use service::rival::{self, Fenced, Identity};
use service::settings::distinct_topics;
use service::subscription::{Next, Subscription};
use service::telemetry::{Help, messaging, names};
use service::transaction::{Failed, Transaction, TransactionalProducer};
use service::warn_of_change;
use service::words::counted;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use limits::Limits;
use settling::Settling;
use topic_ids::{NotTheSame, TopicIds};
use writers::Writers;

pub use audit::{Audit, audit};
pub use config::Config;
pub use dead_letters::{DeadLetters, dead_letters};
pub use resume::OnNoOffset;
pub use route::{Outcome, route};

/// Counter: repairs made, by kind. Label `adjustment`.
const ADJUSTMENTS: &str = "taskrunning_adjustments_total";
/// Counter: dead letters written, by kind. Label `reason`.
const DEAD_LETTERS: &str = "taskrunning_dead_letters_total";

/// What `/metrics` says of the router's own metrics.
pub const HELP: &[Help] = &[
    (ADJUSTMENTS, "Repairs of reports out of range, by kind."),
    (DEAD_LETTERS, "Dead letters written, by kind of fault."),
];

/// While records are waiting, a transaction goes on for so long, unless it is full before: the more of them
/// it holds, the less each costs. Of eight routers on one core each fills it in about this time.
pub const BACKLOG_INTERVAL: Duration = Duration::from_millis(500);
/// At most about so much is routed while a transaction commits.
const AHEAD_BYTES: usize = 4 << 20;
/// When no record is waiting while a transaction commits, the next look is so much later.
const AHEAD_PAUSE: Duration = Duration::from_micros(200);
/// While records are waiting, the time is looked at after so many of them.
const LOOK: u32 = 64;

/// Routes until `shutdown` is cancelled; then finishes the open transaction and leaves the group.
/// While Kafka is away it waits, and where the end of a transaction cannot be told it starts over
/// with new clients, from what was committed.
///
/// # Errors
/// What neither a retry nor starting over cures: a topic or a right is missing, a setting is wrong,
/// the instance was fenced, the committed offset is no longer in the log, too many records are
/// unusable.
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
    let writers = Writers::of(config.schemas.as_deref(), &config.kafka)?;
    for version in writers.decoder.learned() {
        tracing::info!("reads newer {version} too");
    }
    let framing = register(&config, writers.registry.as_ref(), &health, &shutdown).await?;
    let Some(framing) = framing else {
        return Ok(());
    };
    let schemas = Schemas { writers, framing };
    let mut backoff = Backoff::default();
    let mut topic_ids = None;
    loop {
        let begun = Instant::now();
        let ended =
            route_with_new_clients(&config, &schemas, &mut topic_ids, &health, &shutdown).await;
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
        warn_of_change!("starting over from what was committed: {error:#}");
        health.waiting_for(format!("Kafka: {error}"));
        if begun.elapsed() > Duration::from_secs(60) {
            backoff = Backoff::default();
        }
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = sleep(backoff.pause()) => {}
        }
    }
    tracing::info!("stopped; all that was read is routed and committed, or will be read again");
    Ok(())
}

/// What reads the records, and how events are written.
struct Schemas {
    writers: Writers,
    framing: Framing,
}

/// How events are written: where there is a registry, in its framing, with their schema registered
/// there. `None` when shut down while the registry was away.
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

async fn route_with_new_clients(
    config: &Config,
    schemas: &Schemas,
    known_ids: &mut Option<TopicIds>,
    health: &Arc<Health>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let Some(cluster) = config.kafka.cluster(shutdown).await? else {
        return Ok(());
    };
    let source = &config.source_topic;
    let make = NewTopic::with(topics::REPORTS_SETTINGS);
    let partitions = cluster.require_topic(source, "Read", Some(make)).await?;
    // Not ours to refuse: what its owners let compaction delete was never to be routed.
    match cluster.compaction(&config.source_topic).await {
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
    let limits = Limits::read(config).await?;
    let asked = TopicIds::ask(config, cluster.client()).await;
    let topic_ids =
        asked.map_err(|error| StartOver(format!("{:#}", anyhow::Error::from(error))))?;
    let topic_ids = match known_ids {
        Some(before) => topic_ids.after(before)?,
        None => topic_ids,
    };
    let topic_ids = &*known_ids.insert(topic_ids);
    let source_id = topic_ids.source().map(|id| id.to_string());
    let instance = config.instance()?;
    let transactional_id = format!("{}-{instance}", config.group);
    let cluster_id = cluster.id.clone();
    drop(cluster); // nobody listens any more to what its client says of itself
    let started = TransactionalProducer::start(
        &config.kafka,
        &transactional_id,
        limits.batch_bytes(),
        shutdown,
    );
    let Some(mut output) = started.await? else {
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
        cluster = cluster_id,
        source_topic_id = source_id,
        group = config.group,
        transactional_id,
        "routing {} to {} and {}",
        config.source_topic,
        config.events_topic,
        config.dead_letters_topic
    );
    health.answered();
    let mut router = Router {
        config,
        schemas,
        limits,
        topic_ids,
        source_id,
        instance,
        health,
        shutdown,
        breaker: Breaker::new(config.breaker),
        aborts: None,
        outage: None,
        settling: Settling::default(),
        settled: None,
        committed: BTreeMap::new(),
        compare_at: Instant::now(),
        event: Vec::new(),
        ahead: Ahead::default(),
    };
    let routed = router
        .route_until_shutdown(&subscription, &mut output)
        .await;
    let routed = match routed {
        Err(error) => Err(explained(error, topic_ids, &output).await),
        ended => ended,
    };
    let is_fenced = subscription.is_fenced();
    subscription.leave().await;
    match routed {
        // To start over would be to fence the other in turn.
        Err(error) if is_fenced && !error.is::<Fenced>() => Err(Fenced(format!(
            "{error:#}; meanwhile another process joined the group {} with this --instance-id",
            config.group
        ))
        .into()),
        ended => ended,
    }
}

/// What ended the routing: that a topic is another one, where it is, since other errors follow from it.
async fn explained(
    error: anyhow::Error,
    topic_ids: &TopicIds,
    output: &TransactionalProducer,
) -> anyhow::Error {
    if !error.chain().any(|cause| cause.is::<NeedsAttention>()) {
        return error;
    }
    match topic_ids.compare(output.client()).await {
        Err(NotTheSame::Changed(change)) => {
            tracing::warn!("{error:#}");
            change.into()
        }
        _ => error,
    }
}

/// An error of a transaction that makes this producer of no more use.
fn done_for(failed: Failed) -> anyhow::Error {
    match failed {
        Failed::Exit(error) => error,
        Failed::StartOver(error) => StartOver(format!("{error:#}")).into(),
        Failed::Abort(error) => StartOver(error.to_string()).into(),
    }
}

struct Router<'a> {
    config: &'a Config,
    schemas: &'a Schemas,
    limits: Limits,
    topic_ids: &'a TopicIds,
    /// The source topic's, as events have it.
    source_id: Option<String>,
    instance: String,
    health: &'a Health,
    shutdown: &'a CancellationToken,
    breaker: Breaker,
    /// Pauses after transactions that were aborted, since the last one that was not.
    aborts: Option<Backoff>,
    settling: Settling,
    /// When the broker is done with the last transaction, which left no record waiting.
    settled: Option<Instant>,
    /// What the group has committed of each partition, as far as it has.
    committed: BTreeMap<i32, i64>,
    /// When to compare the positions with that.
    compare_at: Instant,
    /// While the schema registry is away, which a record cannot do without.
    outage: Option<Outage>,
    /// The last event's bytes; the next one's go there.
    event: Vec<u8>,
    /// What was routed while the last transaction was committed: the next one begins with it.
    ahead: Ahead,
}

/// A time in which nothing is read, since the schema registry does not answer.
struct Outage {
    /// The schema id to ask for.
    id: u32,
    /// What is waited for.
    what: String,
    backoff: Backoff,
    next_try: Instant,
}

impl Router<'_> {
    async fn route_until_shutdown(
        &mut self,
        subscription: &Subscription,
        output: &mut TransactionalProducer,
    ) -> anyhow::Result<()> {
        let mut met = None;
        while !self.shutdown.is_cancelled() {
            if self.ahead.events.is_empty() && met.is_none() {
                let due = self.outage.as_ref().map(|outage| outage.next_try);
                met = tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => break,
                    () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                        self.ask_again(subscription).await?;
                        continue;
                    }
                    // Of the group it stays a member meanwhile.
                    next = subscription.next() => Some(next?),
                    () = sleep_until(self.compare_at), if due.is_none() => {
                        self.commit_positions(subscription, output).await?;
                        self.compare_while_idle(output).await?;
                        continue;
                    }
                };
            }
            match met.take() {
                Some(Next::Assigned(partitions)) if self.ahead.events.is_empty() => {
                    self.begin_partitions(subscription, partitions).await?;
                    self.wait(subscription)?;
                }
                Some(Next::Revoked { partitions, .. }) if self.ahead.events.is_empty() => {
                    subscription.release(&partitions)?;
                    for partition in partitions.elements() {
                        self.committed.remove(&partition.partition());
                    }
                }
                first => met = self.transact(subscription, output, first).await?,
            }
        }
        if self.ahead.events.is_empty() && met.is_none() && self.outage.is_none() {
            self.commit_positions(subscription, output).await?;
        }
        Ok(())
    }

    /// Compares the topics' ids now and then.
    async fn compare_while_idle(&self, output: &TransactionalProducer) -> anyhow::Result<()> {
        match self.topic_ids.is_idle_check_due() {
            true => self.compare_unless_away(output).await,
            false => Ok(()),
        }
    }

    /// Compares the topics' ids; where Kafka is away that is left for later.
    async fn compare_unless_away(&self, output: &TransactionalProducer) -> anyhow::Result<()> {
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(()),
            compared = self.topic_ids.compare(output.client()) => match compared {
                Err(error @ NotTheSame::Changed(_)) => Err(error.into()),
                Ok(()) | Err(NotTheSame::Unanswered(_)) => Ok(()),
            },
        }
    }

    /// Whether it is known what wrote a record; if not, the schema registry is asked. While that is
    /// away the record cannot be routed, and nothing is read until it can.
    ///
    /// # Errors
    /// If another try does not help.
    async fn can_read(&mut self, record: &BorrowedMessage<'_>) -> anyhow::Result<bool> {
        let Writers {
            decoder, registry, ..
        } = &self.schemas.writers;
        let (Some(id), Some(registry)) = (decoder.unknown_id(record.payload()), registry) else {
            return Ok(true);
        };
        match registry.schema(id).await {
            Ok(schema) => {
                decoder.learn_id(id, schema.as_deref());
                Ok(true)
            }
            Err(RegistryError::Refused(why)) => Err(NeedsAttention(why).into()),
            Err(RegistryError::Away(what)) => {
                warn_of_change!("waiting for {what}");
                let mut backoff = Backoff::default();
                let next_try = Instant::now() + backoff.pause();
                self.outage = Some(Outage {
                    id,
                    what,
                    backoff,
                    next_try,
                });
                Ok(false)
            }
        }
    }

    /// Reads on from this record once the schema registry answers.
    fn go_back_to(
        &self,
        subscription: &Subscription,
        record: &BorrowedMessage<'_>,
    ) -> anyhow::Result<()> {
        let offset = Offset::Offset(record.offset());
        subscription.seek(&[(record.partition(), offset)].into())?;
        self.wait(subscription)
    }

    /// Reads nothing while the schema registry is away.
    fn wait(&self, subscription: &Subscription) -> anyhow::Result<()> {
        let Some(outage) = &self.outage else {
            return Ok(());
        };
        self.health.waiting_for(outage.what.clone());
        subscription.pause()
    }

    /// Asks the schema registry again.
    async fn ask_again(&mut self, subscription: &Subscription) -> anyhow::Result<()> {
        let (Some(outage), Some(registry)) = (&mut self.outage, &self.schemas.writers.registry)
        else {
            return Ok(());
        };
        let asked = tokio::select! {
            () = self.shutdown.cancelled() => return Ok(()),
            asked = registry.schema(outage.id) => asked,
        };
        match asked {
            Ok(schema) => {
                self.schemas
                    .writers
                    .decoder
                    .learn_id(outage.id, schema.as_deref());
                let after = repeats::end(module_path!());
                tracing::info!("the schema registry answers again, {after}");
                self.outage = None;
                self.health.answered();
                subscription.resume()
            }
            Err(RegistryError::Refused(why)) => Err(NeedsAttention(why).into()),
            Err(RegistryError::Away(what)) => {
                warn_of_change!("waiting for {what}");
                outage.next_try = Instant::now() + outage.backoff.pause();
                outage.what.clone_from(&what);
                self.health.waiting_for(what);
                Ok(())
            }
        }
    }

    /// One transaction, to its commit: of what was routed ahead, `first` and what follows. A rebalance ends
    /// it, also as `first`. Gives back what was met and is to be dealt with next.
    async fn transact<'s>(
        &mut self,
        subscription: &'s Subscription,
        output: &mut TransactionalProducer,
        first: Option<Next<'s>>,
    ) -> anyhow::Result<Option<Next<'s>>> {
        let (mut met, mut stopped_at) = (None, None);
        let first = match first {
            Some(Next::Record(record)) => match self.can_read(&record).await? {
                true => Some(record),
                false => {
                    stopped_at = Some(record);
                    None
                }
            },
            rebalance => {
                met = rebalance;
                None
            }
        };
        if first.is_none() && self.ahead.events.is_empty() {
            if let Some(record) = stopped_at {
                self.go_back_to(subscription, &record)?;
            }
            return Ok(met);
        }
        let begun = Instant::now();
        let settled = self.settled.take().filter(|settled| *settled > begun);
        if let Some(settled) = settled {
            pause::until(settled).await;
        }
        let transaction = output.begin().map_err(done_for)?;
        let (mut work, mut none_waiting) = (Work::default(), false);

        let mut sent = self.send_ahead(&transaction, &mut work).await;
        match first {
            Some(first) if sent.is_ok() => {
                sent = self.send(&transaction, &first, &mut work).await;
            }
            unsent => stopped_at = stopped_at.or(unsent),
        }
        let commit_interval = Duration::from_millis(self.config.commit_interval_ms);
        // A run of rejects that a full transaction would cut is not cut: the breaker's limit bounds it.
        while sent.is_ok()
            && met.is_none()
            && stopped_at.is_none()
            && work.tripped.is_none()
            && (work.records < self.config.max_records || self.breaker.undecided())
        {
            // A run of rejects is not committed before it is known to be a short one.
            let patience = match self.breaker.undecided() {
                true => commit_interval.max(Breaker::PATIENCE),
                false => commit_interval,
            };
            let longest = patience.max(BACKLOG_INTERVAL);
            if work.records.is_multiple_of(LOOK)
                && (self.shutdown.is_cancelled() || begun.elapsed() >= longest)
            {
                break;
            }
            let next = match subscription.waiting()? {
                Some(next) => next,
                None if begun.elapsed() >= patience => {
                    none_waiting = true;
                    break;
                }
                None => tokio::select! {
                    biased;
                    () = self.shutdown.cancelled() => break,
                    () = pause::until(begun + patience) => continue,
                    next = subscription.next() => next?,
                },
            };
            match next {
                Next::Record(record) => {
                    if !self.can_read(&record).await? {
                        // What was read before it is committed.
                        stopped_at = Some(record);
                        break;
                    }
                    sent = self.send(&transaction, &record, &mut work).await;
                }
                rebalance => met = Some(rebalance),
            }
        }

        let lost = matches!(met, Some(Next::Revoked { lost: true, .. }));
        let goes_on =
            met.is_none() && stopped_at.is_none() && !none_waiting && !self.shutdown.is_cancelled();
        let committed = match sent {
            Ok(()) if !lost && work.tripped.is_none() => {
                let group = subscription.consumer().group_metadata();
                let group = group.context("no group metadata")?;
                if Instant::now() >= self.compare_at && stopped_at.is_none() {
                    // All records that were handed out are in this transaction.
                    work.next.extend(self.uncommitted(subscription)?);
                }
                let mut offsets = offsets(&self.config.source_topic, &work.next)?;
                self.topic_ids.note(&mut offsets)?;
                if goes_on {
                    let (committed, met_ahead) =
                        self.commit_and_route_ahead(subscription, &transaction, &offsets, &group)?;
                    met = met_ahead;
                    committed
                } else {
                    let committing = Instant::now();
                    let same_topics = same_topics(self.topic_ids, &transaction);
                    let committed = commit(&transaction, &offsets, &group, same_topics).await;
                    if settled.is_some() {
                        self.settling.learn(committing.elapsed());
                    }
                    committed
                }
            }
            sent => sent,
        };
        if let Some(why) = work.tripped {
            // What is not aborted here is aborted by the broker or the next start.
            if let Err(failed) = transaction.abort().await {
                tracing::warn!("{:#}", done_for(failed));
            }
            return Err(NeedsAttention(why).into());
        }
        match committed {
            Ok(()) if !lost => {
                if self.aborts.take().is_some() {
                    let after = repeats::end(module_path!());
                    tracing::info!("transactions commit again, {after}");
                }
                self.settled = none_waiting.then(|| Instant::now() + self.settling.pause);
                self.health.progressed();
                self.breaker.settle();
                work.count(self.config);
                self.committed.extend(work.next);
            }
            Err(failed @ (Failed::Exit(_) | Failed::StartOver(_))) => {
                let error = done_for(failed);
                if error.is::<NeedsAttention>() {
                    // Readers do not wait for its time-out; what is not aborted here is aborted by the broker.
                    let _ = transaction.abort().await;
                }
                return Err(error);
            }
            failed => {
                let mut too_large = false;
                if let Err(Failed::Abort(error)) = failed {
                    too_large = is_too_large(&error);
                    warn_of_change!(
                        "transaction of {} aborted, reading what it held again until one commits: {error}",
                        counted(work.records, "record")
                    );
                    self.health.waiting_for(format!("Kafka: {error}"));
                }
                transaction.abort().await.map_err(done_for)?;
                let adapted = too_large && self.limits.adapt(output, self.shutdown).await?;
                // An output topic that is gone makes every transaction fail.
                self.compare_unless_away(output).await?;
                // Whatever made it fail gets time to pass.
                let pause = self.aborts.get_or_insert_default().pause();
                tokio::select! {
                    () = self.shutdown.cancelled() => {}
                    () = sleep(if adapted { Duration::ZERO } else { pause }) => {}
                }
                self.breaker.take_back();
                self.ahead.give_back(&mut work.first);
                if let Some(Next::Record(record)) = &met {
                    let read_again = Offset::Offset(record.offset());
                    work.first.entry(record.partition()).or_insert(read_again);
                    met = None;
                }
                subscription.seek(&work.first)?;
                if stopped_at
                    .as_ref()
                    .is_some_and(|record| work.first.contains_key(&record.partition()))
                {
                    // Farther back than to this record.
                    stopped_at = None;
                    self.wait(subscription)?;
                }
            }
        }
        if let Some(record) = stopped_at {
            self.go_back_to(subscription, &record)?;
        }
        Ok(met)
    }

    /// Commits on a thread of its own, and routes meanwhile what is waiting, as far as it becomes events.
    /// Gives what was met that does not.
    fn commit_and_route_ahead<'s>(
        &mut self,
        subscription: &'s Subscription,
        transaction: &Transaction<'_>,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
    ) -> anyhow::Result<(Result<(), Failed>, Option<Next<'s>>)> {
        let runtime = Handle::current();
        let (settling, topic_ids) = (self.settling.pause, self.topic_ids);
        block_in_place(|| {
            std::thread::scope(|scope| {
                let committing = scope.spawn(|| {
                    let same_topics = same_topics(topic_ids, transaction);
                    let committed = commit(transaction, offsets, group, same_topics);
                    let committed = runtime.block_on(committed);
                    if committed.is_ok() {
                        // Of the next transaction only the sending has to wait.
                        std::thread::sleep(settling);
                    }
                    committed
                });
                let met = self.route_ahead(subscription, || committing.is_finished());
                let committed = committing.join();
                let committed = committed.map_err(|_| anyhow!("the commit panicked"))?;
                Ok((committed, met?))
            })
        })
    }

    fn route_ahead<'s>(
        &mut self,
        subscription: &'s Subscription,
        is_done: impl Fn() -> bool,
    ) -> anyhow::Result<Option<Next<'s>>> {
        let max_records = self.config.max_records as usize;
        // With one that does not become an event, the next transaction is still none too large.
        while !is_done()
            && self.ahead.events.len() + 1 < max_records
            && self.ahead.bytes.len() < AHEAD_BYTES
        {
            let record = match subscription.waiting()? {
                Some(Next::Record(record)) => record,
                Some(rebalance) => return Ok(Some(rebalance)),
                None => {
                    std::thread::sleep(AHEAD_PAUSE);
                    continue;
                }
            };
            match route_record(
                self.schemas,
                &self.limits,
                self.source_id.as_deref(),
                &record,
                &mut self.event,
            ) {
                Outcome::Event {
                    key,
                    value,
                    adjustments,
                } => self.ahead.push(&record, &key, value, adjustments),
                Outcome::DeadLetter(_) => return Ok(Some(Next::Record(record))),
            }
        }
        Ok(None)
    }

    /// Sends what was routed ahead.
    async fn send_ahead(
        &mut self,
        transaction: &Transaction<'_>,
        work: &mut Work,
    ) -> Result<(), Failed> {
        // Where one cannot be sent, all are read again.
        for event in &self.ahead.events {
            work.read(event.partition, event.offset);
        }
        for event in self.ahead.events.drain(..) {
            self.breaker.accept();
            work.events += 1;
            work.adjustments.extend(event.adjustments);
            let record = BaseRecord::to(&self.config.events_topic)
                .key(&self.ahead.bytes[event.key])
                .payload(&self.ahead.bytes[event.value]);
            transaction.send(record).await?;
        }
        self.ahead.bytes.clear();
        Ok(())
    }

    /// Routes one record into the transaction.
    async fn send(
        &mut self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        work: &mut Work,
    ) -> Result<(), Failed> {
        work.read(record.partition(), record.offset());
        let mut outcome = route_record(
            self.schemas,
            &self.limits,
            self.source_id.as_deref(),
            record,
            &mut self.event,
        );
        if outcome.is_too_large() {
            // A letter is for good: the limit it rests on may have been raised.
            self.limits.confirm().await?;
            outcome = route_record(
                self.schemas,
                &self.limits,
                self.source_id.as_deref(),
                record,
                &mut self.event,
            );
        }
        match outcome {
            Outcome::Event {
                key,
                value,
                adjustments,
            } => {
                self.breaker.accept();
                work.events += 1;
                work.adjustments.extend(adjustments);
                let event = BaseRecord::to(&self.config.events_topic)
                    .key(key.as_bytes())
                    .payload(value);
                transaction.send(event).await
            }
            Outcome::DeadLetter(reject) => {
                if let Err(tripped) = self.breaker.reject() {
                    work.tripped = Some(format!(
                        "{tripped} ({}), the last one {} partition {} offset {}: {}. {}; nothing of the transaction that \
                         holds the last one was committed. Is it the wrong --source-topic, or do engines write with \
                         another schema? Correct it and start again, or let them become dead letters with a higher limit",
                        tripped.option(),
                        record.topic(),
                        record.partition(),
                        record.offset(),
                        reject.message,
                        tripped.letters(&self.config.dead_letters_topic),
                    ));
                    return Ok(());
                }
                let sent = self.send_letter(transaction, record, &reject).await;
                work.rejects
                    .push((record.partition(), record.offset(), reject));
                sent
            }
        }
    }

    /// Sets a record aside: original key and value, and why.
    async fn send_letter(
        &mut self,
        transaction: &Transaction<'_>,
        record: &BorrowedMessage<'_>,
        reject: &Reject,
    ) -> Result<(), Failed> {
        let letter = DeadLetter {
            topic: record.topic(),
            topic_id: self.source_id.as_deref(),
            partition: record.partition(),
            offset: record.offset(),
            timestamp_ms: record.timestamp().to_millis(),
            first: First::of(|name| dead_letters::header(record, name)),
            service: "router",
            instance: &self.instance,
            reject,
        };
        let letter = self.limits.fit(&letter, record.key(), record.payload());
        let letter = letter.await?;
        let mut sent = BaseRecord::to(&self.config.dead_letters_topic)
            .headers(service::kafka::headers(&letter.headers));
        (sent.key, sent.payload) = (letter.key, letter.value);
        transaction.send(sent).await
    }
}

/// Routes a record; an event is written into `buffer`.
fn route_record<'a>(
    schemas: &Schemas,
    limits: &Limits,
    source_id: Option<&str>,
    record: &'a impl Message,
    buffer: &'a mut Vec<u8>,
) -> Outcome<'a> {
    let source = PlainSource {
        topic: record.topic(),
        partition: record.partition(),
        offset: record.offset(),
        timestamp: record.timestamp().to_millis().unwrap_or(-1),
        topic_id: source_id,
    };
    route(
        &schemas.writers.decoder,
        record.payload(),
        source,
        Timestamp::now().as_microsecond(),
        schemas.framing,
        limits.event_bytes,
        buffer,
    )
}

/// That the records that were read are of the topic whose offsets are committed.
async fn same_topics(topic_ids: &TopicIds, transaction: &Transaction<'_>) -> Result<(), Failed> {
    match topic_ids.compare_before_commit(transaction.client()).await {
        Ok(()) => Ok(()),
        Err(NotTheSame::Changed(error)) => Err(Failed::Exit(error.into())),
        Err(NotTheSame::Unanswered(error)) => Err(Failed::Abort(error)),
    }
}

async fn commit(
    transaction: &Transaction<'_>,
    offsets: &TopicPartitionList,
    group: &ConsumerGroupMetadata,
    condition: impl Future<Output = Result<(), Failed>>,
) -> Result<(), Failed> {
    let begun = Instant::now();
    let committed = transaction.commit_if(offsets, group, condition).await;
    metrics::histogram!(names::OPERATION_DURATION, "messaging_operation_name" => "commit")
        .record(begun.elapsed());
    committed
}

/// Events that are in no transaction yet.
#[derive(Default)]
struct Ahead {
    events: Vec<AheadEvent>,
    /// Their keys and values.
    bytes: Vec<u8>,
}

struct AheadEvent {
    /// Of the record that it was made of.
    partition: i32,
    offset: i64,
    /// Where they are in [`Ahead::bytes`].
    key: Range<usize>,
    value: Range<usize>,
    adjustments: Vec<Adjustment>,
}

impl Ahead {
    fn push(
        &mut self,
        record: &BorrowedMessage<'_>,
        key: &str,
        value: &[u8],
        adjustments: Vec<Adjustment>,
    ) {
        let key_start = self.bytes.len();
        self.bytes.extend_from_slice(key.as_bytes());
        let value_start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.events.push(AheadEvent {
            partition: record.partition(),
            offset: record.offset(),
            key: key_start..value_start,
            value: value_start..self.bytes.len(),
            adjustments,
        });
    }

    /// Forgets them. Of each partition, `first` becomes the offset to read again from, where that has none.
    fn give_back(&mut self, first: &mut BTreeMap<i32, Offset>) {
        for event in self.events.drain(..) {
            let offset = Offset::Offset(event.offset);
            first.entry(event.partition).or_insert(offset);
        }
        self.bytes.clear();
    }
}

/// What one transaction has done so far.
#[derive(Default)]
struct Work {
    records: u32,
    events: u64,
    /// Partition and offset of each dead letter's record, and why.
    rejects: Vec<(i32, i64, Reject)>,
    adjustments: Vec<Adjustment>,
    /// The first offset read of each partition.
    first: BTreeMap<i32, Offset>,
    /// The next offset to read of each partition.
    next: BTreeMap<i32, i64>,
    /// Why the circuit breaker opened, if it did.
    tripped: Option<String>,
}

impl Work {
    fn read(&mut self, partition: i32, offset: i64) {
        self.records += 1;
        self.first
            .entry(partition)
            .or_insert(Offset::Offset(offset));
        self.next.insert(partition, offset + 1);
    }

    /// Tells log and metrics, once it is committed.
    fn count(&self, config: &Config) {
        metrics::counter!(names::CONSUMED, &messaging("poll", &config.source_topic))
            .increment(self.records.into());
        metrics::counter!(names::SENT, &messaging("send", &config.events_topic))
            .increment(self.events);
        metrics::counter!(names::SENT, &messaging("send", &config.dead_letters_topic))
            .increment(self.rejects.len() as u64);
        for (partition, offset, reject) in &self.rejects {
            metrics::counter!(DEAD_LETTERS, "reason" => reject.kind).increment(1);
            tracing::warn!(
                topic = config.source_topic,
                partition,
                offset,
                reason = reject.kind,
                "dead letter: {}",
                reject.message
            );
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

fn listed(partitions: &TopicPartitionList) -> String {
    let each = partitions.elements();
    let each: Vec<String> = each
        .iter()
        .map(|p| format!("{}@{:?}", p.partition(), p.offset()))
        .collect();
    each.join(", ")
}
