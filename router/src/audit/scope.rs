//! Scope of an audit: the range of source records, and the parts of the output topics to compare.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::exit::NeedsAttention;
use service::kafka::{Cluster, KafkaOptions, LoggingContext};
use service::range::{Bound, End, Position, Ranges, Reader};
use service::topic_id::TopicIdAnswer;
use tokio::task::block_in_place;

use super::Audit;
use crate::outputs::SourceTopic;
use crate::topic_ids::noted;

/// Timeout of a request for the committed offsets.
const ASK: Duration = Duration::from_secs(10);
/// Number of tries, since the coordinator may be moving to another broker.
const TRIES: usize = 3;
/// How long to poll for the error that explains a missing answer.
const EXPLAIN: Duration = Duration::from_secs(1);

/// Scope of an audit. The group's committed offsets are read first and the ends of the outputs second:
/// offsets commit together with the output of the records before them, so all of that output is before these
/// ends, even if routing continues.
#[derive(Debug)]
pub(super) struct Scope {
    /// The source topic and its id.
    pub(super) identity: SourceTopic,
    pub(super) source: AuditedTopic,
    pub(super) events: AuditedTopic,
    pub(super) letters: AuditedTopic,
    /// The source topic's logs, from the first offset to the high watermark. Read last, so that the source
    /// records of all outputs are before these ends.
    pub(super) logs: Ranges,
    /// Number of unrouted offsets in the range, up to the last stable one.
    pub(super) pending: BTreeMap<i32, u64>,
}

/// A topic and its audited offsets.
#[derive(Debug)]
pub(super) struct AuditedTopic {
    pub(super) topic: String,
    pub(super) ranges: Ranges,
    pub(super) compaction: Compaction,
}

/// Whether compaction deletes records of a topic, so that a missing record proves nothing.
#[derive(Debug)]
pub(super) enum Compaction {
    No,
    /// With the command to change it.
    Yes(String),
    /// Unknown, with the reason.
    Unknown(String),
}

impl Compaction {
    async fn of(cluster: &Cluster, topic: &str) -> anyhow::Result<Self> {
        match cluster.compaction(topic).await {
            Ok(None) => Ok(Self::No),
            Ok(Some(why)) => Ok(Self::Yes(why)),
            // A missing right is an error only if the answer matters.
            Err(error) if error.chain().any(|cause| cause.is::<NeedsAttention>()) => {
                Ok(Self::Unknown(format!("{error:#}")))
            }
            Err(error) => Err(error),
        }
    }

    /// Why a missing record, called `what`, proves nothing; `None` if it proves a loss.
    pub(super) fn doubt(&self, what: &str) -> Option<String> {
        match self {
            Self::No => None,
            Self::Yes(_) => Some(format!("compaction may have deleted its {what}")),
            Self::Unknown(_) => Some(format!(
                "its {what} is missing; unknown whether compaction deletes any"
            )),
        }
    }
}

/// Classification of an output by its source offset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the scope.
    Asked,
    /// Outside the range, or not yet routed when the audit began.
    Outside,
    /// Retention has deleted its source record.
    Expired,
    /// The source offset does not exist; why.
    Nowhere(String),
}

impl Scope {
    pub(super) async fn of(
        asked: &Audit,
        kafka: &KafkaOptions,
        cluster: &Cluster,
        reader: &Reader,
    ) -> anyhow::Result<Self> {
        let source = &asked.source_topic;
        let count = cluster.require_topic(source, "Read", None).await?;
        let identity = identity(cluster, source).await?;
        let committed = block_in_place(|| committed(kafka, &asked.group, &identity, count))?;
        let events = whole(cluster, reader, &asked.events_topic).await?;
        let letters = whole(cluster, reader, &asked.dead_letters_topic).await?;
        let AuditedTopic {
            ranges: logs,
            compaction,
            ..
        } = whole(cluster, reader, source).await?;
        let (ranges, pending) =
            block_in_place(|| asked_ranges(asked, reader, &committed, &logs, count))?;
        Ok(Self {
            identity,
            source: AuditedTopic {
                topic: source.clone(),
                ranges,
                compaction,
            },
            events,
            letters,
            logs,
            pending,
        })
    }

