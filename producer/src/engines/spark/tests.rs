//! The mapping, on answers that real Sparks gave and on odd ones made up; no network.

use std::path::Path;

use proptest::prelude::*;
use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::answers::{self, Attempt, Environment, Executor, Job, Stage};
use super::application::{Application, Key, Poll};
use super::mapping::State;

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

fn application(id: &str) -> Application {
    let key = Key::new(id, &Attempt::default());
    Application::new(key, "ada", "node-1:4040")
}

fn jobs(answer: serde_json::Value) -> Poll {
    Poll {
        jobs: Some(serde_json::from_value(answer).unwrap()),
        ..Poll::default()
    }
}

fn reports(answer: serde_json::Value, state: State) -> Vec<TaskRunningInfo> {
    application("app-1").reports(jobs(answer), state, 0)
}

fn report(answer: serde_json::Value, state: State) -> TaskRunningInfo {
    let mut reports = reports(answer, state);
    assert_eq!(reports.len(), 1, "{reports:?}");
    reports.remove(0)
}

fn progress(info: &TaskRunningInfo) -> f64 {
    info.progress.as_ref().unwrap().progress
}

fn long(info: &TaskRunningInfo, name: &str) -> i64 {
    match info.metrics.as_ref().unwrap().get(name) {
        Some(MetricValue::Long(value)) => *value,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn a_recorded_application_with_a_failed_job_is_reported_as_its_rest_api_told_it() {
    let Some(told) = recorded::<Vec<Job>>("job_list_json") else {
        return;
    };
    let poll = Poll {
        jobs: Some(told),
        stages: recorded::<Vec<Stage>>("stage_list_json"),
        executors: recorded::<Vec<Executor>>("executor_list_json"),
        environment: None,
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
    let Some(told) = recorded::<answers::Application>("one_app_multi_attempt_json") else {
        return;
    };
    let ids: Vec<String> = told
        .attempts
        .iter()
        .map(|attempt| {
            let key = Key::new(&told.id, attempt);
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
fn each_job_group_is_an_exec_task_and_jobs_without_one_are_the_applications() {
    let answer = json!([
        {"jobId": 0, "status": "SUCCEEDED", "jobGroup": "load"},
        {"jobId": 1, "status": "RUNNING", "jobGroup": "join"},
        {"jobId": 2, "status": "SUCCEEDED"},
        {"jobId": 3, "status": "SUCCEEDED", "jobGroup": "load"},
        {"jobId": 4, "status": "SUCCEEDED", "jobGroup": " "},
    ]);
    let told = reports(answer, State::Alive);
    let told: Vec<(&str, usize)> = told
        .iter()
        .map(|info| {
            (
                info.exec_id.as_str(),
                info.progress.as_ref().unwrap().progress_info.len(),
            )
        })
        .collect();
    assert_eq!(told, [("app-1", 2), ("app-1/join", 1), ("app-1/load", 2)]);
}

#[test]
fn an_application_without_jobs_is_reported_at_its_end_only() {
    assert_eq!(reports(json!([]), State::Alive), []);
    let info = report(json!([]), State::Completed);
    assert_eq!(
        (info.exec_id.as_str(), info.status),
        ("app-1", TaskStatus::Succeed)
    );
    assert_eq!(report(json!([]), State::Gone).status, TaskStatus::Unknown);
}

#[test]
fn a_status_is_final_only_at_the_applications_end_and_only_when_it_can_be_justified() {
    let job = |status: &str| json!({"jobId": 0, "status": status, "numTasks": 4, "numActiveTasks": 2, "numCompletedTasks": 2});
    let cancelled = json!({"jobId": 1, "status": "FAILED", "numKilledTasks": 2,
        "killedTasksSummary": {"Stage cancelled: Job 1 cancelled part of cancelled job group g": 2}});
    let status = |answer, state| report(json!(answer), state).status;

    for told in ["RUNNING", "SUCCEEDED", "FAILED", "UNKNOWN"] {
        assert_eq!(
            status([job(told)], State::Alive),
            TaskStatus::Running,
            "{told}"
        );
    }
    let ends = [
        ("SUCCEEDED", TaskStatus::Succeed, TaskStatus::Unknown),
        ("FAILED", TaskStatus::Failed, TaskStatus::Failed),
        ("RUNNING", TaskStatus::Unknown, TaskStatus::Unknown),
        ("UNKNOWN", TaskStatus::Unknown, TaskStatus::Unknown),
    ];
    for (told, completed, replaced) in ends {
        assert_eq!(status([job(told)], State::Completed), completed, "{told}");
        assert_eq!(status([job(told)], State::Replaced), replaced, "{told}");
        let gone = status([job(told)], State::Gone);
        assert_eq!(gone, TaskStatus::Unknown, "{told}: it may go on somewhere");
    }
    assert_eq!(status([cancelled], State::Completed), TaskStatus::Cancelled);
    let both = reports(
        json!([{"jobId": 0, "status": "FAILED"}, {"jobId": 1, "status": "SUCCEEDED"}]),
        State::Completed,
    );
    assert_eq!(
        both[0].status,
        TaskStatus::Failed,
        "a later job does not make up for it"
    );
}

#[test]
fn of_an_application_that_is_gone_the_last_known_parts_are_kept() {
    let mut application = application("app-1");
    let answer = json!([{"jobId": 0, "status": "RUNNING", "numTasks": 4, "numActiveTasks": 2, "numCompletedTasks": 2}]);
    let poll = Poll {
        executors: Some(vec![Executor {
            id: "1".into(),
            is_active: true,
            active_tasks: 2,
            total_cores: 4,
            ..Executor::default()
        }]),
        ..jobs(answer)
    };
    let alive = application.reports(poll, State::Alive, 0).remove(0);
    assert_eq!(alive.engine.running_tasks, 2);
    assert_eq!(
        alive.resource.as_ref().unwrap().applications["app-1"].queue_cores,
        4
    );

    let gone = application
        .reports(Poll::default(), State::Gone, 0)
        .remove(0);
    assert_eq!(
        (gone.status, gone.sequence, progress(&gone)),
        (TaskStatus::Unknown, 1, 0.5)
    );
    assert_eq!(gone.engine.running_tasks, 2);
    assert_eq!(gone.progress, alive.progress);
    assert_eq!(gone.metrics, alive.metrics);
    let held = &gone.resource.as_ref().unwrap().applications["app-1"];
    assert_eq!(
        (
            held.job_status.as_str(),
            held.queue_cores,
            held.queue_instances
        ),
        ("UNKNOWN", 4, 1)
    );
    assert_eq!(long(&gone, "jobsRunning"), 1, "the last that was seen");
}

#[test]
fn a_part_that_was_never_told_is_null_when_the_application_is_gone() {
    let gone = application("app-1").reports(Poll::default(), State::Gone, 0);
    assert_eq!(gone.len(), 1);
    assert_eq!(gone[0].status, TaskStatus::Unknown);
    assert_eq!(
        (&gone[0].progress, &gone[0].resource, &gone[0].metrics),
        (&None, &None, &None)
    );
}

#[test]
fn a_part_that_was_not_answered_is_null_and_the_others_go_out() {
    let mut application = application("app-1");
    let running = json!([{"jobId": 0, "status": "RUNNING", "numTasks": 4}]);
    application.reports(jobs(running), State::Alive, 0);
    let poll = Poll {
        executors: Some(vec![Executor {
            id: "1".into(),
            is_active: true,
            total_cores: 4,
            max_memory: 1 << 30,
            ..Executor::default()
        }]),
        ..Poll::default()
    };
    let info = application.reports(poll, State::Alive, 0).remove(0);
    assert_eq!((info.status, info.sequence), (TaskStatus::Running, 1));
    assert_eq!(info.progress, None);
    assert!(info.resource.is_some());
    assert_eq!(long(&info, "application.executors"), 1);
    assert!(!info.metrics.as_ref().unwrap().contains_key("jobsRunning"));

    let info = application
        .reports(Poll::default(), State::Alive, 0)
        .remove(0);
    assert_eq!(
        (&info.progress, &info.resource, &info.metrics),
        (&None, &None, &None)
    );
    assert_eq!(info.sequence, 2);
}

#[test]
fn an_idle_task_is_reported_when_something_changes_and_now_and_then() {
    let mut application = application("app-1");
    let answer = |status: &str| jobs(json!([{"jobId": 0, "status": status, "numTasks": 4}]));
    let mut polls = |status: &str, count: usize| -> usize {
        (0..count)
            .map(|_| application.reports(answer(status), State::Alive, 0).len())
            .sum()
    };
    assert_eq!(polls("RUNNING", 10), 10);
    assert_eq!(polls("SUCCEEDED", 1), 1);
    assert_eq!(polls("SUCCEEDED", 11), 0);
    assert_eq!(polls("SUCCEEDED", 1), 1);
    assert_eq!(polls("RUNNING", 1), 1);
}

fn environment(properties: &[(&str, &str)]) -> Environment {
    let pairs = properties
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Environment {
        spark_properties: pairs.collect(),
    }
}

fn holds(executors: Vec<Executor>, environment: Option<Environment>) -> (i64, i32, i32, String) {
    let poll = Poll {
        executors: Some(executors),
        environment,
        ..jobs(json!([{"jobId": 0, "status": "RUNNING"}]))
    };
    let info = application("app-1")
        .reports(poll, State::Alive, 0)
        .remove(0);
    let held = &info.resource.as_ref().unwrap().applications["app-1"];
    assert_eq!(held.job_status, "RUNNING");
    (
        held.queue_memory,
        held.queue_cores,
        held.queue_instances,
        held.queue.clone(),
    )
}

#[test]
fn the_driver_is_no_executor_but_in_local_mode_it_does_the_work() {
    let executor = |id: &str, is_active| Executor {
        id: id.to_owned(),
        is_active,
        total_cores: 4,
        max_memory: 384 << 20,
        ..Executor::default()
    };
    let all = || {
        vec![
            executor("driver", true),
            executor("1", true),
            executor("2", true),
            executor("3", false),
        ]
    };
    const GIB: i64 = 1 << 30;
    const MIB: i64 = 1 << 20;

    let yarn = [
        ("spark.master", "yarn"),
        ("spark.executor.memory", "8g"),
        ("spark.yarn.queue", "etl"),
    ];
    // Overhead: a tenth, but 384 MiB at least.
    let overhead = 8 * 1024 / 10 * MIB;
    assert_eq!(
        holds(all(), Some(environment(&yarn))),
        (2 * (8 * GIB + overhead), 8, 2, "etl".into())
    );
    let told = [
        ("spark.executor.memory", "2048"),
        ("spark.executor.memoryOverhead", "512m"),
    ];
    assert_eq!(holds(all(), Some(environment(&told))).0, 2 * 2560 * MIB);
    let standalone = [("spark.master", "spark://node-1:7077")];
    assert_eq!(holds(all(), Some(environment(&standalone))).0, 2 * GIB);
    let local = [
        ("spark.master", "local[4]"),
        ("spark.driver.memory", "512m"),
    ];
    assert_eq!(
        holds(vec![executor("driver", true)], Some(environment(&local))),
        (512 * MIB, 4, 0, String::new())
    );
    // While the environment is not known: storage memory.
    assert_eq!(holds(all(), None), (2 * 384 * MIB, 8, 2, String::new()));
}

#[test]
fn a_hundred_thousand_jobs_stay_bounded_and_nothing_of_them_is_lost() {
    const STEP: i64 = 5_000;
    let mut application = application("app-1");
    for first in (0..100_000_i64).step_by(STEP as usize) {
        // As Spark's UI does: it shows the newest ones only.
        let told: Vec<Job> = (first..first + STEP)
            .map(|id| Job {
                job_id: id,
                status: if id == 7 { "RUNNING" } else { "SUCCEEDED" }.to_owned(),
                num_tasks: i64::from(i32::MAX) / 200_000,
                num_completed_tasks: i64::from(i32::MAX) / 200_000,
                stage_ids: vec![id],
                ..Job::default()
            })
            .collect();
        let stages = told
            .iter()
            .map(|job| Stage {
                stage_id: job.job_id,
                input_bytes: 3,
                ..Stage::default()
            })
            .collect();
        let poll = Poll {
            jobs: Some(told),
            stages: Some(stages),
            ..Poll::default()
        };
        let reports = application.reports(poll, State::Alive, 0);
        assert_eq!(reports.len(), 1);
        let info = &reports[0];
        assert!(schemas::encode_info(info).unwrap().len() < 900_000);
        let listed = &info.progress.as_ref().unwrap().progress_info;
        assert!(listed.len() <= 10_001);
        let tasks: i64 = listed.iter().map(|job| i64::from(job.total_tasks)).sum();
        assert_eq!(tasks, (first + STEP) * (i64::from(i32::MAX) / 200_000));
        assert_eq!(long(info, "inputBytes"), (first + STEP) * 3);
        if first + STEP == 100_000 {
            assert_eq!(listed[0].id, "90000 jobs up to 90000");
            assert_eq!(listed[1].id, "7", "what runs is not folded");
            assert_eq!(long(info, "foldedJobs"), 90_000);
        }
    }
}

#[test]
fn a_group_for_each_statement_does_not_make_memory_grow() {
    let mut application = application("app-1");
    let mut ended = 0;
    for first in (0..40_000_i64).step_by(1_000) {
        let told: Vec<Job> = (first..first + 1_000)
            .map(|id| Job {
                job_id: id,
                status: if id == 3 { "FAILED" } else { "SUCCEEDED" }.to_owned(),
                job_group: Some(format!("statement-{id}")),
                ..Job::default()
            })
            .collect();
        let poll = Poll {
            jobs: Some(told),
            ..Poll::default()
        };
        for info in application.reports(poll, State::Alive, 0) {
            if info.status.is_final() {
                ended += 1;
                let failed = info.exec_id == "app-1/statement-3";
                assert_eq!(info.status == TaskStatus::Failed, failed, "{info:?}");
            }
        }
    }
    assert_eq!(ended, 30_000);
    let last = application.reports(Poll::default(), State::Completed, 0);
    assert_eq!(last.len(), 10_000);
}

#[test]
fn a_job_group_of_any_length_makes_an_identifier_and_the_same_one_each_time() {
    let long = "ü".repeat(1_000);
    let ids: Vec<String> = [&long, &long, &format!("{long}x")]
        .iter()
        .map(|group| {
            let answer = json!([{"jobId": 0, "status": "RUNNING", "jobGroup": group}]);
            let info = report(answer, State::Alive);
            assert_eq!(info.problems(), []);
            info.exec_id
        })
        .collect();
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    // The router replaces U+0000 by U+FFFD, which is longer.
    let nuls = json!([{"jobId": 0, "status": "RUNNING", "jobGroup": "\0".repeat(300)}]);
    let problems = report(nuls, State::Alive).problems();
    assert!(!problems.is_empty());
    assert!(
        problems
            .iter()
            .all(|problem| problem.fault.adjustment().is_some())
    );
}

#[test]
fn job_ids_keep_all_their_nineteen_digits() {
    let info = report(
        json!([{"jobId": 9_007_199_254_740_993_123_i64, "status": "RUNNING", "numTasks": 1}]),
        State::Alive,
    );
    assert_eq!(
        info.progress.unwrap().progress_info[0].id,
        "9007199254740993123"
    );
}

prop_compose! {
    fn any_job()(
        job_id in 0..50_i64, status in "RUNNING|SUCCEEDED|FAILED|UNKNOWN|", group in proptest::option::of("[ab]?"),
        counts in proptest::array::uniform6(prop_oneof![-5..50_i64, any::<i64>()]),
    ) -> Job {
        let [num_tasks, num_active_tasks, num_completed_tasks, num_skipped_tasks, num_failed_tasks, num_killed_tasks] = counts;
        Job {
            job_id, status, job_group: group, num_tasks, num_active_tasks, num_completed_tasks, num_skipped_tasks,
            num_failed_tasks, num_killed_tasks, ..Job::default()
        }
    }
}

proptest! {
    #[test]
    fn whatever_spark_says_progress_is_between_0_and_1_and_the_record_is_usable(
        told in proptest::collection::vec(any_job(), 0..20),
        state in prop_oneof![Just(State::Alive), Just(State::Completed), Just(State::Gone)],
    ) {
        let poll = Poll { jobs: Some(told), ..Poll::default() };
        for info in application("app-1").reports(poll, state, 0) {
            prop_assert!((0.0..=1.0).contains(&progress(&info)));
            for problem in info.problems() {
                prop_assert!(problem.fault.adjustment().is_some(), "{}", problem);
            }
            prop_assert!(state == State::Alive || info.status != TaskStatus::Running);
        }
    }
}
