//! An audit takes no absence for proof: a row is wrong only where the topic's own record at its offset says so, and what
//! cannot be told is said and left alone.

use std::time::Duration;

use crate::support::{Audited, Kind, Pipeline, numbered, on_both_databases};
use crate::{strategies, support};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::dead_letter;
use serde_json::Value;
use service::testing::{read_all, until};

on_both_databases!(
    what_compaction_deleted_is_unprovable_and_no_repair_removes_its_rows,
    a_row_of_an_aborted_record_is_extra_and_one_without_a_record_is_not,
    a_repair_that_would_remove_more_than_it_keeps_says_so_and_needs_yes,
    impossible_numbers_among_the_stored_offsets_are_findings,
    many_altered_rows_are_repaired_in_no_time_each,
    a_row_whose_right_task_is_gone_is_repaired,
    rows_behind_a_position_that_went_back_are_told_and_it_is_put_right,
    no_altered_place_or_checksum_is_equal,
    a_letter_hides_no_rows_but_those_of_its_own_record,
    more_than_is_held_at_once_is_repaired,
);

impl Pipeline {
    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .create()
            .unwrap()
    }

    async fn alter(&self, settings: &[(&str, &str)]) {
        let mut altered = AlterConfig::new(ResourceSpecifier::Topic(&self.events));
        for (name, value) in settings {
            altered = altered.set(name, value);
        }
        let options = AdminOptions::new();
        for answer in self
            .admin()
            .alter_configs([&altered], &options)
            .await
            .unwrap()
        {
            answer.unwrap();
        }
    }

    fn transact(&self, count: usize, commit: bool) {
        let within = Duration::from_secs(30);
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("transactional.id", format!("{}-engine", self.events))
            .create()
            .unwrap();
        producer.init_transactions(within).unwrap();
        producer.begin_transaction().unwrap();
        let mut event = strategies::sample_event();
        event.info.exec_id = "transacted".to_owned();
        for _ in 0..count {
            let value = schemas::encode_event(&event).unwrap();
            let record = BaseRecord::<str, [u8]>::to(&self.events).payload(&value);
            let record = record.key("k").partition(0);
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        producer.flush(within).unwrap();
        match commit {
            true => producer.commit_transaction(within).unwrap(),
            false => producer.abort_transaction(within).unwrap(),
        }
    }
}

/// Keyed as a router keys them, so that compaction leaves the newest report of each task.
fn send_keyed(pipeline: &Pipeline, from: usize, to: usize) {
    let sample = strategies::sample_event();
    let records: Vec<_> = (from..to)
        .map(|i| {
            let event = support::numbered(&sample, i);
            let value = schemas::encode_event(&event).unwrap();
            (event.info.exec_id, value)
        })
        .collect();
    let records: Vec<_> = records
        .iter()
        .map(|(key, value)| (key.as_str(), value.clone(), Some(0)))
        .collect();
    pipeline.send(&pipeline.events, &records);
}

async fn what_compaction_deleted_is_unprovable_and_no_repair_removes_its_rows(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    send_keyed(&pipeline, 0, 300);
    pipeline.store_all().await;
    pipeline.audit(&[]).assert_code(0);
    let contents = pipeline.contents().await;
    let compacting = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "100"),
    ];
    pipeline.alter(&compacting).await;
    // Each batch closes a segment; the last one is never compacted.
    let mut sent = 300;
    until(
        "the topic is compacted",
        Duration::from_secs(240),
        async || {
            send_keyed(&pipeline, sent, sent + 1);
            sent += 1;
            tokio::time::sleep(Duration::from_millis(300)).await; // the rate of the load
            (read_all(&pipeline.bootstrap, &pipeline.events).len() < 200).then_some(())
        },
    )
    .await;

    // A consumer and a router of a compacted topic do not begin.
    let log = pipeline.program("refused", &[]).needs_attention().await;
    assert!(log.contains("cleanup.policy=compact"), "{log}");
    for repair in [&[][..], &["--repair"], &["--repair", "--yes"]] {
        let audited = pipeline.audit(repair);
        audited.assert_code(2);
        assert_eq!(audited.said["verdict"], "unproven");
        assert_eq!(audited.total("extra"), 0, "{:#}", audited.said);
        assert!(audited.total("unprovable") > 100);
        assert!(
            audited.log.contains("cleanup.policy=compact"),
            "{}",
            audited.log
        );
        assert_eq!(audited.said["digest"], Value::Null);
        assert_eq!(pipeline.contents().await, contents);
    }
    // What is set back does not bring anything back.
    pipeline.alter(&[("cleanup.policy", "delete")]).await;
    let audited = pipeline.audit(&["--repair", "--yes"]);
    audited.assert_code(2);
    assert_eq!(audited.total("extra"), 0);
    assert_eq!(pipeline.contents().await, contents);
    // What the topic still has is proven, and repaired.
    pipeline
        .execute("UPDATE task_metrics SET engine_running_tasks = 77 WHERE event_offset = 299")
        .await;
    pipeline.audit(&[]).assert_code(1);
    pipeline.audit(&["--repair"]).assert_code(2);
    assert_eq!(pipeline.contents().await, contents);
    // Those that were sent meanwhile are not stored.
    assert_eq!(audited.said["not_stored"]["offsets"], (sent - 300) as u64);
}

