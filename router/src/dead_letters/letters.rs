//! Selection of the letters for a command.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rdkafka::message::BorrowedMessage;
use service::exit::{OK, USAGE};
use service::output;
use service::range::{End, Position, Ranges};
use service::words::counted;

use super::letter::{Detail, Letter, Redrives, SharedStrings, note};
use super::topic::DeadLetterTopic;

/// Which letters to select.
#[derive(Clone, Debug)]
pub(super) enum Selection {
    Positions(BTreeSet<Position>),
    Filter(Filter),
}

/// Filter by headers; a field that is empty or `None` matches all letters.
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

/// The selected letters of a topic, and whether they were redriven. Each needs some 250 bytes of memory,
/// without value and message.
pub(super) struct Letters {
    selection: Selection,
    pub(super) found: BTreeMap<Position, Letter>,
    /// The next offset to read of each partition.
    next: BTreeMap<i32, i64>,
    pub(super) strings: SharedStrings,
    detail: Detail,
}

impl Letters {
    /// Reads the selected letters, and the notes about them, up to the last stable offsets.
    pub(super) fn read(topic: &DeadLetterTopic<'_>, selection: Selection) -> anyhow::Result<Self> {
        let all = 0..topic.partitions;
        // A letter's note is in the letter's partition, behind it.
        let starts = match &selection {
            Selection::Positions(positions) => {
                let mut starts = BTreeMap::new();
                let there = |position: &&Position| all.contains(&position.partition);
                for position in positions.iter().rev().filter(there) {
                    starts.insert(position.partition, position.offset);
                }
                starts
            }
            Selection::Filter(filter) => topic.starts(filter.since)?,
        };
        let detail = match &selection {
            Selection::Positions(_) => Detail::Whole,
            Selection::Filter(_) => Detail::Row,
        };
        let mut letters = Self {
            selection,
            found: BTreeMap::new(),
            next: starts,
            strings: SharedStrings::default(),
            detail,
        };
        letters.read_on(topic, End::Stable, true)?;
        Ok(letters)
    }

    /// Reads later notes; with [`End::High`], all that were written before now, even those behind an open
    /// transaction.
    pub(super) fn read_notes(&mut self, topic: &DeadLetterTopic<'_>) -> anyhow::Result<()> {
        self.read_on(topic, End::High, false)
    }

    fn read_on(
        &mut self,
        topic: &DeadLetterTopic<'_>,
        end: End,
        new_letters: bool,
    ) -> anyhow::Result<()> {
        let ranges = topic.ranges(&mut self.next, end)?;
        topic.scan(&ranges, |record| self.take(record, new_letters))?;
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
                letter.redriven = Some(Redrives::again(letter.redriven.as_ref(), at));
            }
        } else if new_letters {
            let letter = self.strings.letter(record, self.detail);
            let is_selected = match &self.selection {
                Selection::Positions(positions) => positions.contains(&letter.position),
                Selection::Filter(filter) => filter.takes(&letter),
            };
            if is_selected {
                self.found.insert(letter.position, letter);
            }
        }
    }

    /// Selected positions without a letter.
    fn missing(&self) -> Vec<Position> {
        match &self.selection {
            Selection::Positions(positions) => positions
                .iter()
                .filter(|position| !self.found.contains_key(position))
                .copied()
                .collect(),
            Selection::Filter(_) => Vec::new(),
        }
    }

    /// Prints the positions without a letter; returns the exit code.
    pub(super) fn report_missing(&self, topic: &DeadLetterTopic<'_>) -> u8 {
        let missing = self.missing();
        for position in &missing {
            output::note(format_args!(
                "{position}: no letter at this position in {}, which has {}: it has expired, is not written yet, or the \
                 position holds a note or a commit marker",
                topic.name,
                counted(topic.partitions, "partition")
            ));
        }
        if missing.is_empty() { OK } else { USAGE }
    }

    /// The range from the first to the last letter, by partition.
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
