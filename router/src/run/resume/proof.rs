//! Proof of a source partition's start offset: see [`resume`](super) for the argument.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::message::{Message, OwnedMessage, Timestamp};
use rdkafka::topic_partition_list::Offset;
use service::exit::NeedsAttention;
use service::producer::partition_of;
use service::range::{End, Ranges};
use service::words::counted;

use super::search::{Newest, Search};
use super::tails::OutputTopic;
use crate::config::Config;
use crate::route::Outcome;
use crate::transform::Transform;

/// Number of source offsets that are searched first for the record after the newest routed one.
const AFTER: i64 = 16;
/// Assumed maximum difference between the clocks of routers and brokers, in ms.
pub(super) const CLOCKS: i64 = 3_600_000;
/// Maximum number of rounds of reading outputs to their ends while new ones arrive.
const ROUNDS: usize = 5;

/// The error that leaves the decision to an operator.
pub(super) fn undecided(config: &Config, partition: i32, why: &str) -> anyhow::Error {
    let (group, source) = (&config.group, &config.source_topic);
    NeedsAttention(format!(
        "group {group} has no committed offset for {source} partition {partition}, and the position to resume at is undecided: \
         {why}. Nothing was routed. Choose: --on-no-offset resume resumes behind the last event or dead letter of each \
         partition, if these prove it; --on-no-offset beginning routes the partition from its first record, and duplicates \
         everything routed before; or set the offset N yourself: kafka-consumer-groups.sh --bootstrap-server {} --group {group} \
         --topic {source}:{partition} --reset-offsets --to-offset N --execute",
        config.kafka.servers()
    ))
    .into()
}

/// Result of proving that an output partition does not contain an output.
enum Absence {
    Proved,
    /// The partition must be read farther back.
    Unread,
    /// No proof is possible; why.
    Unprovable(String),
}

