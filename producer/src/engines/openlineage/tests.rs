//! Events, one after the other, and what they are reported as. Long because each bug of a producer of events is a test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use jiff::Timestamp;
use proptest::prelude::*;
use schemas::{IDENTIFIER_MAX_BYTES, MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::{Value, json};

use super::event::{Event, Refused};
use super::runs::{Runs, Taken};
use TaskStatus::{Cancelled, Failed, Running, Scheduled, Succeed, Unknown};

const RECEIVED: &str = "2026-01-01T00:00:00Z";

fn received() -> Timestamp {
    RECEIVED.parse().unwrap()
}

/// The states of some runs, and what their events were reported as.
struct Told(Runs);

fn take(runs: &mut Runs, event: &[u8]) -> Result<Taken, Refused> {
    runs.take(Event::parse(event)?, received())
}

impl Told {
    fn new() -> Self {
        Self(Runs::new(100))
    }

    fn take(&mut self, event: &Value) -> TaskRunningInfo {
        match take(&mut self.0, event.to_string().as_bytes()) {
            Ok(Taken::Report(info)) => *info,
            other => panic!("{other:?} of {event}"),
        }
    }

    fn refuse(&mut self, event: &str) -> Refused {
        match take(&mut self.0, event.as_bytes()) {
            Err(refused) => refused,
            taken => panic!("{taken:?} of {event}"),
        }
    }

    fn statuses(&mut self, events: &[(&str, &str)]) -> Vec<TaskStatus> {
        let take = |(kind, time): &(&str, &str)| self.take(&event(kind, time)).status;
        events.iter().map(take).collect()
    }
}

fn event(kind: &str, time: &str) -> Value {
    json!({
        "eventType": kind, "eventTime": time, "producer": "https://github.com/OpenLineage/OpenLineage/tree/1.54.0/client/python",
        "run": {"runId": "run-1"}, "job": {"namespace": "shop", "name": "orders"},
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
    })
}

fn with(mut event: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let mut at = &mut event;
    for name in parent.split('/').skip(1) {
        at = &mut at[name];
    }
    at[field] = value;
    event
}

fn metric(info: &TaskRunningInfo, name: &str) -> Option<MetricValue> {
    info.metrics
        .as_ref()
        .and_then(|metrics| metrics.get(name))
        .cloned()
}

fn long(info: &TaskRunningInfo, name: &str) -> Option<i64> {
    metric(info, name).map(|value| match value {
        MetricValue::Long(value) => value,
        other => panic!("{name}: {other:?}"),
    })
}

/// The newest state, as the consumer has it.
fn newest<'t>(told: impl IntoIterator<Item = &'t TaskRunningInfo>) -> &'t TaskRunningInfo {
    let place = |info: &&TaskRunningInfo| (info.status.is_final(), info.reported_at, info.sequence);
    told.into_iter().max_by_key(place).unwrap()
}

#[test]
fn each_event_of_a_run_is_a_report_with_the_runs_next_sequence() {
    let mut told = Told::new();
    let kinds = [
        ("START", Running),
        ("RUNNING", Running),
        ("OTHER", Running),
        ("COMPLETE", Succeed),
    ];
    for (sequence, (kind, status)) in kinds.into_iter().enumerate() {
        let info = told.take(&event(kind, "2026-03-01T10:00:00Z"));
        assert_eq!((info.status, info.sequence), (status, sequence as i64));
        assert_eq!(
            (info.exec_id.as_str(), info.job_id.as_str()),
            ("run-1", "shop/orders")
        );
        assert_eq!(info.engine.instance, "shop");
        assert_eq!((&info.progress, &info.resource), (&None, &None));
        assert_eq!(
            metric(&info, "eventType"),
            Some(MetricValue::String(kind.to_owned()))
        );
    }
}

#[test]
fn each_terminal_event_has_its_status_also_without_a_start() {
    for (kind, status) in [
        ("COMPLETE", Succeed),
        ("FAIL", Failed),
        ("ABORT", Cancelled),
        ("complete", Succeed),
    ] {
        assert_eq!(
            Told::new().statuses(&[(kind, "2026-03-01T10:00:00Z")]),
            [status]
        );
    }
}

#[test]
fn other_before_the_start_is_scheduled_and_an_event_of_no_known_type_changes_no_status() {
    let mut told = Told::new();
    let mut without = event("", "2026-03-01T10:00:00Z");
    without.as_object_mut().unwrap().remove("eventType");
    assert_eq!(told.take(&without).status, Unknown);
    assert_eq!(
        told.statuses(&[
            ("OTHER", "2026-03-01T10:00:00Z"),
            ("PAUSED", "2026-03-01T10:00:01Z")
        ]),
        [Scheduled, Unknown]
    );
    assert_eq!(
        told.statuses(&[
            ("START", "2026-03-01T10:00:02Z"),
            ("PAUSED", "2026-03-01T10:00:03Z")
        ]),
        [Running, Running]
    );
    let info = told.take(&without);
    assert_eq!((info.status, metric(&info, "eventType")), (Running, None));
    assert_eq!(
        told.statuses(&[
            ("FAIL", "2026-03-01T10:00:04Z"),
            ("OTHER", "2026-03-01T10:00:05Z")
        ]),
        [Failed, Unknown]
    );
    assert_eq!(told.take(&without).status, Unknown);
}

