//! `consumer serve --linkis`: the fields that Apache Linkis' web client reads, and the corrections.
//!
//! Long because each answer is spelled out.

use std::time::Duration;

use schemas::TaskStatus::{self, Cancelled, Failed, Inited, Running, Succeed, Timeout, Unknown};
use schemas::{JobProgressInfo, ResourceWithStatus, TaskRunningInfoEvent};
use serde_json::{Value, json};
use service::testing::settings::refuses;
use service::testing::until;

use crate::serve::tokens;
use crate::strategies;
use crate::support::{Answered, Kind, Pipeline, Server, on_every_database};

on_every_database!(
    every_field_is_there_and_its_faults_are_not,
    lists_are_filtered_and_numbered,
    a_viewer_sees_own_tasks_only,
);

const SECOND: i64 = 1_000_000;
/// Microseconds since 1970 of the first report, 2025-11-25T14:05:00.123456Z.
const FIRST: i64 = 1_764_079_500_123_456;
const GIB: i64 = 1 << 30;

/// A task's report, this many seconds after the first one.
fn report(exec_id: &str, job_id: &str, second: i64, status: TaskStatus) -> TaskRunningInfoEvent {
    let mut event = strategies::sample_event();
    event.info.exec_id = exec_id.to_owned();
    event.info.job_id = job_id.to_owned();
    event.info.reported_at = FIRST + second * SECOND;
    event.info.sequence = second;
    event.info.status = status;
    event
}

/// The same without progress and resources.
fn bare(exec_id: &str, job_id: &str, second: i64, status: TaskStatus) -> TaskRunningInfoEvent {
    let mut event = report(exec_id, job_id, second, status);
    event.info.progress = None;
    event.info.resource = None;
    event
}

/// Sets progress and the applications' cores and GiB.
fn with(
    mut event: TaskRunningInfoEvent,
    progress: f64,
    held: &[(i32, i64)],
) -> TaskRunningInfoEvent {
    let part = event.info.progress.as_mut().unwrap();
    part.progress = progress;
    part.progress_info.push(JobProgressInfo {
        id: "not submitted".into(),
        ..JobProgressInfo::default()
    });
    let applications = held.iter().enumerate().map(|(i, (cores, gib))| {
        let held = ResourceWithStatus {
            queue_memory: gib.saturating_mul(GIB),
            queue_cores: *cores,
            queue_instances: 1,
            job_status: "RUNNING".into(),
            queue: "root.etl".into(),
        };
        (format!("application_{i}"), held)
    });
    event.info.resource.as_mut().unwrap().applications = applications.collect();
    event
}

async fn stored(kind: Kind, events: &[TaskRunningInfoEvent]) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, 1).await?;
    pipeline.send_events(events);
    pipeline.store_all().await;
    Some(pipeline)
}

async fn get(server: &Server, path: &str) -> Answered {
    server.get(&format!("/api/rest_j/v1{path}")).await
}

/// `data` of a successful answer.
async fn data(server: &Server, path: &str) -> Value {
    let answered = get(server, path).await;
    assert_eq!(answered.status, 200, "{answered:?}");
    assert_eq!(answered.header("content-type"), "application/json");
    let message = answered.json();
    let path = path.split('?').next().unwrap();
    assert_eq!(message["method"], format!("/api{path}"));
    assert_eq!(message["status"], 0);
    assert_eq!(message["message"], "OK");
    assert_eq!(message.as_object().unwrap().len(), 4, "{message}");
    message["data"].clone()
}

/// The message of an error, which has no data.
fn error(answered: &Answered, http: u16, status: i32) -> String {
    assert_eq!(answered.status, http, "{answered:?}");
    assert_eq!(answered.header("content-type"), "application/json");
    let message = answered.json();
    assert_eq!(message["status"], status, "{message}");
    assert_eq!(message["data"], json!({}));
    assert!(message["method"].as_str().unwrap().starts_with("/api/"));
    message["message"].as_str().unwrap().to_owned()
}

