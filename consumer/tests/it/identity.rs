//! A database belongs to one topic of one cluster: another topic is recognised before anything is stored, and its own
//! is read to the end.

use std::time::Duration;

use crate::strategies;
use crate::support::{Broker, KINDS, Kind, Pipeline, numbered};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use schemas::TaskRunningInfoEvent;
use service::testing::{Topic, add_partitions, create_topics, delete_topic};

fn admin(pipeline: &Pipeline) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", &pipeline.bootstrap)
        .create()
        .unwrap()
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))
}

async fn make_topic(pipeline: &Pipeline, name: &str, partitions: i32) {
    let topic = Topic {
        name,
        partitions,
        settings: &[],
    };
    create_topics(&pipeline.bootstrap, &[topic]).await;
}

async fn delete_records(pipeline: &Pipeline, partition: i32, before: i64) {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&pipeline.events, partition, Offset::Offset(before))
        .unwrap();
    admin(pipeline)
        .delete_records(&list, &options())
        .await
        .unwrap();
}

async fn grow(pipeline: &mut Pipeline, partitions: i32) {
    add_partitions(&pipeline.bootstrap, &pipeline.events, partitions).await;
    pipeline.partitions = partitions;
}

/// Runs a consumer until everything is stored.
async fn store(pipeline: &Pipeline, name: &str, more: &[&str]) -> String {
    let program = pipeline.program(name, more);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    let log = program.log();
    program.stop().await;
    log
}