#[test]
fn the_first_terminal_event_wins_whatever_comes_after_it_and_whenever() {
    let late = [
        "2026-03-01T09:00:00Z",
        "2026-03-01T10:00:00Z",
        "2026-03-01T11:00:00Z",
    ];
    for first in ["COMPLETE", "FAIL", "ABORT"] {
        let mut told = Told::new();
        let end = told.take(&event(first, "2026-03-01T10:00:00Z"));
        let mut all = vec![end.clone()];
        for time in late {
            for kind in ["START", "RUNNING", "OTHER", "COMPLETE", "FAIL", "ABORT"] {
                let info = told.take(&event(kind, time));
                assert!(!info.status.is_final(), "{kind} after {first}");
                all.push(info);
            }
        }
        assert_eq!(newest(&all), &end);
    }
}

#[test]
fn a_run_that_never_ends_stays_running() {
    let mut told = Told::new();
    let all: Vec<TaskRunningInfo> = (0..3)
        .map(|_| told.take(&event("START", "2026-03-01T10:00:00Z")))
        .collect();
    assert!(all.iter().all(|info| info.status == Running));
}

#[test]
fn an_end_whose_report_was_not_delivered_did_not_end_the_run() {
    let mut told = Told(Runs::with_acknowledgements(100));
    told.take(&event("START", "2026-03-01T10:00:00Z"));
    let lost = told.take(&event("COMPLETE", "2026-03-01T10:00:01Z"));
    told.0.undelivered(&lost);
    let again = told.take(&event("COMPLETE", "2026-03-01T10:00:01Z"));
    assert_eq!(again, lost);
    assert_eq!(
        told.statuses(&[("FAIL", "2026-03-01T10:00:02Z")]),
        [Unknown]
    );

    // Where a later report has been given, its sequence stays, and that of the lost one is missing.
    let mut told = Told(Runs::with_acknowledgements(100));
    let lost = told.take(&event("COMPLETE", "2026-03-01T10:00:01Z"));
    told.take(&event("RUNNING", "2026-03-01T10:00:02Z"));
    told.0.undelivered(&lost);
    let again = told.take(&event("COMPLETE", "2026-03-01T10:00:01Z"));
    assert_eq!((again.status, again.sequence), (Succeed, 2));
    told.0.undelivered(&TaskRunningInfo {
        exec_id: "unknown".to_owned(),
        ..again
    });
}

#[test]
fn the_numbers_of_reports_that_were_lost_together_are_given_again() {
    let running = event("RUNNING", "2026-03-01T10:00:00Z");
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
        let mut told = Told(Runs::with_acknowledgements(100));
        let begun = told.take(&event("START", "2026-03-01T10:00:00Z"));
        told.0.delivered(&begun);
        let lost = [(); 3].map(|()| told.take(&running));
        assert_eq!(lost[2].sequence, 3);
        for index in order {
            told.0.undelivered(&lost[index]);
        }
        assert_eq!(told.take(&running).sequence, 1, "{order:?}");
    }
    // The number of a lost report before one that was delivered is missing.
    for is_first in [true, false] {
        let mut told = Told(Runs::with_acknowledgements(100));
        let [lost, delivered] = [(); 2].map(|()| told.take(&running));
        if is_first {
            told.0.undelivered(&lost);
        }
        told.0.delivered(&delivered);
        if !is_first {
            told.0.undelivered(&lost);
        }
        assert_eq!(told.take(&running).sequence, 2);
    }
}

/// A client that waited for too long sends it again while the first report is still on its way.
#[test]
fn an_end_that_is_sent_again_before_it_is_delivered_ends_the_run_although_the_first_report_is_lost()
{
    let complete = event("COMPLETE", "2026-03-01T10:00:01Z");
    let mut told = Told(Runs::with_acknowledgements(100));
    let (lost, again) = (told.take(&complete), told.take(&complete));
    assert_eq!((again.status, again.sequence), (Succeed, 1));
    let other = told.take(&event("FAIL", "2026-03-01T10:00:02Z"));
    assert_eq!(other.status, Unknown);
    told.0.undelivered(&lost);
    told.0.delivered(&again);
    assert_eq!(told.take(&complete).status, Unknown);

    // The second is lost instead.
    let mut told = Told(Runs::with_acknowledgements(100));
    let (first, lost) = (told.take(&complete), told.take(&complete));
    told.0.delivered(&first);
    told.0.undelivered(&lost);
    let third = told.take(&complete);
    assert_eq!((third.status, third.sequence), (Unknown, 1));
}

#[test]
fn two_jobs_with_the_same_run_id_are_two_tasks() {
    let mut told = Told::new();
    let of_other = |kind| {
        with(
            event(kind, "2026-03-01T10:00:00Z"),
            "/job/name",
            json!("returns"),
        )
    };
    let first = told.take(&event("START", "2026-03-01T10:00:00Z"));
    let second = told.take(&of_other("START"));
    assert_eq!(
        (first.exec_id.as_str(), second.exec_id.as_str()),
        ("run-1", "run-1/shop/returns")
    );
    let end = told.take(&of_other("COMPLETE"));
    assert_eq!(
        (end.exec_id.as_str(), end.sequence, end.status),
        ("run-1/shop/returns", 1, Succeed)
    );
    let end = told.take(&event("FAIL", "2026-03-01T10:00:00Z"));
    assert_eq!(
        (end.exec_id.as_str(), end.sequence, end.status),
        ("run-1", 1, Failed)
    );
}

