//! Counts and progress of jobs.

use schemas::MetricValue;
use serde_json::json;

use super::super::mapping::State;
use super::{long, progress, report, reports};

#[test]
fn negative_counts_are_passed_on_as_spark_says_them_and_do_not_spoil_the_progress() {
    let info = report(
        json!([{"jobId": 0, "status": "RUNNING", "numTasks": 10, "numActiveStages": -1, "numActiveTasks": -3, "numCompletedTasks": 5}]),
        State::Alive,
    );
    let part = info.progress.as_ref().unwrap();
    assert_eq!(part.progress_info[0].running_tasks, -3);
    assert_eq!(part.progress, 0.5);
    assert_eq!(info.engine.running_tasks, -3);
    let repaired: Vec<String> = info
        .problems()
        .into_iter()
        .map(|p| p.field.into_owned())
        .collect();
    assert_eq!(
        repaired,
        [
            "engine.runningTasks",
            "progress.progressInfo[0].runningTasks"
        ]
    );
}

#[test]
fn skipped_and_killed_tasks_count_as_done_and_are_not_called_failed() {
    let info = report(
        json!([{"jobId": 0, "status": "RUNNING", "numTasks": 100, "numCompletedTasks": 60, "numSkippedTasks": 30,
                "numKilledTasks": 10, "killedTasksSummary": {"another attempt succeeded": 10}}]),
        State::Alive,
    );
    assert_eq!(progress(&info), 1.0);
    let job = &info.progress.as_ref().unwrap().progress_info[0];
    assert_eq!((job.failed_tasks, job.succeed_tasks), (0, 60));
    assert_eq!(long(&info, "killedTasks"), 10);
    assert_eq!(long(&info, "skippedTasks"), 30);
    assert_eq!(long(&info, "failedTasks"), 0);
}

#[test]
fn killed_copies_of_tasks_that_still_run_are_not_counted_as_done() {
    let info = report(
        json!([{"jobId": 0, "status": "RUNNING", "numTasks": 100, "numCompletedTasks": 60, "numActiveTasks": 40, "numKilledTasks": 5}]),
        State::Alive,
    );
    assert_eq!(progress(&info), 0.6);
}

#[test]
fn killed_tasks_of_a_job_that_failed_are_work_that_was_not_done() {
    let info = report(
        json!([{"jobId": 0, "status": "FAILED", "numTasks": 8, "numCompletedTasks": 2, "numKilledTasks": 6}]),
        State::Alive,
    );
    assert_eq!(progress(&info), 0.25);
}

#[test]
fn tasks_that_run_are_not_progress() {
    let info = report(
        json!([{"jobId": 0, "status": "RUNNING", "numTasks": 10, "numActiveTasks": 10}]),
        State::Alive,
    );
    assert_eq!(progress(&info), 0.0);
    assert_eq!(info.engine.running_tasks, 10);
}

#[test]
fn a_job_without_tasks_is_done() {
    let info = report(json!([{"jobId": 0, "status": "SUCCEEDED"}]), State::Alive);
    assert_eq!(progress(&info), 1.0);
}

#[test]
fn the_jobs_of_a_streaming_query_are_its_batches_and_no_progress() {
    const RUN: &str = "0d9f3b3c-7f2e-4a07-9c33-6a0d4a0a8f11";
    const QUERY: &str = "5f1c8a52-94a5-4b0e-8f5a-0a5cfe1b9d77";
    let batch =
        |batch: &str| format!("clicks<br/>id = {QUERY}<br/>runId = {RUN}<br/>batch = {batch}");
    let job = |id: i64, group: &str, description: &str| {
        json!({"jobId": id, "status": "SUCCEEDED", "numTasks": 2, "numCompletedTasks": 2,
            "jobGroup": group, "description": description})
    };
    let received = reports(
        json!([
            job(0, RUN, &batch("init")),
            job(1, RUN, &batch("6")),
            job(2, RUN, &batch("7")),
            // People's own descriptions, of whatever kind.
            job(3, "mine", &batch("9")),
            job(4, "text", "SELECT name FROM customers"),
            job(5, "like", &format!("id = {QUERY}")),
        ]),
        State::Alive,
    );
    let group = |name: &str| {
        let exec_id = format!("app-1/{name}");
        received
            .iter()
            .find(|info| info.exec_id == exec_id)
            .unwrap()
    };
    assert_eq!(group(RUN).progress, None);
    assert_eq!(long(group(RUN), "stream.batchId"), 7);
    assert_eq!(long(group(RUN), "jobsSucceeded"), 3);
    let metrics = group(RUN).metrics.as_ref().unwrap();
    assert_eq!(metrics["stream.id"], MetricValue::String(QUERY.into()));
    assert_eq!(metrics["stream.name"], MetricValue::String("clicks".into()));
    for other in ["mine", "text", "like"] {
        assert_eq!(progress(group(other)), 1.0);
        let metrics = group(other).metrics.as_ref().unwrap();
        assert!(!metrics.contains_key("stream.id"), "{other}");
    }
    assert!(!format!("{received:?}").contains("SELECT"));
}

#[test]
fn each_job_group_is_an_exec_task_and_jobs_without_one_are_the_applications() {
    let answer = json!([
        {"jobId": 0, "status": "SUCCEEDED", "jobGroup": "load"},
        {"jobId": 1, "status": "RUNNING", "jobGroup": "join"},
        {"jobId": 2, "status": "SUCCEEDED"},
        {"jobId": 3, "status": "SUCCEEDED", "jobGroup": "load"},
        {"jobId": 4, "status": "SUCCEEDED", "jobGroup": " "},
    ]);
    let received = reports(answer, State::Alive);
    let received: Vec<(&str, usize)> = received
        .iter()
        .map(|info| {
            (
                info.exec_id.as_str(),
                info.progress.as_ref().unwrap().progress_info.len(),
            )
        })
        .collect();
    assert_eq!(
        received,
        [("app-1", 2), ("app-1/join", 1), ("app-1/load", 2)]
    );
}
