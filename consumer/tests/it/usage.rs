//! `consumer usage` agrees with a slow reference that counts second by second, on either database.

use std::collections::BTreeMap;

use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::TaskStatus::{Failed, Running, Scheduled, Succeed};
use schemas::{ResourceWithStatus, TaskRunningInfoEvent};
use serde_json::Value;

on_every_database!(usage_equals_a_count_of_the_reports_second_by_second);

const SECOND: i64 = 1_000_000;
/// 23:00 UTC, so that two hours of reports span two days.
const FIRST: i64 = 1_764_025_200;
/// Seconds in which reports are made.
const SPAN: i64 = 2 * 3600;

fn random_event(random: &mut ChaCha8Rng, sequence: i64) -> TaskRunningInfoEvent {
    let mut event = strategies::sample_event();
    let info = &mut event.info;
    let task = random.random_range(0..12);
    info.exec_id = format!("exec-{task}");
    info.job_id = format!("job-{}", task % 5);
    info.engine.user = format!("user-{}", task % 3);
    info.engine.engine_type = ["spark", "flink"][task % 2].to_owned();
    info.sequence = sequence;
    info.reported_at = (FIRST + random.random_range(0..SPAN)) * SECOND;
    info.status = match random.random_range(0..60) {
        0 => Succeed,
        1 => Failed,
        2..20 => Scheduled,
        _ => Running,
    };
    let applications = (0..random.random_range(0..4)).map(|_| {
        let held = ResourceWithStatus {
            queue: format!("queue-{}", random.random_range(0..3)),
            queue_memory: random.random_range(0..1 << 40),
            queue_cores: random.random_range(0..99),
            queue_instances: random.random_range(0..9),
            ..ResourceWithStatus::default()
        };
        // Some applications are reported by several tasks.
        let application = match random.random_range(0..2) {
            0 => format!("shared-{}", random.random_range(0..3)),
            _ => format!("of-{task}"),
        };
        (application, held)
    });
    info.resource.as_mut().unwrap().applications = applications.collect();
    event
}

/// Cores, memory, instances and applications, each multiplied by seconds.
type Sums = [f64; 4];

/// For each second and application, uses the newest report that still counts.
fn oracle(
    events: &[TaskRunningInfoEvent],
    (from, to): (i64, i64),
    gap: i64,
    period: Option<i64>,
    user: Option<&str>,
    key: impl Fn(&TaskRunningInfoEvent, &str, &ResourceWithStatus) -> String,
) -> BTreeMap<(i64, String), Sums> {
    let second = |event: &TaskRunningInfoEvent| event.info.reported_at / SECOND;
    let mut ends = BTreeMap::new();
    for event in events.iter().filter(|event| event.info.status.is_final()) {
        let end = ends.entry(&event.info.exec_id).or_insert(i64::MAX);
        *end = second(event).min(*end);
    }
    let end =
        |event: &TaskRunningInfoEvent| ends.get(&event.info.exec_id).copied().unwrap_or(i64::MAX);
    // The reports that count, by application, in order.
    let mut reports: BTreeMap<&String, Vec<(&TaskRunningInfoEvent, &ResourceWithStatus)>> =
        BTreeMap::new();
    for event in events.iter().filter(|event| second(event) < end(event)) {
        for (application, held) in &event.info.resource.as_ref().unwrap().applications {
            reports.entry(application).or_default().push((event, held));
        }
    }
    let mut sums = BTreeMap::new();
    for (application, mut reports) in reports {
        // The sort is stable: of equal times, the last one stored is the newest.
        reports.sort_by_key(|(event, _)| second(event));
        for now in from..to {
            let newest = reports.iter().rev().find(|(event, _)| second(event) <= now);
            let Some((event, held)) = newest else {
                continue;
            };
            let is_held = now < second(event) + gap && now < end(event);
            let is_asked = user.is_none_or(|user| user == event.info.engine.user);
            if is_held && is_asked {
                let start = period.map_or(from, |period| (now - now % period).max(from));
                let sums: &mut Sums = sums
                    .entry((start, key(event, application, held)))
                    .or_default();
                sums[0] += f64::from(held.queue_cores);
                sums[1] += held.queue_memory as f64;
                sums[2] += f64::from(held.queue_instances);
                sums[3] += 1.0;
            }
        }
    }
    sums
}

fn sums(usage: &Value) -> BTreeMap<(i64, String), Sums> {
    let items = usage["items"].as_array().unwrap().iter();
    items
        .map(|item| {
            let from: Timestamp = item["from"].as_str().unwrap().parse().unwrap();
            let key = item["key"].as_str().unwrap_or("(others)").to_owned();
            let sums = [
                "core_seconds",
                "memory_byte_seconds",
                "instance_seconds",
                "application_seconds",
            ]
            .map(|name| item[name].as_f64().unwrap());
            ((from.as_second(), key), sums)
        })
        .collect()
}

