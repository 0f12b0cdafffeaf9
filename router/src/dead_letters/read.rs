//! What the records of a dead letter topic say.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Message};
use schemas::dead_letter::{self, First};
use service::kafka::header;
use service::output;
use service::range::{End, Position, Ranges, Reader};
use service::words::counted;
use tokio_util::sync::CancellationToken;

use crate::outputs::{number, position};

/// Progress is told each time so many records were read.
const TOLD_EVERY: u64 = 10_000;
/// Bytes of a key that a table has room for, and some.
const KEY_SHOWN_BYTES: usize = 256;
/// Words that are held once; of more, each letter has its own.
const WORDS_MAX: usize = 1_000;

/// How much of each letter is held in memory.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Detail {
    /// What a table shows and a redrive takes: no message, and of a long key its beginning.
    Row,
    /// All but the value.
    Whole,
}

/// What a letter says, without its value.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) position: Position,
    /// When it was written, milliseconds since 1970.
    pub(super) written_ms: i64,
    /// Where its record came from; `None`: not told, so that it is no letter of ours.
    pub(super) source: Option<Source>,
    /// The original record's timestamp, milliseconds since 1970, if it had one.
    pub(super) original_ms: Option<i64>,
    /// Where its record stood before it was redriven for the first time; `None`: it never was.
    first: Option<(Source, Option<i64>)>,
    /// `router` or `consumer`.
    pub(super) service: Arc<str>,
    /// The kind of fault.
    pub(super) kind: Arc<str>,
    /// What was found, for a person.
    pub(super) message: Box<str>,
    /// The record's key; see [`Detail`]. Whole where the letter leaves out the value.
    pub(super) key: Option<Box<[u8]>>,
    /// Bytes of the original value; `None`: it had no value.
    pub(super) value_bytes: Option<usize>,
    /// Whether the letter leaves the value out, for being too large.
    pub(super) omitted: bool,
    /// What the notes say.
    pub(super) redriven: Option<Redriven>,
    /// Where other letters about the same record stand, which are noted with this one.
    pub(super) duplicates: Vec<Position>,
}

/// The record that a letter is about.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) topic: Arc<str>,
    pub(super) position: Position,
}

/// What the notes say of one letter.
#[derive(Clone, Debug)]
pub(super) struct Redriven {
    /// The newest note's time, RFC 3339.
    pub(super) at: Box<str>,
    pub(super) times: u32,
}

impl Redriven {
    /// With one more note.
    pub(super) fn again(before: Option<&Self>, at: &str) -> Self {
        Self {
            at: at.into(),
            times: before.map_or(0, |before| before.times) + 1,
        }
    }
}

/// Which letters are meant.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    Positions(BTreeSet<Position>),
    Filter(Filter),
}

/// Letters by what they say; what is empty or `None` takes all.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) kinds: Vec<String>,
    pub(super) since: Option<Timestamp>,
    pub(super) until: Option<Timestamp>,
    pub(super) source_topics: Vec<String>,
    pub(super) source_partitions: Vec<i32>,
    pub(super) service: Option<&'static str>,
    pub(super) not_redriven: bool,
}

impl Filter {
    pub(super) fn takes(&self, letter: &Letter) -> bool {
        let source = letter.source.as_ref();
        let any = |none_asked: bool, is_one: bool| none_asked || is_one;
        any(
            self.kinds.is_empty(),
            self.kinds.iter().any(|kind| **kind == *letter.kind),
        ) && any(
            self.source_topics.is_empty(),
            source.is_some_and(|source| {
                self.source_topics
                    .iter()
                    .any(|topic| **topic == *source.topic)
            }),
        ) && any(
            self.source_partitions.is_empty(),
            source
                .is_some_and(|source| self.source_partitions.contains(&source.position.partition)),
        ) && self
            .since
            .is_none_or(|since| letter.written_ms >= since.as_millisecond())
            && self
                .until
                .is_none_or(|until| letter.written_ms < until.as_millisecond())
            && self
                .service
                .is_none_or(|service| *service == *letter.service)
    }
}

/// The letters of a topic that are meant, and whether they were redriven. One entry a letter is held
/// in memory, without value and message: some 250 bytes.
pub(super) struct Letters {
    selection: Selection,
    pub(super) found: BTreeMap<Position, Letter>,
    /// The first offset of each partition that is not read yet.
    next: BTreeMap<i32, i64>,
    pub(super) words: Words,
    detail: Detail,
}

impl Letters {
    /// Reads the meant letters, and the notes about them, up to the end that a committed reader sees.
    pub(super) fn read(
        reader: &Reader,
        topic: &str,
        partitions: usize,
        selection: Selection,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let all = 0..i32::try_from(partitions)?;
        // A letter's note stands in its own partition, behind it.
        let starts = match &selection {
            Selection::Positions(positions) => {
                let mut starts = BTreeMap::new();
                let there = |position: &&Position| all.contains(&position.partition);
                for position in positions.iter().rev().filter(there) {
                    starts.insert(position.partition, position.offset);
                }
                starts
            }
            Selection::Filter(filter) => starts(reader, topic, partitions, filter)?,
        };
        let detail = match &selection {
            Selection::Positions(_) => Detail::Whole,
            Selection::Filter(_) => Detail::Row,
        };
        let mut letters = Self {
            selection,
            found: BTreeMap::new(),
            next: starts,
            words: Words::default(),
            detail,
        };
        letters.read_on(reader, topic, End::Stable, stop, true)?;
        Ok(letters)
    }

