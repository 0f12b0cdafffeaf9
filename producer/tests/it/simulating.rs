//! `producer simulate`: what it says it sent is in the topic, and a seed gives the same records.

use std::path::Path;
use std::time::Duration;

use crate::support::{Reports, number_before, text};
use rdkafka::message::Message;
use service::testing::{ANY_PORT, Process, kafka, make_topic_as_hinted, read_all, unique, until};

const SEEDED: &[&str] = &[
    "simulate",
    "--tasks",
    "20",
    "--rate",
    "0",
    "--count",
    "3000",
    "--seed",
    "7",
    "--start-at",
    "2026-11-25T14:00:00Z",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_same_seed_and_start_put_the_same_bytes_into_the_topic() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let Some(reports) = Reports::make("simulating").await else {
            return;
        };
        let output = reports.run(SEEDED, b"");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let tasks = reports.by_task();
        let said = format!("sent 3000 reports of {} tasks\n", tasks.len());
        assert_eq!(text(&output.stdout), said);
        let mut records: Vec<_> = read_all(&reports.bootstrap, &reports.topic)
            .iter()
            .map(|record| [record.key(), record.payload()].map(|part| part.map(<[u8]>::to_vec)))
            .collect();
        records.sort();
        runs.push(records);
    }
    assert!(runs[0] == runs[1]);
}

/// As org.apache.kafka.common.utils.Utils has it.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mix = |k: u32| {
        let k = k.wrapping_mul(M);
        (k ^ (k >> 24)).wrapping_mul(M)
    };
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let chunks = data.chunks_exact(4);
    let rest = chunks.remainder();
    for chunk in chunks {
        let k = u32::from_le_bytes(chunk.try_into().unwrap());
        hash = hash.wrapping_mul(M) ^ mix(k);
    }
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[test]
fn the_hash_is_kafkas() {
    // From UtilsTest.testMurmur2.
    for (text, hash) in [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
    ] {
        assert_eq!(murmur2(text.as_bytes()) as i32, hash);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_lies_in_the_partition_where_kafkas_java_client_puts_it_and_in_order() {
    let Some(reports) = Reports::make("simulating").await else {
        return;
    };
    reports.run(SEEDED, b"");
    for record in read_all(&reports.bootstrap, &reports.topic) {
        let partition = (murmur2(record.key().unwrap()) & 0x7fff_ffff) % 4;
        assert_eq!(record.partition(), partition as i32);
    }
    for received in reports.by_task().values() {
        for (i, report) in received.iter().enumerate() {
            assert_eq!(report.sequence, i as i64);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_by_a_signal_it_delivers_what_it_made_and_says_how_much() {
    let Some(reports) = Reports::make("simulating").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let arguments = reports.arguments(&["simulate", "--tasks", "10", "--rate", "500"]);
    let program = Path::new(env!("CARGO_BIN_EXE_producer"));
    let mut process = Process::start(folder.path(), "producer", program, &arguments);
    until(
        "reports are in the topic",
        Duration::from_secs(120),
        async || (!reports.by_task().is_empty()).then_some(()),
    )
    .await;
    process.signal("TERM");
    assert!(process.ended().await.success(), "{}", process.log());
    let log = process.log();
    let said = log.lines().find(|line| line.starts_with("sent ")).unwrap();
    let tasks = reports.by_task();
    assert_eq!(number_before(said, "tasks"), tasks.len());
    assert_eq!(
        number_before(said, "reports"),
        tasks.values().map(Vec::len).sum::<usize>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_as_hinted_takes_reports_and_each_metric_says_what_it_is() {
    let Some(bootstrap) = kafka() else { return };
    let reports = Reports {
        bootstrap,
        topic: unique("absent"),
    };
    let absent = reports.run(&["simulate", "--count", "1"], b"");
    let log = text(&absent.stderr);
    assert_eq!(absent.status.code(), Some(78), "{log}");
    if !make_topic_as_hinted(&log) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let arguments = reports.arguments(&["simulate", "--rate", "50", "--metrics-listen", ANY_PORT]);
    let program = Path::new(env!("CARGO_BIN_EXE_producer"));
    let process = Process::start(folder.path(), "producer", program, &arguments);
    let sent = "messaging_client_sent_messages_total{";
    let page = until(
        "it has sent reports",
        Duration::from_secs(120),
        async || {
            let (_, page) = process.get("/metrics")?;
            let throttled = page.contains("taskrunning_throttled_seconds{client=\"producer\"} 0");
            (page.contains(sent) && throttled).then_some(page)
        },
    )
    .await;
    let of = |what: &str| -> Vec<String> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(what));
        lines
            .map(|line| line.split(' ').next().unwrap().to_owned())
            .collect()
    };
    assert!(!of("# TYPE ").is_empty());
    assert_eq!(of("# HELP "), of("# TYPE "), "{page}");
    assert!(process.stop().await.success());
    // Those of other adapters.
    let listed = include_str!("../../../docs/src/operating/metrics.md");
    let rows = listed
        .lines()
        .filter(|row| row.contains(" producer spark |"));
    let metrics = rows.filter_map(|row| row.strip_prefix("| `")?.split('`').next());
    let missing: Vec<_> = metrics
        .filter(|metric| metric.starts_with("taskrunning_"))
        .filter(|metric| !producer::HELP.iter().any(|(known, _)| known == metric))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
