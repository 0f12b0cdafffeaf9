//! Compares the final topics and tables record by record. It relies on the coordinates of records, the headers of
//! [`Poison`](crate::poison) and checksums, but not on the programs' logic.
//!
//! It keeps about twenty bytes per record, so that an hour's run fits into memory.
//!
//! Long because it is one proof over one reading of the topics: source, events, letters and rows.

use std::collections::BTreeMap;
use std::fmt::Display;

use anyhow::{bail, ensure};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use schemas::dead_letter::{CONNECTOR_NAME, OFFSET, PARTITION, TOPIC};
use serde_json::{Value, json};
use service::testing::read_each;
use tokio::task::block_in_place;

use crate::database::Database;
use crate::poison::{HEADER, Kind, REPAIRS, Sent, counted_as};
use crate::progress::stored_offsets;
use crate::{EVENTS, LETTERS, SOURCE};

/// Maximum number of examples per kind of fault.
const EXAMPLES: usize = 10;

/// Proves the result; returns the numbers of compared items.
///
/// # Errors
/// All discrepancies.
pub(crate) async fn prove(
    bootstrap: &str,
    database: &Database,
    reports: u64,
    poisoned: &Sent,
) -> anyhow::Result<Value> {
    let mut wrong = Wrong::default();
    let source = block_in_place(|| Source::read(bootstrap, &mut wrong));
    source.compare_with_senders(reports, poisoned, &mut wrong);
    let events = block_in_place(|| Events::read(bootstrap, &source, poisoned, &mut wrong));
    let letters = block_in_place(|| check_letters(bootstrap, &source, &events, &mut wrong));
    let rows = check_rows(database, &events, &mut wrong).await?;
    check_tasks(database, &events, &mut wrong).await?;
    check_stored_offsets(database, &events, &mut wrong).await?;
    wrong.none()?;
    Ok(json!({
        "source_records": source.records.values().map(Vec::len).sum::<usize>(),
        "events": events.count,
        "tasks": events.tasks.len(),
        "dead_letters": letters,
        "rows": rows,
    }))
}

/// Discrepancies by kind: number and examples.
#[derive(Default)]
struct Wrong(BTreeMap<&'static str, (u64, Vec<String>)>);

impl Wrong {
    fn add(&mut self, kind: &'static str, example: impl Display) {
        let (count, examples) = self.0.entry(kind).or_default();
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(example.to_string());
        }
    }

    fn none(&self) -> anyhow::Result<()> {
        let lines: Vec<String> = self
            .0
            .iter()
            .map(|(kind, (count, examples))| format!("{count} × {kind}: {}", examples.join("; ")))
            .collect();
        ensure!(
            lines.is_empty(),
            "not as it has to be:\n{}",
            lines.join("\n")
        );
        Ok(())
    }
}

fn checksum(key: Option<&[u8]>, value: Option<&[u8]>) -> u64 {
    // Distinguishes a null part from an empty one.
    let part = |part: Option<&[u8]>| part.map_or(u32::MAX, crc32fast::hash);
    u64::from(part(key)) << 32 | u64::from(part(value))
}

fn header<'a>(record: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a [u8]> {
    let headers = record.headers()?;
    headers.iter().find(|header| header.key == name)?.value
}

/// A record of the source topic.
struct Record {
    checksum: u64,
    kind: Option<Kind>,
}

impl Record {
    fn becomes_event(&self) -> bool {
        self.kind.is_none_or(|kind| !kind.is_bad())
    }
}

/// The source topic.
struct Source {
    /// By partition and offset, without gaps, as nobody writes to it in transactions.
    records: BTreeMap<i32, Vec<Record>>,
}

impl Source {
    fn read(bootstrap: &str, wrong: &mut Wrong) -> Self {
        let mut records: BTreeMap<i32, Vec<Record>> = BTreeMap::new();
        read_each(bootstrap, SOURCE, |record| {
            let partition = records.entry(record.partition()).or_default();
            if record.offset() != partition.len() as i64 {
                wrong.add("gap in the source topic", place(&record));
            }
            partition.push(Record {
                checksum: checksum(record.key(), record.payload()),
                kind: header(&record, HEADER).map(Kind::of),
            });
        });
        Self { records }
    }

    fn get(&self, partition: i32, offset: i64) -> Option<&Record> {
        let records = self.records.get(&partition)?;
        records.get(usize::try_from(offset).ok()?)
    }