    /// Reads the notes that came since; with [`End::High`] all that were written before now, even
    /// those behind a transaction that is still open.
    pub(super) fn read_notes(
        &mut self,
        reader: &Reader,
        topic: &str,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        self.read_on(reader, topic, End::High, stop, false)
    }

    fn read_on(
        &mut self,
        reader: &Reader,
        topic: &str,
        end: End,
        stop: &CancellationToken,
        new_letters: bool,
    ) -> anyhow::Result<()> {
        let ranges = ranges(reader, topic, &mut self.next, end)?;
        scan(reader, topic, &ranges, stop, |record| {
            self.take(record, new_letters);
        })?;
        if let Selection::Filter(Filter {
            not_redriven: true, ..
        }) = self.selection
        {
            self.found.retain(|_, letter| letter.redriven.is_none());
        }
        Ok(())
    }

    fn take(&mut self, record: &BorrowedMessage<'_>, new_letters: bool) {
        if let Some((position, at)) = note(record) {
            if let Some(letter) = self.found.get_mut(&position) {
                letter.redriven = Some(Redriven::again(letter.redriven.as_ref(), at));
            }
        } else if new_letters {
            let letter = self.words.letter(record, self.detail);
            let meant = match &self.selection {
                Selection::Positions(positions) => positions.contains(&letter.position),
                Selection::Filter(filter) => filter.takes(&letter),
            };
            if meant {
                self.found.insert(letter.position, letter);
            }
        }
    }

    /// The positions asked for at which no letter stands.
    pub(super) fn missing(&self) -> Vec<Position> {
        match &self.selection {
            Selection::Positions(positions) => positions
                .iter()
                .filter(|position| !self.found.contains_key(position))
                .copied()
                .collect(),
            Selection::Filter(_) => Vec::new(),
        }
    }

    /// Offsets from the first to the last letter found, by partition.
    pub(super) fn ranges(&self) -> Ranges {
        let mut ranges = Ranges::new();
        for position in self.found.keys() {
            let range = ranges
                .entry(position.partition)
                .or_insert(position.offset..position.offset);
            range.end = position.offset + 1;
        }
        ranges
    }
}

/// The first offset of each partition to read for a filter.
pub(super) fn starts(
    reader: &Reader,
    topic: &str,
    partitions: usize,
    filter: &Filter,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let all: BTreeSet<i32> = (0..i32::try_from(partitions)?).collect();
    match filter.since {
        Some(since) => reader.since(topic, &all, since.as_millisecond()),
        None => Ok(all.iter().map(|partition| (*partition, 0)).collect()),
    }
}

/// What is to be read from `next` on, which moves to the end.
pub(super) fn ranges(
    reader: &Reader,
    topic: &str,
    next: &mut BTreeMap<i32, i64>,
    end: End,
) -> anyhow::Result<Ranges> {
    let mut ranges = Ranges::new();
    for (partition, next) in next {
        let log = reader.bounds(topic, *partition, end)?;
        ranges.insert(*partition, (*next).max(log.start)..log.end);
        *next = (*next).max(log.end);
    }
    Ok(ranges)
}

