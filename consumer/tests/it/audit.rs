//! `consumer audit` on a real Kafka: what it finds is what is wrong, all of it and nothing else.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::strategies;
use crate::support::{Audited, BAD, Kind, Pipeline, numbered, on_both_databases};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::TaskRunningInfoEvent;
use serde_json::{Value, json};
use service::testing::add_partitions;
use sha2::{Digest, Sha256};

const EVENTS: usize = 600;

on_both_databases!(
    every_row_that_is_deleted_doubled_or_altered_is_found_precisely_and_repaired,
    a_lost_tail_a_lost_task_and_an_emptied_table_are_found_and_repaired,
    a_topic_with_all_that_topics_have_audits_clean,
    a_range_is_audited_by_itself_and_gives_the_same_digest_again,
    an_audit_beside_a_load_whose_consumers_are_killed_is_clean,
    parts_that_are_stored_by_themselves_are_audited_as_far_as_they_are,
);

impl Audited {
    /// Table, fault, place and columns of each finding.
    fn findings(&self) -> Vec<(String, String, i64, i64, Vec<String>)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let findings = self.said["findings"].as_array().unwrap();
        findings
            .iter()
            .map(|finding| {
                let columns = finding["columns"].as_array();
                (
                    text(&finding["table"]),
                    text(&finding["fault"]),
                    finding["partition"].as_i64().unwrap(),
                    finding["offset"].as_i64().unwrap(),
                    columns.map_or(Vec::new(), |columns| {
                        columns
                            .iter()
                            .map(|column| text(&column["column"]))
                            .collect()
                    }),
                )
            })
            .collect()
    }
}

impl Pipeline {
    /// An address for a row of a table `h`, as text, and the condition that names it.
    fn address(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite => "CAST(h.rowid AS text)",
            Kind::Postgres => "h.ctid::text",
        }
    }

    fn addressed(&self, address: &str) -> String {
        match self.kind {
            Kind::Sqlite => format!("rowid = {address}"),
            Kind::Postgres => format!("ctid = '{address}'::tid"),
        }
    }

    /// A row of a table, chosen at random: its address, partition and offset.
    async fn any_row(&self, table: &str, rng: &mut ChaCha8Rng) -> (String, i64, i64) {
        let select = format!(
            "SELECT {}, CAST(event_partition AS text), CAST(event_offset AS text) FROM {table} h \
             ORDER BY event_partition, event_offset",
            self.address()
        );
        let rows = self.rows(&select).await;
        let row = &rows[rng.random_range(0..rows.len())];
        let text = |i: usize| row[i].clone().unwrap();
        (text(0), text(1).parse().unwrap(), text(2).parse().unwrap())
    }
}

/// The `i`th event of a varied load.
fn varied(sample: &TaskRunningInfoEvent, i: usize) -> TaskRunningInfoEvent {
    let mut event = numbered(sample, i);
    if i.is_multiple_of(7) {
        event.info.progress = None;
    }
    if i.is_multiple_of(5) {
        event.info.resource = None;
    }
    if i.is_multiple_of(11) {
        event.info.metrics = None;
    }
    if i.is_multiple_of(3) {
        event.adjustments.clear();
    } else if i.is_multiple_of(2) {
        let fields = ["metrics.seconds", "metrics.count", "progress.progress"];
        let fields = fields.map(|field| (field.to_owned(), "-Infinity".to_owned()));
        event.not_finite.extend(fields);
    }
    if let (Some(resource), true) = (&mut event.info.resource, i.is_multiple_of(4)) {
        let first = resource.applications["app-1"].clone();
        resource.applications.insert("ÿ-app".into(), first.clone());
        resource.applications.insert("app-0".into(), first);
    }
    event
}

/// A pipeline of three partitions in which a varied load was stored.
async fn stored(kind: Kind) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, 3).await?;
    let sample = strategies::sample_event();
    pipeline.fill(EVENTS, |i| {
        schemas::encode_event(&varied(&sample, i)).unwrap()
    });
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    consumer.stop().await;
    Some(pipeline)
}

