//! Outages of the databases that are waited for.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{SHORT_POLL_INTERVAL, nothing_happened, storing};
use crate::support::{Cluster, Kind, Pipeline, Program, SmallDisk, connect, on_servers};
use crate::{strategies, support};

/// An outage while events arrive is waited for, reported and survived.
async fn outlasts(
    pipeline: &Pipeline,
    program: Program,
    reason: &[&str],
    begin: impl AsyncFnOnce(),
    end: impl AsyncFnOnce(),
) {
    let mut program = storing(pipeline, program, 500).await;
    program.until_ready().await;
    let members = pipeline.until_stable(1).await;
    begin().await;
    pipeline.fill_numbered(&strategies::sample_event(), 2000, 0);
    program.until_waiting(reason).await;
    end().await;
    nothing_happened(pipeline, program, &members).await;
}

on_servers!(
    #[ignore = "heavy"]
    a_server_that_crashes_and_comes_back_is_waited_for,
    #[ignore = "heavy"]
    an_outage_longer_than_the_poll_interval_leaves_the_member_in_its_group,
    a_server_that_is_read_only_for_a_while_is_waited_for,
    a_server_without_a_connection_to_spare_is_waited_for,
    a_full_disk_of_a_server_is_waited_for,
);

async fn a_server_that_crashes_and_comes_back_is_waited_for(kind: Kind) {
    let Some(cluster) = Cluster::of(kind) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 4, "").await else {
        return;
    };
    let program = pipeline.program("consumer", &[]);
    let address = format!("{} 127.0.0.1:", kind.product());
    outlasts(
        &pipeline,
        program,
        &[&address, pipeline.database()],
        async || cluster.crash(),
        async || cluster.start_again(),
    )
    .await;
}

/// 25 s of outage, with a poll interval of 10 s and a session of 6 s.
async fn an_outage_longer_than_the_poll_interval_leaves_the_member_in_its_group(kind: Kind) {
    let Some(cluster) = Cluster::of(kind) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 2, "").await else {
        return;
    };
    let program = pipeline.program("consumer", SHORT_POLL_INTERVAL);
    outlasts(
        &pipeline,
        program,
        &[kind.product()],
        async || cluster.crash(),
        async || {
            // The fault is its duration.
            let begun = Instant::now();
            let members = pipeline.until_stable(1).await;
            while begun.elapsed() < Duration::from_secs(25) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                assert_eq!(pipeline.members(), ("Stable".to_owned(), members.clone()));
            }
            cluster.start_again();
        },
    )
    .await;
}

async fn a_server_that_is_read_only_for_a_while_is_waited_for(kind: Kind) {
    let Some(cluster) = Cluster::of(kind) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 4, "").await else {
        return;
    };
    // A user without all rights: read_only of MariaDB excepts those.
    let url = pipeline.make_owner().await;
    let program = pipeline.program_on(&url, "consumer", &[]);
    let database = pipeline.database();
    let (begin, end) = match kind {
        Kind::Mariadb => (
            "SET GLOBAL read_only = ON".to_owned(),
            "SET GLOBAL read_only = OFF".to_owned(),
        ),
        _ => (
            format!("ALTER DATABASE {database} SET default_transaction_read_only = on"),
            format!("ALTER DATABASE {database} RESET default_transaction_read_only"),
        ),
    };
    outlasts(
        &pipeline,
        program,
        &["read-only"],
        async || {
            pipeline.administer(&begin).await;
            if kind == Kind::Postgres {
                pipeline.end_sessions().await;
            }
        },
        async || pipeline.administer(&end).await,
    )
    .await;
}

async fn a_server_without_a_connection_to_spare_is_waited_for(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 4).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let program = pipeline.program_on(&url, "consumer", &[]);
    let reason = match kind {
        Kind::Mariadb => "max_connections_per_hour",
        _ => "too many connections",
    };
    outlasts(
        &pipeline,
        program,
        &[reason],
        async || assert_eq!(pipeline.lock_out(&url).await, reason),
        async || pipeline.let_in().await,
    )
    .await;
}

async fn a_full_disk_of_a_server_is_waited_for(kind: Kind) {
    let (Some(cluster), Some(disk)) = (Cluster::of(kind), SmallDisk::mount(24 << 10)) else {
        return;
    };
    let small = disk.folder().join("small");
    std::fs::create_dir(&small).unwrap();
    let owner = std::fs::metadata(cluster.folder()).unwrap();
    use std::os::unix::fs::MetadataExt;
    std::os::unix::fs::chown(&small, Some(owner.uid()), Some(owner.gid())).unwrap();
    let options = match kind {
        Kind::Mariadb => "",
        _ => {
            let tablespace = format!("CREATE TABLESPACE small LOCATION '{}'", small.display());
            support::execute(&cluster.url, &tablespace).await;
            "TABLESPACE small"
        }
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 4, options).await else {
        return;
    };
    let reason = match kind {
        Kind::Mariadb => {
            // The folder of the database, before it has tables.
            let database = cluster.folder().join("data").join(pipeline.database());
            std::fs::remove_dir_all(&database).unwrap();
            std::os::unix::fs::symlink(&small, &database).unwrap();
            // It refuses rows, or crashes (MariaDB 10.11 in the roll-back of a statement).
            "MySQL"
        }
        _ => "No space left on device",
    };
    let program = pipeline.program("consumer", &[]);
    outlasts(
        &pipeline,
        program,
        &[reason],
        async || {
            disk.fill();
        },
        async || {
            if kind == Kind::Mariadb {
                let log = std::fs::read_to_string(cluster.folder().join("server.log")).unwrap();
                assert!(log.contains("error 28"), "the fault happened: {log}");
            }
            std::fs::remove_file(disk.folder().join("ballast")).unwrap();
            // It may have ended itself: "Out of disk space in rollback".
            if kind == Kind::Mariadb {
                cluster.start_again();
            }
        },
    )
    .await;
    drop(cluster); // before the disk that it uses
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_sqlite_is_waited_for() {
    let Some(disk) = SmallDisk::mount(16 << 10) else {
        return;
    };
    let Some(mut pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    pipeline.database_url = format!("sqlite:{}", disk.folder().join("tasks.db").display());
    let program = pipeline.program("consumer", &[]);
    outlasts(
        &pipeline,
        program,
        &["full"],
        async || {
            disk.fill();
        },
        async || std::fs::remove_file(disk.folder().join("ballast")).unwrap(),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn an_sqlite_that_another_process_keeps_locked_is_waited_for_and_can_be_read_meanwhile() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    for _ in 0..4 {
        pipeline.fill_numbered(&sample, 500, 0);
        let mut other = connect(&pipeline.database_url).await;
        let mut run = async |statement: &'static str| {
            other.run(statement).await.unwrap();
        };
        run("PRAGMA busy_timeout = 10000").await;
        run("BEGIN IMMEDIATE; UPDATE task SET job_id = job_id").await;
        let before = pipeline.count("SELECT count(*) FROM task_metrics").await;
        pipeline.fill_numbered(&sample, 500, 0);
        // The fault is the duration of the lock.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(pipeline.ask(&["tasks", "--json"]).contains("exec-05"));
        let after = pipeline.count("SELECT count(*) FROM task_metrics").await;
        assert_eq!(after, before, "the lock was one");
        run("COMMIT").await;
    }
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}
