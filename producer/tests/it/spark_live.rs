//! `producer spark` against a real Spark.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::Reports;
use schemas::{MetricValue, TaskStatus};
use serde_json::Value;
use service::testing::spark::Spark;
use service::testing::{Process, get, service, until};

const WAIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn after_a_spark_application_the_last_reports_hold_what_its_own_rest_api_said() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    let (Some(reports), Some(python)) = (Reports::make("spark-live").await, service("TEST_PYTHON"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut spark = Spark::start(folder.path(), &python, "live").await;
    let arguments = [
        "spark",
        "--url",
        &spark.url,
        "--history-url",
        &spark.history_url,
        "--interval",
        "500ms",
    ];
    let arguments = reports.arguments(&arguments);
    let program = Path::new(env!("CARGO_BIN_EXE_producer"));
    let mut producer = Process::start(folder.path(), "producer", program, &arguments);

    let said = until("all jobs have ended", WAIT, async || {
        producer.assert_running();
        spark.rest_answers()
    })
    .await;
    let app = said["application"].as_str().unwrap();
    let jobs = said["jobs"].as_array().unwrap();
    spark.let_go().await;
    assert!(producer.ended().await.success(), "{}", producer.log());
    spark.stop().await;

    let received = reports.by_task();
    let total: usize = received.values().map(Vec::len).sum();
    let line = format!("sent {total} reports of {} tasks", received.len());
    assert!(producer.log().contains(&line), "{}", producer.log());
    let groups: Vec<&str> = received
        .keys()
        .map(|id| id.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(
        groups,
        ["live-check", "live-join", "live-load", "live-report"]
    );

    // Per Spark job, in the last report of its exec task.
    let count = |job: &Value, name: &str| job[name].as_i64().unwrap();
    let expected: BTreeMap<(String, String), [i64; 3]> = jobs
        .iter()
        .map(|job| {
            let exec_id = format!("{app}/{}", job["jobGroup"].as_str().unwrap());
            let counts =
                ["numTasks", "numCompletedTasks", "numFailedTasks"].map(|name| count(job, name));
            ((exec_id, count(job, "jobId").to_string()), counts)
        })
        .collect();
    assert_eq!(expected.len(), 5);
    let mut found = BTreeMap::new();
    for (exec_id, reports) in &received {
        for job in &reports
            .last()
            .unwrap()
            .progress
            .as_ref()
            .unwrap()
            .progress_info
        {
            let counts = [job.total_tasks, job.succeed_tasks, job.failed_tasks].map(i64::from);
            found.insert((exec_id.clone(), job.id.clone()), counts);
            assert_eq!(job.running_tasks, 0);
        }
    }
    assert_eq!(found, expected);

    for (exec_id, reports) in &received {
        assert!(reports.is_sorted_by(|a, b| a.sequence < b.sequence));
        for report in reports {
            assert_eq!(report.problems(), []);
            assert_eq!(report.job_id, app);
        }
        let (last, before) = reports.split_last().unwrap();
        assert!(
            before
                .iter()
                .all(|report| report.status == TaskStatus::Running)
        );
        let fails = exec_id.ends_with("live-check");
        let status = if fails {
            TaskStatus::Failed
        } else {
            TaskStatus::Succeed
        };
        assert_eq!(last.status, status, "{exec_id}");
        let metrics = last.metrics.as_ref().unwrap();
        assert_eq!(metrics["jobsFailed"], MetricValue::Long(i64::from(fails)));
        if exec_id.ends_with("live-join") {
            assert_eq!(metrics["skippedTasks"], MetricValue::Long(12));
            assert!(matches!(metrics["shuffleReadBytes"], MetricValue::Long(bytes) if bytes > 0));
        }
    }
    // While it ran, it held two cores and half a gigabyte, and ran tasks.
    let load = &received[&format!("{app}/live-load")];
    let held = load[0].resource.as_ref().unwrap();
    let held = &held.applications[app];
    assert_eq!((held.queue_cores, held.queue_instances), (2, 0));
    assert_eq!(
        (held.queue_memory, held.job_status.as_str()),
        (512 << 20, "RUNNING")
    );
    assert!(
        received
            .values()
            .flatten()
            .any(|report| report.engine.running_tasks > 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn sql_executions_and_a_streaming_query_are_reported_as_spark_lists_them() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    let (Some(reports), Some(python)) = (Reports::make("spark-live").await, service("TEST_PYTHON"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let queries = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/spark/queries.py");
    let mut spark = Process::start(folder.path(), "spark", Path::new(&python), &[queries]);
    let mut line = async |beginning: &str| {
        until(&format!("Spark prints {beginning:?}"), WAIT, async || {
            spark.assert_running();
            let log = spark.log();
            let mut lines = log.lines();
            lines.find_map(|line| Some(line.strip_prefix(beginning)?.to_owned()))
        })
        .await
    };
    let url = line("ui ").await;
    let arguments = ["spark", "--url", &url, "--interval", "500ms"];
    let arguments = reports.arguments(&arguments);
    let program = Path::new(env!("CARGO_BIN_EXE_producer"));
    let mut producer = Process::start(folder.path(), "producer", program, &arguments);
    let query = line("query ").await;
    let [id, run_id, last_batch] = query.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{query}");
    };

    let port: u16 = url.rsplit_once(':').unwrap().1.parse().unwrap();
    let ask = |path: &str| -> Value {
        let (status, answer) = get(port, &format!("/api/v1/applications{path}")).unwrap();
        assert_eq!(status, 200, "{path}: {answer}");
        let (from, to) = (answer.find('[').unwrap(), answer.rfind(']').unwrap());
        serde_json::from_str(&answer[from..=to]).unwrap()
    };
    let applications = ask("");
    let app = applications[0]["id"].as_str().unwrap();
    // The UI learns of an end a moment after the driver.
    let count = |executions: &Value, status: &str| {
        let executions = executions.as_array().unwrap().iter();
        executions.filter(|one| one["status"] == status).count() as i64
    };
    let executions = until("no SQL execution runs", WAIT, async || {
        let executions = ask(&format!(
            "/{app}/sql?details=false&planDescription=false&length=1000"
        ));
        (count(&executions, "RUNNING") == 0).then_some(executions)
    })
    .await;
    let expected = ["RUNNING", "COMPLETED", "FAILED"].map(|status| count(&executions, status));
    // A count, a failure, and a batch each of the streaming query. It is stopped, which fails the batch that runs then.
    let failed = executions.as_array().unwrap().iter();
    let failed = failed.filter(|one| one["status"] == "FAILED");
    let is_batch = |one: &Value| one["description"].as_str().unwrap().starts_with("clicks\n");
    let failed = failed.filter(|one| !is_batch(one)).count();
    assert!(expected[1] >= 4 && failed == 1, "{executions}");

    let last_batch: i64 = last_batch.parse().unwrap();
    until("all is reported", WAIT, async || {
        producer.assert_running();
        let received = reports.by_task();
        let last = received.get(&format!("{app}/{run_id}"))?.last()?;
        let metrics = last.metrics.as_ref()?;
        let counts = ["Running", "Succeeded", "Failed"].map(|name| {
            let count = metrics.get(&format!("application.sqlExecutions{name}"));
            count.cloned()
        });
        let expected = expected.map(|count| Some(MetricValue::Long(count)));
        let batch = metrics.get("stream.batchId")?;
        let is_last = matches!(batch, MetricValue::Long(batch) if *batch >= last_batch);
        (counts == expected && is_last).then_some(())
    })
    .await;
    producer.signal("TERM");
    assert!(producer.ended().await.success(), "{}", producer.log());
    let received = reports.by_task();
    let stream = &received[&format!("{app}/{run_id}")];
    for report in stream {
        assert_eq!(report.progress, None);
        let metrics = report.metrics.as_ref().unwrap();
        assert_eq!(metrics["stream.id"], MetricValue::String(id.to_owned()));
        let name = MetricValue::String("clicks".to_owned());
        assert_eq!(metrics["stream.name"], name);
    }
    assert!(received[app].iter().any(|report| report.progress.is_some()));
    assert!(!format!("{received:?}").contains("customer-4711"));
    spark.signal("KILL");
}
