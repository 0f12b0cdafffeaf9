//! Dead letters of the consumer: each is written exactly once, before the database moves past its event.
//!
//! Letters and the group's committed offset are in one Kafka transaction, and the offset's metadata lists the events
//! that have letters. The next owner of the partition therefore knows after any crash which letters exist. A consumer
//! that has lost the partition can write none: the broker refuses the offsets of an old generation of the group, and
//! with them the letters.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use rdkafka::consumer::{CommitMode, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::dead_letter::First;
use schemas::{DeadLetter, Reject};
use service::kafka::{KafkaOptions, header};
use service::limits::{SizeLimits, is_too_large};
use service::lookup::Lookup;
use service::subscription::Subscription;
use service::telemetry::{messaging, names};
use service::threads::blocking;
use service::transaction::{Failed, Transaction, TransactionalProducer};
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;

/// Counter: dead letters written, by kind. Label `reason`.
pub(crate) const DEAD_LETTERS: &str = "taskrunning_dead_letters_total";
/// Prefix of an offset's metadata; comma-separated offsets follow.
const METADATA: &str = "dead-lettered:";
/// Maximum number of letters of events that are not stored yet: the broker limits metadata to 4096 bytes
/// (`offset.metadata.max.bytes`).
pub(crate) const MAX_UNSTORED: usize = 150;

/// Maximum size, in bytes of events, of a transaction of letters. The events are read from their topic again.
const AT_ONCE_BYTES: usize = 8 << 20;

/// An event that becomes a dead letter.
pub(crate) struct Refused<'a> {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Bytes of its key and value.
    pub(crate) bytes: usize,
    pub(crate) reject: &'a Reject,
}

/// Writes the dead letters of one member of the group.
pub(crate) struct Letters {
    options: KafkaOptions,
    transactional_id: String,
    /// `None` after a transaction with an unknown outcome.
    producer: Option<TransactionalProducer>,
    topic: String,
    instance: String,
    limits: SizeLimits,
    /// The events topic's id, once known.
    pub(crate) topic_id: Option<String>,
    /// Events that have a letter and are not stored yet, by partition.
    written: BTreeMap<i32, BTreeSet<i64>>,
    /// Partitions of a transaction with an unknown outcome.
    unsettled: BTreeSet<i32>,
    /// Letters written since the start.
    pub(crate) count: u64,
}

