//! `consumer diff`: whether two databases' tables are the same over the range that both have stored.
//!
//! ```text
//! snapshot of A ──▶ consumed_offset ──┐                  ┌──▶ histories of A ──▶ sums of hashes ──┐
//!                                     ├──▶ shared range ─┤                                        ├──▶ where not equal: row against row
//! snapshot of B ──▶ consumed_offset ──┘                  └──▶ histories of B ──▶ sums of hashes ──┘
//!                                                             task of A, task of B, by execId ────▶ row against row
//! ```
//!
//! Rows commit together with `consumed_offset`, so each snapshot says by itself which offsets its tables
//! are complete for. Of what both are complete for, the histories must be the same. A task's row is that
//! of its newest report, and so can be told from one that the other database has not read: see
//! [`Tasks::judge`].

mod report;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use anyhow::{Context, anyhow, bail};
use indicatif::ProgressBar;
use jiff::Timestamp;
use schemas::topics;
use service::address::Address;
use service::exit::NeedsAttention;
use service::settings::topic_name;
use tokio::sync::mpsc;
use tokio::task::block_in_place;

use self::report::Report;
use crate::audit;
use crate::audit::finding::{Cure, Fault, Finding, Findings};
use crate::audit::fingerprint::{Fingerprint, Marks, Outside, Plan};
use crate::audit::merge::{self, Evidence, Feed};
use crate::audit::moved::find_moved;
use crate::audit::spans::{NEAR, Spans, join};
use crate::ownership::Asked;
use crate::positions::Anchor;
use crate::row_format::{self, POSTGRES_EPOCH_MICROS};
use crate::rows::Part;
use crate::store::{Database, Held, Order, Selection, Snapshot, StoreError, database_url};
use crate::tables::{TASK, Table, exec_id, place};

/// Where the columns of `task` stand that rank its reports.
const IS_FINAL: usize = Table::Task.place_of("is_final");
const REPORTED_AT: usize = Table::Task.place_of("reported_at");
const SEQUENCE: usize = Table::Task.place_of("sequence");

/// Which databases are compared.
#[derive(Clone, Debug, clap::Args)]
pub struct DiffOptions {
    /// One database: sqlite:FILE or postgres://USER@HOST:PORT/NAME (a password by PGPASSWORD or PGPASSFILE)
    #[arg(value_name = "A", value_parser = database_url())]
    pub a: Address,

    /// The other one
    #[arg(value_name = "B", value_parser = database_url())]
    pub b: Address,

    /// Topic that the tables came from: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Show at most so many findings; 0 for all that are held
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,
}

/// Compares two databases, and says what was found. Gives the exit code: 0 equal, 1 unequal, 2 could
/// not tell, for which the reason was logged.
pub async fn diff(asked: DiffOptions) -> u8 {
    let compared = async {
        let report = compare(&asked).await?;
        report.print(asked.json, asked.limit)?;
        anyhow::Ok(report.is_equal())
    };
    match compared.await {
        Ok(true) => audit::EQUAL,
        Ok(false) => audit::UNEQUAL,
        Err(error) => {
            tracing::error!("could not tell: {error:#}");
            if asked.json {
                audit::print_unproven(&error);
            }
            audit::COULD_NOT_TELL
        }
    }
}

/// How far a database has stored a part of a partition.
#[derive(Clone, Debug)]
struct Stored {
    /// `None`: not known.
    first_offset: Option<i64>,
    /// What is compared begins here at the earliest: the first offset, or else the least that a row has.
    from: i64,
    next_offset: i64,
    cluster_id: String,
    topic_id: Option<String>,
    anchor: Anchor,
}

/// One of the two databases.
struct Side {
    /// A or B.
    name: &'static str,
    place: String,
    snapshot: Snapshot,
    stored: BTreeMap<(Part, i32), Stored>,
    /// Up to when history was removed from it by order.
    expired_before: Option<Timestamp>,
}

impl Side {
    async fn open(name: &'static str, database: &Database, topic: &str) -> anyhow::Result<Self> {
        let place = database.place();
        let asking = || format!("reading {name}, {place}: see that it is there");
        let mut snapshot = Snapshot::take(database).await.with_context(asking)?;
        let asked = Asked {
            topic,
            cluster_id: None, // of the two databases only that they are of one, see `shared`
            place: &place,
            option: name,
        };
        asked.check(&snapshot.owners().await.with_context(asking)?)?;
        let stored = stored(&mut snapshot, topic).await.with_context(asking)?;
        if stored.is_empty() {
            bail!(
                "{name}, {place}, has nothing stored of {topic}; give the topic that it came from by --events-topic, or another \
                 database"
            );
        }
        let expired_before = snapshot.expired_before().await.with_context(asking)?;
        Ok(Self {
            name,
            place,
            snapshot,
            stored,
            expired_before,
        })
    }