    /// Kafka has the numbers of records that the two senders claim to have sent.
    fn compare_with_senders(&self, reports: u64, poisoned: &Sent, wrong: &mut Wrong) {
        let all = || self.records.values().flatten();
        let found = all().filter(|record| record.kind.is_none()).count() as u64;
        if found != reports {
            wrong.add(
                "count of reports on the source topic",
                format!("{found}, of which the producer says it sent {reports}"),
            );
        }
        let mut kinds = Sent::new();
        for kind in all().filter_map(|record| record.kind) {
            *kinds.entry(counted_as(SOURCE, kind)).or_default() += 1;
        }
        let mut sent = poisoned.clone();
        sent.retain(|name, _| name.starts_with(&format!("{SOURCE} ")));
        if kinds != sent {
            wrong.add("count of poison", format!("{kinds:?}, sent {sent:?}"));
        }
    }
}

/// The order that determines a task's newest event.
type Rank = (bool, i64, i64, i32, i64);

struct Event {
    offset: i64,
    applications: u32,
}

/// The events topic.
struct Events {
    count: u64,
    /// Events from routers, by partition, in offset order.
    by_partition: BTreeMap<i32, Vec<Event>>,
    /// Records of [`Poison`](crate::poison): position and checksum.
    bad: BTreeMap<(i32, i64), u64>,
    /// Offset of each partition's last record.
    last: BTreeMap<i32, i64>,
    /// Each task's newest event.
    tasks: BTreeMap<String, (Rank, &'static str)>,
}

impl Events {
    fn read(bootstrap: &str, source: &Source, poisoned: &Sent, wrong: &mut Wrong) -> Self {
        let mut events = Self {
            count: 0,
            by_partition: BTreeMap::new(),
            bad: BTreeMap::new(),
            last: BTreeMap::new(),
            tasks: BTreeMap::new(),
        };
        let mut times = Times::of(source);
        let mut kinds = Sent::new();
        read_each(bootstrap, EVENTS, |record| {
            events.last.insert(record.partition(), record.offset());
            if let Some(kind) = header(&record, HEADER).map(Kind::of) {
                *kinds.entry(counted_as(EVENTS, kind)).or_default() += 1;
                let sum = checksum(record.key(), record.payload());
                events
                    .bad
                    .insert((record.partition(), record.offset()), sum);
            } else {
                events.take(&record, source, &mut times, wrong);
            }
        });
        let mut sent = poisoned.clone();
        sent.retain(|name, _| name.starts_with(&format!("{EVENTS} ")));
        if kinds != sent {
            wrong.add("count of poison", format!("{kinds:?}, sent {sent:?}"));
        }
        times.compare(
            source,
            Record::becomes_event,
            ["lost: no event", "two events"],
            wrong,
        );
        events
    }

    fn take(
        &mut self,
        record: &BorrowedMessage<'_>,
        source: &Source,
        times: &mut Times,
        wrong: &mut Wrong,
    ) {
        self.count += 1;
        let at = place(record);
        let event = match schemas::decode_event(record.payload()) {
            Ok(event) => event,
            Err(error) => return wrong.add("no event", format!("{at}: {error}")),
        };
        let (partition, offset) = (event.source.partition, event.source.offset);
        let Some(original) = source.get(partition, offset) else {
            return wrong.add("event of no record", format!("{at}: {:?}", event.source));
        };
        times.add(partition, offset);
        let info = &event.info;
        if record.key() != Some(info.exec_id.as_bytes()) || event.source.topic != SOURCE {
            wrong.add("event of another key or topic", &at);
        }
        match original.kind {
            None => {
                // Without repairs, the event contains the report byte for byte.
                let encoded = schemas::encode_info(info).unwrap();
                let same = checksum(Some(info.exec_id.as_bytes()), Some(&encoded));
                if same != original.checksum || !event.adjustments.is_empty() {
                    wrong.add("event unlike its report", &at);
                }
            }
            Some(Kind::OutOfRange) => {
                if event.adjustments != REPAIRS {
                    wrong.add("other repairs", format!("{at}: {:?}", event.adjustments));
                }
            }
            Some(kind) => wrong.add("event of a bad record", format!("{at}: {kind:?}")),
        }
        let rank = (
            info.status.is_final(),
            info.reported_at,
            info.sequence,
            record.partition(),
            record.offset(),
        );
        let newest = self
            .tasks
            .entry(info.exec_id.clone())
            .or_insert((rank, info.status.as_str()));
        if newest.0 < rank {
            *newest = (rank, info.status.as_str());
        }
        let applications = info
            .resource
            .as_ref()
            .map_or(0, |part| part.applications.len());
        self.by_partition
            .entry(record.partition())
            .or_default()
            .push(Event {
                offset: record.offset(),
                applications: applications as u32,
            });
    }
}

/// Number of occurrences of each source record.
struct Times(BTreeMap<i32, Vec<u8>>);

impl Times {
    fn of(source: &Source) -> Self {
        let none =
            |(partition, records): (&i32, &Vec<Record>)| (*partition, vec![0; records.len()]);
        Self(source.records.iter().map(none).collect())
    }