    /// Reasons that prevent a verdict. An unknown compaction counts only if something was unprovable.
    pub(super) fn doubts(&self, is_unprovable: bool) -> Vec<&str> {
        let parts = [&self.source, &self.events, &self.letters];
        let doubts = parts.into_iter().filter_map(|part| match &part.compaction {
            Compaction::Yes(why) => Some(why.as_str()),
            Compaction::Unknown(why) if is_unprovable => Some(why.as_str()),
            Compaction::No | Compaction::Unknown(_) => None,
        });
        doubts.collect()
    }

    pub(super) fn place(&self, about: Position) -> Place {
        let Position { partition, offset } = about;
        let Some(log) = self.logs.get(&partition) else {
            return Place::Nowhere(format!("{} has no such partition", self.source.topic));
        };
        let Some(asked) = self.source.ranges.get(&partition) else {
            return Place::Outside;
        };
        if asked.contains(&offset) {
            Place::Asked
        } else if offset < 0 || offset >= log.end {
            Place::Nowhere(format!("the log ends at offset {}", log.end))
        } else if offset < log.start {
            Place::Expired
        } else {
            Place::Outside
        }
    }

    /// Checks that nothing was deleted before it was read.
    ///
    /// # Errors
    /// If the log of a part now begins later than when the part was chosen, or Kafka does not answer.
    pub(super) fn still_there(part: &AuditedTopic, reader: &Reader) -> anyhow::Result<()> {
        let topic = &part.topic;
        for (partition, range) in part.ranges.iter().filter(|(_, range)| !range.is_empty()) {
            let start = reader.bounds(topic, *partition, End::Stable)?.start;
            if start > range.start {
                bail!(
                    "{topic} partition {partition}: retention moved the log's start from offset {} to {start} while it was \
                     read. Audit again, or a later range by --from",
                    range.start
                );
            }
        }
        Ok(())
    }
}

/// The whole topic, up to the high watermark of each partition, since transactions behind an open one may
/// have committed.
async fn whole(cluster: &Cluster, reader: &Reader, topic: &str) -> anyhow::Result<AuditedTopic> {
    let count = i32::try_from(cluster.require_topic(topic, "Read", None).await?)?;
    let ranges = block_in_place(|| {
        (0..count)
            .map(|partition| Ok((partition, reader.bounds(topic, partition, End::High)?)))
            .collect::<anyhow::Result<Ranges>>()
    })?;
    Ok(AuditedTopic {
        topic: topic.to_owned(),
        ranges,
        compaction: Compaction::of(cluster, topic).await?,
    })
}

async fn identity(cluster: &Cluster, topic: &str) -> anyhow::Result<SourceTopic> {
    let answer = cluster.topic_id(topic).await;
    let id = match answer.context("asking for the source topic's id")? {
        TopicIdAnswer::Id(id) => Some(id.to_string()),
        TopicIdAnswer::NoSuchTopic => bail!("topic {topic} was deleted a moment ago"),
        TopicIdAnswer::Unavailable { .. } => None,
    };
    Ok(SourceTopic {
        topic: topic.to_owned(),
        id,
    })
}

/// The group's committed offset of each partition that has one.
fn committed(
    kafka: &KafkaOptions,
    group: &str,
    source: &SourceTopic,
    count: usize,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let topic = &source.topic;
    let mut config = kafka.client_config(&[], &[("enable.auto.commit", "false")])?;
    // With read_uncommitted, the answer comes at once even while a transaction with offsets is open. It never
    // contains uncommitted offsets.
    config
        .set("group.id", group)
        .set("isolation.level", "read_uncommitted");
    let consumer: BaseConsumer<LoggingContext> = config.create_with_context(LoggingContext)?;
    let mut asked = TopicPartitionList::new();
    for partition in 0..i32::try_from(count)? {
        asked.add_partition(topic, partition);
    }
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        match consumer.committed_offsets(asked.clone(), ASK) {
            Ok(answer) => break answer,
            Err(error) => {
                // Without the right, the request times out, and only polling returns the reason.
                let errors = std::iter::from_fn(|| consumer.poll(EXPLAIN));
                let denied = errors.filter_map(Result::err).find(is_denied);
                if denied.is_some() || tries == TRIES {
                    return Err(unanswered(kafka, group, denied.unwrap_or(error)));
                }
            }
        }
    };
    let mut committed = BTreeMap::new();
    for partition in answer.elements() {
        let id = partition.partition();
        partition.error().map_err(|error| {
            unanswered(kafka, group, error).context(format!("{topic} partition {id}"))
        })?;
        let Offset::Offset(offset) = partition.offset() else {
            continue;
        };
        let of = noted(partition.metadata()).map(|id| id.to_string());
        if let (Some(of), Some(present)) = (of, &source.id)
            && of != *present
        {
            bail!(
                "{topic} partition {id}: group {group} has committed offset {offset} of the topic with the id {of}, and the \
                 topic has the id {present}: it was deleted and created again, and nothing of it is routed yet"
            );
        }
        committed.insert(id, offset);
    }
    Ok(committed)
}

