//! The report: counts, findings and the verdict, as text and JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::ContentArrangement;
use schemas::{EVENT_VERSIONS, INFO_VERSIONS, NewerSchema, Version};
use serde_json::{Value, json};
use service::grid;
use service::range::{Position, Ranges};
use service::text::shown;
use service::words::counted;

use super::findings::{Example, FindingKind, Findings};
use super::first_pass::FirstPass;
use super::scope::{AuditedTopic, Scope};

/// Whether the outputs equal the results of routing the source records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Equal,
    Unequal,
    /// No fault was found, but not everything could be proved.
    Unproven,
}

/// Counts by source partition.
pub(super) struct Counts {
    records: BTreeMap<i32, u64>,
    events: BTreeMap<i32, u64>,
    letters: BTreeMap<i32, u64>,
    /// Events and letters whose source record retention has deleted.
    expired: BTreeMap<i32, u64>,
    /// Events and letters of an earlier topic that had the source topic's name.
    earlier_topic: u64,
    /// Copies of events that redrives of the consumer's dead letters wrote.
    redriven: u64,
    /// Records of the output topics from other topics or services, and notes.
    foreign: u64,
}

impl Counts {
    pub(super) fn of(first: &FirstPass) -> Self {
        let mut expired = first.events.expired.clone();
        for (partition, count) in &first.letters.expired {
            *expired.entry(*partition).or_default() += count;
        }
        Self {
            records: first.expected.records.clone(),
            events: first.events.counts.clone(),
            letters: first.letters.counts.clone(),
            expired,
            earlier_topic: first.events.earlier_topic + first.letters.earlier_topic,
            redriven: first.events.redriven,
            foreign: first.events.foreign + first.letters.foreign,
        }
    }
}

/// The result of an audit.
pub(super) struct Report {
    pub(super) cluster: String,
    pub(super) group: String,
    pub(super) max_event_bytes: usize,
    pub(super) newer_schemas: Vec<NewerSchema>,
    pub(super) scope: Scope,
    pub(super) counts: Counts,
    pub(super) findings: Findings,
}

impl Report {
    pub(super) fn verdict(&self) -> Verdict {
        if self.findings.faults() > 0 {
            Verdict::Unequal
        } else if self.findings.count(FindingKind::Unprovable) > 0 || !self.all_doubts().is_empty()
        {
            Verdict::Unproven
        } else {
            Verdict::Equal
        }
    }

    /// Why equality could not be proved, besides unprovable findings.
    pub(super) fn doubts(&self) -> Option<String> {
        let doubts = self.all_doubts();
        let is_unproven = self.verdict() == Verdict::Unproven && !doubts.is_empty();
        is_unproven.then(|| doubts.join("; "))
    }

    fn all_doubts(&self) -> Vec<&str> {
        let is_unprovable = self.findings.count(FindingKind::Unprovable) > 0;
        let mut doubts = self.scope.doubts(is_unprovable);
        if self.counts.records.values().all(|count| *count == 0) {
            doubts.push("no record of the source topic was compared");
        }
        doubts
    }

    /// One object.
    pub(super) fn json(&self) -> Value {
        let (scope, findings) = (&self.scope, &self.findings);
        let partitions: Vec<Value> = scope
            .source
            .ranges
            .iter()
            .map(|(partition, range)| {
                let mut object = self.counts_json(|counts| of(counts, *partition));
                object["partition"] = json!(partition);
                object["from"] = json!(range.start);
                object["to"] = json!(range.end);
                for kind in FindingKind::ALL {
                    object[kind.name()] = json!(findings.count_in(kind, *partition));
                }
                object
            })
            .collect();
        let mut totals = self.counts_json(|counts| counts.values().sum());
        for kind in FindingKind::ALL {
            totals[kind.name()] = json!(findings.count(kind));
        }
        totals["earlier_topic"] = json!(self.counts.earlier_topic);
        totals["redriven"] = json!(self.counts.redriven);
        totals["foreign"] = json!(self.counts.foreign);
        let examples: Vec<Value> = FindingKind::ALL
            .into_iter()
            .flat_map(|kind| findings.examples(kind).iter().map(move |e| e.json(kind)))
            .collect();
        let newer: Vec<Value> = self
            .newer_schemas
            .iter()
            .map(|schema| {
                json!({"record": schema.record, "fingerprint": format!("{:016x}", schema.fingerprint)})
            })
            .collect();
        json!({
            "verdict": match self.verdict() {
                Verdict::Equal => "equal",
                Verdict::Unequal => "unequal",
                Verdict::Unproven => "unproven",
            },
            "error": self.doubts(),
            "router_version": env!("CARGO_PKG_VERSION"),
            "schemas": {
                "TaskRunningInfo": fingerprints(INFO_VERSIONS),
                "TaskRunningInfoEvent": fingerprints(EVENT_VERSIONS),
                "learned": newer,
            },
            "cluster_id": self.cluster,
            "group": self.group,
            "max_event_bytes": self.max_event_bytes,
            "source": part(&scope.source),
            "source_topic_id": scope.identity.id,
            "events": part(&scope.events),
            "dead_letters": part(&scope.letters),
            "partitions": partitions,
            "totals": totals,
            "examples": examples,
        })
    }

    fn counts_json(&self, count: impl Fn(&BTreeMap<i32, u64>) -> u64) -> Value {
        let counts = &self.counts;
        json!({
            "records": count(&counts.records),
            "events": count(&counts.events),
            "dead_letters": count(&counts.letters),
            "pending_offsets": count(&self.scope.pending),
            "expired": count(&counts.expired),
        })
    }

