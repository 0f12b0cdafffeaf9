//! The second pass: reads the suspect offsets again and compares record by record, in windows, so that memory
//! stays bounded.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use anyhow::Context;
use rdkafka::message::{BorrowedMessage, Message};
use schemas::TaskRunningInfoEvent;
use service::range::{Position, Ranges};
use service::words::counted;

use super::Auditor;
use super::findings::{Example, FindingKind, Findings};
use super::first_pass::{FirstPass, nothing, segments};
use super::rules::{differences, explained};
use super::scope::AuditedTopic;
use crate::outputs::{OutputRecord, position};
use crate::route::Outcome;

/// Maximum size of the source records of a window, in bytes, as counted in the first pass.
const WINDOW_BYTES: u64 = 16 << 20;
/// A larger bucket is examined in parts.
const WINDOW_MAX_BYTES: usize = 32 << 20;
/// Maximum number of outputs in an example.
const OUTPUTS_NAMED: usize = 4;

/// Offsets of the source topic to examine, and the segments with their outputs.
struct Piece {
    partition: i32,
    offsets: Range<i64>,
    bytes: u64,
    events: u64,
    letters: u64,
}

/// An examined source record.
struct Entry {
    timestamp: i64,
    payload: Option<Box<[u8]>>,
    events: Outputs,
    letters: Outputs,
    letter_kind: Option<String>,
    /// Whether its event comes after that of a later record.
    inverted: bool,
    judged: Judged,
}

/// The outputs of one record on an output topic.
#[derive(Default)]
struct Outputs {
    count: u64,
    named: Vec<Position>,
}

impl Outputs {
    fn add(&mut self, output_at: Position) {
        self.count += 1;
        if self.named.len() < OUTPUTS_NAMED {
            self.named.push(output_at);
        }
    }
}

/// Result of comparing an event with its record. Of several events, the worst counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Judged {
    #[default]
    Equal,
    /// Made by the rules of another version; the fields.
    OtherRules(Vec<String>, String),
    /// Its record cannot be decoded here; why.
    Unprovable(String),
    Differing(Vec<String>, String),
}