#[test]
fn a_run_whose_id_another_job_has_keeps_its_own_id_when_that_run_is_forgotten() {
    let mut told = Told(Runs::new(2));
    let of = |kind, run: &str, job: &str| {
        let event = event(kind, "2026-03-01T10:00:00Z");
        with(
            with(event, "/run/runId", json!(run)),
            "/job/name",
            json!(job),
        )
    };
    told.take(&of("START", "run-1", "orders"));
    told.take(&of("START", "run-1", "returns"));
    told.take(&of("START", "run-2", "orders")); // forgets run-1 of orders
    let end = told.take(&of("COMPLETE", "run-1", "returns"));
    let end = (end.exec_id.as_str(), end.sequence, end.status);
    assert_eq!(end, ("run-1/shop/returns", 1, Succeed));
}

#[test]
fn the_ids_of_jobs_whose_names_have_slashes_stay_apart() {
    let mut told = Told::new();
    let mut exec_id = |namespace: &str, job: &str| {
        let event = event("START", "2026-03-01T10:00:00Z");
        let event = with(event, "/job/namespace", json!(namespace));
        told.take(&with(event, "/job/name", json!(job))).exec_id
    };
    let ids = ["run-1", "run-1/a/b/c", "run-1/a/b%2Fc", "run-1/a/b%252Fc"];
    let jobs = [("n", "j"), ("a/b", "c"), ("a", "b/c"), ("a", "b%2Fc")];
    assert_eq!(jobs.map(|(namespace, job)| exec_id(namespace, job)), ids);
}

#[test]
fn runs_of_very_many_datasets_are_forgotten_before_they_fill_the_memory() {
    let mut told = Told(Runs::new(1_000_000));
    let outputs: Vec<Value> = (0..1_000)
        .map(|n| {
            dataset(
                &n.to_string(),
                &json!({"outputStatistics": {"rowCount": 1}}),
            )
        })
        .collect();
    let event = with(
        event("START", "2026-03-01T10:00:00Z"),
        "/outputs",
        json!(outputs),
    );
    for run in 0..300 {
        let info = told.take(&with(event.clone(), "/run/runId", json!(run.to_string())));
        assert_eq!(long(&info, "recordsOut"), Some(1_000));
        assert_eq!(told.0.len(), 200.min(run + 1));
    }
}

#[test]
fn what_a_facet_told_once_holds_for_the_later_events_of_the_run() {
    let parent =
        json!({"run": {"runId": "dag-run"}, "job": {"namespace": "airflow", "name": "dag"}});
    let facets = json!({
        "parent": parent,
        "processing_engine": {"version": "3.5.1", "name": "Spark"},
        "spark_applicationDetails": {"applicationId": "local-1", "userName": "ada", "appName": "x"},
    });
    let mut told = Told::new();
    let job_type = json!({"integration": "SPARK", "jobType": "SQL_JOB", "processingType": "BATCH"});
    let start = with(
        event("START", "2026-03-01T10:00:00Z"),
        "/run/facets",
        facets,
    );
    let start = with(start, "/job/facets", json!({"jobType": job_type}));
    for event in [
        start,
        event("RUNNING", "2026-03-01T10:00:01Z"),
        event("COMPLETE", "2026-03-01T10:00:02Z"),
    ] {
        let info = told.take(&event);
        assert_eq!(info.job_id, "dag-run");
        let engine = &info.engine;
        assert_eq!(
            (
                engine.engine_type.as_str(),
                engine.user.as_str(),
                engine.ticket_id.as_str()
            ),
            ("spark", "ada", "local-1")
        );
        let text = |name| metric(&info, name);
        assert_eq!(
            text("parentRunId"),
            Some(MetricValue::String("dag-run".to_owned()))
        );
        assert_eq!(
            text("jobType"),
            Some(MetricValue::String("SQL_JOB".to_owned()))
        );
        assert_eq!(
            text("processingType"),
            Some(MetricValue::String("BATCH".to_owned()))
        );
        assert_eq!(
            text("jobName"),
            Some(MetricValue::String("orders".to_owned()))
        );
    }
}

#[test]
fn the_job_is_the_root_run_else_the_parent_run_else_the_job_itself() {
    let run = |facet: Value| with(event("START", "2026-03-01T10:00:00Z"), "/run/facets", facet);
    let parent = json!({"run": {"runId": "parent"}, "job": {"namespace": "n", "name": "p"}});
    let rooted = with(
        parent.clone(),
        "/root",
        json!({"run": {"runId": "root"}, "job": {"namespace": "n", "name": "r"}}),
    );
    for (facets, job_id) in [
        (json!({"parent": rooted}), "root"),
        (json!({"parent": parent}), "parent"),
        (json!({"parentRun": parent}), "parent"),
        (json!({"parent": {"run": {"runId": 7}}}), "shop/orders"),
        (json!({"parent": ["parent"]}), "shop/orders"),
        (json!({}), "shop/orders"),
    ] {
        assert_eq!(Told::new().take(&run(facets)).job_id, job_id);
    }
    let without = with(
        event("START", "2026-03-01T10:00:00Z"),
        "/job/namespace",
        json!(""),
    );
    let info = Told::new().take(&without);
    assert_eq!(
        (info.job_id.as_str(), info.engine.instance.as_str()),
        ("orders", "openlineage")
    );
}

