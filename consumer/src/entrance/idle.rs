//! Positions after the last record: a partition that is read to its end is stored and committed up to there, past the
//! commit markers and aborted records that follow its last record, even if it never had a record. Otherwise retention
//! of a marker would look like a loss, and the group would never reach a lag of 0.

use std::collections::BTreeMap;

use service::warn_of_change;
use tokio::time::Instant;

use super::source::{IDLE_CHECK_INTERVAL, unfinished};
use super::state::{Entrance, State};
use crate::failure::Failure;
use crate::positions::Advance;
use crate::store::StoreError;

impl Entrance<'_> {
    /// Checks idle partitions if it is time.
    pub(super) async fn check_idle_if_due(&mut self) -> anyhow::Result<()> {
        match self.next_idle_check <= Instant::now() {
            true => self.check_idle().await,
            false => Ok(()),
        }
    }

    /// Updates the lag from the records that are not stored yet, and stores the positions of all other partitions.
    ///
    /// # Errors
    /// If the topic was deleted and recreated, or a retry does not help.
    pub(super) async fn check_idle(&mut self) -> anyhow::Result<()> {
        self.next_idle_check = Instant::now() + IDLE_CHECK_INTERVAL;
        let unfinished = unfinished([&self.batch, &self.source.ahead]);
        self.source.subscription.set_unfinished(unfinished.clone());
        let stored = match self.state {
            State::Waiting { .. } => self.is_the_topic().map(|()| self.commit_again()),
            State::Storing => self.store_positions(&unfinished).await,
        };
        match stored {
            Ok(()) => Ok(()),
            Err(Failure::Retry(what)) => self.wait_for(what),
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    async fn store_positions(&mut self, unfinished: &BTreeMap<i32, i64>) -> Result<(), Failure> {
        self.is_the_topic()?;
        if let Err(error) = self.writer.store.is_in_place().await {
            return self.find_place(error).await;
        }
        let read = self.source.subscription.positions()?;
        let mut advances = Vec::new();
        for (partition, log_start) in self.partitions.log_starts() {
            if unfinished.contains_key(&partition) {
                continue;
            }
            // A partition that was started at the beginning of its log and has no record has no position yet.
            let position = read.get(&partition).copied().unwrap_or(log_start);
            for &part in &self.writer.parts {
                let expected = self.writer.positions.get(&(part, partition)).copied();
                let next = expected.map_or(position, |stored| stored.max(position));
                if expected != Some(next) || self.partitions.lacks_topic_id(partition, part) {
                    advances.push(Advance {
                        part,
                        partition,
                        expected,
                        first: next.min(log_start),
                        next,
                        anchor: None,
                    });
                }
            }
        }
        if !advances.is_empty() {
            match self.writer.advance(&advances).await {
                Ok(()) => {}
                Err(fenced @ StoreError::Fenced(_)) => {
                    warn_of_change!("{fenced}");
                    return self.go_back().await;
                }
                Err(replaced @ StoreError::Replaced(_)) => return self.find_place(replaced).await,
                Err(error) => return Err(Failure::of(error, &self.writer.place)),
            }
            for Advance {
                part, partition, ..
            } in advances
            {
                self.partitions.has_topic_id(partition, part);
            }
        }
        self.commit_again();
        Ok(())
    }
}
