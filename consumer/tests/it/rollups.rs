//! `consumer jobs` and `consumer engines` agree with aggregates of the reports, on either database.

use std::collections::{BTreeMap, BTreeSet};

use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::TaskStatus::{self, Failed, Running, Scheduled, Succeed, Unknown};
use schemas::{ResourceWithStatus, TaskRunningInfoEvent};
use serde_json::{Value, json};

on_every_database!(jobs_and_engines_are_the_aggregates_of_their_reports);

const SECOND: i64 = 1_000_000;
/// 2025-11-25T12:00:00Z.
const FIRST: i64 = 1_764_072_000;
const SPAN: i64 = 3000;

/// Reports of some tasks, each with one engine and job; some of them end.
fn random_events(random: &mut ChaCha8Rng) -> Vec<TaskRunningInfoEvent> {
    let mut events = Vec::new();
    for task in 0..40 {
        let begins = random.random_range(0..SPAN);
        let (job, engine, user) = (
            random.random_range(0..8),
            random.random_range(0..6),
            random.random_range(0..3),
        );
        let ends = random.random_bool(0.6);
        let reports = random.random_range(1..8);
        for sequence in 0..reports {
            let mut event = strategies::sample_event();
            let info = &mut event.info;
            info.exec_id = format!("exec-{task}");
            info.job_id = format!("job-'{job}\"日本");
            info.engine.instance = format!("host-{}:{}", engine / 2, 7000 + engine);
            info.engine.engine_type = ["spark", "flink"][engine % 2].to_owned();
            info.engine.user = format!("user-{user}");
            info.engine.running_tasks = random.random_range(0..9);
            info.sequence = sequence;
            info.reported_at = (FIRST + begins + random.random_range(0..400)) * SECOND;
            let statuses = [Running, Running, Scheduled, Unknown];
            info.status = match ends && sequence == 1 {
                true => [Succeed, Failed][random.random_range(0..2)],
                false => statuses[random.random_range(0..statuses.len())],
            };
            match random.random_range(0..4) {
                0 => info.progress = None,
                _ => info.progress.as_mut().unwrap().progress = random.random(),
            }
            let applications = (0..random.random_range(0..3)).map(|_| {
                let held = ResourceWithStatus {
                    // Some sums overflow an i64.
                    queue_memory: i64::MAX >> random.random_range(0..40),
                    queue_cores: random.random_range(0..99),
                    ..ResourceWithStatus::default()
                };
                let shared = random.random_range(0..3);
                (
                    format!(
                        "application-{}",
                        [shared, 100 + task][random.random_range(0..2)]
                    ),
                    held,
                )
            });
            let applications: Vec<_> = applications.collect();
            info.resource.as_mut().unwrap().applications = applications.into_iter().collect();
            events.push(event);
        }
    }
    // Stored in a different order.
    for i in (1..events.len()).rev() {
        events.swap(i, random.random_range(0..=i));
    }
    events
}

/// An event and its offset.
type Report<'a> = (usize, &'a TaskRunningInfoEvent);

/// A task and its reports.
struct Task<'a> {
    reports: Vec<Report<'a>>,
}

impl Task<'_> {
    fn state(&self) -> Report<'_> {
        let rank = |(offset, event): &Report<'_>| {
            let info = &event.info;
            (
                info.status.is_final(),
                info.reported_at,
                info.sequence,
                *offset,
            )
        };
        *self
            .reports
            .iter()
            .max_by_key(|report| rank(report))
            .unwrap()
    }

    fn status(&self) -> TaskStatus {
        self.state().1.info.status
    }

    fn runs(&self) -> bool {
        !self.status().is_final() && self.status() != Unknown
    }

    fn started(&self) -> i64 {
        let times = self.reports.iter().map(|(_, event)| event.info.reported_at);
        times.min().unwrap()
    }

    fn reported(&self) -> i64 {
        self.state().1.info.reported_at
    }
}

/// Groups reports by task.
fn tasks<'a>(reports: &[Report<'a>]) -> Vec<Task<'a>> {
    let mut tasks = BTreeMap::<&str, Task<'a>>::new();
    for (offset, event) in reports {
        let task = tasks.entry(&event.info.exec_id);
        let task = task.or_insert_with(|| Task {
            reports: Vec::new(),
        });
        task.reports.push((*offset, event));
    }
    tasks.into_values().collect()
}