async fn a_row_of_an_aborted_record_is_extra_and_one_without_a_record_is_not(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.transact(10, true); // and a marker at 10
    pipeline.transact(5, false); // 11 to 15, and a marker at 16
    pipeline.transact(5, true); // 17 to 21
    let consumer = pipeline.consumer(&[]);
    let rows = "SELECT count(*) FROM task_metrics";
    pipeline.until_count(rows, 15).await;
    consumer.stop().await;
    pipeline.audit(&[]).assert_code(0);
    let columns = "task_id, reported_at, event_partition, engine_running_tasks, metrics";
    let copy = |offset| {
        format!(
            "INSERT INTO task_metrics ({columns}, event_offset) SELECT {columns}, {offset} FROM task_metrics \
             WHERE event_offset = 3"
        )
    };
    // In an aborted record's place.
    pipeline.execute(&copy(12)).await;
    let audited = pipeline.audit(&[]);
    audited.assert_code(1);
    assert_eq!(
        (audited.total("extra"), audited.total("unprovable")),
        (1, 0)
    );
    pipeline.audit(&["--repair"]).assert_code(0);
    assert_eq!(pipeline.count(rows).await, 15);
    // Where a transaction ended, and beyond what is stored.
    for offset in [10, 1_000] {
        pipeline.execute(&copy(offset)).await;
        let audited = pipeline.audit(&["--repair", "--yes"]);
        audited.assert_code(2);
        assert_eq!(
            (audited.total("extra"), audited.total("unprovable")),
            (0, 1)
        );
        assert_eq!(pipeline.count(rows).await, 16);
        let delete = format!("DELETE FROM task_metrics WHERE event_offset = {offset}");
        pipeline.execute(&delete).await;
    }
    pipeline.audit(&[]).assert_code(0);
    // What retention deletes before the log's start is unprovable too, and what is asked of the log is not.
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&pipeline.events, 0, Offset::Offset(5))
        .unwrap();
    let deleted = pipeline
        .admin()
        .delete_records(&before, &AdminOptions::new());
    deleted.await.unwrap();
    let audited = pipeline.audit(&["--repair", "--yes"]);
    audited.assert_code(2);
    assert!(audited.total("unprovable") >= 15, "{:#}", audited.said);
    assert_eq!(pipeline.count(rows).await, 15);
    pipeline.audit(&["--from", "earliest"]).assert_code(0);
    let audited = pipeline.audit(&["--from", "-2h"]);
    audited.assert_code(2);
    assert!(audited.log.contains("may be among them"), "{}", audited.log);
}

