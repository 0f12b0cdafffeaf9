//! `consumer replay`: the tables of a range of the events topic, rebuilt in another database.
//!
//! ```text
//! range of the topic ──▶ Reader (a thread) ──▶ rows() ──▶ Batch ──▶ Store { offsets, task, histories } in --into
//!                        (no group)            (pure)               one database transaction
//! ```
//!
//! The rows are derived and written as by [`run`](crate::run()), `consumed_offset` included. So what
//! `--into` holds says by itself how far it has come: a replay that was ended in any way goes on there
//! when it is started again, and stores each row once. Before that the target has to be recognised as
//! the beginning of the same range: see [`Target`].

mod progress;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{anyhow, bail};
use rdkafka::message::{BorrowedMessage, Message};
use schemas::topics;
use service::address::Address;
use service::backoff::Backoff;
use service::breaker::{Breaker, BreakerOptions, Tripped};
use service::exit::{NeedsAttention, WrongUsage};
use service::health::Health;
use service::kafka::{Cluster, KafkaOptions};
use service::lookup::Lookup;
use service::range::{Bound, End as LogEnd, Ranges, Reader};
use service::settings::topic_name;
use service::topic_id::TopicId;
use service::warn_of_change;
use service::words::counted;
use tokio::sync::mpsc;
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::progress::{Account, Progress};
use self::target::Target;
use crate::batch::{Batch, Record, last_read};
use crate::bisect::{Bisection, Found};
use crate::entrance::open;
use crate::failure::Failure;
use crate::ownership::Asked;
use crate::positions::{Advance, Positions};
use crate::rows::Part;
use crate::schema_source::{SchemaSource, schema_source};
use crate::store::{
    Database, DatabaseOptions, End, Identity, StoreError, Writer, database_url, owners,
};
use crate::topic_identity::{id_of, made_anew};

/// Stands in `consumed_offset.group_id` of what a replay has stored.
const GROUP: &str = "replay";
/// How often the topic's id is asked for again.
const ID_EVERY: Duration = Duration::from_secs(5);
/// So many records that the database refuses are no bad records, but the wrong tables.
const MAX_REFUSED: BreakerOptions = BreakerOptions {
    max_rejects_in_a_row: 100,
    max_rejects_per_1000: 500,
};
/// The kind of a reject that is one of those.
const REFUSED: &str = "DatabaseRefused";

/// What is replayed, and where to.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplayOptions {
    /// Topic to read: TaskRunningInfoEvent
    #[arg(long, env = "EVENTS_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO_EVENTS)]
    pub events_topic: String,

    /// Begin at: earliest, offset:PARTITION=OFFSET,… (other partitions are left out), or the first event that was written at a time: 2026-11-25T10:00Z, or -2h back from now
    #[arg(
        long,
        value_name = "BOUND",
        default_value = "earliest",
        allow_hyphen_values = true
    )]
    pub from: Bound,

    /// End before: latest, or as --from; what lies behind an open transaction is left out
    #[arg(
        long,
        value_name = "BOUND",
        default_value = "latest",
        allow_hyphen_values = true
    )]
    pub to: Bound,

    /// Database to rebuild the tables in, as --database-url: an empty one, or one that the same replay has begun
    #[arg(long, value_name = "URL", value_parser = database_url())]
    pub into: Address,

    /// Commit after so many events
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_events: u32,

    /// Commit after so many bytes of events
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_bytes: u32,

    /// Folder of .avsc files of versions newer than this program, so that it reads what newer routers write
    #[arg(long = "schemas", env = "SCHEMAS_DIR", value_name = "DIR")]
    pub schemas: Option<PathBuf>,
}

