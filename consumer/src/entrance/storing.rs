//! Storing the batch: one pass of the writer, and what each of its outcomes means to a member of the group. Afterwards
//! the group's offsets in Kafka follow.

use std::collections::BTreeMap;

use service::breaker::Tripped;
use service::exit::NeedsAttention;
use service::telemetry::{messaging, names};
use service::warn_of_change;
use service::words::counted;
use tokio::time::{Instant, sleep};

use super::ROWS;
use super::batch_writer::{Pass, Written};
use super::commits::{LOOK, SETTLE};
use super::source::Source;
use super::state::Entrance;
use crate::failure::Failure;
use crate::positions::Anchor;
use crate::rows::Part;
use crate::store::StoreError;

impl Entrance<'_> {
    /// Stores the batch, and takes what was read meanwhile for the next one.
    pub(super) async fn store_batch(&mut self) -> Result<(), Failure> {
        if self.source.learn_schemas(&mut self.batch).await? && self.is_undecided() {
            // The next records decide whether these rejects are few or many.
            self.batch.wait_anew();
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
                        self.batch.wait_anew();
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
                        "{}: {reason}; {stored} of {} are stored, the others are read again",
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

    /// Counts what is stored in the metrics.
    fn count(&self, events: usize, rows: Vec<(Part, u64)>) {
        let topic = &self.config.events_topic;
        metrics::counter!(names::CONSUMED, &messaging("poll", topic)).increment(events as u64);
        for (part, rows) in rows {
            metrics::counter!(ROWS, "db_collection_name" => part.table().name()).increment(rows);
        }
    }

    /// The first `count` records of the batch are stored: commits how far that is, for tools that show lag.
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

    /// The database is not where it was: reads on from what the one in its place has stored.
    pub(super) async fn find_place(&mut self, error: StoreError) -> Result<(), Failure> {
        let place = &self.writer.place;
        if !matches!(error, StoreError::Replaced(_)) {
            return Err(Failure::of(error, place));
        }
        tracing::warn!("{place}: {error}; reading on from what is there now says");
        self.health.waiting_for(format!("{place}: {error}"));
        self.go_back().await?;
        self.health.answered();
        Ok(())
    }

    /// Why the consumer stops at the reject at this place of the batch.
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
             {first} on. Is it the wrong --events-topic or --database-url, has a table a rule of its own, or does the \
             router write with another schema? Correct it and start again, or let them become dead letters with a \
             higher limit",
            tripped.option(),
            why.map_or("", |reject| &reject.message),
            tripped.letters(&self.config.dead_letters_topic),
            counted(self.writer.events_stored, "event"),
            counted(self.source.letters.count, "dead letter"),
        ))
        .into()
    }

    /// Commits how far the partitions are stored, unless an earlier commit is still in flight or has failed.
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
            // A partition of which a part has stored nothing has no next offset.
            if let Some(Some(next)) = next.min()
                // A transaction of unknown outcome may have committed which letters exist: that must not be
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

    /// [`commit`](Self::commit), also after one that has failed.
    pub(super) fn commit_again(&mut self) {
        self.source.commits.retry();
        self.commit();
    }

    /// Waits until it is committed how far the partitions are stored, at most [`SETTLE`].
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
            sleep(LOOK).await;
        }
    }
}
