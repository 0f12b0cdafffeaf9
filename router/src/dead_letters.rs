//! `router dead-letters`: what was set aside, read, and sent back once its cause is gone.
//!
//! ```text
//! list     dead letter topic ──▶ letters, and the notes about them ──▶ a table, counts by reason
//! show     one letter ──▶ headers, reason, value decoded as far as it goes, bytes
//! redrive  letters ──▶ one Kafka transaction a chunk { records to the topics they came from, notes }
//! ```

mod duplicates;
mod listing;
mod read;
mod redrive;
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use jiff::Timestamp;
use schemas::dead_letter::KINDS;
use schemas::topics;
use serde_json::json;
use service::exit::{Kind, OK, USAGE, WrongUsage, help};
use service::kafka::{Cluster, KafkaOptions, NewTopic};
use service::output;
use service::range::{End, Position, Reader, moment};
use service::settings::topic_name;
use service::text::shown;
use service::words::counted;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use listing::{Count, Listing};
use read::{Detail, Filter, Letter, Letters, Selection, held_back};
use redrive::{Done, Redriver, Sending};

use crate::outputs::position;
use crate::writers::Writers;

/// Letters that a dry run shows one by one.
const PLANNED_LETTERS: usize = 100;

/// `router dead-letters`.
#[derive(Clone, Debug, Args)]
#[command(after_help = help(Kind::Command, ""))]
pub struct DeadLetters {
    #[command(subcommand)]
    command: Command,

    /// Topic of the dead letters
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS, global = true)]
    dead_letters_topic: String,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// List dead letters, the newest first, and count them by reason
    #[command(after_help = help(Kind::Command, LIST_HELP))]
    List {
        /// Print JSON: an array with an object a letter
        #[arg(long)]
        json: bool,
        /// At most so many letters; 0 for all, which are then held in memory
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        which: Which,
    },
    /// Show letters: every header, the value decoded as far as it goes, and its bytes
    #[command(after_help = help(Kind::Command, SHOW_HELP))]
    Show {
        /// Letters as `list` prints them: PARTITION:OFFSET of the dead letter topic
        #[arg(value_name = "P:OFFSET", required = true)]
        letters: Vec<Position>,
        /// Dump all bytes of the value, not only the first 512
        #[arg(long)]
        full: bool,
    },
    /// Send letters back to the topics their records came from, each once
    #[command(after_help = help(Kind::Command, REDRIVE_HELP))]
    Redrive {
        /// Letters as `list` prints them: PARTITION:OFFSET of the dead letter topic
        #[arg(value_name = "P:OFFSET", conflicts_with_all = ["Which", "all"])]
        letters: Vec<Position>,
        /// All letters; needed when nothing says which
        #[arg(long)]
        all: bool,
        /// Send letters back again that were redriven before
        #[arg(long)]
        force: bool,
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
        /// Letters a transaction, at most
        #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..))]
        max_records: u16,
        #[command(flatten)]
        which: Which,
    },
}

/// Which letters; several filters narrow each other, one repeated widens.
#[derive(Clone, Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Which letters")]
struct Which {
    /// Set aside for this kind of reason (repeatable)
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(KINDS))]
    reason: Vec<String>,
    /// Written at this time or later: RFC 3339, or back from now as in -2h. `list` reads nothing older
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    since: Option<Timestamp>,
    /// Written before this time
    #[arg(long, value_name = "TIME", value_parser = moment, allow_hyphen_values = true)]
    until: Option<Timestamp>,
    /// Of records of this topic (repeatable)
    #[arg(long, value_name = "TOPIC", value_parser = topic_name)]
    source_topic: Vec<String>,
    /// Of records of this partition of their topic (repeatable)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    source_partition: Vec<i32>,
    /// Set aside by this service
    #[arg(long, value_name = "SERVICE")]
    service: Option<Service>,
    /// Not redriven yet
    #[arg(long)]
    not_redriven: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Service {
    Router,
    Consumer,
}

const LIST_HELP: &str = "\
Reads the whole topic (from --since on), committed records only, up to its end at the start. Belongs to no consumer group.
The size is that of the original value; * means that the letter leaves it out.

Example:
  router dead-letters list --reason UnknownSchema --since -2h --not-redriven";

const SHOW_HELP: &str = "\
Where the letter leaves out the value, being too large for its topic, the value is read from the original topic, partition and
offset while the log there has it. Size, time and key must be those that the letter tells. The topic's id, which a router's letter
tells in the header taskrunning.original.topic.id, is not compared with the topic that has the name now.