async fn a_repair_that_would_remove_more_than_it_keeps_says_so_and_needs_yes(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 100, 0);
    pipeline.store_all().await;
    let equal = pipeline.audit(&[]);
    let contents = pipeline.contents().await;
    for table in ["task_progress", "task_resource", "task_metrics"] {
        for _ in 0..2 {
            let double = format!("INSERT INTO {table} SELECT * FROM {table}");
            pipeline.execute(&double).await;
        }
    }
    let audited = pipeline.audit(&["--repair"]);
    audited.assert_code(1);
    assert_eq!(audited.total("extra"), 900);
    for words in [
        "task_metrics: write 0, remove 300, put right 0",
        "--yes",
        "nothing was repaired",
    ] {
        assert!(audited.log.contains(words), "{words}: {}", audited.log);
    }
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_metrics").await,
        400
    );
    // No digest stands for tables that are not equal.
    assert!(equal.said["digest"].is_string());
    assert_eq!(audited.said["digest"], Value::Null);
    let sha256 = |audited: &Audited, table: &str| {
        audited.said["partitions"][0]["tables"][table]["sha256"].clone()
    };
    assert_eq!(sha256(&audited, "task_metrics"), Value::Null);
    assert_eq!(sha256(&audited, "task"), sha256(&equal, "task"));
    let repaired = pipeline.audit(&["--repair", "--yes"]);
    repaired.assert_code(0);
    assert_eq!(repaired.said["digest"], equal.said["digest"]);
    assert_eq!(pipeline.contents().await, contents);
    // What is not stored yet is told.
    pipeline.fill_numbered(&strategies::sample_event(), 7, 0);
    let audited = pipeline.audit(&[]);
    audited.assert_code(0);
    assert_eq!(audited.said["not_stored"]["events"], 7);
}

