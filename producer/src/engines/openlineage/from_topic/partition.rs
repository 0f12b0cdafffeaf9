//! A partition that is read, and what is committed of it.

use std::collections::BTreeMap;

use anyhow::Context;
use jiff::Timestamp;
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::topic_id::TopicId;

use crate::engines::openlineage::event::{Event, Refused};
use crate::engines::openlineage::runs::{Runs, Taken};

/// Prefixes of the metadata of a committed offset.
const TOPIC_ID: &str = "topic-id=";
const NEWEST_MS: &str = "newest-ms=";

/// A partition that is read.
pub(super) struct Partition {
    pub(super) runs: Runs,
    /// Events before this offset were reported before.
    pub(super) report_from: i64,
    /// The latest Kafka timestamp of an event, milliseconds since 1970.
    pub(super) newest_ms: Option<i64>,
}

/// The metadata of a committed offset: the id of its topic, and the latest timestamp of the events before it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Noted {
    pub(super) topic_id: Option<TopicId>,
    pub(super) newest_ms: Option<i64>,
}

impl Noted {
    pub(super) fn metadata(&self) -> String {
        let id = self.topic_id.map(|id| format!("{TOPIC_ID}{id}"));
        let newest = self.newest_ms.map(|ms| format!("{NEWEST_MS}{ms}"));
        Vec::from_iter(id.into_iter().chain(newest)).join(" ")
    }

    pub(super) fn of(metadata: &str) -> Self {
        let find = |prefix: &str| {
            let mut words = metadata.split(' ');
            words.find_map(|word| word.strip_prefix(prefix))
        };
        Self {
            topic_id: find(TOPIC_ID).and_then(|id| id.parse().ok()),
            newest_ms: find(NEWEST_MS).and_then(|ms| ms.parse().ok()),
        }
    }
}

impl Partition {
    /// The report of an event; see [`Runs::take`].
    pub(super) fn take(&mut self, record: &BorrowedMessage<'_>) -> Result<Taken, Refused> {
        let written_ms = record.timestamp().to_millis();
        // Of a clock that is ahead, the time would hide that of all later events.
        let now_ms = Timestamp::now().as_millisecond();
        self.newest_ms = self.newest_ms.max(written_ms.map(|ms| ms.min(now_ms)));
        let received = written_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let Some(event) = record.payload() else {
            return Err(Refused {
                kind: "NoValue",
                reason: "the record has no value".to_owned(),
            });
        };
        self.runs.take(
            Event::parse(event)?,
            received.unwrap_or_else(Timestamp::now),
        )
    }
}

/// The offsets to commit, with what a restart needs to know.
pub(super) fn offset_list(
    topic: &str,
    topic_id: Option<TopicId>,
    next: &BTreeMap<i32, i64>,
    partitions: &BTreeMap<i32, Partition>,
) -> anyhow::Result<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(next.len());
    for (partition, offset) in next {
        list.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
        let mut added = list
            .find_partition(topic, *partition)
            .context("a partition that was just added")?;
        let newest_ms = partitions.get(partition).and_then(|known| known.newest_ms);
        let noted = Noted {
            topic_id,
            newest_ms,
        };
        added.set_metadata(noted.metadata());
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_of_an_offset_is_read_as_it_was_written_and_that_of_others_says_nothing() {
        let id: TopicId = "ASNFZ4mrze8AESIzRFVmdw".parse().unwrap();
        for noted in [
            Noted {
                topic_id: Some(id),
                newest_ms: Some(1_700_000_000_000),
            },
            Noted {
                topic_id: None,
                newest_ms: Some(-1),
            },
            Noted::default(),
        ] {
            assert_eq!(Noted::of(&noted.metadata()), noted);
        }
        for other in ["", "NONE", "topic-id=", "newest-ms=yesterday"] {
            assert_eq!(Noted::of(other), Noted::default());
        }
    }
}
