//! `router dead-letters`: lists and shows dead letters, and redrives them after their cause is fixed.
//!
//! ```text
//! list     dead letter topic ──▶ letters, and the notes about them ──▶ a table, counts by reason
//! show     one letter ──▶ headers, reason, value decoded as far as it goes, bytes
//! redrive  letters ──▶ one Kafka transaction a chunk { records to the topics they came from, notes }
//! ```

mod duplicates;
mod letter;
mod letters;
mod list;
mod listing;
mod print;
mod redrive;
mod redriver;
mod show;
mod topic;

use anyhow::anyhow;
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use schemas::dead_letter::KINDS;
use schemas::{Decoder, topics};
use service::exit::{Kind, WrongUsage, help};
use service::kafka::KafkaOptions;
use service::range::{Position, Reader};
use service::schema_source::SchemaSource;
use service::settings::topic_name;
use service::time::timestamp;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use letters::{Filter, Selection};
use list::list;
use redrive::{How, redrive};
use show::show;
use topic::DeadLetterTopic;

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
        /// Print a JSON array with one object per letter
        #[arg(long)]
        json: bool,
        /// Maximum number of letters; 0 for all, which are then held in memory
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        which: Which,
    },
    /// Show letters: every header, the value decoded as far as possible, and its bytes
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
        /// All letters; required without positions and filters
        #[arg(long)]
        all: bool,
        /// Also send letters that were redriven before
        #[arg(long)]
        force: bool,
        /// Only print what would be done
        #[arg(long)]
        dry_run: bool,
        /// Maximum number of letters in a transaction
        #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..))]
        max_records: u16,
        #[command(flatten)]
        which: Which,
    },
}

/// Filters of letters. A letter must match every filter; a repeated filter matches any of its values.
#[derive(Clone, Debug, Default, PartialEq, Args)]
#[command(next_help_heading = "Which letters")]
struct Which {
    /// Set aside for this kind of reason (repeatable)
    #[arg(long, value_name = "KIND", value_parser = PossibleValuesParser::new(KINDS))]
    reason: Vec<String>,
    /// Written at this time or later: RFC 3339, or back from now as in -2h. `list` reads nothing older
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    since: Option<Timestamp>,
    /// Written before this time
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
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
    Producer,
}

const LIST_HELP: &str = "\
Reads the whole topic (from --since on), committed records only, up to its end at the start. Belongs to no consumer group.
The size is that of the original value; * means that the letter omits the value.

Example:
  router dead-letters list --reason UnknownSchema --since -2h --not-redriven";

const SHOW_HELP: &str = "\
If the letter omits the value, because it is too large for the topic, the value is read from the original topic, partition and
offset while the log has it. Size, time and key must equal those in the letter. The topic's id in a router's letter (header
taskrunning.original.topic.id) is not compared with the topic that has the name now.

Also ends with 2 if there is no letter at one of the positions.

Example:
  router dead-letters show 3:17";

const REDRIVE_HELP: &str = "\
Each record goes to the topic that its letter names, with its original key and value and the headers taskrunning.redriven.topic,
.partition, .offset (the letter) and .at. In the same Kafka transaction a note with these headers is written to the letter's
partition of the dead letter topic. A letter with a note is sent again only with --force. Several letters about the same record
(same topic, partition, offset, time and service: a consumer whose database went back writes them again) are sent as one record,
and all get the note; to find them, the whole topic is read. A second redrive of a dead letter topic fences the first, which then
ends with exit code 1; together they send each letter once. A redrive that is killed has committed each transaction wholly or not
at all: run it again for the rest.

Letters are not removed. Not sent, but reported: records that have become too large for their topic (measured uncompressed, as in
the router), and letters without their value whose original record is gone. An omitted value is read from the original topic,
partition and offset; size, time and key must equal those in the letter. Records go to the topic that has the name now, even if
it was deleted and created again: the topic's id in a router's letter (header taskrunning.original.topic.id) is not compared.

Also ends with 2 if a letter was not sent: it was redriven before and named by its position, does not exist, is too large, or its
value is gone. With a filter, letters that were redriven before count as sent.

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
                Service::Producer => "producer",
            }),
            not_redriven: self.not_redriven,
        }
    }
}

/// Runs the command; returns the exit code.
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
            "name the letters: PARTITION:OFFSET as `router dead-letters list` prints them, a filter such as --reason KIND, or \
             --all"
                .to_owned(),
        )
        .into());
    }
    let stopped = || anyhow!("stopped by a signal");
    let cluster = kafka.cluster_soon(stop).await?.ok_or_else(stopped)?;
    let partitions = cluster
        .require_topic(&asked.dead_letters_topic, "Read", None)
        .await?;
    let topic = DeadLetterTopic {
        name: asked.dead_letters_topic,
        partitions: i32::try_from(partitions)?,
        reader: Reader::connect(kafka)?,
        stop,
    };
    match asked.command {
        Command::List { which, json, limit } => {
            block_in_place(|| list(&topic, which.filter(), json, limit))
        }
        Command::Show { letters, full } => {
            let schemas = SchemaSource::of(kafka, |registry| Decoder::of(None, registry))?;
            block_in_place(|| show(&topic, letters, full, &schemas))
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
            redrive(&topic, &cluster, kafka, selection, how).await
        }
    }
}
