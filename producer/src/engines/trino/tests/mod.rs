//! Responses → reports, on a coordinator's own answers (Trino 476: `list.json` and `running.json`, without what is not
//! used) and on responses of every age.

use jiff::{SignedDuration, Timestamp};
use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::{Value, json};

use super::answers::{Bytes, Millis, QueryInfo};
use super::mapping::has_last_counts;
use super::query::{Query, Seen};
use super::rights::{Rights, Users};
use std::time::Duration;

fn recorded() -> Vec<QueryInfo> {
    let mut queries: Vec<QueryInfo> = serde_json::from_str(include_str!("list.json")).unwrap();
    queries.iter_mut().for_each(|query| query.shorten(false));
    queries
}

fn query(json: Value) -> QueryInfo {
    let mut query: QueryInfo = serde_json::from_value(json).unwrap();
    query.shorten(false);
    query
}

/// As it is reported.
fn report(mut info: QueryInfo) -> TaskRunningInfo {
    let stages = info.take_stages();
    let seen = Seen {
        query: &info,
        stages: stages.as_deref(),
    };
    Query::new(&info.query_id, "coordinator:8080", "trino").report(Some(seen), None, 0)
}

fn metric<'i>(info: &'i TaskRunningInfo, name: &str) -> Option<&'i MetricValue> {
    info.metrics.as_ref()?.get(name)
}

/// A query that runs, in two stages of the tree that Trino had until version 476.
fn running() -> Value {
    let stage = |number: i64, below: Value| {
        json!({"stageId": format!("q1.{number}"), "state": "RUNNING",
            "stageStats": {"totalDrivers": 10, "runningDrivers": 2, "completedDrivers": 3, "queuedDrivers": 5},
            "tasks": [{"taskStatus": {"state": "RUNNING", "nodeId": "w1"}},
                      {"taskStatus": {"state": "FLUSHING", "nodeId": format!("w{number}")}},
                      {"taskStatus": {"state": "FINISHED", "nodeId": "w9"}}],
            "subStages": below})
    };
    json!({"queryId": "q1", "state": "RUNNING", "scheduled": true, "session": {"user": "ada", "source": "nightly"},
        "resourceGroupId": ["global", "etl"],
        "queryStats": {"totalDrivers": 20, "runningDrivers": 4, "completedDrivers": 6, "progressPercentage": 30.0,
            "totalMemoryReservation": "2048B", "totalCpuTime": "3.10m", "executionTime": "1.00m",
            "fullyBlocked": true, "blockedReasons": ["WAITING_FOR_MEMORY"]},
        "outputStage": stage(1, json!([stage(2, json!([]))]))})
}

#[test]
fn the_counts_of_a_query_are_its_last_ones_when_trino_says_so_or_its_end_is_not_new() {
    let end = "2026-01-01T00:00:00.000Z";
    let secs = |secs| Some(Duration::from_secs(secs));
    for (is_final, is_late, end, known_for, after, expected) in [
        (json!(true), false, json!(end), None, 0, true),
        (json!(false), false, json!(end), None, 3_600, false),
        (json!(false), false, json!(end), secs(29), 29, false),
        (json!(false), false, json!(end), secs(30), 30, true),
        // As in a list, which does not say.
        (json!(null), false, json!(end), None, 5, false),
        (json!(null), false, json!(end), None, -5, false),
        (json!(null), false, json!(end), secs(5), 10, true),
        (json!(null), false, json!(end), None, 61, true),
        (json!(null), false, json!(null), None, 5, true),
        // Its own response was asked for in vain.
        (json!(null), true, json!(end), secs(29), 29, false),
        (json!(null), true, json!(end), secs(30), 30, true),
    ] {
        let case = format!("{is_final} {is_late} {end} {known_for:?} {after}");
        let query = query(
            json!({"queryId": "q1", "state": "FINISHED", "finalQueryInfo": is_final,
            "queryStats": {"endTime": end}}),
        );
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let now = now + SignedDuration::from_secs(after);
        assert_eq!(
            has_last_counts(&query, is_late, known_for, now),
            expected,
            "{case}"
        );
    }
}

