//! A database that is removed or replaced under a running consumer: the consumer notices, reports it, and continues
//! from the new state. Rows in a file that nobody will open do not count as stored.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use crate::sql::Sql;
use crate::strategies;
use crate::support::{Kind, Pipeline, Program, SERVERS};
use service::testing::{Process, until};

const WITHIN: Duration = Duration::from_secs(120);

/// An SQLite database with 500 events stored by a running consumer, and a backup of it.
async fn with_backup() -> Option<(Pipeline, Program, PathBuf, PathBuf)> {
    let pipeline = Pipeline::make(Kind::Sqlite, 2).await?;
    let mut program = pipeline.program("consumer", &[]);
    fill(&pipeline);
    pipeline.until_all_stored(WITHIN).await;
    program.until_ready().await;
    let file = pipeline.folder().join("tasks.db");
    let backup = pipeline.folder().join("backup.db");
    pipeline
        .execute(&format!("VACUUM INTO '{}'", backup.display()))
        .await;
    Some((pipeline, program, file, backup))
}

fn fill(pipeline: &Pipeline) {
    pipeline.fill_numbered(&strategies::sample_event(), 500, 0);
}

/// It has stored everything once, and exits in order.
async fn all_is_there(pipeline: &Pipeline, mut program: Program) {
    pipeline.until_all_stored(WITHIN).await;
    program.until_ready().await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_file_is_waited_for_and_its_replacement_is_continued_from() {
    let Some((pipeline, mut program, file, backup)) = with_backup().await else {
        return;
    };
    fill(&pipeline);
    pipeline.until_all_stored(WITHIN).await;
    // While there is nothing to store.
    std::fs::remove_file(&file).unwrap();
    program
        .until_waiting(&["tasks.db", "no longer exists"])
        .await;
    program
        .until_logged("tasks.db was removed while it was open")
        .await;
    fill(&pipeline);
    program
        .until_waiting(&["tasks.db", "no longer exists"])
        .await;
    assert!(!file.exists(), "no empty one is begun");
    std::fs::rename(&backup, &file).unwrap();
    all_is_there(&pipeline, program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_by_a_backup_under_load_is_filled_up_from_the_topic() {
    let Some((pipeline, program, file, backup)) = with_backup().await else {
        return;
    };
    fill(&pipeline);
    pipeline.until_all_stored(WITHIN).await;
    pipeline.fill_numbered(&strategies::sample_event(), 20_000, 0);
    std::fs::rename(&backup, &file).unwrap();
    program
        .until_logged("tasks.db was replaced while it was open")
        .await;
    fill(&pipeline);
    all_is_there(&pipeline, program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_moved_away_and_back_costs_nothing() {
    let Some((mut pipeline, program, file, _)) = with_backup().await else {
        return;
    };
    program.stop().await;
    let (folder, away) = (pipeline.folder().join("in"), pipeline.folder().join("out"));
    std::fs::create_dir(&folder).unwrap();
    let inside = folder.join("tasks.db");
    std::fs::rename(&file, &inside).unwrap();
    pipeline.database_url = format!("sqlite:{}", inside.display());
    let mut program = pipeline.program("again", &[]);
    program.until_ready().await;
    fill(&pipeline);
    pipeline.until_all_stored(WITHIN).await;
    std::fs::rename(&folder, &away).unwrap();
    program.until_waiting(&["tasks.db"]).await;
    fill(&pipeline);
    std::fs::rename(&away, &folder).unwrap();
    all_is_there(&pipeline, program).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_ahead_log_that_is_removed_takes_nothing_with_it() {
    let Some((pipeline, program, file, _)) = with_backup().await else {
        return;
    };
    let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", file.display()));
    for removed in ["-wal", "-shm"] {
        std::fs::remove_file(beside(removed)).unwrap();
        let message = format!("tasks.db{removed} was removed while it was open");
        program.until_logged(&message).await;
        fill(&pipeline);
        pipeline.until_all_stored(WITHIN).await;
    }
    all_is_there(&pipeline, program).await;
}

/// Reported at the latest when the consumer is stopped.
#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_stopped_after_its_file_was_removed_does_not_say_that_all_is_stored() {
    let Some((pipeline, program, file, _)) = with_backup().await else {
        return;
    };
    fill(&pipeline);
    pipeline.until_all_stored(WITHIN).await;
    std::fs::remove_file(&file).unwrap();
    let status = program.process.stop().await;
    let log = std::fs::read_to_string(pipeline.folder().join("consumer.log")).unwrap();
    assert!(
        log.contains("tasks.db was removed while it was open"),
        "{log}"
    );
    // If it noticed slightly earlier, it is waiting for the file when it is stopped.
    let waited = log.contains("waiting for");
    assert!(status.code() == Some(1) || waited, "{status}: {log}");
    assert!(
        !log.contains("everything read is stored or") || waited,
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_stops_when_its_file_is_removed_and_continues_in_the_replacement() {
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 20_000, 0);
    let file = pipeline.folder().join("copy.db");
    let into = format!("sqlite:{}", file.display());
    let arguments = [
        "replay",
        "--into",
        &into,
        "--max-events",
        "10",
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
    ];
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_consumer"));
    let mut replay = Process::start_with(pipeline.folder(), "replay", program, &arguments, &[]);
    let begun = async || {
        let some = "SELECT count(*) FROM consumed_offset";
        let mut connected = Sql::connect(&into).await.ok()?;
        let count = connected.number(some).await.ok()?;
        (count > 0).then_some(())
    };
    until("some is stored", WITHIN, begun).await;
    std::fs::remove_file(&file).unwrap();
    let status = replay.ended().await;
    let log = replay.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("copy.db was removed while it was open"),
        "{log}"
    );
    pipeline.ask(&arguments);
    pipeline.database_url = into.clone();
    pipeline.assert_each_once(&BTreeSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expire_whose_file_is_removed_does_not_say_that_rows_are_removed() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    pipeline.fill_numbered(&strategies::sample_event(), 40_000, 0);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_consumer"));
    let arguments = [
        "expire",
        "--older-than",
        "0s",
        "--yes",
        "--database-url",
        &pipeline.database_url,
    ];
    let mut expire = Process::start_with(pipeline.folder(), "expire", program, &arguments, &[]);
    let begun = "SELECT count(*) FROM expiry";
    pipeline.until_count(begun, 1).await;
    std::fs::remove_file(pipeline.folder().join("tasks.db")).unwrap();
    let status = expire.ended().await;
    let log = expire.log();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(
        log.contains("tasks.db was removed while it was open"),
        "{log}"
    );
}

/// A failover to a lagging replica, or a backup restored while the consumer runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_restored_under_a_running_consumer_is_completed_from_the_topic() {
    for kind in SERVERS {
        let Some(pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let program = pipeline.program("consumer", &[]);
        fill(&pipeline);
        pipeline.until_all_stored(WITHIN).await;
        let (ours, old) = (
            pipeline.database().to_owned(),
            format!("{}_old", pipeline.database()),
        );
        match kind {
            Kind::Mariadb => {
                let lost = format!("{ours}_lost");
                let make = format!("CREATE DATABASE {old}; CREATE DATABASE {lost}");
                pipeline.administer(&make).await;
                pipeline.restore(&pipeline.dump(), &old);
                fill(&pipeline);
                pipeline.until_all_stored(WITHIN).await;
                let tables = [
                    "task",
                    "task_progress",
                    "task_resource",
                    "task_metrics",
                    "consumed_offset",
                ];
                let swaps = tables.map(|table| {
                    format!("{ours}.{table} TO {lost}.{table}, {old}.{table} TO {ours}.{table}")
                });
                // At one moment.
                let swap = format!("RENAME TABLE {}", swaps.join(", "));
                pipeline.administer(&swap).await;
            }
            _ => {
                // Copying and renaming a database requires that nobody is connected.
                let alone = async || {
                    let statements = [
                        format!("ALTER DATABASE {ours} ALLOW_CONNECTIONS false"),
                        format!(
                            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{ours}'"
                        ),
                    ];
                    for statement in statements {
                        pipeline.administer(&statement).await;
                    }
                };
                alone().await;
                for statement in [
                    format!("CREATE DATABASE {old} TEMPLATE {ours}"),
                    format!("ALTER DATABASE {ours} ALLOW_CONNECTIONS true"),
                ] {
                    pipeline.administer(&statement).await;
                }
                fill(&pipeline);
                pipeline.until_all_stored(WITHIN).await;
                alone().await;
                // In one transaction, so that a database with this name always exists.
                pipeline
                    .administer(&format!(
                        "ALTER DATABASE {ours} RENAME TO {ours}_lost; ALTER DATABASE {old} RENAME TO {ours}"
                    ))
                    .await;
            }
        }
        fill(&pipeline);
        all_is_there(&pipeline, program).await;
    }
}