Ends with 2 also if there is no letter at one of the places.

Example:
  router dead-letters show 3:17";

const REDRIVE_HELP: &str = "\
Each record goes to the topic that its letter names, with its original key and value and the headers taskrunning.redriven.topic,
.partition, .offset (the letter) and .at. In the same Kafka transaction a note with these headers is written to the letter's
partition of the dead letter topic. A letter with a note is not sent again, but with --force. Letters about the same record (same
topic, partition, offset, time and service: a consumer whose database went back writes them again) are sent back as one, and all
get the note; for these the whole topic is read, whatever is asked for. Starting a second redrive of a dead
letter topic fences the first, which then ends with exit code 1; together they send each letter once. A redrive that is killed has
committed each transaction wholly or not at all: run it again for the rest.

Letters stay where they are. Left, and told: what has become too large for its topic (as in the router, measured uncompressed), and
letters without their value whose original record is gone. The value that such a letter leaves out is read from the original
topic, partition and offset; size, time and key must be those that the letter tells. Records go to the topic that has the name now,
also after it was deleted and made anew: its id, which a router's letter tells in the header taskrunning.original.topic.id, is
not compared.

Ends with 2 also if a letter was left: it was redriven before and asked for by its place, is not there, is too large, or its value
is gone. With a filter, letters that were redriven before count as sent.

Examples:
  router dead-letters redrive 3:17 3:18
  router dead-letters redrive --reason UnknownSchema --since -2h --dry-run";

impl Which {
    fn filter(self) -> Filter {
        Filter {
            kinds: self.reason,
            since: self.since,
            until: self.until,
            source_topics: self.source_topic,
            source_partitions: self.source_partition,
            service: self.service.map(|service| match service {
                Service::Router => "router",
                Service::Consumer => "consumer",
            }),
            not_redriven: self.not_redriven,
        }
    }
}

/// Does what is asked; gives the exit code.
///
/// # Errors
/// If Kafka does not answer, a topic or a right is missing, or another redrive fences this one.
pub async fn dead_letters(
    asked: DeadLetters,
    kafka: &KafkaOptions,
    stop: &CancellationToken,
) -> anyhow::Result<u8> {
    if let Command::Redrive {
        letters,
        which,
        all: false,
        ..
    } = &asked.command
        && letters.is_empty()
        && *which == Which::default()
    {
        return Err(WrongUsage(
            "say which letters: PARTITION:OFFSET as `router dead-letters list` prints them, a filter such as --reason KIND, or \
             --all"
                .to_owned(),
        )
        .into());
    }
    let stopped = || anyhow!("stopped by a signal");
    let cluster = kafka.cluster_soon(stop).await?.ok_or_else(stopped)?;
    let desk = Desk {
        partitions: cluster
            .require_topic(&asked.dead_letters_topic, "Read", None)
            .await?,
        topic: asked.dead_letters_topic,
        reader: Reader::connect(kafka)?,
        stop,
    };
    match asked.command {
        Command::List { which, json, limit } => block_in_place(|| desk.list(which, json, limit)),
        Command::Show { letters, full } => {
            let writers = Writers::of(None, kafka)?;
            block_in_place(|| desk.show(letters, full, &writers))
        }
        Command::Redrive {
            letters,
            which,
            all: _,
            force,
            dry_run,
            max_records,
        } => {
            let selection = match letters.is_empty() {
                true => Selection::Filter(which.filter()),
                false => Selection::Positions(letters.into_iter().collect()),
            };
            let how = How {
                force,
                dry_run,
                max_records: max_records.into(),
            };
            desk.redrive(&cluster, kafka, selection, how).await
        }
    }
}

/// How to redrive.
struct How {
    force: bool,
    dry_run: bool,
    max_records: usize,
}

impl How {
    /// Prints what is to be done, or was done. Of a dry run that is the result.
    fn print(&self, text: &str) -> anyhow::Result<()> {
        match self.dry_run {
            true => output::print(text)?,
            false => output::account(text),
        }
        Ok(())
    }
}

/// A dead letter topic, and who reads it.
struct Desk<'a> {
    topic: String,
    partitions: usize,
    reader: Reader,
    stop: &'a CancellationToken,
}