/// Stores a range of the events topic in another database, or goes on with that; until it is done, or
/// `shutdown` is cancelled. While the database is away it waits. Prints what it did.
///
/// # Errors
/// If Kafka does not answer or no longer holds the range; if the database holds anything else than a
/// beginning of it, or is the one that a consumer stores in; or what a retry does not cure.
pub async fn replay(
    asked: ReplayOptions,
    kafka: KafkaOptions,
    database: &DatabaseOptions,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let schemas = schema_source(asked.schemas.as_deref(), &kafka)?;
    let into = Database::parse_url("--into", &asked.into)?;
    if database.database_url.is_some() && into.is_same(&Database::parse(database)?) {
        return Err(wrong_usage(format!(
            "--into is {}, the database that consumers store in (--database-url): give another one",
            into.place()
        )));
    }
    let Some(cluster) = kafka.cluster_soon(&shutdown).await? else {
        return Ok(());
    };
    let topic = &asked.events_topic;
    let partitions = cluster.require_topic(topic, "Read", None).await?;
    let topic_id = match id_of(topic, cluster.topic_id(topic).await).map_err(Failure::into_error)? {
        Ok(id) => Some(id),
        Err(reason) => {
            tracing::warn!(
                "the id of {topic} is not told: {reason}. It is recognised by its records alone"
            );
            None
        }
    };
    let reader = Reader::connect(&kafka)?;
    let (logs, range) = block_in_place(|| range(&reader, &asked, partitions))?;

    let Some(mut store) = open(&into, &Health::default(), &shutdown).await? else {
        return Ok(());
    };
    let place = into.place();
    let stored = store.stored().await;
    let stored = stored.map_err(|error| Failure::of(error, &place).into_error())?;
    let target = Target {
        place: &place,
        topic,
        cluster_id: &cluster.id,
        topic_id,
        from: &asked.from,
        logs: &logs,
        range: &range,
        stored: &stored,
    };
    let lookup = Lookup::connect(&kafka, topic)?;
    let left = block_in_place(|| target.left(&reader, &lookup, &shutdown))?;
    for (partition, held) in &left {
        if held.start > range[partition].start && !range[partition].is_empty() {
            tracing::info!(
                "{topic} partition {partition}: {place} holds its events up to offset {}; going on to {}",
                held.start,
                held.end
            );
        }
    }

    let (batches, mut read) = mpsc::channel(1);
    let reading = Reading {
        topic: topic.clone(),
        schemas,
        max_events: asked.max_events as usize,
        max_bytes: asked.max_bytes as usize,
        next: left.iter().map(|(p, range)| (*p, range.start)).collect(),
        first_gap: BTreeMap::new(),
        batch: Batch::default(),
        batches,
    };
    let (ranges, stop) = (left.clone(), shutdown.child_token());
    let stopped = stop.clone();
    let reading = spawn_blocking(move || reading.read(&reader, &ranges, &stopped));

    let mut writing = Writing {
        store,
        place: &place,
        positions: target.positions(),
        identity: Identity {
            topic: topic.clone(),
            cluster_id: cluster.id.clone(),
            topic_id: topic_id.map(|id| id.to_string()),
            group_id: GROUP.to_owned(),
        },
        max_events: asked.max_events as usize,
        piece: asked.max_events as usize,
        refused: Breaker::new(MAX_REFUSED),
        progress: Progress::over(&left),
        account: Account::over(&left),
        shutdown: &shutdown,
    };
    let mut written = Ok(());
    let mut asked_at = Instant::now();
    while let Some(batch) = read.recv().await {
        if asked_at.elapsed() >= ID_EVERY {
            written = is_the_topic(&cluster, topic, topic_id, &place).await;
            asked_at = Instant::now();
            if written.is_err() {
                break;
            }
        }
        written = writing.write(batch).await;
        if written.is_err() || writing.given_up() {
            break;
        }
    }
    let ended_early = written.is_err() || writing.given_up();
    // Where writing has ended early, the reader may be reading on, or waiting to hand something over.
    stop.cancel();
    drop(read);
    let ended = reading.await?;
    if ended.is_ok() && !ended_early && !shutdown.is_cancelled() {
        // All of the ranges was read and is in the log still.
        written = is_the_topic(&cluster, topic, topic_id, &place).await;
        if written.is_ok() {
            written = writing.reach(&left).await;
        }
    }
    let given_up = writing.given_up();
    let Writing {
        progress, account, ..
    } = writing;
    progress.end();
    account.print(topic, &place);
    written?;
    if !shutdown.is_cancelled() || (ended.is_ok() && !given_up) {
        return ended;
    }
    let hint = match asked.from {
        Bound::Time(_) => format!(
            " (but a time back from now is another one then: give --from {})",
            Bound::Offsets(range.iter().map(|(p, range)| (*p, range.start)).collect())
        ),
        _ => String::new(),
    };
    tracing::info!(
        "stopped before the end; the same command again goes on from what is stored{hint}"
    );
    Ok(())
}

