//! When a task is reported, and with which status and parts.

use schemas::{MetricValue, TaskStatus};
use serde_json::json;

use super::super::answers::Executor;
use super::super::application::Poll;
use super::super::mapping::State;
use super::{application, jobs, long, progress, report, reports};

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

    for received in ["RUNNING", "SUCCEEDED", "FAILED", "UNKNOWN"] {
        assert_eq!(
            status([job(received)], State::Alive),
            TaskStatus::Running,
            "{received}"
        );
    }
    let ends = [
        ("SUCCEEDED", TaskStatus::Succeed, TaskStatus::Unknown),
        ("FAILED", TaskStatus::Failed, TaskStatus::Failed),
        ("RUNNING", TaskStatus::Unknown, TaskStatus::Unknown),
        ("UNKNOWN", TaskStatus::Unknown, TaskStatus::Unknown),
    ];
    for (received, completed, replaced) in ends {
        assert_eq!(
            status([job(received)], State::Completed),
            completed,
            "{received}"
        );
        assert_eq!(
            status([job(received)], State::Replaced),
            replaced,
            "{received}"
        );
        let gone = status([job(received)], State::Gone);
        assert_eq!(
            gone,
            TaskStatus::Unknown,
            "{received}: it may go on somewhere"
        );
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
fn sql_executions_are_counted_also_those_that_spark_has_dropped_since() {
    let mut application = application("app-1");
    let mut counts = |sql: Option<serde_json::Value>, state| {
        let poll = Poll {
            sql: sql.map(|list| serde_json::from_value(list).unwrap()),
            ..jobs(json!([{"jobId": 0, "status": "RUNNING", "numTasks": 4}]))
        };
        let info = application.reports(poll, state, 0).remove(0);
        let metrics = info.metrics.unwrap();
        ["Running", "Succeeded", "Failed"].map(|name| {
            match metrics.get(&format!("application.sqlExecutions{name}")) {
                Some(MetricValue::Long(count)) => Some(*count),
                None => None,
                other => panic!("{other:?}"),
            }
        })
    };
    let one =
        |id: i64, status: &str| json!({"id": id, "status": status, "description": "SELECT 1"});
    let alive = State::Alive;
    assert_eq!(counts(Some(json!([])), alive), [None; 3]);
    let first = json!([one(0, "COMPLETED"), one(1, "RUNNING"), one(2, "FAILED")]);
    assert_eq!(counts(Some(first), alive), [Some(1), Some(1), Some(1)]);
    // Before Spark 3.4, an execution between two of its jobs counts as completed.
    let back = json!([one(0, "RUNNING"), one(1, "COMPLETED"), one(2, "FAILED")]);
    assert_eq!(counts(Some(back), alive), [Some(1), Some(1), Some(1)]);
    let dropped = json!([one(2, "FAILED"), one(3, "RUNNING"), one(4, "COMPLETED")]);
    assert_eq!(counts(Some(dropped), alive), [Some(1), Some(2), Some(1)]);
    assert_eq!(counts(None, alive), [None; 3]);
    assert_eq!(counts(Some(json!([])), alive), [Some(0), Some(2), Some(1)]);
    assert_eq!(counts(None, State::Gone), [Some(0), Some(2), Some(1)]);
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
