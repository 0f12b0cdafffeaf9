//! Responses → reports, on a recorded archive and on responses of every age.

use std::path::Path;

use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::{Value, json};

use super::answers::{Checkpoints, Detail, Listed, Overview, SubtasksMetric};
use super::ask::{Load, Parts};
use super::job::{Job, Seen};
use super::mapping::{self, JobType, Slots};

fn detail(json: Value) -> Detail {
    serde_json::from_value(json).unwrap()
}

/// A job of three vertices in a row.
fn running(job_type: &str, tasks: [Value; 3], more: Value) -> Detail {
    let metrics = json!({"read-records": 5, "read-records-complete": true, "write-records": 7,
        "write-records-complete": true, "read-bytes": 50, "read-bytes-complete": true, "write-bytes": 70,
        "write-bytes-complete": true, "accumulated-busy-time": "NaN"});
    let vertices = ["a", "b", "c"].into_iter().zip(tasks).map(|(id, tasks)| {
        json!({"id": id, "name": format!("SELECT {id}"), "parallelism": 2, "tasks": tasks, "metrics": metrics})
    });
    let mut job = json!({"jid": "1", "name": "secret", "state": "RUNNING", "job-type": job_type, "now": 10_000,
        "timestamps": {"RUNNING": 4_000, "FINISHED": 0}, "vertices": vertices.collect::<Value>(),
        "plan": {"nodes": [{"id": "c", "inputs": [{"id": "b"}]}, {"id": "b", "inputs": [{"id": "a"}]}, {"id": "a"}]}});
    for (key, value) in more.as_object().unwrap() {
        job[key] = value.clone();
    }
    detail(job)
}

fn report(detail: &Detail, parts: &Parts, slots: Option<&Slots>) -> TaskRunningInfo {
    Job::new("1", None, "jm:8081").report(&Seen::Detail(detail, parts), slots, None, false, 0)
}

fn metric<'i>(info: &'i TaskRunningInfo, name: &str) -> Option<&'i MetricValue> {
    info.metrics.as_ref()?.get(name)
}

#[test]
fn a_batch_job_has_finished_tasks_over_all_and_none_while_its_graph_grows() {
    let tasks = || {
        [
            json!({"FINISHED": 2}),
            json!({"RUNNING": 1, "FAILED": 1}),
            json!({"CREATED": 2}),
        ]
    };
    let info = report(
        &running("BATCH", tasks(), json!({})),
        &Parts::default(),
        None,
    );
    assert_eq!(info.status, TaskStatus::Running);
    let progress = info.progress.unwrap();
    assert_eq!(progress.progress, 2.0 / 6.0);
    let stage = &progress.progress_info[1];
    assert_eq!(
        (
            stage.id.as_str(),
            stage.total_tasks,
            stage.running_tasks,
            stage.failed_tasks,
            stage.succeed_tasks
        ),
        ("b", 2, 1, 1, 0)
    );

    let growing = running("BATCH", tasks(), json!({"pending-operators": 3}));
    assert_eq!(report(&growing, &Parts::default(), None).progress, None);
    let mut undecided = running("BATCH", tasks(), json!({}));
    undecided.vertices[2].parallelism = -1;
    assert_eq!(report(&undecided, &Parts::default(), None).progress, None);
    let no_graph = running("BATCH", tasks(), json!({"vertices": []}));
    let info = report(&no_graph, &Parts::default(), None);
    assert_eq!((info.progress, info.status), (None, TaskStatus::Scheduled));
    assert_eq!(metric_of(&no_graph, "tasksTotal"), None);
}

fn metric_of(detail: &Detail, name: &str) -> Option<MetricValue> {
    metric(&report(detail, &Parts::default(), None), name).cloned()
}