    fn asking(&self) -> String {
        format!("reading {}, {}", self.name, self.place)
    }

    /// Offsets of which a task's row can be, of each partition: of any part, since each of them writes
    /// `task`.
    fn own(&self) -> BTreeMap<i32, Range<i64>> {
        let mut own: BTreeMap<i32, Range<i64>> = BTreeMap::new();
        for ((_, partition), stored) in &self.stored {
            let from = stored.first_offset.unwrap_or(i64::MIN);
            let to = stored.next_offset;
            let of_partition = own.entry(*partition).or_insert(from..to);
            *of_partition = of_partition.start.min(from)..of_partition.end.max(to);
        }
        own
    }

    /// Takes in all rows of the histories that were reported then or later.
    async fn fingerprint<'a>(
        &mut self,
        plan: &'a Plan,
        reported_from: Option<Timestamp>,
        bar: &ProgressBar,
    ) -> anyhow::Result<Fingerprint<'a>> {
        let mut fingerprint = Fingerprint::new(plan);
        for table in Table::HISTORIES {
            let mut rows = 0;
            let selection = Selection {
                reported_from,
                ..Selection::of_table(table, None)
            };
            let each = |row: &[u8]| {
                fingerprint.add(table, &row[2..]);
                rows += 1;
                if rows % 10_000 == 0 {
                    bar.inc(10_000);
                }
                true
            };
            self.snapshot
                .each(&selection, each)
                .await
                .with_context(|| format!("reading {}, {}", self.name, self.place))?;
        }
        Ok(fingerprint)
    }
}

async fn stored(
    snapshot: &mut Snapshot,
    topic: &str,
) -> Result<BTreeMap<(Part, i32), Stored>, StoreError> {
    let mut least: BTreeMap<Part, BTreeMap<i32, i64>> = BTreeMap::new();
    let mut all = BTreeMap::new();
    for held in snapshot.offsets(topic).await? {
        let from = match held.first_offset {
            Some(first) => first,
            None => {
                let of_part = match least.entry(held.part) {
                    Entry::Occupied(of_part) => of_part.into_mut(),
                    Entry::Vacant(unknown) => {
                        unknown.insert(snapshot.least_offsets(held.part).await?)
                    }
                };
                of_part.get(&held.partition).copied().unwrap_or(0)
            }
        };
        let stored = Stored {
            first_offset: held.first_offset,
            from,
            next_offset: held.next_offset,
            cluster_id: held.cluster_id,
            topic_id: held.topic_id,
            anchor: held.anchor,
        };
        all.insert((held.part, held.partition), stored);
    }
    Ok(all)
}

/// All that was compared.
struct Compared {
    spans: Spans,
    /// Rows that are compared, of A and of B.
    rows: [BTreeMap<(Table, i32), u64>; 2],
    /// Rows that are not.
    outside: [BTreeMap<(Table, i32), u64>; 2],
    findings: Findings,
    /// Rows of the histories that name a task whose row is gone from a database, or has another name
    /// there, by that task.
    lost: BTreeMap<String, u64>,
}

async fn compare(asked: &DiffOptions) -> anyhow::Result<Report> {
    let (a, b) = (
        Database::parse_url("A", &asked.a)?,
        Database::parse_url("B", &asked.b)?,
    );
    if a.is_same(&b) {
        return Err(NeedsAttention(format!(
            "A and B are one database, {}; give two to compare",
            a.place()
        ))
        .into());
    }
    let topic = &asked.events_topic;
    let (a, b) = tokio::join!(Side::open("A", &a, topic), Side::open("B", &b, topic));
    let (mut a, mut b) = (a?, b?);
    let spans = shared(&a, &b, topic)?;
    let mut compared = Compared {
        spans,
        rows: Default::default(),
        outside: Default::default(),
        findings: Findings::default(),
        lost: BTreeMap::new(),
    };
    compare_histories(&mut a, &mut b, &mut compared).await?;
    compare_tasks(&mut a, &mut b, &mut compared).await?;
    let key = |finding: &Finding| {
        (
            finding.table,
            finding.partition,
            finding.offset,
            finding.fault,
        )
    };
    compared.findings.found.sort_by_key(key);
    Ok(Report::new(topic, &a, &b, compared))
}

