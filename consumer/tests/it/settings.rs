//! Valid and invalid options and variables of the consumer.

use std::process::Output;
use std::time::Duration;

use crate::support::{Kind, Pipeline};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use service::settings::host_name;
use service::testing::settings::{NamedClients, refuses, run, takes_blank_variables_as_unset};
use service::testing::{ASK, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const ABSENT: [&str; 4] = [
    "--kafka-config",
    "/absent.conf",
    "--database-url",
    "sqlite:/absent/tasks.db",
];
const NO_DATABASE: &str = "no database is given: add --database-url sqlite:FILE, --database-url \
                           postgres://USER@HOST/NAME or --database-url mysql://USER@HOST/NAME, or set DATABASE_URL";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn blank_variables_are_unset_in_every_command() {
    let of_kafka = |command: &[&'static str]| [command, &ABSENT].concat();
    let of_database = |command: &[&'static str]| [command, &ABSENT[2..]].concat();
    takes_blank_variables_as_unset(
        CONSUMER,
        &[
            (&of_kafka(&["run"]), "/absent.conf"),
            (&of_kafka(&["audit"]), "/absent.conf"),
            (
                &of_kafka(&["replay", "--into", "sqlite:/absent/b"]),
                "/absent.conf",
            ),
            (&of_database(&["migrate"]), "/absent/tasks.db"),
            (
                &of_database(&["expire", "--older-than", "30d"]),
                "/absent/tasks.db",
            ),
            (
                &of_database(&["serve", "--tokens", "/absent/tokens"]),
                "/absent/tokens",
            ),
            (&of_database(&["tasks"]), "/absent/tasks.db"),
            (&of_database(&["task", "exec-1"]), "/absent/tasks.db"),
            (
                &["diff", "sqlite:/absent/a", "sqlite:/absent/b"],
                "/absent/",
            ),
        ],
    );
}

#[test]
fn a_command_that_opens_the_database_has_none_by_default() {
    let folder = tempfile::tempdir().unwrap();
    let lines: [&[&str]; 7] = [
        &["run"],
        &["serve"],
        &["migrate"],
        &["audit"],
        &["expire", "--older-than", "30d"],
        &["tasks"],
        &["task", "exec-1"],
    ];
    for line in lines {
        // A misspelt variable, and one that a compose file left empty.
        for variable in [("DATABASE_URI", "sqlite:tasks.db"), ("DATABASE_URL", "")] {
            let output = std::process::Command::new(CONSUMER)
                .args(line)
                .env_remove("DATABASE_URL")
                .envs([variable])
                .current_dir(folder.path())
                .output()
                .unwrap();
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{line:?}: {error}");
            assert!(error.contains(NO_DATABASE), "{line:?}: {error}");
        }
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[test]
fn invalid_arguments_are_refused_at_once() {
    let of_run = |option, value| ["run", "--database-url", "sqlite:a", option, value];
    let expire = |more: &[&'static str]| {
        [
            &["expire", "--database-url", "sqlite:a", "--older-than"],
            more,
        ]
        .concat()
    };
    let at = |time| ["tasks", "--database-url", "sqlite:a", "--at", time];
    let interval = "--commit-interval-ms";
    refuses(
        CONSUMER,
        &[
            (
                &of_run("--instance-id", ""),
                "--instance-id <ID> has an empty value",
            ),
            (
                &["tasks", "--database-url", ""],
                "--database-url <URL> has an empty value",
            ),
            (&["task", ""], "<EXEC_ID> has an empty value"),
            (
                &of_run("--bootstrap-servers", "kafka://a"),
                "kafka:// is not one of",
            ),
            (&of_run("--part", "nosuch"), "[possible values: "),
            (
                &of_run("--dead-letters-topic", "task-running-info-events"),
                "--events-topic and --dead-letters-topic are both",
            ),
            (&of_run("--instance-id", "a\u{1b}b"), "the character"),
            (&of_run("--events-topic", ".."), "no topic can have this"),
            (&of_run(interval, "20001"), interval),
            (&of_run(interval, "18446744073709551615"), interval),
            (&of_run("--max-events", "0"), "--max-events"),
            (&of_run("--max-bytes", "4294967296"), "--max-bytes"),
            (
                &of_run("--max-rejects-per-1000", "1001"),
                "--max-rejects-per-1000",
            ),
            (
                &expire(&["1m"]),
                "--older-than 1m removes all but the last 1m",
            ),
            (&expire(&["0s"]), "add --yes to remove it"),
            (&expire(&["23h 59m"]), "add --yes to remove it"),
            (&expire(&["20000000h"]), "before the year 1"),
            (&expire(&["2562047788015215h"]), "expected an age"),
            (&expire(&["3000y"]), "expected an age"),
            (
                &["migrate", "--database-url", "sqlite:"],
                "--database-url does not name a file",
            ),
            (
                &["tasks", "--database-url", "sqlite::memory:"],
                "--database-url does not name a file",
            ),
            (
                &["replay", "--into", "sqlite://?mode=memory"],
                "--into does not name a file",
            ),
            (&at("-2562047788015215h"), "in the years 1 to 9999"),
            (&at("-009999-01-02T00:00Z"), "in the years 1 to 9999"),
            (&at("0000-12-31T23:59:59Z"), "in the years 1 to 9999"),
            (
                &["audit", "--database-url", "sqlite:a", "--limit=-1"],
                "--limit",
            ),
        ],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_reported_today_is_removed_after_a_yes() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let expire = ["expire", "--older-than", "1m"];
    let refused = pipeline.fails(&expire, 2);
    assert!(refused.contains("add --yes"), "{refused}");
    pipeline.ask(&[&expire[..], &["--dry-run"]].concat());
    pipeline.ask(&[&expire[..], &["--yes"]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_is_named_after_program_and_instance() {
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let clients = NamedClients::of(&pipeline.bootstrap);
    let broker = std::mem::replace(&mut pipeline.bootstrap, clients.address.clone());
    let mut consumer = pipeline.program("named", &["--instance-id", "consumer-7"]);
    consumer.until_ready().await;
    let asking: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", &broker)
        .create()
        .unwrap();
    until(
        "its member has the name",
        Duration::from_secs(120),
        async || {
            let groups = asking.fetch_group_list(Some(&pipeline.events), ASK).ok()?;
            let members = groups.groups().first()?.members();
            let is_named = members
                .iter()
                .any(|member| member.client_id() == "consumer-7");
            is_named.then_some(())
        },
    )
    .await;
    consumer.stop().await;
    assert_eq!(clients.take(), ["consumer-7"]);
    let into = format!("sqlite:{}", pipeline.folder().join("copy.db").display());
    let audit = [&["audit"], &pipeline.consumer_arguments()[..]].concat();
    let replay = [
        "replay",
        "--into",
        &into,
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
    ];
    for (line, name) in [
        (audit, "consumer-audit"),
        (replay.to_vec(), "consumer-replay"),
    ] {
        let log = stderr(&run(CONSUMER, &line, &[]));
        let expected = format!("{name}-{}", host_name());
        assert_eq!(clients.take(), [expected], "{line:?}: {log}");
    }
}

/// The largest possible offsets.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_offset_does_not_overflow() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let into = format!("sqlite:{}", pipeline.folder().join("copy.db").display());
    let last = "offset:0=9223372036854775807";
    let kafka = [
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
    ];
    for command in [
        vec!["audit", "--from", last],
        vec!["audit", "--to", last],
        vec!["replay", "--into", &into, "--from", last],
    ] {
        let url = ["--database-url", &pipeline.database_url];
        let output = run(CONSUMER, &[&command[..], &kafka, &url].concat(), &[]);
        let error = stderr(&output);
        assert!(
            matches!(output.status.code(), Some(2 | 78)),
            "{command:?}: {error}"
        );
        assert!(!error.contains("panicked"), "{command:?}: {error}");
    }
}
