//! Positions behind the last record: a partition that is read to its end is stored and committed up to there,
//! past the commit markers and aborted records that follow its last record, and even if it never had one. Else
//! retention of a marker would look like a loss, and the group would never reach a lag of 0.

use std::collections::BTreeMap;
use std::time::Duration;

use service::warn_of_change;
use tokio::time::Instant;

use super::Entrance;
use crate::batch::Batch;
use crate::failure::Failure;
use crate::positions::Advance;
use crate::store::StoreError;

/// How often positions are looked at. Only those that moved are stored.
pub(super) const EVERY: Duration = Duration::from_secs(1);

impl Entrance<'_> {
    /// Looks at the positions, if it is time.
    pub(super) async fn look_if_due(&mut self) -> anyhow::Result<()> {
        match self.next_look <= Instant::now() {
            true => self.look().await,
            false => Ok(()),
        }
    }

    /// Tells the lag what is not stored yet, and stores the positions of the other partitions.
    ///
    /// # Errors
    /// If the topic is another one now, or storing meets what does not pass by itself.
    pub(super) async fn look(&mut self) -> anyhow::Result<()> {
        self.next_look = Instant::now() + EVERY;
        let unfinished = unfinished([&self.batch, &self.ahead]);
        self.subscription.set_unfinished(unfinished.clone());
        let stored = match self.outage {
            Some(_) => self.is_the_topic().map(|()| self.commit_again()),
            None => self.store_positions(&unfinished).await,
        };
        match stored {
            Ok(()) => Ok(()),
            Err(Failure::Retry(what)) => self.wait_for(what),
            Err(Failure::Exit(error)) => Err(error),
        }
    }

    async fn store_positions(&mut self, unfinished: &BTreeMap<i32, i64>) -> Result<(), Failure> {
        self.is_the_topic()?;
        if let Err(error) = self.store.is_in_place().await {
            return self.find_place(error).await;
        }
        let mut read = self.subscription.positions()?;
        // What was begun at its log's beginning and has nothing has no position yet.
        for (partition, low) in &self.lows {
            read.entry(*partition).or_insert(*low);
        }
        read.retain(|partition, _| {
            self.lows.contains_key(partition)
                && !self.unstarted.contains(partition)
                && !unfinished.contains_key(partition)
        });
        let mut advances = Vec::new();
        for (&partition, &position) in &read {
            for &part in &self.parts {
                let expected = self.positions.get(&(part, partition)).copied();
                let next = expected.map_or(position, |stored| stored.max(position));
                let unnamed = self.unnamed.contains(&(part, partition));
                if expected != Some(next) || unnamed {
                    advances.push(Advance {
                        part,
                        partition,
                        expected,
                        first: self.lows.get(&partition).map_or(next, |low| next.min(*low)),
                        next,
                        anchor: None,
                    });
                }
            }
        }
        if !advances.is_empty() {
            match self.store.move_on(&advances, &self.identity).await {
                Ok(()) => {}
                Err(fenced @ StoreError::Fenced(_)) => {
                    warn_of_change!("{fenced}");
                    return self.go_back().await;
                }
                Err(replaced @ StoreError::Replaced(_)) => return self.find_place(replaced).await,
                Err(error) => return Err(Failure::of(error, &self.place)),
            }
            for Advance {
                part,
                partition,
                next,
                ..
            } in advances
            {
                self.positions.insert((part, partition), next);
                self.unnamed.remove(&(part, partition));
            }
        }
        self.commit_again();
        Ok(())
    }
}

/// The first record of each partition in these batches: it was read, and is not stored.
pub(super) fn unfinished(batches: [&Batch; 2]) -> BTreeMap<i32, i64> {
    let mut first = BTreeMap::new();
    for record in batches.iter().flat_map(|batch| batch.records()) {
        first
            .entry(record.partition)
            .or_insert(record.anchor.offset);
    }
    first
}
