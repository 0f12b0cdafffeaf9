//! Offsets are not records: commit markers and aborted records take some too. What is stored, committed and
//! shown as lag are positions behind them, and the topic they belong to is known by its id.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::{Kind, Pipeline, Program, numbered, on_both_databases, run};
use crate::{strategies, support};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use service::testing::{Topic, create_topics, delete_topic, read_all, service, unique, until};

const LONG: Duration = Duration::from_secs(120);
const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

on_both_databases!(
    #[ignore = "heavy"]
    a_partition_read_to_its_end_is_stored_and_committed_up_to_there,
    markers_that_retention_removed_are_no_loss,
    a_gap_that_opens_under_a_running_consumer_is_gone_beyond_as_told,
    another_part_is_no_evidence_that_a_gap_held_no_record,
    a_topic_made_anew_under_a_process_that_stood_still_is_known_by_its_id,
    a_topic_made_anew_while_the_consumer_was_stopped_is_known_by_its_id,
);

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

/// Waits until the parts are stored up to the ends that a committed reader sees.
async fn until_stored(pipeline: &Pipeline, program: &mut Program, parts: &[&str]) {
    for part in parts {
        until(&format!("{part} is at its ends"), LONG, async || {
            program.process.assert_running();
            // The markers of a transaction that has ended may come later.
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

/// The lags that Kafka's own tool shows of a group, by partition; `None` where it says "-".
fn told_lags(pipeline: &Pipeline, tool: &str, group: &str) -> BTreeMap<i32, Option<i64>> {
    let classes = run(tool, &["classpath"]);
    let output = Command::new("java")
        .args(["-cp", &classes])
        .arg("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand")
        .args(["--bootstrap-server", &pipeline.bootstrap])
        .args(["--describe", "--group", group])
        .output()
        .unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let lines = told
        .lines()
        .map(|line| Vec::from_iter(line.split_whitespace()));
    lines
        .filter(|line| line.get(1) == Some(&pipeline.events.as_str()))
        .map(|line| (line[2].parse().unwrap(), line[5].parse().ok()))
        .collect()
}

/// One partition has committed events, one only aborted ones, and one never had any.
#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn a_partition_read_to_its_end_is_stored_and_committed_up_to_there(kind: Kind) {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return;
    };
    let Some(pipeline) = Pipeline::make(kind, 3).await else {
        return;
    };
    Open::send(&pipeline, 0, 5).commit();
    Open::send(&pipeline, 1, 3).abort();
    let groups = [
        (pipeline.events.clone(), vec!["progress", "resource"]),
        (format!("{}-metrics", pipeline.events), vec!["metrics"]),
    ];
    let mut programs = Vec::new();
    for (group, parts) in &groups {
        let mut more = vec!["--group", group];
        more.extend(parts.iter().flat_map(|part| ["--part", part]));
        let mut program = pipeline.program(group, &more);
        until_stored(&pipeline, &mut program, parts).await;
        programs.push(program);
    }
    let none: BTreeMap<i32, Option<i64>> = (0..3).map(|p| (p, Some(0))).collect();
    for (group, _) in &groups {
        until("the tool shows no lag", LONG, async || {
            let lags = told_lags(&pipeline, &tool, group);
            println!("{lags:?}");
            (lags == none).then_some(())
        })
        .await;
    }
    // Events behind an open transaction are nobody's lag, for longer than a stalled service is ready.
    let open = Open::send(&pipeline, 0, 4);
    for program in &mut programs {
        program.until_ready().await;
    }
    let zero: BTreeMap<i32, f64> = (0..3).map(|p| (p, 0.0)).collect();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(35) {
        for program in &programs {
            assert!(program.is_ready(), "{:?}", program.process.get("/readyz"));
            assert_eq!(lags(&pipeline, program), zero);
        }
        tokio::time::sleep(Duration::from_millis(500)).await; // a sample now and then
    }
    open.commit();
    for (program, (_, parts)) in programs.iter_mut().zip(&groups) {
        until_stored(&pipeline, program, parts).await;
    }
    pipeline
        .until_count("SELECT count(*) FROM task_metrics", 9)
        .await;
    for program in programs {
        program.stop().await;
    }
    let audit = Command::new(CONSUMER)
        .arg("audit")
        .args(["--bootstrap-servers", &pipeline.bootstrap])
        .args(["--events-topic", &pipeline.events])
        .args(["--dead-letters-topic", &pipeline.letters])
        .args(["--database-url", &pipeline.database_url])
        .output()
        .unwrap();
    assert_eq!(audit.status.code(), Some(0), "{audit:?}");
}

async fn markers_that_retention_removed_are_no_loss(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    Open::send(&pipeline, 0, 5).commit();
    Open::send(&pipeline, 1, 3).abort();
    let parts = ["progress", "resource", "metrics"];
    let mut program = pipeline.program("first", &[]);
    until_stored(&pipeline, &mut program, &parts).await;
    program.stop().await;
    for (partition, (_, end)) in pipeline.ends() {
        delete_records(&pipeline, partition, end).await;
    }
    let mut program = pipeline.program("second", &["--on-gap", "continue"]);
    Open::send(&pipeline, 0, 2).commit();
    Open::send(&pipeline, 1, 2).commit();
    until_stored(&pipeline, &mut program, &parts).await;
    let log = program.log();
    assert!(!log.contains("a gap"), "{log}");
    program.stop().await;
    assert_eq!(pipeline.count("SELECT count(*) FROM task_metrics").await, 9);

    // Stored "last record + 1", as before positions were: what has stood there cannot be known.
    let (_, end) = pipeline.ends()[&0];
    pipeline
        .execute("UPDATE consumed_offset SET next_offset = anchor_offset + 1 WHERE partition = 0")
        .await;
    delete_records(&pipeline, 0, end).await;
    let log = pipeline.program("unknown", &[]).needs_attention().await;
    assert!(
        log.contains("cannot be told") && log.contains("--on-gap"),
        "{log}"
    );
    // Nor by another part, which may have skipped it.
    pipeline
        .execute(&format!(
            "UPDATE consumed_offset SET next_offset = {end} WHERE partition = 0 AND part = 'metrics'"
        ))
        .await;
    let log = pipeline.program("known", &[]).needs_attention().await;
    assert!(log.contains("Nothing was skipped"), "{log}");
}

/// Another part that began behind the gap, or skipped it by order, has not read what was removed.
async fn another_part_is_no_evidence_that_a_gap_held_no_record(kind: Kind) {
    for skips in [false, true] {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let sample = strategies::sample_event();
        pipeline.fill_numbered(&sample, 3, 0);
        let groups = ["progress", "resource"].map(|part| format!("{}-{part}", pipeline.events));
        let of_part = |name: &str, group: usize, more: &[&str]| {
            let part = ["progress", "resource"][group];
            let mut args = vec!["--group", groups[group].as_str(), "--part", part];
            args.extend(more);
            pipeline.program(name, &args)
        };
        let first: &[usize] = if skips { &[0, 1] } else { &[0] };
        for &group in first {
            let mut program = of_part(&format!("first-{group}"), group, &[]);
            until_stored(&pipeline, &mut program, &[["progress", "resource"][group]]).await;
            program.stop().await;
        }
        pipeline.fill_numbered(&sample, 3, 0);
        delete_records(&pipeline, 0, 6).await;
        let mut program = of_part("other", 1, &["--on-gap", "continue"]);
        until_stored(&pipeline, &mut program, &["resource"]).await;
        program.stop().await;
        let log = of_part("stops", 0, &[]).needs_attention().await;
        for said in ["begins at offset 6", "up to 3", "Nothing was skipped"] {
            assert!(log.contains(said), "{said}: {log}");
        }
        assert_eq!(stored(&pipeline, "progress").await, [(0, 3)].into());
    }
}

/// Retention passes what a process that stood still was to read next.
async fn a_gap_that_opens_under_a_running_consumer_is_gone_beyond_as_told(kind: Kind) {
    for on_gap in ["continue", "fail"] {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let parts = ["progress", "resource", "metrics"];
        Open::send(&pipeline, 0, 5).commit();
        let mut program = pipeline.program("consumer", &["--on-gap", on_gap]);
        until_stored(&pipeline, &mut program, &parts).await;
        program.process.signal("STOP");
        // What answers a fetch that waits is read all the same.
        for _ in 0..5 {
            Open::send(&pipeline, 0, 5).commit();
        }
        delete_records(&pipeline, 0, pipeline.ends()[&0].1).await;
        Open::send(&pipeline, 0, 2).commit();
        program.process.signal("CONT");
        if on_gap == "fail" {
            let log = program.needs_attention().await;
            assert!(log.contains("--on-gap continue"), "{log}");
            continue;
        }
        until_stored(&pipeline, &mut program, &parts).await;
        assert!(program.log().contains("a gap"), "{}", program.log());
        program.stop().await;
    }
}

/// Members come and go while records come in: what a rebalance refused is told again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_group_has_no_lag_after_rebalances_under_load() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let mut program = pipeline.program("first", &[]);
    for round in 0..4 {
        let other = pipeline.program(&format!("other-{round}"), &[]);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            pipeline.fill_numbered(&sample, 8, 0);
        }
        other.stop().await;
    }
    let parts = ["progress", "resource", "metrics"];
    until_stored(&pipeline, &mut program, &parts).await;
    let ends = pipeline.ends();
    let asked: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .set("group.id", &pipeline.events)
        .create()
        .unwrap();
    until("the group is told all", LONG, async || {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&pipeline.events, 0, 3);
        let told = asked.committed_offsets(list, LONG).unwrap();
        let told = told.elements().into_iter();
        let told: Vec<_> = told.map(|p| (p.partition(), p.offset())).collect();
        println!("{told:?} of {ends:?}");
        told.iter()
            .all(|(p, told)| *told == Offset::Offset(ends[p].1))
            .then_some(())
    })
    .await;
    program.stop().await;
}

