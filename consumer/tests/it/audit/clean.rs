//! An audit of equal tables reports no findings, and a digest that anyone can check.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{EVENTS, stored, varied};
use crate::strategies;
use crate::support::{BAD, Kind, Pipeline, on_every_database};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::json;
use service::testing::add_partitions;
use sha2::{Digest, Sha256};

on_every_database!(
    a_topic_with_all_that_topics_have_audits_clean,
    a_range_is_audited_by_itself_and_gives_the_same_digest_again,
    #[ignore = "heavy"]
    an_audit_beside_a_load_whose_consumers_are_killed_is_clean,
    parts_that_are_stored_by_themselves_are_audited_as_far_as_they_are,
);

/// A transactional producer on the events topic.
fn transactional(pipeline: &Pipeline, compression: &str) -> BaseProducer {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set(
            "transactional.id",
            format!("{}-{compression}", pipeline.events),
        )
        .set("compression.type", compression)
        .create()
        .unwrap();
    producer.init_transactions(Duration::from_secs(30)).unwrap();
    producer
}

/// A single aborted record whose marker is far behind, and many at once.
#[tokio::test(flavor = "multi_thread")]
async fn aborted_records_among_thousands_are_counted() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    let value = schemas::encode_event(&sample).unwrap();
    let aborts = |compression, partition, count, meanwhile: &dyn Fn()| {
        let producer = transactional(&pipeline, compression);
        producer.begin_transaction().unwrap();
        for _ in 0..count {
            let record = BaseRecord::<str, [u8]>::to(&pipeline.events).payload(&value);
            let record = record.key("k").partition(partition);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(Duration::from_secs(30)).unwrap();
        meanwhile();
        producer.abort_transaction(Duration::from_secs(30)).unwrap();
    };
    let fill = || pipeline.fill_numbered(&sample, 5_000, 0);
    fill();
    aborts("none", 0, 1, &fill);
    aborts("lz4", 1, 70, &|| {});
    fill();
    let consumer = pipeline.consumer(&[]);
    let stored = "SELECT count(*) FROM task_progress";
    pipeline.until_count(stored, 15_000).await;
    consumer.stop().await;
    let audited = pipeline.audit(&[]);
    audited.assert_equal();
    let of_partitions = |what: &str| {
        let partitions = audited.report["partitions"].as_array().unwrap().iter();
        Vec::from_iter(partitions.map(|partition| partition[what].as_u64().unwrap()))
    };
    assert_eq!(of_partitions("events"), [7_500, 7_500]);
    assert_eq!(of_partitions("aborted"), [1, 70]);
    assert_eq!(of_partitions("markers"), [1, 1]);
}

async fn a_topic_with_all_that_topics_have_audits_clean(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    let consumer = pipeline.consumer(&["-X", "topic.metadata.refresh.interval.ms=1000"]);
    let mut sent: BTreeMap<i32, u64> = BTreeMap::new();
    let (mut aborted, mut markers, mut next) = (0, 0, 0);
    for (turn, compression) in ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate() {
        let producer = transactional(&pipeline, compression);
        for commits in [true, false, true] {
            producer.begin_transaction().unwrap();
            for _ in 0..30 {
                let partition = next % 2;
                let value = match next % 29 {
                    28 => BAD.to_vec(),
                    _ => schemas::encode_event(&varied(&sample, next as usize)).unwrap(),
                };
                next += 1;
                let record = BaseRecord::<str, [u8]>::to(&pipeline.events)
                    .key("k")
                    .payload(&value);
                producer
                    .send(record.partition(partition))
                    .map_err(|(error, _)| error)
                    .unwrap();
                match commits {
                    true => *sent.entry(partition).or_default() += 1,
                    false => aborted += 1,
                }
            }
            markers += 2;
            match commits {
                true => producer
                    .commit_transaction(Duration::from_secs(30))
                    .unwrap(),
                false => {
                    producer.flush(Duration::from_secs(30)).unwrap();
                    producer.abort_transaction(Duration::from_secs(30)).unwrap();
                }
            }
        }
        if turn == 2 {
            // Behind the committed records, in its own partition.
            add_partitions(&pipeline.bootstrap, &pipeline.events, 3).await;
            let value = schemas::encode_event(&sample).unwrap();
            pipeline.send(&pipeline.events, &[("late", value, Some(2))]);
            *sent.entry(2).or_default() += 1;
        }
    }
    let events: u64 = sent.values().sum();
    let bad: usize = pipeline.bad().len();
    pipeline
        .until_count(
            "SELECT count(*) FROM task_progress",
            (events - bad as u64) as i64,
        )
        .await;
    let stored = pipeline.bad();
    service::testing::until(
        "letters are written",
        Duration::from_secs(120),
        async || (pipeline.read_letters().len() == stored.len()).then_some(()),
    )
    .await;
    consumer.stop().await;

    let audited = pipeline.audit(&[]);
    audited.assert_equal();
    assert_eq!(audited.total("events"), events);
    assert_eq!(audited.total("unreadable"), bad as u64);
    assert_eq!(
        audited.total("unreadable_without_letter"),
        0,
        "{:#}",
        audited.report
    );
    let sum = |what: &str| -> u64 {
        let partitions = audited.report["partitions"].as_array().unwrap();
        partitions
            .iter()
            .map(|partition| partition[what].as_u64().unwrap())
            .sum()
    };
    // Records after the last stored one are not audited.
    assert_eq!(sum("aborted"), aborted);
    assert!(
        (markers - 2..=markers).contains(&sum("markers")),
        "{}",
        sum("markers")
    );

    // Retention deletes the first records: only their rows become unprovable.
    let count =
        "SELECT count(*) FROM task_progress WHERE event_partition = 0 AND event_offset < 40";
    let before = pipeline.count(count).await as u64;
    assert!(before > 0);
    delete_before(&pipeline, 0, 40).await;
    let audited = pipeline.audit(&[]);
    assert_eq!(
        (audited.code, &audited.report["verdict"]),
        (2, &json!("unproven"))
    );
    assert!(audited.log.contains("--from earliest"), "{}", audited.log);
    let audited = pipeline.audit(&["--from", "earliest"]);
    audited.assert_equal();
    let audited = pipeline.audit(&[]);
    let of_first = &audited.report["partitions"][0];
    assert_eq!(
        (&of_first["log_start"], &of_first["from"]),
        (&json!(40), &json!(40))
    );
    assert_eq!(
        of_first["tables"]["task_progress"]["unprovable"],
        json!(before)
    );
    let asked = pipeline.audit(&["--from", "offset:0=39,1=0"]);
    assert_eq!(asked.code, 2);
    assert!(
        asked.log.contains("39") && asked.log.contains("40"),
        "{}",
        asked.log
    );
}