#[track_caller]
fn assert_near(
    actual: &BTreeMap<(i64, String), Sums>,
    expected: &BTreeMap<(i64, String), Sums>,
    which: &str,
) {
    let keys = |sums: &BTreeMap<(i64, String), Sums>| sums.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(actual), keys(expected), "{which}");
    for (key, expected) in expected {
        let near = actual[key].iter().zip(expected);
        let near = near.clone().all(|(a, b)| (a - b).abs() <= 1e-9 * b.abs());
        assert!(near, "{which}: {key:?}: {:?} {expected:?}", actual[key]);
    }
}

async fn usage_equals_a_count_of_the_reports_second_by_second(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let seed: u64 = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let events: Vec<_> = (0..400).map(|i| random_event(&mut random, i)).collect();
    pipeline.send_events(&events);
    pipeline.store_all().await;

    let of_user = |event: &TaskRunningInfoEvent, _: &str, _: &ResourceWithStatus| {
        event.info.engine.user.clone()
    };
    type Key = fn(&TaskRunningInfoEvent, &str, &ResourceWithStatus) -> String;
    let keys: [(&str, Key); 5] = [
        ("user", of_user),
        ("queue", |_, _, held| held.queue.clone()),
        ("engine-type", |event, _, _| {
            event.info.engine.engine_type.clone()
        }),
        ("job", |event, _, _| event.info.job_id.clone()),
        ("application", |_, application, _| application.to_owned()),
    ];
    for round in 0..12 {
        let from = FIRST + random.random_range(-600..SPAN);
        let to = from + random.random_range(1..SPAN);
        let gap = random.random_range(1..=3600);
        let (by, key) = keys[round % keys.len()];
        let (every, period) =
            [("whole", None), ("hour", Some(3600)), ("day", Some(86_400))][round % 3];
        let user = (round % 4 == 0).then_some("user-1");
        let time = |second| Timestamp::from_second(second).unwrap().to_string();
        let (from_text, to_text, gap_text) = (time(from), time(to), format!("{gap}s"));
        let mut arguments = vec![
            "usage",
            "--from",
            &from_text,
            "--to",
            &to_text,
            "--longest-gap",
            &gap_text,
        ];
        arguments.extend(["--by", by, "--every", every, "--json"]);
        arguments.extend(user.iter().flat_map(|user| ["--user", user]));
        let usage: Value = serde_json::from_str(&pipeline.ask(&arguments)).unwrap();
        let expected = oracle(&events, (from, to), gap, period, user, key);
        let which = format!("{arguments:?}, seed {seed}");
        assert_near(&sums(&usage), &expected, &which);

        // All but the largest are summed up.
        arguments.extend(["--limit", "1"]);
        let least: Value = serde_json::from_str(&pipeline.ask(&arguments)).unwrap();
        let total = |sums: &BTreeMap<_, Sums>| sums.values().map(|sums| sums[0]).sum::<f64>();
        let (whole, added) = (total(&expected), total(&sums(&least)));
        assert!((whole - added).abs() <= 1e-9 * whole, "{which}");
    }

    let server = pipeline.serve("serve", &[]).await;
    let path =
        "/api/v1/usage?from=2025-11-24T23:00:00Z&to=2025-11-25T01:00:00Z&by=engine_type&every=hour";
    let over_http = server.json(path).await;
    let printed: Value = serde_json::from_str(&pipeline.ask(&[
        "usage",
        "--from",
        "2025-11-24T23:00Z",
        "--to",
        "2025-11-25T01:00Z",
        "--by",
        "engine-type",
        "--every",
        "hour",
        "--json",
    ]))
    .unwrap();
    assert_eq!(over_http, printed);
    let second = |time: &str| time.parse::<Timestamp>().unwrap().as_second();
    let range = (
        second("2025-11-24T23:00:00Z"),
        second("2025-11-25T01:00:00Z"),
    );
    let expected = oracle(&events, range, 300, Some(3600), None, keys[2].1);
    assert_near(&sums(&printed), &expected, &format!("seed {seed}"));
    let refused = server
        .get("/api/v1/usage?by=planet&longest_gap=2h")
        .await
        .problem(400);
    assert!(refused.contains("by: expected user, queue"), "{refused}");
    let refused = server
        .get("/api/v1/usage?longest_gap=2h")
        .await
        .problem(400);
    assert!(refused.contains("longest_gap: "), "{refused}");
    let refused = server
        .get("/api/v1/usage?every=hour&from=2024-01-01T00:00:00Z")
        .await
        .problem(400);
    assert!(
        refused.contains("every: more than 1000 periods"),
        "{refused}"
    );
    server.stop().await;
    let text = pipeline.ask(&[
        "usage",
        "--from",
        "2025-11-24T23:00Z",
        "--to",
        "2025-11-25T01:00Z",
        "--limit",
        "1",
    ]);
    for part in ["(all others)", "core hours", "at most 300 s"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
