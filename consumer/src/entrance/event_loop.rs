//! The loop of `consumer run`: selects and performs the next step.
//!
//! | Event | Action |
//! | --- | --- |
//! | a record | add it to the batch; store a full batch |
//! | the batch is due, or the next retry of an outage | start partitions that are not started, store the batch |
//! | a second has passed | store and commit the positions of idle partitions |
//! | partitions assigned | start at their stored offsets |
//! | partitions revoked | drain: store and commit what was read of them, then release them; the fence decides for lost ones |
//! | the position is not in the log | store what was read, then return to the stored offsets, where `--on-gap` decides |
//! | shutdown | drain once, leave |

use std::time::Duration;

use rdkafka::topic_partition_list::TopicPartitionList;
use service::backoff::Backoff;
use service::breaker::Breaker;
use service::pause;
use service::repeats;
use service::subscription::{Next, OutsideTheLog};
use service::warn_of_change;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::batch_writer::BatchWriter;
use super::partitions::Partitions;
use super::state::{Entrance, KAFKA_TIMEOUT, State};
use crate::batch::Record;
use crate::failure::Failure;

/// The next step of the loop.
enum Step<'a> {
    Stop,
    Store,
    CheckIdle,
    Handle(anyhow::Result<Next<'a>>),
}

impl<'a> Entrance<'a> {
    /// Stores events until `shutdown` is cancelled, then stores what was read.
    ///
    /// # Errors
    /// If a retry does not help.
    pub(super) async fn store_until(&mut self, shutdown: &CancellationToken) -> anyhow::Result<()> {
        loop {
            match self.next_step(shutdown).await {
                Step::Stop => return self.stop().await,
                Step::Store => self.store_and_check_idle().await?,
                Step::CheckIdle => self.check_idle().await?,
                Step::Handle(Ok(Next::Record(record))) => {
                    self.take(Record::read(&self.source.schemas.decoder, &record));
                    if self.is_full() {
                        self.store_and_check_idle().await?;
                    }
                }
                Step::Handle(Ok(Next::Assigned(partitions))) => self.begin(&partitions).await?,
                Step::Handle(Ok(Next::Revoked { partitions, lost })) => {
                    self.drain(&partitions, lost).await?;
                }
                Step::Handle(Err(error)) => self.recover(error).await?,
            }
        }
    }