#[test]
fn recorded_queries_are_reported_as_the_coordinator_has_them() {
    let statuses: Vec<TaskStatus> = recorded()
        .into_iter()
        .map(|query| report(query).status)
        .collect();
    use TaskStatus::*;
    // One that has ended, a division by zero, a syntax error, a cancelled one, one that runs, one whose client fetches
    // nothing, one that ran for too long, one whose tasks have begun, and one in the queue.
    assert_eq!(
        statuses,
        [
            Succeed, Failed, Failed, Cancelled, Running, Running, Timeout, Running, Inited
        ]
    );
    for query in recorded() {
        let state = query.state.clone();
        let info = report(query);
        let progress = info.progress.as_ref().map(|progress| progress.progress);
        let is_known = matches!(info.status, Succeed | Running);
        assert_eq!(progress.is_some(), is_known, "{state} {progress:?}");
        assert_eq!(
            metric(&info, "fullyBlocked").is_some(),
            !info.status.is_final()
        );
        let text = format!("{info:?}").to_lowercase();
        assert!(!text.contains("tpch"), "{text}");
        if info.status.is_final() {
            let held = &info.resource.as_ref().unwrap().applications[&info.exec_id];
            assert_eq!((held.queue_memory, held.queue_instances), (0, 0));
        }
    }
    let cancelled = report(recorded().remove(3));
    let name = MetricValue::String("USER_CANCELED".to_owned());
    assert_eq!(metric(&cancelled, "errorName"), Some(&name));
    let queued = report(recorded().remove(8));
    let held = &queued.resource.as_ref().unwrap().applications[&queued.exec_id];
    assert_eq!(
        (held.queue_memory, held.queue_cores, held.queue_instances),
        (0, 0, 0)
    );
    assert_eq!(
        (held.queue.as_str(), held.job_status.as_str()),
        ("global", "QUEUED")
    );
    assert_eq!(queued.engine.user, "eve");
}

#[test]
fn a_recorded_response_of_a_running_query_has_its_stages_and_workers() {
    let running = serde_json::from_str(include_str!("running.json")).unwrap();
    let info = report(running);
    let progress = info.progress.unwrap();
    assert_eq!(progress.progress, 0.1842105263157895);
    let stages = progress.progress_info.iter();
    let stages: Vec<_> = stages
        .map(|stage| {
            (
                stage.id.as_str(),
                stage.total_tasks,
                stage.running_tasks,
                stage.succeed_tasks,
            )
        })
        .collect();
    assert_eq!(stages, [("0", 4, 0, 0), ("1", 34, 5, 7)]);
    let held = &info.resource.unwrap().applications[&info.exec_id];
    assert_eq!(
        (held.queue_memory, held.queue_cores, held.queue_instances),
        (17_017_577, 1, 1)
    );
    let metrics = info.metrics.unwrap();
    for (name, value) in [
        ("cpuMs", 1_470),
        ("executionMs", 14_390),
        ("driversTotal", 38),
        ("driversCompleted", 7),
        ("totalMemoryBytes", 17_017_577),
    ] {
        assert_eq!(metrics[name], MetricValue::Long(value), "{name}");
    }
}

#[test]
fn stages_are_read_in_the_form_of_each_version() {
    let tree = report(query(running()));
    // Since Trino 477.
    let mut flat = running();
    let mut root = flat["outputStage"].take();
    let below = root["subStages"][0].take();
    root["subStages"] = json!(["q1.2"]);
    flat["stages"] = json!({"outputStageId": "q1.1", "stages": [root, below]});
    // Presto.
    let mut presto = running();
    let mut stage = &mut presto["outputStage"];
    loop {
        let (stats, mut tasks) = (stage["stageStats"].take(), stage["tasks"].take());
        for task in tasks.as_array_mut().unwrap() {
            task["nodeId"] = task["taskStatus"]["nodeId"].take();
        }
        stage["latestAttemptExecutionInfo"] =
            json!({"state": "RUNNING", "stats": stats, "tasks": tasks});
        stage.as_object_mut().unwrap().remove("tasks");
        match stage["subStages"].as_array().unwrap().is_empty() {
            true => break,
            false => stage = &mut stage["subStages"][0],
        }
    }
    for other in [flat, presto] {
        assert_eq!(report(query(other)), tree);
    }
    let progress = tree.progress.unwrap();
    assert_eq!((progress.progress, progress.progress_info.len()), (0.3, 2));
    let held = &tree.resource.unwrap().applications["q1"];
    assert_eq!(
        (held.queue_memory, held.queue_cores, held.queue_instances),
        (2_048, 4, 2)
    );
    assert_eq!(held.queue, "global.etl");
    let blocked = MetricValue::String("WAITING_FOR_MEMORY".to_owned());
    assert_eq!(tree.metrics.unwrap()["blockedReasons"], blocked);
}