impl Letters {
    /// Starts a writer of letters for a member of `group`; `None` if shut down while Kafka was unavailable.
    ///
    /// # Errors
    /// If a setting is wrong, or a right is missing.
    pub(crate) async fn start(
        options: &KafkaOptions,
        topic: &str,
        group: &str,
        instance: String,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Option<Self>> {
        let limits = SizeLimits::read(options, &[topic]).await?;
        let transactional_id = format!("{group}-letters-{instance}");
        let batch_bytes = limits.smallest();
        let topics = [topic];
        let started = TransactionalProducer::start(
            options,
            &transactional_id,
            &topics,
            batch_bytes,
            shutdown,
        );
        Ok(started.await?.map(|producer| Self {
            options: options.clone(),
            transactional_id,
            producer: Some(producer),
            topic: topic.to_owned(),
            instance,
            limits,
            topic_id: None,
            written: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            count: 0,
        }))
    }

    /// Whether it is known which events of a partition have letters.
    pub(crate) fn is_settled(&self, partition: i32) -> bool {
        !self.unsettled.contains(&partition)
    }

    /// Drops partitions that go to another owner.
    pub(crate) fn forget(&mut self, partitions: &[i32]) {
        self.unsettled
            .retain(|partition| !partitions.contains(partition));
    }

    /// Takes over partitions: the metadata of the group's committed offsets lists the events that have letters.
    pub(crate) fn take_over(&mut self, committed: &TopicPartitionList) {
        for partition in committed.elements() {
            let offsets = written(partition.metadata());
            self.written.insert(partition.partition(), offsets);
            self.unsettled.remove(&partition.partition());
        }
    }

    /// Everything before `next` is stored. Returns the offset to commit.
    pub(crate) fn stored(&mut self, partition: i32, next: i64) -> Committed {
        let offsets = self.written.entry(partition).or_default();
        *offsets = offsets.split_off(&next);
        Committed {
            partition,
            next,
            metadata: metadata(offsets),
        }
    }

    /// Writes the letters of these events, except those that have one, in transactions of bounded size. Each
    /// transaction also commits which letters exist. `stored` is the next offset of each of their partitions in the
    /// database.
    ///
    /// # Errors
    /// [`Failure::Retry`] if Kafka is unavailable, or if the partition is about to go to another owner.
    pub(crate) async fn write(
        &mut self,
        subscription: &Subscription,
        lookup: &Lookup,
        refused: &[Refused<'_>],
        stored: &BTreeMap<i32, i64>,
    ) -> Result<(), Failure> {
        if self.producer.is_none() {
            self.initialise(subscription).await?;
        }
        let missing: Vec<&Refused<'_>> = refused
            .iter()
            .filter(|event| {
                let written = self.written.get(&event.partition);
                written.is_none_or(|offsets| !offsets.contains(&event.offset))
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        // A synchronous commit: earlier commits arrive before it, so none can overwrite the metadata later.
        let committed: Vec<Committed> = stored
            .iter()
            .map(|(p, next)| self.stored(*p, *next))
            .collect();
        let committed = offsets(subscription.topic(), &committed)?;
        blocking(|| subscription.consumer().commit(&committed, CommitMode::Sync))?;

        let mut left = &missing[..];
        while !left.is_empty() {
            let (group, rest) = left.split_at(fitting(left));
            self.write_group(subscription, lookup, group, stored)
                .await?;
            left = rest;
        }
        Ok(())
    }

    /// Writes these letters in one transaction.
    async fn write_group(
        &mut self,
        subscription: &Subscription,
        lookup: &Lookup,
        group: &[&Refused<'_>],
        stored: &BTreeMap<i32, i64>,
    ) -> Result<(), Failure> {
        let records = lookup.records(group.iter().map(|event| (event.partition, event.offset)))?;
        let mut written = self.written.clone();
        for event in group {
            written
                .entry(event.partition)
                .or_default()
                .insert(event.offset);
        }
        let committed = stored.iter().map(|(&partition, &next)| Committed {
            partition,
            next,
            metadata: written.get(&partition).map(metadata).unwrap_or_default(),
        });
        let offsets = offsets(subscription.topic(), &committed.collect::<Vec<_>>())?;

        let Some(mut producer) = self.producer.take() else {
            return Err(Failure::Retry("Kafka".to_owned()));
        };
        let transaction = match producer.begin() {
            Ok(transaction) => transaction,
            Err(failed) => return Err(not_written(failed)),
        };
        self.unsettled.extend(stored.keys());
        let sent = self
            .send(&transaction, subscription, group, &records, &offsets)
            .await;
        match sent {
            Ok(()) => {
                self.producer = Some(producer);
                self.written = written;
                self.unsettled.clear();
                self.report(subscription.topic(), group);
                Ok(())
            }
            Err(Failed::Abort(error)) => {
                // The producer is dropped if the abort fails.
                transaction.abort().await.map_err(not_written)?;
                self.unsettled.clear();
                if !is_too_large(&error) {
                    self.producer = Some(producer);
                    return Err(error.into());
                }
                // The topic's limit was lowered: the next attempt starts with a producer of smaller batches.
                let read = self.limits.read_again().await;
                read.map_err(|unread| not_written(Failed::unread_limit(unread)))?;
                Err(error.into())
            }
            Err(failed) => Err(not_written(failed)),
        }
    }

    /// Counts and logs written letters.
    fn report(&mut self, topic: &str, group: &[&Refused<'_>]) {
        self.count += group.len() as u64;
        metrics::counter!(names::SENT, &messaging("send", &self.topic))
            .increment(group.len() as u64);
        for Refused {
            partition,
            offset,
            reject,
            ..
        } in group
        {
            metrics::counter!(DEAD_LETTERS, "reason" => reject.kind).increment(1);
            let reason = reject.kind;
            tracing::warn!(
                topic,
                partition,
                offset,
                reason,
                "dead letter: {}",
                reject.message
            );
        }
    }

    async fn send(
        &mut self,
        transaction: &Transaction<'_>,
        subscription: &Subscription,
        events: &[&Refused<'_>],
        records: &[OwnedMessage],
        offsets: &TopicPartitionList,
    ) -> Result<(), Failed> {
        let by_place = |record: &'_ OwnedMessage| (record.partition(), record.offset());
        let places = records.iter().map(by_place).zip(records);
        let records: BTreeMap<(i32, i64), &OwnedMessage> = places.collect();
        for event in events {
            let record = records.get(&(event.partition, event.offset)).copied();
            let letter = DeadLetter {
                topic: subscription.topic(),
                topic_id: self.topic_id.as_deref(),
                partition: event.partition,
                offset: event.offset,
                timestamp_ms: record.and_then(|record| record.timestamp().to_millis()),
                first: record.and_then(|record| First::of(|name| header(record, name))),
                service: "consumer",
                instance: &self.instance,
                reject: event.reject,
            };
            let (key, value) = record.map_or((None, None), |r| (r.key(), r.payload()));
            let fit = |room| letter.letter(key, value, room).measured();
            let letter = self.limits.fit(&self.topic, fit).await?;
            let mut sent =
                BaseRecord::to(&self.topic).headers(service::kafka::headers(&letter.headers));
            (sent.key, sent.payload) = (letter.key, letter.value);
            transaction.send(sent).await?;
        }
        let group = subscription.consumer().group_metadata();
        let group = group.ok_or_else(|| Failed::StartOver(anyhow!("no group metadata")))?;
        transaction.commit(offsets, &group).await
    }

    /// Creates a producer, which ends a transaction that an earlier one left open, then reads which letters exist.
    async fn initialise(&mut self, subscription: &Subscription) -> Result<(), Failure> {
        let batch_bytes = self.limits.smallest();
        let producer = TransactionalProducer::create(
            &self.options,
            &self.transactional_id,
            &[&self.topic],
            batch_bytes,
        );
        let producer = producer.map_err(Failure::Exit)?;
        producer.initialise().map_err(not_written)?;
        let assigned = subscription.assignment().map_err(Failure::Exit)?;
        let committed = subscription.committed(&assigned);
        self.take_over(&committed.map_err(|error| Failure::Retry(format!("Kafka: {error}")))?);
        self.producer = Some(producer);
        Ok(())
    }
}

/// The number of events, from the first on, that fit into one transaction.
fn fitting(events: &[&Refused<'_>]) -> usize {
    let mut bytes = 0;
    let fit = events.iter().take_while(|event| {
        bytes += event.bytes;
        bytes <= AT_ONCE_BYTES
    });
    fit.count().max(1)
}

/// Maps a failed transaction to what the caller does about it.
fn not_written(failed: Failed) -> Failure {
    match failed {
        Failed::Abort(error) => error.into(),
        Failed::StartOver(error) => Failure::Retry(format!("Kafka: {error:#}")),
        Failed::Exit(error) => {
            Failure::Exit(error.context("writing dead letters; the stored offset was not moved"))
        }
    }
}

/// An offset to commit. Its metadata lists the events after it that have letters.
pub(crate) struct Committed {
    pub(crate) partition: i32,
    pub(crate) next: i64,
    metadata: String,
}

pub(crate) fn offsets(topic: &str, committed: &[Committed]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(committed.len());
    for offset in committed {
        let mut element = list.add_partition(topic, offset.partition);
        element.set_offset(Offset::Offset(offset.next))?;
        element.set_metadata(&offset.metadata);
    }
    Ok(list)
}

fn metadata(offsets: &BTreeSet<i64>) -> String {
    if offsets.is_empty() {
        return String::new();
    }
    let offsets: Vec<String> = offsets.iter().map(i64::to_string).collect();
    format!("{METADATA}{}", offsets.join(","))
}

/// The offsets listed in an offset's metadata; none if another program wrote it.
fn written(metadata: &str) -> BTreeSet<i64> {
    let offsets = metadata.strip_prefix(METADATA).unwrap_or_default();
    offsets
        .split(',')
        .filter_map(|offset| offset.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_names_the_letters_and_fits_the_brokers_limit() {
        let offsets: BTreeSet<i64> = (0..MAX_UNSTORED as i64).map(|i| i64::MAX - i).collect();
        let text = metadata(&offsets);
        assert!(text.len() <= 4_096, "{}", text.len());
        assert_eq!(written(&text), offsets);
        for other in ["", "NONE", "dead-lettered:", "12,13"] {
            assert_eq!(written(other), BTreeSet::new(), "{other}");
        }
    }
}