fn application(i: usize, cores: i32, gib: i64) -> Value {
    json!({
        "applicationId": format!("application_{i}"), "queueMemory": gib * GIB, "queueCores": cores,
        "queueInstances": 1, "jobStatus": "RUNNING", "queue": "root.etl",
    })
}

#[expect(
    clippy::too_many_lines,
    reason = "one answer after the other, each whole"
)]
async fn every_field_is_there_and_its_faults_are_not(kind: Kind) {
    let events = [
        // A job's first attempt, and the second one, which is running.
        with(report("run-0", "1001", 0, Running), 0.9, &[(1, 1)]),
        bare("run-0", "1001", 1, Failed),
        with(
            report("run-1", "1001", 2, Running),
            0.25,
            &[(100, 200), (80, 600)],
        ),
        with(report("done", "1002", 3, Running), 0.99, &[(30, 100)]),
        bare("done", "1002", 9, Succeed),
        with(
            report("failed", "1003", 4, Running),
            1.0 / 3.0,
            &[(i32::MAX, 10), (i32::MAX, 10)],
        ),
        bare("failed", "1003", 6, Failed),
        with(report("stopped", "1006", 4, Running), 0.0001, &[]),
        bare("stopped", "1006", 5, Cancelled),
        bare("late", "1007", 5, Timeout),
        bare("new", "9007199254740993", 5, Inited),
        with(report("gone/<b> ü", "job ü", 5, Unknown), 0.5, &[(1, 1)]),
    ];
    let Some(pipeline) = stored(kind, &events).await else {
        return;
    };
    let server = pipeline.serve("serve", &["--linkis"]).await;

    for (id, status, exec_id, task_id) in [
        ("run-1", "Running", "run-1", "1001"),
        // The running attempt represents the job; each attempt has its own id.
        ("1001", "Running", "run-1", "1001"),
        ("run-0", "Failed", "run-0", "1001"),
        ("1002", "Succeed", "done", "1002"),
        ("failed", "Failed", "failed", "1003"),
        ("1006", "Cancelled", "stopped", "1006"),
        ("1007", "Timeout", "late", "1007"),
        ("new", "Inited", "new", "9007199254740993"),
        ("gone%2F%3Cb%3E%20%C3%BC", "Unknown", "gone/<b> ü", "job ü"),
    ] {
        // The client adds the task's id.
        let answered = get(&server, &format!("/entrance/{id}/status?taskID=1")).await;
        let actual = answered.json();
        assert_eq!(actual["status"], 0, "{actual}");
        let expected = json!({"status": status, "execID": exec_id, "taskID": task_id});
        assert_eq!(actual["data"], expected, "{id}");
        if !id.contains('%') {
            assert_eq!(actual["method"], format!("/api/entrance/{id}/status"));
        }
    }

    // Sub-jobs without tasks are omitted.
    let sub_jobs = json!([{"id": "0", "succeedTasks": 5, "failedTasks": 1, "runningTasks": 2, "totalTasks": 10}]);
    let progress = data(&server, "/entrance/run-1/progress").await;
    let expected =
        json!({"progress": 0.25, "execID": "run-1", "taskID": "1001", "progressInfo": sub_jobs});
    assert_eq!(progress, expected);
    let held = data(&server, "/entrance/run-1/progressWithResource").await;
    let mut with_resource = expected;
    with_resource["yarnMetrics"] = json!({
        "yarnResource": [application(0, 100, 200), application(1, 80, 600)],
        "corePercent": 0.6, "memoryPercent": 0.8, "coreRGB": "yellow", "memoryRGB": "red",
    });
    assert_eq!(held, with_resource);
    assert_eq!(
        data(&server, "/entrance/1001/progressWithResource").await,
        with_resource
    );

    // An ended task keeps its last values, and is complete only if it succeeded. Progress is a number.
    let done = data(&server, "/entrance/1002/progressWithResource").await;
    assert_eq!(
        done,
        json!({
            "progress": 1.0, "execID": "done", "taskID": "1002", "progressInfo": sub_jobs,
            "yarnMetrics": {
                "yarnResource": [application(0, 30, 100)],
                "corePercent": 0.1, "memoryPercent": 0.1, "coreRGB": "green", "memoryRGB": "green",
            },
        })
    );
    let failed = data(&server, "/entrance/1003/progressWithResource").await;
    assert_eq!(failed["progress"], 1.0 / 3.0);
    assert_eq!(failed["progressInfo"], sub_jobs);
    // A sum of cores that exceeds 32 bits.
    let share = f64::from(i32::MAX) * 2.0 / 300.0;
    assert_eq!(failed["yarnMetrics"]["corePercent"], share);
    assert_eq!(failed["yarnMetrics"]["coreRGB"], "red");
    let stopped = data(&server, "/entrance/1006/progressWithResource").await;
    assert_eq!(
        stopped,
        json!({
            "progress": 0.0001, "execID": "stopped", "taskID": "1006", "progressInfo": sub_jobs, "yarnResource": null,
        })
    );
    for nothing_told in ["new", "late"] {
        for route in ["progress", "progressWithResource"] {
            let answered = get(&server, &format!("/entrance/{nothing_told}/{route}")).await;
            let why = error(&answered, 400, 1);
            assert!(why.contains("no progress was reported"), "{why}");
        }
    }

    let whole = data(&server, "/jobhistory/1003/get").await;
    let mut task = whole["task"].as_object().unwrap().clone();
    let metrics: Value =
        serde_json::from_str(task.remove("metrics").unwrap().as_str().unwrap()).unwrap();
    assert_eq!(
        Value::Object(task),
        json!({
            "taskID": 1003, "instance": null, "execId": "failed", "umUser": "ada", "executeUser": "ada",
            "engineInstance": "node-1:4040", "executionCode": null, "progress": "0.33333334", "logPath": null,
            "resultLocation": null, "status": "Failed", "createdTime": 1_764_079_504_123_i64,
            "updatedTime": 1_764_079_506_123_i64, "engineType": "spark", "errCode": null, "errDesc": null,
            "executeApplicationName": "spark", "requestApplicationName": null, "runType": null, "paramsJson": null,
            "costTime": 2000, "strongerExecId": "failed", "sourceJson": null, "sourceTailor": null,
            "engineStartTime": null, "labels": [], "canRetry": false, "observeInfo": null, "isReuse": null,
            "requestStartTime": 1_764_079_504_123_i64, "requestEndTime": null, "requestSpendTime": null,
            "engineLogPath": null, "ecmInstance": null, "ticketId": "t-1", "subJobs": null,
        })
    );
    let of_application = json!({
        "queueMemory": 10 * GIB, "queueCores": i32::MAX, "queueInstances": 1, "jobStatus": "RUNNING", "queue": "root.etl",
    });
    assert_eq!(
        metrics,
        json!({
            "submitTime": "2025-11-25T14:05:04+0000", "completeTime": "2025-11-25T14:05:06+0000",
            "engineInstance": "node-1:4040",
            "yarnResource": {"application_0": of_application, "application_1": of_application},
            "engineconnMap": {"t-1": {
                "nothing": null, "flag": true, "count": -1, "seconds": 12.5, "whole": 3.0, "text": "ü",
                "ticketId": "t-1", "engineInstance": "node-1:4040",
            }},
        })
    );
    let brief = data(&server, "/jobhistory/1003/get?brief=true").await;
    assert_eq!(
        brief["task"],
        json!({
            "status": "Failed", "progress": "0.33333334", "taskID": 1003, "execId": "failed", "logPath": null,
            "resultLocation": null, "umUser": "ada", "executeUser": "ada", "errDesc": null, "errCode": null,
        })
    );
    let running = data(&server, "/jobhistory/1001/get").await["task"].clone();
    assert_eq!(
        (&running["execId"], &running["progress"]),
        (&json!("run-1"), &json!("0.25"))
    );
    assert!(
        running["costTime"].as_i64().unwrap() > 1_000_000,
        "{running}"
    );
    let text = |id: &'static str| {
        let server = &server;
        async move { data(server, &format!("/jobhistory/{id}/get")).await["task"].clone() }
    };
    assert_eq!(text("done").await["progress"], "1.0");
    assert_eq!(text("stopped").await["progress"], "1.0E-4");
    // Too large for a double.
    let new = text("new").await;
    assert_eq!(
        (&new["taskID"], &new["progress"]),
        (&json!("9007199254740993"), &Value::Null)
    );

    for (path, why) in [
        ("/entrance/absent/status", "no exec task or job \"absent\""),
        ("/jobhistory/1/get", "no exec task or job \"1\""),
        ("/entrance/a%00b/progress", "U+0000"),
        ("/jobhistory/1003/get?brief=yes", "expected true or false"),
    ] {
        let message = error(&get(&server, path).await, 400, 1);
        assert!(message.contains(why), "{path}: {message}");
    }
    // The client also requests logs, and tolerates their absence.
    error(
        &get(&server, "/entrance/run-1/log?fromLine=1&size=-1").await,
        404,
        1,
    );
    let delete = server
        .client
        .delete(format!("{}/api/rest_j/v1/jobhistory/list", server.origin));
    let refused = Answered::of(delete.send().await.unwrap()).await;
    error(&refused, 405, 1);
    assert_eq!(refused.header("allow"), "GET,HEAD");
    // Other paths have their own error format.
    server.get("/api/v1/tasks/absent").await.problem(404);
    server.stop().await;

    let limits = [
        "--linkis",
        "--linkis-queue-cores",
        "360",
        "--linkis-queue-memory-gib",
        "2000",
    ];
    let server = pipeline.serve("limits", &limits).await;
    let shares = &data(&server, "/entrance/run-1/progressWithResource").await["yarnMetrics"];
    assert_eq!(
        (&shares["corePercent"], &shares["coreRGB"]),
        (&json!(0.5), &json!("green"))
    );
    assert_eq!(
        (&shares["memoryPercent"], &shares["memoryRGB"]),
        (&json!(0.4), &json!("green"))
    );
    server.stop().await;
    let server = pipeline.serve("without", &[]).await;
    get(&server, "/entrance/run-1/status").await.problem(404);
    server.stop().await;
}

