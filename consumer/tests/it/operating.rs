//! The program from an operator's view: health, metrics, logs, exit codes and output.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};
use service::testing::{
    ANY_PORT, NOBODY, Process, make_topic_as_hinted, topic_setting, unique, until,
};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

fn run(arguments: &[&str]) -> Output {
    Command::new(CONSUMER).args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_means_progressing_and_metrics_count_what_was_stored() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    pipeline.send_events(&vec![strategies::sample_event(); 5]);
    pipeline.send(&pipeline.events, &[("k", b"no event".to_vec(), Some(1))]);
    let mut arguments = vec![
        "run",
        "--group",
        &pipeline.events,
        "--log-format",
        "json",
        "--metrics-listen",
        ANY_PORT,
    ];
    arguments.extend(pipeline.consumer_arguments());
    let mut consumer = Process::start(
        pipeline.folder(),
        "consumer",
        Path::new(CONSUMER),
        &arguments,
    );

    until("it is alive", Duration::from_secs(120), async || {
        consumer.get("/livez").filter(|(status, _)| *status == 200)
    })
    .await;
    until("it is ready", Duration::from_secs(120), async || {
        consumer.get("/readyz").filter(|(status, _)| *status == 200)
    })
    .await;
    pipeline.until_count(&Pipeline::stored("metrics"), 6).await;
    let metrics = until("the lag is told", Duration::from_secs(120), async || {
        let (_, body) = consumer.get("/metrics")?;
        let expected = [
            format!(
                "messaging_client_consumed_messages_total{{messaging_system=\"kafka\",messaging_operation_name=\"poll\",\
                 messaging_destination_name=\"{}\"}} 6",
                pipeline.events
            ),
            "taskrunning_rows_total{db_collection_name=\"task_progress\"} 5".to_owned(),
            "taskrunning_dead_letters_total{reason=\"UnknownFraming\"} 1".to_owned(),
            format!(
                "messaging_consumer_lag_messages{{messaging_destination_name=\"{}\",messaging_destination_partition_id=\"0\"}} 0",
                pipeline.events
            ),
            "db_client_operation_duration_seconds_count{db_system_name=\"sqlite\"}".to_owned(),
        ];
        expected.iter().all(|line| body.contains(line.as_str())).then_some(body)
    })
    .await;
    assert!(metrics.contains("# TYPE"));
    consumer.signal("TERM");
    assert_eq!(consumer.ended().await.code(), Some(0));
    let log = consumer.log();
    assert!(
        log.lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_kafka_it_waits_alive_and_not_ready_and_stops_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("t.db").display());
    let arguments = [
        "run",
        "--bootstrap-servers",
        NOBODY,
        "--metrics-listen",
        ANY_PORT,
        "--database-url",
        &url,
    ];
    let consumer = Process::start(folder.path(), "consumer", Path::new(CONSUMER), &arguments);
    until("it waits", Duration::from_secs(120), async || {
        consumer.log().contains("waiting for it").then_some(())
    })
    .await;
    assert_eq!(consumer.get("/livez").unwrap().0, 200);
    assert_eq!(
        consumer.get("/readyz").unwrap(),
        (503, "no broker is connected\n".to_owned())
    );
    assert_eq!(consumer.stop().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn what_a_person_has_to_change_ends_with_78_and_wrong_usage_with_2() {
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    (pipeline.events, pipeline.letters) = (unique("absent"), unique("absent-letters"));
    for (missing, max_bytes) in [
        (&pipeline.events, "1114124"),
        (&pipeline.letters, "2162688"),
    ] {
        let arguments = [vec!["run"], pipeline.consumer_arguments()].concat();
        let ended = run(&arguments);
        let log = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(78), "{log}");
        assert!(
            log.contains(&format!("topic {missing} does not exist on ")),
            "{log}"
        );
        if make_topic_as_hinted(&log) {
            let made = topic_setting(&pipeline.bootstrap, missing, "max.message.bytes");
            assert_eq!(made.await, max_bytes);
        }
    }
    let consumer = pipeline.program("consumer", &[]);
    consumer.until_logged("storing ").await;
    consumer.stop().await;

    assert_eq!(run(&["run", "--part", "everything"]).status.code(), Some(2));
    let wrong = run(&[
        "tasks",
        "--database-url",
        "mysql://root:hunter2@localhost/x",
    ]);
    assert_eq!(wrong.status.code(), Some(2));
    let actual = String::from_utf8_lossy(&wrong.stderr);
    assert!(
        actual.contains("PGPASSFILE") && !actual.contains("hunter2"),
        "a password does not belong there, and is never shown: {actual}"
    );
    let absent = run(&["tasks", "--database-url", "sqlite:/nonexistent/tasks.db"]);
    assert_eq!(absent.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("/nonexistent/tasks.db"));
}

on_every_database!(tasks_are_printed_as_text_and_as_json);

async fn tasks_are_printed_as_text_and_as_json(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let mut events = vec![strategies::sample_event(); 3];
    events[0].adjustments.clear();
    let hostile = "metrics.\u{1b}[31mred".to_owned();
    events[1].not_finite.insert(hostile, "NaN".to_owned());
    // Sequences 7, 9, 9: one is missing and one is repeated.
    for event in &mut events[1..] {
        event.info.sequence = 9;
        event.info.reported_at += 1;
    }
    let mut done = strategies::sample_event();
    (done.info.exec_id, done.info.status) = ("done-1".into(), schemas::TaskStatus::Succeed);
    (done.info.progress, done.info.resource, done.info.metrics) = (None, None, None);
    events.push(done);
    let mut gone = strategies::sample_event();
    (gone.info.exec_id, gone.info.status, gone.info.reported_at) =
        ("gone-1".into(), schemas::TaskStatus::Unknown, 0);
    events.push(gone);
    pipeline.send_events(&events);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_count(&Pipeline::stored("metrics"), 5).await;
    consumer.stop().await;

    let url = ["--database-url", pipeline.database_url.as_str()];
    let text = |arguments: &[&str]| {
        let output = run(&[arguments, &url].concat());
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&text(arguments)).unwrap()
    };

    let all = json(&["tasks", "--json"]);
    let ids: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["exec_id"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids,
        ["exec-1", "done-1", "gone-1"],
        "the newest report first"
    );
    assert_eq!(all[0]["reported_at"], "2025-11-25T14:05:00.123457Z");
    assert_eq!(
        (&all[0]["progress"], &all[1]["progress"]),
        (&serde_json::json!(0.5), &serde_json::Value::Null)
    );
    assert_eq!(
        json(&["tasks", "--running", "--json"])
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let table = text(&["tasks"]);
    assert!(
        table.contains("exec-1") && table.contains("50.00 %") && table.contains("3 tasks in"),
        "{table}"
    );
    assert!(text(&["tasks", "--limit", "1"]).contains("1 of 3 tasks"));

    let task = json(&["task", "exec-1", "--json"]);
    assert_eq!(task["task"]["status"], "Running");
    assert_eq!(task["sequences"]["reports"], 3);
    assert_eq!(
        (
            &task["sequences"]["missing"],
            &task["sequences"]["repeated"]
        ),
        (&8.into(), &1.into())
    );
    assert_eq!(task["resource"][0]["memory_bytes"], 8_i64 << 30);
    assert_eq!(task["metrics"]["metrics"]["text"], "ü");
    assert_eq!(
        task["reports"][0]["jobs"]["total_tasks"],
        serde_json::json!([10])
    );
    assert_eq!(task["reports"][2]["adjustments"], serde_json::Value::Null);
    let page = text(&["task", "exec-1"]);
    for printed in [
        "Running",
        "node-1:4040",
        "8 missing",
        "1 repeated",
        "8.00 GiB",
        "12.5",
        "NegativeCount",
        r"metrics.\u{1b}[31mred=NaN",
        "0@2",
    ] {
        assert!(page.contains(printed), "{printed} is not in\n{page}");
    }
    let page = text(&["task", "done-1"]);
    assert!(page.contains("Succeed") && page.contains('?'), "{page}");

    let unknown = run(&["task", "nobody", url[0], url[1]]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("nobody"));
}