    /// A table, the findings, and the verdict.
    pub(super) fn text(&self) -> String {
        let mut text = self.table();
        for kind in FindingKind::ALL {
            let count = self.findings.count(kind);
            if count == 0 {
                continue;
            }
            let _ = writeln!(text, "{count:>8} {}", kind.meaning());
            let examples = self.findings.examples(kind);
            for example in examples {
                let _ = writeln!(text, "         {}", self.line(example));
            }
            if count > examples.len() as u64 {
                let more = count - examples.len() as u64;
                let _ = writeln!(text, "         … and {more} more (--examples)");
            }
        }
        let (earlier, source) = (self.counts.earlier_topic, &self.scope.identity);
        if let (1.., Some(id)) = (earlier, &source.id) {
            let _ = writeln!(
                text,
                "{earlier:>8} of an earlier topic of that name, not a fault: {} has the id {id}",
                source.topic
            );
        }
        if let redriven @ 1.. = self.counts.redriven {
            let _ = writeln!(
                text,
                "{redriven:>8} redriven, not a fault: copies of events that a redrive of the consumer's dead letters wrote"
            );
        }
        let _ = writeln!(text, "{}", self.sentence());
        text
    }

    fn table(&self) -> String {
        let header = [
            "partition",
            "from",
            "to",
            "records",
            "events",
            "letters",
            "pending",
            "expired",
            "other rules",
            "unprovable",
            "faults",
        ];
        let mut table = grid::table(&header);
        table.set_content_arrangement(ContentArrangement::Disabled);
        for (partition, range) in &self.scope.source.ranges {
            let in_partition = |kind| self.findings.count_in(kind, *partition);
            let faults = FindingKind::ALL.into_iter().filter(|kind| kind.is_fault());
            let counts = &self.counts;
            table.add_row([
                partition.to_string(),
                range.start.to_string(),
                range.end.to_string(),
                of(&counts.records, *partition).to_string(),
                of(&counts.events, *partition).to_string(),
                of(&counts.letters, *partition).to_string(),
                of(&self.scope.pending, *partition).to_string(),
                of(&counts.expired, *partition).to_string(),
                in_partition(FindingKind::OtherRules).to_string(),
                in_partition(FindingKind::Unprovable).to_string(),
                faults.map(in_partition).sum::<u64>().to_string(),
            ]);
        }
        grid::right_aligned(&mut table, 0..header.len())
    }

    fn line(&self, example: &Example) -> String {
        let scope = &self.scope;
        let place = |topic: &str, at: &Position| {
            format!("{topic} partition {}@{}", at.partition, at.offset)
        };
        let about = example.about.iter();
        let mut parts: Vec<String> = about.map(|at| place(&scope.source.topic, at)).collect();
        let exec_id = example.exec_id.as_deref();
        parts.extend(exec_id.map(|exec_id| format!("exec id {}", shown(exec_id))));
        let events = example.events.iter();
        parts.extend(events.map(|at| place(&scope.events.topic, at)));
        let letters = example.letters.iter();
        parts.extend(letters.map(|at| place(&scope.letters.topic, at)));
        if !example.fields.is_empty() {
            parts.push(format!("fields {}", shown(&example.fields.join(", "))));
        }
        if !example.why.is_empty() {
            parts.push(shown(&example.why));
        }
        parts.join("; ")
    }

    fn sentence(&self) -> String {
        let sum = |counts: &BTreeMap<i32, u64>| counts.values().sum::<u64>();
        let counts = &self.counts;
        let (records, events) = (sum(&counts.records), sum(&counts.events));
        let compared = format!(
            "{} of {}, {}, {}",
            counted(records, "record"),
            self.scope.source.topic,
            counted(events, "event"),
            counted(sum(&counts.letters), "dead letter")
        );
        match self.verdict() {
            Verdict::Equal => match self.findings.count(FindingKind::OtherRules) {
                0 => format!("equal: {compared}"),
                other => format!("equal: {compared}; {other} by other rules"),
            },
            Verdict::Unequal => format!(
                "unequal: {compared}; {}",
                counted(self.findings.faults(), "fault")
            ),
            Verdict::Unproven => match self.doubts() {
                Some(doubts) => format!("could not tell: {compared}; no fault, but {doubts}"),
                None => format!(
                    "could not tell: {compared}; no fault, but {}; use a later --from to leave it out",
                    counted(
                        self.findings.count(FindingKind::Unprovable),
                        "unprovable record"
                    )
                ),
            },
        }
    }
}

/// The JSON of an audit that could not be finished.
pub(super) fn failure(error: &anyhow::Error) -> Value {
    json!({
        "verdict": "unproven",
        "error": format!("{error:#}"),
        "router_version": env!("CARGO_PKG_VERSION"),
    })
}

fn of(counts: &BTreeMap<i32, u64>, partition: i32) -> u64 {
    counts.get(&partition).copied().unwrap_or(0)
}

fn part(part: &AuditedTopic) -> Value {
    json!({"topic": part.topic, "ranges": ranges(&part.ranges)})
}

fn ranges(ranges: &Ranges) -> Value {
    let each = ranges.iter();
    each.map(
        |(partition, range)| json!({"partition": partition, "from": range.start, "to": range.end}),
    )
    .collect()
}

fn fingerprints(versions: &[Version]) -> Vec<String> {
    let each = versions.iter();
    each.map(|version| format!("{:016x}", version.fingerprint))
        .collect()
}