#[test]
fn the_engine_is_that_of_the_run_else_the_integration_else_that_of_the_producers_address() {
    let mut told = Told::new();
    for (producer, engine) in [
        (
            "https://github.com/OpenLineage/OpenLineage/tree/1.23.0/integration/spark",
            "spark",
        ),
        (
            "https://github.com/apache/airflow/tree/providers-openlineage/1.14.0",
            "airflow",
        ),
        (
            "https://github.com/trinodb/trino/plugin/trino-openlineage",
            "trino",
        ),
        ("https://example.com/a", "openlineage"),
        ("producer", "openlineage"),
        ("", "openlineage"),
    ] {
        let event = with(
            event("START", "2026-03-01T10:00:00Z"),
            "/producer",
            json!(producer),
        );
        assert_eq!(
            Told::new().take(&event).engine.engine_type,
            engine,
            "{producer}"
        );
        // Of less trust than the integration, which a later event names.
        told.take(&event);
    }
    let job_type = json!({"jobType": {"integration": "DBT"}});
    let dbt = with(
        event("COMPLETE", "2026-03-01T10:00:00Z"),
        "/job/facets",
        job_type,
    );
    assert_eq!(told.take(&dbt).engine.engine_type, "dbt");
    assert_eq!(
        told.take(&event("START", "2026-03-01T10:00:00Z"))
            .engine
            .engine_type,
        "dbt"
    );
}

#[test]
fn the_ticket_and_the_user_are_those_of_the_engine_that_names_them() {
    for (facets, user, ticket) in [
        (
            json!({"externalQuery": {"externalQueryId": "bq-1", "source": "bigquery"}}),
            "",
            "bq-1",
        ),
        (
            json!({"hive_query": {"queryId": "hive_1"}, "hive_session": {"username": "bo"}}),
            "bo",
            "hive_1",
        ),
        (json!({"trino_query_context": {"user": "cy"}}), "cy", ""),
        (json!({"flink_job": {"jobId": "44f7bc13"}}), "", "44f7bc13"),
        (
            json!({"spark_applicationDetails": {"applicationId": 7, "userName": null}}),
            "",
            "",
        ),
    ] {
        let event = with(
            event("START", "2026-03-01T10:00:00Z"),
            "/run/facets",
            facets,
        );
        let engine = Told::new().take(&event).engine;
        assert_eq!(
            (engine.user.as_str(), engine.ticket_id.as_str()),
            (user, ticket),
            "{event}"
        );
    }
}

fn dataset(name: &str, facets: &Value) -> Value {
    json!({"namespace": "hdfs", "name": name, "inputFacets": facets, "outputFacets": facets})
}

#[test]
fn rows_bytes_and_files_are_the_last_of_each_dataset_added_up() {
    let mut told = Told::new();
    let outputs = |kind, outputs: &[(&str, Value)]| {
        let outputs = outputs
            .iter()
            .map(|(name, counts)| dataset(name, &json!({"outputStatistics": counts})));
        with(
            event(kind, "2026-03-01T10:00:00Z"),
            "/outputs",
            outputs.collect(),
        )
    };
    let info = told.take(&outputs("START", &[]));
    assert_eq!(long(&info, "recordsOut"), None, "never a made-up 0");
    let counts = json!({"rowCount": 2, "size": 8, "fileCount": 1});
    told.take(&outputs("RUNNING", &[("a", counts.clone())]));
    let info = told.take(&outputs(
        "RUNNING",
        &[("a", json!({"rowCount": 3, "size": 9})), ("b", counts)],
    ));
    // A facet replaces the earlier one of its name.
    let sums = |info: &TaskRunningInfo| {
        ["recordsOut", "bytesOut", "filesOut"].map(|name| long(info, name))
    };
    assert_eq!(sums(&info), [Some(5), Some(17), Some(1)]);
    let info = told.take(&event("COMPLETE", "2026-03-01T10:00:01Z"));
    assert_eq!(sums(&info), [Some(5), Some(17), Some(1)]);
    assert_eq!(long(&info, "recordsIn"), None);

    let input = dataset("c", &json!({"inputStatistics": {"rowCount": 7, "size": 0}}));
    let info = Told::new().take(&with(
        event("START", "2026-03-01T10:00:00Z"),
        "/inputs",
        json!([input]),
    ));
    assert_eq!(
        [
            long(&info, "recordsIn"),
            long(&info, "bytesIn"),
            long(&info, "filesIn")
        ],
        [Some(7), Some(0), None]
    );
}

