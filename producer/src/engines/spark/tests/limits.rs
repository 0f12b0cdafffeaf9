//! Any number of jobs, groups of any length, any values.

use proptest::prelude::*;
use schemas::TaskStatus;
use serde_json::json;

use super::super::answers::{Job, Stage};
use super::super::application::Poll;
use super::super::mapping::State;
use super::{application, long, progress, report};

#[test]
fn a_hundred_thousand_jobs_stay_bounded_and_nothing_of_them_is_lost() {
    const STEP: i64 = 5_000;
    let mut application = application("app-1");
    for first in (0..100_000_i64).step_by(STEP as usize) {
        // As Spark's UI does: it shows the newest ones only.
        let received: Vec<Job> = (first..first + STEP)
            .map(|id| Job {
                job_id: id,
                status: if id == 7 { "RUNNING" } else { "SUCCEEDED" }.to_owned(),
                num_tasks: i64::from(i32::MAX) / 200_000,
                num_completed_tasks: i64::from(i32::MAX) / 200_000,
                stage_ids: vec![id],
                ..Job::default()
            })
            .collect();
        let stages = received
            .iter()
            .map(|job| Stage {
                stage_id: job.job_id,
                input_bytes: 3,
                ..Stage::default()
            })
            .collect();
        let poll = Poll {
            jobs: Some(received),
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
        let received: Vec<Job> = (first..first + 1_000)
            .map(|id| Job {
                job_id: id,
                status: if id == 3 { "FAILED" } else { "SUCCEEDED" }.to_owned(),
                job_group: Some(format!("statement-{id}")),
                ..Job::default()
            })
            .collect();
        let poll = Poll {
            jobs: Some(received),
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
        received in proptest::collection::vec(any_job(), 0..20),
        state in prop_oneof![Just(State::Alive), Just(State::Completed), Just(State::Gone)],
    ) {
        let poll = Poll { jobs: Some(received), ..Poll::default() };
        for info in application("app-1").reports(poll, state, 0) {
            prop_assert!((0.0..=1.0).contains(&progress(&info)));
            for problem in info.problems() {
                prop_assert!(problem.fault.adjustment().is_some(), "{}", problem);
            }
            prop_assert!(state == State::Alive || info.status != TaskStatus::Running);
        }
    }
}