#[test]
fn without_stages_the_progress_and_the_metrics_stay_and_the_resources_are_null() {
    let mut listed = running();
    listed.as_object_mut().unwrap().remove("outputStage");
    let info = report(query(listed));
    let progress = info.progress.as_ref().unwrap();
    assert_eq!((progress.progress, progress.progress_info.len()), (0.3, 0));
    assert_eq!(info.resource, None);
    assert_eq!(
        metric(&info, "totalMemoryBytes"),
        Some(&MetricValue::Long(2_048))
    );
}

#[test]
fn every_state_has_a_status_and_only_two_are_final() {
    use TaskStatus::*;
    for (state, error, status) in [
        ("QUEUED", None, Inited),
        ("WAITING_FOR_PREREQUISITES", None, Inited),
        ("WAITING_FOR_RESOURCES", None, Inited),
        ("DISPATCHING", None, Scheduled),
        ("PLANNING", None, Scheduled),
        ("STARTING", None, Scheduled),
        ("RUNNING", None, Running),
        ("FINISHING", None, Running),
        ("FINISHED", None, Succeed),
        ("FAILED", None, Failed),
        ("FAILED", Some("DIVISION_BY_ZERO"), Failed),
        ("FAILED", Some("ADMINISTRATIVELY_KILLED"), Failed),
        ("FAILED", Some("USER_CANCELED"), Cancelled),
        ("FAILED", Some("EXCEEDED_TIME_LIMIT"), Timeout),
        ("SOMETHING_NEW", None, Unknown),
    ] {
        let error = error.map(|name| json!({"code": 3, "name": name}));
        let info = report(query(
            json!({"queryId": "q1", "state": state, "errorCode": error}),
        ));
        assert_eq!(info.status, status, "{state}");
        assert_eq!(
            super::mapping::is_final(state),
            status.is_final(),
            "{state}"
        );
    }
}

#[test]
fn progress_is_trinos_percentage_or_completed_drivers_and_none_before_it_is_scheduled() {
    let progress = |stats: Value, scheduled: bool, state: &str| {
        let query = query(
            json!({"queryId": "q1", "state": state, "scheduled": scheduled, "queryStats": stats}),
        );
        report(query).progress.map(|progress| progress.progress)
    };
    let drivers = |percentage: Value| json!({"totalDrivers": 8, "runningDrivers": 1, "completedDrivers": 2, "progressPercentage": percentage});
    assert_eq!(progress(drivers(json!(50.0)), true, "RUNNING"), Some(0.5));
    for unknown in [
        json!(null),
        json!("NaN"),
        json!(-1),
        json!(100.5),
        json!([]),
    ] {
        assert_eq!(
            progress(drivers(unknown.clone()), true, "RUNNING"),
            Some(0.25)
        );
        assert_eq!(progress(drivers(unknown), false, "RUNNING"), None);
    }
    assert_eq!(progress(json!({"totalDrivers": 0}), true, "RUNNING"), None);
    assert_eq!(progress(drivers(json!(100.0)), true, "FAILED"), None);
    assert_eq!(progress(drivers(json!(95.0)), true, "FINISHED"), Some(0.95));
}

#[test]
fn counts_and_amounts_that_cannot_be_are_not_known() {
    for (total, at_work, completed) in [
        (-1, 0, 0),
        (5, -1, 0),
        (5, 0, -1),
        (5, 3, 3),
        (5, i64::MAX, i64::MAX),
        (i64::MAX, 0, 0),
    ] {
        let mut impossible = running();
        let stats = json!({"totalDrivers": total, "runningDrivers": at_work, "completedDrivers": completed});
        impossible["outputStage"]["subStages"][0]["stageStats"] = stats;
        let info = report(query(impossible));
        assert_eq!(
            info.progress.unwrap().progress_info,
            [],
            "{total} {at_work} {completed}"
        );
    }
    for (field, wrong) in [
        ("totalMemoryReservation", json!("-1B")),
        ("totalMemoryReservation", json!("1e300GB")),
        ("totalMemoryReservation", json!(7)),
        ("totalCpuTime", json!("1.00 parsec")),
        ("totalCpuTime", json!("NaNs")),
        ("executionTime", json!("0.00ns")),
        ("executionTime", json!("infd")),
    ] {
        let mut listed = running();
        listed["queryStats"][field] = wrong;
        let info = report(query(listed));
        assert_eq!(info.resource, None, "{field}");
        assert!(info.progress.is_some());
    }
    let mut negative = running();
    negative["queryStats"]["rawInputPositions"] = json!(-5);
    assert_eq!(metric(&report(query(negative)), "inputRows"), None);
    let mut nameless = running();
    nameless["outputStage"]["tasks"] = json!([{"taskStatus": {"state": "RUNNING"}}]);
    assert_eq!(report(query(nameless)).resource, None);
}

