//! A dead letter topic, read without a consumer group.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rdkafka::message::BorrowedMessage;
use service::output;
use service::range::{End, Ranges, Reader};
use service::words::counted;
use tokio_util::sync::CancellationToken;

/// Number of records between two progress messages.
const PROGRESS_EVERY: u64 = 10_000;

/// A dead letter topic and its reader.
pub(super) struct DeadLetterTopic<'a> {
    pub(super) name: String,
    pub(super) partitions: i32,
    pub(super) reader: Reader,
    pub(super) stop: &'a CancellationToken,
}

impl DeadLetterTopic<'_> {
    /// The start offset of each partition for letters written at `since` or later.
    pub(super) fn starts(&self, since: Option<Timestamp>) -> anyhow::Result<BTreeMap<i32, i64>> {
        let all = 0..self.partitions;
        match since {
            Some(since) => {
                let all: BTreeSet<i32> = all.collect();
                self.reader.since(&self.name, &all, since.as_millisecond())
            }
            None => Ok(all.map(|partition| (partition, 0)).collect()),
        }
    }

    /// The unread ranges from `next` on; moves `next` to their ends.
    pub(super) fn ranges(&self, next: &mut BTreeMap<i32, i64>, end: End) -> anyhow::Result<Ranges> {
        let mut ranges = Ranges::new();
        for (partition, next) in next {
            let log = self.reader.bounds(&self.name, *partition, end)?;
            ranges.insert(*partition, (*next).max(log.start)..log.end);
            *next = (*next).max(log.end);
        }
        Ok(ranges)
    }

    /// Reads ranges, and prints the progress.
    pub(super) fn scan(
        &self,
        ranges: &Ranges,
        mut each: impl FnMut(&BorrowedMessage<'_>),
    ) -> anyhow::Result<()> {
        let topic = &self.name;
        let mut read = 0;
        self.reader.scan(topic, ranges, self.stop, |record| {
            each(record);
            read += 1;
            if read % PROGRESS_EVERY == 0 {
                output::note(format_args!("read {} of {topic}", counted(read, "record")));
            }
            Ok(())
        })?;
        Ok(())
    }

    /// The last stable offset of each partition with an open transaction.
    pub(super) fn held_back(&self) -> anyhow::Result<BTreeMap<i32, i64>> {
        let mut held = BTreeMap::new();
        for partition in 0..self.partitions {
            let stable = self.reader.bounds(&self.name, partition, End::Stable)?.end;
            let high = self.reader.bounds(&self.name, partition, End::High)?.end;
            if high > stable {
                held.insert(partition, stable);
            }
        }
        Ok(held)
    }
}
