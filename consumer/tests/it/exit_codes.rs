//! Exit codes are as documented, whatever fails and wherever the output goes.

use std::path::Path;
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, SERVERS};
use service::testing::NOBODY;
use service::testing::invocation::{Ended, Invocation, Sink, helps};

const WITHIN: Duration = Duration::from_secs(120);

fn consumer() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_consumer"))
}

fn ends(arguments: &[&str], code: i32, words: &str) -> Ended {
    Invocation::of(arguments).ends(consumer(), code, words)
}

#[test]
fn each_help_lists_the_exit_codes_and_ignores_closed_pipes_and_full_disks() {
    let commands = [
        "run", "replay", "migrate", "audit", "diff", "expire", "tasks", "task",
    ];
    let commands = commands.map(|command| [command]);
    let mut commands: Vec<&[&str]> = commands.iter().map(|command| &command[..]).collect();
    commands.push(&[]);
    helps(consumer(), &commands);
}

#[test]
fn wrong_usage_ends_with_2_and_what_an_operator_has_to_change_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let url = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    let [absent, empty, garbage, tasks] = ["absent", "empty", "garbage", "tasks"].map(url);
    std::fs::write(folder.path().join("empty"), "").unwrap();
    std::fs::write(folder.path().join("garbage"), "no database".repeat(100)).unwrap();
    ends(&["migrate", "--database-url", &tasks], 0, "is up to date");

    let commands: [&[&str]; 7] = [
        &["run"],
        &["migrate"],
        &["replay", "--into", &absent],
        &["audit"],
        &["expire", "--older-than", "30d"],
        &["tasks"],
        &["task", "exec-1"],
    ];
    let no_databases = [
        "oracle://localhost/tasks",
        "tasks.db",
        "postgres://localhost/tasks?target_session_attrs=best",
        "mysql://localhost/",
        "mysql://localhost/mysql",
        "mysql://one,two/tasks",
    ];
    for no_database in no_databases {
        for command in commands {
            let given = [command, &["--database-url", no_database]].concat();
            ends(&given, 2, "--database-url");
        }
        ends(
            &["replay", "--into", no_database, "--database-url", &tasks],
            2,
            "--into",
        );
        ends(&["diff", &tasks, no_database], 2, "");
    }
    let wrong: [(&[&str], &str); 12] = [
        (&[], "Usage"),
        (&["store"], "store"),
        (&["run", "--part", "everything"], "--part"),
        (&["task"], "EXEC_ID"),
        (&["task", "nobody", "--database-url", &tasks], "nobody"),
        (&["tasks", "--limit", "many"], "--limit"),
        (&["tasks", "--at", "yesterday"], "--at"),
        (&["tasks", "--log-level", "consumer=loud"], "--log-level"),
        (&["expire"], "--older-than"),
        (
            &[
                "expire",
                "--older-than",
                "500000w",
                "--database-url",
                &tasks,
            ],
            "--older-than",
        ),
        (
            &["audit", "--report", "audit.txt", "--database-url", &tasks],
            "audit.txt",
        ),
        (
            &["replay", "--into", &tasks, "--database-url", &tasks],
            "--into",
        ),
    ];
    for (wrong, words) in wrong {
        ends(wrong, 2, words);
    }

    for (database, words) in [
        (&absent, "absent"),
        (&empty, "consumer migrate"),
        (&garbage, "not a database"),
    ] {
        for command in &commands[4..] {
            let given = [command, &["--database-url", database][..]].concat();
            ends(&given, 78, words);
        }
        ends(&["diff", &tasks, database], 2, "could not tell");
    }
    let run = ["run", "--database-url", &tasks];
    ends(&run[..1], 2, "--database-url");
    let unread = ["--schemas", "/nonexistent"];
    ends(&[&run[..], &unread].concat(), 78, "--schemas");

    for scheme in ["postgres", "mysql"] {
        let away = format!("{scheme}://somebody@{NOBODY}/tasks");
        for command in [&["tasks"][..], &["task", "exec-1"], &["migrate"]] {
            let given = [command, &["--database-url", &away]].concat();
            ends(&given, 1, NOBODY.split(':').next().unwrap());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tables_or_rights_an_operator_is_needed() {
    for kind in SERVERS {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let commands: [&[&str]; 3] = [
            &["tasks"],
            &["task", "exec-1"],
            &["expire", "--older-than", "30d"],
        ];
        let ends_with_78 = |command: &[&str], url: &str, words: &str| {
            ends(&[command, &["--database-url", url]].concat(), 78, words);
        };
        let (no_table, denied) = match kind {
            Kind::Mariadb => ("doesn't exist", "denied"),
            _ => ("does not exist", "permission denied"),
        };
        for command in commands {
            ends_with_78(command, &pipeline.database_url, no_table);
        }
        pipeline.ask(&["migrate"]);
        let guest = format!("{}_guest", pipeline.database());
        let (superuser, create, grant) = match kind {
            Kind::Mariadb => (
                "root@",
                format!(
                    "CREATE USER {guest}; GRANT CREATE TEMPORARY TABLES ON {}.* TO {guest}",
                    pipeline.database()
                ),
                format!("GRANT SELECT ON {}.* TO {guest}", pipeline.database()),
            ),
            _ => (
                "postgres@",
                format!("CREATE ROLE {guest} LOGIN"),
                format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {guest}"),
            ),
        };
        pipeline.administer(&create).await;
        let url = pipeline
            .database_url
            .replacen(superuser, &format!("{guest}@"), 1);
        for command in commands.into_iter().chain([&["migrate"][..]]) {
            ends_with_78(command, &url, denied);
        }
        // A role that may read may not delete.
        pipeline.execute(&grant).await;
        ends(&["tasks", "--database-url", &url], 0, "0 tasks");
        let old = match kind {
            Kind::Mariadb => "1",
            _ => "timestamptz '1970-01-01 00:00Z'",
        };
        pipeline
            .execute(&format!(
                "INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status) \
                 VALUES (1, 0, 0, {old}, 0, 'Running')"
            ))
            .await;
        ends_with_78(commands[2], &url, denied);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_closed_pipe_or_full_disk_changes_no_verdict_and_loses_no_summary() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 300, 0);
    let program = pipeline.program("consumer", &[]);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    let url = pipeline.database_url.as_str();
    let into = |name: &str| format!("sqlite:{}", pipeline.folder().join(name).display());
    let kafka = [
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
    ];
    let to = |arguments: &[&str], stdout: Sink, stderr: Sink, code: i32, words: &str| {
        let arguments = [arguments, &["--database-url", url]].concat();
        Invocation {
            stdout,
            stderr,
            ..Invocation::of(&arguments)
        }
        .ends(consumer(), code, words);
    };

    // The summary is in the log.
    let copies = [into("gone.db"), into("full.db")];
    for (copy, sink) in copies.iter().zip([Sink::ClosedPipe, Sink::Full]) {
        let replay = [&["replay", "--into", copy], &kafka[..]].concat();
        to(&replay, sink, Sink::Kept, 0, "300 events of");
        to(&replay, sink, sink, 0, "");
        to(&["migrate"], sink, Sink::Kept, 0, "is up to date");
        to(&["migrate"], sink, sink, 0, "");
    }

    let listings: [&[&str]; 6] = [
        &["tasks", "--limit", "0"],
        &["tasks", "--json"],
        &["task", "exec-05"],
        &["task", "exec-05", "--json"],
        &["expire", "--older-than", "30d", "--dry-run"],
        &["expire", "--older-than", "30d", "--dry-run", "--json"],
    ];
    for listing in listings {
        for stderr in [Sink::Kept, Sink::ClosedPipe, Sink::Full] {
            to(listing, Sink::Kept, stderr, 0, "");
            to(listing, Sink::ClosedPipe, stderr, 0, "");
        }
        to(
            listing,
            Sink::Full,
            Sink::Kept,
            1,
            "cannot write to standard output",
        );
        to(listing, Sink::Full, Sink::Full, 1, "");
    }

    let audit = [&["audit"], &kafka[..]].concat();
    let diff = ["diff", url, &copies[0], "--events-topic", &pipeline.events];
    for (verdict, code) in [("equal", 0), ("unequal", 1)] {
        for audit in [&audit[..], &diff] {
            for audit in [audit.to_vec(), [audit, &["--json"]].concat()] {
                to(&audit, Sink::Kept, Sink::Kept, code, verdict);
                to(&audit, Sink::ClosedPipe, Sink::Kept, code, "");
                to(&audit, Sink::ClosedPipe, Sink::ClosedPipe, code, "");
                to(&audit, Sink::Full, Sink::Kept, 2, "could not tell");
                to(&audit, Sink::Full, Sink::Full, 2, "");
            }
        }
        pipeline
            .execute("DELETE FROM task_metrics WHERE event_partition = 0 AND event_offset = 5")
            .await;
    }

    let expire = ["expire", "--older-than", "30d"];
    to(&expire, Sink::Full, Sink::Kept, 0, "removed from SQLite");
    to(
        &expire,
        Sink::ClosedPipe,
        Sink::Kept,
        0,
        "removed from SQLite",
    );
}