#[test]
fn durations_and_sizes_are_read_in_every_unit() {
    for (text, millis) in [
        ("0.00ns", 0),
        ("85.55us", 0),
        ("1.16s", 1_160),
        ("2.10m", 126_000),
        ("3.30h", 11_880_000),
        ("1.50d", 129_600_000),
        ("659.40ms", 659),
    ] {
        assert_eq!(
            Millis::try_from(text.to_owned()),
            Ok(Millis(millis)),
            "{text}"
        );
    }
    for (text, bytes) in [
        ("0B", 0),
        ("72151886B", 72_151_886),
        ("9007199254740993B", 9_007_199_254_740_993),
        ("1.50kB", 1_536),
        ("14.06GB", 15_096_810_045),
        ("2TB", 2 << 40),
    ] {
        assert_eq!(Bytes::try_from(text.to_owned()), Ok(Bytes(bytes)), "{text}");
    }
    for wrong in [
        "",
        "B",
        "5",
        "-5B",
        "5XB",
        "9999PB",
        "1.00KB",
        "NaNB",
        "9223372036854775808B",
    ] {
        assert!(Bytes::try_from(wrong.to_owned()).is_err(), "{wrong}");
    }
}

#[test]
fn texts_of_any_length_fit_into_a_report_and_the_query_only_if_it_is_wanted() {
    let long = "é".repeat(100_000);
    let json = json!({"queryId": "q1", "state": long, "query": long, "session": {"user": long, "source": long},
        "resourceGroupId": [long, long], "errorCode": {"name": long}, "queryStats": {"blockedReasons": [long]}});
    let mut whole: QueryInfo = serde_json::from_value(json.clone()).unwrap();
    whole.shorten(true);
    let info = report(whole);
    let Some(MetricValue::String(text)) = metric(&info, "query") else {
        panic!("{:?}", info.metrics);
    };
    assert_eq!(text.chars().count(), 10_001);
    let size = serde_json::to_string(&info).unwrap().len();
    assert!(size < 30_000, "{size}");
    assert_eq!(info.problems(), []);
    assert_eq!(metric(&report(query(json)), "query"), None);
}

#[test]
fn a_query_that_is_gone_is_unknown_with_null_parts_and_its_last_known_user() {
    let mut gone = Query::new("q1", "coordinator:8080", "presto");
    let info = query(running());
    let seen = Seen {
        query: &info,
        stages: None,
    };
    gone.report(Some(seen), Some(7), 0);
    let unknown = gone.report(None, None, 1);
    assert_eq!((unknown.status, unknown.sequence), (TaskStatus::Unknown, 1));
    assert_eq!(
        (&unknown.progress, &unknown.resource, &unknown.metrics),
        (&None, &None, &None)
    );
    assert_eq!(
        (
            unknown.engine.user.as_str(),
            unknown.engine.engine_type.as_str()
        ),
        ("ada", "presto")
    );
    assert_eq!(unknown.engine.running_tasks, 0);
}

#[test]
fn lists_of_ones_own_queries_only_and_empty_ones_are_noted_once() {
    let users = |names: &[&str]| {
        let mut users = Users::default();
        for name in names {
            users.add(&query(
                json!({"queryId": "q", "state": "RUNNING", "session": {"user": name}}),
            ));
        }
        users
    };
    let note = |rights: &mut Rights, names: &[&str], me: Option<&str>| {
        rights.note(&users(names), me, Duration::ZERO)
    };
    let mut own = Rights::default();
    let noted = note(&mut own, &["ada", "ada"], Some("ada")).unwrap();
    assert_eq!(
        noted,
        "lists only queries of ada; if others run queries there, ada has no right to view them"
    );
    assert_eq!(note(&mut own, &["ada"], Some("ada")), None);
    assert!(note(&mut Rights::default(), &["ada"], None).is_some());

    let mut empty = Rights::default();
    assert_eq!(empty.note(&users(&[]), Some("eve"), Duration::MAX), None);
    let noted = note(&mut empty, &[], Some("eve")).unwrap();
    assert_eq!(
        noted,
        "lists no queries; if any run there, eve has no right to view them"
    );

    let mut others = Rights::default();
    for names in [&["bob"][..], &["ada", "bob"], &[], &["ada"]] {
        assert_eq!(note(&mut others, names, Some("ada")), None, "{names:?}");
    }
}
