//! Each of the producer's commands ends within 10 s of a signal, whatever it waits for.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support;
use crate::support::{Reports, number_before};
use service::testing::stopping::{
    BlockableProxy, SIGNALS, SilentServer, Waiting, end_in_time, start_and_end_in_time,
};
use service::testing::{ANY_PORT, Process, read_all, until};

const PRODUCER: &str = env!("CARGO_BIN_EXE_producer");
const WAIT: Duration = Duration::from_secs(120);

/// `lines` reports, in a file.
fn lines(folder: &Path, lines: usize) -> String {
    let mut text = String::new();
    for i in 0..lines {
        let engine = r#"{"instance": "node-1:22", "engineType": "test"}"#;
        let _ = writeln!(
            text,
            r#"{{"execId": "exec-{i}", "jobId": "job-1", "status": "Running", "engine": {engine}}}"#
        );
    }
    let path = folder.join("lines");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_stop_although_a_broker_never_answers() {
    let folder = tempfile::tempdir().unwrap();
    let (silent, spark) = (SilentServer::start(), SilentServer::start());
    let address = silent.address();
    let url = format!("http://{}", spark.address());
    let lines = lines(folder.path(), 1);
    let commands = [
        vec!["spark", "--url", &url],
        vec!["publish", &lines],
        vec!["listen", ANY_PORT],
        vec!["simulate"],
    ];
    let waiting = commands.map(|command| Waiting {
        name: command[0],
        arguments: [&command[..], &["--bootstrap-servers", &address]].concat(),
        // A file that was not sent is work left undone.
        code: i32::from(command[0] == "publish"),
    });
    let connections = || silent.connections();
    start_and_end_in_time(folder.path(), PRODUCER, &waiting, connections).await;
}

/// To open it is to wait for who writes.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_that_nobody_writes_to_keeps_publish_from_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    let pipe = pipe.to_str().unwrap();
    let arguments = ["publish", pipe, "--metrics-listen", ANY_PORT];
    let mut publish = Process::start(folder.path(), "publish", Path::new(PRODUCER), &arguments);
    until("it listens", WAIT, async || {
        publish.assert_running();
        publish.get("/healthz")
    })
    .await;
    publish.signal("TERM");
    assert_eq!(publish.ended().await.code(), Some(1));
    let log = publish.log();
    let received = format!("stopped by a signal; nothing of {pipe} was sent");
    assert!(log.contains(&received), "{log}");
    assert!(!log.contains("not finished"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spark_that_never_answers_keeps_it_from_nothing() {
    let Some(reports) = Reports::make("stopping").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let spark = SilentServer::start();
    let url = format!("http://{}", spark.address());
    let waiting = [Waiting {
        name: "spark",
        arguments: reports.arguments(&["spark", "--url", &url]),
        code: 0,
    }];
    let connections = || spark.connections();
    start_and_end_in_time(folder.path(), PRODUCER, &waiting, connections).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_full_queue_keeps_no_program_from_ending() {
    let Some(reports) = Reports::make("stopping").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lines = lines(folder.path(), 5_000);
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let full = ["-X", "queue.buffering.max.messages=100"];
    for blocked in [BlockableProxy::block_named, BlockableProxy::block] {
        for signal in SIGNALS {
            proxy.open();
            let start = |name: &str, command: &[&str]| {
                let mut arguments = reports.arguments(&[command, &full].concat());
                let bootstrap = arguments.iter().position(|a| *a == reports.bootstrap);
                arguments[bootstrap.unwrap()] = proxy.address();
                Process::start(folder.path(), name, Path::new(PRODUCER), &arguments)
            };
            let mut simulate = start("simulate", &["simulate", "--rate", "500"]);
            let before = read_all(&reports.bootstrap, &reports.topic).len();
            until("reports are sent", WAIT, async || {
                simulate.assert_running();
                (read_all(&reports.bootstrap, &reports.topic).len() > before).then_some(())
            })
            .await;
            blocked(&proxy);
            let connections = proxy.connections();
            let mut publish = start("publish", &["publish", &lines]);
            until("it waits", WAIT, async || {
                publish.assert_running();
                let log = publish.log();
                (proxy.connections() > connections || log.contains("does not answer")).then_some(())
            })
            .await;
            // 100 reports fill the queue in a fifth of a second.
            tokio::time::sleep(Duration::from_secs(1)).await;
            // Reports that were taken were not delivered, or not acknowledged, or lines not read.
            let processes = vec![("simulate", simulate, 1), ("publish", publish, 1)];
            end_in_time(signal, processes).await;
        }
    }
}

/// When a file is stopped in its middle, the log says what was acknowledged, and from which line to resume.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_file_that_was_stopped_in_its_middle_goes_on_from_the_line_that_was_named() {
    const LINES: usize = 100_000;
    const TASKS: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks");
    let engine = r#"{"instance": "node-1:22", "engineType": "test"}"#;
    let text: String = (0..LINES)
        .map(|i| {
            format!(
                r#"{{"execId": "exec-{}", "jobId": "job-1", "status": "Running", "engine": {engine}}}{}"#,
                i % TASKS,
                '\n'
            )
        })
        .collect();
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    for blocked in [false, true] {
        let Some(reports) = Reports::make("stopping").await else {
            return;
        };
        let proxy = BlockableProxy::to(&reports.bootstrap);
        let arguments = [
            "publish",
            file,
            "--bootstrap-servers",
            proxy.address(),
            "--topic",
            &reports.topic,
            "-X",
            "queue.buffering.max.messages=100",
        ];
        let name = format!("publish-{blocked}");
        let mut publish = Process::start(folder.path(), &name, Path::new(PRODUCER), &arguments);
        let arrived = || read_all(&reports.bootstrap, &reports.topic).len();
        until("reports arrive", WAIT, async || {
            publish.assert_running();
            (arrived() > 0).then_some(())
        })
        .await;
        if blocked {
            proxy.block();
        }
        publish.signal("TERM");
        assert_eq!(publish.ended().await.code(), Some(1));

        let log = publish.log();
        let (_, at) = log.split_once("producer publish --from-line ").unwrap();
        let (line, _) = at.split_once(' ').unwrap();
        let before: usize = line.parse().unwrap();
        let before = before - 1;
        let sent = number_before(
            log.lines().find(|line| line.starts_with("sent ")).unwrap(),
            "reports,",
        );
        let arrived_before = arrived();
        assert!(
            before <= sent && sent <= arrived_before && arrived_before < LINES,
            "{log}"
        );
        assert!(blocked || before == arrived_before, "{log}");

        let output = reports.run(&["publish", file, "--from-line", line], b"");
        assert!(output.status.success());
        let printed = format!("sent {} reports, 0 bad lines\n", LINES - before);
        assert_eq!(support::text(&output.stdout), printed);
        for (task, received) in reports.by_task() {
            let mut sequences: Vec<i64> = received.iter().map(|report| report.sequence).collect();
            sequences.sort_unstable();
            if blocked {
                sequences.dedup();
            }
            assert_eq!(
                sequences,
                Vec::from_iter(0..(LINES / TASKS) as i64),
                "{task}"
            );
        }
    }
}