/// Exec ids of a page, and its `totalPage`.
async fn listed(server: &Server, path: &str) -> (Vec<String>, i64) {
    let page = data(server, path).await;
    let tasks = page["tasks"].as_array().unwrap().iter();
    let ids = tasks.map(|task| task["execId"].as_str().unwrap().to_owned());
    (ids.collect(), page["totalPage"].as_i64().unwrap())
}

async fn lists_are_filtered_and_numbered(kind: Kind) {
    let (now, minute) = (jiff::Timestamp::now().as_microsecond(), 60 * SECOND);
    let mut events: Vec<_> = (0..25)
        .map(|i| {
            let status = [Running, Inited, Failed, Succeed, Cancelled][i % 5];
            let mut event = report(&format!("t-{i:02}"), &format!("{i}"), 0, status);
            event.info.reported_at = FIRST + i as i64 * 1000;
            event
        })
        .collect();
    events[3].info.engine.engine_type = "hive".into();
    events[4].info.engine.user = "bob".into();
    events[4].info.engine.instance = "node-9:1".into();
    let mut fresh = report("fresh", "100", 0, TaskStatus::Scheduled);
    fresh.info.reported_at = now - minute;
    events.push(fresh);
    let Some(pipeline) = stored(kind, &events).await else {
        return;
    };
    let server = pipeline.serve("serve", &["--linkis"]).await;
    let names = |range: std::ops::Range<usize>| -> Vec<String> {
        range.rev().map(|i| format!("t-{i:02}")).collect()
    };
    let mut first = vec!["fresh".to_owned()];
    first.extend(names(6..25));
    assert_eq!(listed(&server, "/jobhistory/list").await, (first, 26));
    assert_eq!(
        listed(&server, "/jobhistory/list?pageNow=2").await,
        (names(0..6), 26)
    );
    assert_eq!(
        listed(&server, "/jobhistory/list?pageNow=3").await,
        (vec![], 26)
    );
    let second = "/jobhistory/list?pageNow=3&pageSize=10&status=&creator=&taskID=&isAdminView=true";
    assert_eq!(listed(&server, second).await, (names(0..6), 26));

    let task = data(&server, "/jobhistory/list?taskID=3").await["tasks"][0].clone();
    let metrics: Value = serde_json::from_str(task["metrics"].as_str().unwrap()).unwrap();
    assert_eq!(
        metrics,
        json!({
            "submitTime": "2025-11-25T14:05:00+0000", "completeTime": "2025-11-25T14:05:00+0000",
            "engineInstance": "node-1:4040",
        })
    );
    assert_eq!(
        (&task["taskID"], &task["progress"]),
        (&json!(3), &json!("1.0"))
    );
    // The fields of one task.
    let one = data(&server, "/jobhistory/3/get").await["task"].clone();
    let keys =
        |task: &Value| -> Vec<String> { task.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys(&task), keys(&one));

    let millis = FIRST / 1000;
    for (query, ids) in [
        (
            "status=Failed,%20Cancelled&startDate=0&pageSize=2".to_owned(),
            &["t-24", "t-22"][..],
        ),
        ("executeApplicationName=hive".to_owned(), &["t-03"]),
        ("engineInstance=node-9:1".to_owned(), &["t-04"]),
        ("proxyUser=bob".to_owned(), &["t-04"]),
        (
            format!("startDate={}&endDate={}", millis + 2, millis + 3),
            &["t-03", "t-02"],
        ),
        (
            format!("startDate={0}&endDate={0}&pageSize=1", millis + 24),
            &["t-24"],
        ),
        ("taskID=100".to_owned(), &["fresh"]),
    ] {
        let path = format!("/jobhistory/list?{query}");
        assert_eq!(listed(&server, &path).await.0, ids, "{path}");
    }
    assert_eq!(
        listed(&server, "/jobhistory/listundonetasks").await,
        (vec!["fresh".to_owned()], 1)
    );
    let undone = format!(
        "/jobhistory/listundonetasks?startDate={}&endDate={}&engineType=spark&pageSize=3",
        millis,
        millis + 20
    );
    let expected = ["t-20", "t-16", "t-15"].map(str::to_owned);
    assert_eq!(listed(&server, &undone).await, (expected.to_vec(), 9));

    for (query, why) in [
        ("status=Runing", "unknown status"),
        (
            "pageSize=1001",
            "pageSize: expected a number from 1 to 1000",
        ),
        ("pageNow=0", "pageNow: expected a number from 1"),
        ("pageNow=5002&pageSize=20", "from 1 to 5001"),
        ("startDate=yesterday", "startDate: expected milliseconds"),
        (
            "creator=IDE&runType=sql",
            "creator: reports do not contain this",
        ),
    ] {
        for list in ["list", "listundonetasks"] {
            let message = error(
                &get(&server, &format!("/jobhistory/{list}?{query}")).await,
                400,
                1,
            );
            assert!(message.contains(why), "{query}: {message}");
        }
    }
    // Other paths keep their own errors.
    let page = server.request("/tasks/%ff").header("accept", "text/html");
    let page = Answered::of(page.send().await.unwrap()).await;
    let kind = page.header("content-type");
    assert!(
        page.status == 400 && kind.starts_with("text/html"),
        "{page:?}"
    );
    server.stop().await;
}