/// The offsets of each part and partition that both databases have stored.
///
/// # Errors
/// If there are none, or the databases are known to come from different topics.
fn shared(a: &Side, b: &Side, topic: &str) -> anyhow::Result<Spans> {
    let mut spans = Spans::new();
    for ((part, partition), of_a) in &a.stored {
        let Some(of_b) = b.stored.get(&(*part, *partition)) else {
            continue;
        };
        if of_a.cluster_id != of_b.cluster_id {
            bail!(
                "{topic} partition {partition} is of Kafka cluster {} in A, {}, and of cluster {} in B, {}: they come from different \
                 topics; give databases of one",
                of_a.cluster_id,
                a.place,
                of_b.cluster_id,
                b.place
            );
        }
        if let (Some(id_of_a), Some(id_of_b)) = (&of_a.topic_id, &of_b.topic_id)
            && id_of_a != id_of_b
        {
            bail!(
                "{topic} has the topic id {id_of_a} in A, {}, and {id_of_b} in B, {}: they come from different topics of this \
                 name, one of which was deleted; give databases of one",
                a.place,
                b.place
            );
        }
        let same_record =
            of_a.next_offset == of_b.next_offset || of_a.anchor.offset == of_b.anchor.offset;
        // One that begins behind the last record has none.
        let known = of_a.anchor != Anchor::NONE && of_b.anchor != Anchor::NONE;
        if known && same_record && of_a.anchor != of_b.anchor {
            let why = match of_a.topic_id.is_some() && of_a.topic_id == of_b.topic_id {
                true => {
                    "by its id it is one topic, so it was compacted between, or what a database says of it was altered"
                }
                false => {
                    "they come from different topics, or the topic was made anew between; give databases of one"
                }
            };
            let record = |side: &Side, stored: &Stored| {
                format!(
                    "in {}, {}, at offset {}, with timestamp {} ms and checksum {:08x}",
                    side.name,
                    side.place,
                    stored.anchor.offset,
                    stored.anchor.timestamp_ms,
                    stored.anchor.crc32
                )
            };
            bail!(
                "{topic} partition {partition} is stored up to {} in A and {} in B, part {}, but the last record before is {}; and {}: \
                 {why}",
                of_a.next_offset,
                of_b.next_offset,
                part.as_str(),
                record(a, of_a),
                record(b, of_b)
            );
        }
        let start = of_a.from.max(of_b.from);
        let end = of_a.next_offset.min(of_b.next_offset).max(start);
        spans.insert((part.table(), *partition), start..end);
    }
    if spans.values().all(Range::is_empty) {
        bail!(
            "no offset of {topic} is stored in both: {}; {}. Give databases whose ranges overlap, such as a longer replay",
            ranges(a),
            ranges(b)
        );
    }
    Ok(spans)
}

/// What a database has stored, for a person: the first few parts and partitions.
fn ranges(side: &Side) -> String {
    const SHOWN: usize = 6;
    let mut shown: Vec<String> = side
        .stored
        .iter()
        .take(SHOWN)
        .map(|((part, partition), stored)| {
            format!(
                "{} partition {partition} from {} up to {}",
                part.as_str(),
                stored.from,
                stored.next_offset
            )
        })
        .collect();
    if side.stored.len() > SHOWN {
        shown.push(format!("and {} more", side.stored.len() - SHOWN));
    }
    format!("{}, {}, has {}", side.name, side.place, shown.join(", "))
}

