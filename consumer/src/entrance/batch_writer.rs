//! The writing half of `consumer run` and `consumer replay`: stores the records of a batch, in order, in as few
//! transactions as the database accepts.
//!
//! ```text
//!              ┌─ rejects not judged yet ─▶ trial: written, rolled back ─▶ judged by the circuit breaker ──────────┐
//! Batch ─▶ piece                                                                                             │
//!              └─ none, or all judged ─▶ dead letters acknowledged ─▶ one transaction: fence, rows, offsets ◀─┘
//! ```
//!
//! | The database says | Outcome |
//! | --- | --- |
//! | committed | [`Written::Stored`] |
//! | a row is refused | bisect: the refused records become rejects, [`Written::Refused`] |
//! | the piece takes too long | use a smaller one, [`Written::Smaller`] |
//! | the stored offset is not the expected one | [`Written::Fenced`] |
//! | one of two halves failed | [`Written::Half`] |
//! | the database was replaced by another | [`Written::Replaced`] |
//! | unavailable, or failing | [`Failure`] |
//!
//! Exactly once rests on three rules. The stored offset moves in the same transaction as the rows, and only from the
//! offset that this writer expects. A dead letter is acknowledged before the offset moves past its record. Every record
//! of a transaction is judged before any of its letters is written.

use std::collections::BTreeMap;
use std::ops::Range;

use schemas::Reject;
use service::backoff::Backoff;
use service::breaker::{Breaker, Tripped};
use service::health::Health;
use service::telemetry::names;
use service::warn_of_change;
use service::words::counted;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::batch::{Batch, Record, last_read};
use crate::bisect::{Bisection, Found};
use crate::failure::Failure;
use crate::letters::MAX_UNSTORED;
use crate::ownership::ExpectedOwner;
use crate::positions::{Advance, Anchor, Positions};
use crate::rows::Part;
use crate::store::{Database, End, Identity, StoreError, StoredOffset, Writer, owners};

/// What a command does around each transaction.
pub(crate) trait WriteHooks {
    /// How a piece may be split at first.
    const SPLIT: Split;
    /// Whether rejects get dead letters. If so, a piece with rejects is tried and judged before it is stored.
    const HAS_LETTERS: bool;

    /// Whether the breaker counts this reject.
    fn is_counted(reject: &Reject) -> bool;

    /// The reason given for a record that the database at `place` refuses.
    fn refusal(place: &str, error: &str) -> String;

    /// Writes the dead letters of the rejects among these records, and waits until Kafka has acknowledged them.
    async fn write_letters(
        &mut self,
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
    ) -> Result<(), Failure>;

    /// Awaits a write of records of `batch` while doing other work.
    async fn during<T>(&mut self, batch: &Batch, write: impl Future<Output = T>) -> T;
}

/// How a piece may be split into transactions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Split {
    /// One transaction.
    Never,
    /// Two transactions at once, with different partitions.
    Halves,
    /// One transaction, because a half failed. Halves are used again after the next success: only the error of a single
    /// transaction says how to recover.
    NotUntilStored,
}

/// Progress through the records of a batch.
pub(crate) struct Pass {
    /// Number of records that remain to be written, from the start of the batch.
    left: usize,
    /// Number of these that were tried and judged.
    judged: usize,
}

impl Pass {
    pub(crate) fn of(batch: &Batch) -> Self {
        Self {
            left: batch.records().len(),
            judged: 0,
        }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.left == 0
    }
}

