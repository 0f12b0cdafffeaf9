//! Client context of a group member: takes librdkafka's events.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::statistics::{Partition, Statistics};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;

use crate::client_log;
use crate::health::{Health, Reading};
use crate::held_back::{Ends, HeldBack};
use crate::repeats;
use crate::telemetry::{ABSENT, names};
use crate::throttling::Throttling;
use crate::topic_id::TopicId;

#[derive(Clone)]
pub(super) enum Rebalance {
    Assigned(TopicPartitionList),
    Revoked {
        partitions: TopicPartitionList,
        lost: bool,
    },
}

impl Rebalance {
    /// Answers the rebalance for a member that is leaving anyway.
    pub(super) fn answer(&self, consumer: &impl Consumer<Member>) {
        let answered = match self {
            Self::Assigned(partitions) => consumer.incremental_assign(partitions),
            Self::Revoked { partitions, .. } => consumer.incremental_unassign(partitions),
        };
        if let Err(error) = answered {
            tracing::debug!("answering a rebalance while leaving: {error}");
        }
    }
}

/// The partitions of a member.
#[derive(Default)]
pub(super) struct Assigned {
    /// Last start offset of each partition; `None`: the beginning of its log.
    pub(super) starts: BTreeMap<i32, Option<i64>>,
    /// See [`Subscription::set_unfinished`].
    pub(super) unfinished: BTreeMap<i32, i64>,
}

/// Client context: records rebalances, and updates health and lag.
pub(super) struct Member {
    pub(super) topic: String,
    /// The first two ids seen for the topic.
    pub(super) ids: Mutex<BTreeSet<TopicId>>,
    pub(super) assigned: Mutex<Assigned>,
    pub(super) rebalances: Mutex<VecDeque<Rebalance>>,
    pub(super) leaving: AtomicBool,
    /// Whether the partitions are paused.
    pub(super) paused: AtomicBool,
    pub(super) health: Arc<Health>,
    pub(super) throttling: Throttling,
    pub(super) held_back: HeldBack,
}

impl Member {
    pub(super) fn take(&self) -> Option<Rebalance> {
        lock(&self.rebalances).pop_front()
    }

    pub(super) fn note(&self, id: TopicId) {
        let mut ids = lock(&self.ids);
        if ids.len() < 2 {
            ids.insert(id);
        }
    }

    /// Records that these partitions are read from these offsets.
    pub(super) fn begin(&self, starts: impl Iterator<Item = (i32, Offset)>) {
        let starts = starts.map(|(partition, start)| match start {
            Offset::Offset(start) => (partition, Some(start)),
            _ => (partition, None),
        });
        lock(&self.assigned).starts.extend(starts);
    }

    /// Records that these partitions are not read any more; their gauges end.
    pub(super) fn end(&self, partitions: impl Iterator<Item = i32>) {
        let mut assigned = lock(&self.assigned);
        for partition in partitions {
            assigned.starts.remove(&partition);
            assigned.unfinished.remove(&partition);
            self.gauge(names::LAG, partition, ABSENT);
            self.gauge(names::HELD_BACK, partition, ABSENT);
        }
    }

    fn gauge(&self, name: &'static str, partition: i32, value: f64) {
        metrics::gauge!(name, "messaging_destination_name" => self.topic.clone(),
            "messaging_destination_partition_id" => partition.to_string())
        .set(value);
    }
}

impl Assigned {
    /// Read position of a partition, from statistics; `None` if the partition is not assigned.
    fn reading(&self, partition: &Partition) -> Option<Reading> {
        let start = self.starts.get(&partition.partition)?;
        let known = |offset: i64| (offset >= 0).then_some(offset);
        // The client has no position before it has read a record or marker.
        let position = known(partition.app_offset)
            .or(*start)
            .or(known(partition.lo_offset));
        let position = match (position, self.unfinished.get(&partition.partition)) {
            (Some(position), Some(unfinished)) => Some(position.min(*unfinished)),
            (position, _) => position,
        };
        // Lag ends at the last stable offset: records behind it wait for a producer's open transaction, not
        // for this member.
        let lag = known(partition.ls_offset)
            .zip(position)
            .map(|(end, position)| (end - position).max(0));
        Some(Reading {
            position: position.unwrap_or(-1),
            lag,
        })
    }
}

impl ConsumerContext for Member {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        asked: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let rebalance = match asked {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Rebalance::Assigned(partitions.clone())
            }
            _ => Rebalance::Revoked {
                partitions: partitions.clone(),
                lost: consumer.assignment_lost(),
            },
        };
        if self.leaving.load(Ordering::Acquire) {
            // The stream is closed.
            return rebalance.answer(consumer);
        }
        lock(&self.rebalances).push_back(rebalance);
    }
}

impl ClientContext for Member {
    fn stats(&self, statistics: Statistics) {
        self.throttling.observe(&statistics);
        let connected = statistics
            .brokers
            .values()
            .any(|broker| broker.state == "UP");
        let joined = statistics
            .cgrp
            .is_some_and(|group| group.join_state == "steady");
        let (mut partitions, mut ends) = (BTreeMap::new(), BTreeMap::new());
        let topic = statistics.topics.get(&self.topic);
        let assigned = lock(&self.assigned);
        for partition in topic.iter().flat_map(|topic| topic.partitions.values()) {
            let Some(reading) = assigned.reading(partition) else {
                continue;
            };
            partitions.insert(partition.partition, reading);
            if let Some(lag) = reading.lag {
                self.gauge(names::LAG, partition.partition, lag as f64);
                // While nothing is fetched, because the partition is paused or its queue is full, both are
                // from the last response.
                if lag == 0 && !self.paused.load(Ordering::Acquire) {
                    let (stable, high) = (partition.ls_offset, partition.hi_offset);
                    ends.insert(partition.partition, Ends { stable, high });
                }
                let held_back = (partition.hi_offset - partition.ls_offset).max(0);
                self.gauge(names::HELD_BACK, partition.partition, held_back as f64);
            }
        }
        drop(assigned);
        self.held_back.observe(&self.topic, &ends);
        self.health.observed(connected, joined, partitions);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if let Some(id) = client_log::changed_id(message, &self.topic) {
            self.note(id);
        }
        repeats::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", "{error}: {reason}");
    }
}

/// Code that holds one of these locks does not panic, so data behind a poisoned lock is consistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