    async fn next_step(&mut self, shutdown: &CancellationToken) -> Step<'a> {
        if shutdown.is_cancelled() {
            return Step::Stop;
        }
        if let Some(interruption) = self.source.interruption.take() {
            return Step::Handle(interruption);
        }
        let due = self.due();
        if due.is_some_and(|due| due <= Instant::now()) {
            return Step::Store;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Step::Stop,
            () = pause::until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                self.take_waiting();
                Step::Store
            }
            next = self.source.subscription.next() => Step::Handle(next),
            // If there are records, the check follows their storing.
            () = sleep_until(self.next_idle_check) => Step::CheckIdle,
        }
    }

    /// Stores what was read, in one attempt: the rest is read again after the next start.
    async fn stop(&mut self) -> anyhow::Result<()> {
        if self.is_waiting() {
            return Ok(());
        }
        self.store().await?;
        self.writer.store.is_in_place().await.map_err(|error| {
            anyhow::anyhow!(
                "{}: {error}; the next start resumes from what the database then has stored",
                self.writer.place
            )
        })?;
        match self.is_waiting() {
            false => self.check_idle().await,
            true => Ok(()),
        }
    }

    /// Stores what was read of revoked partitions and releases them. Lost ones are tried too: the fence decides.
    async fn drain(&mut self, partitions: &TopicPartitionList, lost: bool) -> anyhow::Result<()> {
        if lost {
            tracing::warn!(
                "partitions were lost to another consumer; events that it stored meanwhile are not stored again"
            );
        }
        if !self.is_waiting() {
            self.store().await?;
        }
        if !self.is_waiting() && !lost {
            self.check_idle().await?;
        }
        if !lost {
            self.settle_commits().await;
        }
        self.forget(partitions);
        self.source.subscription.release(partitions)
    }

    /// Replaces a read error by its cause if the topic was recreated. If the log does not contain the position, resumes
    /// where `--on-gap` says, as after a start.
    async fn recover(&mut self, error: anyhow::Error) -> anyhow::Result<()> {
        if self.topic_id.id().is_some() {
            // The id is compared below.
            let _ = self.source.subscription.topic_id(KAFKA_TIMEOUT).await;
            self.is_the_topic().map_err(Failure::into_error)?;
        }
        if !error.is::<OutsideTheLog>() {
            return Err(error);
        }
        tracing::warn!("{error:#}");
        if !self.is_waiting() {
            self.store().await?;
        }
        match self.go_back().await {
            Ok(()) => Ok(()),
            Err(Failure::Retry(what)) => self.wait_for(what),
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    /// Adds a record to the batch unless all its parts are stored: a seek takes effect with a delay.
    fn take(&mut self, record: Record) {
        if is_wanted(&self.partitions, &self.writer, &record) {
            self.batch.push(record);
        }
    }

    /// Adds the records that have arrived, up to a full batch.
    fn take_waiting(&mut self) {
        while !self.is_full() {
            match self.source.subscription.try_next().transpose() {
                None => break,
                Some(Ok(Next::Record(record))) => {
                    self.take(Record::read(&self.source.schemas.decoder, &record));
                }
                other => {
                    self.source.interruption = other;
                    break;
                }
            }
        }
    }

    /// Adds the records that were read while the database was writing.
    pub(super) fn take_ahead(&mut self) {
        let mut ahead = std::mem::take(&mut self.source.ahead);
        let (partitions, writer) = (&self.partitions, &self.writer);
        self.batch
            .append(&mut ahead, |record| is_wanted(partitions, writer, record));
    }

    /// The latest time of the next step.
    fn due(&self) -> Option<Instant> {
        if let State::Waiting { next_try, .. } = &self.state {
            return Some(*next_try);
        }
        let since = self.batch.since()?;
        let commit_interval = Duration::from_millis(self.config.commit_interval_ms);
        // A run of rejects is not stored before it is known to be short.
        let patience = match self.is_undecided() {
            true => commit_interval.max(Breaker::PATIENCE),
            false => commit_interval,
        };
        Some(since + patience)
    }

    fn is_full(&self) -> bool {
        self.config.is_full(&self.batch) && !self.is_undecided() && !self.is_waiting()
    }

    /// Whether the batch ends with rejects and the next records decide whether these are few or many.
    pub(super) fn is_undecided(&self) -> bool {
        let rejects = self.batch.rejects_at_end();
        let all = rejects == self.batch.records().len();
        self.writer.breaker.would_be_undecided(rejects, all)
    }

    async fn store_and_check_idle(&mut self) -> anyhow::Result<()> {
        self.store().await?;
        self.check_idle_if_due().await
    }

    /// Starts partitions and stores the batch, as far as is possible now.
    ///
    /// # Errors
    /// If a retry does not help.
    async fn store(&mut self) -> anyhow::Result<()> {
        let stored = async {
            self.start_partitions().await?;
            self.store_batch().await?;
            if self.is_waiting() {
                // Nothing to store: check whether the database answers again.
                self.writer.stored_offsets(Failure::of).await?;
            }
            Ok(())
        };
        match stored.await {
            Ok(()) => self.answered(),
            Err(Failure::Retry(what)) => self.wait_for(what),
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// Something is unavailable: stops reading until it answers, but keeps the partitions.
    pub(super) fn wait_for(&mut self, what: String) -> anyhow::Result<()> {
        warn_of_change!("waiting for {what}");
        if !self.is_waiting() {
            self.source.subscription.pause()?;
            self.state = State::Waiting {
                backoff: Backoff::default(),
                next_try: Instant::now(),
            };
        }
        if let State::Waiting { backoff, next_try } = &mut self.state {
            *next_try = Instant::now() + backoff.pause();
        }
        self.health.waiting_for(what);
        Ok(())
    }

    fn answered(&mut self) -> anyhow::Result<()> {
        if self.is_waiting() {
            self.state = State::Storing;
            let after = repeats::end(module_path!());
            tracing::info!("everything answers again, {after}");
            self.health.answered();
            self.source.subscription.resume()?;
        }
        Ok(())
    }
}

/// Whether a record is still to be stored.
fn is_wanted(partitions: &Partitions, writer: &BatchWriter, record: &Record) -> bool {
    let (partition, offset) = (record.partition, record.anchor.offset);
    partitions.is_started(partition) && !writer.is_stored(partition, offset)
}