impl Desk<'_> {
    fn read(&self, selection: Selection) -> anyhow::Result<Letters> {
        Letters::read(
            &self.reader,
            &self.topic,
            self.partitions,
            selection,
            self.stop,
        )
    }

    fn list(&self, which: Which, json: bool, limit: usize) -> anyhow::Result<u8> {
        let detail = if json { Detail::Whole } else { Detail::Row };
        let listing = Listing::read(
            &self.reader,
            &self.topic,
            self.partitions,
            which.filter(),
            (limit, detail),
            self.stop,
        )?;
        for (partition, offset) in held_back(&self.reader, &self.topic, self.partitions)? {
            output::note(format_args!(
                "{} partition {partition}: not shown from offset {offset} on, where a transaction is still open",
                self.topic
            ));
        }
        let listed: Vec<&Letter> = listing.newest().collect();
        if json {
            let objects: Vec<_> = listed.iter().map(|letter| as_json(letter)).collect();
            output::print_json(&objects)?;
            return Ok(OK);
        }
        let mut text = String::new();
        if !listed.is_empty() {
            writeln!(text, "{}", table(&listed))?;
        }
        let mut total = 0;
        for (kind, Count { all, not_redriven }) in listing.counts() {
            total += all;
            writeln!(
                text,
                "{all:>8} {} ({not_redriven} not redriven)",
                shown(kind)
            )?;
        }
        let more = match total - listed.len() {
            0 => String::new(),
            more => format!("; {more} more with --limit 0"),
        };
        writeln!(text, "{} in {}{more}", counted(total, "letter"), self.topic)?;
        output::print(&text)?;
        Ok(OK)
    }

    fn show(&self, positions: Vec<Position>, full: bool, writers: &Writers) -> anyhow::Result<u8> {
        let letters = self.read(Selection::Positions(positions.into_iter().collect()))?;
        let mut texts = Vec::new();
        let (reader, stop) = (&self.reader, self.stop);
        reader.scan(&self.topic, &letters.ranges(), stop, |record| {
            if let Some(letter) = letters.found.get(&position(record)) {
                let original = letter.original(record, reader, stop)?;
                if let Ok((_, value)) = &original {
                    writers.learn_soon(value.as_deref(), stop)?;
                }
                let decoder = &writers.decoder;
                let text = show::letter(&self.topic, letter, record, original, decoder, full)?;
                texts.push(text);
            }
            Ok(())
        })?;
        output::print(&texts.join("\n"))?;
        Ok(self.tell_missing(&letters))
    }

    /// Tells where no letter stands; gives the exit code for that.
    fn tell_missing(&self, letters: &Letters) -> u8 {
        let missing = letters.missing();
        for position in &missing {
            output::note(format_args!(
                "{position}: no letter stands there in {}, which has {}: it has expired or is yet to come, or a note or \
                 a commit marker stands there",
                self.topic,
                counted(self.partitions, "partition")
            ));
        }
        if missing.is_empty() { OK } else { USAGE }
    }

    async fn redrive(
        &self,
        cluster: &Cluster,
        kafka: &KafkaOptions,
        selection: Selection,
        how: How,
    ) -> anyhow::Result<u8> {
        let by_place = matches!(selection, Selection::Positions(_));
        let mut letters = block_in_place(|| self.read(selection))?;
        let mut code = self.tell_missing(&letters);

        let targets: BTreeSet<Arc<str>> = letters
            .found
            .values()
            .filter_map(|letter| Some(letter.source.as_ref()?.topic.clone()))
            .collect();
        let mut limits = BTreeMap::new();
        for target in targets {
            let make = NewTopic::with(topics::REPORTS_SETTINGS);
            cluster.require_topic(&target, "Write", Some(make)).await?;
            limits.insert(target.clone(), cluster.max_record_bytes(&target).await?);
        }

        block_in_place(|| {
            // Fence first, read the notes second: see the module `redrive`.
            let (redriver, end) = match how.dry_run || letters.found.is_empty() {
                true => (None, End::Stable),
                false => {
                    let redriver = Redriver::start(kafka, &self.topic, &limits)?;
                    letters.read_notes(&self.reader, &self.topic, self.stop)?;
                    (Some(redriver), End::High)
                }
            };
            let (reader, topic) = (&self.reader, &self.topic);
            let others = letters.read_others(reader, topic, self.partitions, end, self.stop)?;
            let mut before = 0;
            if !how.force {
                letters.found.retain(|position, letter| {
                    let Some(redriven) = &letter.redriven else {
                        return true;
                    };
                    before += 1;
                    if by_place {
                        code = USAGE;
                        output::note(format_args!(
                            "{position}: left, it was redriven at {}; --force sends it again",
                            shown(&redriven.at)
                        ));
                    }
                    false
                });
            }
            letters.join(&others);
            how.print(&self.plan(&letters, how.dry_run)?)?;

            let mut done = Done::default();
            let sending = Sending {
                reader: &self.reader,
                topic: &self.topic,
                limits: &limits,
                max_records: how.max_records,
                redriver: redriver.as_ref(),
                stop: self.stop,
            };
            let sent = sending.send(&letters, &mut done);
            for why in &done.left {
                code = USAGE;
                output::note(format_args!("{}; left", shown(why)));
            }
            let would = if how.dry_run { "would be " } else { "" };
            let mut text = format!(
                "{} {would}redriven in {}",
                counted(done.redriven, "letter"),
                counted(done.transactions, "transaction")
            );
            if done.duplicates > 0 {
                write!(
                    text,
                    ", {} more about the same records {would}noted",
                    done.duplicates
                )?;
            }
            if !done.left.is_empty() {
                write!(text, ", {} left", done.left.len())?;
            }
            if before > 0 {
                write!(text, ", {before} were redriven before")?;
            }
            how.print(&format!("{text}\n"))?;
            sent.map(|()| code)
        })
    }

    /// What is about to be done.
    fn plan(&self, letters: &Letters, dry_run: bool) -> anyhow::Result<String> {
        let mut text = String::new();
        if dry_run && !letters.found.is_empty() {
            let first: Vec<&Letter> = letters.found.values().take(PLANNED_LETTERS).collect();
            writeln!(text, "{}", table(&first))?;
            if letters.found.len() > first.len() {
                writeln!(text, "… and {} more", letters.found.len() - first.len())?;
            }
        }
        let routes = letters.found.values().map(|letter| {
            let target = letter.source.as_ref().map(|source| source.topic.clone());
            (target, letter.kind.clone())
        });
        for ((target, kind), count) in counts(routes) {
            writeln!(
                text,
                "{count:>8} {} of {} to {}",
                shown(&kind),
                self.topic,
                target.map_or("nowhere: no source told".to_owned(), |target| shown(
                    &target
                ))
            )?;
        }
        Ok(text)
    }
}