async fn a_viewer_sees_own_tasks_only(kind: Kind) {
    let mut events = vec![
        report("mine", "1", 0, Running),
        report("shared-1", "3", 1, Running),
        report("theirs", "2", 2, Running),
        report("shared-2", "3", 3, Running),
    ];
    events[2].info.engine.user = "eve".into();
    events[3].info.engine.user = "eve".into();
    let Some(pipeline) = stored(kind, &events).await else {
        return;
    };
    let tokens = tokens(&pipeline, "ada");
    let server = pipeline
        .serve("serve", &["--linkis", "--tokens", &tokens])
        .await;
    let ask = async |path: &str, token: &str| {
        let request = server.request(&format!("/api/rest_j/v1{path}"));
        let request = match token {
            "" => request,
            token => request.header("authorization", format!("Bearer {token}")),
        };
        Answered::of(request.send().await.unwrap()).await
    };
    for path in [
        "/entrance/mine/status",
        "/entrance/mine/progress",
        "/entrance/mine/progressWithResource",
        "/jobhistory/1/get",
        "/jobhistory/list",
        "/jobhistory/listundonetasks",
    ] {
        for token in ["", "of-nobody"] {
            let refused = ask(path, token).await;
            error(&refused, 401, -1);
            assert_ne!(refused.header("www-authenticate"), "");
        }
        assert_eq!(ask(path, "of-ada").await.status, 200, "{path}");
        if !path.contains("list") {
            // Another user's task looks like a missing one.
            let theirs = path.replace("mine", "theirs").replace("/1/", "/2/");
            let absent = path.replace("mine", "theist").replace("/1/", "/9/");
            let theirs = error(&ask(&theirs, "of-ada").await, 400, 1);
            let absent = error(&ask(&absent, "of-ada").await, 400, 1);
            let same = theirs.replace("theirs", "theist").replace("\"2\"", "\"9\"");
            assert_eq!(same, absent);
        }
    }
    // For a job with tasks of several users, the newest one that the caller may see.
    for (token, exec_id) in [("of-ada", "shared-1"), ("of-operator", "shared-2")] {
        let status = ask("/entrance/3/status", token).await.json();
        assert_eq!(status["data"]["execID"], exec_id);
    }
    let page = ask("/jobhistory/list", "of-ada").await.json();
    assert_eq!(page["data"]["totalPage"], 2, "{page}");
    error(
        &ask("/jobhistory/list?proxyUser=eve", "of-ada").await,
        403,
        3,
    );
    assert_eq!(
        ask("/jobhistory/list?proxyUser=eve", "of-operator")
            .await
            .json()["data"]["totalPage"],
        2
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_database_is_reported_in_the_envelope() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    // The tables do not exist yet.
    let server = pipeline.serve("serve", &["--linkis"]).await;
    let away = get(&server, "/jobhistory/list").await;
    error(&away, 503, 1);
    assert_ne!(away.header("retry-after"), "");
    pipeline.send_events(&[report("exec-1", "1", 0, Running)]);
    pipeline.store_all().await;
    until("it answers", Duration::from_secs(60), async || {
        (get(&server, "/jobhistory/list").await.status == 200).then_some(())
    })
    .await;
    // An unchanged answer is not sent again.
    let request = server.request("/api/rest_j/v1/entrance/1/status");
    let tag = Answered::of(request.send().await.unwrap())
        .await
        .header("etag")
        .to_owned();
    let request = server.request("/api/rest_j/v1/entrance/1/status");
    let again = Answered::of(request.header("if-none-match", tag).send().await.unwrap()).await;
    assert_eq!(again.status, 304);
    server.stop().await;
}

#[test]
fn its_options_need_it() {
    let serve = |more: &[&'static str]| [&["serve", "--database-url", "sqlite:a"], more].concat();
    refuses(
        env!("CARGO_BIN_EXE_consumer"),
        &[
            (&serve(&["--linkis-queue-cores", "1"]), "--linkis"),
            (&serve(&["--linkis-queue-memory-gib", "1"]), "--linkis"),
            (
                &serve(&["--linkis", "--linkis-queue-cores", "0"]),
                "0 is not in 1..",
            ),
        ],
    );
}
