//! `consumer audit`: whether the tables are what the engines said.
//!
//! ```text
//! one snapshot ──▶ consumed_offset ──▶ how far each part is stored ─┐
//!              ──▶ task, the three histories ──▶ sums of hashes ────┼──▶ equal? ──▶ where not: row against row
//! events topic, up to there ──▶ rows() ──▶ sums of hashes, SHA-256 ─┘
//! ```
//!
//! The snapshot is taken first, and rows commit together with `consumed_offset`; so up to the stored
//! offsets the tables must hold exactly what the topic says, whoever writes meanwhile. Neither side is
//! sorted or held: see [`fingerprint`]. Only where sums differ, rows are compared one by one.

pub(crate) mod compare;
mod evidence;
pub(crate) mod fingerprint;
mod offsets;
mod report;
mod report_file;
pub(crate) mod said;
mod tasks;
mod told;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use anyhow::{Context, anyhow, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use schemas::{dead_letter, topics};
use service::exit::{FAILED, NeedsAttention, OK, USAGE};
use service::kafka::{Cluster, KafkaOptions};
use service::output;
use service::range::{Bound, End, Ranges, Reader};
use service::settings::{distinct_topics, topic_name};
use service::words::counted;
use sha2::Digest;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::tables::Table;
use compare::{Cure, Fault, Finding, Findings};
use fingerprint::{Marks, Plan, Spans};
use offsets::Stored;
pub(crate) use report::print_unproven;
use report::{NotStored, PartitionReport, Report, TableReport, Verdict};
use said::{Isolation, Said, Topic};
use told::{Scan, Tasks, Told};

use crate::failure::Failure;
use crate::ownership::Asked;
use crate::positions::Anchor;
use crate::rows::Part;
use crate::store::{Database, DatabaseOptions, HeldOffset, Places, Repair, Snapshot};
use crate::topic_identity::id_of;
use crate::writers::Writers;

/// The exit codes of [`audit`], and of [`diff`](crate::diff()).
pub(crate) const EQUAL: u8 = OK;
pub(crate) const UNEQUAL: u8 = FAILED;
pub(crate) const COULD_NOT_TELL: u8 = USAGE;

/// At most so many offsets at once: up to four bits each are held.
const MAX_OFFSETS: i64 = 1 << 27;
/// Below and above every offset, and far from where sums overflow.
const ANY_OFFSET: Range<i64> = -(1 << 62)..1 << 62;
/// Of at most so many offsets it is counted how many events that are not stored yet they hold.
const MAX_COUNTED: i64 = 1 << 20;
/// A repair that has more to put right than is held at once goes on in further rounds.
const MAX_ROUNDS: usize = 100;

/// What is audited, and what is done about it.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// Topic that the tables came from: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Topic of the dead letters: events there have no rows
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    pub dead_letters_topic: String,

    /// From here on: earliest (what the topic still has), offset:P=N,…, time:2026-11-25T10:00Z, or back from now as in -2h [default: all rows, also those whose events are gone]
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    pub from: Option<Bound>,

    /// Up to here, not included; latest: all that is stored
    #[arg(
        long,
        value_name = "POSITION",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    pub to: Bound,

    /// Write what is missing, remove what is extra, put right what differs, and audit again
    #[arg(long)]
    pub repair: bool,

    /// Let a repair remove more rows than it keeps
    #[arg(long, requires = "repair")]
    pub yes: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Write a report: FILE.html, to read and print, FILE.json, or FILE.prom for node_exporter's textfile collector (repeatable)
    #[arg(long, value_name = "FILE")]
    pub report: Vec<PathBuf>,

    /// Show at most so many findings; 0 for all that are held
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,

