//! Detection of topics that were replaced while the router runs or between runs.
//!
//! After a topic is deleted and created again under the same name, old offsets refer to other records;
//! librdkafka continues at the old offset without an error. Kafka's topic id (KIP-516) distinguishes the two.
//! It is compared before a commit, on assignment, after an error that ends the router, and every few seconds
//! while idle. The source topic's id is committed with the group's offsets, so that a restarted router knows
//! their topic.
//!
//! Why no record of a new topic is committed by the old one's offsets: if the id is unchanged after records
//! were read, they belong to the same topic. The answer may be up to [`TRUST`] old, since after a fetch that
//! failed because of the deletion, librdkafka does not fetch again for `fetch.error.backoff.ms`, which is
//! longer.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::exit::NeedsAttention;
use service::topic_id::{TopicId, TopicIdAnswer, topic_ids};
use service::warn_of_change;
use tokio::time::sleep;

use crate::config::Config;

/// How long an answer is valid for commits. Shorter than `fetch.error.backoff.ms`, which is fixed.
const TRUST: Duration = Duration::from_millis(250);
/// Interval of comparisons while nothing is committed.
const IDLE_CHECK: Duration = Duration::from_secs(5);
/// Timeout of an answer.
const ANSWER: Duration = Duration::from_secs(3);
/// A broker's metadata may be stale, so a change counts after this many equal answers, with pauses between.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_millis(500);
const UNKNOWN_TOPIC: KafkaError = KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition);
/// Prefix of the metadata of a committed offset; the id follows.
const METADATA: &str = "topic-id=";

/// The ids of the source topic and the two output topics at the start.
#[derive(Debug)]
pub(crate) struct TopicIds {
    source: String,
    /// By topic; `None` if unavailable.
    known: BTreeMap<String, Option<TopicId>>,
    compared: Mutex<Compared>,
}

/// Time of the last successful comparison, by both clocks: one of them stops while the machine sleeps.
#[derive(Clone, Copy, Debug)]
struct Compared {
    at: Instant,
    wall: SystemTime,
}

impl Compared {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    fn is_recent(self) -> bool {
        self.at.elapsed() < TRUST && self.wall.elapsed().is_ok_and(|elapsed| elapsed < TRUST)
    }
}

/// Why a comparison failed.
#[derive(Debug)]
pub(crate) enum NotTheSame {
    /// A topic was deleted, or is another one now.
    Changed(NeedsAttention),
    /// There was no answer; try again.
    Unanswered(KafkaError),
}

impl From<NotTheSame> for anyhow::Error {
    fn from(error: NotTheSame) -> Self {
        match error {
            NotTheSame::Changed(error) => error.into(),
            NotTheSame::Unanswered(error) => {
                anyhow::Error::new(error).context("asking for the ids of the topics")
            }
        }
    }
}

impl TopicIds {
    /// Requests the ids.
    ///
    /// # Errors
    /// If there is no answer.
    pub(crate) async fn ask<C: ClientContext>(
        config: &Config,
        client: &Client<C>,
    ) -> Result<Self, NotTheSame> {
        let names = [
            &config.source_topic,
            &config.events_topic,
            &config.dead_letters_topic,
        ];
        let mut ids = Self {
            source: config.source_topic.clone(),
            known: names.map(|name| (name.clone(), None)).into(),
            compared: Mutex::new(Compared::now()),
        };
        let answers = ids.answers(client).await.map_err(NotTheSame::Unanswered)?;
        for ((topic, known), answer) in ids.known.iter_mut().zip(answers) {
            match answer {
                TopicIdAnswer::Id(id) => *known = Some(id),
                TopicIdAnswer::Unavailable { reason } => warn_of_change!(
                    "{topic}: its id is unknown, so a topic of the same name that replaces it cannot be \
                     recognised: {reason}"
                ),
                // It existed a moment ago, so this broker's metadata is stale.
                TopicIdAnswer::NoSuchTopic => return Err(NotTheSame::Unanswered(UNKNOWN_TOPIC)),
            }
        }
        Ok(ids)
    }

    async fn answers<C: ClientContext>(
        &self,
        client: &Client<C>,
    ) -> Result<Vec<TopicIdAnswer>, KafkaError> {
        let names: Vec<&str> = self.known.keys().map(String::as_str).collect();
        let answers = topic_ids(client, &names, ANSWER).await?;
        match answers.len() == names.len() {
            true => Ok(answers),
            false => Err(KafkaError::AdminOp(RDKafkaErrorCode::BadMessage)),
        }
    }

    /// The source topic's id.
    pub(crate) fn source(&self) -> Option<TopicId> {
        self.known.get(&self.source).copied().flatten()
    }

