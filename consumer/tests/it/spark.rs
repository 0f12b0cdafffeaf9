//! A real Spark through the whole pipeline: the tables agree with Spark's own REST API.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{Kind, Pipeline};
use serde_json::Value;
use service::testing::spark::Spark;
use service::testing::{Process, program, service, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const WAIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn the_tables_hold_the_task_counts_that_spark_gave_for_each_of_its_jobs() {
    let (Some(pipeline), Some(python)) = (
        Pipeline::make(Kind::Sqlite, 4).await,
        service("TEST_PYTHON"),
    ) else {
        return;
    };
    let mut spark = Spark::start(pipeline.folder(), &python, "line").await;
    let (router, consumer) = (pipeline.router(), pipeline.consumer(&[]));
    let arguments = [
        "spark",
        "--url",
        &spark.url,
        "--history-url",
        &spark.history_url,
        "--interval",
        "500ms",
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--topic",
        &pipeline.source,
    ];
    let mut producer = Process::start(
        pipeline.folder(),
        "producer",
        &program(CONSUMER, "producer"),
        &arguments,
    );
    let said = until("all jobs have ended", WAIT, async || spark.rest_answers()).await;
    spark.let_go().await;
    assert!(producer.ended().await.success(), "{}", producer.log());
    pipeline
        .until_count("SELECT count(*) FROM task WHERE is_final = 1", 4)
        .await;
    spark.stop().await;
    router.stop().await;
    consumer.stop().await;

    let number = |job: &Value, name: &str| job[name].as_i64().unwrap();
    let expected: BTreeMap<String, [i64; 3]> = said["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| {
            let counts =
                ["numTasks", "numCompletedTasks", "numFailedTasks"].map(|name| number(job, name));
            (number(job, "jobId").to_string(), counts)
        })
        .collect();
    assert_eq!(expected.len(), 5);

    // The newest row of each exec task.
    let newest = "SELECT p.job_ids, p.job_tasks FROM task_progress p JOIN task t \
                  ON p.task_id = t.task_id AND p.event_partition = t.event_partition AND p.event_offset = t.event_offset";
    let mut found = BTreeMap::new();
    for row in pipeline.rows(newest).await {
        let list =
            |i: usize| -> Vec<Value> { serde_json::from_str(row[i].as_deref().unwrap()).unwrap() };
        for (i, id) in list(0).iter().enumerate() {
            // Total, succeeded, failed.
            let counts = [0, 3, 2].map(|count| list(1)[count][i].as_i64().unwrap());
            found.insert(id.as_str().unwrap().to_owned(), counts);
        }
    }
    assert_eq!(found, expected);

    let states = pipeline
        .rows("SELECT exec_id, status, job_id FROM task ORDER BY exec_id")
        .await;
    let app = said["application"].as_str().unwrap();
    let expected = [
        ("check", "Failed"),
        ("join", "Succeed"),
        ("load", "Succeed"),
        ("report", "Succeed"),
    ];
    let expected = expected.map(|(group, status)| {
        vec![
            Some(format!("{app}/line-{group}")),
            Some(status.to_owned()),
            Some(app.to_owned()),
        ]
    });
    assert_eq!(states, expected);
}
