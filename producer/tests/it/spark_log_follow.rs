//! `producer spark-log --follow`: logs that grow, reports in the topic, each once.
//!
//! Long because each fault of a follower has its test here.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemas::{TaskRunningInfo, TaskStatus, topics};
use serde_json::Value;
use service::testing::{Process, Topic, alter_topic, create_topics, service, until};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::support::own_kafka::OwnKafka;
use crate::support::{Reports, text};

const WAIT: Duration = Duration::from_secs(60);
const COMPACT: &[(&str, &str)] = &[("cleanup.policy", "compact")];

fn checkpoints(reports: &Reports) -> String {
    format!("{}-spark-log-checkpoints", reports.topic)
}

async fn with_checkpoints(name: &str) -> Option<Reports> {
    let reports = Reports::make(name).await?;
    let topic = Topic {
        name: &checkpoints(&reports),
        partitions: 1,
        settings: COMPACT,
    };
    create_topics(&reports.bootstrap, &[topic]).await;
    Some(reports)
}

/// A log of an application with this number, of `jobs` jobs in two groups.
fn log(number: usize, jobs: usize) -> Vec<String> {
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/event-logs/small");
    let small = fs::read_to_string(small).unwrap();
    let id = format!("application_1700000000000_{:04}", number + 1);
    let small = small.replace("application_1700000000000_0001", &id);
    let (end, start): (Vec<&str>, Vec<&str>) = small
        .lines()
        .partition(|line| line.contains("ApplicationEnd"));
    let mut lines: Vec<String> = start.iter().map(|line| format!("{line}\n")).collect();
    for job in 0..jobs {
        let (id, at) = (1_000 + job, 1_700_000_012_000 + 6_000 * job);
        let group = job % 2;
        // A report costs bytes of the log.
        let padding = "x".repeat(8_000);
        lines.push(format!(
            "{{\"Event\":\"SparkListenerJobStart\",\"Job ID\":{id},\"Submission Time\":{at},\"Stage Infos\":[],\"Stage IDs\":[],\
             \"Properties\":{{\"spark.jobGroup.id\":\"group-{group}\",\"padding\":\"{padding}\"}}}}\n"
        ));
        let at = at + 3_000;
        lines.push(format!(
            "{{\"Event\":\"SparkListenerJobEnd\",\"Job ID\":{id},\"Completion Time\":{at},\"Job Result\":\
             {{\"Result\":\"JobSucceeded\"}}}}\n"
        ));
    }
    lines.extend(end.iter().map(|line| format!("{line}\n")));
    lines
}

fn append(path: &Path, bytes: &[u8]) {
    let file = OpenOptions::new().append(true).create(true).open(path);
    file.unwrap().write_all(bytes).unwrap();
}

struct Follower {
    process: Process,
    _folder: tempfile::TempDir,
}

impl Follower {
    fn start(reports: &Reports, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = vec!["spark-log", "--follow", "--poll-interval", "50ms"];
        arguments.extend(more);
        let arguments = reports.arguments(&arguments);
        let program = Path::new(env!("CARGO_BIN_EXE_producer"));
        let process = Process::start(folder.path(), "producer", program, &arguments);
        Self {
            process,
            _folder: folder,
        }
    }

    async fn logs(&self, text: &str) {
        until(&format!("it logs {text:?}"), WAIT, async || {
            self.process.log().contains(text).then_some(())
        })
        .await;
    }
}

/// What reading the whole logs reports.
fn of_whole_logs(reports: &Reports, logs: &Path) -> BTreeMap<String, Vec<TaskRunningInfo>> {
    let dry = reports.run(&["spark-log", logs.to_str().unwrap(), "--dry-run"], b"");
    assert!(dry.status.success(), "{}", text(&dry.stderr));
    let mut tasks: BTreeMap<String, Vec<TaskRunningInfo>> = BTreeMap::new();
    for line in text(&dry.stdout).lines() {
        let info: Value = serde_json::from_str(line).unwrap();
        let info: TaskRunningInfo = serde_json::from_value(info).unwrap();
        tasks.entry(info.exec_id.clone()).or_default().push(info);
    }
    tasks
}