/// Whether the topic is still the one that the replay began with.
async fn is_the_topic(
    cluster: &Cluster,
    topic: &str,
    begun: Option<TopicId>,
    place: &str,
) -> anyhow::Result<()> {
    let Some(begun) = begun else { return Ok(()) };
    match id_of(topic, cluster.topic_id(topic).await) {
        Ok(Ok(id)) if id != begun => {
            let (id, begun) = (id.to_string(), begun.to_string());
            Err(made_anew(topic, &id, &begun, place, "--into").into_error())
        }
        // Without an answer nothing speaks against it; reading tells what is wrong.
        _ => Ok(()),
    }
}

/// The partitions' logs, and the offsets to replay: from `--from` to `--to`, or to where a committed
/// reader sees the end now.
fn range(
    reader: &Reader,
    asked: &ReplayOptions,
    partitions: usize,
) -> anyhow::Result<(Ranges, Ranges)> {
    let topic = &asked.events_topic;
    let mut logs = Ranges::new();
    for partition in 0..i32::try_from(partitions)? {
        logs.insert(partition, reader.bounds(topic, partition, LogEnd::Stable)?);
    }
    for (option, bound) in [("--from", &asked.from), ("--to", &asked.to)] {
        if let Bound::Offsets(offsets) = bound
            && let Some(partition) = offsets.keys().find(|p| !logs.contains_key(p))
        {
            return Err(wrong_usage(format!(
                "{option} {bound}: {topic} has no partition {partition}: it has {}, numbered from 0",
                counted(partitions, "partition")
            )));
        }
    }
    if let (Bound::Time(from), Bound::Time(to)) = (&asked.from, &asked.to)
        && from > to
    {
        return Err(wrong_usage(format!(
            "--from {from} is later than --to {to}; exchange them"
        )));
    }
    let starts = reader.resolve(topic, &asked.from, &logs)?;
    let ends = reader.resolve(topic, &asked.to, &logs)?;
    let mut range = Ranges::new();
    for (partition, log) in &logs {
        let (Some(&start), Some(&asked_end)) = (starts.get(partition), ends.get(partition)) else {
            continue;
        };
        if start > log.end {
            return Err(wrong_usage(format!(
                "--from {}: {topic} partition {partition} ends at offset {}, before {start}; give an offset up to there",
                asked.from, log.end
            )));
        }
        if asked_end > log.end {
            tracing::warn!(
                "--to {}: {topic} partition {partition} ends at offset {}, as committed readers see it now; replaying up \
                 to there",
                asked.to,
                log.end
            );
        }
        let end = asked_end.min(log.end);
        let said = [&asked.from, &asked.to];
        if start > end && said.iter().any(|bound| matches!(bound, Bound::Offsets(_))) {
            return Err(wrong_usage(format!(
                "{topic} partition {partition}: --from {} is offset {start}, which is later than offset {end} of --to {}, \
                 in a log of offsets {} to {}",
                asked.from, asked.to, log.start, log.end
            )));
        }
        range.insert(*partition, start..end.max(start));
    }
    if range.is_empty() {
        return Err(wrong_usage(format!(
            "--from {} and --to {} have no partition in common",
            asked.from, asked.to
        )));
    }
    Ok((logs, range))
}

fn wrong(message: String) -> anyhow::Error {
    NeedsAttention(message).into()
}

fn wrong_usage(message: String) -> anyhow::Error {
    WrongUsage(message).into()
}