#[test]
fn counts_that_are_impossible_or_too_many_are_left_out() {
    let outputs = |outputs: Value| {
        Told::new().take(&with(
            event("COMPLETE", "2026-03-01T10:00:00Z"),
            "/outputs",
            outputs,
        ))
    };
    let of = |counts: Value| dataset("a", &json!({"outputStatistics": counts}));
    let other = |counts: Value| dataset("b", &json!({"outputStatistics": counts}));
    for counts in [
        json!({"rowCount": -1}),
        json!({"rowCount": "2"}),
        json!({"rowCount": 2.5}),
        json!(7),
        json!([1]),
    ] {
        assert_eq!(long(&outputs(json!([of(counts)])), "recordsOut"), None);
    }
    let info = outputs(json!([
        of(json!({"rowCount": i64::MAX, "size": 1})),
        other(json!({"rowCount": 1, "size": 1}))
    ]));
    assert_eq!(
        (long(&info, "recordsOut"), long(&info, "bytesOut")),
        (None, Some(2))
    );
    for datasets in [json!({}), json!(7), json!([7, null, {}, [1]])] {
        assert_eq!(long(&outputs(datasets), "recordsOut"), None);
    }
    let many = |count: usize| {
        let each = (0..count).map(|n| {
            dataset(
                &n.to_string(),
                &json!({"outputStatistics": {"rowCount": 1}}),
            )
        });
        outputs(each.collect())
    };
    assert_eq!(long(&many(1_000), "recordsOut"), Some(1_000));
    assert_eq!(long(&many(1_001), "recordsOut"), None);
}

#[test]
fn checkpoints_of_flink_are_the_last_ones() {
    let mut told = Told::new();
    let checkpoints = |completed| {
        let counts = json!({"checkpoints": {"completed": completed, "failed": 0, "in-progress": 1, "restored": 0, "total": 9}});
        with(
            event("RUNNING", "2026-03-01T10:00:00Z"),
            "/run/facets",
            counts,
        )
    };
    told.take(&checkpoints(3));
    told.take(&checkpoints(5));
    let info = told.take(&event("RUNNING", "2026-03-01T10:00:01Z"));
    assert_eq!(long(&info, "checkpointsCompleted"), Some(5));
    assert_eq!(long(&info, "checkpointsFailed"), Some(0));
    assert_eq!(long(&info, "checkpointsInProgress"), Some(1));
}

#[test]
fn times_are_read_as_the_clients_write_them() {
    for (text, expected) in [
        (
            "2024-11-26T13:05:23.809955+00:00",
            "2024-11-26T13:05:23.809955Z",
        ),
        ("2020-12-28T19:52:00.001+10:00", "2020-12-28T09:52:00.001Z"),
        ("2020-12-28T19:51:01.641499", "2020-12-28T19:51:01.641499Z"),
        (
            "2021-11-05T10:28:18.969066Z[Europe/London]",
            "2021-11-05T10:28:18.969066Z",
        ),
        (
            "2021-07-05T10:28:18+01:00[Europe/London]",
            "2021-07-05T09:28:18Z",
        ),
        ("2021-07-05T10:28:18[Europe/London]", "2021-07-05T09:28:18Z"),
        (
            "2021-07-05T10:28:18Z[Atlantis/Capital]",
            "2021-07-05T10:28:18Z",
        ),
        (
            "2020-12-28T19:51:01.641499999Z",
            "2020-12-28T19:51:01.641499Z",
        ),
        (
            "1969-12-31T23:59:59.999999999Z",
            "1969-12-31T23:59:59.999999Z",
        ),
        (" 2020-12-28 19:51:01z ", "2020-12-28T19:51:01Z"),
    ] {
        let info = Told::new().take(&event("START", text));
        let expected: Timestamp = expected.parse().unwrap();
        assert_eq!(info.reported_at, expected.as_microsecond(), "{text}");
    }
    // The first and the last second of the contract's years.
    for (text, micros) in [
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000_000),
        ("9999-12-31T22:59:59-01:00", 253_402_300_799_000_000),
    ] {
        assert_eq!(Told::new().take(&event("START", text)).reported_at, micros);
    }
    let mut without = event("START", "");
    without.as_object_mut().unwrap().remove("eventTime");
    let info = Told::new().take(&without);
    assert_eq!(info.reported_at, received().as_microsecond());
}