    fn add(&mut self, partition: i32, offset: i64) {
        if let Some(times) = self
            .0
            .get_mut(&partition)
            .and_then(|records| records.get_mut(usize::try_from(offset).ok()?))
        {
            *times = times.saturating_add(1);
        }
    }

    /// Each `expected` record must occur once; others are ignored.
    fn compare(
        &self,
        source: &Source,
        expected: impl Fn(&Record) -> bool,
        [never, twice]: [&'static str; 2],
        wrong: &mut Wrong,
    ) {
        for (partition, times) in &self.0 {
            for (offset, times) in times.iter().enumerate() {
                let record = &source.records[partition][offset];
                let at = format!("{SOURCE} {partition}@{offset}");
                match times {
                    0 if expected(record) => wrong.add(never, at),
                    0 | 1 => {}
                    times => wrong.add(twice, format!("{at}: {times}")),
                }
            }
        }
    }
}

/// Each bad record has one letter, and no other record has any; returns the number of letters.
fn check_letters(bootstrap: &str, source: &Source, events: &Events, wrong: &mut Wrong) -> u64 {
    let mut of_records = Times::of(source);
    let mut of_events: BTreeMap<(i32, i64), u32> = BTreeMap::new();
    let mut count = 0;
    read_each(bootstrap, LETTERS, |letter| {
        let mut headers = letter
            .headers()
            .into_iter()
            .flat_map(|headers| headers.iter());
        // A note about a letter, not a letter.
        if headers.any(|header| header.key.starts_with("taskrunning.redriven")) {
            return;
        }
        count += 1;
        let at = place(&letter);
        let text = |name| header(&letter, name).and_then(|value| std::str::from_utf8(value).ok());
        let number = |name| text(name).and_then(|text| text.parse::<i64>().ok());
        let (Some(service), Some(topic)) = (text(CONNECTOR_NAME), text(TOPIC)) else {
            return wrong.add("letter without its headers", at);
        };
        let (Some(partition), Some(offset)) = (number(PARTITION), number(OFFSET)) else {
            return wrong.add("letter without its headers", at);
        };
        let partition = i32::try_from(partition).unwrap_or(-1);
        let about = format!("{at} about {topic} {partition}@{offset} by the {service}");
        let original = match (service, topic) {
            ("router", SOURCE) => {
                of_records.add(partition, offset);
                let record = source.get(partition, offset);
                record
                    .filter(|record| !record.becomes_event())
                    .map(|record| record.checksum)
            }
            ("consumer", EVENTS) => {
                *of_events.entry((partition, offset)).or_default() += 1;
                events.bad.get(&(partition, offset)).copied()
            }
            _ => None,
        };
        match original {
            None => wrong.add("letter about what is not bad", about),
            Some(original) if original != checksum(letter.key(), letter.payload()) => {
                wrong.add("letter unlike its record", about);
            }
            Some(_) => {}
        }
    });
    let bad = |record: &Record| !record.becomes_event();
    of_records.compare(
        source,
        bad,
        ["lost: no router's letter", "two router's letters"],
        wrong,
    );
    for (partition, offset) in events.bad.keys() {
        let at = format!("{EVENTS} {partition}@{offset}");
        match of_events.get(&(*partition, *offset)) {
            None => wrong.add("lost: no consumer's letter", at),
            Some(1) => {}
            Some(times) => wrong.add("two consumer's letters", format!("{at}: {times}")),
        }
    }
    count
}

/// Each event has its rows in each history once; returns the number of rows.
async fn check_rows(
    database: &Database,
    events: &Events,
    wrong: &mut Wrong,
) -> anyhow::Result<BTreeMap<&'static str, u64>> {
    let mut counts = BTreeMap::new();
    for (table, lost, extra) in [
        (
            "task_progress",
            "lost: no row in task_progress",
            "row too many in task_progress",
        ),
        (
            "task_metrics",
            "lost: no row in task_metrics",
            "row too many in task_metrics",
        ),
        (
            "task_resource",
            "lost: no row in task_resource",
            "row too many in task_resource",
        ),
    ] {
        let distinct = match table {
            "task_resource" => "count(DISTINCT application_id)",
            _ => "1",
        };
        let mut count = 0;
        for (partition, events) in &events.by_partition {
            let select = format!(
                "SELECT CAST(event_offset AS bigint), CAST(count(*) AS bigint), CAST({distinct} AS bigint) \
                 FROM {table} WHERE event_partition = {partition} GROUP BY event_offset ORDER BY event_offset"
            );
            let expected = |event: &Event| match table {
                "task_resource" => i64::from(event.applications),
                _ => 1,
            };
            let mut rows = database.numbers::<3>(&select).await?.into_iter().peekable();
            for event in events {
                let at = format!("{EVENTS} {partition}@{}", event.offset);
                while let Some([offset, rows, _]) = rows.next_if(|[o, ..]| *o < event.offset) {
                    wrong.add(extra, format!("{rows} of no event {partition}@{offset}"));
                }
                let found = rows.next_if(|[offset, ..]| *offset == event.offset);
                let [_, rows, different] = found.unwrap_or_default();
                count += rows as u64;
                let must = expected(event);
                if rows < must {
                    wrong.add(lost, format!("{at}: {rows} of {must}"));
                } else if rows > must || different < must.min(rows) {
                    wrong.add(
                        extra,
                        format!("{at}: {rows} of {must}, {different} different"),
                    );
                }
            }
            for [offset, rows, _] in rows {
                wrong.add(extra, format!("{rows} of no event {partition}@{offset}"));
            }
        }
        let [[all]] = database
            .numbers::<1>(&format!("SELECT count(*) FROM {table}"))
            .await?[..]
        else {
            bail!("no count of {table}");
        };
        if all as u64 != count {
            wrong.add(extra, format!("{all} in all, {count} of the events"));
        }
        counts.insert(table, count);
    }
    Ok(counts)
}

/// Each task's row has the task's newest event.
async fn check_tasks(
    database: &Database,
    events: &Events,
    wrong: &mut Wrong,
) -> anyhow::Result<()> {
    let (is_final, micros) = match database.is_postgres() {
        true => (
            "is_final::int",
            "(extract(epoch FROM reported_at) * 1000000)",
        ),
        false => ("is_final", "reported_at"),
    };
    let select = format!(
        "SELECT exec_id, status, CAST({is_final} AS bigint), CAST({micros} AS bigint), CAST(sequence AS bigint), \
         CAST(event_partition AS bigint), CAST(event_offset AS bigint) FROM task"
    );
    let rows: Vec<(String, String, i64, i64, i64, i64, i64)> = database.rows(&select).await?;
    let count = rows.len();
    for (exec_id, status, is_final, reported_at, sequence, partition, offset) in rows {
        let partition = i32::try_from(partition)?;
        let held = (is_final == 1, reported_at, sequence, partition, offset);
        match events.tasks.get(&exec_id) {
            None => wrong.add("task of no event", exec_id),
            Some((rank, newest)) if *rank != held || *newest != status => wrong.add(
                "task that does not tell its newest event",
                format!("{exec_id}: {status} {held:?}, not {newest} {rank:?}"),
            ),
            Some(_) => {}
        }
    }
    if count != events.tasks.len() {
        wrong.add(
            "count of tasks",
            format!("{count}, not {}", events.tasks.len()),
        );
    }
    Ok(())
}

/// Each part's stored offset is beyond the last record of each partition.
async fn check_stored_offsets(
    database: &Database,
    events: &Events,
    wrong: &mut Wrong,
) -> anyhow::Result<()> {
    for part in ["progress", "resource", "metrics"] {
        let stored: BTreeMap<i64, i64> = stored_offsets(database, part)
            .await?
            .into_iter()
            .map(|[partition, next]| (partition, next))
            .collect();
        for (partition, last) in &events.last {
            let next = stored.get(&i64::from(*partition));
            if next.is_none_or(|next| next <= last) {
                wrong.add(
                    "stored offset before the last event",
                    format!("{part} {partition}: {next:?}, the last event is {last}"),
                );
            }
        }
    }
    Ok(())
}

fn place(record: &BorrowedMessage<'_>) -> String {
    format!(
        "{} {}@{}",
        record.topic(),
        record.partition(),
        record.offset()
    )
}
