//! What the records of a dead letter topic say.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use schemas::dead_letter;
use service::exit::NeedsAttention;
use service::range::{End, Position, Ranges, Reader};
use tokio_util::sync::CancellationToken;

/// Progress is told each time so many records were read.
const TOLD_EVERY: u64 = 10_000;

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
    /// `router` or `consumer`.
    pub(super) service: Arc<str>,
    /// The kind of fault.
    pub(super) kind: Arc<str>,
    /// What was found, for a person.
    pub(super) message: Box<str>,
    pub(super) key: Option<Box<[u8]>>,
    /// Bytes of the original value; `None`: it had no value.
    pub(super) value_bytes: Option<usize>,
    /// Whether the letter leaves the value out, for being too large.
    pub(super) omitted: bool,
    /// What the notes say.
    pub(super) redriven: Option<Redriven>,
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
    fn takes(&self, letter: &Letter) -> bool {
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
/// in memory, without its value.
pub(super) struct Letters {
    selection: Selection,
    pub(super) found: BTreeMap<Position, Letter>,
    /// The first offset of each partition that is not read yet.
    next: BTreeMap<i32, i64>,
    /// Each word once: thousands of letters say the same.
    words: HashSet<Arc<str>>,
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
        let all: BTreeSet<i32> = (0..i32::try_from(partitions)?).collect();
        // A letter's note stands in its own partition, behind it.
        let starts = match &selection {
            Selection::Positions(positions) => {
                let mut starts = BTreeMap::new();
                for position in positions.iter().rev() {
                    if !all.contains(&position.partition) {
                        return Err(NeedsAttention(format!(
                            "{position}: {topic} has only the partitions 0 to {}",
                            partitions - 1
                        ))
                        .into());
                    }
                    starts.insert(position.partition, position.offset);
                }
                starts
            }
            Selection::Filter(Filter {
                since: Some(since), ..
            }) => reader.since(topic, &all, since.as_millisecond())?,
            Selection::Filter(_) => all.iter().map(|partition| (*partition, 0)).collect(),
        };
        let mut letters = Self {
            selection,
            found: BTreeMap::new(),
            next: starts,
            words: HashSet::new(),
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
        let mut ranges = Ranges::new();
        for (partition, next) in &mut self.next {
            let log = reader.bounds(topic, *partition, end)?;
            ranges.insert(*partition, (*next).max(log.start)..log.end);
            *next = (*next).max(log.end);
        }
        let mut read = 0;
        reader.scan(topic, &ranges, stop, |record| {
            self.take(record, new_letters);
            read += 1;
            if read % TOLD_EVERY == 0 {
                eprintln!("read {read} records of {topic}");
            }
            Ok(())
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
                let times = letter.redriven.as_ref().map_or(0, |before| before.times);
                letter.redriven = Some(Redriven {
                    at: at.into(),
                    times: times + 1,
                });
            }
        } else if new_letters {
            let letter = self.letter(record);
            let meant = match &self.selection {
                Selection::Positions(positions) => positions.contains(&letter.position),
                Selection::Filter(filter) => filter.takes(&letter),
            };
            if meant {
                self.found.insert(letter.position, letter);
            }
        }
    }

    fn letter(&mut self, record: &BorrowedMessage<'_>) -> Letter {
        let mut word = |name| {
            let text = header(record, name).unwrap_or("-");
            match self.words.get(text) {
                Some(word) => word.clone(),
                None => {
                    let word: Arc<str> = text.into();
                    self.words.insert(word.clone());
                    word
                }
            }
        };
        let source = || {
            Some(Position {
                partition: number(record, dead_letter::PARTITION)?,
                offset: number(record, dead_letter::OFFSET)?,
            })
        };
        let topic = header(record, dead_letter::TOPIC).map(|_| word(dead_letter::TOPIC));
        let omitted = number(record, dead_letter::OMITTED_VALUE_BYTES);
        Letter {
            position: Position {
                partition: record.partition(),
                offset: record.offset(),
            },
            written_ms: record.timestamp().to_millis().unwrap_or(-1),
            source: topic
                .zip(source())
                .map(|(topic, position)| Source { topic, position }),
            original_ms: number(record, dead_letter::TIMESTAMP_MS),
            service: word(dead_letter::CONNECTOR_NAME),
            kind: word(dead_letter::EXCEPTION_CLASS_NAME),
            message: header(record, dead_letter::EXCEPTION_MESSAGE)
                .unwrap_or("-")
                .into(),
            key: record.key().map(Into::into),
            value_bytes: omitted.or(record.payload().map(<[u8]>::len)),
            omitted: omitted.is_some(),
            redriven: None,
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

    /// Records behind the end that was read, in transactions that are still open, by partition.
    pub(super) fn held_back(
        &self,
        reader: &Reader,
        topic: &str,
    ) -> anyhow::Result<BTreeMap<i32, i64>> {
        let mut held = BTreeMap::new();
        for partition in self.next.keys() {
            let stable = reader.bounds(topic, *partition, End::Stable)?.end;
            let high = reader.bounds(topic, *partition, End::High)?.end;
            if high > stable {
                held.insert(*partition, stable);
            }
        }
        Ok(held)
    }
}

/// The letter that a record on the dead letter topic notes as redriven, and when; `None` for a letter.
fn note(record: &impl Message) -> Option<(Position, &str)> {
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

/// A header's text, of the first header of that name.
pub(crate) fn header<'a>(record: &'a impl Message, name: &str) -> Option<&'a str> {
    let headers = record.headers()?;
    let found = headers.iter().find(|header| header.key == name)?;
    std::str::from_utf8(found.value?).ok()
}

/// A header's number.
pub(crate) fn number<N: FromStr>(record: &impl Message, name: &str) -> Option<N> {
    header(record, name)?.parse().ok()
}

/// Key and value of a letter's record, each of which may be null, or why they are not to be had.
pub(super) type Original = Result<(Option<Vec<u8>>, Option<Vec<u8>>), String>;

impl Letter {
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