#[test]
fn a_streaming_job_has_no_progress_and_runs_when_all_its_tasks_do() {
    let all = || {
        [
            json!({"RUNNING": 2}),
            json!({"RUNNING": 2}),
            json!({"FINISHED": 2}),
        ]
    };
    let checkpoints: Checkpoints = serde_json::from_value(json!({
        "counts": {"restored": 0, "total": 4, "in_progress": 1, "completed": 2, "failed": 1},
        "summary": {"state_size": {"p50": "NaN"}},
        "latest": {"completed": {"latest_ack_timestamp": 7_500, "end_to_end_duration": 30, "state_size": 900}}
    }))
    .unwrap();
    let parts = Parts {
        checkpoints: Some(checkpoints),
        restarts: Some(2),
        load: Some(Load {
            pending_records: None,
            busy_max: Some(0.25),
            back_pressured_max: None,
        }),
        exception: None,
    };
    let job = running("STREAMING", all(), json!({}));
    let info = report(&job, &parts, None);
    assert_eq!((info.status, &info.progress), (TaskStatus::Running, &None));
    for (name, value) in [
        ("recordsIn", 7),
        ("recordsOut", 5),
        ("restarts", 2),
        ("checkpointsCompleted", 2),
        ("checkpointsFailed", 1),
        ("lastCheckpointAgeMs", 2_500),
        ("lastCheckpointDurationMs", 30),
        ("lastCheckpointStateBytes", 900),
        ("runningSince", 4_000),
        ("tasksRunning", 4),
    ] {
        assert_eq!(
            metric(&info, name),
            Some(&MetricValue::Long(value)),
            "{name}"
        );
    }
    assert_eq!(metric(&info, "busyMax"), Some(&MetricValue::Double(0.25)));
    for absent in [
        "pendingRecords",
        "backPressuredMax",
        "lastCheckpointSizeBytes",
        "jobName",
    ] {
        assert_eq!(metric(&info, absent), None, "{absent}");
    }
    let text = format!("{info:?}");
    assert!(
        !text.contains("SELECT") && !text.contains("secret"),
        "{text}"
    );

    let restoring = [
        json!({"RUNNING": 2}),
        json!({"INITIALIZING": 2}),
        json!({"RUNNING": 2}),
    ];
    let info = report(&running("STREAMING", restoring, json!({})), &parts, None);
    assert_eq!(info.status, TaskStatus::Scheduled);
}

#[test]
fn incomplete_counts_and_counts_that_flink_does_not_make_are_left_out() {
    let all = || {
        [
            json!({"RUNNING": 2}),
            json!({"RUNNING": 2}),
            json!({"RUNNING": 2}),
        ]
    };
    let mut job = running("STREAMING", all(), json!({}));
    let zeros = json!({"read-records": 0, "read-records-complete": false, "write-records": 0, "write-records-complete": false});
    job.vertices[0].metrics = serde_json::from_value(zeros).unwrap();
    assert_eq!(metric_of(&job, "recordsIn"), None);
    assert_eq!(metric_of(&job, "recordsOut"), Some(MetricValue::Long(5)));

    let chained = running(
        "STREAMING",
        all(),
        json!({"plan": {"nodes": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}}),
    );
    assert_eq!(metric_of(&chained, "recordsIn"), None);
    let raw = running("STREAMING", all(), json!({"plan": "RawJson{json='…'}"}));
    assert_eq!(metric_of(&raw, "recordsOut"), None);
}

#[test]
fn every_state_has_a_status_and_only_three_are_final() {
    let tasks = serde_json::from_value(json!({"running": 1})).unwrap();
    for (state, status) in [
        ("INITIALIZING", TaskStatus::Inited),
        ("CREATED", TaskStatus::Inited),
        ("RUNNING", TaskStatus::Running),
        ("FAILING", TaskStatus::Running),
        ("CANCELLING", TaskStatus::Running),
        ("RESTARTING", TaskStatus::WaitForRetry),
        ("FINISHED", TaskStatus::Succeed),
        ("FAILED", TaskStatus::Failed),
        ("CANCELED", TaskStatus::Cancelled),
        ("SUSPENDED", TaskStatus::Unknown),
        ("RECONCILING", TaskStatus::Unknown),
        ("SOMETHING_NEW", TaskStatus::Unknown),
    ] {
        assert_eq!(
            mapping::status(state, Some(&tasks), Some(JobType::Streaming)),
            status
        );
        assert_eq!(mapping::is_final(state), status.is_final(), "{state}");
    }
}

#[test]
fn a_job_whose_tasks_are_not_told_neither_waits_nor_runs() {
    for tasks in [json!({}), json!({"tasks": null})] {
        let with = |mut job: Value| {
            job.as_object_mut()
                .unwrap()
                .extend(tasks.as_object().unwrap().clone());
            job
        };
        let listed = with(json!({"jid": "1", "state": "RUNNING"}));
        let listed: Listed = serde_json::from_value(listed).unwrap();
        let mut job = Job::new("1", None, "jm:8081");
        let info = job.report(&Seen::Listed(&listed), None, None, false, 0);
        assert_eq!(info.status, TaskStatus::Unknown);

        let vertex = with(json!({"id": "a", "parallelism": 2}));
        let detail = detail(json!({"state": "RUNNING", "job-type": "BATCH", "vertices": [vertex]}));
        let info = report(&detail, &Parts::default(), None);
        assert_eq!((info.status, &info.progress), (TaskStatus::Unknown, &None));
        assert_eq!(metric(&info, "tasksTotal"), None);
    }
    let ended: Listed = serde_json::from_value(json!({"jid": "1", "state": "FINISHED"})).unwrap();
    let mut job = Job::new("1", None, "jm:8081");
    let info = job.report(&Seen::Listed(&ended), None, None, false, 0);
    assert_eq!(info.status, TaskStatus::Succeed);
}

