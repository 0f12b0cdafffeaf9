//! The pipeline's progress: displayed during the run, and checked to the last record at its end.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::reader;

use crate::database::Database;
use crate::{EVENTS, ROUTER_GROUP, SOURCE};

const ASK: Duration = Duration::from_secs(5);

/// The last observation; a value stays the same while its source is unavailable.
#[derive(Clone, Copy, Default)]
pub(crate) struct Seen {
    /// Records on the source topic.
    pub(crate) sent: i64,
    /// Source records that the routers have committed.
    pub(crate) routed: i64,
    /// Events in the database.
    pub(crate) stored: i64,
}

impl Seen {
    /// Number of records that are not stored yet.
    pub(crate) fn waiting(self) -> u32 {
        u32::try_from(self.sent - self.stored).unwrap_or(0)
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sent,
            routed,
            stored,
        } = self;
        write!(f, "{sent} sent, {routed} routed, {stored} stored")
    }
}

pub(crate) struct Progress(Arc<Mutex<Seen>>);

impl Progress {
    /// Observes until dropped.
    pub(crate) fn watch(bootstrap: String, database: Arc<Database>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (kept, stored) = (Arc::downgrade(&seen), Arc::downgrade(&seen));
        std::thread::spawn(move || {
            let routers = routers(&bootstrap);
            while let Some(seen) = kept.upgrade() {
                if let Ok(offsets) = offsets(&routers, SOURCE) {
                    let mut seen = seen.lock().unwrap();
                    seen.sent = offsets.iter().map(|o| o.end).sum();
                    seen.routed = offsets.iter().map(|o| o.committed).sum();
                }
                drop(seen);
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        tokio::spawn(async move {
            while let Some(seen) = stored.upgrade() {
                let count = "SELECT count(*) FROM task_metrics";
                if let Ok(Ok(rows)) = tokio::time::timeout(ASK, database.numbers::<1>(count)).await
                {
                    seen.lock().unwrap().stored = rows[0][0];
                }
                drop(seen);
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        Self(seen)
    }

    pub(crate) fn now(&self) -> Seen {
        *self.0.lock().unwrap()
    }
}

/// Reads the routers' offsets without joining their group.
fn routers(bootstrap: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", ROUTER_GROUP)
        .set("enable.auto.commit", "false")
        .create()
        .unwrap()
}

struct Offsets {
    partition: i32,
    committed: i64,
    end: i64,
}

/// Committed offset and end of each partition.
fn offsets(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<Offsets>> {
    let mut asked = TopicPartitionList::new();
    for partition in partitions(consumer, topic)? {
        asked.add_partition(topic, partition);
    }
    let committed = consumer.committed_offsets(asked, ASK)?;
    let mut offsets = Vec::new();
    for element in committed.elements() {
        element.error()?;
        let partition = element.partition();
        offsets.push(Offsets {
            partition,
            committed: element.offset().to_raw().unwrap_or(0).max(0),
            end: consumer.fetch_watermarks(topic, partition, ASK)?.1,
        });
    }
    Ok(offsets)
}

pub(crate) fn partitions(consumer: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), ASK)?;
    let partitions = metadata.topics()[0].partitions();
    ensure!(!partitions.is_empty(), "{topic} shows no partitions");
    Ok(partitions.iter().map(|partition| partition.id()).collect())
}

/// What is not routed or stored yet, by partition. Requires that nothing is being written.
pub(crate) async fn left(bootstrap: &str, database: &Database) -> anyhow::Result<Vec<String>> {
    let mut left = Vec::new();
    for Offsets {
        partition,
        committed,
        end,
    } in tokio::task::block_in_place(|| offsets(&routers(bootstrap), SOURCE))?
    {
        if committed < end {
            left.push(format!(
                "{SOURCE} {partition}: routed up to {committed} of {end}"
            ));
        }
    }
    if !left.is_empty() {
        return Ok(left);
    }
    for part in ["progress", "resource", "metrics"] {
        let stored = stored_offsets(database, part).await?;
        left.extend(tokio::task::block_in_place(|| {
            beyond(bootstrap, part, &stored)
        })?);
    }
    Ok(left)
}

/// A part's stored offsets, by partition.
pub(crate) async fn stored_offsets(
    database: &Database,
    part: &str,
) -> anyhow::Result<Vec<[i64; 2]>> {
    let select = format!(
        "SELECT CAST(partition AS bigint), CAST(next_offset AS bigint) FROM consumed_offset \
         WHERE part = '{part}' AND topic = '{EVENTS}' ORDER BY 1"
    );
    database.numbers(&select).await
}

/// Partitions with events beyond the stored offset, or that cannot be read to their end: an open transaction hides the
/// end from committed readers.
fn beyond(bootstrap: &str, part: &str, stored: &[[i64; 2]]) -> anyhow::Result<Vec<String>> {
    let consumer = reader(bootstrap);
    let mut all: ClientConfig = ClientConfig::new();
    all.set("bootstrap.servers", bootstrap)
        .set("group.id", "none")
        .set("isolation.level", "read_uncommitted");
    let all: BaseConsumer = all.create()?;
    let mut left = Vec::new();
    let mut assignment = TopicPartitionList::new();
    let mut open = Vec::new();
    for partition in partitions(&consumer, EVENTS)? {
        let next = stored
            .iter()
            .find(|[p, _]| *p == i64::from(partition))
            .map_or(0, |[_, next]| *next);
        let (_, stable) = consumer.fetch_watermarks(EVENTS, partition, ASK)?;
        let (_, end) = all.fetch_watermarks(EVENTS, partition, ASK)?;
        if stable < end {
            left.push(format!(
                "{EVENTS} {partition}: a transaction is open at {stable} of {end}"
            ));
        } else if next < end {
            assignment.add_partition_offset(EVENTS, partition, Offset::Offset(next))?;
            open.push((partition, next, end));
        }
    }
    if !left.is_empty() || open.is_empty() {
        return Ok(left);
    }
    // Only markers may remain; the position passes them.
    consumer.assign(&assignment)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !open.is_empty() {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(record)) => {
                use rdkafka::message::Message;
                let found = open.iter().position(|(p, ..)| *p == record.partition());
                if let Some((partition, next, end)) = found.map(|i| open.remove(i)) {
                    left.push(format!(
                        "{EVENTS} {partition}: {part} stored up to {next} of {end}"
                    ));
                }
            }
            Some(Err(KafkaError::PartitionEOF(_))) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
        let position = consumer.position()?;
        open.retain(|(partition, _, end)| {
            position
                .find_partition(EVENTS, *partition)
                .and_then(|p| p.offset().to_raw())
                .is_none_or(|p| p < *end)
        });
        ensure!(
            Instant::now() < deadline,
            "{EVENTS} cannot be read to its end: {open:?}"
        );
    }
    Ok(left)
}