    /// Requests the ids and compares them.
    ///
    /// # Errors
    /// If a topic was replaced, or there is no answer.
    pub(crate) async fn compare<C: ClientContext>(
        &self,
        client: &Client<C>,
    ) -> Result<(), NotTheSame> {
        if self.known.values().all(Option::is_none) {
            return Ok(());
        }
        let mut tries = 1;
        loop {
            let asked = Compared::now();
            let answers = self.answers(client).await.map_err(NotTheSame::Unanswered)?;
            let mut each = self.known.iter().zip(answers);
            let Some(error) = each.find_map(|((topic, known), answer)| match (*known, answer) {
                (Some(known), TopicIdAnswer::Id(id)) if id != known => {
                    Some(self.changed(topic, known, id))
                }
                (Some(known), TopicIdAnswer::NoSuchTopic) => Some(NeedsAttention(format!(
                    "topic {topic}, which had the id {known}, is gone: it was deleted"
                ))),
                _ => None,
            }) else {
                *self.lock() = asked;
                return Ok(());
            };
            if tries == TRIES {
                return Err(NotTheSame::Changed(error));
            }
            tries += 1;
            sleep(AGAIN).await;
        }
    }

    /// Whether a comparison is due while nothing is committed.
    pub(crate) fn is_idle_check_due(&self) -> bool {
        self.lock().at.elapsed() >= IDLE_CHECK
    }

    /// Compares, unless the last comparison is recent.
    ///
    /// # Errors
    /// As [`compare`](Self::compare).
    pub(crate) async fn compare_before_commit<C: ClientContext>(
        &self,
        client: &Client<C>,
    ) -> Result<(), NotTheSame> {
        let compared = *self.lock();
        match compared.is_recent() {
            true => Ok(()),
            false => self.compare(client).await,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Compared> {
        self.compared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ids found by later clients of the same process, if they equal `before`. A missing id is taken from
    /// `before`.
    ///
    /// # Errors
    /// If a topic was replaced.
    pub(crate) fn after(mut self, before: &Self) -> Result<Self, NeedsAttention> {
        for (topic, known) in &before.known {
            let Some(known) = *known else { continue };
            match self.known.get(topic).copied().flatten() {
                Some(now) if now != known => return Err(self.changed(topic, known, now)),
                Some(_) => {}
                None => _ = self.known.insert(topic.clone(), Some(known)),
            }
        }
        Ok(self)
    }

    /// Adds the source topic's id to offsets to commit.
    ///
    /// # Errors
    /// If the list contains another topic.
    pub(crate) fn note(&self, offsets: &mut TopicPartitionList) -> anyhow::Result<()> {
        let Some(id) = self.source() else {
            return Ok(());
        };
        let partitions = offsets.elements();
        let partitions: Vec<i32> = partitions.iter().map(|p| p.partition()).collect();
        for partition in partitions {
            let mut offset = offsets
                .find_partition(&self.source, partition)
                .context("a partition of another topic")?;
            offset.set_metadata(format!("{METADATA}{id}"));
        }
        Ok(())
    }

    /// Checks that the group's committed offsets belong to the present source topic. Offsets without an id
    /// (of an older version) are accepted.
    ///
    /// # Errors
    /// If one belongs to another topic.
    pub(crate) fn are_of_the_source(
        &self,
        group: &str,
        committed: &TopicPartitionList,
    ) -> Result<(), NeedsAttention> {
        let Some(id) = self.source() else {
            return Ok(());
        };
        for partition in committed.elements() {
            let Offset::Offset(offset) = partition.offset() else {
                continue;
            };
            let Some(of) = noted(partition.metadata()).filter(|of| *of != id) else {
                continue;
            };
            let topic = &self.source;
            return Err(NeedsAttention(format!(
                "topic {topic} partition {}: group {group} has committed offset {offset} of the topic with the id {of}, \
                 and the topic has the id {id}: it was deleted and created again. Nothing of it was routed. To route it \
                 from its beginning: kafka-consumer-groups.sh --reset-offsets --to-earliest --group {group} --topic \
                 {topic} --execute",
                partition.partition()
            )));
        }
        Ok(())
    }

    fn changed(&self, topic: &str, known: TopicId, now: TopicId) -> NeedsAttention {
        let what = format!(
            "topic {topic} had the id {known} and now has the id {now}: it was deleted and created again while this \
             router ran"
        );
        NeedsAttention(match topic == self.source {
            true => format!(
                "{what}. Nothing of the new topic was routed. Start the router again to route it; offsets of the old one \
                 are not used for it"
            ),
            false => format!(
                "{what}. The content of the old one is lost, and an audit will report it. Start the router again to \
                 write to the new one"
            ),
        })
    }
}

/// The id in the metadata of a committed offset.
pub(crate) fn noted(metadata: &str) -> Option<TopicId> {
    metadata.strip_prefix(METADATA)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_of_other_programs_names_no_id() {
        let id: TopicId = "ASNFZ4mrze8AESIzRFVmdw".parse().unwrap();
        assert_eq!(noted(&format!("topic-id={id}")), Some(id));
        for other in ["", "topic-id=", "topic-id=AAAA", "NONE"] {
            assert_eq!(noted(other), None);
        }
    }
}