#[test]
fn what_is_no_event_of_a_run_is_refused_with_the_place_and_changes_nothing() {
    let mut told = Told::new();
    told.take(&event("START", "2026-03-01T10:00:00Z"));
    let time = |text| event("COMPLETE", text).to_string();
    let whole = |pointer, value| {
        with(event("COMPLETE", "2026-03-01T10:00:00Z"), pointer, value).to_string()
    };
    for (text, kind, reason) in [
        (String::new(), "Empty", "the event is empty"),
        (
            "[1]".to_owned(),
            "Malformed",
            "the event is not a JSON object",
        ),
        (
            "\u{feff}{}".to_owned(),
            "Malformed",
            "the event is not a JSON object",
        ),
        (
            "{}".to_owned(),
            "Malformed",
            "the event has neither run, job nor dataset: it is not of OpenLineage",
        ),
        (
            "{\"run\": {".to_owned(),
            "Malformed",
            "the JSON ends early, at line 1 column 9",
        ),
        (
            "{\"run\": secret}".to_owned(),
            "Malformed",
            "the JSON is not valid, at line 1 column 9",
        ),
        (
            "{} {}".to_owned(),
            "Malformed",
            "the JSON is not valid, at line 1 column 4",
        ),
        (
            "{\"run\": 1, \"run\": 2}".to_owned(),
            "Malformed",
            "a field is given twice, at line 1 column 16",
        ),
        (
            whole("/run", json!("secret")),
            "Malformed",
            "run is no object",
        ),
        (whole("/job", json!(null)), "Malformed", "job is missing"),
        (
            whole("/job", json!(["orders"])),
            "Malformed",
            "job is no object",
        ),
        (
            time("2026-03-01T10:00:00Z").replace("\"run\":{", "\"run\":{\"runId\":\"secret\","),
            "Malformed",
            "a field of run is given twice",
        ),
        (
            time("2026-03-01T10:00:00Z").replace("\"job\":{", "\"job\":{\"name\":\"secret\","),
            "Malformed",
            "a field of job is given twice",
        ),
        (
            whole("/run", json!({})),
            "BlankIdentifier",
            "run.runId is missing, blank or no text",
        ),
        (
            whole("/run/runId", json!(" ")),
            "BlankIdentifier",
            "run.runId is missing, blank or no text",
        ),
        (
            whole("/run/runId", json!("\u{200b}")),
            "BlankIdentifier",
            "execId is blank: \"\\u{200b}\" has no visible character",
        ),
        (
            whole("/job/name", json!(5)),
            "BlankIdentifier",
            "job.name is missing, blank or no text",
        ),
        (
            time("yesterday"),
            "Malformed",
            "eventTime yesterday is not a time as in RFC 3339",
        ),
        (
            whole("/eventTime", json!(1_700_000_000)),
            "Malformed",
            "eventTime 1700000000 is not a time as in RFC 3339",
        ),
        (
            time("-000100-01-01T00:00:00Z"),
            "TimeOutOfRange",
            "eventTime -000100-01-01T00:00:00Z is outside the years 1 to 9999",
        ),
        (
            time("0000-12-31T23:59:59Z"),
            "TimeOutOfRange",
            "eventTime 0000-12-31T23:59:59Z is outside the years 1 to 9999",
        ),
        (
            time("9999-12-31T23:59:59-01:00"),
            "TimeOutOfRange",
            "eventTime 9999-12-31T23:59:59-01:00 is outside the years 1 to 9999",
        ),
    ] {
        let refused = told.refuse(&text);
        assert_eq!(
            (refused.kind, refused.reason.as_str()),
            (kind, reason),
            "{text}"
        );
        assert!(schemas::dead_letter::KINDS.contains(&refused.kind));
    }
    let bytes = take(&mut told.0, b"{\"run\": \"\xff\"}").unwrap_err();
    assert_eq!(bytes.reason, "the event is not UTF-8 at byte 9");
    let info = told.take(&event("COMPLETE", "2026-03-01T10:00:00Z"));
    assert_eq!((info.sequence, info.status), (1, Succeed));
}

#[test]
fn facets_and_fields_that_are_unknown_or_of_another_shape_do_not_matter() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let facets = [
        format!("{{\"spark.logicalPlan\": {deep}, \"additionalProperties\": {{}}}}"),
        "{\"parent\": 1, \"processing_engine\": [\"x\"], \"checkpoints\": \"many\", \"spark_applicationDetails\": null}".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        "{\"parent\": {}, \"parent\": {}}".to_owned(),
    ];
    for facets in facets {
        let text = event("COMPLETE", "2026-03-01T10:00:00Z").to_string();
        let text = text.replace(
            "\"run\":{",
            &format!(
                "\"additionalProperties\":{{}},\"dataset\":{{}},\"run\":{{\"facets\":{facets},"
            ),
        );
        let taken = take(&mut Told::new().0, text.as_bytes());
        let Ok(Taken::Report(info)) = taken else {
            panic!("{taken:?}")
        };
        assert_eq!(
            (info.status, info.job_id.as_str()),
            (Succeed, "shop/orders")
        );
    }
}

#[test]
fn events_of_jobs_and_datasets_are_accepted_and_report_nothing() {
    for event in [
        json!({"job": {"name": "a"}, "eventType": "COMPLETE"}),
        json!({"dataset": {"name": "a"}}),
        json!({"job": {}, "run": null}),
    ] {
        let taken = take(&mut Runs::new(1), event.to_string().as_bytes());
        assert_eq!(taken, Ok(Taken::NoRun));
    }
}

#[test]
fn texts_that_may_hold_secrets_are_not_published() {
    let secret = "s3cr3t";
    let facets = json!({
        "errorMessage": {"message": secret, "programmingLanguage": "JAVA", "stackTrace": secret},
        "spark_properties": {"properties": {"password": secret}},
        "environment-properties": {"x": secret},
        "spark_jobDetails": {"jobDescription": secret},
        "trino_metadata": {"query_plan": secret},
        "trino_query_context": {"user": "cy", "source": secret, "client_info": secret},
        "spark_applicationDetails": {"appName": secret, "master": secret, "uiWebUrl": secret},
        "externalQuery": {"externalQueryId": "q", "source": secret},
    });
    let job = json!({"sql": {"query": secret}, "sourceCode": {"sourceCode": secret}, "documentation": {"description": secret}});
    let mut event = with(event("FAIL", "2026-03-01T10:00:00Z"), "/run/facets", facets);
    event["job"]["facets"] = job;
    event["outputs"] =
        json!([{"namespace": secret, "name": secret, "facets": {"dataSource": {"uri": secret}}}]);
    let info = Told::new().take(&event);
    let told = json!(info).to_string();
    assert!(!told.contains(secret), "{told}");
}