/// How often each occurs.
fn counts<K: Ord>(each: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in each {
        *counts.entry(key).or_default() += 1;
    }
    counts
}

fn as_json(letter: &Letter) -> serde_json::Value {
    let (source, first) = (letter.source.as_ref(), letter.first());
    json!({
        "partition": letter.position.partition,
        "offset": letter.position.offset,
        "written_at": time(letter.written_ms),
        "service": &*letter.service,
        "reason": &*letter.kind,
        "message": &*letter.message,
        "source_topic": source.map(|source| &*source.topic),
        "source_partition": source.map(|source| source.position.partition),
        "source_offset": source.map(|source| source.position.offset),
        "original_timestamp_ms": letter.original_ms,
        "first_topic": first.map(|first| first.topic),
        "first_partition": first.map(|first| first.partition),
        "first_offset": first.map(|first| first.offset),
        "first_timestamp_ms": first.and_then(|first| first.timestamp_ms),
        "key": letter.key.as_deref().map(String::from_utf8_lossy),
        "value_bytes": letter.value_bytes,
        "value_omitted": letter.omitted,
        "redriven_at": letter.redriven.as_ref().map(|redriven| &*redriven.at),
        "redriven_times": letter.redriven.as_ref().map_or(0, |redriven| redriven.times),
    })
}

fn table(letters: &[&Letter]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header([
            "letter", "written", "by", "reason", "from", "key", "bytes", "redriven",
        ]);
    for letter in letters {
        let from = letter.source.as_ref().map_or("-".to_owned(), |source| {
            format!("{} {}", shown(&source.topic), source.position)
        });
        let bytes = letter
            .value_bytes
            .map_or("-".to_owned(), |bytes| bytes.to_string());
        table.add_row([
            letter.position.to_string(),
            time(letter.written_ms),
            shown(&letter.service),
            shown(&letter.kind),
            from,
            letter.key.as_deref().map_or("-".to_owned(), |key| {
                shortened(&shown(&String::from_utf8_lossy(key)))
            }),
            format!("{bytes}{}", if letter.omitted { "*" } else { "" }),
            letter
                .redriven
                .as_ref()
                .map_or("no".to_owned(), |redriven| shown(&redriven.at)),
        ]);
    }
    for column in [0, 6] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// A key as much as a table has room for.
fn shortened(text: &str) -> String {
    const CHARS: usize = 40;
    match text.char_indices().nth(CHARS) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// Milliseconds since 1970 as RFC 3339.
fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(
        |_| format!("{ms} ms since 1970"),
        |time| format!("{time:.3}"),
    )
}