/// Something else for each column of each table, by database.
fn alterations(kind: Kind) -> Vec<(&'static str, &'static str, &'static str)> {
    let sqlite = kind == Kind::Sqlite;
    let other_task = "(SELECT min(task_id) FROM task WHERE task_id <> h.task_id)";
    let (later, texts, counts) = match sqlite {
        true => ("h.reported_at + 1", "'[\"x\"]'", "'[[7],[6],[5],[4]]'"),
        false => (
            "h.reported_at + interval '1 microsecond'",
            "ARRAY['x']",
            "ARRAY[[7], [6], [5], [4]]",
        ),
    };
    let is_final = if sqlite {
        "1 - h.is_final"
    } else {
        "NOT h.is_final"
    };
    let mut all = vec![
        ("task_progress", "sequence", "h.sequence + 1"),
        ("task_progress", "status", "'Failed'"),
        ("task_progress", "progress", "0.123"),
        ("task_progress", "job_ids", texts),
        ("task_progress", "job_tasks", counts),
        ("task_progress", "adjustments", texts),
        ("task_resource", "application_id", "'another'"),
        ("task_resource", "memory_bytes", "h.memory_bytes + 1"),
        ("task_resource", "cores", "h.cores + 1"),
        ("task_resource", "instances", "h.instances + 1"),
        ("task_resource", "queue", "h.queue || ' '"),
        ("task_resource", "status", "'another'"),
        (
            "task_metrics",
            "engine_running_tasks",
            "h.engine_running_tasks + 1",
        ),
        ("task_metrics", "metrics", "'{\"x\": 1}'"),
        ("task", "task_id", "h.task_id + 1000000"),
        ("task", "exec_id", "h.exec_id || 'x'"),
        ("task", "job_id", "'another'"),
        ("task", "engine_instance", "'another'"),
        ("task", "engine_type", "'another'"),
        ("task", "engine_user", "'another'"),
        ("task", "ticket_id", "'another'"),
        ("task", "status", "'Failed'"),
        ("task", "is_final", is_final),
        ("task", "progress", "0.123"),
        ("task", "reported_at", later),
        ("task", "sequence", "h.sequence - 1"),
        ("task", "event_partition", "(h.event_partition + 1) % 3"),
        ("task", "event_offset", "h.event_offset + 1"),
        ("consumed_offset", "next_offset", "h.next_offset - 5"),
        ("consumed_offset", "next_offset", "h.next_offset + 5"),
        ("consumed_offset", "first_offset", "h.first_offset + 7"),
        ("consumed_offset", "cluster_id", "'another'"),
        ("consumed_offset", "anchor_offset", "h.anchor_offset - 3"),
        (
            "consumed_offset",
            "anchor_timestamp_ms",
            "h.anchor_timestamp_ms + 1",
        ),
        ("consumed_offset", "anchor_crc32", "h.anchor_crc32 + 1"),
    ];
    for table in ["task_progress", "task_resource", "task_metrics"] {
        all.extend([
            (table, "task_id", other_task),
            (table, "reported_at", later),
            (table, "event_partition", "(h.event_partition + 1) % 3"),
            (table, "event_offset", "h.event_offset + 1"),
        ]);
    }
    all
}