fn is_denied(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed)
}

fn unanswered(kafka: &KafkaOptions, group: &str, error: KafkaError) -> anyhow::Error {
    let denied = is_denied(&error);
    let asking = format!("asking for the committed offsets of group {group}");
    match denied {
        true => {
            let allow = kafka.allow(&format!("--group {group}"), "Describe");
            NeedsAttention(format!("{asking}: {error}; {allow}")).into()
        }
        false => anyhow!(error).context(asking),
    }
}

/// The routed offsets of the range, and the number of unrouted ones behind them.
fn asked_ranges(
    asked: &Audit,
    reader: &Reader,
    committed: &BTreeMap<i32, i64>,
    logs: &Ranges,
    count: usize,
) -> anyhow::Result<(Ranges, BTreeMap<i32, u64>)> {
    let (topic, group) = (&asked.source_topic, &asked.group);
    // The next audit covers partitions that were added meanwhile.
    let logs: Ranges = logs
        .iter()
        .take(count)
        .map(|(partition, log)| (*partition, log.clone()))
        .collect();
    for bound in [Some(&asked.from), asked.to.as_ref()].into_iter().flatten() {
        within(bound, topic, &logs)?;
    }
    if committed.is_empty() && logs.values().any(|log| !log.is_empty()) {
        bail!(
            "group {group} has committed no offset of {topic}: is it the routers' group (--group)?"
        );
    }
    let starts = reader.resolve(topic, &asked.from, &logs)?;
    let ends = match &asked.to {
        None => None,
        Some(Bound::Latest) => None,
        Some(to) => Some(reader.resolve(topic, to, &logs)?),
    };
    let (mut ranges, mut pending) = (Ranges::new(), BTreeMap::new());
    for (partition, start) in starts {
        let log = &logs[&partition];
        if matches!(asked.from, Bound::Time(_))
            && start == log.start
            && start > 0
            && start < log.end
        {
            bail!(
                "{topic} partition {partition}: retention has deleted the records before offset {start}, and those of the time \
                 asked for by --from may be among them. --from earliest audits what is there"
            );
        }
        let end = match &ends {
            None => log.end,
            Some(ends) => match ends.get(&partition) {
                Some(end) => *end,
                None => continue,
            },
        };
        if let (Bound::Offsets(_), Some(Bound::Offsets(_))) = (&asked.from, &asked.to)
            && start > end
        {
            bail!("{topic} partition {partition}: --from {start} is behind --to {end}");
        }
        let routed = committed.get(&partition).copied().unwrap_or(log.start);
        if routed > log.end {
            bail!(
                "{topic} partition {partition}: group {group} has committed offset {routed}, but the log ends at {}. The topic \
                 was deleted and created again; outputs of both cannot be distinguished",
                log.end
            );
        }
        let stable = reader.bounds(topic, partition, End::Stable)?.end;
        let waiting = end.min(stable) - routed.max(start).max(log.start);
        pending.insert(partition, u64::try_from(waiting).unwrap_or(0));
        let start = start.max(log.start);
        ranges.insert(partition, start..end.min(routed).max(start));
    }
    Ok((ranges, pending))
}

/// Checks that the logs contain the named offsets.
fn within(bound: &Bound, topic: &str, logs: &Ranges) -> anyhow::Result<()> {
    let Bound::Offsets(offsets) = bound else {
        return Ok(());
    };
    let known: BTreeSet<i32> = logs.keys().copied().collect();
    for (partition, offset) in offsets {
        let Some(log) = logs.get(partition) else {
            bail!("{topic} has no partition {partition}, only {known:?}");
        };
        if *offset < log.start || *offset > log.end {
            bail!(
                "{topic} partition {partition}: the log reaches from offset {} to {}, and offset {offset} was asked for: retention \
                 has deleted it, or it is yet to come",
                log.start,
                log.end
            );
        }
    }
    Ok(())
}
