//! Upper bound of the router's speed: copies the same records from topic to topic in Kafka transactions with
//! their consumed offsets, without parsing them. Has the router's options and settings, except for its memory
//! limits: it fetches with librdkafka's defaults. Ends when the source topic is copied.
#![expect(clippy::print_stdout, reason = "deploy/bench reads it")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use router::BACKLOG_INTERVAL;
use service::producer::PolledProducer;
use service::transaction::{DEFAULTS, FIXED};

/// The settings of `service::subscription`, without its limits on a fetch.
const READING: &[(&str, &str)] = &[
    ("isolation.level", "read_committed"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "earliest"),
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("check.crcs", "true"),
    ("fetch.queue.backoff.ms", "2"),
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "16384"),
];

const WAIT: Duration = Duration::from_secs(30);

/// Copies a topic, in transactions
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    router: router::Config,
}

fn main() -> anyhow::Result<()> {
    let config = Cli::parse().router;
    let consumer: BaseConsumer = config
        .kafka
        .client_config(READING, &[])?
        .set("group.id", &config.group)
        .create()?;
    let producer: PolledProducer<DefaultProducerContext> = config
        .kafka
        .client_config(DEFAULTS, FIXED)?
        .set("transactional.id", &config.group)
        .create()?;
    producer.init_transactions(WAIT)?;
    let count = records_of(&consumer, &config.source_topic)?;
    consumer.subscribe(&[&config.source_topic])?;
    let mut copied = 0;
    while copied < count {
        producer.begin_transaction()?;
        copied += copy_for_one_transaction(&config, &consumer, &producer, count - copied)?;
    }
    println!("copied {copied} records");
    Ok(())
}

/// Number of records in a topic that was written without transactions.
fn records_of(consumer: &BaseConsumer<DefaultConsumerContext>, topic: &str) -> anyhow::Result<i64> {
    let metadata = consumer.fetch_metadata(Some(topic), WAIT)?;
    let topic_metadata = metadata.topics().first().context("no such topic")?;
    let mut records = 0;
    for partition in topic_metadata.partitions() {
        let (low, high) = consumer.fetch_watermarks(topic, partition.id(), WAIT)?;
        records += high - low;
    }
    Ok(records)
}

fn copy_for_one_transaction(
    config: &router::Config,
    consumer: &BaseConsumer,
    producer: &PolledProducer<DefaultProducerContext>,
    left: i64,
) -> anyhow::Result<i64> {
    let most = left.min(config.max_records.into());
    let (mut records, mut next, mut deadline) = (0, BTreeMap::new(), Instant::now() + WAIT);
    while records < most {
        let wait = deadline.saturating_duration_since(Instant::now());
        let Some(read) = consumer.poll(wait) else {
            // Nothing, or a rebalance.
            match Instant::now() < deadline {
                true => continue,
                false => break,
            }
        };
        let read = read?;
        if records == 0 {
            deadline = Instant::now() + BACKLOG_INTERVAL;
        }
        let mut copy = BaseRecord::<[u8], [u8]>::to(&config.events_topic);
        copy.key = read.key();
        copy.payload = read.payload();
        while let Err((error, unsent)) = producer.send(copy) {
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => copy = unsent,
                error => return Err(error.into()),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        next.insert(read.partition(), read.offset() + 1);
        records += 1;
    }
    if records == 0 {
        bail!("waited {WAIT:?} for a record");
    }
    producer.flush_now(WAIT);
    let mut offsets = TopicPartitionList::new();
    for (partition, offset) in next {
        offsets.add_partition_offset(&config.source_topic, partition, Offset::Offset(offset))?;
    }
    let group = consumer.group_metadata().context("no group metadata")?;
    producer.send_offsets_to_transaction(&offsets, &group, WAIT)?;
    producer.commit_transaction(WAIT)?;
    Ok(records)
}