async fn delete_before(pipeline: &Pipeline, partition: i32, offset: i64) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .create()
        .unwrap();
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&pipeline.events, partition, Offset::Offset(offset))
        .unwrap();
    let deleted = admin.delete_records(&before, &AdminOptions::new()).await;
    for deleted in deleted.unwrap().elements() {
        deleted.error().unwrap();
    }
}

async fn a_range_is_audited_by_itself_and_gives_the_same_digest_again(kind: Kind) {
    let Some(pipeline) = stored(kind).await else {
        return;
    };
    let range = [
        "--from",
        "offset:0=50,1=60",
        "--to",
        "offset:0=150,1=61,2=5",
    ];
    let first = pipeline.audit(&range);
    first.assert_equal();
    assert_eq!(first.total("events"), 101);
    assert_eq!(
        pipeline.audit(&range).report["digest"],
        first.report["digest"]
    );
    let other = pipeline.audit(&["--from", "offset:0=50,1=60", "--to", "offset:0=149,1=61"]);
    assert_ne!(
        other.assert_equal().report["digest"],
        first.report["digest"]
    );
    // The times of a task whose newest report is in the range come from its whole history.
    let end = ["--from", "offset:0=150"];
    let contents = pipeline.contents().await;
    let of_range = "event_partition = 0 AND event_offset >= 150";
    let tasks = format!("SELECT count(*) FROM task WHERE {of_range}");
    let tasks = pipeline.count(&tasks).await as u64;
    assert!(tasks > 0);
    let microsecond = match kind {
        Kind::Sqlite | Kind::Mariadb => "1",
        Kind::Postgres => "interval '1 microsecond'",
    };
    for (column, value) in [
        (
            "first_reported_at",
            format!("first_reported_at + {microsecond}"),
        ),
        (
            "first_reported_at",
            format!("first_reported_at - {microsecond}"),
        ),
        (
            "ended_at",
            format!("coalesce(ended_at, reported_at) - {microsecond}"),
        ),
    ] {
        pipeline
            .execute(&format!(
                "UPDATE task SET {column} = {value} WHERE {of_range}"
            ))
            .await;
        let audited = pipeline.audit(&end);
        assert_eq!(audited.assert_code(1).total("differing"), tasks, "{value}");
        let found = audited.findings();
        assert!(
            found
                .iter()
                .all(|(table, .., columns)| table == "task" && columns == &[column]),
            "{found:?}"
        );
        pipeline.audit(&[&end[..], &["--repair"]].concat());
        assert_eq!(pipeline.contents().await, contents, "{value}");
    }
    // Faults outside the range are ignored, faults inside are found.
    pipeline
        .execute("DELETE FROM task_metrics WHERE event_partition = 0 AND event_offset IN (49, 150)")
        .await;
    pipeline.audit(&range).assert_equal();
    pipeline
        .execute("DELETE FROM task_metrics WHERE event_partition = 0 AND event_offset IN (50, 149)")
        .await;
    let found = pipeline.audit(&range).findings();
    let missing = |offset| {
        (
            "task_metrics".to_owned(),
            "missing".to_owned(),
            0,
            offset,
            Vec::new(),
        )
    };
    assert_eq!(found, [missing(50), missing(149)]);
    // By time: all events are from the last hour.
    assert_eq!(pipeline.audit(&["--from", "-1h"]).total("missing"), 4);
    let nothing = pipeline.audit(&["--to", "-1h"]);
    assert_eq!((nothing.code, nothing.total("events")), (2, 0));
    assert!(nothing.log.contains("no event"), "{}", nothing.log);
}

