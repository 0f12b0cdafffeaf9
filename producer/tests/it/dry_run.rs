//! `--dry-run` of every adapter: reports on standard output, as `producer publish` reads them, and no Kafka.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use schemas::{TaskRunningInfo, TaskStatus};
use serde_json::Value;
use service::testing::NOBODY;

use crate::support::spark::{App, Spark, job};
use crate::support::text;

/// A run of the program that could not reach any Kafka.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
    command
        .args(arguments)
        .args(["--dry-run", "--bootstrap-servers", NOBODY])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn dry_run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = command(arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Beside the reading of its output, of which a pipe takes only so much.
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // It may end before it has read all.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().unwrap()
    })
}

fn reports(output: &Output) -> Vec<TaskRunningInfo> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn simulate_prints_reports_that_publish_reads_again() {
    let arguments = ["simulate", "--tasks", "5", "--rate", "0", "--count", "300"];
    let simulated = dry_run(&[&arguments[..], &["--seed", "7"]].concat(), b"");
    let printed = reports(&simulated);
    assert_eq!(printed.len(), 300);
    let log = text(&simulated.stderr);
    assert!(log.contains("would have sent 300 reports of "), "{log}");

    let published = dry_run(&["publish"], &simulated.stdout);
    assert_eq!(reports(&published), printed);
    assert_eq!(published.stdout, simulated.stdout);
    let log = text(&published.stderr);
    assert!(
        log.contains("would have sent 300 reports, 0 bad lines"),
        "{log}"
    );
}

#[test]
fn publish_names_numbers_that_json_lacks_and_prints_the_lines_before_a_bad_one() {
    let good = r#"{"execId": "a", "jobId": "b", "engine": {"instance": "h:1", "engineType": "t"}, "status": "Running",
        "progress": {"progress": "-Infinity"}}"#.replace('\n', "");
    let output = dry_run(&["publish"], format!("{good}\nbad\n{good}\n").as_bytes());
    assert_eq!(output.status.code(), Some(2));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["progress"]["progress"], "-Infinity");
    let log = text(&output.stderr);
    assert!(
        log.contains("the good lines before it are printed"),
        "{log}"
    );
    assert!(
        log.contains("would have sent 1 report, 1 bad line"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn spark_prints_what_it_would_send() {
    let app = App::new("app-1", job("SUCCEEDED", 4)).completed();
    let spark = Spark::start([app]).await;
    let url = spark.url.clone();
    let arguments = move || dry_run(&["spark", "--interval", "50ms", "--url", &url], b"");
    let output = tokio::task::spawn_blocking(arguments).await.unwrap();
    let printed = reports(&output);
    assert_eq!(printed.len(), 1);
    assert_eq!(printed[0].exec_id, "app-1");
    assert_eq!(printed[0].status, TaskStatus::Succeed);
    let log = text(&output.stderr);
    assert!(log.contains("would have sent 1 report of 1 task"), "{log}");
}

#[test]
fn a_run_without_an_end_stops_when_nobody_reads_it_any_more() {
    let mut child = command(&["simulate", "--rate", "0"]).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(line.contains("execId"), "{line}");
    drop(output);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}