#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn every_row_that_is_deleted_doubled_or_altered_is_found_precisely_and_repaired(kind: Kind) {
    let Some(pipeline) = stored(kind).await else {
        return;
    };
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let clean = pipeline.audit(&[]);
    clean.assert_equal();
    assert_eq!(clean.total("events"), EVENTS as u64);
    let contents = pipeline.contents().await;

    let found = |what: &str, expected: (&str, &str, i64, i64, &[&str])| {
        let audited = pipeline.audit(&[]);
        let (table, fault, partition, offset, columns) = expected;
        let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
        let expected = vec![(
            table.to_owned(),
            fault.to_owned(),
            partition,
            offset,
            columns,
        )];
        assert_eq!(
            audited.findings(),
            expected,
            "{what}, seed {seed}: {}",
            audited.log
        );
        assert_eq!(audited.code, 1, "{what}");
        assert_eq!(audited.said["verdict"], "unequal");
        let repaired = pipeline.audit(&["--repair"]);
        repaired.assert_equal();
        assert!(
            repaired.log.contains("repaired partition"),
            "{}",
            repaired.log
        );
        assert_eq!(repaired.said["digest"], clean.said["digest"], "{what}");
    };

    for (table, column, value) in alterations(kind) {
        let what = format!("{table}.{column}");
        let (condition, partition, offset) = match table {
            "consumed_offset" => {
                let (part, partition) = ("resource", rng.random_range(0..3));
                let next = format!(
                    "SELECT next_offset FROM consumed_offset WHERE part = '{part}' AND partition = {partition}"
                );
                let next = pipeline.count(&next).await;
                (
                    format!("part = '{part}' AND partition = {partition}"),
                    partition,
                    next,
                )
            }
            _ => {
                let (address, partition, offset) = pipeline.any_row(table, &mut rng).await;
                (pipeline.addressed(&address), partition, offset)
            }
        };
        pipeline
            .execute(&format!(
                "UPDATE {table} AS h SET {column} = {value} WHERE {condition}"
            ))
            .await;
        found(&what, (table, "differing", partition, offset, &[column]));
    }
    for table in ["task_progress", "task_resource", "task_metrics", "task"] {
        let (address, partition, offset) = pipeline.any_row(table, &mut rng).await;
        let condition = pipeline.addressed(&address);
        pipeline
            .execute(&format!("DELETE FROM {table} WHERE {condition}"))
            .await;
        found(
            &format!("{table} less a row"),
            (table, "missing", partition, offset, &[]),
        );

        let (address, partition, offset) = pipeline.any_row(table, &mut rng).await;
        let condition = pipeline.addressed(&address);
        let double = match table {
            "task" => {
                let columns = "job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, progress, \
                     reported_at, sequence, event_partition, event_offset";
                format!(
                    "INSERT INTO task (exec_id, {columns}) SELECT exec_id || '-again', {columns} FROM task WHERE {condition}"
                )
            }
            _ => format!("INSERT INTO {table} SELECT * FROM {table} WHERE {condition}"),
        };
        pipeline.execute(&double).await;
        found(
            &format!("{table} and a row again"),
            (table, "extra", partition, offset, &[]),
        );
    }
    let of_offsets = "part = 'metrics' AND partition = 1";
    let next = format!("SELECT next_offset FROM consumed_offset WHERE {of_offsets}");
    let next = pipeline.count(&next).await;
    pipeline
        .execute(&format!("DELETE FROM consumed_offset WHERE {of_offsets}"))
        .await;
    found(
        "consumed_offset less a row",
        ("consumed_offset", "missing", 1, next, &[]),
    );
    assert_eq!(pipeline.contents().await, contents);
}