fn shown(micros: i64) -> String {
    format!("{:.6}", Timestamp::from_microsecond(micros).unwrap())
}

/// The expected output of `consumer jobs --json`, in order.
fn expected_jobs(reports: &[Report<'_>]) -> Vec<Value> {
    let all = tasks(reports);
    let mut jobs = BTreeMap::<&str, Vec<&Task<'_>>>::new();
    for task in &all {
        let job = &task.state().1.info.job_id;
        jobs.entry(job).or_default().push(task);
    }
    let mut actual: Vec<(i64, &str, Value)> = Vec::new();
    for (job, tasks) in jobs {
        let mut statuses = BTreeMap::<&str, i64>::new();
        for task in &tasks {
            *statuses.entry(task.status().as_str()).or_default() += 1;
        }
        let progress: Vec<f64> = tasks
            .iter()
            .filter_map(|task| Some(task.state().1.info.progress.as_ref()?.progress))
            .collect();
        let mean = progress.iter().sum::<f64>() / progress.len() as f64;
        let started = tasks.iter().map(|task| task.started()).min().unwrap();
        let reported = tasks.iter().map(|task| task.reported()).max().unwrap();
        let has_ended = tasks.iter().all(|task| task.status().is_final());

        let mut held = BTreeMap::<&str, ((i64, usize), &ResourceWithStatus)>::new();
        for task in tasks.iter().filter(|task| !task.status().is_final()) {
            let place = |(offset, event): &Report<'_>| (event.info.reported_at, *offset);
            let applications =
                |report: &Report<'_>| report.1.info.resource.as_ref().unwrap().applications.len();
            let newest = task
                .reports
                .iter()
                .filter(|report| applications(report) > 0);
            let Some(newest) = newest.max_by_key(|report| place(report)) else {
                continue;
            };
            let (_, event) = newest;
            let rows = &event.info.resource.as_ref().unwrap().applications;
            for (application, row) in rows {
                let known = held.entry(application).or_insert((place(newest), row));
                if place(newest) > known.0 {
                    *known = (place(newest), row);
                }
            }
        }
        let sum = |value: fn(&ResourceWithStatus) -> i64| {
            let sum: i128 = held.values().map(|(_, row)| i128::from(value(row))).sum();
            (!held.is_empty()).then(|| i64::try_from(sum).unwrap_or(i64::MAX))
        };
        actual.push((
            -started,
            job,
            json!({
                "job_id": job,
                "tasks": tasks.len(),
                "running_tasks": tasks.iter().filter(|task| task.runs()).count(),
                "statuses": statuses,
                "progress_mean": (!progress.is_empty()).then_some(mean),
                "progress_least": progress.iter().copied().min_by(f64::total_cmp),
                "started_at": shown(started),
                "reported_at": shown(reported),
                "ended_at": has_ended.then(|| shown(reported)),
                "memory_bytes": sum(|row| row.queue_memory),
                "cores": sum(|row| row.queue_cores.into()),
            }),
        ));
    }
    actual.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)));
    actual.into_iter().map(|(_, _, job)| job).collect()
}