/// Sequences, times and statuses.
fn outline(
    tasks: &BTreeMap<String, Vec<TaskRunningInfo>>,
) -> BTreeMap<&str, Vec<(i64, i64, TaskStatus)>> {
    let outline = |reports: &Vec<TaskRunningInfo>| {
        let each = reports.iter();
        each.map(|report| (report.sequence, report.reported_at, report.status))
            .collect()
    };
    tasks
        .iter()
        .map(|(exec_id, reports)| (exec_id.as_str(), outline(reports)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn followers_that_are_killed_again_and_again_send_each_report_of_growing_logs_once() {
    const ROUNDS: usize = 10;
    let Some(reports) = with_checkpoints("log-kills").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let logs: Vec<String> = (0..4).map(|number| log(number, 40).concat()).collect();
    let path = |number: usize| folder.path().join(format!("app-{number}.inprogress"));
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut sent = 0;
    for round in 0..ROUNDS {
        let follower = Follower::start(&reports, &[folder.path().to_str().unwrap()]);
        for piece in 10 * round..10 * (round + 1) {
            for (number, log) in logs.iter().enumerate() {
                let at = |piece: usize| log.len() * piece / (ROUNDS * 10);
                append(&path(number), &log.as_bytes()[at(piece)..at(piece + 1)]);
            }
            // It is killed while it sends.
            if piece % 10 == 5 {
                sent = until("more reports arrive", WAIT, async || {
                    let all = reports.by_task().values().map(Vec::len).sum::<usize>();
                    (all > sent).then_some(all)
                })
                .await;
            }
            let random = seed.rotate_left(7 * piece as u32) % 120;
            sleep(Duration::from_millis(random)).await;
        }
        follower.process.kill();
    }
    for number in 0..logs.len() {
        fs::rename(path(number), folder.path().join(format!("app-{number}"))).unwrap();
    }
    let logs = folder.path().to_str().unwrap();
    let mut last = Follower::start(&reports, &[logs, "--until-ended"]);
    assert!(last.process.ended().await.success());
    let expected = of_whole_logs(&reports, folder.path());
    assert!(expected.values().map(Vec::len).sum::<usize>() > 200);
    assert_eq!(outline(&reports.by_task()), outline(&expected));

    // Nothing is left to send.
    let mut again = Follower::start(&reports, &[logs, "--until-ended"]);
    assert!(again.process.ended().await.success());
    let account = again.process.log();
    assert!(
        account.contains("sent 0 reports of 0 tasks from 0 logs"),
        "{account}"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_kafka_that_is_killed_while_logs_grow_holds_each_report_once_afterwards() {
    const PIECES: usize = 120;
    let Some(kafka) = OwnKafka::make() else {
        return;
    };
    let kafka = spawn_blocking(move || {
        kafka.start();
        kafka
    });
    let mut kafka = kafka.await.unwrap();
    let reports = Reports {
        bootstrap: kafka.bootstrap(),
        topic: topics::TASK_RUNNING_INFO.to_owned(),
    };
    let topic = Topic {
        name: &checkpoints(&reports),
        partitions: 1,
        settings: COMPACT,
    };
    create_topics(&reports.bootstrap, &[topic]).await;
    let folder = tempfile::tempdir().unwrap();
    let logs: Vec<String> = (0..4).map(|number| log(number, 40).concat()).collect();
    let path = |number: usize| folder.path().join(format!("app-{number}"));
    let grow = |pieces: std::ops::Range<usize>| {
        for (number, log) in logs.iter().enumerate() {
            let at = |piece: usize| log.len() * piece / PIECES;
            append(
                &path(number),
                &log.as_bytes()[at(pieces.start)..at(pieces.end)],
            );
        }
    };
    let mut follower = Follower::start(
        &reports,
        &[folder.path().to_str().unwrap(), "--until-ended"],
    );
    for (round, from) in [0, PIECES / 3].into_iter().enumerate() {
        let before = reports.by_task().values().map(Vec::len).sum::<usize>();
        let middle = from + PIECES / 6;
        grow(from..middle);
        until("reports arrive", WAIT, async || {
            let all: usize = reports.by_task().values().map(Vec::len).sum();
            (all > before).then_some(())
        })
        .await;
        // It has more to send whenever the broker ends.
        for piece in middle..from + PIECES / 3 {
            grow(piece..piece + 1);
            if piece == middle + 5 {
                kafka.kill();
            }
        }
        // Once it is away for longer than it takes to notice, once it returns at once.
        if round == 0 {
            follower
                .logs("a transaction was aborted, trying again")
                .await;
        }
        let started = spawn_blocking(move || {
            kafka.start();
            kafka
        });
        kafka = started.await.unwrap();
    }
    grow(2 * PIECES / 3..PIECES);
    assert!(follower.process.ended().await.success());
    let expected = of_whole_logs(&reports, folder.path());
    assert!(expected.values().map(Vec::len).sum::<usize>() > 200);
    assert_eq!(outline(&reports.by_task()), outline(&expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_followers_with_the_same_checkpoints_the_earlier_ends_and_says_why() {
    let Some(reports) = with_checkpoints("log-rivals").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    let lines = log(0, 20);
    append(&path, lines[..lines.len() / 2].concat().as_bytes());
    let logs = folder.path().to_str().unwrap();
    let mut earlier = Follower::start(&reports, &[logs]);
    until("reports arrive", WAIT, async || {
        (!reports.by_task().is_empty()).then_some(())
    })
    .await;
    let before: usize = reports.by_task().values().map(Vec::len).sum();
    let mut later = Follower::start(&reports, &[logs, "--until-ended"]);
    append(&path, lines[lines.len() / 2..].concat().as_bytes());
    assert!(later.process.ended().await.success());
    assert_eq!(earlier.process.ended().await.code(), Some(78));
    earlier
        .logs("another producer uses the checkpoints of")
        .await;
    let received = reports.by_task();
    assert!(received.values().map(Vec::len).sum::<usize>() > before);
    assert_eq!(
        outline(&received),
        outline(&of_whole_logs(&reports, folder.path()))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_compacted_topic_of_checkpoints_a_follower_does_not_begin() {
    let Some(reports) = Reports::make("log-missing").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().to_str().unwrap();
    let mut follower = Follower::start(&reports, &[logs]);
    assert_eq!(follower.process.ended().await.code(), Some(78));
    let topic = checkpoints(&reports);
    let error = follower.process.log();
    let create = format!("--create --topic {topic} --partitions 1 --config cleanup.policy=compact");
    assert!(error.contains(&create), "{error}");

    let name = topic.as_str();
    let new = Topic {
        name,
        partitions: 1,
        settings: COMPACT,
    };
    create_topics(&reports.bootstrap, &[new]).await;
    alter_topic(&reports.bootstrap, name, "cleanup.policy", "delete").await;
    let mut follower = Follower::start(&reports, &[logs]);
    assert_eq!(follower.process.ended().await.code(), Some(78));
    let error = follower.process.log();
    assert!(
        error.contains("--add-config cleanup.policy=compact"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_goes_on_after_its_folder_was_away_and_it_was_renamed() {
    let Some(reports) = with_checkpoints("log-away").await else {
        return;
    };
    let outer = tempfile::tempdir().unwrap();
    let [folder, away] = ["logs", "away"].map(|name| outer.path().join(name));
    let logs = folder.to_str().unwrap();
    let lines = log(0, 20);
    let part = |from: usize, to: usize| {
        lines[lines.len() * from / 4..lines.len() * to / 4]
            .concat()
            .into_bytes()
    };
    let mut follower = Follower::start(&reports, &[logs, "--until-ended"]);
    follower.logs("No such file").await;
    fs::create_dir(&folder).unwrap();
    let in_progress = |folder: &PathBuf| folder.join("app.inprogress");
    let arrived = async |before: usize| {
        until("more reports arrive", WAIT, async || {
            let all = reports.by_task().values().map(Vec::len).sum::<usize>();
            (all > before).then_some(all)
        })
        .await
    };
    append(&in_progress(&folder), &part(0, 1));
    let first = arrived(0).await;
    append(&in_progress(&folder), &part(1, 2));
    let second = arrived(first).await;
    fs::rename(&folder, &away).unwrap();
    append(&in_progress(&away), &part(2, 3));
    fs::rename(&away, &folder).unwrap();
    arrived(second).await;
    append(&in_progress(&folder), &part(3, 4));
    fs::rename(in_progress(&folder), folder.join("app")).unwrap();
    assert!(follower.process.ended().await.success());
    assert_eq!(
        outline(&reports.by_task()),
        outline(&of_whole_logs(&reports, &folder))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_set_to_another_applications_log_begins_it_from_0_also_after_a_crash() {
    let Some(reports) = with_checkpoints("log-link").await else {
        return;
    };
    let outer = tempfile::tempdir().unwrap();
    let [store, link, next] = ["store", "current", "next"].map(|name| outer.path().join(name));
    fs::create_dir(&store).unwrap();
    let set = |number: usize| {
        symlink(store.join(format!("app-{number}")), &next).unwrap();
        fs::rename(&next, &link).unwrap();
    };
    let path = link.to_str().unwrap();
    let all = async || reports.by_task().values().map(Vec::len).sum::<usize>();
    let mut sent = 0;
    // The first run is killed; the second one sees two applications; each log ends while it is not linked.
    let lines: Vec<Vec<String>> = (0..3).map(|number| log(number, 20)).collect();
    let mut follower = Follower::start(&reports, &[path]);
    for (number, lines) in lines.iter().enumerate() {
        let file = store.join(format!("app-{number}"));
        append(&file, lines[..lines.len() / 2].concat().as_bytes());
        set(number);
        sent = until("its reports arrive", WAIT, async || {
            let now = all().await;
            (now > sent).then_some(now)
        })
        .await;
        append(&file, lines[lines.len() / 2..].concat().as_bytes());
        if number == 0 {
            follower.process.kill();
            follower = Follower::start(&reports, &[path]);
        }
    }
    assert!(follower.process.stop().await.success());
    // Each from where it was.
    for number in 0..3 {
        set(number);
        let mut last = Follower::start(&reports, &[path, "--until-ended"]);
        assert!(last.process.ended().await.success());
    }
    assert_eq!(
        outline(&reports.by_task()),
        outline(&of_whole_logs(&reports, &store))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_a_follower_and_the_next_goes_on() {
    let Some(reports) = with_checkpoints("log-stops").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    let lines = log(0, 20);
    append(&path, lines[..lines.len() / 2].concat().as_bytes());
    let logs = folder.path().to_str().unwrap();
    let follower = Follower::start(&reports, &[logs]);
    until("reports arrive", WAIT, async || {
        (!reports.by_task().is_empty()).then_some(())
    })
    .await;
    assert!(follower.process.stop().await.success());
    append(&path, lines[lines.len() / 2..].concat().as_bytes());
    let mut follower = Follower::start(&reports, &[logs, "--until-ended"]);
    assert!(follower.process.ended().await.success());
    assert_eq!(
        outline(&reports.by_task()),
        outline(&of_whole_logs(&reports, folder.path()))
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn after_a_spark_application_the_reports_of_its_followed_log_hold_what_its_rest_api_said() {
    let (Some(reports), Some(python)) =
        (with_checkpoints("log-spark").await, service("TEST_PYTHON"))
    else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let paths = ["logs", "rest.json", "release"].map(|name| folder.path().join(name));
    let [logs, rest, release] = paths.each_ref().map(|path| path.to_str().unwrap());
    fs::create_dir(logs).unwrap();
    let mut follower = Follower::start(&reports, &[logs, "--until-ended", "--interval", "500ms"]);
    let job = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/spark/job.py");
    let arguments = [
        job.to_str().unwrap(),
        "--group-prefix",
        "log",
        "--pace",
        "0.3",
        "--rest-out",
        rest,
        "--release",
        release,
        "--event-log",
        logs,
        "--linger",
        "120",
    ];
    let mut spark = Process::start(folder.path(), "spark", Path::new(&python), &arguments);
    let wait = Duration::from_secs(180);
    until("a report arrives while it runs", wait, async || {
        spark.assert_running();
        (!reports.by_task().is_empty()).then_some(())
    })
    .await;
    let said: Value = until("all jobs have ended", wait, async || {
        spark.assert_running();
        Some(serde_json::from_slice(&fs::read(rest).ok()?).unwrap())
    })
    .await;
    fs::write(release, "").unwrap();
    assert!(spark.ended().await.success(), "{}", spark.log());
    assert!(follower.process.ended().await.success());

    let app = said["application"].as_str().unwrap();
    let count = |job: &Value, name: &str| job[name].as_i64().unwrap();
    let expected: BTreeMap<(String, String), [i64; 3]> = said["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| {
            let exec_id = format!("{app}/{}", job["jobGroup"].as_str().unwrap());
            let counts =
                ["numTasks", "numCompletedTasks", "numFailedTasks"].map(|name| count(job, name));
            ((exec_id, count(job, "jobId").to_string()), counts)
        })
        .collect();
    let received = reports.by_task();
    let mut found = BTreeMap::new();
    for (exec_id, reports) in &received {
        let numbers = reports.iter().map(|report| report.sequence);
        assert!(numbers.eq(0..reports.len() as i64), "{exec_id}");
        let (last, before) = reports.split_last().unwrap();
        assert!(
            before
                .iter()
                .all(|report| report.status == TaskStatus::Running)
        );
        let status = match exec_id.ends_with("log-check") {
            true => TaskStatus::Failed,
            false => TaskStatus::Succeed,
        };
        assert_eq!(last.status, status, "{exec_id}");
        for job in &last.progress.as_ref().unwrap().progress_info {
            let counts = [job.total_tasks, job.succeed_tasks, job.failed_tasks].map(i64::from);
            found.insert((exec_id.clone(), job.id.clone()), counts);
        }
    }
    assert_eq!(expected.len(), 5);
    assert_eq!(found, expected);
    let options = ["spark-log", logs, "--interval", "500ms", "--dry-run"];
    let dry = reports.run(&options, b"");
    let whole = text(&dry.stdout).lines().count();
    assert_eq!(whole, received.values().map(Vec::len).sum::<usize>());
}