/// The topic's reader, on a thread of its own, so that the next batch is read while one is written.
/// There are at most three: one that is filled, one handed over, one being written.
struct Reading {
    topic: String,
    schemas: SchemaSource,
    max_events: usize,
    max_bytes: usize,
    /// Of each partition the offset after the last record that was read.
    next: BTreeMap<i32, i64>,
    /// Of each partition the first offset in this batch that no record has.
    first_gap: BTreeMap<i32, i64>,
    batch: Batch,
    batches: mpsc::Sender<Batch>,
}

impl Reading {
    /// Reads the ranges, or until it is stopped; hands over everything that was read.
    fn read(
        mut self,
        reader: &Reader,
        ranges: &Ranges,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let topic = self.topic.clone();
        let scanned = reader.scan(&topic, ranges, stop, |record| {
            let schema = |id| self.schemas.schema_eventually(id, stop);
            self.schemas.decoder.learn(record.payload(), schema)?;
            self.take(reader, record)
        });
        self.hand_over(reader)?;
        scanned?;
        // The end of each range too: behind its last record there may have been more.
        for (partition, range) in ranges {
            let next = self.next.get(partition).copied().unwrap_or(range.start);
            if next < range.end {
                self.first_gap.insert(*partition, next);
            }
        }
        self.is_whole(reader)
    }

    fn take(&mut self, reader: &Reader, record: &BorrowedMessage<'_>) -> anyhow::Result<()> {
        let (partition, offset) = (record.partition(), record.offset());
        if let Some(expected) = self.next.insert(partition, offset + 1)
            && expected < offset
        {
            self.first_gap.entry(partition).or_insert(expected);
        }
        self.batch.push(Record::read(&self.schemas.decoder, record));
        if self.batch.records().len() >= self.max_events || self.batch.bytes() >= self.max_bytes {
            self.hand_over(reader)?;
        }
        Ok(())
    }

    fn hand_over(&mut self, reader: &Reader) -> anyhow::Result<()> {
        if self.batch.records().is_empty() {
            return Ok(());
        }
        if let Err(error) = self.is_whole(reader) {
            // It is not to be handed over later either.
            self.batch.clear();
            return Err(error);
        }
        self.batches
            .blocking_send(std::mem::take(&mut self.batch))
            .map_err(|_| anyhow!("what was read is not taken any more"))
    }

    /// Offsets that no record has are those of commit markers and aborted records; unless the log
    /// begins behind them now: then retention may have been faster than we were.
    fn is_whole(&mut self, reader: &Reader) -> anyhow::Result<()> {
        for (partition, gap) in std::mem::take(&mut self.first_gap) {
            let log = reader.bounds(&self.topic, partition, LogEnd::Stable)?;
            if log.start > gap {
                return Err(wrong(format!(
                    "{} partition {partition} begins at offset {} now: retention removed events from offset {gap} on, it may \
                     be before they were read. Of these nothing was stored. Start again into an empty database, with a \
                     later --from",
                    self.topic, log.start
                )));
            }
        }
        Ok(())
    }
}

/// The database's writer.
struct Writing<'a> {
    store: Box<dyn Writer>,
    place: &'a str,
    positions: Positions,
    identity: Identity,
    max_events: usize,
    /// At most so many records are stored at once: fewer where the database is too slow for all.
    piece: usize,
    /// Counts what the database refuses.
    refused: Breaker,
    progress: Progress,
    account: Account,
    shutdown: &'a CancellationToken,
}

