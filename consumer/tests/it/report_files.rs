//! The files that `consumer audit --report` writes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, SmallDisk};
use serde_json::Value;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

fn audit(pipeline: &Pipeline, reports: &[&Path]) -> Child {
    let mut command = Command::new(CONSUMER);
    command
        .args([
            "audit",
            "--json",
            "--bootstrap-servers",
            &pipeline.bootstrap,
        ])
        .args(["--events-topic", &pipeline.events])
        .args(["--dead-letters-topic", &pipeline.letters])
        .args(["--database-url", &pipeline.database_url]);
    for report in reports {
        command.arg("--report").arg(report);
    }
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    piped.spawn().unwrap()
}

/// Exit code, output and log.
fn ended(child: Child) -> (Option<i32>, Value, String) {
    let output = child.wait_with_output().unwrap();
    let printed = serde_json::from_slice(&output.stdout);
    let log = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), printed.expect(&log), log)
}

async fn filled() -> Option<Pipeline> {
    let pipeline = Pipeline::make(Kind::Sqlite, 1).await?;
    pipeline.fill_numbered(&strategies::sample_event(), 50, 0);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    consumer.stop().await;
    Some(pipeline)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn audits_at_the_same_time_write_their_own_reports_and_touch_no_other_file() {
    let Some(pipeline) = filled().await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("audit.new"), "a user's").unwrap();
    let reports = [file("audit.json"), file("audit.html"), file("audit.prom")];
    let audits: Vec<Child> = (0..6)
        .map(|i| match i % 2 {
            0 => audit(&pipeline, &[&reports[0], &reports[1], &reports[2]]),
            _ => audit(&pipeline, &[&reports[2], &reports[1], &reports[0]]),
        })
        .collect();
    for audit in audits {
        let (code, printed, log) = ended(audit);
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(printed["verdict"], "equal");
    }
    let text = |file: &Path| std::fs::read_to_string(file).unwrap();
    let json: Value = serde_json::from_str(&text(&reports[0])).unwrap();
    assert_eq!(json["verdict"], "equal");
    assert!(
        text(&reports[1]).starts_with("<!DOCTYPE html>"),
        "{}",
        text(&reports[1])
    );
    assert!(
        text(&reports[2]).starts_with("# HELP "),
        "{}",
        text(&reports[2])
    );
    assert_eq!(text(&file("audit.new")), "a user's");
    let expected = ["audit.html", "audit.json", "audit.new", "audit.prom"];
    assert_eq!(names(folder.path()), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_that_cannot_be_written_is_an_error_and_the_others_are_written() {
    let (Some(pipeline), Some(disk)) = (filled().await, SmallDisk::mount(64)) else {
        return;
    };
    let kept = disk.folder().join("kept.json");
    std::fs::write(&kept, "an earlier one").unwrap();
    let ballast = disk.fill();
    let before = names(disk.folder());
    let other = pipeline.folder().join("other.json");
    let (code, printed, log) = ended(audit(&pipeline, &[&kept, &other]));
    assert_eq!(code, Some(2), "{log}");
    assert_eq!(printed["verdict"], "equal", "one answer: {log}");
    for message in ["kept.json", "No space left", "was not written", "equal"] {
        assert!(log.contains(message), "{message}: {log}");
    }
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "an earlier one");
    assert_eq!(names(disk.folder()), before);
    let written: Value = serde_json::from_slice(&std::fs::read(other).unwrap()).unwrap();
    assert_eq!(written["verdict"], "equal");
    std::fs::remove_file(ballast).unwrap();
    let (code, _, log) = ended(audit(&pipeline, &[&kept]));
    assert_eq!(code, Some(0), "{log}");

    // A missing folder is reported before anything is read.
    let (code, printed, log) = ended(audit(&pipeline, &[&disk.folder().join("none/a.json")]));
    assert_eq!((code, &printed["verdict"]), (Some(2), &"unproven".into()));
    assert!(log.contains("none is not a folder"), "{log}");
}
