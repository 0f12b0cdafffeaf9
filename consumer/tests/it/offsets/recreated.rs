//! A recreated topic is recognised, and no other topic is mistaken for one.

use std::time::Duration;

use super::{LONG, admin, delete_records, make_topic, stored};
use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};
use rdkafka::admin::{AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::message::Message;
use service::testing::{delete_topic, read_all, until};

on_every_database!(
    a_topic_recreated_under_a_stalled_process_is_recognised_by_its_id,
    a_topic_recreated_while_the_consumer_was_stopped_is_recognised_by_its_id,
);

/// The ids in consumed_offset.
async fn ids(pipeline: &Pipeline) -> Vec<Option<String>> {
    let rows = pipeline
        .rows("SELECT DISTINCT topic_id FROM consumed_offset")
        .await;
    rows.into_iter().flatten().collect()
}

async fn a_topic_recreated_under_a_stalled_process_is_recognised_by_its_id(kind: Kind) {
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

async fn a_topic_recreated_while_the_consumer_was_stopped_is_recognised_by_its_id(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill_numbered(&sample, 600, 0);
    let program = pipeline.program("first", &[]);
    pipeline.until_all_stored(LONG).await;
    program.stop().await;
    // Filled by a version without topic ids: the id is added once the topic is recognised.
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
    // A topic whose log begins exactly where the stored one ended.
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
async fn a_running_process_stores_nothing_of_a_recreated_topic() {
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

/// The last stored record is compacted away, and another one has its key: the id proves that it is the same topic.
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
