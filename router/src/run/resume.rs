//! Where a router goes on in partitions for which its group has no committed offset: Kafka forgets
//! offsets after `offsets.retention.minutes`, and with a group that is deleted or renamed.
//!
//! Each source record has exactly one output, an event or a dead letter, which names it. (A copy of an event,
//! which a redrive of a consumer's dead letter wrote, is none: it may stand anywhere.) The records of a source
//! partition are routed in order, by one member of the group at a time: the next owner begins where its
//! predecessor committed, and what a predecessor does later cannot be committed. So
//!
//! 1. the routed records of a source partition are all those up to the newest that has an output, and
//!    the router goes on with the next one;
//! 2. in each partition of the events and dead letter topics, the outputs of one source partition stand
//!    in the order of their sources.
//!
//! By 1, an output found in the tail of the output topics is proved to be the newest if the source record
//! *after* it has no output. That output would stand in the events partition of its key, or in any
//! partition of the dead letter topic. By 2, such a partition does not hold it if it was read back
//!
//! - to an output of the same source partition, or of an earlier topic of that name (its id says so), since the
//!   output in question would stand behind it; or
//! - to its beginning, of which nothing was deleted; or
//! - to a time before the output in question can have been written ([`CLOCKS`]), where that is after
//!   whatever retention has deleted.
//!
//! So the tail is enough for a partition that is in use, and no output is read twice otherwise. What
//! cannot be proved ends the router: see [`OnNoOffset`].
//!
//! Only committed outputs count. The output topics are read to the ends that their logs have once the
//! group has answered, which takes until the transactions that are open there have ended; and then once
//! more, since such a transaction may have committed records that stand behind those ends. If outputs
//! keep coming for partitions that belong to this router, another group routes them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, anyhow};
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage, Timestamp};
use rdkafka::topic_partition_list::Offset;
use schemas::dead_letter;
use service::exit::NeedsAttention;
use service::kafka::Cluster;
use service::producer::partition_of;
use service::range::{End, Ranges, Reader};
use service::warn_of_change;
use service::words::counted;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, OnNoOffset};
use crate::outputs::{self, Output, Source, number};
use crate::route::Outcome;
use crate::transform::{Codec, Transform};

/// Offsets of each output partition that are read first.
const TAIL: i64 = 1_000;
/// At most so many are read of a partition at once; each step back is four times the one before.
const STEP: i64 = 1_000_000;
/// Offsets of the source that are searched first for the record after the newest one routed.
const AFTER: i64 = 16;
/// The clocks of routers and brokers differ by less than this, in milliseconds.
const CLOCKS: i64 = 3_600_000;
/// How often the outputs are read on to their ends while more of them come.
const ROUNDS: usize = 5;
/// Keys of unreadable records that are held: each is at most as long as a record.
const MAX_UNREADABLE: usize = 1_000;

