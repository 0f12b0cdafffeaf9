//! Where to start reading partitions: on assignment, after an outage, and when the database has stored more than
//! expected.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::warn_of_change;

use super::partitions::Partition;
use super::state::{Entrance, KAFKA_TIMEOUT, KnownId, State};
use crate::failure::Failure;
use crate::topic_identity::{Recognised, TopicIdentity, id_of, recreated};

/// Where to start reading partitions.
struct Starts {
    offsets: BTreeMap<i32, Offset>,
    partitions: BTreeMap<i32, Partition>,
}

impl Entrance<'_> {
    /// Starts assigned partitions at the stored offsets. If the database does not answer, the partitions are accepted
    /// but not started, so the group need not wait for it.
    pub(super) async fn begin(&mut self, assigned: &TopicPartitionList) -> anyhow::Result<()> {
        let assigned = BTreeSet::from_iter(numbers(assigned));
        let starts = match self.state {
            State::Storing => self.starts(&assigned).await,
            State::Waiting { .. } => Err(Failure::Retry(self.writer.place.clone())),
        };
        let (topic, subscription) = (&self.config.events_topic, self.source.subscription);
        let mut list = TopicPartitionList::new();
        match starts {
            Ok(starts) => {
                tracing::info!("assigned {:?}", starts.offsets);
                for (partition, offset) in starts.offsets {
                    list.add_partition_offset(topic, partition, offset)?;
                }
                self.partitions.start(starts.partitions);
                subscription.assign(&list)
            }
            Err(Failure::Retry(what)) => {
                for partition in &assigned {
                    list.add_partition_offset(topic, *partition, Offset::Beginning)?;
                }
                subscription.assign(&list)?;
                self.partitions.unstart(assigned);
                subscription.pause()?;
                self.wait_for(what)
            }
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    /// Starts the partitions that are not started yet.
    pub(super) async fn start_partitions(&mut self) -> Result<(), Failure> {
        let unstarted = self.partitions.unstarted();
        if unstarted.is_empty() {
            return Ok(());
        }
        let starts = self.starts(&unstarted).await?;
        tracing::info!("resuming from {:?}", starts.offsets);
        self.source
            .subscription
            .seek(&starts.offsets)
            .map_err(Failure::kafka)?;
        self.partitions.start(starts.partitions);
        Ok(())
    }

    /// The database has stored more than expected: drops what was read and resumes from the stored offsets.
    pub(super) async fn go_back(&mut self) -> Result<(), Failure> {
        self.batch.clear();
        self.source.ahead.clear();
        self.writer.breaker.take_back();
        let assigned = self.source.subscription.assignment()?;
        self.partitions.unstart(numbers(&assigned));
        self.start_partitions().await
    }

    /// Where to start these partitions: at the smallest of the parts' stored offsets, or at the beginning of the log if
    /// a part has stored nothing. The stored offsets become the writer's positions.
    async fn starts(&mut self, partitions: &BTreeSet<i32>) -> Result<Starts, Failure> {
        self.learn_topic_id().await?;
        let mut stored = self.writer.stored_offsets(Failure::of).await?;
        let parts = &self.writer.parts;
        let identity = TopicIdentity {
            subscription: self.source.subscription,
            lookup: &self.source.lookup,
            parts,
            id: self.topic_id.id(),
            place: &self.writer.place,
            on_gap: self.config.on_gap,
        };
        let Recognised { low, committed } = identity.recognise(partitions, &stored)?;
        self.source.letters.take_over(&committed);
        self.source.commits.take_over(&committed);
        stored.retain(|offset| {
            partitions.contains(&offset.partition) && parts.contains(&offset.part)
        });

        let positions = &mut self.writer.positions;
        positions.retain(|(_, partition), _| !partitions.contains(partition));
        let stored_next = stored
            .iter()
            .map(|offset| ((offset.part, offset.partition), offset.next_offset));
        positions.extend(stored_next);
        let mut starts = Starts {
            offsets: BTreeMap::new(),
            partitions: BTreeMap::new(),
        };
        for &partition in partitions {
            let of_partition = stored.iter().filter(|offset| offset.partition == partition);
            let without_topic_id = of_partition
                .clone()
                .filter(|offset| self.topic_id.id().is_some() && offset.topic_id.is_none())
                .map(|offset| offset.part)
                .collect();
            let next = match of_partition.clone().count() == parts.len() {
                true => of_partition.map(|offset| offset.next_offset).min(),
                false => None,
            };
            // After the gap, if there is one.
            let log_start = low.get(&partition).copied().unwrap_or_default();
            let next = next.map_or(Offset::Beginning, |next| {
                Offset::Offset(next.max(log_start))
            });
            starts.offsets.insert(partition, next);
            let started = Partition::Started {
                log_start,
                without_topic_id,
            };
            starts.partitions.insert(partition, started);
        }
        Ok(starts)
    }

    /// Asks Kafka for the topic's id.
    async fn learn_topic_id(&mut self) -> Result<(), Failure> {
        let topic = &self.config.events_topic;
        match (
            id_of(
                topic,
                self.source.subscription.topic_id(KAFKA_TIMEOUT).await,
            )?,
            self.topic_id,
        ) {
            (Ok(_), KnownId::Is(_)) | (Err(_), KnownId::Unavailable) => {}
            (Ok(id), KnownId::Unknown | KnownId::Unavailable) => {
                self.topic_id = KnownId::Is(id);
                self.writer.identity.topic_id = Some(id.to_string());
                self.source.letters.topic_id = Some(id.to_string());
            }
            (Err(reason), known) => {
                warn_of_change!(
                    "the id of {topic} is unavailable: {reason}. Only the last stored records identify the topic"
                );
                if matches!(known, KnownId::Unknown) {
                    self.topic_id = KnownId::Unavailable;
                }
            }
        }
        self.is_the_topic()
    }

    /// Checks that the topic is still the one that this consumer started with. Called before anything is stored.
    ///
    /// # Errors
    /// If it was deleted and recreated.
    pub(super) fn is_the_topic(&self) -> Result<(), Failure> {
        let Some(id) = self.topic_id.id() else {
            return Ok(());
        };
        match self.source.subscription.other_topic_id(id) {
            None => Ok(()),
            Some(other) => Err(recreated(
                &self.config.events_topic,
                &other.to_string(),
                &id.to_string(),
                &self.writer.place,
                self.writer.option,
            )),
        }
    }

    /// Drops the state of partitions that go to another owner.
    pub(super) fn forget(&mut self, partitions: &TopicPartitionList) {
        let partitions = Vec::from_iter(numbers(partitions));
        self.batch.forget(&partitions);
        self.writer
            .positions
            .retain(|(_, partition), _| !partitions.contains(partition));
        self.partitions.forget(&partitions);
        self.source.commits.forget(&partitions);
        self.source.letters.forget(&partitions);
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    let elements = list.elements();
    elements.iter().map(|element| element.partition()).collect()
}
