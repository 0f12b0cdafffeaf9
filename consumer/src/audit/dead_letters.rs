//! Events that have dead letters instead of rows.

use std::collections::{BTreeMap, BTreeSet};

use rdkafka::message::{Headers, Message};
use schemas::dead_letter;
use service::kafka::Cluster;
use service::range::{End, Ranges};
use tokio::task::block_in_place;

use super::fingerprint::Marks;
use super::spans::{Spans, hull};
use super::topic::{Isolation, Topic, each_record};

/// Marks the events for which a consumer wrote dead letters. A letter without a topic id counts only if the record at
/// its offset has the letter's timestamp, because the topic may have been recreated since.
///
/// # Errors
/// If either topic cannot be read.
pub(super) async fn dead_lettered(
    topic: &Topic<'_>,
    cluster: &Cluster,
    letters_topic: &str,
    spans: &Spans,
) -> anyhow::Result<Marks> {
    let mut dead_lettered = Marks::new(&hull(spans));
    let count = cluster.require_topic(letters_topic, "Read", None).await?;
    let mut without_id: BTreeMap<(i32, i64), BTreeSet<Option<i64>>> = BTreeMap::new();
    block_in_place(|| {
        let mut ranges = Ranges::new();
        for partition in 0..i32::try_from(count)? {
            ranges.insert(
                partition,
                topic.reader.bounds(letters_topic, partition, End::Stable)?,
            );
        }
        topic
            .reader
            .scan(letters_topic, &ranges, topic.stop, |letter| {
                let header = |name: &str| {
                    let headers = letter.headers()?;
                    let found = headers.iter().find(|header| header.key == name)?;
                    std::str::from_utf8(found.value?).ok()
                };
                if header(dead_letter::CONNECTOR_NAME) == Some("consumer")
                    && header(dead_letter::TOPIC) == Some(topic.name)
                    && let Some(Ok(partition)) = header(dead_letter::PARTITION).map(str::parse)
                    && let Some(Ok(offset)) = header(dead_letter::OFFSET).map(str::parse)
                {
                    match (header(dead_letter::TOPIC_ID), &topic.id) {
                        (Some(of), Some(id)) if of == id => dead_lettered.set(partition, offset),
                        (Some(_), Some(_)) => {}
                        _ if dead_lettered.covers(partition, offset) => {
                            let time = header(dead_letter::TIMESTAMP_MS);
                            let time = time.and_then(|time| time.parse().ok());
                            without_id
                                .entry((partition, offset))
                                .or_default()
                                .insert(time);
                        }
                        _ => {}
                    }
                }
                Ok(())
            })
    })?;
    let places: Vec<(i32, i64)> = without_id.keys().copied().collect();
    each_record(topic, places, Isolation::Committed, |record| {
        let (partition, offset) = (record.partition(), record.offset());
        let times = without_id.get(&(partition, offset));
        if times.is_some_and(|times| times.contains(&record.timestamp().to_millis())) {
            dead_lettered.set(partition, offset);
        }
        Ok(())
    })?;
    Ok(dead_lettered)
}