/// Where to begin these source partitions, which are assigned to this router and for which the group has no committed
/// offset.
///
/// # Errors
/// [`NeedsAttention`] with the choices if that cannot be proved, or is not to be; others if Kafka does not
/// answer, or on a signal.
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
                         offset {}: beginning there; whether all that is gone was routed is not known",
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
                     record, as --on-no-offset beginning says",
                    config.group,
                    searched.keys()
                );
            }
            starts.extend(searched.into_keys().map(|p| (p, Offset::Beginning)));
        }
        OnNoOffset::Fail => {
            let partition = *searched.keys().next().context("a partition is searched")?;
            let why = "--on-no-offset fail says to stop";
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
                source: Source {
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

/// How far a record of the topic may be stamped later than when it was appended, in milliseconds; `None`
/// if it may be any time, or this user may not ask.
async fn latest_stamp(cluster: &Cluster, topic: &str) -> Option<i64> {
    let setting = cluster.topic_setting(topic, "message.timestamp.after.max.ms");
    let ms = setting.await.ok()?.parse().ok()?;
    (ms <= 24 * CLOCKS).then_some(ms)
}

fn undecided(config: &Config, partition: i32, why: &str) -> anyhow::Error {
    let (group, source) = (&config.group, &config.source_topic);
    NeedsAttention(format!(
        "group {group} has no committed offset for {source} partition {partition}, and where to go on is not decided: \
         {why}. Nothing was routed. Choose: --on-no-offset resume goes on behind the last event or dead letter of each \
         partition, where these prove it; --on-no-offset beginning routes the partition from its first record, and doubles what \
         was routed before; or set the offset N yourself: kafka-consumer-groups.sh --bootstrap-server {} --group {group} \
         --topic {source}:{partition} --reset-offsets --to-offset N --execute",
        config.kafka.servers()
    ))
    .into()
}

/// An output topic, and what of it was read.
struct OutputTopic {
    name: String,
    /// Whether no record was ever written there.
    unused: bool,
    tails: BTreeMap<i32, Tail>,
}

/// What was read of an output partition: offsets `from..to`.
struct Tail {
    /// The log's first offset.
    start: i64,
    from: i64,
    to: i64,
    /// How far to read back next.
    step: i64,
    /// Source partitions whose outputs were met.
    seen: BTreeSet<i32>,
}

impl OutputTopic {
    async fn of(cluster: &Cluster, reader: &Reader, name: &str) -> anyhow::Result<Self> {
        let count = i32::try_from(cluster.require_topic(name, "Read", None).await?)?;
        let log = |partition| Ok((partition, reader.bounds(name, partition, End::High)?));
        let logs = block_in_place(|| (0..count).map(log).collect::<anyhow::Result<Ranges>>())?;
        let tail = |(partition, log): (&i32, &Range<i64>)| {
            let from = log.start.max(log.end - TAIL);
            let tail = Tail {
                start: log.start,
                from,
                to: from,
                step: 4 * TAIL,
                seen: BTreeSet::new(),
            };
            (*partition, tail)
        };
        Ok(Self {
            name: name.to_owned(),
            unused: logs.values().all(|log| *log == (0..0)),
            tails: logs.iter().map(tail).collect(),
        })
    }
}

/// The newest output of a source partition that was met.
#[derive(Clone, Copy)]
struct Newest {
    /// The source record's offset and Kafka timestamp.
    offset: i64,
    timestamp_ms: i64,
    /// When the output was written, if it says so.
    written_ms: Option<i64>,
}

/// What a record of an output topic says.
enum Met {
    /// Of a source partition.
    Newest(i32, Newest),
    /// It is of an earlier topic that had the source topic's name.
    Earlier,
    /// A record of the events topic whose schema is not known, and why.
    Unreadable(String),
    Nothing,
}

/// Whether an output partition is known not to hold an output.
enum Lacks {
    Proved,
    /// It has to be read farther back.
    Unread,
    /// Why not.
    Unprovable(String),
}

struct Search<'a> {
    config: &'a Config,
    codec: &'a Codec,
    max_event_bytes: usize,
    source: Source,
    reader: &'a Reader,
    latest_stamp_ms: Option<i64>,
    /// The source partitions, with the first offsets of their logs.
    searched: &'a BTreeMap<i32, i64>,
    newest: BTreeMap<i32, Newest>,
    /// Records of the events topic whose schema is not known here, by key: why. Foreign ones, or events of a newer
    /// router, which all have the key of their source record or its execId.
    unreadable: BTreeMap<Vec<u8>, String>,
    /// Outputs read.
    read: u64,
    stop: &'a CancellationToken,
}

impl Search<'_> {
    fn starts(&mut self, mut outputs: [OutputTopic; 2]) -> anyhow::Result<BTreeMap<i32, Offset>> {
        let mut starts = BTreeMap::new();
        // The newest output by which each start was proved.
        let mut proved = BTreeMap::new();
        for _ in 0..ROUNDS {
            for topic in &mut outputs {
                self.read_on(topic)?;
            }
            let mut unchanged = true;
            for (partition, log_start) in self.searched {
                if proved.get(partition) == Some(&self.met(*partition)) {
                    continue;
                }
                unchanged = false;
                let start = self.start(&mut outputs, *partition, *log_start)?;
                starts.insert(*partition, start);
                proved.insert(*partition, self.met(*partition));
            }
            if unchanged {
                self.report(&starts);
                return Ok(starts);
            }
        }
        Err(NeedsAttention(format!(
            "group {} has no committed offset for {} partitions {:?}, and their events keep coming although no other member of \
             the group has them: routers of another group read this topic too. Stop them, or every event would be doubled; then \
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

    /// What was met that a start depends on: the newest output, and how many keys of unreadable ones.
    fn met(&self, partition: i32) -> (Option<i64>, usize) {
        let newest = self.newest.get(&partition).map(|newest| newest.offset);
        (newest, self.unreadable.len())
    }

    /// Where to begin a source partition, proved by what was read or, as far as needed, is read now.
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
                    match self.lacks_output(topic, place, partition, not_before)? {
                        Lacks::Proved => {}
                        Lacks::Unread => unread.push(place),
                        Lacks::Unprovable(why) => {
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

    /// The first committed source record at `position` or later; `newest` is the output of the record before,
    /// which is compared with that one, if there is still a record there.
    ///
    /// # Errors
    /// Also if the output is of another topic of that name.
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

    /// The time, in milliseconds since 1970, after which an output of this record was written by the clock
    /// of any router: it was written after the record was appended, and after the newest output known. `None`
    /// if nothing is known of that.
    fn not_before(&self, next: &OwnedMessage, newest: Option<Newest>) -> Option<i64> {
        let appended = match next.timestamp() {
            Timestamp::LogAppendTime(ms) => Some(ms),
            Timestamp::CreateTime(ms) => self.latest_stamp_ms.map(|latest| ms - latest),
            Timestamp::NotAvailable => None,
        };
        let known = appended.max(newest.and_then(|newest| newest.written_ms));
        known.map(|ms| ms.saturating_sub(CLOCKS))
    }

    /// Where in the events topic the event of this record stands, if it has one.
    fn event_places(
        &self,
        events: &OutputTopic,
        keys: Option<&[Vec<u8>]>,
        not_before: Option<i64>,
    ) -> anyhow::Result<BTreeSet<i32>> {
        let keys = match keys {
            // With fewer partitions in the topic, a key had another one.
            Some(keys) if self.has_had_all_partitions(events, not_before)? => keys,
            _ => return Ok(events.tails.keys().copied().collect()),
        };
        let count = events.tails.len() as i32;
        Ok(keys.iter().map(|key| partition_of(key, count)).collect())
    }

    /// The keys that the event of this record may have; `None`: any, since another version of the router, or another
    /// limit, may have made an event of what is a dead letter here.
    fn event_keys(&self, next: &OwnedMessage) -> anyhow::Result<Option<Vec<Vec<u8>>>> {
        self.codec.writers.learn_soon(next.payload(), self.stop)?;
        let mut transform = Transform::new(self.codec, None);
        let Outcome::Event { key, .. } = transform.apply(next, self.max_event_bytes) else {
            return Ok(None);
        };
        let keys = [Some(key.as_bytes()), next.key()].into_iter().flatten();
        Ok(Some(keys.map(<[u8]>::to_vec).collect()))
    }

    /// An unreadable record of the events topic that may be the event with one of these keys, and why it is
    /// unreadable.
    fn unreadable_event(&self, keys: Option<&[Vec<u8>]>) -> Option<&String> {
        match keys {
            Some(keys) => keys.iter().find_map(|key| self.unreadable.get(key)),
            None => self.unreadable.values().next(),
        }
    }

    /// Whether the topic had its last partition before this time.
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

    /// Whether the first record that a partition still has was written before a time.
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

    /// Whether a partition of an output topic holds no output of `source`'s next record, which would have
    /// been written at this time or later.
    fn lacks_output(
        &self,
        topic: &OutputTopic,
        partition: i32,
        source: i32,
        not_before: Option<i64>,
    ) -> anyhow::Result<Lacks> {
        let tail = &topic.tails[&partition];
        if tail.seen.contains(&source) {
            return Ok(Lacks::Proved);
        }
        let log = self.reader.bounds(&topic.name, partition, End::High)?;
        if tail.from == 0 && log.start == 0 {
            return Ok(Lacks::Proved);
        }
        if let Some(time) = not_before
            && (log.start == 0 || self.begins_before(&topic.name, partition, time)?)
        {
            let first = self.first_since(&topic.name, partition, time)?;
            return Ok(match tail.from <= first {
                true => Lacks::Proved,
                false => Lacks::Unread,
            });
        }
        if log.start == 0 || tail.from > log.start {
            return Ok(Lacks::Unread);
        }
        let hint = match not_before {
            Some(_) => "",
            None => {
                "; times of the source's records do not count, unless this user may ask for the topic's settings \
                 (DescribeConfigs) and message.timestamp.after.max.ms is a day or less there"
            }
        };
        Ok(Lacks::Unprovable(format!(
            "its event or dead letter could have been among those that retention has deleted from {} partition {partition}, \
             whose log begins at offset {}{hint}",
            topic.name, log.start
        )))
    }

    /// Reads a topic to the ends of its logs, which includes waiting for the transactions that are open there.
    fn read_on(&mut self, topic: &mut OutputTopic) -> anyhow::Result<()> {
        let mut ranges = Ranges::new();
        for (partition, tail) in &mut topic.tails {
            let end = self.reader.bounds(&topic.name, *partition, End::High)?.end;
            ranges.insert(*partition, tail.to..end);
            tail.to = tail.to.max(end);
        }
        self.read(topic, &ranges)
    }

    /// Reads some partitions of a topic farther back.
    fn read_back(&mut self, topic: &mut OutputTopic, partitions: &[i32]) -> anyhow::Result<()> {
        let mut ranges = Ranges::new();
        for partition in partitions {
            let tail = topic.tails.get_mut(partition).context("a partition")?;
            let from = (tail.from - tail.step).max(tail.start);
            ranges.insert(*partition, from..tail.from);
            (tail.from, tail.step) = (from, (4 * tail.step).min(STEP));
        }
        self.read(topic, &ranges)
    }

    fn read(&mut self, topic: &mut OutputTopic, ranges: &Ranges) -> anyhow::Result<()> {
        let count: i64 = ranges.values().map(|range| range.end - range.start).sum();
        if count > 0 {
            tracing::info!(
                "reading up to {} of {} to find where to resume",
                counted(count, "record"),
                topic.name
            );
        }
        let OutputTopic { name, tails, .. } = topic;
        let reader = self.reader;
        let stop = self.stop;
        reader.scan(name, ranges, stop, |record| {
            self.read += 1;
            let (source, newest) = match self.source_of(record)? {
                Met::Newest(source, newest) => (source, newest),
                Met::Earlier => {
                    // Whatever was written of the present topic stands behind.
                    if let Some(tail) = tails.get_mut(&record.partition()) {
                        tail.seen.extend(self.searched.keys());
                    }
                    return Ok(());
                }
                Met::Unreadable(why) => {
                    let key = record.key().unwrap_or_default().to_vec();
                    self.unreadable.entry(key).or_insert(why);
                    if self.unreadable.len() > MAX_UNREADABLE {
                        return Err(NeedsAttention(format!(
                            "searching for where to resume, more than {MAX_UNREADABLE} records of the events topic cannot be \
                             read, such as: {}. Give their schema by --schemas, or choose --on-no-offset beginning",
                            self.unreadable.values().next().map_or("", String::as_str)
                        ))
                        .into());
                    }
                    return Ok(());
                }
                Met::Nothing => return Ok(()),
            };
            if let Some(tail) = tails.get_mut(&record.partition()) {
                tail.seen.insert(source);
            }
            let known = self.newest.entry(source).or_insert(newest);
            if newest.offset > known.offset {
                *known = newest;
            }
            Ok(())
        })
    }

    /// Which of the searched partitions a record of an output topic is about, and what it says of it.
    fn source_of(&self, record: &BorrowedMessage<'_>) -> anyhow::Result<Met> {
        let source = &self.source;
        let output = match record.topic() == self.config.events_topic {
            true => {
                let writers = &self.codec.writers;
                writers.learn_soon(record.payload(), self.stop)?;
                match outputs::event(&writers.decoder, source, record) {
                    Ok(output) => output,
                    Err(error) => return Ok(Met::Unreadable(format!("{error:#}"))),
                }
            }
            false => outputs::letter(source, record),
        };
        let (about, timestamp_ms) = match output {
            Output::Event(about, timestamp_ms) => (about, timestamp_ms),
            Output::Letter(about, _) => {
                let timestamp_ms = number(record, dead_letter::TIMESTAMP_MS);
                (about, timestamp_ms.unwrap_or(-1))
            }
            Output::Earlier => return Ok(Met::Earlier),
            Output::Redriven | Output::Foreign | Output::Unreadable(_) => return Ok(Met::Nothing),
        };
        let newest = Newest {
            offset: about.offset,
            timestamp_ms,
            written_ms: record.timestamp().to_millis(),
        };
        Ok(match self.searched.contains_key(&about.partition) {
            true => Met::Newest(about.partition, newest),
            false => Met::Nothing,
        })
    }
}
