//! Upper bound of an audit's speed: reads a topic's committed records once and discards them. Prints their
//! number, the bytes of their values, and the first and last timestamp in ms.
#![expect(clippy::print_stdout, reason = "deploy/bench reads it")]

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::kafka::KafkaOptions;

const SETTINGS: &[(&str, &str)] = &[
    ("group.id", "none: partitions are assigned by hand"),
    ("isolation.level", "read_committed"),
    ("enable.auto.commit", "false"),
    ("enable.partition.eof", "true"),
    ("check.crcs", "true"),
    ("fetch.queue.backoff.ms", "2"),
];

const WAIT: Duration = Duration::from_secs(30);

/// Reads a topic to its end
#[derive(Parser)]
struct Cli {
    /// Topic
    topic: String,
    #[command(flatten)]
    kafka: KafkaOptions,
}

fn main() -> anyhow::Result<()> {
    let Cli { topic, kafka } = Cli::parse();
    let consumer: BaseConsumer = kafka.client_config(SETTINGS, &[])?.create()?;
    let metadata = consumer.fetch_metadata(Some(&topic), WAIT)?;
    let partitions = metadata.topics().first().context("no such topic")?;
    let mut all = TopicPartitionList::new();
    for partition in partitions.partitions() {
        all.add_partition_offset(&topic, partition.id(), Offset::Beginning)?;
    }
    consumer.assign(&all)?;
    let (mut records, mut bytes, mut first, mut last) = (0_u64, 0, i64::MAX, i64::MIN);
    let mut unread = all.count();
    while unread > 0 {
        match consumer.poll(WAIT) {
            Some(Ok(record)) => {
                let timestamp = record.timestamp().to_millis().unwrap_or_default();
                (first, last) = (first.min(timestamp), last.max(timestamp));
                bytes += record.payload_len();
                records += 1;
            }
            Some(Err(KafkaError::PartitionEOF(_))) => unread -= 1,
            Some(Err(error)) => return Err(error.into()),
            None => bail!("waited {WAIT:?} for a record"),
        }
    }
    println!(
        r#"{{"records": {records}, "bytes": {bytes}, "first_ms": {first}, "last_ms": {last}}}"#
    );
    Ok(())
}
