//! Writes the batches, in as few transactions as the database accepts. Records that cannot be stored are counted and
//! skipped: a replay writes no dead letters.

use anyhow::{anyhow, bail};
use schemas::Reject;
use service::backoff::Backoff;
use service::range::Ranges;
use service::warn_of_change;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::progress::{Account, Progress};
use super::{GROUP, wrong};
use crate::batch::{Batch, Record, last_read};
use crate::entrance::batch_writer::{BatchWriter, Pass, REFUSED, Split, WriteHooks, Written};
use crate::failure::Failure;
use crate::positions::{Advance, Positions};
use crate::rows::Part;
use crate::store::StoreError;

/// A replay's hooks of the writer.
pub(super) struct Replay;

impl WriteHooks for Replay {
    const SPLIT: Split = Split::Never;
    const HAS_LETTERS: bool = false;

    /// A record that cannot be read says nothing about the tables.
    fn is_counted(reject: &Reject) -> bool {
        reject.kind == REFUSED
    }

    fn refusal(place: &str, error: &str) -> String {
        format!("{place} refuses it: {error}")
    }

    async fn write_letters(
        &mut self,
        _: &[Record],
        _: &[Part],
        _: &Positions,
    ) -> Result<(), Failure> {
        Ok(())
    }

    async fn during<T>(&mut self, _: &Batch, write: impl Future<Output = T>) -> T {
        write.await
    }
}

/// The database side of a replay.
pub(super) struct Writing<'a> {
    pub(super) writer: BatchWriter,
    pub(super) progress: Progress,
    pub(super) account: Account,
    pub(super) shutdown: &'a CancellationToken,
}

impl Writing<'_> {
    /// Whether it was stopped while the database was unavailable.
    pub(super) fn given_up(&self) -> bool {
        self.account.left_unstored
    }

    /// Writes a batch.
    pub(super) async fn write(&mut self, mut batch: Batch) -> anyhow::Result<()> {
        let mut backoff = Backoff::default();
        let mut pass = Pass::of(&batch);
        while !pass.is_done() && !self.given_up() {
            let written = self
                .writer
                .write_next(&mut batch, &mut pass, &mut Replay)
                .await;
            match written {
                Ok(Written::Stored { count, rows, .. }) => self.stored(&mut batch, count, &rows),
                Ok(Written::Tried | Written::Refused { .. }) => {}
                Ok(Written::Smaller { message }) => warn_of_change!("{message}"),
                Ok(Written::TooManyRejects { place, tripped }) => {
                    let record = &batch.records()[place];
                    let why = record.event.as_ref().err();
                    return Err(wrong(format!(
                        "{tripped}, the last one partition {} offset {}: {}. Do the tables of --into belong to this \
                         version, without constraints of their own? Correct them and start again to continue",
                        record.partition,
                        record.anchor.offset,
                        why.map_or("", |reject| &reject.message)
                    )));
                }
                Ok(Written::Fenced { count, error }) => {
                    // The answer to our own commit may have been lost.
                    let records = &batch.records()[..count];
                    match self.are_stored(records).await {
                        Ok(true) => {
                            self.writer.stored::<Replay>(records, &mut pass);
                            let rows = rows_of(records);
                            self.stored(&mut batch, count, &rows);
                        }
                        Ok(false) => bail!(
                            "{}: {error}. Is another replay running into the same database? When it has ended, start \
                             again to continue",
                            self.writer.place
                        ),
                        Err(failure) => self.wait(failure, &mut backoff).await?,
                    }
                }
                Ok(Written::Half { reason, .. }) => {
                    self.wait(Failure::Retry(reason), &mut backoff).await?;
                }
                Ok(Written::Replaced { error }) => {
                    let failure = failure(error, &self.writer.place);
                    self.wait(failure, &mut backoff).await?;
                }
                Err(failure) => self.wait(failure, &mut backoff).await?,
            }
        }
        Ok(())
    }

    /// Moves the stored offsets to the ends of the ranges, past trailing commit markers and aborted records: retention
    /// of those is then not a loss.
    pub(super) async fn reach(&mut self, ranges: &Ranges) -> anyhow::Result<()> {
        let mut advances = Vec::new();
        for (&partition, range) in ranges {
            for part in Part::ALL {
                let expected = self.writer.positions.get(&(part, partition)).copied();
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
            match self.writer.advance(&advances).await {
                Ok(()) => {
                    advances.clear();
                    self.account.reached(ranges);
                }
                Err(fenced @ StoreError::Fenced(_)) => {
                    // The answer to our own commit may have been lost.
                    match self.are_reached(&advances).await {
                        Ok(true) => {
                            self.account.reached(ranges);
                            break;
                        }
                        Ok(false) => bail!("{}: {fenced}", self.writer.place),
                        Err(failure) => self.wait(failure, &mut backoff).await?,
                    }
                }
                Err(error) => {
                    let failure = failure(error, &self.writer.place);
                    self.wait(failure, &mut backoff).await?;
                }
            }
        }
        Ok(())
    }

    /// Whether the database has stored these steps.
    async fn are_reached(&mut self, advances: &[Advance]) -> Result<bool, Failure> {
        let stored = self.writer.stored_offsets(failure).await?;
        Ok(advances.iter().all(|advance| {
            stored.iter().any(|stored| {
                (stored.part, stored.partition, stored.next_offset)
                    == (advance.part, advance.partition, advance.next)
            })
        }))
    }

    /// Counts and removes the first `count` records, which are stored, or skipped if they are rejects.
    fn stored(&mut self, batch: &mut Batch, count: usize, rows: &[(Part, u64)]) {
        self.account.stored(&batch.records()[..count], rows);
        self.progress.moved_on(&self.account);
        batch.stored(count);
    }

    /// Whether exactly these records were stored last, by the database.
    async fn are_stored(&mut self, records: &[Record]) -> Result<bool, Failure> {
        let stored = self.writer.stored_offsets(failure).await?;
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

    /// Waits before the next attempt, or returns the error if a retry does not help.
    async fn wait(&mut self, failure: Failure, backoff: &mut Backoff) -> anyhow::Result<()> {
        match failure {
            Failure::Exit(error) => return Err(error),
            Failure::Retry(what) => warn_of_change!("waiting for {what}"),
        }
        tokio::select! {
            () = self.shutdown.cancelled() => self.account.left_unstored = true,
            () = sleep(backoff.pause()) => {}
        }
        Ok(())
    }
}

/// Classifies an error of the database. A replay's positions are valid only for the database that it started with.
fn failure(error: StoreError, place: &str) -> Failure {
    match error {
        StoreError::Replaced(_) => Failure::Exit(anyhow!(
            "{place}: {error}. Start again to continue from what is stored there now"
        )),
        error => Failure::of(error, place),
    }
}

/// The number of rows of these records in each part's table.
fn rows_of(records: &[Record]) -> Vec<(Part, u64)> {
    let rows_of = |part: Part| {
        let events = records.iter().filter_map(Record::rows);
        events.map(|event| part.table().rows_of(&event)).sum()
    };
    Vec::from(Part::ALL.map(|part| (part, rows_of(part))))
}
