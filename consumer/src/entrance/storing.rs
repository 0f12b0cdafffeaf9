//! Stores the batch: one pass of the writer, handling each outcome as a member of the group. The group's offsets in
//! Kafka follow afterwards.

use std::collections::BTreeMap;

use service::breaker::Tripped;
use service::exit::NeedsAttention;
use service::telemetry::{messaging, names};
use service::warn_of_change;
use service::words::counted;
use tokio::time::{Instant, sleep};

use super::ROWS;
use super::batch_writer::{Pass, Written};
use super::commits::{POLL_INTERVAL, SETTLE};
use super::source::Source;
use super::state::Entrance;
use crate::failure::Failure;
use crate::positions::Anchor;
use crate::rows::Part;
use crate::store::StoreError;

impl Entrance<'_> {
    /// Stores the batch, then adds what was read meanwhile to the next one.
    pub(super) async fn store_batch(&mut self) -> Result<(), Failure> {
        if self.source.learn_schemas(&mut self.batch).await? && self.is_undecided() {
            // The next records decide whether these rejects are few or many.
            self.batch.restart_wait();
            return Ok(());
        }
        let stored = self.store_records().await;
        self.take_ahead();
        stored
    }

    async fn store_records(&mut self) -> Result<(), Failure> {
        let mut pass = Pass::of(&self.batch);
        while !pass.is_done() {
            self.is_the_topic()?;
            let written = self
                .writer
                .write_next(&mut self.batch, &mut pass, &mut self.source);
            match written.await? {
                Written::Stored { count, rows, last } => {
                    self.count(count, rows);
                    self.stored(count, &last);
                }
                Written::Tried => {}
                Written::Smaller { message } => {
                    warn_of_change!("{message}");
                    self.health.waiting_for(message);
                }
                Written::Refused { found } => {
                    if found && self.is_undecided() {
                        // The next records decide whether these are few or many.
                        self.batch.restart_wait();
                        return Ok(());
                    }
                }
                Written::TooManyRejects { place, tripped } => {
                    return Err(Failure::Exit(self.too_many(tripped, place)));
                }
                Written::Half {
                    count,
                    stored,
                    rows,
                    reason,
                } => {
                    warn_of_change!(
                        "{}: {reason}; {stored} of {} are stored, the others will be read again",
                        self.writer.place,
                        counted(count, "event")
                    );
                    self.count(stored, rows);
                    let written = self.batch.take();
                    self.go_back().await?;
                    self.writer.settle_stored::<Source<'_>>(&written[..count]);
                    return Ok(());
                }
                Written::Fenced { error, .. } => {
                    warn_of_change!("{error}");
                    return self.go_back().await;
                }
                Written::Replaced { error } => return self.find_place(error).await,
            }
        }
        Ok(())
    }

    /// Counts stored events and rows in the metrics.
    fn count(&self, events: usize, rows: Vec<(Part, u64)>) {
        let topic = &self.config.events_topic;
        metrics::counter!(names::CONSUMED, &messaging("poll", topic)).increment(events as u64);
        for (part, rows) in rows {
            metrics::counter!(ROWS, "db_collection_name" => part.table().name()).increment(rows);
        }
    }

    /// Removes the first `count` records, which are stored, and commits the offsets for lag tools.
    fn stored(&mut self, count: usize, last: &BTreeMap<i32, Anchor>) {
        self.batch.stored(count);
        self.health.progressed();
        let subscription = self.source.subscription;
        subscription.set_finished(last.iter().map(|(p, anchor)| (*p, anchor.offset + 1)));
        self.commit();
        if self.batch.records().is_empty() && self.source.ahead.records().is_empty() {
            subscription.set_unfinished([].into());
        }
    }

    /// The database was replaced: resumes from the offsets stored in the new one.
    pub(super) async fn find_place(&mut self, error: StoreError) -> Result<(), Failure> {
        let place = &self.writer.place;
        if !matches!(error, StoreError::Replaced(_)) {
            return Err(Failure::of(error, place));
        }
        tracing::warn!("{place}: {error}; resuming from the offsets stored there now");
        self.health.waiting_for(format!("{place}: {error}"));
        self.go_back().await?;
        self.health.answered();
        Ok(())
    }

    /// The error for one reject too many, at this place of the batch.
    fn too_many(&self, tripped: Tripped, place: usize) -> anyhow::Error {
        let (records, topic) = (self.batch.records(), &self.config.events_topic);
        let record = &records[place];
        let (partition, offset) = (record.partition, record.anchor.offset);
        let why = record.event.as_ref().err();
        let mut of_partition = records
            .iter()
            .filter(|record| record.partition == partition);
        let first = of_partition
            .next()
            .map_or(offset, |record| record.anchor.offset);
        NeedsAttention(format!(
            "{tripped} ({}), the last one {topic} partition {partition} offset {offset}: {}. {}. Since its start this \
             consumer stored {} and wrote {}; of partition {partition} nothing is stored from offset \
             {first} on. Is --events-topic or --database-url wrong, does a table have a constraint of its own, or does \
             the router write with another schema? Correct it and start again, or raise the limit to turn them into dead \
             letters",
            tripped.option(),
            why.map_or("", |reject| &reject.message),
            tripped.letters(&self.config.dead_letters_topic),
            counted(self.writer.events_stored, "event"),
            counted(self.source.letters.count, "dead letter"),
        ))
        .into()
    }

    /// Commits how far the partitions are stored, unless an earlier commit is in flight or has failed.
    pub(super) fn commit(&mut self) {
        let source = &mut self.source;
        if !source.commits.is_free() {
            return;
        }
        let mut committed = Vec::new();
        for (partition, _) in self.partitions.log_starts() {
            let of_parts = self.writer.parts.iter();
            let positions = &self.writer.positions;
            let next = of_parts.map(|part| positions.get(&(*part, partition)).copied());
            // A partition has no next offset if one of its parts has stored nothing.
            if let Some(Some(next)) = next.min()
                // A transaction of unknown outcome may have committed which letters exist; that must not be
                // overwritten.
                && source.letters.is_settled(partition)
                && source.commits.is_news(partition, next)
            {
                committed.push(source.letters.stored(partition, next));
            }
        }
        if !committed.is_empty() {
            source.commits.send(source.subscription, &committed);
        }
    }

    /// [`commit`](Self::commit), even after a failed one.
    pub(super) fn commit_again(&mut self) {
        self.source.commits.retry();
        self.commit();
    }

    /// Waits, at most [`SETTLE`], until the stored offsets are committed.
    pub(super) async fn settle_commits(&mut self) {
        if self.is_the_topic().is_err() {
            return;
        }
        let _waiting = service::exit::waiting("the last offsets to be committed");
        let deadline = Instant::now() + SETTLE;
        let mut retried = false;
        loop {
            if self.source.commits.has_failed() && std::mem::replace(&mut retried, true) {
                return;
            }
            self.commit_again();
            if self.source.commits.is_answered() || Instant::now() >= deadline {
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
    }
}