async fn impossible_numbers_among_the_stored_offsets_are_findings(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill(200, |i| {
        let mut event = numbered(&sample, i);
        // The rows of a part need not begin where the partition does.
        if i < 4 {
            event.info.resource = None;
        }
        schemas::encode_event(&event).unwrap()
    });
    pipeline.store_all().await;
    pipeline.audit(&[]).assert_code(0);
    let contents = pipeline.contents().await;
    let stored = "SELECT CAST(part AS text), CAST(partition AS text), CAST(first_offset AS text), \
         CAST(next_offset AS text), CAST(anchor_offset AS text) FROM consumed_offset ORDER BY part, partition";
    let right = pipeline.rows(stored).await;
    let (max, min) = (i64::MAX, i64::MIN);
    for (column, number) in [
        ("first_offset", max),
        ("first_offset", -5),
        ("first_offset", min),
        ("next_offset", max),
        ("next_offset", -5),
        ("next_offset", min),
        ("anchor_offset", max),
        ("anchor_offset", -5),
        ("anchor_offset", min),
    ] {
        for only in ["part = 'metrics' AND partition = 1", "1 = 1"] {
            let update = format!("UPDATE consumed_offset SET {column} = {number} WHERE {only}");
            // (PostgreSQL reads the smallest number as a negated one that is too large.)
            let update = update.replace(&min.to_string(), &format!("{} - 1", -max));
            pipeline.execute(&update).await;
            let audited = pipeline.audit(&[]);
            audited.assert_code(1);
            assert_eq!(audited.total("missing") + audited.total("extra"), 0);
            assert!(audited.total("differing") > 0, "{:#}", audited.said);
            pipeline.audit(&["--repair"]).assert_code(0);
            assert_eq!(pipeline.rows(stored).await, right, "{update}");
            assert_eq!(pipeline.contents().await, contents);
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn many_altered_rows_are_repaired_in_no_time_each(kind: Kind) {
    const TASKS: usize = 4_000;
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill(TASKS, |i| {
        let mut event = sample.clone();
        event.info.exec_id = format!("exec-{i:05}");
        schemas::encode_event(&event).unwrap()
    });
    pipeline.store_all().await;
    let begun = std::time::Instant::now();
    pipeline.audit(&[]).assert_code(0);
    let clean = begun.elapsed();
    let contents = pipeline.contents().await;
    for alter in [
        "UPDATE task SET job_id = 'another'",
        "UPDATE task SET exec_id = exec_id || '-x'",
        "UPDATE task_metrics SET engine_running_tasks = engine_running_tasks + 1",
        "DELETE FROM task_progress",
        "DELETE FROM task",
    ] {
        pipeline.execute(alter).await;
        let begun = std::time::Instant::now();
        let repaired = pipeline.audit(&["--repair"]);
        // Two audits, and the repair between them.
        let took = begun.elapsed().saturating_sub(clean * 2);
        repaired.assert_code(0);
        println!(
            "{kind:?}: {alter}: {:.3} ms a row",
            took.as_secs_f64() * 1e3 / TASKS as f64
        );
        // It was 81 ms; so much that a busy machine does not reach it.
        assert!(
            took < Duration::from_millis(8 * TASKS as u64),
            "{alter}: {took:?}"
        );
        assert_eq!(pipeline.contents().await, contents, "{alter}");
    }
}

async fn a_row_whose_right_task_is_gone_is_repaired(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 400, 0);
    pipeline.store_all().await;
    let contents = pipeline.contents().await;
    // The rows of one task name another one, and its own row is gone.
    let of = |name: &str| format!("(SELECT task_id FROM task WHERE exec_id = '{name}')");
    for table in ["task_progress", "task_resource", "task_metrics"] {
        let update = format!(
            "UPDATE {table} SET task_id = {} WHERE task_id = {}",
            of("exec-13"),
            of("exec-12")
        );
        pipeline.execute(&update).await;
    }
    pipeline
        .execute("DELETE FROM task WHERE exec_id = 'exec-12'")
        .await;
    pipeline.audit(&[]).assert_code(1);
    pipeline.audit(&["--repair"]).assert_code(0);
    assert_eq!(pipeline.contents().await, contents);
}

/// The topic may have been deleted and made anew since a letter was written.
async fn a_letter_hides_no_rows_but_those_of_its_own_record(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 10, 0);
    pipeline.store_all().await;
    let equal = pipeline.audit(&[]);
    equal.assert_code(0);
    let contents = pipeline.contents().await;
    let ids = pipeline
        .rows("SELECT DISTINCT topic_id FROM consumed_offset")
        .await;
    let id = ids[0][0].clone().unwrap();
    let time = |offset: i64| {
        let records = read_all(&pipeline.bootstrap, &pipeline.events);
        let record = records.iter().find(|record| record.offset() == offset);
        record.unwrap().timestamp().to_millis().unwrap()
    };
    let letter = |offset: i64, id: Option<&str>, time: i64| {
        let (offset, time) = (offset.to_string(), time.to_string());
        let mut all = vec![
            (dead_letter::CONNECTOR_NAME, "consumer"),
            (dead_letter::TOPIC, pipeline.events.as_str()),
            (dead_letter::PARTITION, "0"),
            (dead_letter::OFFSET, offset.as_str()),
            (dead_letter::TIMESTAMP_MS, time.as_str()),
        ];
        all.extend(id.map(|id| (dead_letter::TOPIC_ID, id)));
        let headers = all
            .into_iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| {
                headers.insert(Header {
                    key,
                    value: Some(value),
                })
            });
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", &pipeline.bootstrap)
            .create()
            .unwrap();
        let record = BaseRecord::<str, [u8]>::to(&pipeline.letters)
            .key("k")
            .headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    // Of a topic of this name that was deleted.
    letter(3, Some("AAAAAAAAAAAAAAAAAAAAAQ"), time(3));
    letter(3, None, time(3) - 1);
    let delete = "DELETE FROM task_metrics WHERE event_offset = 3";
    pipeline.execute(delete).await;
    let audited = pipeline.audit(&[]);
    audited.assert_code(1);
    assert_eq!((audited.total("missing"), audited.total("refused")), (1, 0));
    pipeline.audit(&["--repair"]).assert_code(0);
    assert_eq!(pipeline.contents().await, contents);
    // Of this one, by its id or by the record's time.
    let mut digests = vec![equal.said["digest"].clone()];
    for (offset, id) in [(3, Some(id.as_str())), (4, None)] {
        letter(offset, id, time(offset));
        let delete = format!("DELETE FROM task_metrics WHERE event_offset = {offset}");
        pipeline.execute(&delete).await;
        let audited = pipeline.audit(&[]);
        audited.assert_code(0);
        assert_eq!(audited.total("refused"), offset as u64 - 2);
        let table = &audited.said["partitions"][0]["tables"]["task_metrics"];
        assert_eq!(table["sha256"], Value::Null);
        // It proves other rows.
        let digest = audited.said["digest"].clone();
        assert!(digest.is_string() && !digests.contains(&digest));
        digests.push(digest);
    }
}

async fn rows_behind_a_position_that_went_back_are_told_and_it_is_put_right(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill_numbered(&sample, 5, 0);
    pipeline.store_all().await;
    let anchor = "SELECT CAST(next_offset AS text), CAST(anchor_offset AS text), CAST(anchor_timestamp_ms AS text), \
         CAST(anchor_crc32 AS text) FROM consumed_offset ORDER BY part";
    let before: Vec<String> = pipeline.rows(anchor).await[0]
        .iter()
        .map(|text| text.clone().unwrap())
        .collect();
    pipeline.fill_numbered(&sample, 5, 0);
    pipeline.store_all().await;
    let (contents, right) = (pipeline.contents().await, pipeline.rows(anchor).await);
    let [next, offset, time, crc32] = &before[..] else {
        panic!("{before:?}");
    };
    pipeline
        .execute(&format!(
            "UPDATE consumed_offset SET next_offset = {next}, anchor_offset = {offset}, anchor_timestamp_ms = {time}, \
             anchor_crc32 = {crc32}"
        ))
        .await;
    let audited = pipeline.audit(&[]);
    audited.assert_code(1);
    let totals = ["missing", "extra", "differing", "unprovable"].map(|it| audited.total(it));
    assert_eq!(totals, [0, 0, 3, 0]);
    assert!(
        audited.log.contains("would store them again"),
        "{}",
        audited.log
    );
    pipeline.audit(&["--repair"]).assert_code(0);
    assert_eq!(pipeline.rows(anchor).await, right);
    assert_eq!(pipeline.contents().await, contents);
}

async fn no_altered_place_or_checksum_is_equal(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 10, 0);
    pipeline.store_all().await;
    pipeline.audit(&[]).assert_code(0);
    let alter = "UPDATE consumed_offset SET anchor_crc32 = anchor_crc32";
    pipeline.execute(&format!("{alter} + 4294967296")).await;
    let audited = pipeline.audit(&[]);
    audited.assert_code(2);
    assert!(audited.log.contains("no CRC-32"), "{}", audited.log);
    pipeline.execute(&format!("{alter} - 4294967296")).await;
    pipeline.audit(&[]).assert_code(0);
    if kind == Kind::Sqlite {
        // A row more, at what is no place.
        for (partition, offset) in [("0", "'abc'"), ("99999999999", "3")] {
            let columns = "task_id, reported_at, engine_running_tasks, metrics";
            pipeline
                .execute(&format!(
                    "INSERT INTO task_metrics ({columns}, event_partition, event_offset) \
                     SELECT {columns}, {partition}, {offset} FROM task_metrics WHERE event_offset = 3"
                ))
                .await;
            let audited = pipeline.audit(&[]);
            audited.assert_code(2);
            assert!(
                audited
                    .log
                    .contains("without a valid event_partition or event_offset"),
                "{}",
                audited.log
            );
            pipeline
                .execute(
                    "DELETE FROM task_metrics WHERE event_partition = 99999999999 OR event_offset = 'abc'",
                )
                .await;
            pipeline.audit(&[]).assert_code(0);
        }
    }
}