impl Search<'_> {
    /// Start offsets of the searched partitions.
    pub(super) fn starts(
        &mut self,
        mut outputs: [OutputTopic; 2],
    ) -> anyhow::Result<BTreeMap<i32, Offset>> {
        let mut starts = BTreeMap::new();
        // The evidence for each proved start.
        let mut proved = BTreeMap::new();
        for _ in 0..ROUNDS {
            for topic in &mut outputs {
                self.read_on(topic)?;
            }
            let mut unchanged = true;
            for (partition, log_start) in self.searched {
                if proved.get(partition) == Some(&self.evidence(*partition)) {
                    continue;
                }
                unchanged = false;
                let start = self.start(&mut outputs, *partition, *log_start)?;
                starts.insert(*partition, start);
                proved.insert(*partition, self.evidence(*partition));
            }
            if unchanged {
                self.report(&starts);
                return Ok(starts);
            }
        }
        Err(NeedsAttention(format!(
            "group {} has no committed offset for {} partitions {:?}, and their events keep coming although no other member of \
             the group has them: routers of another group read this topic too. Stop them, or every event would be duplicated; then \
             start again",
            self.config.group,
            self.config.source_topic,
            self.searched.keys()
        ))
        .into())
    }

    fn report(&self, starts: &BTreeMap<i32, Offset>) {
        for (partition, start) in starts {
            let source = &self.config.source_topic;
            match start {
                Offset::Offset(offset) => tracing::warn!(
                    "group {} has no committed offset for {source} partition {partition}: resuming at offset {offset}, behind \
                     its last event or dead letter ({} of both topics read)",
                    self.config.group,
                    counted(self.read, "record")
                ),
                _ => tracing::info!(
                    "{source} partition {partition} has neither events nor dead letters: routing it from its beginning"
                ),
            }
        }
    }

    /// The start offset of a source partition, proved by the outputs read so far; reads more if needed.
    fn start(
        &mut self,
        outputs: &mut [OutputTopic; 2],
        partition: i32,
        log_start: i64,
    ) -> anyhow::Result<Offset> {
        let source = &self.config.source_topic;
        loop {
            let newest = self.newest.get(&partition).copied();
            let position = newest.map_or(log_start, |newest| newest.offset.saturating_add(1));
            let next = self.next_record(partition, position, newest)?;
            if position < log_start {
                let why = format!(
                    "its last event or dead letter is that of offset {}, and its log begins at offset {log_start}: \
                     retention may have deleted records before they were routed",
                    position - 1
                );
                return Err(undecided(self.config, partition, &why));
            }
            let start = newest.map_or(Offset::Beginning, |_| Offset::Offset(position));
            let Some(next) = next else {
                return Ok(start);
            };
            let not_before = self.not_before(&next, newest);
            let keys = self.event_keys(&next)?;
            if let Some(why) = self.unreadable_event(keys.as_deref()) {
                let why = format!(
                    "whether the record at offset {} was routed cannot be proved: {why}. Give its schema by --schemas",
                    next.offset()
                );
                return Err(undecided(self.config, partition, &why));
            }
            let [events, letters] = &mut *outputs;
            let mut unread: [Vec<i32>; 2] = Default::default();
            let places = [
                (
                    &*events,
                    self.event_places(events, keys.as_deref(), not_before)?,
                ),
                (&*letters, letters.tails.keys().copied().collect()),
            ];
            for ((topic, places), unread) in places.into_iter().zip(&mut unread) {
                for place in places {
                    match self.absence(topic, place, partition, not_before)? {
                        Absence::Proved => {}
                        Absence::Unread => unread.push(place),
                        Absence::Unprovable(why) => {
                            let why = format!(
                                "whether the record at offset {} was routed cannot be proved: {why}",
                                next.offset()
                            );
                            return Err(undecided(self.config, partition, &why));
                        }
                    }
                }
            }
            if unread.iter().all(Vec::is_empty) {
                tracing::debug!("{source} partition {partition}: {start:?} is proved");
                return Ok(start);
            }
            let [in_events, in_letters] = unread;
            self.read_back(events, &in_events)?;
            self.read_back(letters, &in_letters)?;
        }
    }

    /// The first committed source record at `position` or later. `newest` is the output of the record before
    /// it; both are compared if that record still exists.
    ///
    /// # Errors
    /// Also if the output belongs to another topic of that name.
    fn next_record(
        &self,
        partition: i32,
        position: i64,
        newest: Option<Newest>,
    ) -> anyhow::Result<Option<OwnedMessage>> {
        let source = &self.config.source_topic;
        let another = |what: String| {
            let why = format!(
                "its last event or dead letter is that of offset {}, but {what}: the topic was deleted and created again, \
                 or another program wrote into the events or the dead letter topic",
                position - 1
            );
            undecided(self.config, partition, &why)
        };
        let high = self.reader.bounds(source, partition, End::High)?.end;
        if position > high {
            return Err(another(format!("its log ends at offset {high}")));
        }
        let log = self.reader.bounds(source, partition, End::Stable)?;
        let before = newest.map_or(position, |newest| newest.offset);
        let (mut from, mut step) = (before.max(log.start), AFTER);
        let (mut routed_at, mut next) = (None, None);
        while from < log.end && next.is_none() {
            let to = log.end.min(from.saturating_add(step));
            let ranges = Ranges::from([(partition, from..to)]);
            self.reader.scan(source, &ranges, self.stop, |record| {
                if record.offset() < position {
                    routed_at = Some(record.timestamp().to_millis().unwrap_or(-1));
                } else if next.is_none() {
                    next = Some(record.detach());
                }
                Ok(())
            })?;
            (from, step) = (to, step.saturating_mul(4));
        }
        if let (Some(newest), Some(timestamp)) = (newest, routed_at)
            && timestamp != newest.timestamp_ms
        {
            return Err(another("the record there has another timestamp".to_owned()));
        }
        Ok(next)
    }

    /// The earliest time, in ms since 1970 by any router's clock, at which an output of this record can have
    /// been written: after the record was appended, and after the newest known output. `None` if unknown.
    fn not_before(&self, next: &OwnedMessage, newest: Option<Newest>) -> Option<i64> {
        let appended = match next.timestamp() {
            Timestamp::LogAppendTime(ms) => Some(ms),
            Timestamp::CreateTime(ms) => self.latest_stamp_ms.map(|latest| ms - latest),
            Timestamp::NotAvailable => None,
        };
        let known = appended.max(newest.and_then(|newest| newest.written_ms));
        known.map(|ms| ms.saturating_sub(CLOCKS))
    }

    /// The events partitions that may contain the event of this record.
    fn event_places(
        &self,
        events: &OutputTopic,
        keys: Option<&[Vec<u8>]>,
        not_before: Option<i64>,
    ) -> anyhow::Result<BTreeSet<i32>> {
        let keys = match keys {
            // While the topic had fewer partitions, the key belonged to another one.
            Some(keys) if self.has_had_all_partitions(events, not_before)? => keys,
            _ => return Ok(events.tails.keys().copied().collect()),
        };
        let count = events.tails.len() as i32;
        Ok(keys.iter().map(|key| partition_of(key, count)).collect())
    }

    /// Possible keys of this record's event; `None` for any: another version of the router, or another limit,
    /// may have made an event of a record that is a dead letter here.
    fn event_keys(&self, next: &OwnedMessage) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
        let schemas = &self.codec.schemas;
        let schema = |id| schemas.schema_soon(id, self.stop);
        schemas.decoder.learn(next.payload(), schema)?;
        let mut transform = Transform::new(self.codec, None);
        let Outcome::Event { key, .. } = transform.apply(next, self.max_event_bytes) else {
            return Ok(None);
        };
        let keys = [Some(key.as_bytes()), next.key()].into_iter().flatten();
        Ok(Some(keys.map(<[u8]>::to_vec).collect()))
    }

    /// Whether the topic had all its partitions before this time.
    fn has_had_all_partitions(
        &self,
        topic: &OutputTopic,
        not_before: Option<i64>,
    ) -> anyhow::Result<bool> {
        let last = topic.tails.len() as i32 - 1;
        if last == 0 {
            return Ok(true);
        }
        match not_before {
            Some(time) => self.begins_before(&topic.name, last, time),
            None => Ok(false),
        }
    }

    /// Whether the first record in a partition's log was written before this time.
    fn begins_before(&self, topic: &str, partition: i32, time: i64) -> anyhow::Result<bool> {
        let log = self.reader.bounds(topic, partition, End::Stable)?;
        Ok(!log.is_empty() && self.first_since(topic, partition, time)? > log.start)
    }

    /// The offset of a partition's first record that was written at this time or later.
    fn first_since(&self, topic: &str, partition: i32, time: i64) -> anyhow::Result<i64> {
        let one = BTreeSet::from([partition]);
        let found = self.reader.since(topic, &one, time)?;
        Ok(match found.get(&partition) {
            Some(offset) => *offset,
            None => self.reader.bounds(topic, partition, End::Stable)?.end,
        })
    }

    /// Checks whether a partition of an output topic is proved not to contain the output of `source`'s next
    /// record, which would have been written at this time or later.
    fn absence(
        &self,
        topic: &OutputTopic,
        partition: i32,
        source: i32,
        not_before: Option<i64>,
    ) -> anyhow::Result<Absence> {
        let tail = &topic.tails[&partition];
        if tail.seen.contains(&source) {
            return Ok(Absence::Proved);
        }
        let log = self.reader.bounds(&topic.name, partition, End::High)?;
        if tail.from == 0 && log.start == 0 {
            return Ok(Absence::Proved);
        }
        if let Some(time) = not_before
            && (log.start == 0 || self.begins_before(&topic.name, partition, time)?)
        {
            let first = self.first_since(&topic.name, partition, time)?;
            return Ok(match tail.from <= first {
                true => Absence::Proved,
                false => Absence::Unread,
            });
        }
        if log.start == 0 || tail.from > log.start {
            return Ok(Absence::Unread);
        }
        let hint = match not_before {
            Some(_) => "",
            None => {
                "; times of the source's records do not count, unless this user may ask for the topic's settings \
                 (DescribeConfigs) and message.timestamp.after.max.ms is a day or less there"
            }
        };
        Ok(Absence::Unprovable(format!(
            "its event or dead letter could have been among those that retention has deleted from {} partition {partition}, \
             whose log begins at offset {}{hint}",
            topic.name, log.start
        )))
    }
}