impl Writing<'_> {
    /// Whether it was stopped while the database was away.
    fn given_up(&self) -> bool {
        self.account.left_unstored
    }

    /// Writes a batch in as few transactions as the database takes. What cannot be stored is counted
    /// and left out.
    async fn write(&mut self, mut batch: Batch) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        while !batch.records().is_empty() {
            let count = batch.records().len().min(self.piece);
            match self
                .write_once(&batch.records()[..count], End::Commit)
                .await
            {
                Ok(written) => {
                    self.moved_on(&mut batch, count, &written);
                }
                Err(fenced @ StoreError::Fenced(_)) => {
                    // The answer to our own commit may have been lost.
                    let records = &batch.records()[..count];
                    match self.are_stored(records).await {
                        Ok(true) => {
                            let written = rows_of(records);
                            self.moved_on(&mut batch, count, &written);
                        }
                        Ok(false) => bail!(
                            "{}: {fenced}. Is another replay running into the same database? When it has ended, start \
                             again to go on",
                            self.place
                        ),
                        Err(error) => self.wait(error, &mut backoff).await?,
                    }
                }
                Err(StoreError::TooLong(reason)) if count > 1 => {
                    self.piece = count / 2;
                    warn_of_change!(
                        "{}: {reason}; storing at most {} at once",
                        self.place,
                        counted(self.piece, "event")
                    );
                }
                Err(StoreError::Refused(message)) => {
                    let found = self.find_refused(&mut batch, count, message).await;
                    match found {
                        Ok(()) => {}
                        Err(Failure::Exit(error)) => return Err(error),
                        Err(Failure::Retry(what)) => {
                            self.wait_for(what, &mut backoff).await;
                        }
                    }
                }
                Err(error) => self.wait(error, &mut backoff).await?,
            }
            if self.given_up() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The ranges are stored to their ends, past the commit markers and aborted records behind their last
    /// records: what retention takes of these later is no loss.
    async fn reach(&mut self, ranges: &Ranges) -> anyhow::Result<()> {
        let mut advances = Vec::new();
        for (&partition, range) in ranges {
            for part in Part::ALL {
                let expected = self.positions.get(&(part, partition)).copied();
                if expected.unwrap_or(range.start) < range.end {
                    advances.push(Advance {
                        part,
                        partition,
                        expected,
                        first: range.start,
                        next: range.end,
                        anchor: None,
                    });
                }
            }
        }
        let mut backoff = Backoff::default();
        while !advances.is_empty() && !self.given_up() {
            match self.store.move_on(&advances, &self.identity).await {
                Ok(()) => {
                    for advance in advances.drain(..) {
                        let at = (advance.part, advance.partition);
                        self.positions.insert(at, advance.next);
                    }
                    self.account.reached(ranges);
                }
                Err(fenced @ StoreError::Fenced(_)) => {
                    // The answer to our own commit may have been lost.
                    match self.are_reached(&advances).await {
                        Ok(true) => {
                            self.account.reached(ranges);
                            break;
                        }
                        Ok(false) => bail!("{}: {fenced}", self.place),
                        Err(error) => self.wait(error, &mut backoff).await?,
                    }
                }
                Err(error) => self.wait(error, &mut backoff).await?,
            }
        }
        Ok(())
    }

    /// Whether the database says that these steps were taken.
    async fn are_reached(&mut self, advances: &[Advance]) -> Result<bool, StoreError> {
        let stored = self.store.stored().await?;
        Ok(advances.iter().all(|advance| {
            stored.iter().any(|stored| {
                (stored.part, stored.partition, stored.next_offset)
                    == (advance.part, advance.partition, advance.next)
            })
        }))
    }

    async fn write_once(
        &mut self,
        records: &[Record],
        end: End,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        self.store
            .write(records, &Part::ALL, &self.positions, &self.identity, end)
            .await
    }

    /// The first `count` records are stored.
    fn moved_on(&mut self, batch: &mut Batch, count: usize, written: &[(Part, u64)]) {
        let records = &batch.records()[..count];
        for (partition, anchor) in last_read(records) {
            for part in Part::ALL {
                self.positions.insert((part, partition), anchor.offset + 1);
            }
        }
        self.refused.take_back();
        for record in records {
            // It was not too many when it was tried.
            let _ = judge(&mut self.refused, record);
        }
        self.refused.settle();
        self.account.stored(records, written);
        self.progress.moved_on(&self.account);
        batch.stored(count);
        self.piece = (self.piece * 2).min(self.max_events).max(1);
    }

    /// Whether the database says that exactly these records were stored last.
    async fn are_stored(&mut self, records: &[Record]) -> Result<bool, StoreError> {
        let stored = self.store.stored().await?;
        let asked = Asked {
            topic: &self.identity.topic,
            cluster_id: Some(&self.identity.cluster_id),
            place: self.place,
            option: "--into",
        };
        let owned = asked.check(&owners(&stored));
        owned.map_err(|error| StoreError::Exit(error.to_string()))?;
        let last = last_read(records);
        let mut steps = last
            .iter()
            .flat_map(|(partition, anchor)| Part::ALL.map(|part| (part, *partition, anchor)));
        Ok(steps.all(|(part, partition, anchor)| {
            stored.iter().any(|offset| {
                (offset.part, offset.partition, offset.anchor) == (part, partition, *anchor)
                    && offset.group_id == GROUP
            })
        }))
    }

    /// Marks those of the first `count` records that the database refuses.
    async fn find_refused(
        &mut self,
        batch: &mut Batch,
        count: usize,
        message: String,
    ) -> Result<(), Failure> {
        let (mut found, mut trial) = (false, Bisection::new(count, message));
        self.refused.take_back();
        loop {
            let tried = trial
                .next(async |piece| {
                    self.write_once(&batch.records()[piece], End::RollBack)
                        .await
                })
                .await;
            let places = match tried.map_err(|error| trouble(error, self.place))? {
                None => break,
                Some(Found::Accepted(places)) => places,
                Some(Found::Refused { place, message }) => {
                    found = true;
                    let reject = schemas::Reject {
                        stage: "TASK_PUT",
                        refused_by: "consumer::store",
                        kind: REFUSED,
                        message: format!("{} refuses it: {message}", self.place),
                    };
                    batch.reject(place, reject);
                    place..place + 1
                }
            };
            for record in &batch.records()[places] {
                if let (Err(tripped), Err(reject)) =
                    (judge(&mut self.refused, record), &record.event)
                {
                    return Err(Failure::Exit(wrong(format!(
                        "{tripped}, the last one partition {} offset {}: {}. Are the tables of --into those of this \
                         version, without rules of their own? Correct it and start again to go on",
                        record.partition, record.anchor.offset, reject.message
                    ))));
                }
            }
        }
        if !found {
            // Each is fine by itself.
            self.piece = (count / 2).max(1);
        }
        Ok(())
    }

    /// Waits before the next try, if trying again may help.
    async fn wait(&mut self, error: StoreError, backoff: &mut Backoff) -> anyhow::Result<()> {
        match trouble(error, self.place) {
            Failure::Exit(error) => return Err(error),
            Failure::Retry(what) => self.wait_for(what, backoff).await,
        }
        Ok(())
    }

    async fn wait_for(&mut self, what: String, backoff: &mut Backoff) {
        warn_of_change!("waiting for {what}");
        tokio::select! {
            () = self.shutdown.cancelled() => self.account.left_unstored = true,
            () = sleep(backoff.pause()) => {}
        }
    }
}

/// What an error of the database means: the positions of a replay are those of the database that it began with.
fn trouble(error: StoreError, place: &str) -> Failure {
    match error {
        StoreError::Replaced(_) => Failure::Exit(anyhow!(
            "{place}: {error}. Start again to go on from what is there now"
        )),
        error => Failure::of(error, place),
    }
}

/// Judges a record by whether the database refuses it: one that cannot be read at all says nothing of the
/// tables.
///
/// # Errors
/// If it is one too many.
fn judge(refused: &mut Breaker, record: &Record) -> Result<(), Tripped> {
    match &record.event {
        Ok(_) => refused.accept(),
        Err(reject) if reject.kind == REFUSED => return refused.reject(),
        Err(_) => {}
    }
    Ok(())
}

/// The rows that these records have in each part's table.
fn rows_of(records: &[Record]) -> Vec<(Part, u64)> {
    let rows_of = |part: Part| {
        let events = records.iter().filter_map(Record::rows);
        events.map(|event| part.table().rows_of(&event)).sum()
    };
    Vec::from(Part::ALL.map(|part| (part, rows_of(part))))
}