impl Auditor<'_> {
    /// Finds what is wrong with each record of the buckets that differ.
    pub(super) fn second_pass(
        &self,
        first: &FirstPass,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let mut pieces = self
            .buckets
            .ranges()
            .zip(first.suspects())
            .enumerate()
            .filter(|(_, (_, suspect))| *suspect)
            .map(|(bucket, ((partition, offsets), _))| Piece {
                partition,
                offsets,
                bytes: first.expected.bytes[bucket],
                events: first.events.segments[bucket],
                letters: first.letters.segments[bucket],
            })
            .peekable();
        let mut left: VecDeque<Piece> = VecDeque::new();
        loop {
            let (mut window, mut bytes) = (Vec::new(), 0);
            while let Some(next) = left.front().or_else(|| pieces.peek()) {
                if !window.is_empty() && bytes + next.bytes > WINDOW_BYTES {
                    break;
                }
                bytes += next.bytes;
                window.extend(left.pop_front().or_else(|| pieces.next()));
            }
            if window.is_empty() {
                return Ok(());
            }
            let mut cut = self.examine(window, first, findings)?;
            cut.append(&mut left);
            left = cut;
        }
    }

    /// Examines these offsets; returns those that exceed the window.
    fn examine(
        &self,
        mut window: Vec<Piece>,
        first: &FirstPass,
        findings: &mut Findings,
    ) -> anyhow::Result<VecDeque<Piece>> {
        let source = &self.scope.source;
        let (mut records, cut) = self.records(&window)?;
        let mut left = VecDeque::new();
        for piece in &mut window {
            let cut = cut.get(&piece.partition).copied();
            let Some(cut) = cut.filter(|cut| *cut < piece.offsets.end) else {
                continue;
            };
            let cut = cut.max(piece.offsets.start);
            left.push_back(Piece {
                offsets: cut..piece.offsets.end,
                ..*piece
            });
            piece.offsets.end = cut;
        }
        let examined = Offsets::of(&window);
        let (mut in_events, mut in_letters) = (0, 0);
        for piece in &window {
            in_events |= piece.events;
            in_letters |= piece.letters;
        }

        let ranges = segments(&self.scope.events.ranges, in_events);
        self.read_again(&self.scope.events, &ranges, |record| {
            let output = self.event(record)?;
            let (OutputRecord::Event(about, _), output_at) = (output, position(record)) else {
                return Ok(());
            };
            let Some(entry) = examined.find(about, &mut records) else {
                return Ok(());
            };
            let Some(entry) = entry else {
                self.add_nothing(findings, &self.scope.events, output_at, about);
                return Ok(());
            };
            // A second copy behind a later event is only a duplicate.
            entry.inverted |= entry.events.count == 0 && first.events.inverted.contains(&output_at);
            entry.events.add(output_at);
            let event = self.schemas.decoder.event(record.payload())?;
            let judged = self.judge(about, entry, &event, record.key())?;
            let worst = std::mem::take(&mut entry.judged).max(judged);
            entry.judged = worst;
            Ok(())
        })?;

        let ranges = segments(&self.scope.letters.ranges, in_letters);
        self.read_again(&self.scope.letters, &ranges, |record| {
            let (OutputRecord::Letter(about, kind), output_at) =
                (self.letter(record)?, position(record))
            else {
                return Ok(());
            };
            match examined.find(about, &mut records) {
                None => {}
                Some(None) => self.add_nothing(findings, &self.scope.letters, output_at, about),
                Some(Some(entry)) => {
                    entry.letters.add(output_at);
                    entry.letter_kind.get_or_insert(kind);
                }
            }
            Ok(())
        })?;

        for (at, entry) in &records {
            self.conclude(*at, entry, first, findings);
        }
        tracing::debug!("examined {} records of {}", records.len(), source.topic);
        Ok(left)
    }

    /// The source records of these pieces, and by partition the first one beyond the window.
    fn records(
        &self,
        window: &[Piece],
    ) -> anyhow::Result<(BTreeMap<Position, Entry>, BTreeMap<i32, i64>)> {
        let (mut records, mut cut) = (BTreeMap::new(), BTreeMap::new());
        let (examined, mut bytes) = (Offsets::of(window), 0);
        let source = &self.scope.source;
        self.read_again(source, &examined.hulls(), |record| {
            let at = position(record);
            if !examined.contain(at) || cut.contains_key(&at.partition) {
                return Ok(());
            }
            bytes += record.payload_len();
            if bytes > WINDOW_MAX_BYTES && !records.is_empty() {
                cut.insert(at.partition, at.offset);
                return Ok(());
            }
            let entry = Entry {
                timestamp: record.timestamp().to_millis().unwrap_or(-1),
                payload: record.payload().map(Into::into),
                events: Outputs::default(),
                letters: Outputs::default(),
                letter_kind: None,
                inverted: false,
                judged: Judged::default(),
            };
            records.insert(at, entry);
            Ok(())
        })?;
        Ok((records, cut))
    }

    fn read_again(
        &self,
        part: &AuditedTopic,
        ranges: &Ranges,
        each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.progress.more(ranges);
        self.scan(&part.topic, ranges, self.stop, each)
    }

    /// Compares an event with its record.
    fn judge(
        &self,
        at: Position,
        entry: &Entry,
        event: &TaskRunningInfoEvent,
        key: Option<&[u8]>,
    ) -> anyhow::Result<Judged> {
        let payload = entry.payload.as_deref();
        let mut buffer = Vec::new();
        let (mut fields, why) = match self.today(at, entry.timestamp, payload, &mut buffer) {
            Outcome::Event { value, .. } => {
                let today = schemas::decode_event(Some(value))
                    .context("an event of this program is none")?;
                (differences(&today, event), String::new())
            }
            Outcome::DeadLetter(reject)
                if ["UnknownSchema", "NoSchemaRegistry", "UnknownSchemaId"]
                    .contains(&reject.kind) =>
            {
                return Ok(Judged::Unprovable(format!(
                    "its record cannot be read here: {}",
                    reject.message
                )));
            }
            Outcome::DeadLetter(reject) => (
                vec![],
                format!("a letter today: {}: {}", reject.kind, reject.message),
            ),
        };
        // Fields that no version of the rules changes.
        let mut corrupt = event.source.timestamp != entry.timestamp;
        if corrupt && fields.is_empty() {
            fields.push("source.timestamp".to_owned());
        }
        if key != Some(event.info.exec_id.as_bytes()) {
            corrupt = true;
            fields.push("key".to_owned());
        }
        if fields.is_empty() && why.is_empty() {
            return Ok(Judged::Equal);
        }
        let read = self.schemas.decoder.info(payload);
        if !corrupt && read.is_ok_and(|source| explained(&source, event)) {
            Ok(Judged::OtherRules(fields, why))
        } else {
            Ok(Judged::Differing(fields, why))
        }
    }

    /// Adds the findings about a record whose outputs are all known.
    fn conclude(&self, at: Position, entry: &Entry, first: &FirstPass, findings: &mut Findings) {
        let payload = entry.payload.as_deref();
        let example = |fields: &[String], why: &str| Example {
            about: Some(at),
            exec_id: self
                .schemas
                .decoder
                .info(payload)
                .ok()
                .map(|info| info.exec_id),
            events: entry.events.named.clone(),
            letters: entry.letters.named.clone(),
            fields: fields.to_vec(),
            why: why.to_owned(),
        };
        let mut add = |kind, fields: &[String], why: &str| {
            findings.add(kind, Some(at.partition), || example(fields, why));
        };
        let (events, letters) = (entry.events.count, entry.letters.count);
        if events > 0 && letters > 0 {
            add(FindingKind::EventAndLetter, &[], "");
        }
        if events > 1 || letters > 1 {
            let why = format!(
                "{} and {}",
                counted(events, "event"),
                counted(letters, "letter")
            );
            add(FindingKind::Duplicate, &[], &why);
        }
        if entry.inverted {
            add(FindingKind::OutOfOrder, &[], "");
        }
        match &entry.judged {
            Judged::Equal => {}
            Judged::OtherRules(fields, why) => add(FindingKind::OtherRules, fields, why),
            Judged::Unprovable(why) => add(FindingKind::Unprovable, &[], why),
            Judged::Differing(fields, why) => add(FindingKind::Differing, fields, why),
        }
        if events > 0 || letters > 1 {
            return;
        }
        let mut buffer = Vec::new();
        let today = self.today(at, entry.timestamp, payload, &mut buffer);
        match (today, letters) {
            (Outcome::Event { .. }, 1) => {
                let kind = entry.letter_kind.as_deref().unwrap_or("-");
                let why = format!("an event today; set aside as {kind}");
                add(FindingKind::OtherRules, &[], &why);
            }
            (today, 0) => {
                let (output, whole_from, part) = match today {
                    Outcome::Event { .. } => {
                        ("event", &first.events.whole_from, &self.scope.events)
                    }
                    Outcome::DeadLetter(_) => {
                        ("letter", &first.letters.whole_from, &self.scope.letters)
                    }
                };
                let whole_from = whole_from.get(&at.partition).copied().unwrap_or(0);
                if let Some(why) = part.compaction.doubt(output) {
                    add(FindingKind::Unprovable, &[], &why);
                } else if at.offset < whole_from {
                    let why = format!("retention may have deleted its {output}");
                    add(FindingKind::Unprovable, &[], &why);
                } else {
                    let why = format!("its {output} is missing");
                    add(FindingKind::Lost, &[], &why);
                }
            }
            _ => {}
        }
    }

    fn add_nothing(
        &self,
        findings: &mut Findings,
        part: &AuditedTopic,
        output_at: Position,
        about: Position,
    ) {
        let (kind, why) = match self.scope.source.compaction.doubt("record") {
            None => (
                FindingKind::Invented,
                "there is no committed record".to_owned(),
            ),
            Some(why) => (FindingKind::Unprovable, why),
        };
        findings.add(kind, Some(about.partition), || {
            nothing(&self.scope, part, output_at, Some(about), why)
        });
    }
}