/// Of many rows a task, more than an audit holds at once.
async fn more_than_is_held_at_once_is_repaired(kind: Kind) {
    const EVENTS: usize = 30_000;
    const TASKS: usize = 800;
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill(EVENTS, |i| {
        let mut event = sample.clone();
        event.info.exec_id = format!("exec-{:03}-{}", i % TASKS, "x".repeat(200));
        event.info.sequence = (i / TASKS) as i64;
        event.info.reported_at += i as i64;
        schemas::encode_event(&event).unwrap()
    });
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(300)).await;
    consumer.stop().await;
    let equal = pipeline.audit(&[]);
    equal.assert_code(0);
    let of_tasks = |audited: &Audited, fault: &str| -> u64 {
        let partitions = audited.said["partitions"].as_array().unwrap();
        let counts = partitions
            .iter()
            .map(|it| it["tables"]["task"][fault].as_u64());
        counts.map(Option::unwrap).sum()
    };
    let all = "DELETE FROM task_progress; DELETE FROM task_resource; DELETE FROM task_metrics; DELETE FROM task";
    for (alter, fault, rounds) in [
        ("DELETE FROM task", "missing", 1),
        ("UPDATE task SET exec_id = exec_id || '-x'", "differing", 1),
        (all, "missing", 20),
    ] {
        pipeline.execute(alter).await;
        let audited = pipeline.audit(&["--limit", "1"]);
        audited.assert_code(1);
        assert_eq!(of_tasks(&audited, fault), TASKS as u64, "{alter}");
        let repaired = pipeline.audit(&["--repair"]);
        repaired.assert_code(0);
        assert_eq!(repaired.said["digest"], equal.said["digest"], "{alter}");
        let repairs = repaired.log.matches("to repair in").count();
        assert!(
            repairs <= rounds,
            "{alter}: {repairs} rounds: {}",
            repaired.log
        );
        assert!(!repaired.log.contains("meanwhile"), "{}", repaired.log);
    }
}
