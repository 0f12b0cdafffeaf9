//! Offsets are not record counts: commit markers and aborted records take offsets too. Stored, committed and displayed
//! positions are past them, and their topic is identified by its id.

mod ends;
mod recreated;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::strategies;
use crate::support::{Pipeline, Program, numbered};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::{Topic, create_topics, unique, until};

const LONG: Duration = Duration::from_secs(120);

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// A producer in an open transaction.
struct Open(BaseProducer);

impl Open {
    /// Sends events to a partition, and waits until the broker has them.
    fn send(pipeline: &Pipeline, partition: i32, events: usize) -> Self {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &pipeline.bootstrap)
            .set("transactional.id", unique("markers"))
            .create()
            .unwrap();
        producer.init_transactions(LONG).unwrap();
        producer.begin_transaction().unwrap();
        for i in 0..events {
            let event = numbered(&strategies::sample_event(), i);
            let value = schemas::encode_event(&event).unwrap();
            let record = BaseRecord::<str, [u8]>::to(&pipeline.events)
                .key("k")
                .payload(&value)
                .partition(partition);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(LONG).unwrap();
        Self(producer)
    }

    fn commit(self) {
        self.0.commit_transaction(LONG).unwrap();
    }

    fn abort(self) {
        self.0.abort_transaction(LONG).unwrap();
    }
}

fn admin(pipeline: &Pipeline) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .create()
        .unwrap()
}

async fn make_topic(pipeline: &Pipeline, partitions: i32, settings: &[(&str, &str)]) {
    let topic = Topic {
        name: &pipeline.events,
        partitions,
        settings,
    };
    create_topics(&pipeline.bootstrap, &[topic]).await;
}

async fn delete_records(pipeline: &Pipeline, partition: i32, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&pipeline.events, partition, Offset::Offset(before))
        .unwrap();
    let options = AdminOptions::new().operation_timeout(Some(LONG));
    let deleted = admin(pipeline).delete_records(&list, &options).await;
    deleted.unwrap();
}

/// The stored positions of a part, by partition.
async fn stored(pipeline: &Pipeline, part: &str) -> BTreeMap<i32, i64> {
    let number = |value: &Option<String>| value.as_deref().unwrap().parse::<i64>().unwrap();
    let select = format!(
        "SELECT CAST(partition AS text), CAST(next_offset AS text) FROM consumed_offset WHERE part = '{part}'"
    );
    let rows = pipeline.rows(&select).await;
    rows.iter()
        .map(|row| (number(&row[0]) as i32, number(&row[1])))
        .collect()
}

/// Waits until the parts are stored up to the end that a committed reader sees.
async fn until_stored(pipeline: &Pipeline, program: &mut Program, parts: &[&str]) {
    for part in parts {
        until(&format!("{part} is at its ends"), LONG, async || {
            program.process.assert_running();
            // A finished transaction's markers may be written later.
            let ends = pipeline.ends().into_iter();
            let ends: BTreeMap<i32, i64> = ends.map(|(p, (_, end))| (p, end)).collect();
            let count = "SELECT count(*) FROM consumed_offset";
            (pipeline.count(count).await > 0 && stored(pipeline, part).await == ends).then_some(())
        })
        .await;
    }
}

/// The lags in the metrics, by partition.
fn lags(pipeline: &Pipeline, program: &Program) -> BTreeMap<i32, f64> {
    let of = format!(
        "messaging_consumer_lag_messages{{messaging_destination_name=\"{}\",messaging_destination_partition_id=\"",
        pipeline.events
    );
    let (_, metrics) = program.process.get("/metrics").unwrap_or_default();
    let lags = metrics.lines().filter_map(|line| {
        let (partition, lag) = line.strip_prefix(&of)?.split_once("\"} ")?;
        Some((partition.parse().unwrap(), lag.parse().unwrap()))
    });
    lags.collect()
}
