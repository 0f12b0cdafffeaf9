//! Resuming partitions without a committed offset: Kafka deletes offsets after `offsets.retention.minutes`,
//! and a deleted or renamed group has none.
//!
//! Each source record has exactly one output, an event or a dead letter, which names the record. (A copy of
//! an event, written by a redrive of a consumer's dead letter, does not count: it may be anywhere.) The
//! records of a source partition are routed in order, by one member of the group at a time: the next owner
//! begins at its predecessor's committed offset, and the predecessor cannot commit later. So
//!
//! 1. the routed records of a source partition are all those up to the newest one with an output, and the
//!    router resumes at the next one;
//! 2. in each partition of the events and dead letter topics, the outputs of one source partition are in the
//!    order of their source records.
//!
//! By 1, an output found in the tail of the output topics is the newest if the source record *after* it has
//! no output. That output would be in the events partition of its key, or in any partition of the dead letter
//! topic. By 2, such a partition does not contain it if it was read back
//!
//! - to an output of the same source partition, or of an earlier topic of that name (recognised by its id),
//!   since the output in question would come after it; or
//! - to its beginning, if nothing was deleted there; or
//! - to a time before the output in question can have been written (`proof::CLOCKS`), if that is after
//!   everything that retention has deleted.
//!
//! So the tail is enough for a partition in use; otherwise each output is read at most once. If the position
//! cannot be proved, the router stops: see [`OnNoOffset`].
//!
//! Only committed outputs count. The output topics are read to the ends that their logs have after the
//! group's answer, which waits for the transactions that are open there; and then once more, since such a
//! transaction may have committed records behind those ends. If outputs keep coming for this router's
//! partitions, another group routes them.

mod proof;
mod search;
mod tails;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, anyhow};
use rdkafka::topic_partition_list::Offset;
use service::kafka::Cluster;
use service::range::{End, Reader};
use service::warn_of_change;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, OnNoOffset};
use crate::outputs::SourceTopic;
use crate::transform::Codec;

use proof::{CLOCKS, undecided};
use search::Search;
use tails::OutputTopic;

/// Start offsets of these source partitions, which are assigned to this router and have no committed offset.
///
/// # Errors
/// [`NeedsAttention`] with the choices if the position cannot be proved or `--on-no-offset` is `fail`; others
/// if Kafka does not answer, or on a signal.
pub(super) async fn starts(
    config: &Config,
    codec: &Codec,
    max_event_bytes: usize,
    source_topic_id: Option<&str>,
    partitions: &BTreeSet<i32>,
    stop: &CancellationToken,
) -> anyhow::Result<BTreeMap<i32, Offset>> {
    let cluster = config.kafka.cluster(stop).await?;
    let cluster = cluster.ok_or_else(|| anyhow!("stopped by a signal"))?;
    let reader = Reader::connect(&config.kafka)?;
    let source = &config.source_topic;
    let mut starts = BTreeMap::new();
    let mut searched = BTreeMap::new();
    for partition in partitions {
        let log = block_in_place(|| reader.bounds(source, *partition, End::Stable))?;
        match log.is_empty() {
            true => {
                if log.end > 0 {
                    warn_of_change!(
                        "{source} partition {partition}: group {} has no committed offset, and no record is left before \
                         offset {}: beginning there; unknown whether all deleted records were routed",
                        config.group,
                        log.end
                    );
                }
                starts.insert(*partition, Offset::Offset(log.end))
            }
            false => searched.insert(*partition, log.start).map(Offset::Offset),
        };
    }
    if searched.is_empty() {
        return Ok(starts);
    }
    let events = OutputTopic::of(&cluster, &reader, &config.events_topic).await?;
    let letters = OutputTopic::of(&cluster, &reader, &config.dead_letters_topic).await?;
    let unused = events.unused && letters.unused;
    let choice = match unused {
        true => OnNoOffset::Beginning,
        false => config.on_no_offset,
    };
    match choice {
        OnNoOffset::Beginning => {
            if !unused {
                warn_of_change!(
                    "group {} has no committed offset for {source} partitions {:?}: routing them from their first \
                     record, because --on-no-offset is beginning",
                    config.group,
                    searched.keys()
                );
            }
            starts.extend(searched.into_keys().map(|p| (p, Offset::Beginning)));
        }
        OnNoOffset::Fail => {
            let partition = *searched.keys().next().context("a partition is searched")?;
            let why = "--on-no-offset is fail";
            return Err(undecided(config, partition, why));
        }
        OnNoOffset::Resume => {
            let latest_stamp_ms = latest_stamp(&cluster, source).await;
            for topic in [&events.name, &letters.name] {
                if let Some(why) = cluster.compaction(topic).await? {
                    let partition = *searched.keys().next().context("a partition is searched")?;
                    return Err(undecided(config, partition, &why));
                }
            }
            let mut search = Search {
                config,
                codec,
                max_event_bytes,
                source: SourceTopic {
                    topic: source.clone(),
                    id: source_topic_id.map(str::to_owned),
                },
                reader: &reader,
                latest_stamp_ms,
                searched: &searched,
                newest: BTreeMap::new(),
                unreadable: BTreeMap::new(),
                read: 0,
                stop,
            };
            starts.extend(block_in_place(|| search.starts([events, letters]))?);
        }
    }
    Ok(starts)
}

/// By how much a record's timestamp may be later than its append time, in ms; `None` if this is unlimited, or
/// this user may not describe the topic.
async fn latest_stamp(cluster: &Cluster, topic: &str) -> Option<i64> {
    let setting = cluster.topic_setting(topic, "message.timestamp.after.max.ms");
    let ms = setting.await.ok()?.parse().ok()?;
    (ms <= 24 * CLOCKS).then_some(ms)
}