/// The expected output of `consumer engines --json`, in order; checks for every second whether a task is active.
fn expected_engines(
    reports: &[Report<'_>],
    (from, to): (i64, i64),
    gap: i64,
    has_count: bool,
) -> Vec<Value> {
    let all = tasks(reports);
    let mut engines = BTreeMap::<(&str, &str), Vec<&Task<'_>>>::new();
    for task in &all {
        let engine = &task.state().1.info.engine;
        let engine = (engine.instance.as_str(), engine.engine_type.as_str());
        engines.entry(engine).or_default().push(task);
    }
    let mut actual = Vec::new();
    for ((instance, engine_type), tasks) in engines {
        let times = tasks.iter().map(|task| {
            let reported = task.reported() / SECOND;
            let until = if task.runs() {
                reported + gap
            } else {
                reported
            };
            (task.started() / SECOND, until)
        });
        let times: Vec<(i64, i64)> = times.collect();
        let began = times.iter().map(|time| time.0).min().unwrap();
        if times.iter().all(|time| time.1 < from) || began >= to {
            continue;
        }
        let met: Vec<_> = times
            .iter()
            .filter(|time| time.1 > from && time.0 < to)
            .collect();
        let known = match met.iter().map(|time| time.0.max(from)).min() {
            Some(first) => met.iter().map(|time| time.1.min(to)).max().unwrap() - first,
            None => 0,
        };
        let is_busy = |second: &i64| {
            times
                .iter()
                .any(|time| time.0 <= *second && *second < time.1)
        };
        let busy = (from..to).filter(is_busy).count() as i64;

        let place = |report: &Report<'_>| (report.1.info.reported_at, report.0);
        let last = tasks
            .iter()
            .max_by_key(|task| place(&task.state()))
            .unwrap();
        let last = last
            .reports
            .iter()
            .max_by_key(|report| place(report))
            .unwrap();
        let users: BTreeSet<&str> = tasks
            .iter()
            .map(|task| task.state().1.info.engine.user.as_str())
            .collect();
        actual.push(json!({
            "engine_instance": instance,
            "engine_type": engine_type,
            "users": users,
            "user_count": users.len(),
            "tasks": tasks.len(),
            "running_tasks": tasks.iter().filter(|task| task.runs()).count(),
            "engine_running_tasks": has_count.then_some(last.1.info.engine.running_tasks),
            "first_reported_at": shown(began * SECOND),
            "reported_at": shown(tasks.iter().map(|task| task.reported()).max().unwrap()),
            "busy_seconds": busy as f64,
            "idle_seconds": (known - busy) as f64,
            "unknown_seconds": (to - from - known) as f64,
            "busy_share": (known > 0).then(|| busy as f64 / known as f64),
        }));
    }
    actual
}

/// Equal except for rounding.
#[track_caller]
fn assert_near(actual: &[Value], expected: &[Value], which: &str) {
    let near = |a: &Value, b: &Value| match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs().max(1.0),
        _ => a == b,
    };
    assert_eq!(
        actual.len(),
        expected.len(),
        "{which}: {actual:#?}\n{expected:#?}"
    );
    for (actual, expected) in actual.iter().zip(expected) {
        let (actual, expected) = (actual.as_object().unwrap(), expected.as_object().unwrap());
        assert_eq!(actual.len(), expected.len());
        for (name, value) in expected {
            assert!(
                near(&actual[name], value),
                "{which}: {name} in {actual:#?}, not {value}"
            );
        }
    }
}

/// All pages of a list.
fn pages(pipeline: &Pipeline, arguments: &[&str], limit: &str) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let mut arguments = [arguments, &["--limit", limit, "--json"]].concat();
        arguments.extend(cursor.iter().flat_map(|cursor| ["--cursor", cursor]));
        let page: Value = serde_json::from_str(&pipeline.ask(&arguments)).unwrap();
        items.extend(page["items"].as_array().unwrap().clone());
        match page["next"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return items,
        }
    }
}

