//! Memory is bounded, however many records wait and however large they are.

use std::time::{Duration, Instant};

use crate::strategies;
use crate::support::{Kind, Pipeline, numbered, on_servers};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::MetricValue;
use service::testing::{Process, alone, program, until};

const BOUND_MIB: u64 = 256;

/// Reports in the backlog; a development build takes minutes for a million.
fn backlog() -> usize {
    let reports = std::env::var("TEST_BACKLOG_REPORTS");
    reports.map_or(50_000, |reports| reports.parse().unwrap())
}

/// Hardly compressible pseudo-random text (xorshift).
fn text(seed: usize, length: usize) -> MetricValue {
    let mut state = seed as u64 + 88_172_645_463_325_252;
    let text = (0..length).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    });
    MetricValue::String(text.collect())
}

/// An encoded report with this much text in its metrics.
fn report(i: usize, text_bytes: usize) -> Vec<u8> {
    let mut info = numbered(&strategies::sample_event(), i).info;
    info.metrics = Some([("text".to_owned(), text(i, text_bytes))].into());
    schemas::encode_info(&info).unwrap()
}

/// Puts a backlog into a topic, with timestamps of ten minutes ago.
fn put(pipeline: &Pipeline, topic: &str, values: &[Vec<u8>], count: usize) {
    let producer: ThreadedProducer<_> = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("enable.idempotence", "true")
        .set("linger.ms", "50")
        .set("batch.size", "900000")
        .set("message.max.bytes", "1100000")
        .set("queue.buffering.max.kbytes", "65536")
        .set("compression.type", "lz4")
        .create()
        .unwrap();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let timestamp = since.unwrap().as_millis() as i64 - 600_000;
    for i in 0..count {
        let key = (i % 1_000).to_string();
        let mut record = BaseRecord::<[u8], [u8]>::to(topic)
            .key(key.as_bytes())
            .payload(&values[i % values.len()][..])
            .timestamp(timestamp + i as i64 / 100)
            .partition((i % pipeline.partitions as usize) as i32);
        while let Err((error, back)) = producer.send(record) {
            let full = KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull);
            assert_eq!(error, full);
            std::thread::sleep(Duration::from_millis(5));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(120)).unwrap();
}

#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
fn assert_bounded(name: &str, process: &Process, begun: Instant) {
    let peak = process.peak_memory_mib();
    println!("{name}: at most {peak} MiB in {:.0?}", begun.elapsed());
    assert!(peak <= BOUND_MIB, "{name} held {peak} MiB");
}

/// Routes and stores a backlog of these infos; both programs stay within the bound.
async fn keep_within_the_bound(kind: Kind, infos: &[Vec<u8>], count: usize) {
    let _alone = alone();
    let Some(pipeline) = Pipeline::make(kind, 8).await else {
        return;
    };
    put(&pipeline, &pipeline.source, infos, count);
    let begun = Instant::now();
    let arguments = [
        &pipeline.router_arguments()[..],
        &["--instance-id", "router"],
    ]
    .concat();
    let path = program(env!("CARGO_BIN_EXE_consumer"), "router");
    let router = Process::start(pipeline.folder(), "router", &path, &arguments);
    // Commit markers take offsets too.
    until("all is routed", Duration::from_secs(400), async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        (pipeline.sent() >= count as i64).then_some(())
    })
    .await;
    let consumer_begun = Instant::now();
    let consumer = pipeline.program("consumer", &[]);
    let rows = "SELECT count(*) FROM task_metrics";
    until("all is stored", Duration::from_secs(500), async || {
        tokio::time::sleep(Duration::from_millis(500)).await;
        (pipeline.count(rows).await >= count as i64).then_some(())
    })
    .await;
    assert_bounded("router", &router, begun);
    assert_bounded("consumer", &consumer.process, consumer_begun);
    assert!(router.stop().await.success());
    consumer.stop().await;
    assert_eq!(pipeline.count(rows).await, count as i64);
    assert!(pipeline.read_letters().is_empty());
}

/// The whole backlog exceeds the bound.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_backlog_is_caught_up_with_within_256_mib() {
    let count = backlog();
    let text_bytes = (BOUND_MIB as usize * 1024 * 1024 / count).saturating_sub(100);
    let infos: Vec<_> = (0..1_000).map(|i| report(i, text_bytes)).collect();
    keep_within_the_bound(Kind::Sqlite, &infos, count).await;
}

on_servers!(
    #[ignore = "heavy"]
    reports_of_900_kib_are_routed_and_stored_within_256_mib,
);

async fn reports_of_900_kib_are_routed_and_stored_within_256_mib(kind: Kind) {
    let infos: Vec<_> = (0..8).map(|i| report(i, 900 << 10)).collect();
    keep_within_the_bound(kind, &infos, 300).await;
}

/// Letters are read from the topic and written in portions.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn dead_letters_of_150_events_of_a_megabyte_are_written_within_128_mib() {
    const EVENTS: usize = 150;
    const BOUND_MIB: u64 = 128;
    let _alone = alone();
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    pipeline.fill(EVENTS, |i| match text(i, 1_000_000) {
        MetricValue::String(text) => text.into_bytes(),
        _ => unreachable!("a text"),
    });
    let begun = Instant::now();
    // All of them become letters together.
    let arguments = [
        "--max-rejects-in-a-row",
        "0",
        "--max-rejects-per-1000",
        "0",
        "--commit-interval-ms",
        "5000",
    ];
    let consumer = pipeline.program("consumer", &arguments);
    pipeline.until_all_stored(Duration::from_secs(300)).await;
    let peak = consumer.process.peak_memory_mib();
    println!("at most {peak} MiB in {:.0?}", begun.elapsed());
    assert!(peak <= BOUND_MIB, "it held {peak} MiB");
    consumer.stop().await;
    assert_eq!(pipeline.read_letters().len(), EVENTS);
}
