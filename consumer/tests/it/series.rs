//! `consumer series`: a task's values over time agree with its reports, on either database.

use std::collections::BTreeMap;
use std::process::Command;

use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::TaskStatus::{Cancelled, Running, Scheduled, WaitForRetry};
use schemas::{MetricValue, ResourceWithStatus, TaskRunningInfoEvent};
use serde_json::{Value, json};

on_every_database!(
    series_are_the_reports_between_the_times,
    a_long_history_is_thinned_and_keeps_its_extremes,
    invalid_options_are_refused_by_name,
);

/// Names with a special meaning in paths or statements.
const NAMES: [&str; 6] = [
    "busy",
    "a.b",
    "a\"b",
    "$.x",
    "'; DROP TABLE task; --",
    "\u{202e}日本 👍",
];

fn random_event(random: &mut ChaCha8Rng, sequence: i64) -> TaskRunningInfoEvent {
    let mut event = strategies::sample_event();
    let info = &mut event.info;
    info.exec_id = format!("exec-{}", random.random_range(0..2));
    info.sequence = sequence;
    info.reported_at += random.random_range(0..40);
    let statuses = [Running, Running, Scheduled, WaitForRetry, Cancelled];
    info.status = statuses[random.random_range(0..statuses.len())];
    match random.random_range(0..4) {
        0 => info.progress = None,
        _ => info.progress.as_mut().unwrap().progress = random.random(),
    }
    let resource = info.resource.as_mut().unwrap();
    let held = ResourceWithStatus {
        queue: "root.default".to_owned(),
        ..ResourceWithStatus::default()
    };
    resource.applications = (0..random.random_range(0..3))
        .map(|application| {
            let held = ResourceWithStatus {
                // Two of them overflow an i64.
                queue_memory: i64::MAX >> random.random_range(0..60),
                queue_cores: random.random_range(0..9),
                queue_instances: random.random_range(0..9),
                ..held.clone()
            };
            (format!("application_{application}"), held)
        })
        .collect();
    info.metrics = (random.random_range(0..4) > 0).then(|| {
        let names = NAMES.iter().filter(|_| random.random_bool(0.7));
        let names: Vec<_> = names.collect();
        names
            .into_iter()
            .map(|name| {
                let value = match random.random_range(0..5) {
                    0 => MetricValue::Null,
                    1 => MetricValue::Boolean(random.random()),
                    2 => MetricValue::Long(random.random_range(-(1 << 52)..1 << 52)),
                    3 => MetricValue::Double(random.random()),
                    _ => MetricValue::String("7".to_owned()),
                };
                ((*name).to_owned(), value)
            })
            .collect()
    });
    event
}

/// The values of a report, by series.
fn values(event: &TaskRunningInfoEvent) -> BTreeMap<String, f64> {
    let info = &event.info;
    let mut values = BTreeMap::new();
    if let Some(progress) = &info.progress {
        values.insert("progress".to_owned(), progress.progress);
    }
    let applications = &info.resource.as_ref().unwrap().applications;
    if !applications.is_empty() {
        let sum = |value: fn(&ResourceWithStatus) -> f64| applications.values().map(value).sum();
        values.insert("memory_bytes".into(), sum(|held| held.queue_memory as f64));
        values.insert("cores".into(), sum(|held| held.queue_cores.into()));
        values.insert("instances".into(), sum(|held| held.queue_instances.into()));
    }
    for (name, value) in info.metrics.iter().flatten() {
        let value = match value {
            MetricValue::Boolean(value) => f64::from(u8::from(*value)),
            MetricValue::Long(value) => *value as f64,
            MetricValue::Double(value) => *value,
            MetricValue::Null | MetricValue::String(_) => continue,
        };
        values.insert(format!("metrics.{name}"), value);
    }
    values
}

fn asked(pipeline: &Pipeline, arguments: &[&str]) -> Value {
    let arguments = [&["series"], arguments, &["--json"]].concat();
    serde_json::from_str(&pipeline.ask(&arguments)).unwrap()
}