#[test]
fn slots_are_added_up_and_one_that_is_unknown_makes_the_part_null() {
    let slot = |mib: i64| {
        serde_json::from_value(
            json!({"cpuCores": 0.5, "taskHeapMemory": mib, "taskOffHeapMemory": 0,
            "managedMemory": 10, "networkMemory": 1, "extendedResources": {}}),
        )
        .unwrap()
    };
    let mut slots = Slots::default();
    slots.add(&slot(100));
    slots.add(&slot(200));
    slots.add(&slot(300));
    let held = mapping::resource("1", "RUNNING", Some(&slots)).unwrap();
    let held = &held.applications["1"];
    assert_eq!(held.queue_memory, 633 << 20);
    assert_eq!((held.queue_cores, held.queue_instances), (2, 3));
    slots.add(&slot(-1));
    assert_eq!(mapping::resource("1", "RUNNING", Some(&slots)), None);
    assert_eq!(mapping::resource("1", "RUNNING", None), None);
    // Slots that were read at another time than the tasks.
    let job = running(
        "STREAMING",
        [json!({"RUNNING": 2}), json!({}), json!({})],
        json!({}),
    );
    let info = report(&job, &Parts::default(), Some(&Slots::default()));
    assert_eq!(info.resource, None);
    let ended = mapping::resource("1", "FAILED", None).unwrap();
    assert_eq!(ended.applications["1"].queue_memory, 0);
}

#[test]
fn a_number_that_flink_writes_as_nan_is_unknown() {
    let metrics =
        json!([{"id": "busyTimeMsPerSecond", "max": "NaN"}, {"id": "x", "max": 12.5}, {"id": "y"}]);
    let metrics: Vec<SubtasksMetric> = serde_json::from_value(metrics).unwrap();
    let max: Vec<Option<f64>> = metrics.iter().map(|metric| metric.max).collect();
    assert_eq!(max, [None, Some(12.5), None]);
}

#[test]
fn the_fixed_job_id_is_qualified_by_cluster_and_start() {
    let fixed = "0".repeat(32);
    let mut job = Job::new(&fixed, Some(17), "jm:8081");
    let info = job.report(&Seen::Nothing, None, None, false, 0);
    assert_eq!(info.exec_id, format!("jm:8081/{fixed}/17"));
    assert_eq!(info.status, TaskStatus::Unknown);
    assert_eq!(
        (info.progress, info.resource, info.metrics),
        (None, None, None)
    );
}

#[test]
fn counts_that_cannot_be_are_not_known() {
    let good = || json!({"RUNNING": 1, "FINISHED": 1});
    for impossible in [
        json!({"RUNNING": -5, "FINISHED": i64::MAX}),
        json!({"RUNNING": i64::MAX, "FINISHED": i64::MAX}),
        json!({"RUNNING": -1}),
        json!({"RUNNING": i64::MIN}),
        json!({"FINISHED": 1_i64 << 31}),
    ] {
        for job_type in ["STREAMING", "BATCH"] {
            let job = running(job_type, [good(), impossible.clone(), good()], json!({}));
            let info = report(&job, &Parts::default(), None);
            assert_eq!((info.status, &info.progress), (TaskStatus::Unknown, &None));
            assert_eq!(info.engine.running_tasks, 0);
            for unknown in ["tasksTotal", "tasksRunning", "tasksFinished", "tasksFailed"] {
                assert_eq!(metric(&info, unknown), None, "{unknown} {impossible}");
            }
        }
        let listed = json!({"jid": "1", "state": "RUNNING", "tasks": impossible});
        let listed: Listed = serde_json::from_value(listed).unwrap();
        assert_eq!(listed.tasks, None);
    }

    // More tasks than the vertex has.
    let beyond = running("BATCH", [good(), json!({"FINISHED": 3}), good()], json!({}));
    let info = report(&beyond, &Parts::default(), None);
    assert_eq!(info.progress, None);
    assert_eq!(metric(&info, "tasksTotal"), None);
    let mut beyond = running("BATCH", [good(), good(), good()], json!({}));
    beyond.vertices[0].parallelism = i64::MAX;
    assert_eq!(report(&beyond, &Parts::default(), None).progress, None);

    for count in [-1, i64::MAX] {
        let mut job = running("STREAMING", [good(), good(), good()], json!({}));
        let read = json!({"read-records": 1, "read-records-complete": true, "write-records": count,
            "write-records-complete": true});
        job.vertices[0].metrics = serde_json::from_value(read).unwrap();
        let expected = (count > 0).then_some(MetricValue::Long(count));
        assert_eq!(metric_of(&job, "recordsIn"), expected);
    }
    let counts = json!({"counts": {"completed": -1, "failed": 2, "in_progress": 0},
        "latest": {"completed": {"latest_ack_timestamp": i64::MIN, "state_size": -1}}});
    let parts = Parts {
        checkpoints: Some(serde_json::from_value(counts).unwrap()),
        ..Parts::default()
    };
    let job = running("STREAMING", [good(), good(), good()], json!({}));
    let info = report(&job, &parts, None);
    assert_eq!(metric(&info, "checkpointsCompleted"), None);
    assert_eq!(metric(&info, "lastCheckpointStateBytes"), None);
    assert_eq!(
        metric(&info, "checkpointsFailed"),
        Some(&MetricValue::Long(2))
    );

    let slot = |mib: i64, cores: f64| {
        serde_json::from_value(
            json!({"cpuCores": cores, "taskHeapMemory": mib, "taskOffHeapMemory": 0,
            "managedMemory": 0, "networkMemory": 0}),
        )
        .unwrap()
    };
    for impossible in [slot(i64::MAX, 1.0), slot(1 << 43, 1.0), slot(1, 1e300)] {
        let mut slots = Slots::default();
        slots.add(&impossible);
        assert_eq!(mapping::resource("1", "RUNNING", Some(&slots)), None);
    }
}