/// The three histories: first by their sums, then row against row where those differ.
async fn compare_histories(
    a: &mut Side,
    b: &mut Side,
    compared: &mut Compared,
) -> anyhow::Result<()> {
    let plan = Plan::new(&compared.spans);
    let reported_from = a.expired_before.max(b.expired_before);
    let bar = audit::spinner("rows");
    let (of_a, of_b) = block_in_place(|| {
        let runtime = tokio::runtime::Handle::current();
        std::thread::scope(|scope| {
            let other = scope.spawn(|| runtime.block_on(b.fingerprint(&plan, reported_from, &bar)));
            let of_a = runtime.block_on(a.fingerprint(&plan, reported_from, &bar));
            (of_a, other.join())
        })
    });
    bar.finish_and_clear();
    let of_b = of_b.map_err(|_| anyhow!("{} failed", b.asking()))?;
    let (of_a, of_b) = (of_a?, of_b?);
    for ((table, partition), places) in of_a.differing(&of_b) {
        let places = join(&places, NEAR);
        let selection = |addressed: bool| {
            let of_partition = places.iter().map(|place| (partition, place.clone()));
            Selection {
                addressed,
                order: Some(Order::Place),
                reported_from,
                ..Selection::of_table(table, Some(of_partition.collect()))
            }
        };
        let findings = &mut compared.findings;
        read_both(
            a,
            b,
            [selection(false), selection(true)],
            async |mut feeds| {
                let evidence = Evidence {
                    dead_lettered: &Marks::default(),
                    records: None, // B is measured by A
                };
                merge::merge(&mut feeds, table, &evidence, findings).await;
                Ok(())
            },
        )
        .await?;
    }
    find_moved(&mut compared.findings);
    let rows = |outside: &BTreeMap<(Table, i32), Outside>| {
        let rows =
            |(at, outside): (&(Table, i32), &Outside)| (*at, outside.before + outside.behind);
        outside.iter().map(rows).collect()
    };
    compared.outside = [rows(&of_a.outside), rows(&of_b.outside)];
    compared.rows = [of_a.rows(), of_b.rows()];
    Ok(())
}

/// Reads both databases at once, each in the order of its selection, and hands their rows to `meet`.
async fn read_both(
    a: &mut Side,
    b: &mut Side,
    [of_a, of_b]: [Selection; 2],
    meet: impl AsyncFnOnce((Feed, Feed)) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    async fn read(
        side: &mut Side,
        selection: &Selection,
        pieces: mpsc::Sender<Vec<u8>>,
    ) -> anyhow::Result<()> {
        let scanned = side.snapshot.scan(selection, &pieces).await;
        scanned.with_context(|| side.asking())
    }
    let (to_a, from_a) = mpsc::channel(4);
    let (to_b, from_b) = mpsc::channel(4);
    let feeds = (Feed::new(from_a), Feed::new(from_b));
    let (read_a, read_b, met) =
        tokio::join!(read(a, &of_a, to_a), read(b, &of_b, to_b), meet(feeds));
    // What failed to be read ends early for whoever takes it.
    read_a?;
    read_b?;
    met
}

/// The newest states of the tasks, and what follows from them for the histories.
async fn compare_tasks(a: &mut Side, b: &mut Side, compared: &mut Compared) -> anyhow::Result<()> {
    let renamed = find_lost(a, b, compared).await?;
    let ranges = |side: &Side| -> Vec<_> {
        let stored = side.stored.iter();
        stored
            .map(|(at, stored)| (*at, stored.from, stored.next_offset))
            .collect()
    };
    let of_progress = compared.spans.iter();
    let shared: BTreeMap<i32, Range<i64>> = of_progress
        .filter(|((table, _), _)| *table == Table::Progress)
        .map(|((_, partition), span)| (*partition, span.clone()))
        .collect();
    for (partition, span) in &shared {
        compared
            .spans
            .insert((Table::Task, *partition), span.clone());
    }
    let selection = Selection {
        order: Some(Order::ExecId),
        ..Selection::of_table(Table::Task, None)
    };
    let mut tasks = Tasks {
        is_alike: ranges(a) == ranges(b),
        shared,
        own: [a.own(), b.own()],
        expired_before: [a.expired_before, b.expired_before],
        compared,
    };
    read_both(a, b, [selection.clone(), selection], async |feeds| {
        tasks.merge(feeds).await
    })
    .await?;
    join_renamed(&mut compared.findings, &renamed);
    Ok(())
}

/// Settles the rows of the histories that differ in nothing but the task they name. Where that task's
/// row is gone from a database, or has another name there, the fault lies with that one row, and those
/// of its history are told with it. Gives the names of tasks that have another one in B.
async fn find_lost(
    a: &mut Side,
    b: &mut Side,
    compared: &mut Compared,
) -> anyhow::Result<BTreeSet<(String, String)>> {
    let mut renamed = BTreeSet::new();
    for (_, (count, rows)) in compared.findings.take_misnamed() {
        let Some(row) = rows.first() else { continue };
        let of_a = exec_id(&row.row).map(str::to_owned);
        let of_b = exec_id(&row.held.row).map(str::to_owned);
        let is_gone_from_b = match &of_a {
            Some(name) => {
                let found = b.snapshot.task_id(name).await;
                found.with_context(|| b.asking())?.is_none()
            }
            None => true,
        };
        let is_gone_from_a = match &of_b {
            Some(name) => {
                let found = a.snapshot.task_id(name).await;
                found.with_context(|| a.asking())?.is_none()
            }
            None => true,
        };
        if is_gone_from_a && is_gone_from_b {
            for name in of_a.iter().chain(&of_b) {
                *compared.lost.entry(name.clone()).or_default() += count;
            }
            renamed.extend(of_a.zip(of_b));
            continue;
        }
        let beyond = count - rows.len() as u64;
        if beyond > 0 {
            let (partition, _) = place(&row.row).unwrap_or((-1, -1));
            let at = (row.table.name(), Fault::Differing, partition);
            *compared.findings.uncounted.entry(at).or_default() += beyond;
        }
        for row in rows {
            let columns = row.table.differences(&row.row, &row.held.row);
            let finding = merge::differing(row.table, columns, row.held, row.row);
            compared.findings.push(finding);
        }
    }
    Ok(renamed)
}