/// The outcome of a write.
pub(crate) enum Written {
    /// The first `count` records of the batch are stored, and the writer's positions moved. The caller removes them
    /// from the batch with [`Batch::stored`].
    Stored {
        count: usize,
        /// The rows written, by part.
        rows: Vec<(Part, u64)>,
        /// The last stored record of each partition.
        last: BTreeMap<i32, Anchor>,
    },
    /// Nothing is stored yet: the piece was tried and is committed next.
    Tried,
    /// Nothing is stored: it took too long. The next piece is smaller; `message` says so.
    Smaller { message: String },
    /// Nothing is stored: the database refused a row.
    Refused {
        /// Whether records were found that are refused on their own; they are rejects now. If not, the next piece is
        /// smaller.
        found: bool,
    },
    /// Nothing is stored: the record at `place` is one reject too many.
    TooManyRejects { place: usize, tripped: Tripped },
    /// Some of the first `count` records are stored: read the positions again.
    Half {
        count: usize,
        stored: usize,
        rows: Vec<(Part, u64)>,
        reason: String,
    },
    /// Nothing is stored: another owner, or an earlier commit of this one whose answer was lost, moved the stored
    /// offset. Read the positions again.
    Fenced { count: usize, error: StoreError },
    /// Nothing is stored: the database was replaced by another. Read the positions again.
    Replaced { error: StoreError },
}

/// Writes to one database, for one consumer group and topic.
pub(crate) struct BatchWriter {
    pub(crate) store: Box<dyn Writer>,
    /// The database, for messages.
    pub(crate) place: String,
    /// The option that names the database, for messages.
    pub(crate) option: &'static str,
    pub(crate) parts: Vec<Part>,
    pub(crate) identity: Identity,
    /// The offsets that the next transaction expects to be stored.
    pub(crate) positions: Positions,
    pub(crate) breaker: Breaker,
    /// Events stored since the start.
    pub(crate) events_stored: u64,
    max_events: usize,
    /// Maximum piece size: halved when the database is too slow for it, doubled after each success.
    piece: usize,
    split: Split,
}

impl BatchWriter {
    /// Writes at most `max_events` records per transaction.
    pub(crate) fn new<A: WriteHooks>(
        store: Box<dyn Writer>,
        place: String,
        option: &'static str,
        parts: Vec<Part>,
        identity: Identity,
        breaker: Breaker,
        max_events: u32,
    ) -> Self {
        Self {
            store,
            place,
            option,
            parts,
            identity,
            positions: Positions::default(),
            breaker,
            events_stored: 0,
            max_events: max_events as usize,
            piece: max_events as usize,
            split: A::SPLIT,
        }
    }

    /// Performs the next step of a pass over a batch.
    ///
    /// # Errors
    /// If the database or Kafka is unavailable, or if a retry does not help.
    pub(crate) async fn write_next<A: WriteHooks>(
        &mut self,
        batch: &mut Batch,
        pass: &mut Pass,
        hooks: &mut A,
    ) -> Result<Written, Failure> {
        let (count, end) = self.next_piece::<A>(batch, pass);
        if end != End::RollBack && A::HAS_LETTERS {
            hooks
                .write_letters(&batch.records()[..count], &self.parts, &self.positions)
                .await?;
        }
        let started = Instant::now();
        let written = self.write(batch, 0..count, end, hooks).await;
        metrics::histogram!(names::DB_OPERATION_DURATION, "db_system_name" => self.store.system())
            .record(started.elapsed());
        match written {
            Ok(_) if end == End::RollBack => {
                self.breaker.take_back();
                if let Err((place, tripped)) = self.judge::<A>(batch, 0..count) {
                    return Ok(Written::TooManyRejects { place, tripped });
                }
                pass.judged = count;
                Ok(Written::Tried)
            }
            Ok(rows) => {
                let last = self.stored::<A>(&batch.records()[..count], pass);
                if self.split == Split::NotUntilStored {
                    self.split = Split::Halves;
                }
                Ok(Written::Stored { count, rows, last })
            }
            Err(StoreError::Half {
                reason,
                stored,
                rows,
            }) => {
                self.split = Split::NotUntilStored;
                Ok(Written::Half {
                    count,
                    stored,
                    rows,
                    reason,
                })
            }
            Err(StoreError::TooLong(reason)) if count > 1 => {
                self.piece = count / 2;
                let message = format!(
                    "{}: {reason}; storing at most {} at once",
                    self.place,
                    counted(self.piece, "event")
                );
                Ok(Written::Smaller { message })
            }
            Err(StoreError::Refused(message)) => {
                pass.judged = 0;
                self.bisect(batch, count, message, hooks).await
            }
            Err(error) => self.not_written(count, error),
        }
    }

