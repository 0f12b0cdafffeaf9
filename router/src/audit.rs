//! `router audit`: proves that every source record has exactly one event or one dead letter, and that each
//! event equals the result of routing its record again.
//!
//! ```text
//! scope    committed offsets of the group ──▶ source ranges; then ends of events, dead letters, source
//! first    source ──▶ route() ──▶ sums ─┐
//!          events, dead letters ──▶ sums ┴▶ equal buckets are proved; the others are suspects
//! second   suspects, a bounded window at a time ──▶ what became of each record, by name
//! report   counts, findings, one verdict
//! ```
//!
//! Memory does not grow with the range: the first pass keeps one sum of keyed hashes per bucket of offsets,
//! the second some MiB of records.

mod findings;
mod first_pass;
mod progress;
mod report;
mod rules;
mod scope;
mod second_pass;
mod sums;
mod walk;

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use rdkafka::message::{BorrowedMessage, Message};
use schemas::{Decoder, Framing, PlainSource, plain_event, topics};
use service::exit::{self, FAILED, OK, USAGE, help};
use service::kafka::KafkaOptions;
use service::output;
use service::range::{Bound, Position, Ranges, Reader};
use service::schema_source::SchemaSource;
use service::settings::{distinct_topics, topic_name};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;

use crate::outputs::{self, OutputRecord, position};
use crate::route::{Outcome, route};

use findings::{FindingKind, Findings};
use progress::Progress;
use report::{Report, Verdict};
use scope::Scope;
use sums::{Buckets, OutcomeHasher};

/// Small fetches and queues, unless `-X` overrides them: librdkafka holds records decompressed, which can be
/// two hundred times as large, with some hundred bytes of overhead each.
const LOW_MEMORY: [(&str, &str); 2] = [
    ("fetch.message.max.bytes", "131072"),
    ("queued.max.messages.kbytes", "4096"),
];

/// `router audit`.
#[derive(Clone, Debug, Args)]
#[command(after_help = help(exit::Kind::Audit, HELP))]
pub struct Audit {
    /// Topic that the routers read: TaskRunningInfo
    #[arg(long, env = "SOURCE_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO)]
    source_topic: String,

    /// Topic that the routers write: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    events_topic: String,

    /// Topic of the dead letters
    #[arg(long, env = "DEAD_LETTERS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_DEAD_LETTERS)]
    dead_letters_topic: String,

    /// The routers' consumer group; only its committed offsets are read
    #[arg(long, env = "ROUTER_GROUP", default_value = "task-running-info-router")]
    group: String,

    /// Start of the range: earliest, offset:PARTITION=OFFSET,…, time:2026-11-25T10:00Z, or back from now as in -2h
    #[arg(
        long,
        value_name = "BOUND",
        default_value = "earliest",
        allow_hyphen_values = true
    )]
    from: Bound,

    /// End of the range, in the same format; at most, and by default, the group's committed offsets
    #[arg(long, value_name = "BOUND", allow_hyphen_values = true)]
    to: Option<Bound>,

    /// Folder of .avsc files of versions newer than this program, the same as the routers'
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    schemas: Option<PathBuf>,

    /// Maximum number of examples of each kind of finding; all are counted
    #[arg(long, value_name = "N", default_value_t = 10)]
    examples: usize,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

const HELP: &str = "\
Joins no consumer group, commits nothing, and may run beside the routers: it leaves out records that they have not committed when
it begins. It reads the whole events and dead letter topics, because the position of an event does not follow from that of its
source record, and reads suspect source records a second time. Memory does not grow with the range.

Faults: lost (neither event nor letter), duplicate, event_and_letter, out_of_order (an event behind that of a later record of its
source partition, in one events partition), differing (names the fields), invented (about a record that does not exist).
Not faults: other_rules (each field is the source record's, or repaired as the event's own adjustments say; or a letter for a
record that would be an event today: another version of the router made it, or the topics had other size limits), expired
(outputs whose source record retention deleted), earlier_topic (outputs of a topic of that name that was deleted before this one
was created, recognised by its id), redriven (copies of events, written by a redrive of the consumer's dead letters).
unprovable: a record without output whose output retention or compaction may have deleted, an output whose record compaction may
have deleted, or a record that only a newer schema reads (--schemas).

The verdict is \"could not tell\" if Kafka is unavailable, retention has passed the range, a transaction stays open, something is
unprovable, no record was compared, or a topic has cleanup.policy=compact.

Examples:
  router audit
  router audit --from -2h --json
  router audit --from offset:0=17,3=20 --to offset:0=1000,3=1000";

/// Runs the audit and prints the report; returns the exit code. Logs an error that prevents a verdict, and
/// returns the exit code for that.
pub async fn audit(asked: Audit, kafka: &KafkaOptions, stop: &CancellationToken) -> u8 {
    let json = asked.json;
    let compared = async {
        let report = compare(asked, kafka, stop).await?;
        match json {
            true => output::print_json(&report.json())?,
            false => output::print(&report.text())?,
        }
        anyhow::Ok(report)
    };
    match compared.await {
        Ok(report) => {
            if let Some(doubts) = report.doubts() {
                tracing::error!("could not tell: {doubts}");
            }
            match report.verdict() {
                Verdict::Equal => OK,
                Verdict::Unequal => FAILED,
                Verdict::Unproven => USAGE,
            }
        }
        Err(error) => {
            tracing::error!("could not tell: {error:#}");
            if json {
                // The log has it too.
                let _ = output::print_json(&report::failure(&error));
            }
            USAGE
        }
    }
}

async fn compare(
    asked: Audit,
    kafka: &KafkaOptions,
    stop: &CancellationToken,
) -> anyhow::Result<Report> {
    distinct_topics(&[
        ("--source-topic", &asked.source_topic),
        ("--events-topic", &asked.events_topic),
        ("--dead-letters-topic", &asked.dead_letters_topic),
    ])?;
    let folder = asked.schemas.as_deref();
    let schemas = SchemaSource::of(kafka, |registry| Decoder::of(folder, registry))?;
    let stopped = || anyhow!("stopped by a signal");
    let cluster = kafka.cluster_soon(stop).await?.ok_or_else(stopped)?;
    let mut modest = kafka.clone();
    // Defaults; settings of the command line take precedence.
    let settings = LOW_MEMORY.map(|(key, value)| (key.to_owned(), value.to_owned()));
    modest.settings.splice(0..0, settings);
    let reader = Reader::connect(&modest)?;
    let scope = Scope::of(&asked, kafka, &cluster, &reader).await?;
    let auditor = Auditor {
        schemas: &schemas,
        reader: &reader,
        buckets: Buckets::of(&scope.source.ranges),
        outcomes: OutcomeHasher::default(),
        max_event_bytes: cluster.max_record_bytes(&asked.events_topic).await?,
        examples: asked.examples,
        progress: Progress::start(),
        scope,
        stop,
    };
    let (counts, findings) = block_in_place(|| auditor.compare())?;
    Ok(Report {
        cluster: cluster.id,
        group: asked.group,
        max_event_bytes: auditor.max_event_bytes,
        newer_schemas: schemas.decoder.newer_schemas().to_vec(),
        scope: auditor.scope,
        counts,
        findings,
    })
}

/// Reads both sides.
struct Auditor<'a> {
    schemas: &'a SchemaSource<Decoder>,
    reader: &'a Reader,
    scope: Scope,
    buckets: Buckets,
    outcomes: OutcomeHasher,
    max_event_bytes: usize,
    /// Maximum number of examples of each kind.
    examples: usize,
    progress: Progress,
    stop: &'a CancellationToken,
}