async fn jobs_and_engines_are_the_aggregates_of_their_reports(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let seed: u64 = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let events = random_events(&mut random);
    pipeline.send_events(&events);
    pipeline.store_all().await;
    let all: Vec<Report<'_>> = events.iter().enumerate().collect();

    for round in 0..3 {
        let at = (round > 0).then(|| FIRST + random.random_range(100..SPAN));
        let user = (round == 2).then_some("user-1");
        let known: Vec<Report<'_>> = all
            .iter()
            .filter(|(_, event)| at.is_none_or(|at| event.info.reported_at <= at * SECOND))
            .filter(|(_, event)| user.is_none_or(|user| event.info.engine.user == user))
            .copied()
            .collect();
        let expected = expected_jobs(&known);
        let at = at.map(|at| shown(at * SECOND));
        let mut arguments = vec!["jobs"];
        arguments.extend(at.iter().flat_map(|at| ["--at", at]));
        arguments.extend(user.iter().flat_map(|user| ["--user", user]));
        let which = format!("{arguments:?}, seed {seed}");
        assert_near(&pages(&pipeline, &arguments, "1000"), &expected, &which);
        assert_near(&pages(&pipeline, &arguments, "3"), &expected, &which);
        arguments.push("--running");
        let running = expected.iter().filter(|job| job["running_tasks"] != 0);
        let running: Vec<_> = running.cloned().collect();
        assert_near(&pages(&pipeline, &arguments, "2"), &running, &which);
    }

    for round in 0..4 {
        let from = FIRST + random.random_range(-100..SPAN);
        let to = from + random.random_range(1..SPAN);
        let gap = random.random_range(1..600);
        let user = (round == 3).then_some("user-1");
        let known = all.iter();
        let known =
            known.filter(|(_, event)| user.is_none_or(|user| event.info.engine.user == user));
        let known: Vec<_> = known.copied().collect();
        let expected = expected_engines(&known, (from, to), gap, user.is_none());
        let (from, to, gap) = (shown(from * SECOND), shown(to * SECOND), format!("{gap}s"));
        let mut arguments = vec![
            "engines",
            "--from",
            &from,
            "--to",
            &to,
            "--longest-gap",
            &gap,
        ];
        arguments.extend(user.iter().flat_map(|user| ["--user", user]));
        let which = format!("{arguments:?}, seed {seed}");
        assert_near(&pages(&pipeline, &arguments, "1000"), &expected, &which);
        assert_near(&pages(&pipeline, &arguments, "2"), &expected, &which);
    }

    let server = pipeline.serve("serve", &[]).await;
    let jobs: Value =
        serde_json::from_str(&pipeline.ask(&["jobs", "--limit", "2", "--json"])).unwrap();
    let over_http = server.json("/api/v1/jobs?limit=2").await;
    assert_eq!(
        (&over_http["next"], &over_http["watermark"]),
        (&jobs["next"], &jobs["watermark"])
    );
    let items = |page: &Value| page["items"].as_array().unwrap().clone();
    assert_near(&items(&over_http), &items(&jobs), "the first page of jobs");
    let job = &jobs["items"][1]["job_id"];
    let mut path = reqwest::Url::parse(&server.origin).unwrap();
    path.path_segments_mut()
        .unwrap()
        .extend(["api", "v1", "jobs", job.as_str().unwrap()]);
    let mut one = server.json(path.path()).await;
    assert_eq!(
        one.as_object_mut().unwrap().remove("watermark"),
        Some(jobs["watermark"].clone())
    );
    assert_near(&[one], &[jobs["items"][1].clone()], "the job");
    let named = reqwest::Url::parse_with_params(
        &format!("{}/api/v1/jobs", server.origin),
        [("job_id", job.as_str().unwrap())],
    );
    let named = named.unwrap();
    let named = format!("{}?{}", named.path(), named.query().unwrap());
    let named = server.json(&named).await;
    assert_near(&items(&named), &[jobs["items"][1].clone()], "one job");
    server.get("/api/v1/jobs/nobody").await.problem(404);
    let next = jobs["next"].as_str().unwrap();
    let other = server
        .get(&format!("/api/v1/jobs?running=true&cursor={next}"))
        .await;
    assert!(other.problem(400).contains("cursor: "));

    let range = "from=2025-11-25T12:00:00Z&to=2025-11-25T13:00:00Z";
    let engines = server
        .json(&format!("/api/v1/engines?{range}&engine_type=spark"))
        .await;
    let printed = pipeline.ask(&[
        "engines",
        "--from",
        "2025-11-25T12:00Z",
        "--to",
        "2025-11-25T13:00Z",
        "--engine-type",
        "spark",
        "--json",
    ]);
    assert_eq!(engines, serde_json::from_str::<Value>(&printed).unwrap());
    assert!(!engines["items"].as_array().unwrap().is_empty());
    let refused = server
        .get("/api/v1/engines?longest_gap=2h")
        .await
        .problem(400);
    assert!(refused.contains("longest_gap: "), "{refused}");
    server.stop().await;

    let text = pipeline.ask(&["jobs", "--limit", "2"]);
    for part in ["2 jobs in ", "next page: --cursor ", "日本"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let text = pipeline.ask(&[
        "engines",
        "--from",
        "2025-11-25T12:00Z",
        "--to",
        "2025-11-25T13:00Z",
    ]);
    for part in [
        "busy share",
        "host-0:7000",
        "heard of from 2025-11-25T12:00:00Z",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
