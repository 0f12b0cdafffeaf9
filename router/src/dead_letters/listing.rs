//! The newest letters, and the counts of all, in bounded memory: two bytes for each letter that is not among
//! the newest.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rdkafka::message::BorrowedMessage;
use service::range::{End, Position};

use super::letter::{Detail, Letter, Redrives, SharedStrings, note};
use super::letters::Filter;
use super::topic::DeadLetterTopic;
use crate::outputs::position;

/// Maximum number of kinds with their own count; further ones are counted together.
const KINDS_MAX: usize = 1_000;
const OTHER_KINDS: &str = "(other kinds)";
/// Number of positions in a block of marks.
const MARKS: i64 = 1_024;
/// Bit of a mark: the letter was redriven. The other bits are the number of its kind, from 1; 0: does not
/// match.
const REDRIVEN: u16 = 1 << 15;

/// Letters of one kind.
#[derive(Clone, Copy, Default)]
pub(super) struct Count {
    pub(super) all: usize,
    pub(super) not_redriven: usize,
}

/// The letters that match a filter.
pub(super) struct Listing {
    filter: Filter,
    limit: usize,
    detail: Detail,
    /// By time and position, at most `limit`.
    newest: BTreeMap<(i64, Position), Letter>,
    /// Times of the newest letters.
    times: BTreeMap<Position, i64>,
    /// Whether letters were dropped because of the limit.
    evicted: bool,
    /// Whether a note then removed one, so that a dropped letter belongs to the newest.
    reread: bool,
    kinds: HashMap<Arc<str>, u16>,
    counts: Vec<(Arc<str>, Count)>,
    marks: BTreeMap<(i32, i64), Box<[u16]>>,
    strings: SharedStrings,
}

impl Listing {
    /// Reads the topic to the last stable offsets; `limit` 0 means no limit.
    pub(super) fn read(
        topic: &DeadLetterTopic<'_>,
        filter: Filter,
        limit: usize,
        detail: Detail,
    ) -> anyhow::Result<Self> {
        let mut next = topic.starts(filter.since)?;
        let ranges = topic.ranges(&mut next, End::Stable)?;
        let mut listing = Self {
            filter,
            limit: if limit == 0 { usize::MAX } else { limit },
            detail,
            newest: BTreeMap::new(),
            times: BTreeMap::new(),
            reread: false,
            evicted: false,
            kinds: HashMap::new(),
            counts: Vec::new(),
            marks: BTreeMap::new(),
            strings: SharedStrings::default(),
        };
        topic.scan(&ranges, |record| listing.take(record))?;
        if listing.reread {
            // Now all notes are known.
            listing.newest.clear();
            listing.times.clear();
            topic.scan(&ranges, |record| {
                listing.take_marked(record);
            })?;
        }
        Ok(listing)
    }

    /// The newest letters, newest first.
    pub(super) fn newest(&self) -> impl Iterator<Item = &Letter> {
        self.newest.values().rev()
    }

    /// The letters of each kind.
    pub(super) fn counts(&self) -> BTreeMap<&str, Count> {
        let counts = self.counts.iter().map(|(kind, count)| (&**kind, *count));
        counts.filter(|(_, count)| count.all > 0).collect()
    }

    fn take(&mut self, record: &BorrowedMessage<'_>) {
        if let Some((position, at)) = note(record) {
            self.note(position, at);
            return;
        }
        let letter = self.strings.letter(record, self.detail);
        if self.filter.takes(&letter) {
            let kind = self.kind(&letter.kind);
            *self.mark(letter.position) = kind + 1;
            let count = &mut self.counts[usize::from(kind)].1;
            count.all += 1;
            count.not_redriven += 1;
            self.keep(letter);
        }
    }

    fn note(&mut self, position: Position, at: &str) {
        // A note may name any position; only letters have marks.
        let chunk = (position.partition, position.offset.div_euclid(MARKS));
        let Some(marks) = self.marks.get_mut(&chunk) else {
            return;
        };
        let mark = &mut marks[position.offset.rem_euclid(MARKS) as usize];
        if *mark == 0 {
            return;
        }
        let is_first = *mark & REDRIVEN == 0;
        *mark |= REDRIVEN;
        let kind = usize::from((*mark & !REDRIVEN) - 1);
        if is_first {
            let count = &mut self.counts[kind].1;
            count.not_redriven -= 1;
            count.all -= usize::from(self.filter.not_redriven);
        }
        let Some(time) = self.times.get(&position).copied() else {
            return;
        };
        if self.filter.not_redriven {
            self.times.remove(&position);
            self.newest.remove(&(time, position));
            self.reread |= self.evicted;
        } else if let Some(letter) = self.newest.get_mut(&(time, position)) {
            letter.redriven = Some(Redrives::again(letter.redriven.as_ref(), at));
        }
    }

    /// Takes a record in a second pass: keeps a matching letter without a note.
    fn take_marked(&mut self, record: &BorrowedMessage<'_>) {
        let mark = *self.mark(position(record));
        if mark != 0 && mark & REDRIVEN == 0 {
            let letter = self.strings.letter(record, self.detail);
            self.keep(letter);
        }
    }

    fn keep(&mut self, letter: Letter) {
        self.times.insert(letter.position, letter.written_ms);
        let place = (letter.written_ms, letter.position);
        self.newest.insert(place, letter);
        if self.newest.len() > self.limit
            && let Some(((_, oldest), _)) = self.newest.pop_first()
        {
            self.times.remove(&oldest);
            self.evicted = true;
        }
    }

    fn kind(&mut self, kind: &Arc<str>) -> u16 {
        if let Some(known) = self.kinds.get(kind) {
            return *known;
        }
        let kind = match self.kinds.len() {
            KINDS_MAX.. => OTHER_KINDS.into(),
            _ => kind.clone(),
        };
        let next = self.counts.len();
        let number = *self.kinds.entry(kind.clone()).or_insert(next as u16);
        if usize::from(number) == next {
            self.counts.push((kind, Count::default()));
        }
        number
    }

    fn mark(&mut self, position: Position) -> &mut u16 {
        let chunk = (position.partition, position.offset.div_euclid(MARKS));
        let marks = self.marks.entry(chunk);
        let marks = marks.or_insert_with(|| vec![0; MARKS as usize].into());
        &mut marks[position.offset.rem_euclid(MARKS) as usize]
    }
}
