//! Each event is stored once, wherever a consumer resumes.

use super::{event, report, row};
use crate::support::{Kind, Pipeline, on_every_database};
use schemas::TaskStatus;

on_every_database!(
    a_restart_on_an_idle_topic_stores_nothing_again,
    parts_are_stored_by_groups_of_their_own_and_taken_over_by_one,
    consumers_of_two_groups_on_one_partition_store_each_event_once,
    a_stored_offset_past_the_end_of_the_log_stops_with_both_numbers,
    a_database_of_another_cluster_is_refused,
);

mod migrated {
    use super::a_database_of_the_first_version_is_migrated_in_place_and_stored_on;
    use crate::support::on_sqlite_and_postgres;

    on_sqlite_and_postgres!(a_database_of_the_first_version_is_migrated_in_place_and_stored_on);
}

async fn a_restart_on_an_idle_topic_stores_nothing_again(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    pipeline.send_infos(&[
        report("a", 0, 1, TaskStatus::Running, 0.1),
        report("b", 0, 2, TaskStatus::Running, 0.2),
        report("c", 0, 3, TaskStatus::Running, 0.3),
    ]);
    let router = pipeline.router();
    for _ in 0..5 {
        let consumer = pipeline.consumer(&[]);
        pipeline
            .until_count("SELECT count(*) FROM task_metrics", 3)
            .await;
        consumer.stop().await;
    }
    router.stop().await;
    let before = pipeline.contents().await;
    assert_eq!(before[1].len(), 3);
    // Kafka's committed offset is ignored: another group starts at the database's offset.
    let consumer = pipeline.consumer(&["--group", "another"]);
    pipeline.send_infos(&[report("d", 0, 4, TaskStatus::Running, 0.4)]);
    let router = pipeline.router();
    pipeline
        .until_count("SELECT count(*) FROM task_metrics", 4)
        .await;
    router.stop().await;
    consumer.stop().await;
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_progress").await,
        4
    );
}

async fn parts_are_stored_by_groups_of_their_own_and_taken_over_by_one(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let some = |n: i64| vec![event(); usize::try_from(n).unwrap()];
    pipeline.send_events(&some(10));
    let progress = pipeline.consumer(&[
        "--part",
        "progress",
        "--group",
        &format!("{}-p", pipeline.events),
    ]);
    pipeline
        .until_count(&Pipeline::stored("progress"), 10)
        .await;
    assert_eq!(pipeline.count("SELECT count(*) FROM task_metrics").await, 0);
    pipeline.send_events(&some(5));
    let others = pipeline.consumer(&[
        "--part",
        "resource",
        "--part",
        "metrics",
        "--group",
        &format!("{}-o", pipeline.events),
    ]);
    pipeline
        .until_count(&Pipeline::stored("progress"), 15)
        .await;
    pipeline.until_count(&Pipeline::stored("metrics"), 15).await;
    progress.stop().await;
    pipeline.send_events(&some(3));
    pipeline
        .until_count(&Pipeline::stored("resource"), 18)
        .await;
    others.stop().await;
    // The parts are at 15 and 18: a consumer of all parts continues each from its own offset.
    let all = pipeline.consumer(&[]);
    pipeline.send_events(&some(2));
    for part in ["progress", "resource", "metrics"] {
        pipeline.until_count(&Pipeline::stored(part), 20).await;
    }
    all.stop().await;
    for table in ["task_progress", "task_resource", "task_metrics"] {
        let offsets = format!("SELECT count(DISTINCT event_offset) FROM {table}");
        let rows = format!("SELECT count(*) FROM {table}");
        assert_eq!(
            (pipeline.count(&offsets).await, pipeline.count(&rows).await),
            (20, 20),
            "{table}"
        );
    }
}

async fn consumers_of_two_groups_on_one_partition_store_each_event_once(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let small = ["--max-events", "7", "--commit-interval-ms", "1"];
    let group = |name: &str| format!("{}-{name}", pipeline.events);
    let (one, two) = (group("one"), group("two"));
    let first = pipeline.consumer(&[&small[..], &["--group", &one]].concat());
    let second = pipeline.consumer(&[&small[..], &["--group", &two]].concat());
    for _ in 0..20 {
        pipeline.send_events(&vec![event(); 25]);
    }
    pipeline
        .until_count(&Pipeline::stored("metrics"), 500)
        .await;
    first.stop().await;
    second.stop().await;
    for table in ["task_progress", "task_resource", "task_metrics"] {
        let offsets = format!("SELECT count(DISTINCT event_offset) FROM {table}");
        let rows = format!("SELECT count(*) FROM {table}");
        assert_eq!(
            (pipeline.count(&offsets).await, pipeline.count(&rows).await),
            (500, 500),
            "{table}"
        );
    }
}