/// Reads, and tells how far it is.
pub(super) fn scan(
    reader: &Reader,
    topic: &str,
    ranges: &Ranges,
    stop: &CancellationToken,
    mut take: impl FnMut(&BorrowedMessage<'_>),
) -> anyhow::Result<()> {
    let mut read = 0;
    reader.scan(topic, ranges, stop, |record| {
        take(record);
        read += 1;
        if read % TOLD_EVERY == 0 {
            output::note(format_args!("read {} of {topic}", counted(read, "record")));
        }
        Ok(())
    })?;
    Ok(())
}

/// Each word once: thousands of letters say the same.
#[derive(Default)]
pub(super) struct Words(HashSet<Arc<str>>);

impl Words {
    fn word(&mut self, text: &str) -> Arc<str> {
        if let Some(word) = self.0.get(text) {
            return word.clone();
        }
        let word: Arc<str> = text.into();
        if self.0.len() < WORDS_MAX {
            self.0.insert(word.clone());
        }
        word
    }

    /// What a record says that is a letter.
    pub(super) fn letter(&mut self, record: &BorrowedMessage<'_>, detail: Detail) -> Letter {
        let place = || {
            Some(Position {
                partition: number(record, dead_letter::PARTITION)?,
                offset: number(record, dead_letter::OFFSET)?,
            })
        };
        let mut word = |name| self.word(header(record, name).unwrap_or("-"));
        let topic = header(record, dead_letter::TOPIC).map(|_| word(dead_letter::TOPIC));
        let (service, kind) = (
            word(dead_letter::CONNECTOR_NAME),
            word(dead_letter::EXCEPTION_CLASS_NAME),
        );
        let first = First::of(|name| header(record, name)).map(|first| {
            let position = Position {
                partition: first.partition,
                offset: first.offset,
            };
            let topic = self.word(first.topic);
            (Source { topic, position }, first.timestamp_ms)
        });
        let omitted = number(record, dead_letter::OMITTED_VALUE_BYTES);
        let (message, key_bytes) = match detail {
            Detail::Row if omitted.is_none() => ("", KEY_SHOWN_BYTES),
            Detail::Row => ("", usize::MAX),
            Detail::Whole => {
                let message = header(record, dead_letter::EXCEPTION_MESSAGE);
                (message.unwrap_or("-"), usize::MAX)
            }
        };
        Letter {
            position: position(record),
            written_ms: record.timestamp().to_millis().unwrap_or(-1),
            source: topic
                .zip(place())
                .map(|(topic, position)| Source { topic, position }),
            original_ms: number(record, dead_letter::TIMESTAMP_MS),
            first,
            service,
            kind,
            message: message.into(),
            key: record
                .key()
                .map(|key| key[..key.len().min(key_bytes)].into()),
            value_bytes: omitted.or(record.payload().map(<[u8]>::len)),
            omitted: omitted.is_some(),
            redriven: None,
            duplicates: Vec::new(),
        }
    }
}

/// Records behind the end that was read, in transactions that are still open, by partition.
pub(super) fn held_back(
    reader: &Reader,
    topic: &str,
    partitions: usize,
) -> anyhow::Result<BTreeMap<i32, i64>> {
    let mut held = BTreeMap::new();
    for partition in 0..i32::try_from(partitions)? {
        let stable = reader.bounds(topic, partition, End::Stable)?.end;
        let high = reader.bounds(topic, partition, End::High)?.end;
        if high > stable {
            held.insert(partition, stable);
        }
    }
    Ok(held)
}

/// The letter that a record on the dead letter topic notes as redriven, and when; `None` for a letter.
pub(super) fn note(record: &impl Message) -> Option<(Position, &str)> {
    if header(record, dead_letter::TOPIC).is_some() {
        return None;
    }
    let position = Position {
        partition: number(record, dead_letter::REDRIVEN_PARTITION)?,
        offset: number(record, dead_letter::REDRIVEN_OFFSET)?,
    };
    Some((
        position,
        header(record, dead_letter::REDRIVEN_AT).unwrap_or("-"),
    ))
}

fn first(source: &Source, timestamp_ms: Option<i64>) -> First<'_> {
    First {
        topic: &source.topic,
        partition: source.position.partition,
        offset: source.position.offset,
        timestamp_ms,
    }
}

/// Key and value of a letter's record, each of which may be null, or why they are not to be had.
pub(super) type Original = Result<(Option<Vec<u8>>, Option<Vec<u8>>), String>;

impl Letter {
    /// Where the record stood first, before any redrive; `None`: not told.
    pub(super) fn first(&self) -> Option<First<'_>> {
        let latest = || Some(first(self.source.as_ref()?, self.original_ms));
        self.first_before_redrives().or_else(latest)
    }

    /// Where the record stood first, if it was redriven since.
    pub(super) fn first_before_redrives(&self) -> Option<First<'_>> {
        let (source, timestamp_ms) = self.first.as_ref()?;
        Some(first(source, *timestamp_ms))
    }

    /// The original record's key and value: the letter's own, or where it left out the value, those
    /// of the record it points at. `Err`: why the original cannot be had.
    pub(super) fn original(
        &self,
        record: &impl Message,
        reader: &Reader,
        stop: &CancellationToken,
    ) -> anyhow::Result<Original> {
        let owned = |part: Option<&[u8]>| part.map(<[u8]>::to_vec);
        if !self.omitted {
            return Ok(Ok((owned(record.key()), owned(record.payload()))));
        }
        let Some(Source { topic, position }) = &self.source else {
            return Ok(Err(
                "the letter leaves out the value and does not say where its record stands"
                    .to_owned(),
            ));
        };
        let original = match reader.record(topic, *position, stop)? {
            Ok(original) => original,
            Err(why) => {
                return Ok(Err(format!(
                    "the letter leaves out the value, and its record is gone: {why}"
                )));
            }
        };
        // A topic that was deleted and made anew may hold another record there.
        let same = original.payload().map_or(0, <[u8]>::len) == self.value_bytes.unwrap_or(0)
            && original.timestamp().to_millis() == self.original_ms
            && self
                .key
                .as_deref()
                .is_none_or(|key| original.key() == Some(key));
        if !same {
            return Ok(Err(format!(
                "the letter leaves out the value, and another record stands at {topic} {position} now \
                 (size, time or key differ): the topic was made anew"
            )));
        }
        Ok(Ok((owned(original.key()), owned(original.payload()))))
    }
}
