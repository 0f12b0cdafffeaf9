//! Letters about the same record: a consumer whose database went back sets the same events aside again. A
//! redrive sends such a record once.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use service::range::{End, Position};

use super::letter::{Detail, Letter, Redrives, note};
use super::letters::Letters;
use super::topic::DeadLetterTopic;

/// Key of a letter's record: topic, position, time, and the service that set it aside.
type Record = (Arc<str>, Position, Option<i64>, Arc<str>);

/// Further letters about the same records as the selected ones.
pub(super) type Others = BTreeMap<Position, Letter>;

impl Letter {
    fn record(&self) -> Option<Record> {
        let source = self.source.as_ref()?;
        let (topic, service) = (source.topic.clone(), self.service.clone());
        Some((topic, source.position, self.original_ms, service))
    }
}

impl Letters {
    /// Searches the whole topic for other letters about the same records. A note about one of them counts for
    /// all.
    pub(super) fn read_others(
        &mut self,
        topic: &DeadLetterTopic<'_>,
        end: End,
    ) -> anyhow::Result<Others> {
        let mut others = Others::new();
        let found = self.found.values();
        let records: BTreeSet<Record> = found.filter_map(Letter::record).collect();
        if records.is_empty() {
            return Ok(others);
        }
        let ranges = topic.ranges(&mut topic.starts(None)?, end)?;
        let (found, strings) = (&self.found, &mut self.strings);
        topic.scan(&ranges, |record| {
            if let Some((position, at)) = note(record) {
                if let Some(other) = others.get_mut(&position) {
                    other.redriven = Some(Redrives::again(other.redriven.as_ref(), at));
                }
                return;
            }
            let letter = strings.letter(record, Detail::Row);
            let same = letter.record().is_some_and(|same| records.contains(&same));
            if same && !found.contains_key(&letter.position) {
                others.insert(letter.position, letter);
            }
        })?;

        let mut noted: BTreeMap<Record, Redrives> = BTreeMap::new();
        for letter in self.found.values().chain(others.values()) {
            if let Some((record, redriven)) = letter.record().zip(letter.redriven.as_ref()) {
                let newest = noted.entry(record).or_insert_with(|| redriven.clone());
                if redriven.at > newest.at {
                    *newest = redriven.clone();
                }
            }
        }
        for letter in self.found.values_mut() {
            if letter.redriven.is_none() {
                let record = letter.record();
                letter.redriven = record.and_then(|record| noted.get(&record).cloned());
            }
        }
        Ok(others)
    }

    /// Keeps one letter of each record, the first with a value, which holds the positions of the others.
    pub(super) fn join(&mut self, others: &Others) {
        let mut letters: Vec<&Letter> = self.found.values().collect();
        letters.sort_by_key(|letter| (letter.omitted, letter.position));
        let mut sent: BTreeMap<Record, Position> = BTreeMap::new();
        let mut duplicates = Vec::new();
        for letter in letters {
            let Some(record) = letter.record() else {
                continue;
            };
            match sent.entry(record) {
                Entry::Vacant(none) => {
                    none.insert(letter.position);
                }
                Entry::Occupied(first) => duplicates.push((*first.get(), letter.position)),
            }
        }
        for other in others.values() {
            let first = other.record().and_then(|record| sent.get(&record));
            duplicates.extend(first.map(|first| (*first, other.position)));
        }
        for (first, duplicate) in duplicates {
            self.found.remove(&duplicate);
            if let Some(letter) = self.found.get_mut(&first) {
                letter.duplicates.push(duplicate);
            }
        }
    }
}
