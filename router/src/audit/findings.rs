//! Findings, counted by kind and partition, with a few examples of each kind.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use service::range::Position;

/// A kind of finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum FindingKind {
    Lost,
    Duplicate,
    EventAndLetter,
    OutOfOrder,
    Differing,
    Invented,
    OtherRules,
    Unprovable,
}

impl FindingKind {
    pub(super) const ALL: [Self; 8] = [
        Self::Lost,
        Self::Duplicate,
        Self::EventAndLetter,
        Self::OutOfOrder,
        Self::Differing,
        Self::Invented,
        Self::OtherRules,
        Self::Unprovable,
    ];

    /// Its name for programs.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Duplicate => "duplicate",
            Self::EventAndLetter => "event_and_letter",
            Self::OutOfOrder => "out_of_order",
            Self::Differing => "differing",
            Self::Invented => "invented",
            Self::OtherRules => "other_rules",
            Self::Unprovable => "unprovable",
        }
    }

    /// Its meaning, for people.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Lost => "lost: neither event nor letter",
            Self::Duplicate => "duplicate: more than one event, or more than one letter",
            Self::EventAndLetter => "event and letter, both of one record",
            Self::OutOfOrder => "out of order: an event behind that of a later record",
            Self::Differing => "differing: the event differs from its record",
            Self::Invented => "invented: an event or a letter about a record that does not exist",
            Self::OtherRules => {
                "other rules: routed by another version of the router, or with other topic limits; not a fault"
            }
            Self::Unprovable => "unprovable: the evidence is not available",
        }
    }

    /// Whether it makes the verdict unequal.
    pub(super) fn is_fault(self) -> bool {
        !matches!(self, Self::OtherRules | Self::Unprovable)
    }
}

/// One thing found.
#[derive(Clone, Debug, Default)]
pub(super) struct Example {
    /// The source record, if it is known.
    pub(super) about: Option<Position>,
    pub(super) exec_id: Option<String>,
    pub(super) events: Vec<Position>,
    pub(super) letters: Vec<Position>,
    /// Fields that differ.
    pub(super) fields: Vec<String>,
    pub(super) why: String,
}

impl Example {
    pub(super) fn json(&self, kind: FindingKind) -> Value {
        let positions = |positions: &[Position]| -> Vec<Value> {
            let each = positions.iter();
            each.map(|at| json!({"partition": at.partition, "offset": at.offset}))
                .collect()
        };
        json!({
            "kind": kind.name(),
            "source_partition": self.about.map(|about| about.partition),
            "source_offset": self.about.map(|about| about.offset),
            "exec_id": self.exec_id,
            "events": positions(&self.events),
            "dead_letters": positions(&self.letters),
            "fields": self.fields,
            "why": self.why,
        })
    }
}

/// All findings: each is counted, and a few are kept as examples.
#[derive(Debug)]
pub(super) struct Findings {
    at_most: usize,
    counts: BTreeMap<(FindingKind, Option<i32>), u64>,
    examples: BTreeMap<FindingKind, Vec<Example>>,
}

impl Findings {
    /// Keeps at most this many examples of each kind.
    pub(super) fn with_examples(at_most: usize) -> Self {
        Self {
            at_most,
            counts: BTreeMap::new(),
            examples: BTreeMap::new(),
        }
    }

    /// Counts a finding for a partition of the source topic; calls `example` only if it will be kept.
    pub(super) fn add(
        &mut self,
        kind: FindingKind,
        partition: Option<i32>,
        example: impl FnOnce() -> Example,
    ) {
        *self.counts.entry((kind, partition)).or_default() += 1;
        let examples = self.examples.entry(kind).or_default();
        if examples.len() < self.at_most {
            examples.push(example());
        }
    }

    /// Counts findings without examples.
    pub(super) fn count_more(&mut self, kind: FindingKind, partition: i32, more: u64) {
        if more > 0 {
            *self.counts.entry((kind, Some(partition))).or_default() += more;
        }
    }

    pub(super) fn merge(&mut self, other: Self) {
        for (key, count) in other.counts {
            *self.counts.entry(key).or_default() += count;
        }
        for (kind, more) in other.examples {
            let examples = self.examples.entry(kind).or_default();
            let room = self.at_most.saturating_sub(examples.len());
            examples.extend(more.into_iter().take(room));
        }
    }

    pub(super) fn count(&self, kind: FindingKind) -> u64 {
        let of_kind = self.counts.iter().filter(|((of, _), _)| *of == kind);
        of_kind.map(|(_, count)| count).sum()
    }

    pub(super) fn count_in(&self, kind: FindingKind, partition: i32) -> u64 {
        let count = self.counts.get(&(kind, Some(partition)));
        count.copied().unwrap_or(0)
    }

    pub(super) fn faults(&self) -> u64 {
        let faults = FindingKind::ALL.into_iter().filter(|kind| kind.is_fault());
        faults.map(|kind| self.count(kind)).sum()
    }

    pub(super) fn examples(&self, kind: FindingKind) -> &[Example] {
        self.examples.get(&kind).map_or(&[], Vec::as_slice)
    }
}