    /// The number of records to write next, and how to end the transaction.
    fn next_piece<A: WriteHooks>(&self, batch: &Batch, pass: &Pass) -> (usize, End) {
        let is_judged = pass.judged > 0;
        let count = if is_judged { pass.judged } else { pass.left };
        let records = &batch.records()[..count.min(self.piece)];
        let mut rejects = (0..records.len()).filter(|&place| records[place].event.is_err());
        let end = match self.split {
            Split::Halves => End::CommitHalves,
            Split::Never | Split::NotUntilStored => End::Commit,
        };
        match (A::HAS_LETTERS, is_judged) {
            (false, _) => (records.len(), end),
            // At most as many letters as the metadata of the group's offsets can name.
            (true, true) => (rejects.nth(MAX_UNSTORED).unwrap_or(records.len()), end),
            (true, false) if rejects.next().is_some() => (records.len(), End::RollBack),
            (true, false) => (records.len(), end),
        }
    }

    async fn write(
        &mut self,
        batch: &Batch,
        records: Range<usize>,
        end: End,
        hooks: &mut impl WriteHooks,
    ) -> Result<Vec<(Part, u64)>, StoreError> {
        let records = &batch.records()[records];
        let write = self
            .store
            .write(records, &self.parts, &self.positions, &self.identity, end);
        hooks.during(batch, write).await
    }

    /// Handles the errors that a write and a trial have in common.
    fn not_written(&self, count: usize, error: StoreError) -> Result<Written, Failure> {
        match error {
            StoreError::Fenced(_) => Ok(Written::Fenced { count, error }),
            StoreError::Replaced(_) => Ok(Written::Replaced { error }),
            error => Err(Failure::of(error, &self.place)),
        }
    }

    /// Moves the positions past these stored records and settles the breaker. Returns the last record of each
    /// partition.
    pub(crate) fn stored<A: WriteHooks>(
        &mut self,
        records: &[Record],
        pass: &mut Pass,
    ) -> BTreeMap<i32, Anchor> {
        let last = last_read(records);
        for (&partition, anchor) in &last {
            let next = anchor.offset + 1;
            for part in &self.parts {
                let stored = self.positions.entry((*part, partition)).or_insert(next);
                *stored = next.max(*stored);
            }
        }
        self.settle::<A>(records);
        self.events_stored += records.iter().filter(|record| record.event.is_ok()).count() as u64;
        pass.left -= records.len();
        pass.judged = pass.judged.saturating_sub(records.len());
        self.piece = (self.piece * 2).min(self.max_events).max(1);
        last
    }

    /// Settles the breaker for those of these records that are stored, by the positions.
    pub(crate) fn settle_stored<A: WriteHooks>(&mut self, records: &[Record]) {
        let is_stored = |record: &&Record| self.is_stored(record.partition, record.anchor.offset);
        let stored = Vec::from_iter(records.iter().filter(is_stored));
        self.settle::<A>(stored);
    }