async fn a_stored_offset_past_the_end_of_the_log_stops_with_both_numbers(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.send_events(&vec![event(); 4]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_count(&Pipeline::stored("metrics"), 4).await;
    consumer.stop().await;
    pipeline
        .execute("UPDATE consumed_offset SET next_offset = 77")
        .await;
    let error = pipeline.consumer(&[]).error().await;
    assert!(
        error.contains("ends at offset 4") && error.contains("part up to 77"),
        "{error}"
    );
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_progress").await,
        4
    );
}

async fn a_database_of_another_cluster_is_refused(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.send_events(&[event()]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_count(&Pipeline::stored("metrics"), 1).await;
    consumer.stop().await;
    pipeline
        .execute("UPDATE consumed_offset SET cluster_id = 'elsewhere'")
        .await;
    let error = pipeline.consumer(&[]).error().await;
    assert!(
        error.contains("elsewhere") && error.contains("--database-url"),
        "{error}"
    );
}

async fn a_database_of_the_first_version_is_migrated_in_place_and_stored_on(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let send = |partition: i32, events: &[schemas::TaskRunningInfoEvent]| {
        let events = events.iter();
        let records = events
            .map(|event| ("k", schemas::encode_event(event).unwrap(), Some(partition)))
            .collect::<Vec<_>>();
        pipeline.send(&pipeline.events, &records);
    };
    let on = |partition: i32, count: usize| send(partition, &vec![event(); count]);
    on(0, 1);
    let [mut two_jobs, mut no_jobs, mut silent] = [event(), event(), event()];
    let jobs = &mut two_jobs.info.progress.as_mut().unwrap().progress_info;
    jobs.push(jobs[0].clone());
    jobs[1].total_tasks += 7;
    let jobs = &mut no_jobs.info.progress.as_mut().unwrap().progress_info;
    jobs.clear();
    silent.info.progress = None;
    send(0, &[two_jobs, no_jobs, silent]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_count(&Pipeline::stored("metrics"), 4).await;
    consumer.stop().await;
    // The tables as of migration 0001 without their indexes, with rows of a consumer of that version.
    let before = pipeline.contents().await;
    let (of_counts, kept) = match kind {
        Kind::Sqlite => (
            "text",
            [0, 1, 2, 3].map(|i| format!("json_extract(job_tasks, '$[{i}]')")),
        ),
        // Its first version has today's columns.
        Kind::Mariadb => return,
        Kind::Postgres => (
            "integer[]",
            [1, 2, 3, 4].map(|i| {
                format!("CASE WHEN job_tasks IS NOT NULL THEN ARRAY(SELECT unnest(job_tasks[{i}:{i}])) END")
            }),
        ),
    };
    let columns = [
        "total_tasks",
        "running_tasks",
        "failed_tasks",
        "succeed_tasks",
    ];
    let mut undo = "DROP VIEW task_progress_history".to_owned();
    for (column, kept) in columns.iter().zip(kept) {
        undo.push_str(&format!(
            "; ALTER TABLE task_progress ADD COLUMN {column} {of_counts}; UPDATE task_progress SET {column} = {kept}"
        ));
    }
    undo.push_str(
        "; ALTER TABLE task_progress DROP COLUMN job_tasks; CREATE VIEW task_progress_history AS SELECT 1 AS one; \
         DROP INDEX task_not_final; DROP INDEX task_final_by_start; DROP INDEX task_final_by_report; \
         DROP INDEX task_by_job; \
         ALTER TABLE task DROP COLUMN final_reported_at; ALTER TABLE task DROP COLUMN first_reported_at; ALTER TABLE task DROP COLUMN ended_at; \
         ALTER TABLE consumed_offset DROP COLUMN first_offset; ALTER TABLE consumed_offset DROP COLUMN topic_id; \
         DELETE FROM consumed_offset WHERE anchor_offset < 0; DROP TABLE expiry; \
         DELETE FROM _sqlx_migrations WHERE version > 1",
    );
    pipeline.execute(&undo).await;
    pipeline.ask(&["migrate"]);
    assert!(before == pipeline.contents().await);
    pipeline.ask(&["migrate"]);

    on(0, 3);
    on(1, 2);
    let consumer = pipeline.consumer(&["--max-events", "1"]);
    pipeline.until_count(&Pipeline::stored("metrics"), 9).await;
    consumer.stop().await;
    assert_eq!(
        pipeline.count("SELECT count(*) FROM task_progress").await,
        9
    );
    // The beginning of old rows is unknown; new ones begin with their first event, and that is kept.
    let spans = pipeline
        .rows(
            "SELECT part, CAST(first_offset AS text), CAST(next_offset AS text) FROM consumed_offset \
             ORDER BY part, partition",
        )
        .await;
    let expected: Vec<_> = ["metrics", "progress", "resource"]
        .into_iter()
        .flat_map(|part| [row(&[part, "NULL", "7"]), row(&[part, "0", "2"])])
        .collect();
    assert_eq!(spans, expected);
}