/// A task that is the same but for its name is one that differs, not one more here and there.
fn join_renamed(findings: &mut Findings, renamed: &BTreeSet<(String, String)>) {
    if renamed.is_empty() {
        return;
    }
    let mut of_b: BTreeMap<String, usize> = BTreeMap::new();
    for (i, finding) in findings.found.iter().enumerate() {
        if let (Cure::Delete { .. }, Some(name), "task") =
            (&finding.cure, &finding.exec_id, finding.table)
        {
            of_b.insert(name.clone(), i);
        }
    }
    let mut gone = BTreeSet::new();
    for i in 0..findings.found.len() {
        let finding = &findings.found[i];
        let (Cure::Insert { row, .. }, Some(name), "task") =
            (&finding.cure, &finding.exec_id, finding.table)
        else {
            continue;
        };
        let from = (name.clone(), String::new());
        let others = renamed.range(from..).take_while(|(of_a, _)| of_a == name);
        let twin = others
            .filter_map(|(_, of_b_name)| of_b.get(of_b_name))
            .find_map(|&j| {
                let Cure::Delete { row: held, .. } = &findings.found[j].cure else {
                    return None;
                };
                let columns = Table::Task.differences(row, held);
                matches!(columns.as_slice(), [only] if only.column == "exec_id")
                    .then(|| (j, columns, held.clone()))
            });
        if let Some((j, columns, held)) = twin {
            findings.found[i] =
                merge::differing(Table::Task, columns, unaddressed(held), row.clone());
            gone.insert(j);
        }
    }
    let mut i = 0;
    findings.found.retain(|_| {
        i += 1;
        !gone.contains(&(i - 1))
    });
}

fn unaddressed(row: Vec<u8>) -> Held {
    Held {
        address: String::new(),
        task_id: None,
        row,
    }
}

/// Compares the rows of `task`.
struct Tasks<'a> {
    /// Both have stored the same ranges: there is nothing that only one of them has read.
    is_alike: bool,
    /// Offsets of the progress part that both have stored. (Whoever stored an event's progress has
    /// its task's row brought up to it.)
    shared: BTreeMap<i32, Range<i64>>,
    /// Offsets that each has stored of any part.
    own: [BTreeMap<i32, Range<i64>>; 2],
    /// Up to when history was removed from each by order, and tasks with it.
    expired_before: [Option<Timestamp>; 2],
    compared: &'a mut Compared,
}