    /// Folder of .avsc files of versions newer than this program, as the consumer was given
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

/// Compares the tables with the topic, and says what was found. Gives the exit code: 0 equal, 1
/// unequal, 2 could not tell, for which the reason was logged.
pub async fn audit(
    config: Config,
    kafka: KafkaOptions,
    database: DatabaseOptions,
    stop: CancellationToken,
) -> u8 {
    match audit_and_repair(&config, &kafka, &database, &stop).await {
        Ok(Verdict::Equal) => EQUAL,
        Ok(Verdict::Unequal) => UNEQUAL,
        Ok(Verdict::Unproven) => COULD_NOT_TELL,
        Err(error) => {
            tracing::error!("could not tell: {error:#}");
            if config.json {
                print_unproven(&error);
            }
            COULD_NOT_TELL
        }
    }
}

async fn audit_and_repair(
    config: &Config,
    kafka: &KafkaOptions,
    database: &DatabaseOptions,
    stop: &CancellationToken,
) -> anyhow::Result<Verdict> {
    for file in &config.report {
        report::check(file)?;
    }
    distinct_topics(&[
        ("--events-topic", &config.events_topic),
        ("--dead-letters-topic", &config.dead_letters_topic),
    ])?;
    let writers = Writers::of(config.schemas.as_deref(), kafka)?;
    let database = Database::parse(database)?;
    let stopped = || anyhow!("stopped by a signal");
    let cluster = kafka.cluster_soon(stop).await?.ok_or_else(stopped)?;
    cluster
        .require_topic(&config.events_topic, "Read", None)
        .await?;
    let answer = cluster.topic_id(&config.events_topic).await;
    // What it is compared with stands in the database; where it is not told, the records alone are.
    let id = id_of(&config.events_topic, answer).map_err(Failure::into_error)?;
    let id = id.ok().map(|id| id.to_string());
    let reader = Reader::connect(kafka)?;
    let mut auditor = Auditor {
        config,
        database: &database,
        cluster: &cluster,
        topic: Topic {
            name: &config.events_topic,
            id,
            partitions: 0,
            reader: &reader,
            writers: &writers,
            stop,
            expired_before: None,
        },
    };
    let mut round = 0;
    let mut is_stuck = false;
    loop {
        let (report, findings) = auditor.audit().await?;
        round += 1;
        let curable = findings.found.iter().any(|finding| finding.cure.is_one());
        if config.repair && curable {
            if is_stuck || round > MAX_ROUNDS {
                tracing::error!(
                    "repair stopped after {} rounds: {}",
                    round - 1,
                    match is_stuck {
                        true => "the last round repaired nothing",
                        false => "run it again to go on",
                    }
                );
            } else {
                report.print_summary();
                if auditor.may_repair(&report) {
                    is_stuck = auditor.repair(&findings).await? == 0;
                    continue;
                }
            }
        }
        let printed = report.print(config.json, config.limit);
        let is_written = report.write(&config.report, config.limit);
        printed?;
        if let Some(reasons) = report.reasons() {
            tracing::error!("could not tell: {reasons}");
        }
        return Ok(match report.verdict {
            Verdict::Equal if !is_written => Verdict::Unproven,
            verdict => verdict,
        });
    }
}

struct Auditor<'a> {
    config: &'a Config,
    database: &'a Database,
    cluster: &'a Cluster,
    topic: Topic<'a>,
}

/// What is compared.
struct Extent {
    logs: Ranges,
    stored: Stored,
    spans: Spans,
    /// `None`: all rows that the tables hold.
    places: Option<Places>,
}

/// Both sides, compared by their sums.
struct Sides {
    differing: BTreeMap<(Table, i32), Vec<Range<i64>>>,
    outside: BTreeMap<(Table, i32), fingerprint::Outside>,
    held_rows: BTreeMap<(Table, i32), u64>,
    digests: BTreeMap<(Table, i32), said::Digested>,
    events: BTreeMap<i32, u64>,
    /// Records of aborted transactions, by partition.
    aborted: BTreeMap<i32, u64>,
    unreadable: Marks,
    unreadable_count: BTreeMap<i32, u64>,
    unreadable_shown: Vec<said::Unreadable>,
    unknown_writer: Marks,
    /// Tasks that are behind their history; not all of very many.
    outranked: BTreeSet<i64>,
}

