//! Answers that real Sparks gave.

use std::path::Path;

use schemas::{MetricValue, TaskStatus};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::super::answers::{self, Executor, Job, Stage};
use super::super::application::{Application, Key, Poll};
use super::super::mapping::State;
use super::{application, jobs, long};

/// A recorded answer; `None`, and the test is to return, where the recordings are absent.
fn recorded<T: DeserializeOwned>(name: &str) -> Option<T> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../shared/inputs/spark/rest"
    );
    let path = Path::new(folder).join(format!("{name}_expectation.json"));
    if !path.exists() {
        println!("skipped: {} is absent", path.display());
        return None;
    }
    let text = std::fs::read(path).unwrap();
    Some(serde_json::from_slice(&text).unwrap())
}

#[test]
fn a_recorded_application_with_a_failed_job_is_reported_as_its_rest_api_told_it() {
    let Some(received) = recorded::<Vec<Job>>("job_list_json") else {
        return;
    };
    let poll = Poll {
        jobs: Some(received),
        stages: recorded::<Vec<Stage>>("stage_list_json"),
        executors: recorded::<Vec<Executor>>("executor_list_json"),
        ..Poll::default()
    };
    let mut application = application("local-1422981780767");
    let reports = application.reports(poll, State::Completed, 1_422_981_780_767_000);
    assert_eq!(reports.len(), 1);
    let info = &reports[0];
    assert_eq!(info.problems(), []);
    assert_eq!(info.exec_id, "local-1422981780767");
    assert_eq!(info.job_id, "local-1422981780767");
    assert_eq!(info.status, TaskStatus::Failed);
    let part = info.progress.as_ref().unwrap();
    assert_eq!(part.progress, 31.0 / 32.0);
    let counts: Vec<(&str, i32, i32, i32)> = part
        .progress_info
        .iter()
        .map(|job| {
            (
                job.id.as_str(),
                job.total_tasks,
                job.failed_tasks,
                job.succeed_tasks,
            )
        })
        .collect();
    assert_eq!(counts, [("0", 8, 0, 8), ("1", 16, 1, 15), ("2", 8, 0, 8)]);
    assert_eq!(
        info.metrics.as_ref().unwrap()["failedJobIds"],
        MetricValue::String("1".into())
    );
    assert_eq!(long(info, "jobsFailed"), 1);
    assert_eq!(long(info, "application.inputBytes"), 28_000_288);
    assert_eq!(long(info, "application.shuffleWriteBytes"), 13_180);
    assert_eq!(long(info, "shuffleWriteBytes"), 13_180);
    let held = &info.resource.as_ref().unwrap().applications["local-1422981780767"];
    assert_eq!(
        (
            held.queue_memory,
            held.queue_cores,
            held.job_status.as_str()
        ),
        (0, 0, "COMPLETED")
    );
}

#[test]
fn every_recorded_answer_can_be_read() {
    for name in [
        "application_list_json",
        "limit_app_list_json",
        "running_app_list_json",
    ] {
        recorded::<Vec<answers::Application>>(name);
    }
    for name in ["one_app_json", "one_app_multi_attempt_json"] {
        recorded::<answers::Application>(name);
    }
    for name in [
        "job_list_json",
        "succeeded_failed_job_list_json",
        "job_list_from_multi_attempt_app_json_1_",
    ] {
        recorded::<Vec<Job>>(name);
    }
    for name in [
        "stage_list_json",
        "failed_stage_list_json",
        "one_stage_json",
    ] {
        recorded::<Vec<Stage>>(name);
    }
    for name in [
        "executor_list_json",
        "executor_list_with_executor_metrics_json",
        "executor_memory_usage",
        "executor_node_excludeOnFailure",
    ] {
        recorded::<Vec<Executor>>(name);
    }
}

#[test]
fn attempts_of_one_application_are_exec_tasks_of_their_own() {
    let Some(received) = recorded::<answers::Application>("one_app_multi_attempt_json") else {
        return;
    };
    let ids: Vec<String> = received
        .attempts
        .iter()
        .map(|attempt| {
            let key = Key::new(&received.id, attempt);
            let mut application = Application::new(key, &attempt.spark_user, "node-1:18080");
            let answer = json!([{"jobId": 0, "status": "SUCCEEDED", "jobGroup": "g"}]);
            let info = application
                .reports(jobs(answer), State::Completed, 0)
                .remove(0);
            assert_eq!(info.job_id, "local-1426533911241");
            assert_eq!(info.engine.user, "irashid");
            info.exec_id
        })
        .collect();
    assert_eq!(ids, ["local-1426533911241/2/g", "local-1426533911241/1/g"]);
}