impl Tasks<'_> {
    /// Takes both in the order of their names' bytes.
    async fn merge(&mut self, (mut a, mut b): (Feed, Feed)) -> anyhow::Result<()> {
        let name = |row: Option<&Vec<u8>>| {
            row.map(|row| {
                row_format::fields(row)
                    .nth(TASK)
                    .flatten()
                    .unwrap_or_default()
                    .to_vec()
            })
        };
        let mut last = None;
        loop {
            let (of_a, of_b) = (name(a.peek().await), name(b.peek().await));
            let Some(least) = of_a.iter().chain(&of_b).min().cloned() else {
                return Ok(());
            };
            if last.as_ref() == Some(&least) {
                bail!(
                    "a database has the task {} twice: its unique key is broken; REINDEX it",
                    lossy(&least)
                );
            }
            if last.as_ref() > Some(&least) {
                bail!(
                    "a database told its tasks in another order than that of their names: {} came late; its index is broken; REINDEX it",
                    lossy(&least)
                );
            }
            let row_a = if of_a.as_ref() == Some(&least) {
                a.next().await
            } else {
                None
            };
            let row_b = if of_b.as_ref() == Some(&least) {
                b.next().await
            } else {
                None
            };
            self.judge(row_a, row_b);
            last = Some(least);
        }
    }

    fn is_shared(&self, row: &[u8]) -> bool {
        place(row).is_some_and(|(partition, offset)| {
            let span = self.shared.get(&partition);
            span.is_some_and(|span| span.contains(&offset))
        })
    }

    /// Whether a side can know this report without the other's knowing it.
    fn is_further(&self, side: usize, row: &[u8]) -> bool {
        let own = place(row).is_some_and(|(partition, offset)| {
            let own = self.own[side].get(&partition);
            own.is_some_and(|own| own.contains(&offset))
        });
        own && !self.is_alike && !self.is_shared(row)
    }

    /// The rows of one task.
    ///
    /// - Both are of shared events, or of the same one: they must be equal.
    /// - One is of a shared event, so the other database read that too: its row is of a report that is
    ///   greater, of those that only it has read.
    /// - Both are of events that only their own database has read: nothing is known.
    /// - The greater one, or the only one, is of a report that the other database may have removed by
    ///   order: nothing is known.
    fn judge(&mut self, a: Option<Vec<u8>>, b: Option<Vec<u8>>) {
        let (is_compared, is_right) = match (&a, &b) {
            _ if self.may_be_expired(a.as_deref(), b.as_deref()) => (false, true),
            (Some(a), Some(b)) => match (self.is_further(0, a), self.is_further(1, b)) {
                _ if place(a) == place(b) => (true, a == b),
                (false, false) => (true, a == b),
                (false, true) => (false, self.is_shared(a) && rank(a) < rank(b)),
                (true, false) => (false, self.is_shared(b) && rank(b) < rank(a)),
                (true, true) => (false, true),
            },
            (Some(row), None) => self.alone(0, row),
            (None, Some(row)) => self.alone(1, row),
            (None, None) => return,
        };
        for (side, row) in [&a, &b].into_iter().enumerate() {
            if let Some(row) = row {
                let (partition, _) = place(row).unwrap_or((-1, -1));
                let counted = match is_compared || !is_right {
                    true => &mut self.compared.rows[side],
                    false => &mut self.compared.outside[side],
                };
                *counted.entry((Table::Task, partition)).or_default() += 1;
            }
        }
        if is_right {
            return;
        }
        let finding = match (a, b) {
            (Some(a), Some(b)) => {
                let columns = Table::Task.differences(&a, &b);
                merge::differing(Table::Task, columns, unaddressed(b), a)
            }
            (Some(a), None) => merge::missing(Table::Task, a),
            (None, Some(b)) => merge::extra(Table::Task, unaddressed(b)),
            (None, None) => return,
        };
        self.compared.findings.push(finding);
    }

    fn may_be_expired(&self, a: Option<&[u8]>, b: Option<&[u8]>) -> bool {
        let (row, other) = match (a, b) {
            (Some(a), Some(b)) if place(a) == place(b) => return false,
            (Some(a), Some(b)) if rank(a) > rank(b) => (a, 1),
            (_, Some(b)) => (b, 0),
            (Some(a), None) => (a, 1),
            (None, None) => return false,
        };
        let reported_at = row_format::fields(row).nth(REPORTED_AT).flatten();
        let reported_at = row_format::i64_of(reported_at)
            .map(|micros| micros.wrapping_add(POSTGRES_EPOCH_MICROS));
        let before = self.expired_before[other].map(Timestamp::as_microsecond);
        !self.is_lost(row)
            && reported_at
                .zip(before)
                .is_some_and(|(at, before)| at < before)
    }

    fn is_lost(&self, row: &[u8]) -> bool {
        exec_id(row).is_some_and(|name| self.compared.lost.contains_key(name))
    }

    /// A task that only one side has: whether that is told, and whether it is right.
    fn alone(&self, side: usize, row: &[u8]) -> (bool, bool) {
        let is_further = self.is_further(side, row) && !self.is_lost(row);
        (!is_further, is_further)
    }
}

/// What makes one report of a task newer than another; see `Rows::rank`.
fn rank(row: &[u8]) -> impl PartialOrd {
    let field = |at: usize| row_format::fields(row).nth(at).flatten();
    (
        field(IS_FINAL) == Some(&[1]),
        row_format::i64_of(field(REPORTED_AT)),
        row_format::i64_of(field(SEQUENCE)),
        place(row),
    )
}

fn lossy(name: &[u8]) -> String {
    service::text::shown(&String::from_utf8_lossy(name))
}
