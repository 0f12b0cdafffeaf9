//! `--at` shows the tables as known at a time, by the engines' clocks.

use std::collections::BTreeMap;
use std::process::Command;

use crate::strategies;
use crate::support::{KINDS, Kind, Pipeline};
use jiff::{SignedDuration, Timestamp};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::TaskStatus::{self, Failed, Running, Scheduled, Succeed, Unknown};
use schemas::{MetricValue, TaskRunningInfoEvent};
use serde_json::{Value, json};

/// The time of the sample, used for `--at`.
const AT: &str = "2025-11-25T14:05:00.123456Z";
const SECOND: i64 = 1_000_000;

/// A report `micros` after [`AT`]. Its resources and metrics encode its sequence.
fn report(exec_id: &str, sequence: i64, micros: i64, status: TaskStatus) -> TaskRunningInfoEvent {
    let mut event = strategies::sample_event();
    let info = &mut event.info;
    (info.exec_id, info.sequence, info.status) = (exec_id.into(), sequence, status);
    info.reported_at += micros;
    info.progress.as_mut().unwrap().progress = sequence as f64 / 100.0;
    let resource = info.resource.as_mut().unwrap();
    let held = resource.applications.values_mut().next().unwrap();
    held.queue_cores = sequence as i32;
    info.metrics = Some([("seconds".to_owned(), MetricValue::Long(sequence))].into());
    event
}

async fn stored(kind: Kind, events: &[TaskRunningInfoEvent]) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, 1).await?;
    pipeline.send_events(events);
    let consumer = pipeline.consumer(&[]);
    let all = events.len() as i64;
    pipeline
        .until_count(&Pipeline::stored("metrics"), all)
        .await;
    consumer.stop().await;
    Some(pipeline)
}

