//! A record that is no longer in the topic proves nothing about its rows.

use std::time::Duration;

use crate::support::{Kind, Pipeline, on_every_database};
use crate::{strategies, support};
use rdkafka::ClientConfig;
use rdkafka::admin::AdminOptions;
use rdkafka::message::{Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::dead_letter;
use serde_json::Value;
use service::testing::{read_all, until};

on_every_database!(
    #[ignore = "heavy"]
    compacted_records_are_unprovable_and_a_repair_keeps_their_rows,
    #[ignore = "heavy"]
    a_row_of_an_aborted_record_is_extra_and_one_without_a_record_is_not,
    a_letter_accounts_only_for_the_rows_of_its_own_record,
);

/// Keyed as by a router, so that compaction keeps the newest report of each task.
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

async fn compacted_records_are_unprovable_and_a_repair_keeps_their_rows(kind: Kind) {
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

    // A consumer and a router refuse to start on a compacted topic.
    let log = pipeline.program("refused", &[]).needs_attention().await;
    assert!(log.contains("cleanup.policy=compact"), "{log}");
    for repair in [&[][..], &["--repair"], &["--repair", "--yes"]] {
        let audited = pipeline.audit(repair);
        audited.assert_code(2);
        assert_eq!(audited.report["verdict"], "unproven");
        assert_eq!(audited.total("extra"), 0, "{:#}", audited.report);
        assert!(audited.total("unprovable") > 100);
        assert!(
            audited.log.contains("cleanup.policy=compact"),
            "{}",
            audited.log
        );
        assert_eq!(audited.report["digest"], Value::Null);
        assert_eq!(pipeline.contents().await, contents);
    }
    // Resetting the policy restores nothing.
    pipeline.alter(&[("cleanup.policy", "delete")]).await;
    let audited = pipeline.audit(&["--repair", "--yes"]);
    audited.assert_code(2);
    assert_eq!(audited.total("extra"), 0);
    assert_eq!(pipeline.contents().await, contents);
    // Records still in the topic prove their rows, which are repaired.
    pipeline
        .execute("UPDATE task_metrics SET engine_running_tasks = 77 WHERE event_offset = 299")
        .await;
    pipeline.audit(&[]).assert_code(1);
    pipeline.audit(&["--repair"]).assert_code(2);
    assert_eq!(pipeline.contents().await, contents);
    // Those sent meanwhile are not stored.
    assert_eq!(audited.report["not_stored"]["offsets"], (sent - 300) as u64);
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
    // In an aborted record's place, and where no record can be.
    for offset in [12, -5] {
        pipeline.execute(&copy(offset)).await;
        let audited = pipeline.audit(&[]);
        audited.assert_code(1);
        assert_eq!(
            (audited.total("extra"), audited.total("unprovable")),
            (1, 0)
        );
        pipeline.audit(&["--repair"]).assert_code(0);
        assert_eq!(pipeline.count(rows).await, 15);
    }
    // At a transaction's marker, and beyond the stored offset.
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
    // Records that retention deleted are unprovable too; those in the log are proven.
    let mut before = TopicPartitionList::new();
    before
        .add_partition_offset(&pipeline.events, 0, Offset::Offset(5))
        .unwrap();
    // In one statement: a client dropped before it answers never does.
    pipeline
        .admin()
        .delete_records(&before, &AdminOptions::new())
        .await
        .unwrap();
    let audited = pipeline.audit(&["--repair", "--yes"]);
    audited.assert_code(2);
    assert!(audited.total("unprovable") >= 15, "{:#}", audited.report);
    assert_eq!(pipeline.count(rows).await, 15);
    pipeline.audit(&["--from", "earliest"]).assert_code(0);
    let audited = pipeline.audit(&["--from", "-2h"]);
    audited.assert_code(2);
    assert!(
        audited.log.contains("possibly including"),
        "{}",
        audited.log
    );
}

/// The topic may have been recreated since a letter was written.
async fn a_letter_accounts_only_for_the_rows_of_its_own_record(kind: Kind) {
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
    // From a deleted topic with this name.
    letter(3, Some("AAAAAAAAAAAAAAAAAAAAAQ"), time(3));
    letter(3, None, time(3) - 1);
    let delete = "DELETE FROM task_metrics WHERE event_offset = 3";
    pipeline.execute(delete).await;
    let audited = pipeline.audit(&[]);
    audited.assert_code(1);
    assert_eq!((audited.total("missing"), audited.total("refused")), (1, 0));
    pipeline.audit(&["--repair"]).assert_code(0);
    assert_eq!(pipeline.contents().await, contents);
    // From this one, by its id or the record's time.
    let mut digests = vec![equal.report["digest"].clone()];
    for (offset, id) in [(3, Some(id.as_str())), (4, None)] {
        letter(offset, id, time(offset));
        let delete = format!("DELETE FROM task_metrics WHERE event_offset = {offset}");
        pipeline.execute(&delete).await;
        let audited = pipeline.audit(&[]);
        audited.assert_code(0);
        assert_eq!(audited.total("refused"), offset as u64 - 2);
        let table = &audited.report["partitions"][0]["tables"]["task_metrics"];
        assert_eq!(table["sha256"], Value::Null);
        // It proves other rows.
        let digest = audited.report["digest"].clone();
        assert!(digest.is_string() && !digests.contains(&digest));
        digests.push(digest);
    }
}