/// Examined offsets, by partition and in order.
struct Offsets(BTreeMap<i32, Vec<Range<i64>>>);

impl Offsets {
    fn of(window: &[Piece]) -> Self {
        let mut offsets: BTreeMap<i32, Vec<Range<i64>>> = BTreeMap::new();
        for piece in window.iter().filter(|piece| !piece.offsets.is_empty()) {
            let ranges = offsets.entry(piece.partition).or_default();
            match ranges.last_mut() {
                Some(last) if last.end == piece.offsets.start => last.end = piece.offsets.end,
                _ => ranges.push(piece.offsets.clone()),
            }
        }
        Self(offsets)
    }

    fn contain(&self, at: Position) -> bool {
        self.0.get(&at.partition).is_some_and(|ranges| {
            let behind = ranges.partition_point(|range| range.end <= at.offset);
            ranges
                .get(behind)
                .is_some_and(|range| range.contains(&at.offset))
        })
    }

    /// The record at an examined offset, if it exists; `None` for other offsets.
    fn find<'r>(
        &self,
        at: Position,
        records: &'r mut BTreeMap<Position, Entry>,
    ) -> Option<Option<&'r mut Entry>> {
        self.contain(at).then(|| records.get_mut(&at))
    }

    /// The range from the first to the last offset of each partition.
    fn hulls(&self) -> Ranges {
        let hull = |ranges: &[Range<i64>]| Some(ranges.first()?.start..ranges.last()?.end);
        self.0
            .iter()
            .filter_map(|(partition, ranges)| Some((*partition, hull(ranges)?)))
            .collect()
    }
}