fn points(series: &Value) -> Vec<(String, f64)> {
    let points = series["points"].as_array().unwrap().iter();
    points
        .map(|point| {
            let at = point["reported_at"].as_str().unwrap().to_owned();
            (at, point["value"].as_f64().unwrap())
        })
        .collect()
}

fn shown(micros: i64) -> String {
    format!("{:.6}", Timestamp::from_microsecond(micros).unwrap())
}

async fn series_are_the_reports_between_the_times(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let seed: u64 = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let events: Vec<_> = (0..200)
        .map(|sequence| random_event(&mut random, sequence / 2))
        .collect();
    pipeline.send_events(&events);
    let consumer = pipeline.consumer(&[]);
    pipeline
        .until_count(&Pipeline::stored("metrics"), events.len() as i64)
        .await;
    consumer.stop().await;

    let first = strategies::sample_event().info.reported_at;
    for (from, to) in [
        (None, None),
        (Some(first + 10), Some(first + 25)),
        (None, Some(first - 1)),
    ] {
        let (from_text, to_text) = (from.map(shown), to.map(shown));
        let mut arguments = vec!["exec-1"];
        for name in NAMES {
            arguments.extend(["--metric", name]);
        }
        if let Some(from) = &from_text {
            arguments.extend(["--from", from]);
        }
        if let Some(to) = &to_text {
            arguments.extend(["--to", to]);
        }
        let found = asked(&pipeline, &arguments);
        assert_eq!(
            (&found["from"], &found["to"]),
            (&json!(from_text), &json!(to_text))
        );

        let numbered = events.iter().enumerate();
        let mut reports: Vec<_> = numbered
            .filter(|(_, event)| event.info.exec_id == "exec-1")
            .filter(|(_, event)| {
                let at = event.info.reported_at;
                from.is_none_or(|from| from <= at) && to.is_none_or(|to| at <= to)
            })
            .collect();
        reports
            .sort_by_key(|(offset, event)| (event.info.reported_at, event.info.sequence, *offset));
        let mut names: Vec<String> = ["progress", "memory_bytes", "cores", "instances"]
            .map(str::to_owned)
            .into();
        names.extend(NAMES.map(|name| format!("metrics.{name}")));
        let series = found["series"].as_array().unwrap();
        assert_eq!(series.len(), names.len());
        for (series, name) in series.iter().zip(names) {
            assert_eq!(series["name"], json!(name));
            let mut expected: Vec<(i64, usize, f64)> = reports
                .iter()
                .filter_map(|(offset, event)| {
                    let value = values(event).get(&name).copied()?;
                    Some((event.info.reported_at, *offset, value))
                })
                .collect();
            if name != "progress" {
                // Only reports have sequences.
                expected.sort_by_key(|(at, offset, _)| (*at, *offset));
            }
            let expected: Vec<_> = expected
                .into_iter()
                .map(|(at, _, value)| (shown(at), value))
                .collect();
            assert_eq!(
                series["reports"],
                json!(expected.len()),
                "{name}, seed {seed}"
            );
            let points = points(series);
            let near = points
                .iter()
                .zip(&expected)
                .all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() <= 1e-15 * b.1.abs());
            assert!(
                points.len() == expected.len() && near,
                "{name}, seed {seed}:\n{points:?}\n{expected:?}"
            );
        }

        let mut marks: Vec<Value> = Vec::new();
        for (_, event) in &reports {
            let status = json!(event.info.status.as_str());
            if marks.last().is_none_or(|mark| mark["status"] != status) {
                marks.push(json!({"reported_at": shown(event.info.reported_at), "status": status}));
            }
        }
        assert_eq!(found["marks"], json!(marks), "seed {seed}");
    }
    let server = pipeline.serve("serve", &[]).await;
    let actual = server
        .json("/api/v1/tasks/exec-1/series?metric=busy&points=20")
        .await;
    let printed = asked(&pipeline, &["exec-1", "--metric", "busy", "--points", "20"]);
    assert_eq!(actual, printed);
    assert_eq!(actual["watermark"], json!({"0": 200}));
    let refused = server
        .get("/api/v1/tasks/exec-1/series?points=3&from=noon")
        .await;
    let detail = refused.problem(400);
    assert!(
        detail.contains("points: ") && detail.contains("from: "),
        "{detail}"
    );
    server.get("/api/v1/tasks/nobody/series").await.problem(404);
    server.stop().await;

    let text = pipeline.ask(&["series", "exec-1", "--metric", "\u{202e}日本 👍"]);
    for part in [
        "memory_bytes",
        "GiB",
        "status marks",
        r"metrics.\u{202e}日本 👍",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// A task's reports, one per second, inserted by one statement per history.
fn long_history(kind: Kind, reports: i64) -> String {
    let numbers = match kind {
        Kind::Postgres => format!("generate_series(0, {}) AS n(i)", reports - 1),
        Kind::Mariadb => format!("(SELECT seq AS i FROM seq_0_to_{}) AS n", reports - 1),
        Kind::Sqlite => format!(
            "(WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {}) SELECT i FROM n) AS n",
            reports - 1
        ),
    };
    let at = match kind {
        Kind::Postgres => "to_timestamp(1700000000 + i)",
        Kind::Sqlite | Kind::Mariadb => "(1700000000 + i) * 1000000",
    };
    format!(
        "INSERT INTO task (task_id, exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
         reported_at, sequence, event_partition, event_offset) \
         SELECT 1, 'long', 'j', 'e', 't', 'u', '', 'Running', false, {at}, i, 0, i FROM {numbers} WHERE i = {reports} - 1; \
         INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status, progress) \
         SELECT 1, 0, i, {at}, i, 'Running', CASE i WHEN 777 THEN 1 WHEN 7777 THEN 0 ELSE 0.5 END FROM {numbers}; \
         INSERT INTO task_resource (task_id, event_partition, event_offset, reported_at, memory_bytes, cores, instances, \
         application_id, queue, status) SELECT 1, 0, i, {at}, 1024 * (i % 100 + 1), 2, 1, 'a', 'q', '' FROM {numbers}; \
         INSERT INTO task_metrics (task_id, event_partition, event_offset, reported_at, engine_running_tasks, metrics) \
         SELECT 1, 0, i, {at}, 1, '{{\"x\":1.5}}' FROM {numbers}"
    )
}