impl Pipeline {
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ask(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Exec id, status and sequence of each listed task.
    fn states(&self, arguments: &[&str]) -> Vec<(String, String, i64)> {
        let tasks = self.json(&[&["tasks"], arguments].concat());
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        tasks
            .as_array()
            .unwrap()
            .iter()
            .map(|task| {
                (
                    text(&task["exec_id"]),
                    text(&task["status"]),
                    task["sequence"].as_i64().unwrap(),
                )
            })
            .collect()
    }

    /// The error message of a failing `consumer`.
    fn refuses(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(arguments)
            .args(["--database-url", &self.database_url])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_past_is_shown_as_known_then() {
    for kind in KINDS {
        let events = [
            report("goes-on", 0, -10 * SECOND, Running),
            report("goes-on", 1, -5 * SECOND, Running),
            report("goes-on", 1, -5 * SECOND, Running),
            report("goes-on", 3, -4 * SECOND, Running),
            report("goes-on", 4, 5 * SECOND, Running),
            // The requested microsecond is included.
            report("exact", 0, 0, Running),
            report("exact", 1, 1, Running),
            report("begins-later", 0, 1, Running),
            report("ends-later", 0, -3 * SECOND, Running),
            report("ends-later", 1, 3 * SECOND, Succeed),
            // A final status is not undone by a report that is later or has an earlier time.
            report("ended", 1, -20 * SECOND, Succeed),
            report("ended", 2, -19 * SECOND, Running),
            report("ended", 0, -30 * SECOND, Running),
            // Another end, after the requested time.
            report("ended-twice", 0, -8 * SECOND, Failed),
            report("ended-twice", 1, -7 * SECOND, Running),
            report("ended-twice", 2, 8 * SECOND, Succeed),
            report("gone", 0, -2 * SECOND, Unknown),
        ];
        let Some(pipeline) = stored(kind, &events).await else {
            return;
        };
        let state = |exec_id: &str, status: &str, sequence| {
            (exec_id.to_owned(), status.to_owned(), sequence)
        };
        let then = [
            state("exact", "Running", 0),
            state("gone", "Unknown", 0),
            state("ends-later", "Running", 0),
            state("goes-on", "Running", 3),
            state("ended-twice", "Failed", 0),
            state("ended", "Succeed", 1),
        ];
        assert_eq!(pipeline.states(&["--at", AT]), then, "the newest first");
        assert_eq!(
            pipeline.states(&["--at", AT, "--running"]),
            [then[0].clone(), then[2].clone(), then[3].clone()]
        );
        assert_eq!(pipeline.states(&["--at", AT, "--limit", "2"]), then[..2]);
        let short = pipeline.states(&["--at", "2025-11-25T14:04Z"]);
        assert_eq!(short, [], "nothing was said a minute before");
        assert_eq!(
            pipeline.states(&["--at", "-1s"]),
            pipeline.states(&[]),
            "nothing was said since"
        );
        let table = pipeline.ask(&["tasks", "--at", AT, "--running", "--limit", "1"]);
        for printed in ["1 of 3 running tasks", AT, "0 s ago", "2 more"] {
            assert!(table.contains(printed), "{printed} is not in\n{table}");
        }

        let task = pipeline.json(&["task", "goes-on", "--at", AT]);
        assert_eq!(task["task"]["sequence"], 3);
        assert_eq!(task["task"]["progress"], 0.03);
        assert_eq!(task["task"]["reported_at"], "2025-11-25T14:04:56.123456Z");
        assert_eq!(
            task["sequences"],
            json!({"reports": 4, "repeated": 1, "missing": 1, "missing_sequences": [2]})
        );
        assert_eq!(task["resource"].as_array().unwrap().len(), 1);
        assert_eq!(task["resource"][0]["cores"], 3);
        assert_eq!(task["metrics"]["metrics"], json!({"seconds": 3}));
        let sequences: Vec<_> = task["reports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|report| report["sequence"].as_i64().unwrap())
            .collect();
        assert_eq!(sequences, [3, 1, 1, 0]);
        let exact = pipeline.json(&["task", "exact", "--at", AT]);
        assert_eq!(
            (
                &exact["sequences"]["reports"],
                &exact["resource"][0]["cores"]
            ),
            (&json!(1), &json!(0))
        );
        let ended = pipeline.json(&["task", "ended-twice", "--at", AT, "--limit", "1"]);
        assert_eq!(ended["task"]["status"], "Failed");
        assert_eq!(ended["reports"][0]["sequence"], 1, "the newest report");
        let page = pipeline.ask(&["task", "goes-on", "--at", AT]);
        for printed in ["as of", AT, "4 s ago", "1 repeated"] {
            assert!(page.contains(printed), "{printed} is not in\n{page}");
        }

        let early = pipeline.refuses(&["task", "begins-later", "--at", AT]);
        for printed in ["begins-later", AT, "2025-11-25T14:05:00.123457Z"] {
            assert!(early.contains(printed), "{printed} is not in {early}");
        }
        let nobody = pipeline.refuses(&["task", "nobody", "--at", AT]);
        assert!(nobody.contains("has no exec task"), "{nobody}");
    }
}

/// As of any time, a task's state is its greatest report by then, whatever the order of arrival.
#[tokio::test(flavor = "multi_thread")]
async fn the_state_as_of_any_time_is_the_greatest_of_the_reports_by_then() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let statuses = [
        Running, Running, Running, Scheduled, Unknown, Succeed, Failed,
    ];
    let events: Vec<_> = (0..400)
        .map(|_| {
            // Some tasks never end.
            let task = random.random_range(0..40);
            let status = statuses[random.random_range(0..if task < 20 { 5 } else { 7 })];
            report(
                &format!("exec-{task:02}"),
                random.random_range(0..4),
                random.random_range(0..12),
                status,
            )
        })
        .collect();
    let first: Timestamp = AT.parse().unwrap();
    for kind in KINDS {
        let Some(pipeline) = stored(kind, &events).await else {
            return;
        };
        for micros in -1..12 {
            let at = first + SignedDuration::from_micros(micros);
            let known = events.iter().enumerate();
            let known = known.filter(|(_, event)| event.info.reported_at <= at.as_microsecond());
            let mut greatest = BTreeMap::new();
            for (offset, TaskRunningInfoEvent { info, .. }) in known {
                let rank = (
                    info.status.is_final(),
                    info.reported_at,
                    info.sequence,
                    offset,
                );
                let held = greatest.entry(info.exec_id.clone()).or_insert(rank);
                *held = rank.max(*held);
            }
            let actual = pipeline.json(&["tasks", "--at", &at.to_string(), "--limit", "0"]);
            let actual: BTreeMap<String, usize> = actual
                .as_array()
                .unwrap()
                .iter()
                .map(|task| {
                    let offset = task["event_offset"].as_u64().unwrap();
                    (
                        task["exec_id"].as_str().unwrap().to_owned(),
                        offset as usize,
                    )
                })
                .collect();
            let greatest: BTreeMap<_, _> = greatest
                .into_iter()
                .map(|(exec_id, (.., offset))| (exec_id, offset))
                .collect();
            assert_eq!(actual, greatest, "{kind:?} as of {at}, seed {seed}");
        }
    }
}