impl Auditor<'_> {
    async fn audit(&mut self) -> anyhow::Result<(Report, Findings)> {
        let place = self.database.place();
        let asking = || format!("reading {place}");
        let mut snapshot = Snapshot::take(self.database).await.with_context(asking)?;
        let owners = snapshot.owners().await.with_context(asking)?;
        let asked = Asked {
            topic: self.topic.name,
            cluster_id: None, // a row of another cluster may be a finding, see `offsets::check`
            place: &place,
            option: "--database-url",
        };
        asked.check(&owners)?;
        if owners.is_empty() {
            bail!(
                "{place} does not say that anything is stored of {}, so there is nothing to compare; is it the \
                 database of its consumers (--database-url)?",
                self.topic.name
            );
        }
        self.topic.expired_before = snapshot.expired_before().await.with_context(asking)?;
        let count = self
            .cluster
            .require_topic(self.topic.name, "Read", None)
            .await?;
        self.topic.partitions = i32::try_from(count)?;
        let mut doubts = Vec::new();
        match self.cluster.compaction(self.topic.name).await {
            Ok(compaction) => doubts.extend(compaction),
            Err(error) if error.chain().any(|cause| cause.is::<NeedsAttention>()) => {
                tracing::info!("{error:#}");
            }
            Err(error) => return Err(error),
        }
        let mut logs = Ranges::new();
        for partition in 0..i32::try_from(count)? {
            let log = block_in_place(|| {
                self.topic
                    .reader
                    .bounds(self.topic.name, partition, End::Stable)
            })?;
            logs.insert(partition, log);
        }
        let mut findings = Findings::default();
        let held = snapshot
            .offsets(self.topic.name)
            .await
            .with_context(asking)?;
        let mut least_rows = BTreeMap::new();
        for part in Part::ALL {
            if held
                .iter()
                .any(|held| held.part == part && !held.is_sound())
            {
                let of_part = snapshot.least_offsets(part).await.with_context(asking)?;
                least_rows.extend(of_part.into_iter().map(|(p, offset)| ((part, p), offset)));
            }
        }
        let mut stored = offsets::check(
            held,
            &least_rows,
            &self.cluster.id,
            &self.topic,
            &logs,
            &mut findings,
        )?;
        let whole = self.config.from.is_none() && matches!(self.config.to, Bound::Latest);
        if whole {
            self.find_missing_offsets(&mut snapshot, &logs, &mut stored, &mut findings)
                .await?;
        }
        let not_stored = self.not_stored(&logs, &stored)?;
        let mut extent = self.extent(logs, stored, whole)?;
        let mut sides = self.compare_sums(&mut snapshot, &extent).await?;
        let began_before = self.correct_first_offsets(&mut extent, &sides, &mut findings);
        let went_back = self
            .correct_next_offsets(&mut snapshot, &mut extent, &sides, &mut findings)
            .await
            .with_context(asking)?;
        if began_before || went_back {
            extent = self.extent(extent.logs, extent.stored, whole)?;
            sides = self.compare_sums(&mut snapshot, &extent).await?;
        }
        let lettered = match sides.differing.is_empty() && sides.unreadable_count.is_empty() {
            true => Marks::default(),
            false => self.letters(&extent).await?,
        };
        self.compare_rows(&mut snapshot, &extent, &sides, &lettered, &mut findings)
            .await
            .with_context(asking)?;
        self.is_known_enough(&sides, &findings)?;
        block_in_place(|| self.is_still_there(&extent))?;
        doubts.extend(self.passed_by_retention(&extent)?);
        doubts.extend(self.without_place(&sides, &findings));
        let mut report = self.report(&extent, sides, &lettered, &findings);
        report.not_stored = not_stored;
        report.judge(doubts);
        Ok((report, findings))
    }

    /// Rows of events that only another consumer can read are not said to be extra, nor taken out.
    fn is_known_enough(&self, sides: &Sides, findings: &Findings) -> anyhow::Result<()> {
        let unknown = |finding: &&Finding| {
            let is_unknown = sides
                .unknown_writer
                .is_set(finding.partition, finding.offset);
            matches!(finding.fault, Fault::Extra) && is_unknown
        };
        let Some(finding) = findings.found.iter().find(unknown) else {
            return Ok(());
        };
        let (partition, offset) = (finding.partition, finding.offset);
        Err(anyhow!(
            "{} partition {partition} offset {offset}: the tables have rows of an event that cannot be read here; \
             give --schemas or --schema-registry as the consumer has them",
            self.topic.name
        ))
    }

    /// Parts and partitions of which rows are there and no stored offset: whoever stores them next
    /// would begin anew.
    async fn find_missing_offsets(
        &self,
        snapshot: &mut Snapshot,
        logs: &Ranges,
        stored: &mut Stored,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        for part in Part::ALL {
            for (&partition, log) in logs {
                if stored.contains_key(&(part, partition)) || log.is_empty() {
                    continue;
                }
                let Some(last) = snapshot.last_offset(part, partition).await? else {
                    continue;
                };
                let record = said::records(&self.topic, [(partition, last)])?;
                let Some(anchor) = record.first().map(Anchor::of) else {
                    continue; // no event: an extra row
                };
                let first_offset = Part::ALL
                    .iter()
                    .find_map(|other| stored.get(&(*other, partition))?.first_offset);
                let right = HeldOffset {
                    part,
                    partition,
                    first_offset,
                    next_offset: last + 1,
                    cluster_id: self.cluster.id.clone(),
                    topic_id: Part::ALL
                        .iter()
                        .find_map(|other| stored.get(&(*other, partition))?.topic_id.clone()),
                    anchor,
                };
                findings.push(offsets::missing(right.clone()));
                stored.insert((part, partition), right);
            }
        }
        Ok(())
    }

    /// What the topic has and the database has not stored yet.
    fn not_stored(&self, logs: &Ranges, stored: &Stored) -> anyhow::Result<NotStored> {
        let parts: BTreeSet<Part> = stored.keys().map(|(part, _)| *part).collect();
        let mut waiting = Ranges::new();
        for (&partition, log) in logs {
            let next = parts.iter().map(|part| {
                let held = stored.get(&(*part, partition));
                held.map_or(log.start, |held| held.next_offset)
            });
            let next = next.min().unwrap_or(log.start).max(log.start);
            waiting.insert(partition, next..log.end.max(next));
        }
        let offsets: i64 = waiting.values().map(|range| range.end - range.start).sum();
        let mut not_stored = NotStored {
            offsets: offsets.unsigned_abs(),
            events: None,
        };
        if offsets <= MAX_COUNTED {
            let mut events = 0;
            let count = |_: &BorrowedMessage<'_>| {
                events += 1;
                Ok(())
            };
            let (reader, name) = (self.topic.reader, self.topic.name);
            block_in_place(|| reader.scan(name, &waiting, self.topic.stop, count))?;
            not_stored.events = Some(events);
        }
        Ok(not_stored)
    }

    /// Why a range that begins at a time may not be whole.
    fn passed_by_retention(&self, extent: &Extent) -> anyhow::Result<Option<String>> {
        let Some(from @ Bound::Time(_)) = &self.config.from else {
            return Ok(None);
        };
        let (reader, name) = (self.topic.reader, self.topic.name);
        let starts = block_in_place(|| reader.resolve(name, from, &extent.logs))?;
        let passed = extent.logs.iter().find(|(partition, log)| {
            let had_more = extent.stored.iter().any(|((_, of), held)| {
                of == *partition && held.first_offset.is_none_or(|first| first < log.start)
            });
            had_more && !log.is_empty() && starts.get(partition) == Some(&log.start)
        });
        Ok(passed.map(|(partition, log)| {
            format!(
                "retention has deleted the events of {name} partition {partition} before offset {}, and those of the time \
                 asked for by --from may be among them; --from earliest compares what is there",
                log.start
            )
        }))
    }

    /// Which offsets are compared of which table.
    fn extent(&self, logs: Ranges, stored: Stored, whole: bool) -> anyhow::Result<Extent> {
        let topic = self.topic.name;
        let asked =
            |bound: &Bound| block_in_place(|| self.topic.reader.resolve(topic, bound, &logs));
        let from = self.config.from.as_ref().unwrap_or(&Bound::Earliest);
        let (starts, to) = (asked(from)?, asked(&self.config.to)?);
        if let Bound::Offsets(offsets) = from {
            for (partition, offset) in offsets {
                let log = logs.get(partition).with_context(|| {
                    format!(
                        "--from: {topic} has only the partitions 0 to {}",
                        logs.len() - 1
                    )
                })?;
                if *offset < log.start {
                    bail!(
                        "--from: the log of {topic} partition {partition} begins at offset {} now; what stood at {offset} \
                         was taken by retention and cannot be proven any more",
                        log.start
                    );
                }
            }
        }
        let mut spans = Spans::new();
        for ((part, partition), held) in &stored {
            let Some(log) = logs.get(partition) else {
                bail!(
                    "the database holds {topic} partition {partition}, and the topic has only {}",
                    counted(logs.len(), "partition")
                );
            };
            if held.next_offset > log.end {
                bail!(
                    "the database holds {topic} partition {partition} up to offset {}, and its log ends at {}: the topic was \
                     made anew or cut, or a transaction is open",
                    held.next_offset,
                    log.end
                );
            }
            let (Some(from), Some(to)) = (starts.get(partition), to.get(partition)) else {
                continue; // not asked for
            };
            let begun = held.first_offset.unwrap_or(log.start).max(log.start);
            let start = begun.max(*from);
            let span = start..held.next_offset.min(*to).max(start);
            spans.insert((Table::of(*part), *partition), span.clone());
            // Without its history nothing is known of a task's newest report.
            if stored.keys().any(|(part, _)| *part == Part::Progress) {
                let of_task = spans
                    .entry((Table::Task, *partition))
                    .or_insert(span.clone());
                if of_task.is_empty() {
                    *of_task = span;
                } else if !span.is_empty() {
                    *of_task = of_task.start.min(span.start)..of_task.end.max(span.end);
                }
            }
        }
        let offsets: i64 = said::hull(&spans)
            .values()
            .map(|span| span.end - span.start)
            .sum();
        if offsets > MAX_OFFSETS {
            bail!(
                "{offsets} offsets are more than the {MAX_OFFSETS} that are audited at once; give --from and --to"
            );
        }
        let places = (!whole).then(|| said::hull(&spans).into_iter().collect());
        Ok(Extent {
            logs,
            stored,
            spans,
            places,
        })
    }

    async fn compare_sums(
        &self,
        snapshot: &mut Snapshot,
        extent: &Extent,
    ) -> anyhow::Result<Sides> {
        let Extent { spans, places, .. } = extent;
        let plan = Plan::new(spans);
        let bars = MultiProgress::new();
        let hull = said::hull(spans);
        let offsets: i64 = hull.values().map(|span| span.end - span.start).sum();
        let events_bar = bars.add(bar(offsets as u64, "events"));
        let rows_bar = bars.add(spinner("rows"));
        let tasks = Tasks::read(snapshot, &plan, Marks::new(&hull), places).await?;
        // Both sides at once: they share nothing but the plan.
        let (said, told) = block_in_place(|| {
            std::thread::scope(|scope| {
                let said = scope
                    .spawn(|| Said::read(&self.topic, &plan, spans, &tasks.newest, &events_bar));
                let scan = Scan {
                    plan: &plan,
                    tasks: &tasks,
                    places,
                    reported_from: self.topic.expired_before,
                    bar: &rows_bar,
                    stop: self.topic.stop,
                };
                let told = scan.read(self.database, snapshot);
                let failed = |_| Err(anyhow!("reading {} failed", self.topic.name));
                (said.join().unwrap_or_else(failed), told)
            })
        });
        let told = told.with_context(|| format!("reading {}", self.database.place()));
        let (mut said, told) = (said?, told?);
        let Told {
            fingerprint: mut held,
            outranked,
        } = told;
        held.take_in(tasks.fingerprint);
        rows_bar.finish_and_clear();
        Ok(Sides {
            differing: said.fingerprint.differing(&held),
            aborted: std::mem::take(&mut said.aborted),
            held_rows: held.rows(),
            outside: std::mem::take(&mut held.outside),
            digests: said.digests(),
            events: std::mem::take(&mut said.events),
            unreadable: said.unreadable,
            unreadable_count: said.unreadable_count,
            unreadable_shown: said.unreadable_shown,
            unknown_writer: said.unknown_writer,
            outranked,
        })
    }

    /// Rows before the first offset that is said to be stored: it was another one. Gives whether there
    /// are any.
    fn correct_first_offsets(
        &self,
        extent: &mut Extent,
        sides: &Sides,
        findings: &mut Findings,
    ) -> bool {
        let mut corrected = false;
        for part in Part::ALL {
            for (&partition, log) in &extent.logs {
                let outside = sides.outside.get(&(Table::of(part), partition));
                let Some(least) = outside.and_then(|outside| outside.least) else {
                    continue;
                };
                // The parts of a partition mostly begin together, and not every event has rows of each.
                let of_others = Part::ALL
                    .iter()
                    .filter_map(|other| extent.stored.get(&(*other, partition))?.first_offset)
                    .filter(|first| *first <= least)
                    .max();
                let Some(held) = extent.stored.get_mut(&(part, partition)) else {
                    continue;
                };
                if held.first_offset.is_some_and(|first| least < first) && log.contains(&least) {
                    let before = held.clone();
                    held.first_offset = Some(of_others.unwrap_or(least));
                    findings.found.extend(offsets::difference(&before, held));
                    corrected = true;
                }
            }
        }
        corrected
    }

    /// Rows of records behind the stored position: it went back, and consumers would store them again. Gives whether
    /// there are any. (What stands at such a row's offset without a record is unprovable.)
    async fn correct_next_offsets(
        &self,
        snapshot: &mut Snapshot,
        extent: &mut Extent,
        sides: &Sides,
        findings: &mut Findings,
    ) -> anyhow::Result<bool> {
        let mut corrected = false;
        for part in Part::ALL {
            for (&partition, log) in &extent.logs {
                let outside = sides.outside.get(&(Table::of(part), partition));
                let Some(held) = extent.stored.get_mut(&(part, partition)) else {
                    continue;
                };
                if outside.is_none_or(|outside| outside.behind == 0) {
                    continue;
                }
                let last = snapshot.last_offset(part, partition).await?;
                let Some(last) = last.filter(|last| (held.next_offset..log.end).contains(last))
                else {
                    continue;
                };
                let record = said::records(&self.topic, [(partition, last)])?;
                let Some(anchor) = record.first().map(Anchor::of) else {
                    continue;
                };
                tracing::warn!(
                    topic = self.topic.name,
                    partition,
                    part = part.as_str(),
                    "rows stand behind the stored position {}, up to offset {last}: it went back, and consumers would store \
                     them again",
                    held.next_offset
                );
                let before = held.clone();
                (held.next_offset, held.anchor) = (last + 1, anchor);
                findings.found.extend(offsets::difference(&before, held));
                corrected = true;
            }
        }
        Ok(corrected)
    }

    /// Rows that stand at no partition and offset, as text can in SQLite: no record can tell of them.
    fn without_place(&self, sides: &Sides, findings: &Findings) -> Option<String> {
        let counts = findings.counts();
        let told = |table: Table| -> u64 {
            let of_none = counts
                .iter()
                .filter(|((name, _, partition), _)| *name == table.name() && *partition == -1);
            of_none.map(|(_, count)| count).sum()
        };
        let of_none = sides.outside.iter().filter(|((_, at), _)| *at == -1);
        let rows: u64 = of_none
            .map(|((table, _), outside)| {
                (outside.before + outside.behind).saturating_sub(told(*table))
            })
            .sum();
        (rows > 0).then(|| {
            format!(
                "{} in {} without a valid event_partition or event_offset: look for such rows by \
                 typeof(event_partition) and typeof(event_offset)",
                counted(rows, "row"),
                self.database.place()
            )
        })
    }

    /// The events that have dead letters of a consumer. A letter that does not name its topic's id counts where the
    /// record at its place has its time: the topic may have been deleted and made anew since.
    async fn letters(&self, extent: &Extent) -> anyhow::Result<Marks> {
        let mut lettered = Marks::new(&said::hull(&extent.spans));
        let topic = &self.config.dead_letters_topic;
        let count = self.cluster.require_topic(topic, "Read", None).await?;
        let mut without_id: BTreeMap<(i32, i64), BTreeSet<Option<i64>>> = BTreeMap::new();
        block_in_place(|| {
            let mut ranges = Ranges::new();
            for partition in 0..i32::try_from(count)? {
                ranges.insert(
                    partition,
                    self.topic.reader.bounds(topic, partition, End::Stable)?,
                );
            }
            self.topic
                .reader
                .scan(topic, &ranges, self.topic.stop, |letter| {
                    let header = |name: &str| {
                        let headers = letter.headers()?;
                        let found = headers.iter().find(|header| header.key == name)?;
                        std::str::from_utf8(found.value?).ok()
                    };
                    if header(dead_letter::CONNECTOR_NAME) == Some("consumer")
                        && header(dead_letter::TOPIC) == Some(self.topic.name)
                        && let Some(Ok(partition)) = header(dead_letter::PARTITION).map(str::parse)
                        && let Some(Ok(offset)) = header(dead_letter::OFFSET).map(str::parse)
                    {
                        match (header(dead_letter::TOPIC_ID), &self.topic.id) {
                            (Some(of), Some(id)) if of == id => lettered.set(partition, offset),
                            (Some(_), Some(_)) => {}
                            _ if lettered.covers(partition, offset) => {
                                let time = header(dead_letter::TIMESTAMP_MS);
                                let time = time.and_then(|time| time.parse().ok());
                                without_id
                                    .entry((partition, offset))
                                    .or_default()
                                    .insert(time);
                            }
                            _ => {}
                        }
                    }
                    Ok(())
                })
        })?;
        let places: Vec<(i32, i64)> = without_id.keys().copied().collect();
        said::each_record(&self.topic, places, Isolation::Committed, |record| {
            let (partition, offset) = (record.partition(), record.offset());
            let times = without_id.get(&(partition, offset));
            if times.is_some_and(|times| times.contains(&record.timestamp().to_millis())) {
                lettered.set(partition, offset);
            }
            Ok(())
        })?;
        Ok(lettered)
    }

    async fn compare_rows(
        &self,
        snapshot: &mut Snapshot,
        extent: &Extent,
        sides: &Sides,
        lettered: &Marks,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        findings.set_aside = Marks::new(&said::hull(&extent.spans));
        let mut wanted = sides.differing.clone();
        let tasks_are_audited = extent.spans.keys().any(|(table, _)| *table == Table::Task);
        for (at, outside) in &sides.outside {
            if at.0 == Table::Task && !tasks_are_audited {
                continue;
            }
            let span = extent.spans.get(at).cloned().unwrap_or(0..0);
            let places = wanted.entry(*at).or_default();
            let low = extent.logs.get(&at.1).map_or(0, |log| log.start);
            if outside.before > 0 && !is_retention(span.start, low) {
                places.insert(0, ANY_OFFSET.start..span.start);
            }
            if outside.behind > 0 {
                let behind = match extent.spans.contains_key(at) {
                    true => span.end..ANY_OFFSET.end,
                    false => ANY_OFFSET,
                };
                places.push(behind);
            }
        }
        for ((table, partition), places) in &wanted {
            let span = extent
                .spans
                .get(&(*table, *partition))
                .cloned()
                .unwrap_or(0..0);
            compare::compare(
                &self.topic,
                snapshot,
                *table,
                *partition,
                &span,
                places,
                lettered,
                findings,
            )
            .await?;
        }
        let missing = compare::find_misnamed(snapshot, findings).await?;
        // What cannot be proven may be right where it stands: it was not moved.
        evidence::settle(&self.topic, &extent.spans, findings)?;
        compare::find_moved(findings);
        let mut suspects: BTreeSet<i64> = compare::suspects(findings).into_iter().collect();
        suspects.extend(&sides.outranked);
        let spans = &extent.spans;
        tasks::resolve(snapshot, &self.topic, spans, suspects, missing, findings).await?;
        tasks::find_lost(snapshot, &self.topic, findings).await?;
        let key = |finding: &compare::Finding| {
            (
                finding.table,
                finding.partition,
                finding.offset,
                finding.fault,
            )
        };
        findings.found.sort_by_key(key);
        Ok(())
    }

    /// A log whose start was passed while it was read was not read whole.
    fn is_still_there(&self, extent: &Extent) -> anyhow::Result<()> {
        for (partition, span) in said::hull(&extent.spans) {
            let log = self
                .topic
                .reader
                .bounds(self.topic.name, partition, End::Stable)?;
            if log.start > span.start {
                bail!(
                    "{} partition {partition}: retention passed offset {} while it was read, the log begins at {} now; run it again",
                    self.topic.name,
                    span.start,
                    log.start
                );
            }
        }
        Ok(())
    }

    fn report(
        &self,
        extent: &Extent,
        sides: Sides,
        lettered: &Marks,
        findings: &Findings,
    ) -> Report {
        let counts = findings.counts();
        let hull = said::hull(&extent.spans);
        let mut partitions = Vec::new();
        for (&partition, log) in &extent.logs {
            let span = hull.get(&partition).cloned().unwrap_or(log.end..log.end);
            let events = sides.events.get(&partition).copied().unwrap_or(0);
            let aborted = sides.aborted.get(&partition).copied().unwrap_or(0);
            let mut of_tables = BTreeMap::new();
            for table in Table::ALL {
                let at = (table, partition);
                let fault = |fault| {
                    counts
                        .get(&(table.name(), fault, partition))
                        .copied()
                        .unwrap_or(0)
                };
                let outside = sides.outside.get(&at).copied().unwrap_or_default();
                let span = extent.spans.get(&at);
                let taken = span.is_some_and(|span| is_retention(span.start, log.start));
                let digest = sides.digests.get(&at);
                let faults = [
                    Fault::Missing,
                    Fault::Extra,
                    Fault::Differing,
                    Fault::Unprovable,
                ];
                let deleted = if taken { outside.before } else { 0 };
                let is_equal = faults.into_iter().all(|it| fault(it) == 0);
                let set_aside = findings.set_aside_rows.get(&at);
                let told = TableReport {
                    from: span.map(|span| span.start),
                    to: span.map(|span| span.end),
                    rows_of_topic: digest.map_or(0, |digest| digest.rows),
                    rows_of_table: sides.held_rows.get(&at).copied().unwrap_or(0),
                    missing: fault(Fault::Missing),
                    extra: fault(Fault::Extra),
                    differing: fault(Fault::Differing),
                    unprovable: fault(Fault::Unprovable) + deleted,
                    deleted,
                    expired: digest.map_or(0, |digest| digest.expired),
                    refused: set_aside.map_or(0, |(rows, _)| *rows),
                    sha256: digest
                        .filter(|_| is_equal && set_aside.is_none())
                        .map(|digest| digest.sha256.clone()),
                    proven: digest.map(|digest| match set_aside {
                        None => digest.sha256.clone(),
                        Some((rows, of_rows)) => {
                            let without = said::hex(&of_rows.clone().finalize());
                            format!("{} without {rows} {without}", digest.sha256)
                        }
                    }),
                };
                if span.is_some() || !is_equal {
                    of_tables.insert(table.name(), told);
                }
            }
            let offsets = (span.end - span.start).max(0) as u64;
            partitions.push(PartitionReport {
                partition,
                log_start: log.start,
                log_end: log.end,
                from: span.start,
                to: span.end,
                events,
                unreadable: sides.unreadable_count.get(&partition).copied().unwrap_or(0),
                unreadable_with_letter: sides.unreadable.count_both(lettered, partition),
                refused_with_letter: findings
                    .set_aside
                    .count_both(&findings.set_aside, partition),
                aborted,
                markers: offsets.saturating_sub(events + aborted),
                last_record: extent
                    .stored
                    .iter()
                    .filter(|((_, of), _)| *of == partition)
                    .map(|(_, held)| held.anchor)
                    .max_by_key(|anchor| anchor.offset)
                    .map(Into::into),
                tables: of_tables,
            });
        }
        Report::new(self, partitions, sides.unreadable_shown, findings)
    }

    /// Says what a repair does, and whether it may: only by `--yes` it removes more than it keeps.
    fn may_repair(&self, report: &Report) -> bool {
        output::note(report.plan());
        let (removed, kept) = report.removed_and_kept();
        if removed <= kept || self.config.yes {
            return true;
        }
        tracing::error!(
            "nothing was repaired: it would remove {} and keep {kept}. Is {} the database of {}? If it is, \
             give --yes",
            counted(removed, "row"),
            self.database.place(),
            self.topic.name
        );
        false
    }

    /// Applies what cures the findings, one transaction per partition. Returns how many rows it wrote and removed.
    async fn repair(&self, findings: &Findings) -> anyhow::Result<u64> {
        // A task is put in with the first of its rows.
        let mut first: BTreeMap<&str, i32> = BTreeMap::new();
        for finding in &findings.found {
            if let Some(exec_id) = &finding.exec_id {
                let partition = first.entry(exec_id).or_insert(finding.partition);
                *partition = finding.partition.min(*partition);
            }
        }
        let mut cures: BTreeMap<i32, Vec<&Cure>> = BTreeMap::new();
        for finding in findings
            .found
            .iter()
            .filter(|finding| finding.cure.is_one())
        {
            let partition = match (&finding.cure, &finding.exec_id) {
                (Cure::NewTask { .. }, Some(exec_id)) => first[exec_id.as_str()],
                _ => finding.partition,
            };
            cures.entry(partition).or_default().push(&finding.cure);
        }
        let mut repaired = 0;
        for (partition, cures) in cures {
            let place = self.database.place();
            let Repair {
                written,
                removed,
                left,
                without_task,
            } = self
                .database
                .repair(self.topic.name, partition, &cures)
                .await
                .with_context(|| {
                    format!(
                        "repairing partition {partition} in {place}; all of it was written or nothing, as another audit \
                         tells"
                    )
                })?;
            repaired += written + removed;
            let mut but = String::new();
            if left > 0 {
                but.push_str(&format!("; {left} had changed meanwhile and were left"));
            }
            if without_task > 0 {
                but.push_str(&format!(
                    "; {without_task} were left because their task has no row yet"
                ));
            }
            output::note(format_args!(
                "repaired partition {partition}: {}, {} written, {removed} removed{but}",
                counted(cures.len(), "finding"),
                counted(written, "row")
            ));
        }
        if findings.is_cut() && repaired > 0 {
            output::note("there is more to repair than is held at once; going on");
        }
        Ok(repaired)
    }
}

/// Whether what stands before `start` was taken from the log by retention.
fn is_retention(start: i64, log_start: i64) -> bool {
    start == log_start && log_start > 0
}

fn bar(length: u64, what: &'static str) -> ProgressBar {
    let template = "{msg:>7} {wide_bar} {human_pos}/{human_len}, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(length)
        .with_message(what)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>7} {human_pos}, {per_sec}");
    ProgressBar::no_length()
        .with_message(what)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}