async fn a_long_history_is_thinned_and_keeps_its_extremes(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    // Also more than one slice.
    for reports in [20_000, 300_000] {
        pipeline.execute("DELETE FROM task; DELETE FROM task_progress; DELETE FROM task_resource; DELETE FROM task_metrics").await;
        pipeline.execute(&long_history(kind, reports)).await;
        let found = asked(&pipeline, &["long", "--points", "100", "--metric", "x"]);
        let series = found["series"].as_array().unwrap();
        assert_eq!(series.len(), 5);
        for series in series {
            assert_eq!(series["reports"], json!(reports));
            let points = points(series);
            assert!(
                points.len() <= 100 && points.len() >= 50,
                "{}",
                points.len()
            );
            assert_eq!(points[0].0, shown(1_700_000_000_000_000));
            let last = 1_700_000_000 + reports - 1;
            assert_eq!(points[points.len() - 1].0, shown(last * 1_000_000));
        }
        let progress = points(&series[0]);
        for (second, value) in [(777, 1.0), (7777, 0.0)] {
            let extreme = (shown((1_700_000_000 + second) * 1_000_000), value);
            assert!(progress.contains(&extreme), "{extreme:?} is lost");
        }
        let marks = json!([{"reported_at": shown(1_700_000_000_000_000), "status": "Running"}]);
        assert_eq!(found["marks"], marks);
    }
}

async fn invalid_options_are_refused_by_name(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    for (arguments, part) in [
        (&["nobody"][..], "no exec task \"nobody\""),
        (&["nobody", "--points", "3"], "--points"),
        (&["nobody", "--points", "10001"], "--points"),
        (
            &[
                "nobody",
                "--from",
                "2026-11-25T14:05Z",
                "--to",
                "2026-11-25T14:04Z",
            ],
            "--to: 2026-11-25T14:04:00Z is before from",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .arg("series")
            .args(arguments)
            .args(["--database-url", &pipeline.database_url])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(part), "{part} is not in {error}");
    }
}