async fn an_audit_beside_a_load_whose_consumers_are_killed_is_clean(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let start = || pipeline.program("consumer", &["--instance-id", "c", "--max-events", "50"]);
    let done = AtomicBool::new(false);
    // The load continues during the audits, which block.
    let (sent, audited) = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut sent = 0;
                while !done.load(Ordering::Relaxed) {
                    pipeline.fill(200, |i| {
                        schemas::encode_event(&varied(&sample, sent + i)).unwrap()
                    });
                    sent += 200;
                    std::thread::sleep(Duration::from_millis(50)); // the rate of the load
                }
                sent
            });
            let mut audited = Vec::new();
            let runtime = tokio::runtime::Handle::current();
            let rows = "SELECT count(*) FROM task_progress";
            for _kill in 0..6 {
                let stored = runtime.block_on(pipeline.count(rows));
                let consumer = start();
                runtime.block_on(pipeline.until_count(rows, stored + 100));
                audited.push(pipeline.audit(&[]));
                drop(consumer); // SIGKILL
                audited.push(pipeline.audit(&[]));
            }
            done.store(true, Ordering::Relaxed);
            (load.join().unwrap(), audited)
        })
    });
    for audited in &audited {
        audited.assert_equal();
    }
    // The load may be far ahead, and small transactions are slow.
    let consumer = pipeline.program("last", &["--instance-id", "c"]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    consumer.stop().await;
    assert_eq!(
        pipeline.audit(&[]).assert_equal().total("events"),
        sent as u64
    );
}

async fn parts_that_are_stored_by_themselves_are_audited_as_far_as_they_are(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    let send = |from: usize| {
        pipeline.fill(100, |i| {
            schemas::encode_event(&varied(&sample, from + i)).unwrap()
        });
    };
    let store = async |part: &'static str, count: i64| {
        let consumer = pipeline.consumer(&["--part", part]);
        pipeline.until_count(&Pipeline::stored(part), count).await;
        consumer.stop().await;
    };
    send(0);
    store("metrics", 100).await;
    let audited = pipeline.audit(&[]);
    audited.assert_equal();
    assert_eq!(
        audited.total("rows"),
        100,
        "metrics only: {:#}",
        audited.report
    );
    store("progress", 100).await;
    send(100);
    store("metrics", 200).await;
    // Tasks are as new as the metrics, 100 reports ahead of their history.
    pipeline.audit(&[]).assert_equal();
    store("progress", 200).await;
    store("resource", 200).await;
    let all = pipeline.audit(&[]);
    all.assert_equal();
    assert_eq!(all.total("events"), 200);
    pipeline
        .execute("DELETE FROM task_metrics WHERE event_partition = 1 AND event_offset = 99")
        .await;
    assert_eq!(
        pipeline.audit(&[]).findings(),
        [(
            "task_metrics".to_owned(),
            "missing".to_owned(),
            1,
            99,
            Vec::new()
        )]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn anyone_can_check_a_digest_with_psql_and_sqlite_gives_the_same() {
    let Some(pipeline) = stored(Kind::Postgres).await else {
        return;
    };
    let audited = pipeline.audit(&[]);
    audited.assert_equal();
    let select = "SELECT h.event_partition, h.event_offset, t.exec_id, h.application_id, h.reported_at, h.memory_bytes, \
         h.cores, h.instances, h.queue, h.status FROM task_resource h JOIN task t USING (task_id) \
         WHERE h.event_partition = 1 ORDER BY h.event_offset, h.application_id COLLATE \"C\"";
    let output = Command::new("psql")
        .args([&pipeline.database_url, "-c"])
        .arg(format!("COPY ({select}) TO STDOUT (FORMAT binary)"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let sha256: String = Sha256::digest(&output.stdout)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let actual = &audited.report["partitions"][1]["tables"]["task_resource"];
    assert_eq!(actual["sha256"], json!(sha256));

    // The same events in the other database give the same digest.
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("other.db").display());
    let other = pipeline.program_on(
        &url,
        "other",
        &["--group", &format!("{}-other", pipeline.events)],
    );
    service::testing::until(
        "all is stored there too",
        Duration::from_secs(120),
        async || {
            let audited = pipeline.audit_with(&url, &[]);
            (audited.code == 0 && audited.total("events") == EVENTS as u64).then_some(())
        },
    )
    .await;
    other.stop().await;
    assert_eq!(
        pipeline.audit_with(&url, &[]).report["digest"],
        audited.report["digest"]
    );
}