impl Auditor<'_> {
    fn compare(&self) -> anyhow::Result<(report::Counts, Findings)> {
        self.progress.says("comparing");
        let first = self.first_pass()?;
        let mut findings = Findings::with_examples(self.examples);
        self.progress.says("examining");
        self.second_pass(&first, &mut findings)?;

        Scope::still_there(&self.scope.source, self.reader)?;
        let counts = report::Counts::of(&first);
        for (partition, more) in first.events.inverted_more {
            findings.count_more(FindingKind::OutOfOrder, partition, more);
        }
        findings.merge(first.events.findings);
        findings.merge(first.letters.findings);
        // Records proved equal stay so, even if they were deleted meanwhile.
        if findings.faults() > 0 || findings.count(FindingKind::Unprovable) > 0 {
            Scope::still_there(&self.scope.events, self.reader)?;
            Scope::still_there(&self.scope.letters, self.reader)?;
        }
        Ok((counts, findings))
    }

    /// The result of routing a record with today's rules, except for `routedAt`.
    fn today<'a>(
        &self,
        at: Position,
        timestamp: i64,
        payload: Option<&'a [u8]>,
        buffer: &'a mut Vec<u8>,
    ) -> Outcome<'a> {
        let source = PlainSource {
            topic: &self.scope.source.topic,
            partition: at.partition,
            offset: at.offset,
            timestamp,
            topic_id: self.scope.identity.id.as_deref(),
        };
        let (schemas, max_event_bytes) = (self.schemas, self.max_event_bytes);
        let ours = Framing::SingleObject;
        let theirs = (schemas.registry.as_ref()).map_or(ours, |_| Framing::Registry(0));
        // The routers' size limit.
        let max_event_bytes = max_event_bytes + ours.header_bytes() - theirs.header_bytes();
        route(
            &schemas.decoder,
            payload,
            source,
            0,
            ours,
            max_event_bytes,
            buffer,
        )
    }

    /// Hash of an event without `routedAt`. Equal for equal meaning, independent of the encoding: another
    /// version of the router may copy bytes that this one encodes again.
    fn sum(&self, about: Position, key: Option<&[u8]>, value: &[u8]) -> anyhow::Result<u64> {
        if let Some(event) = self.schemas.decoder.plain_event(value) {
            return Ok(self.outcomes.event(about, key, &event));
        }
        let mut event = self.schemas.decoder.event(Some(value))?;
        event.routed_at = 0;
        let value = schemas::encode_event(&event)?;
        Ok(match plain_event(&value) {
            Some(event) => self.outcomes.event(about, key, &event),
            None => self.outcomes.event_with_problems(about, key, &value),
        })
    }

    fn event(&self, record: &BorrowedMessage<'_>) -> anyhow::Result<OutputRecord> {
        outputs::event(&self.schemas.decoder, &self.scope.identity, record)
    }

    fn letter(&self, record: &BorrowedMessage<'_>) -> anyhow::Result<OutputRecord> {
        Ok(outputs::letter(&self.scope.identity, record))
    }

    fn scan(
        &self,
        topic: &str,
        ranges: &Ranges,
        stop: &CancellationToken,
        mut each: impl FnMut(&BorrowedMessage<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut steps = self.progress.steps(ranges);
        self.reader.scan(topic, ranges, stop, |record| {
            let at = position(record);
            steps.read(at.partition, at.offset);
            let schema = |id| self.schemas.schema_soon(id, stop);
            self.schemas.decoder.learn(record.payload(), schema)?;
            each(record)
        })?;
        steps.end();
        Ok(())
    }
}