#[test]
fn ids_of_any_length_are_within_the_limits_and_stay_apart() {
    let mut told = Told::new();
    let long = |end: &str| format!("{}{end}", "é".repeat(400));
    let ids: Vec<String> = ["a", "b"]
        .iter()
        .flat_map(|end| {
            let event = with(
                event("START", "2026-03-01T10:00:00Z"),
                "/run/runId",
                json!(long(end)),
            );
            let event = with(event, "/job/name", json!(long("job")));
            let event = with(event, "/job/namespace", json!(long("space")));
            let info = told.take(&event);
            assert_eq!(info.problems(), []);
            let clash = told.take(&with(event, "/job/name", json!(long("other"))));
            assert_eq!(clash.problems(), []);
            [info.exec_id, clash.exec_id]
        })
        .collect();
    assert!(ids.iter().all(|id| id.len() <= IDENTIFIER_MAX_BYTES));
    let apart: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(apart.len(), 4);
}

#[test]
fn at_most_as_many_runs_as_chosen_are_remembered_and_the_least_recent_is_forgotten() {
    let mut told = Told(Runs::new(2));
    let of = |run: &str| {
        with(
            event("COMPLETE", "2026-03-01T10:00:00Z"),
            "/run/runId",
            json!(run),
        )
    };
    for (run, status) in [
        ("a", Succeed),
        ("b", Succeed),
        ("a", Unknown),
        ("c", Succeed),
        ("a", Unknown),
        ("b", Succeed),
    ] {
        assert_eq!(told.take(&of(run)).status, status, "{run}");
        assert!(told.0.len() <= 2);
    }
}

#[test]
fn an_event_of_23_megabytes_is_read_in_a_time_that_grows_with_its_size_only() {
    let sized = |bytes: usize| {
        let plan = "{\"class\":\"Project\",\"children\":[1,2,3]},".repeat(bytes / 40);
        let text = event("COMPLETE", "2026-03-01T10:00:00Z").to_string();
        let facets = format!("\"run\":{{\"facets\":{{\"spark.logicalPlan\":[{plan}0]}},");
        text.replace("\"run\":{", &facets)
    };
    let seconds = |text: &str| {
        let begun = Instant::now();
        let taken = take(&mut Told::new().0, text.as_bytes());
        assert!(matches!(taken, Ok(Taken::Report(info)) if info.status == Succeed));
        begun.elapsed().as_secs_f64()
    };
    let (small, large) = (sized(2_300_000), sized(23_000_000));
    assert!(large.len() > 22_000_000);
    let best = |text| (0..3).map(|_| seconds(text)).fold(f64::MAX, f64::min);
    let (small, large) = (best(&small), best(&large));
    assert!(large < 40.0 * small.max(0.001), "{small} s and {large} s");
}

fn inputs() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/inputs/openlineage");
    if !folder.is_dir() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

/// All reports of a file of events, by task.
fn reported(file: &Path) -> BTreeMap<String, Vec<TaskRunningInfo>> {
    let text = std::fs::read_to_string(file).unwrap();
    let mut runs = Runs::new(100);
    let mut told: BTreeMap<String, Vec<TaskRunningInfo>> = BTreeMap::new();
    for line in text.lines() {
        let Ok(Taken::Report(info)) = take(&mut runs, line.as_bytes()) else {
            panic!("{line}")
        };
        told.entry(info.exec_id.clone()).or_default().push(*info);
    }
    for reports in told.values() {
        assert!(
            reports
                .iter()
                .map(|info| info.sequence)
                .eq(0..reports.len() as i64)
        );
        assert!(reports.iter().all(|info| info.problems().is_empty()));
    }
    told
}

#[test]
fn the_events_of_airflow_end_as_they_say() {
    let Some(folder) = inputs() else { return };
    let told = reported(&folder.join("airflow.ndjson"));
    assert_eq!(
        (told.len(), told.values().map(Vec::len).sum::<usize>()),
        (16, 32)
    );
    let (mut roots, mut tickets) = (0, 0);
    for (exec_id, reports) in &told {
        let statuses: Vec<TaskStatus> = reports.iter().map(|info| info.status).collect();
        assert_eq!(statuses, [Running, Succeed], "{exec_id}");
        let last = newest(reports);
        assert_eq!(
            (
                last.engine.engine_type.as_str(),
                last.engine.instance.as_str()
            ),
            ("airflow", "airflow")
        );
        assert!(reports[0].reported_at < last.reported_at);
        match metric(last, "parentRunId") {
            None => roots += 1,
            // A DAG run's execId is the jobId of its tasks.
            Some(parent) => {
                assert!(told.contains_key(&last.job_id));
                assert_eq!(parent, MetricValue::String(last.job_id.clone()));
            }
        }
        tickets += usize::from(!last.engine.ticket_id.is_empty());
    }
    assert_eq!((roots, tickets), (3, 3));
}

