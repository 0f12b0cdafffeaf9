//! The Kafka side of `consumer run`: reads ahead while the database writes, and writes dead letters.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemas::Reject;
use service::exit::NeedsAttention;
use service::lookup::Lookup;
use service::registry::RegistryError;
use service::subscription::{Next, Subscription};
use tokio::time::{Instant, sleep_until};

use super::batch_writer::{Split, WriteHooks};
use super::commits::Commits;
use super::config::Config;
use crate::batch::{Batch, Record};
use crate::failure::Failure;
use crate::letters::{Letters, Refused};
use crate::positions::Positions;
use crate::rows::Part;
use crate::schema_source::SchemaSource;

/// How often the lag is updated and the positions of idle partitions are stored.
pub(super) const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A member of the group, with its read-ahead records, dead letters and commits.
pub(super) struct Source<'a> {
    pub(super) config: &'a Config,
    pub(super) subscription: &'a Subscription,
    pub(super) lookup: Lookup,
    pub(super) schemas: SchemaSource,
    pub(super) letters: Letters,
    /// The group's offsets in Kafka.
    pub(super) commits: Commits<'a>,
    /// Records read while the database was writing: the beginning of the next batch.
    pub(super) ahead: Batch,
    /// An event other than a record that ended the read-ahead; handled next.
    pub(super) interruption: Option<anyhow::Result<Next<'a>>>,
}

impl Source<'_> {
    /// Fetches the unknown schemas of this batch from the schema registry and reads their records. Returns whether any
    /// became a reject.
    pub(super) async fn learn_schemas(&self, batch: &mut Batch) -> Result<bool, Failure> {
        let (mut rejected, mut from) = (false, 0);
        while let Some((place, id)) = batch.unread(from) {
            let value = batch.records()[place].event.as_deref().ok();
            if self.schemas.decoder.unknown_id(value).is_some() {
                match self.schemas.schema(id).await {
                    Ok(schema) => self.schemas.decoder.learn_id(id, schema.as_deref()),
                    Err(RegistryError::Away(what)) => return Err(Failure::Retry(what)),
                    Err(RegistryError::Refused(why)) => {
                        return Err(Failure::Exit(NeedsAttention(why).into()));
                    }
                }
            }
            batch.read(place, &self.schemas.decoder);
            rejected |= batch.records()[place].event.is_err();
            from = place;
        }
        Ok(rejected)
    }
}

impl WriteHooks for Source<'_> {
    const SPLIT: Split = Split::Halves;
    const HAS_LETTERS: bool = true;

    fn is_counted(_: &Reject) -> bool {
        true
    }

    fn refusal(place: &str, error: &str) -> String {
        format!("{place}: {error}")
    }

    async fn write_letters(
        &mut self,
        records: &[Record],
        parts: &[Part],
        positions: &Positions,
    ) -> Result<(), Failure> {
        let refused: Vec<Refused<'_>> = records.iter().filter_map(refused).collect();
        if refused.is_empty() {
            return Ok(());
        }
        self.commits.until_answered().await?;
        // The stored next offset of each partition with a reject. If nothing is stored yet, it is the first offset of
        // the batch.
        let rejected: BTreeSet<i32> = refused.iter().map(|event| event.partition).collect();
        let mut stored = BTreeMap::new();
        for record in records {
            if rejected.contains(&record.partition) {
                stored
                    .entry(record.partition)
                    .or_insert(record.anchor.offset);
            }
        }
        for (partition, first) in &mut stored {
            let of_parts = parts.iter();
            let of_parts = of_parts.map(|part| positions.get(&(*part, *partition)));
            let next = of_parts.map(|next| next.map_or(*first, |next| *next)).min();
            *first = next.unwrap_or(*first);
        }
        let written = self
            .letters
            .write(self.subscription, &self.lookup, &refused, &stored)
            .await;
        written.map_err(|failure| match failure {
            Failure::Retry(what) => Failure::Retry(format!(
                "the dead letters of {} to be written to {}: {what}",
                self.config.events_topic, self.config.dead_letters_topic
            )),
            exit => exit,
        })
    }

    /// Reads ahead, at most another full batch.
    async fn during<T>(&mut self, batch: &Batch, write: impl Future<Output = T>) -> T {
        let mut next_update = Instant::now() + IDLE_CHECK_INTERVAL;
        tokio::pin!(write);
        loop {
            let reads_on = self.interruption.is_none() && !self.config.is_full(&self.ahead);
            tokio::select! {
                biased;
                written = &mut write => return written,
                next = self.subscription.next(), if reads_on => match next {
                    Ok(Next::Record(record)) => {
                        self.ahead.push(Record::read(&self.schemas.decoder, &record));
                    }
                    other => self.interruption = Some(other),
                },
                () = sleep_until(next_update) => {
                    next_update = Instant::now() + IDLE_CHECK_INTERVAL;
                    self.subscription.set_unfinished(unfinished([batch, &self.ahead]));
                }
            }
        }
    }
}

/// The reject of a record, if it is one.
fn refused(record: &Record) -> Option<Refused<'_>> {
    Some(Refused {
        partition: record.partition,
        offset: record.anchor.offset,
        bytes: record.bytes_in_topic,
        reject: record.event.as_ref().err()?,
    })
}

/// The first unstored record of each partition in these batches.
pub(super) fn unfinished(batches: [&Batch; 2]) -> BTreeMap<i32, i64> {
    let mut first = BTreeMap::new();
    for record in batches.iter().flat_map(|batch| batch.records()) {
        first
            .entry(record.partition)
            .or_insert(record.anchor.offset);
    }
    first
}