/// The ids in consumed_offset.
async fn ids(pipeline: &Pipeline) -> Vec<Option<String>> {
    let rows = pipeline
        .rows("SELECT DISTINCT topic_id FROM consumed_offset")
        .await;
    rows.into_iter().flatten().collect()
}

async fn a_topic_made_anew_under_a_process_that_stood_still_is_known_by_its_id(kind: Kind) {
    for (new_partitions, events) in [(2, 1_400), (1, 1_400), (2, 100)] {
        let Some(mut pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let sample = strategies::sample_event();
        pipeline.fill_numbered(&sample, 600, 0);
        let program = pipeline.program("consumer", &[]);
        pipeline.until_all_stored(LONG).await;
        let before = pipeline.contents().await;
        let old = ids(&pipeline).await;
        program.process.signal("STOP");
        delete_topic(&pipeline.bootstrap, &pipeline.events).await;
        make_topic(&pipeline, new_partitions, &[]).await;
        pipeline.partitions = new_partitions;
        pipeline.fill_numbered(&sample, events, 0);
        program.process.signal("CONT");
        let log = program.needs_attention().await;
        let old = old[0].as_deref().unwrap();
        assert!(
            log.contains(old) && log.contains("has the topic id"),
            "{log}"
        );
        assert_eq!(pipeline.contents().await, before);
        assert_eq!(ids(&pipeline).await, [Some(old.to_owned())]);
    }
}

async fn a_topic_made_anew_while_the_consumer_was_stopped_is_known_by_its_id(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill_numbered(&sample, 600, 0);
    let program = pipeline.program("first", &[]);
    pipeline.until_all_stored(LONG).await;
    program.stop().await;
    // As a version before topic ids has filled it: the id is put in once the topic is recognised.
    let id = ids(&pipeline).await;
    pipeline
        .execute("UPDATE consumed_offset SET topic_id = NULL")
        .await;
    let mut program = pipeline.program("second", &[]);
    until("the id is stored", LONG, async || {
        program.process.assert_running();
        (ids(&pipeline).await == id).then_some(())
    })
    .await;
    program.stop().await;
    let before = pipeline.contents().await;
    // One whose log begins exactly where the stored one has ended.
    delete_topic(&pipeline.bootstrap, &pipeline.events).await;
    make_topic(&pipeline, 2, &[]).await;
    pipeline.fill_numbered(&sample, 700, 0);
    for (partition, next) in stored(&pipeline, "metrics").await {
        delete_records(&pipeline, partition, next).await;
    }
    let log = pipeline.program("anew", &[]).needs_attention().await;
    let old = id[0].as_deref().unwrap();
    assert!(
        log.contains(old) && log.contains("has the topic id"),
        "{log}"
    );
    assert_eq!(pipeline.contents().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_topic_made_anew_is_stored_by_a_process_that_reads_meanwhile() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill_numbered(&sample, 100, 0);
    let program = pipeline.program("consumer", &[]);
    pipeline.until_all_stored(LONG).await;
    let before = pipeline.contents().await;
    delete_topic(&pipeline.bootstrap, &pipeline.events).await;
    make_topic(&pipeline, 1, &[]).await;
    pipeline.fill_numbered(&sample, 400, 0);
    let log = program.needs_attention().await;
    assert!(
        log.contains("has the topic id") || log.contains("is gone"),
        "{log}"
    );
    assert_eq!(pipeline.contents().await, before);
}

/// The last stored record is gone, and another one has its key: by its id it is the topic that it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_last_stored_record_that_compaction_took_is_not_taken_for_another_topic() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let policy = async |policy| {
        let settings = AlterConfig::new(ResourceSpecifier::Topic(&pipeline.events))
            .set("cleanup.policy", policy)
            .set("segment.ms", "100")
            .set("min.cleanable.dirty.ratio", "0.01")
            .set("max.compaction.lag.ms", "100");
        let (admin, options) = (admin(&pipeline), AdminOptions::new());
        let altered = admin.alter_configs(&[settings], &options).await;
        altered.unwrap()[0].as_ref().unwrap();
    };
    policy("delete").await;
    let event = schemas::encode_event(&strategies::sample_event()).unwrap();
    let send = |count| {
        pipeline.send(
            &pipeline.events,
            &vec![("key", event.clone(), Some(0)); count],
        )
    };
    send(3);
    let program = pipeline.program("first", &[]);
    pipeline.until_all_stored(LONG).await;
    program.stop().await;
    policy("compact").await;
    until("the last stored record is gone", LONG, async || {
        send(1);
        let records = read_all(&pipeline.bootstrap, &pipeline.events);
        let gone = !records.iter().any(|record| record.offset() == 2);
        tokio::time::sleep(Duration::from_millis(500)).await; // a segment is closed by the next record
        gone.then_some(())
    })
    .await;
    policy("delete").await;
    send(1);
    let (_, end) = pipeline.ends()[&0];
    let program = pipeline.program("second", &[]);
    let last = format!(
        "SELECT count(*) FROM task_metrics WHERE event_offset = {}",
        end - 1
    );
    pipeline.until_count(&last, 1).await;
    program.stop().await;
}

/// What a replay has stored reaches behind the markers of its range, so that it can be gone on with after
/// retention took them.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_after_retention_removed_the_markers_at_its_end() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    Open::send(&pipeline, 0, 5).commit();
    Open::send(&pipeline, 1, 3).abort();
    let file = pipeline.folder().join("into.db");
    let into = format!("sqlite:{}", file.display());
    let replay = || {
        let ended = Command::new(Path::new(CONSUMER))
            .args(["replay", "--bootstrap-servers", &pipeline.bootstrap])
            .args(["--events-topic", &pipeline.events, "--into", &into])
            .args(["--database-url", &pipeline.database_url])
            .output()
            .unwrap();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    };
    replay();
    for (partition, (_, end)) in pipeline.ends() {
        delete_records(&pipeline, partition, end).await;
    }
    Open::send(&pipeline, 0, 2).commit();
    Open::send(&pipeline, 1, 2).commit();
    replay();
    let mut database = support::connect(&into).await;
    let count = database.number("SELECT count(*) FROM task_metrics").await;
    assert_eq!(count.unwrap(), 9);
}