/// Different events that are as similar as possible.
fn others() -> TaskRunningInfoEvent {
    let mut sample = strategies::sample_event();
    sample.info.job_id = "job-2".into();
    sample
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_recreated_topic_is_recognised_whether_shorter_equal_or_longer() {
    for kind in KINDS {
        for events in [100, 600, 1_400] {
            let Some(pipeline) = Pipeline::make(kind, 2).await else {
                return;
            };
            pipeline.fill_numbered(&strategies::sample_event(), 600, 0);
            store(&pipeline, "first", &[]).await;
            let before = pipeline.contents().await;
            delete_topic(&pipeline.bootstrap, &pipeline.events).await;
            make_topic(&pipeline, &pipeline.events, 2).await;
            pipeline.fill_numbered(&others(), events, 0);
            let log = pipeline.program("anew", &[]).needs_attention().await;
            assert!(
                log.contains(&pipeline.events) && log.contains("recreated"),
                "{log}"
            );
            assert_eq!(pipeline.contents().await, before, "{events} new events");
            assert!(pipeline.read_letters().is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_truncated_below_the_stored_offset_needs_an_operator_or_is_continued_if_configured() {
    for kind in KINDS {
        let Some(pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let sample = strategies::sample_event();
        pipeline.fill_numbered(&sample, 200, 0);
        store(&pipeline, "first", &[]).await;
        pipeline.fill_numbered(&sample, 200, 0);
        // Partition 0 loses 100 to 149, partition 1 only stored records.
        delete_records(&pipeline, 0, 150).await;
        delete_records(&pipeline, 1, 60).await;
        for _ in 0..2 {
            let log = pipeline.program("fails", &[]).needs_attention().await;
            for message in ["partition 0", "100", "150", "--on-gap"] {
                assert!(log.contains(message), "{message} is not in\n{log}");
            }
        }
        assert_eq!(
            pipeline.count("SELECT count(*) FROM task_metrics").await,
            200
        );
        let log = store(&pipeline, "goes-on", &["--on-gap", "continue"]).await;
        let gap = log
            .lines()
            .find(|line| line.contains("gap: retention removed") && line.contains("150"));
        assert!(gap.is_some_and(|line| line.contains("100")), "{log}");
        for table in ["task_progress", "task_metrics"] {
            for (partition, first, missing) in [(0, 150, 50), (1, 100, 0)] {
                let of = format!("FROM {table} WHERE event_partition = {partition}");
                let rows = pipeline.count(&format!("SELECT count(*) {of}")).await;
                let distinct = format!("SELECT count(DISTINCT event_offset) {of}");
                assert_eq!(
                    (rows, pipeline.count(&distinct).await),
                    (200 - missing, 200 - missing)
                );
                let rest = pipeline
                    .count(&format!("SELECT count(*) {of} AND event_offset >= {first}"))
                    .await;
                assert_eq!(rest, 200 - first);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_database_brought_back_from_a_backup_is_filled_up_again_from_the_topic() {
    for kind in KINDS {
        let Some(pipeline) = Pipeline::make(kind, 4).await else {
            return;
        };
        let sample = strategies::sample_event();
        pipeline.fill_numbered(&sample, 1_000, 0);
        store(&pipeline, "first", &[]).await;
        let (file, copy) = (
            pipeline.folder().join("tasks.db"),
            pipeline.folder().join("copy.db"),
        );
        let database = match kind {
            Kind::Postgres => pipeline.database(),
            _ => "",
        };
        let mut dump = None;
        match kind {
            Kind::Mariadb => dump = Some(pipeline.dump()),
            Kind::Sqlite => {
                let back_up = format!("VACUUM INTO '{}'", copy.display());
                pipeline.execute(&back_up).await;
            }
            Kind::Postgres => {
                let back_up = format!("CREATE DATABASE {database}_copy TEMPLATE {database}");
                pipeline.administer(&back_up).await;
            }
        }
        pipeline.fill_numbered(&sample, 2_000, 0);
        store(&pipeline, "second", &[]).await;
        let before = pipeline.contents().await;
        match kind {
            Kind::Mariadb => pipeline.restore(&dump.unwrap(), pipeline.database()),
            Kind::Sqlite => {
                for companion in ["tasks.db-wal", "tasks.db-shm"] {
                    let _ = std::fs::remove_file(pipeline.folder().join(companion));
                }
                std::fs::rename(&copy, &file).unwrap();
            }
            Kind::Postgres => {
                pipeline
                    .administer(&format!("DROP DATABASE {database}"))
                    .await;
                let restore = format!("ALTER DATABASE {database}_copy RENAME TO {database}");
                pipeline.administer(&restore).await;
            }
        }
        assert_eq!(
            pipeline.count("SELECT count(*) FROM task_metrics").await,
            1_000
        );
        let log = store(&pipeline, "restored", &[]).await;
        assert_eq!(pipeline.contents().await, before);
        pipeline.assert_each_once(&[].into()).await;
        // 250 of 750 events of each partition are back.
        let actual = log
            .lines()
            .any(|line| line.contains("WARN") && line.contains("250") && line.contains("750"));
        assert!(actual, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_pointed_at_another_cluster_is_for_a_person() {
    let Some(other) = Broker::start() else { return };
    for kind in KINDS {
        let Some(mut pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let sample = strategies::sample_event();
        pipeline.fill_numbered(&sample, 200, 0);
        let log = store(&pipeline, "first", &[]).await;
        let (_, id) = log.split_once("cluster=\"").unwrap();
        let (id, _) = id.split_once('"').unwrap();
        let before = pipeline.contents().await;

        pipeline.bootstrap.clone_from(&other.bootstrap);
        make_topic(&pipeline, &pipeline.events, 2).await;
        make_topic(&pipeline, &pipeline.letters, 1).await;
        pipeline.fill_numbered(&others(), 400, 0);
        let log = pipeline.program("elsewhere", &[]).needs_attention().await;
        assert!(log.contains(id) && log.contains("--database-url"), "{log}");
        assert_eq!(pipeline.contents().await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_added_while_it_runs_and_while_it_is_stopped_are_stored_from_their_beginnings() {
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    let often = ["-X", "topic.metadata.refresh.interval.ms=1000"];
    pipeline.fill_numbered(&sample, 200, 0);
    let running = pipeline.program("running", &often);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    grow(&mut pipeline, 4).await;
    pipeline.fill_numbered(&sample, 400, 0);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    running.stop().await;
    grow(&mut pipeline, 7).await;
    pipeline.fill_numbered(&sample, 700, 0);
    store(&pipeline, "started", &often).await;
    pipeline.assert_each_once(&[].into()).await;
    assert_eq!(pipeline.ends().len(), 7);
}

/// A repeated report is stored each time, within a batch and across batches, and shown.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_sequence_is_stored_each_time_and_shown() {
    for kind in KINDS {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let event = numbered(&strategies::sample_event(), 0);
        let program = pipeline.program("consumer", &[]);
        for times in [1, 2, 2] {
            pipeline.send_events(&vec![event.clone(); times]);
            pipeline.until_all_stored(Duration::from_secs(120)).await;
        }
        let mut next = event.clone();
        next.info.sequence += 1;
        pipeline.send_events(&[next]);
        pipeline.until_all_stored(Duration::from_secs(120)).await;
        program.stop().await;
        let actual: serde_json::Value =
            serde_json::from_str(&pipeline.ask(&["task", "exec-00", "--json"])).unwrap();
        let sequences = &actual["sequences"];
        assert_eq!(
            (
                &sequences["reports"],
                &sequences["repeated"],
                &sequences["missing"]
            ),
            (&6.into(), &4.into(), &0.into())
        );
        pipeline.assert_each_once(&[].into()).await;
    }
}
