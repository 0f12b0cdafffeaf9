//! A dead letter topic, read without a consumer group.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rdkafka::message::BorrowedMessage;
use service::output;
use service::range::{End, Ranges, Reader};
use service::words::counted;
use tokio_util::sync::CancellationToken;

/// Records between two lines about the progress.
const PROGRESS_EVERY: u64 = 10_000;

/// A dead letter topic and what reads it.
pub(super) struct DeadLetterTopic<'a> {
    pub(super) name: String,
    pub(super) partitions: i32,
    pub(super) reader: Reader,
    pub(super) stop: &'a CancellationToken,
}

impl DeadLetterTopic<'_> {
    /// The offset of each partition from which letters written at `since` or later stand.
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

    /// What is to be read from `next` on, which moves to the end.
    pub(super) fn ranges(&self, next: &mut BTreeMap<i32, i64>, end: End) -> anyhow::Result<Ranges> {
        let mut ranges = Ranges::new();
        for (partition, next) in next {
            let log = self.reader.bounds(&self.name, *partition, end)?;
            ranges.insert(*partition, (*next).max(log.start)..log.end);
            *next = (*next).max(log.end);
        }
        Ok(ranges)
    }

    /// Reads, and prints how far it is.
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

    /// By partition, the first offset behind the end that a committed reader sees, where a transaction is
    /// still open.
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