#[test]
fn the_events_of_a_spark_application_end_as_they_say() {
    let Some(folder) = inputs() else { return };
    let told = reported(&folder.join("spark-complete.ndjson"));
    assert_eq!(
        (told.len(), told.values().map(Vec::len).sum::<usize>()),
        (7, 16)
    );
    let count = |kind: &[TaskStatus]| {
        let is = |reports: &&Vec<TaskRunningInfo>| {
            reports
                .iter()
                .map(|info| info.status)
                .eq(kind.iter().copied())
        };
        told.values().filter(is).count()
    };
    assert_eq!(count(&[Succeed]), 2);
    assert_eq!(count(&[Running, Succeed]), 3);
    assert_eq!(count(&[Running, Running, Running, Succeed]), 2);
    let rows: Vec<Option<i64>> = told
        .values()
        .map(|reports| long(newest(reports), "recordsOut"))
        .collect();
    assert_eq!(rows.iter().filter(|rows| **rows == Some(2)).count(), 2);
    assert_eq!(rows.iter().filter(|rows| rows.is_none()).count(), 5);
    let application = newest(&told["019299c5-12f5-7946-b5b2-c6abab662e20"]);
    assert_eq!(application.job_id, "default/cl_i_test_application");
    assert_eq!(
        (
            application.engine.user.as_str(),
            application.engine.ticket_id.as_str()
        ),
        ("root", "local-1729156674719")
    );
    let others = told
        .values()
        .flatten()
        .filter(|info| info.exec_id != application.exec_id);
    for info in others {
        assert_eq!(
            (info.job_id.as_str(), info.engine.engine_type.as_str()),
            (application.exec_id.as_str(), "spark")
        );
    }
}

#[test]
fn single_events_of_others_end_as_they_say() {
    let Some(folder) = inputs() else { return };
    let take = |file: &str| {
        let event = std::fs::read(folder.join(file)).unwrap();
        self::take(&mut Runs::new(1), &event)
    };
    for (file, exec_id, job_id, status, time) in [
        (
            "simple-run-event.ndjson",
            "run_id",
            "job_namespace/job_name",
            Succeed,
            "2023-04-04T13:21:16.098Z",
        ),
        (
            "marquez-event_required_no_timezone.json",
            "43d7db3b-8984-4cda-b237-8c6919b36670",
            "my-namespace/myjob",
            Unknown,
            "2020-12-28T19:51:01.641499Z",
        ),
        (
            "marquez-event_without_schema_url.json",
            "41fb5137-f0fd-4ee5-ba5c-56f8571d1bd7",
            "my-scheduler-namespace/myjob",
            Succeed,
            "2020-12-28T09:52:00.001Z",
        ),
        (
            "marquez-event_large.json",
            "ea041791-68bc-4ae1-bd89-4c8106a157e4",
            "3f5e83fa-3480-44ff-99c5-ff943904e5e8",
            Succeed,
            "2020-12-28T19:51:01.641Z",
        ),
    ] {
        let Ok(Taken::Report(info)) = take(file) else {
            panic!("{file}")
        };
        assert_eq!(
            (info.exec_id.as_str(), info.job_id.as_str(), info.status),
            (exec_id, job_id, status),
            "{file}"
        );
        let time: Timestamp = time.parse().unwrap();
        assert_eq!(info.reported_at, time.as_microsecond(), "{file}");
        assert_eq!(info.problems(), []);
    }
    for file in [
        "marquez-event_job_event.json",
        "marquez-event_dataset_event.json",
    ] {
        assert_eq!(take(file), Ok(Taken::NoRun), "{file}");
    }
}

proptest! {
    #[test]
    fn after_a_roll_back_the_reports_are_those_of_a_state_that_never_saw_the_events(
        before in proptest::collection::vec((0..6_u8, 0..6_usize), 0..20),
        undone in proptest::collection::vec((0..6_u8, 0..6_usize), 0..20),
        after in proptest::collection::vec((0..6_u8, 0..6_usize), 0..20),
        capacity in 1..5_usize,
    ) {
        let kinds = ["START", "RUNNING", "OTHER", "COMPLETE", "FAIL", "ABORT"];
        let take = |told: &mut Told, (run, kind): &(u8, usize)| {
            let event = event(kinds[*kind], "2026-03-01T10:00:00Z");
            told.take(&with(event, "/run/runId", json!(format!("run-{run}"))))
        };
        let (mut undoing, mut plain) = (Told(Runs::new(capacity)), Told(Runs::new(capacity)));
        for event in &before {
            take(&mut undoing, event);
            take(&mut plain, event);
        }
        undoing.0.begin();
        for event in &undone {
            take(&mut undoing, event);
        }
        undoing.0.roll_back();
        for event in &after {
            prop_assert_eq!(take(&mut undoing, event), take(&mut plain, event));
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused_and_any_report_is_within_the_limits(bytes in any::<Vec<u8>>(), place in 0..1_000_usize, text in ".{0,20}") {
        let mut runs = Runs::new(10);
        let _ = take(&mut runs, &bytes);
        let mut event = event("COMPLETE", "2026-03-01T10:00:00Z").to_string();
        let place = event.floor_char_boundary(place % event.len());
        event.insert_str(place, &text);
        if let Ok(Taken::Report(info)) = take(&mut runs, event.as_bytes()) {
            let unusable = info.problems().into_iter().find(|problem| problem.fault.adjustment().is_none());
            prop_assert_eq!(unusable, None);
        }
    }
}