async fn a_lost_tail_a_lost_task_and_an_emptied_table_are_found_and_repaired(kind: Kind) {
    let Some(pipeline) = stored(kind).await else {
        return;
    };
    let clean = pipeline.audit(&[]);
    let contents = pipeline.contents().await;
    let count = async |table: &str, condition: &str| {
        let select = format!("SELECT count(*) FROM {table} WHERE {condition}");
        pipeline.count(&select).await as u64
    };
    let tail = "event_partition = 1 AND event_offset >= 150";
    let of_task = "task_id = (SELECT task_id FROM task WHERE exec_id = 'exec-42')";
    let histories = ["task_progress", "task_resource", "task_metrics"];

    // A partition's tail, of all three tables.
    let mut lost = 0;
    for table in histories {
        lost += count(table, tail).await;
        pipeline
            .execute(&format!("DELETE FROM {table} WHERE {tail}"))
            .await;
    }
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 1);
    assert_eq!(
        (audited.total("missing"), audited.total("extra")),
        (lost, 0),
        "{:#}",
        audited.said["counts"]
    );
    let missing_at: Vec<_> = audited.findings();
    assert!(missing_at.iter().filter(|(table, ..)| table != "task").all(
        |(_, fault, partition, offset, _)| fault == "missing" && *partition == 1 && *offset >= 150
    ));
    pipeline.audit(&["--repair"]).assert_equal();
    assert_eq!(pipeline.contents().await, contents);

    // All that there is of a task.
    let mut lost = 1;
    for table in histories {
        lost += count(table, of_task).await;
        pipeline
            .execute(&format!("DELETE FROM {table} WHERE {of_task}"))
            .await;
    }
    pipeline
        .execute("DELETE FROM task WHERE exec_id = 'exec-42'")
        .await;
    let audited = pipeline.audit(&[]);
    assert_eq!(
        (
            audited.total("missing"),
            audited.total("extra"),
            audited.total("differing")
        ),
        (lost, 0, 0),
        "{:#}",
        audited.said["counts"]
    );
    pipeline.audit(&["--repair"]).assert_equal();
    assert_eq!(pipeline.contents().await, contents);

    // A whole table, and rows of a partition that the topic does not have.
    let lost = count("task_metrics", "1 = 1").await;
    pipeline.execute("DELETE FROM task_metrics").await;
    pipeline
        .execute(
            "INSERT INTO task_resource SELECT * FROM task_resource WHERE event_partition = 2; \
             UPDATE task_resource SET event_partition = 77 WHERE event_offset < 10",
        )
        .await;
    let audited = pipeline.audit(&[]);
    assert_eq!((audited.code, audited.total("missing") >= lost), (1, true));
    let repaired = pipeline.audit(&["--repair"]);
    repaired.assert_equal();
    assert_eq!(repaired.said["digest"], clean.said["digest"]);
    assert_eq!(pipeline.contents().await, contents);
}

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