#[test]
fn an_archive_of_another_run_does_not_end_a_job() {
    let fixed = "0".repeat(32);
    for (jid, started, archived, is_of_this_run) in [
        (fixed.as_str(), Some(5_000), Some(5_000), true),
        (&fixed, Some(5_000), Some(1_000), false),
        (&fixed, Some(5_000), Some(9_000), false),
        (&fixed, Some(5_000), None, false),
        (&fixed, None, Some(5_000), false),
        ("1", Some(5_000), Some(5_000), true),
        ("1", Some(5_000), Some(1_000), false),
        ("1", Some(5_000), Some(9_000), true),
        ("1", Some(5_000), None, true),
        ("1", None, Some(5_000), true),
    ] {
        let job = Job::new(jid, started, "jm:8081");
        assert_eq!(
            job.is_archived(archived),
            is_of_this_run,
            "{jid} {started:?} {archived:?}"
        );
    }
}

#[test]
fn a_recorded_archive_of_a_failed_job_is_read() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/inputs/flink/d933fa6c785f0db6dccc6cc05dd43bab.json");
    let Ok(text) = std::fs::read_to_string(&recorded) else {
        service::output::note(format_args!("skipped: there is no {}", recorded.display()));
        return;
    };
    let archive: Value = serde_json::from_str(&text).unwrap();
    let answer = |path: &str| -> &str {
        let entries = archive["archive"].as_array().unwrap().iter();
        let mut found = entries.filter(|entry| entry["path"] == path);
        found.next().unwrap()["json"].as_str().unwrap()
    };
    let overview: Overview = serde_json::from_str(answer("/jobs/overview")).unwrap();
    let [
        Listed {
            jid,
            state,
            tasks,
            start_time,
        },
    ] = &overview.jobs[..]
    else {
        panic!("{overview:?}");
    };
    let tasks = tasks.unwrap();
    assert_eq!(
        (state.as_str(), tasks.failed, tasks.total()),
        ("FAILED", 1, 1)
    );
    let job = format!("/jobs/{jid}");
    let detail: Detail = serde_json::from_str(answer(&job)).unwrap();
    assert_eq!(JobType::of(&detail), Some(JobType::Streaming));
    assert!(detail.start_time.is_some() && detail.start_time == *start_time);
    let checkpoints = serde_json::from_str(answer(&format!("{job}/checkpoints"))).unwrap();
    let parts = Parts {
        checkpoints: Some(checkpoints),
        ..Parts::default()
    };
    let info = report(&detail, &parts, None);
    assert_eq!((info.status, &info.progress), (TaskStatus::Failed, &None));
    assert_eq!(metric(&info, "tasksFailed"), Some(&MetricValue::Long(1)));
    assert_eq!(
        metric(&info, "checkpointsCompleted"),
        Some(&MetricValue::Long(0))
    );
    assert_eq!(
        metric(&info, "runningSince"),
        Some(&MetricValue::Long(1_669_348_685_011))
    );
    // One vertex is source and sink, and there was no checkpoint.
    for unknown in ["recordsIn", "recordsOut", "lastCheckpointAgeMs"] {
        assert_eq!(metric(&info, unknown), None, "{unknown}");
    }
}
