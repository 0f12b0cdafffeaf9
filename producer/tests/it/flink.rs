//! `producer flink` against a made-up JobManager and HistoryServer.
//!
//! Long because each fault of both has a test, and so have answers in the form of an old version.

use std::path::Path;

use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::{Value, json};
use service::testing::until;

use crate::support::polled::{Adapter, Answer, Answers, Server, WAIT, metric};

/// Jobs of the overview, with the tasks that they have.
fn list(answers: &Answers, jobs: &[(&str, &str, Value)]) {
    let jobs = jobs.iter().map(|(jid, state, tasks)| {
        json!({"jid": jid, "name": "n", "state": state, "start-time": 1, "end-time": -1, "tasks": tasks})
    });
    answers.json("/jobs/overview", json!({"jobs": jobs.collect::<Value>()}));
}

async fn cluster() -> Server {
    let flink = Server::start().await;
    flink
        .answers
        .json("/taskmanagers", json!({"taskmanagers": []}));
    flink
}

fn adapter(arguments: &[&str]) -> Adapter {
    Adapter::start("flink", arguments)
}

fn job(job_type: &str, state: &str, tasks: Value) -> Value {
    let io = json!({"read-records": 3, "read-records-complete": true, "write-records": 8, "write-records-complete": true});
    let vertex = |id, tasks: &Value| json!({"id": id, "name": "n", "parallelism": 2, "tasks": tasks, "metrics": io});
    json!({"state": state, "job-type": job_type, "now": 5_000, "timestamps": {"RUNNING": 1_000},
        "vertices": [vertex("a", &tasks), vertex("b", &tasks)],
        "plan": {"nodes": [{"id": "b", "inputs": [{"id": "a"}]}, {"id": "a"}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_job_is_followed_to_its_end_with_its_slots() {
    let flink = cluster().await;
    let answers = &flink.answers;
    list(answers, &[("j1", "RUNNING", json!({"running": 2}))]);
    answers.json(
        "/jobs/j1",
        job("BATCH", "RUNNING", json!({"RUNNING": 1, "FINISHED": 1})),
    );
    answers.json("/taskmanagers", json!({"taskmanagers": [
        {"id": "tm1", "slotsNumber": 2, "freeSlots": 1}, {"id": "tm2", "slotsNumber": 2, "freeSlots": 2}]}));
    let slot = json!({"cpuCores": 1.0, "taskHeapMemory": 100, "taskOffHeapMemory": 0, "managedMemory": 20, "networkMemory": 8});
    answers.json(
        "/taskmanagers/tm1",
        json!({"allocatedSlots": [{"jobId": "j1", "resource": slot}]}),
    );
    let mut adapter = adapter(&["--url", &flink.url]);
    let running = adapter
        .reports_one("it is reported with its slots", |report| {
            report.resource.is_some()
        })
        .await;
    assert_eq!(running.status, TaskStatus::Running);
    assert_eq!(running.progress.unwrap().progress, 0.5);
    let held = &running.resource.unwrap().applications["j1"];
    assert_eq!((held.queue_memory, held.queue_instances), (128 << 20, 1));

    answers.json("/jobs/j1", job("BATCH", "FINISHED", json!({"FINISHED": 2})));
    list(answers, &[("j1", "FINISHED", json!({"finished": 4}))]);
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let reports = adapter.reports();
    let last = reports.last().unwrap();
    assert_eq!(last.status, TaskStatus::Succeed);
    assert_eq!(last.progress.as_ref().unwrap().progress, 1.0);
    assert_eq!(
        last.resource.as_ref().unwrap().applications["j1"].queue_memory,
        0
    );
    let sequences: Vec<i64> = reports.iter().map(|report| report.sequence).collect();
    assert_eq!(sequences, Vec::from_iter(0..reports.len() as i64));
    assert_eq!(
        reports
            .iter()
            .filter(|report| report.status.is_final())
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_part_fails_alone_and_a_job_that_hangs_delays_no_other() {
    let flink = cluster().await;
    let answers = &flink.answers;
    let listed = |jid| (jid, "RUNNING", json!({"running": 4}));
    list(
        answers,
        &[
            listed("good"),
            listed("part"),
            listed("page"),
            listed("hangs"),
        ],
    );
    let running = || job("STREAMING", "RUNNING", json!({"RUNNING": 2}));
    for jid in ["good", "part"] {
        answers.json(&format!("/jobs/{jid}"), running());
        answers.json(
            &format!("/jobs/{jid}/metrics"),
            json!([{"id": "numRestarts", "value": "3"}]),
        );
        for vertex in ["a", "b"] {
            let path = format!("/jobs/{jid}/vertices/{vertex}/subtasks/metrics");
            let lag = "Source__x.KafkaSourceReader.pendingRecords";
            answers.json(&path, json!([{"id": lag, "sum": 40.0, "max": 250.0}]));
        }
        let latest = json!({"completed": {"latest_ack_timestamp": 4_000}});
        let counts = json!({"completed": 9, "failed": 1, "in_progress": 0});
        answers.json(
            &format!("/jobs/{jid}/checkpoints"),
            json!({"counts": counts, "latest": latest}),
        );
    }
    answers.fail("/jobs/part/checkpoints");
    answers.set("/jobs/page", Answer::Page);
    answers.set("/jobs/hangs", Answer::Hangs);
    answers.fail("/taskmanagers");
    let adapter = adapter(&["--url", &flink.url]);
    for jid in ["good", "part", "page"] {
        let is_third = |report: &TaskRunningInfo| report.exec_id == jid && report.sequence == 2;
        let report = adapter
            .reports_one(&format!("{jid} is reported"), is_third)
            .await;
        assert_eq!(report.status, TaskStatus::Running, "{jid}");
        assert_eq!(
            (&report.progress, &report.resource),
            (&None, &None),
            "{jid}"
        );
        assert_eq!(report.engine.running_tasks, 16);
        let long = |name| metric(&report, name);
        if jid == "page" {
            assert_eq!(report.metrics, None);
            continue;
        }
        assert_eq!(long("recordsIn"), Some(MetricValue::Long(8)));
        assert_eq!(long("restarts"), Some(MetricValue::Long(3)));
        assert_eq!(long("pendingRecords"), Some(MetricValue::Long(40)));
        assert_eq!(long("busyMax"), Some(MetricValue::Double(0.25)));
        let checkpoints = (jid == "good").then_some(MetricValue::Long(9));
        assert_eq!(long("checkpointsCompleted"), checkpoints);
        let age = (jid == "good").then_some(MetricValue::Long(1_000));
        assert_eq!(long("lastCheckpointAgeMs"), age);
    }
    assert!(
        adapter
            .reports()
            .iter()
            .all(|report| report.exec_id != "hangs")
    );
    let log = adapter.log();
    for once in ["job part at", "job page at", "TaskManagers: it answers 503"] {
        assert_eq!(log.matches(once).count(), 1, "{once}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_server_tells_the_end_once_the_job_manager_has_gone() {
    let (mut flink, history) = (cluster().await, cluster().await);
    let running = || job("STREAMING", "RUNNING", json!({"RUNNING": 2}));
    list(&flink.answers, &[("j1", "RUNNING", json!({"running": 4}))]);
    flink.answers.json("/jobs/j1", running());
    let arguments = [
        "--url",
        &flink.url,
        "--history-url",
        &history.url,
        "--give-up-after",
        "1h",
    ];
    let mut adapter = adapter(&arguments);
    adapter.reports_one("it is reported", |_| true).await;
    flink.stop().await;

    history
        .answers
        .json("/jobs/j1", job("STREAMING", "FAILED", json!({"FAILED": 2})));
    let entry = json!({"exceptionName": "java.lang.IllegalStateException", "stacktrace": "secret"});
    let exceptions = json!({"root-exception": "secret", "exceptionHistory": {"entries": [entry]}});
    history.answers.json("/jobs/j1/exceptions", exceptions);
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let reports = adapter.reports();
    let last = reports.last().unwrap();
    assert_eq!(last.status, TaskStatus::Failed);
    let exception = MetricValue::String("java.lang.IllegalStateException".to_owned());
    assert_eq!(metric(last, "failureException"), Some(exception));
    assert!(!format!("{reports:?}{}", adapter.log()).contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_checkpoint_is_reported_although_flink_answers_with_older_counts_at_the_end() {
    const END: i64 = 10_000;
    const LONG_AFTER: i64 = END + 3_600_000;
    let flink = cluster().await;
    let answers = &flink.answers;
    let cancelled = json!({"canceled": 4});
    let listed = ["just", "before"].map(|jid| (jid, "CANCELED", cancelled.clone()));
    list(answers, &listed);
    let checkpoints = |jid, completed| {
        let counts = json!({"completed": completed, "failed": 0, "in_progress": 0});
        answers.json(
            &format!("/jobs/{jid}/checkpoints"),
            json!({"counts": counts}),
        );
    };
    for (jid, now) in [("just", END), ("before", LONG_AFTER)] {
        let mut detail = job("STREAMING", "CANCELED", json!({"CANCELED": 2}));
        detail["now"] = now.into();
        detail["timestamps"]["CANCELED"] = END.into();
        answers.json(&format!("/jobs/{jid}"), detail);
        checkpoints(jid, 76);
    }
    let mut adapter = adapter(&["--url", &flink.url]);
    let times_asked = |jid| answers.times_asked(&format!("/jobs/{jid}/checkpoints"));
    until("the counts are read", WAIT, async || {
        (times_asked("just") == 1).then_some(())
    })
    .await;
    checkpoints("just", 77);
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    for (jid, completed, times) in [("just", 77, 2), ("before", 76, 1)] {
        let last = adapter.last(jid);
        assert_eq!((last.status, last.sequence), (TaskStatus::Cancelled, 0));
        let completed = Some(MetricValue::Long(completed));
        assert_eq!(metric(&last, "checkpointsCompleted"), completed, "{jid}");
        assert_eq!(times_asked(jid), times, "{jid}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_report_waits_for_parts_that_could_not_be_read_but_not_for_ever() {
    let flink = cluster().await;
    let answers = &flink.answers;
    let failed = json!({"failed": 4});
    list(
        answers,
        &["late", "never"].map(|jid| (jid, "FAILED", failed.clone())),
    );
    let path = |jid: &str, part: &str| format!("/jobs/{jid}/{part}");
    for jid in ["late", "never"] {
        let detail = job("STREAMING", "FAILED", json!({"FAILED": 2}));
        answers.json(&format!("/jobs/{jid}"), detail);
        answers.fail(&path(jid, "checkpoints"));
        answers.fail(&path(jid, "exceptions"));
    }
    let mut adapter = adapter(&["--url", &flink.url]);
    adapter.logs("job late at").await;
    let counts = json!({"completed": 9, "failed": 1, "in_progress": 0});
    answers.json(&path("late", "checkpoints"), json!({"counts": counts}));
    let exceptions = json!({"entries": [{"exceptionName": "java.io.IOException"}]});
    let exceptions = json!({"exceptionHistory": exceptions});
    answers.json(&path("late", "exceptions"), exceptions);
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let exception = MetricValue::String("java.io.IOException".to_owned());
    for (jid, completed, exception) in [
        ("late", Some(MetricValue::Long(9)), Some(exception)),
        ("never", None, None),
    ] {
        let last = adapter.last(jid);
        assert_eq!((last.status, last.sequence), (TaskStatus::Failed, 0));
        assert_eq!(metric(&last, "checkpointsCompleted"), completed, "{jid}");
        assert_eq!(metric(&last, "failureException"), exception, "{jid}");
    }
    assert_eq!(answers.times_asked(&path("never", "checkpoints")), 3);
}

/// Answers in the form that Flink 1.9's documentation shows, and that people have recorded from 1.9 and 1.11: without a job
/// type, the state INITIALIZING, what a slot holds, sizes of single checkpoints, and the names of exceptions.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_flink_1_9_is_reported_with_all_that_it_tells() {
    let flink = Server::start().await;
    let answers = &flink.answers;
    let states = |running: i64, failed: i64| {
        json!({"CREATED": 0, "SCHEDULED": 0, "DEPLOYING": 0, "RUNNING": running, "FINISHED": 0, "CANCELING": 0,
            "CANCELED": 0, "FAILED": failed, "RECONCILING": 0})
    };
    let overview = |state, running: i64, failed: i64| {
        let tasks = json!({"total": 4, "created": 0, "scheduled": 0, "deploying": 0, "running": running, "finished": 0,
            "canceling": 0, "canceled": 0, "failed": failed, "reconciling": 0});
        json!({"jobs": [{"jid": "j1", "name": "secret", "state": state, "start-time": 1_000, "end-time": -1,
            "duration": 4_000, "last-modification": 1_100, "tasks": tasks}]})
    };
    let detail = |state, running, failed| {
        let vertex = |id, read, written| {
            let metrics = json!({"read-bytes": read * 10, "read-bytes-complete": true, "write-bytes": written * 10,
                "write-bytes-complete": true, "read-records": read, "read-records-complete": true,
                "write-records": written, "write-records-complete": true});
            json!({"id": id, "name": "secret", "parallelism": 2, "status": state, "start-time": 1_100, "end-time": -1,
                "duration": 3_900, "tasks": states(running, failed), "metrics": metrics})
        };
        let node = |id, inputs: Option<Value>| {
            let mut node = json!({"id": id, "parallelism": 2, "operator": "", "operator_strategy": "",
                "description": "secret", "optimizer_properties": {}});
            if let Some(inputs) = inputs {
                node["inputs"] = inputs;
            }
            node
        };
        let input = json!([{"num": 0, "id": "a", "ship_strategy": "HASH", "exchange": "pipelined_bounded"}]);
        json!({"jid": "j1", "name": "secret", "isStoppable": false, "state": state, "start-time": 1_000, "end-time": -1,
            "duration": 4_000, "now": 5_000, "timestamps": {"CREATED": 1_000, "RUNNING": 1_100, "RESTARTING": 0,
            "FAILING": 0, "FAILED": 0, "CANCELLING": 0, "CANCELED": 0, "FINISHED": 0, "SUSPENDED": 0, "RECONCILING": 0},
            "vertices": [vertex("a", 0, 70), vertex("b", 60, 0)], "status-counts": states(2, 0),
            "plan": {"jid": "j1", "name": "secret", "nodes": [node("b", Some(input)), node("a", None)]}})
    };
    let sizes = json!({"min": 1, "max": 9, "avg": 5});
    let checkpoint = json!({"@class": "completed", "id": 38, "status": "COMPLETED", "is_savepoint": false,
        "trigger_timestamp": 4_497, "latest_ack_timestamp": 4_500, "state_size": 8_077, "end_to_end_duration": 3,
        "alignment_buffered": 0, "num_subtasks": 2, "num_acknowledged_subtasks": 2, "tasks": {},
        "external_path": "<checkpoint-not-externally-addressable>", "discarded": false});
    let checkpoints = json!({
        "counts": {"restored": 0, "total": 38, "in_progress": 0, "completed": 37, "failed": 1},
        "summary": {"state_size": sizes, "end_to_end_duration": sizes, "alignment_buffered": sizes},
        "latest": {"completed": checkpoint, "savepoint": null, "failed": null, "restored": null},
        "history": [checkpoint]});
    let task_manager = json!({"id": "tm", "path": "akka.tcp://flink@h:1/user/taskmanager_0", "dataPort": 1,
        "timeSinceLastHeartbeat": 1, "slotsNumber": 4, "freeSlots": 0,
        "hardware": {"cpuCores": 4, "physicalMemory": 1, "freeMemory": 1, "managedMemory": 1}});
    answers.json("/taskmanagers", json!({"taskmanagers": [task_manager]}));
    answers.json("/taskmanagers/tm", task_manager);
    answers.json("/jobs/overview", overview("RUNNING", 4, 0));
    answers.json("/jobs/j1", detail("RUNNING", 2, 0));
    answers.json("/jobs/j1/checkpoints", checkpoints);
    let restarts = json!([{"id": "fullRestarts", "value": "2"}]);
    answers.json("/jobs/j1/metrics", restarts);
    let mut adapter = adapter(&["--url", &flink.url]);
    let running = adapter
        .reports_one("it is reported", |report| report.sequence == 1)
        .await;
    assert_eq!(running.status, TaskStatus::Running);
    assert_eq!((&running.progress, &running.resource), (&None, &None));
    assert_eq!(running.engine.running_tasks, 4);
    for (name, value) in [
        ("tasksTotal", 4),
        ("tasksRunning", 4),
        ("runningSince", 1_100),
        ("recordsIn", 70),
        ("bytesIn", 700),
        ("recordsOut", 60),
        ("bytesOut", 600),
        ("restarts", 2),
        ("checkpointsCompleted", 37),
        ("checkpointsFailed", 1),
        ("lastCheckpointAgeMs", 500),
        ("lastCheckpointDurationMs", 3),
        ("lastCheckpointStateBytes", 8_077),
    ] {
        let value = Some(MetricValue::Long(value));
        assert_eq!(metric(&running, name), value, "{name}");
    }
    for absent in ["jobType", "pendingRecords", "lastCheckpointSizeBytes"] {
        assert_eq!(metric(&running, absent), None, "{absent}");
    }

    answers.json("/jobs/overview", overview("FAILED", 0, 4));
    answers.json("/jobs/j1", detail("FAILED", 0, 2));
    let exceptions = json!({"root-exception": "secret", "timestamp": 4_900, "all-exceptions": [], "truncated": false});
    answers.json("/jobs/j1/exceptions", exceptions);
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let last = adapter.last("j1");
    assert_eq!(last.status, TaskStatus::Failed);
    assert_eq!(metric(&last, "failureException"), None);
    let all = format!("{:?}{}", adapter.reports(), adapter.log());
    assert!(!all.contains("secret"), "{all}");
}

/// All runs of all application clusters with high availability have this job id.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_of_an_older_run_does_not_end_the_running_one() {
    let (mut flink, history) = (cluster().await, cluster().await);
    let fixed = "0".repeat(32);
    let path = format!("/jobs/{fixed}");
    let started = |start: i64, mut answer: Value| {
        answer["start-time"] = json!(start);
        answer
    };
    let list = |answers: &Answers, state| {
        let listed = json!({"jid": fixed, "state": state, "tasks": {"running": 4}});
        let jobs = [started(5_000_000, listed)];
        answers.json("/jobs/overview", json!({"jobs": jobs}));
    };
    list(&flink.answers, "RUNNING");
    let running = job("STREAMING", "RUNNING", json!({"RUNNING": 2}));
    flink.answers.json(&path, started(5_000_000, running));
    let older = job("STREAMING", "CANCELED", json!({"CANCELED": 2}));
    history.answers.json(&path, started(1_000, older));
    let mut adapter = adapter(&["--url", &flink.url, "--history-url", &history.url]);
    adapter.reports_one("it is reported", |_| true).await;

    flink.stop().await;
    until("the history is asked twice", WAIT, async || {
        (history.answers.times_asked(&path) >= 2).then_some(())
    })
    .await;
    let before = adapter.reports().len() as i64;
    flink.restart().await;
    adapter
        .reports_one("it is followed again", |report| report.sequence > before)
        .await;
    assert_eq!(
        history.answers.times_asked(&format!("{path}/checkpoints")),
        0
    );

    let ended = job("STREAMING", "FINISHED", json!({"FINISHED": 2}));
    flink.answers.json(&path, started(5_000_000, ended));
    list(&flink.answers, "FINISHED");
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let reports = adapter.reports();
    let (last, before) = reports.split_last().unwrap();
    assert_eq!(last.status, TaskStatus::Succeed);
    for report in before {
        assert_eq!(report.status, TaskStatus::Running);
        assert_eq!(report.exec_id, last.exec_id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_gone_is_unknown_and_one_of_that_name_is_another() {
    let flink = cluster().await;
    let answers = &flink.answers;
    list(answers, &[("j1", "RUNNING", json!({"running": 4}))]);
    answers.json(
        "/jobs/j1",
        job("STREAMING", "RUNNING", json!({"RUNNING": 2})),
    );
    let mut adapter = adapter(&["--url", &flink.url, "--give-up-after", "200ms"]);
    adapter.reports_one("it is reported", |_| true).await;
    // The JobManager was restarted; the new job has the name of the old one.
    answers.remove("/jobs/j1");
    list(answers, &[("j2", "CANCELED", json!({"canceled": 4}))]);
    answers.json(
        "/jobs/j2",
        job("STREAMING", "CANCELED", json!({"CANCELED": 2})),
    );
    let status = adapter.ended().await;
    assert_eq!(status.code(), Some(1), "{}", adapter.log());
    let log = adapter.log();
    assert!(
        log.contains("how j1 ended is not known; --history-url"),
        "{log}"
    );
    let last = |jid| {
        let mut reports = adapter.reports().into_iter();
        reports.rfind(|report| report.exec_id == jid).unwrap()
    };
    assert_eq!(last("j1").status, TaskStatus::Unknown);
    assert_eq!(last("j1").metrics, None);
    assert_eq!(last("j2").status, TaskStatus::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_about_another_job_is_not_used() {
    let flink = cluster().await;
    let (history, answers) = (cluster().await, &flink.answers);
    list(answers, &[("j1", "RUNNING", json!({"running": 4}))]);
    for server in [&flink, &history] {
        let mut other = job("BATCH", "FINISHED", json!({"FINISHED": 2}));
        other["jid"] = "j2".into();
        server.answers.json("/jobs/j1", other);
    }
    let adapter = adapter(&["--url", &flink.url, "--history-url", &history.url]);
    until("the answer is named", WAIT, async || {
        let log = adapter.log();
        log.contains("asked for the job j1, it answers about")
            .then_some(())
    })
    .await;
    list(answers, &[]);
    until("the archive is asked for", WAIT, async || {
        (history.answers.times_asked("/jobs/j1") > 1).then_some(())
    })
    .await;
    let ended = |report: &TaskRunningInfo| report.status == TaskStatus::Succeed;
    assert!(!adapter.reports().iter().any(ended), "{}", adapter.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_never_lists_jobs_is_named() {
    let flink = cluster().await;
    flink.answers.set("/jobs/overview", Answer::Page);
    let mut adapter = adapter(&["--url", &flink.url, "--give-up-after", "200ms"]);
    assert_eq!(adapter.ended().await.code(), Some(1));
    let log = adapter.log();
    let fault = "never listed its jobs: it answers with a page";
    assert!(
        log.contains(fault) && log.contains("not the address of a Flink JobManager"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_archive_is_reported_once() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/inputs/flink/d933fa6c785f0db6dccc6cc05dd43bab.json");
    let Ok(text) = std::fs::read_to_string(&recorded) else {
        service::output::note(format_args!("skipped: there is no {}", recorded.display()));
        return;
    };
    let flink = cluster().await;
    let archive: Value = serde_json::from_str(&text).unwrap();
    for entry in archive["archive"].as_array().unwrap() {
        let json = serde_json::from_str(entry["json"].as_str().unwrap()).unwrap();
        flink.answers.json(entry["path"].as_str().unwrap(), json);
    }
    let mut adapter = adapter(&["--url", &flink.url]);
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let reports = adapter.reports();
    let [report] = &reports[..] else {
        panic!("{reports:?}");
    };
    assert_eq!(report.exec_id, "d933fa6c785f0db6dccc6cc05dd43bab");
    assert_eq!(report.status, TaskStatus::Failed);
    assert_eq!(metric(report, "tasksFailed"), Some(MetricValue::Long(1)));
}