    /// Settles the breaker for these stored records.
    fn settle<'r, A: WriteHooks>(&mut self, records: impl IntoIterator<Item = &'r Record>) {
        self.breaker.take_back();
        for record in records {
            // They were judged before. Only after a half failed can one be too many; the next reject is then too many
            // as well.
            let _ = judge::<A>(&mut self.breaker, record);
        }
        self.breaker.settle();
    }

    /// Judges the records at these places. The error names the record that is one reject too many.
    fn judge<A: WriteHooks>(
        &mut self,
        batch: &Batch,
        places: Range<usize>,
    ) -> Result<(), (usize, Tripped)> {
        for place in places {
            judge::<A>(&mut self.breaker, &batch.records()[place])
                .map_err(|tripped| (place, tripped))?;
        }
        Ok(())
    }

    /// Finds the records among the first `count` that the database refuses; they become rejects. `error` is the
    /// database's error for all of them together; each may be accepted on its own.
    async fn bisect<A: WriteHooks>(
        &mut self,
        batch: &mut Batch,
        count: usize,
        error: String,
        hooks: &mut A,
    ) -> Result<Written, Failure> {
        let (mut found, mut bisection) = (false, Bisection::new(count, error));
        // Judged as they are found: after too many, the rest need not be tried.
        self.breaker.take_back();
        loop {
            let next = bisection
                .next(async |piece| self.write(batch, piece, End::RollBack, hooks).await)
                .await;
            let places = match next {
                Ok(None) => break,
                Ok(Some(Found::Accepted(places))) => places,
                Ok(Some(Found::Refused { place, message })) => {
                    found = true;
                    let reject = Reject {
                        stage: "TASK_PUT",
                        refused_by: "consumer::store",
                        kind: REFUSED,
                        message: A::refusal(&self.place, &message),
                    };
                    batch.reject(place, reject);
                    place..place + 1
                }
                Err(error) => return self.not_written(count, error),
            };
            if let Err((place, tripped)) = self.judge::<A>(batch, places) {
                return Ok(Written::TooManyRejects { place, tripped });
            }
        }
        if !found {
            self.piece = (count / 2).max(1);
        }
        Ok(Written::Refused { found })
    }

    /// Moves the stored offsets and the positions forward without any rows.
    ///
    /// # Errors
    /// As [`Writer::move_on`].
    pub(crate) async fn advance(&mut self, advances: &[Advance]) -> Result<(), StoreError> {
        self.store.move_on(advances, &self.identity).await?;
        let next = advances
            .iter()
            .map(|step| ((step.part, step.partition), step.next));
        self.positions.extend(next);
        Ok(())
    }

    /// Returns all stored offsets of the topic. `meaning` classifies an error of the database at a place.
    ///
    /// # Errors
    /// If the database does not answer, or belongs to another topic or cluster.
    pub(crate) async fn stored_offsets(
        &mut self,
        meaning: fn(StoreError, &str) -> Failure,
    ) -> Result<Vec<StoredOffset>, Failure> {
        let stored = self.store.stored().await;
        let stored = stored.map_err(|error| meaning(error, &self.place))?;
        let expected = ExpectedOwner {
            topic: &self.identity.topic,
            cluster_id: Some(&self.identity.cluster_id),
            place: &self.place,
            option: self.option,
        };
        expected
            .check(&owners(&stored))
            .map_err(anyhow::Error::from)?;
        Ok(stored)
    }

    /// Whether all parts of a record are stored; parts can be at different offsets.
    pub(crate) fn is_stored(&self, partition: i32, offset: i64) -> bool {
        self.parts.iter().all(|part| {
            let next = self.positions.get(&(*part, partition));
            next.is_some_and(|next| offset < *next)
        })
    }
}

/// The kind of rejects that the database refused.
pub(crate) const REFUSED: &str = "DatabaseRefused";

fn judge<A: WriteHooks>(breaker: &mut Breaker, record: &Record) -> Result<(), Tripped> {
    match &record.event {
        Ok(_) => breaker.accept(),
        Err(reject) if A::is_counted(reject) => return breaker.reject(),
        Err(_) => {}
    }
    Ok(())
}

/// Migrates and opens the database; waits while it is unavailable. `None` if shut down meanwhile.
///
/// # Errors
/// If waiting does not help.
pub(crate) async fn open(
    database: &Database,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Box<dyn Writer>>> {
    let mut backoff = Backoff::default();
    let place = database.place();
    health.waiting_for(format!("{place}: to be opened"));
    loop {
        let opened = async {
            database.migrate().await?;
            database.open().await
        };
        let opened = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            opened = opened => opened,
        };
        match opened.map_err(|error| Failure::of(error, &place)) {
            Ok(store) => {
                health.answered();
                return Ok(Some(store));
            }
            Err(Failure::Exit(error)) => return Err(error),
            Err(Failure::Retry(what)) => {
                warn_of_change!("waiting for {what}");
                health.waiting_for(what);
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = sleep(backoff.pause()) => {}
        }
    }
}