/// A single one, its marker far behind, and many at once.
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
        let partitions = audited.said["partitions"].as_array().unwrap().iter();
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
            // Behind what is committed, in a partition of its own.
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
        audited.said
    );
    let sum = |what: &str| -> u64 {
        let partitions = audited.said["partitions"].as_array().unwrap();
        partitions
            .iter()
            .map(|partition| partition[what].as_u64().unwrap())
            .sum()
    };
    // What stands behind the last stored record is not looked at.
    assert_eq!(sum("aborted"), aborted);
    assert!(
        (markers - 2..=markers).contains(&sum("markers")),
        "{}",
        sum("markers")
    );

    // Retention takes the first records: their rows cannot be proven any more, and nothing else.
    let count =
        "SELECT count(*) FROM task_progress WHERE event_partition = 0 AND event_offset < 40";
    let before = pipeline.count(count).await as u64;
    assert!(before > 0);
    delete_before(&pipeline, 0, 40).await;
    let audited = pipeline.audit(&[]);
    assert_eq!(
        (audited.code, &audited.said["verdict"]),
        (2, &json!("unproven"))
    );
    assert!(audited.log.contains("--from earliest"), "{}", audited.log);
    let audited = pipeline.audit(&["--from", "earliest"]);
    audited.assert_equal();
    let audited = pipeline.audit(&[]);
    let of_first = &audited.said["partitions"][0];
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
    assert_eq!(pipeline.audit(&range).said["digest"], first.said["digest"]);
    let other = pipeline.audit(&["--from", "offset:0=50,1=60", "--to", "offset:0=149,1=61"]);
    assert_ne!(other.assert_equal().said["digest"], first.said["digest"]);
    // What is wrong outside is not looked at, what is wrong inside is found.
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
    // By time: all of it was sent within the last hour, and nothing before.
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
    // The load goes on while the audits run, which block as well.
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
    // The load may be far ahead by now, and small transactions slow.
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
        audited.said
    );
    store("progress", 100).await;
    send(100);
    store("metrics", 200).await;
    // Tasks are as new as the metrics, and 100 reports ahead of their history.
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
    let told = &audited.said["partitions"][1]["tables"]["task_resource"];
    assert_eq!(told["sha256"], json!(sha256));

    // The same events in the other database: the same digest.
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
        pipeline.audit_with(&url, &[]).said["digest"],
        audited.said["digest"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_told_is_said_and_is_no_verdict() {
    let Some(mut pipeline) = stored(Kind::Sqlite).await else {
        return;
    };
    let told = |more: &[&str], words: &[&str]| {
        let audited = pipeline.audit(more);
        assert_eq!(audited.code, 2, "{more:?}: {}", audited.log);
        for word in words {
            assert!(audited.log.contains(word), "{more:?}: {}", audited.log);
        }
    };
    let nowhere = pipeline.audit_with("sqlite:/nowhere/at/all.db", &[]);
    assert_eq!(
        (nowhere.code, &nowhere.said["verdict"]),
        (2, &json!("unproven"))
    );
    assert!(
        nowhere.log.contains("/nowhere/at/all.db"),
        "{}",
        nowhere.log
    );
    told(&["--report", "report.pdf"], &[".html", ".json", ".prom"]);
    told(&["--from", "noon"], &["earliest", "offset:"]);
    // Another topic under the name that the tables came from.
    let renamed = format!("UPDATE consumed_offset SET topic = '{}'", pipeline.source);
    pipeline.execute(&renamed).await;
    pipeline.events = pipeline.source.clone();
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 2);
    for word in ["made anew", "has the topic id"] {
        assert!(audited.log.contains(word), "{}", audited.log);
    }
    // Without ids it is recognised by its records.
    pipeline
        .execute("UPDATE consumed_offset SET topic_id = NULL")
        .await;
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 2);
    for word in ["made anew", "partition 0"] {
        assert!(audited.log.contains(word), "{}", audited.log);
    }
    pipeline
        .execute("UPDATE consumed_offset SET topic = 'no-such-topic'")
        .await;
    pipeline.events = "no-such-topic".to_owned();
    let audited = pipeline.audit(&[]);
    assert_eq!(audited.code, 2);
    assert!(
        audited.log.contains("no-such-topic does not exist"),
        "{}",
        audited.log
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_holds_what_was_found_and_escapes_what_others_said() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let mut event = strategies::sample_event();
    event.info.exec_id = "<script>alert(1)</script>".into();
    pipeline.send_events(&[event]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    consumer.stop().await;
    let file = |name: &str| pipeline.folder().join(name).display().to_string();
    let (page, data, metrics) = (
        file("report.html"),
        file("report.json"),
        file("report.prom"),
    );
    pipeline.execute("DELETE FROM task_metrics").await;
    let reports = ["--report", &page, "--report", &data, "--report", &metrics];
    let audited = pipeline.audit(&reports);
    assert_eq!(audited.code, 1);
    let metrics = std::fs::read_to_string(metrics).unwrap();
    let labels = format!(
        "topic=\"{}\",database=\"SQLite {}\"",
        pipeline.events,
        pipeline.folder().join("tasks.db").display()
    );
    for line in [
        format!("taskrunning_audit_equal{{{labels}}} 0"),
        format!("taskrunning_audit_findings{{{labels},fault=\"missing\"}} 1"),
        format!("taskrunning_audit_unproven_rows{{{labels},cause=\"expired\"}} 0"),
        "# TYPE taskrunning_audit_made_at_timestamp_seconds gauge".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|told| told == line),
            "{line} is not in\n{metrics}"
        );
    }
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("unequal") && audited.said["digest"] == Value::Null);
    assert!(
        page.contains("script") && !page.contains("<script>"),
        "{page}"
    );
    assert!(!page.contains("http"), "self-contained: {page}");
    let data: Value = serde_json::from_str(&std::fs::read_to_string(data).unwrap()).unwrap();
    for told in [
        "cluster_id",
        "topic",
        "schemas",
        "version",
        "partitions",
        "findings",
    ] {
        assert_eq!(data[told], audited.said[told], "{told}");
    }
}
