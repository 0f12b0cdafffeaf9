//! Permanent failures stop the consumer and need an operator.

use super::storing;
use crate::strategies;
use crate::support::{Cluster, KINDS, Kind, Pipeline, SERVERS};

/// A consumer that runs when the fault occurs, and one that starts during it: both exit for an operator.
async fn ends_for_a_person(
    pipeline: &Pipeline,
    url: &str,
    reason: &[&str],
    fault: impl AsyncFnOnce(),
) {
    let program = pipeline.program_on(url, "running", &[]);
    let program = storing(pipeline, program, 200).await;
    fault().await;
    pipeline.fill_numbered(&strategies::sample_event(), 200, 0);
    let names = |log: &str| assert!(reason.iter().all(|word| log.contains(word)), "{log}");
    names(&program.needs_attention().await);
    names(
        &pipeline
            .program_on(url, "started", &[])
            .needs_attention()
            .await,
    );
    assert!(pipeline.read_letters().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_dropped_is_for_a_person() {
    for kind in KINDS {
        let Some(pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let drop = match kind {
            Kind::Sqlite | Kind::Mariadb => {
                "DROP VIEW task_metrics_history; DROP TABLE task_metrics"
            }
            Kind::Postgres => "DROP TABLE task_metrics CASCADE",
        };
        ends_for_a_person(
            &pipeline,
            &pipeline.database_url,
            &["task_metrics"],
            async || {
                pipeline.execute(drop).await;
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_revoked_is_for_a_person() {
    for kind in SERVERS {
        let Some(pipeline) = Pipeline::make(kind, 2).await else {
            return;
        };
        let url = pipeline.make_owner().await;
        let owner = pipeline.database();
        // A right to all tables has no exceptions in MariaDB.
        let (revoke, reason) = match kind {
            Kind::Mariadb => (
                format!("REVOKE INSERT ON {owner}.* FROM {owner}"),
                ["INSERT command denied to user", "deploy/mysql/grants.sql"],
            ),
            _ => (
                format!("REVOKE INSERT ON task_metrics FROM {owner}"),
                [
                    "permission denied for table task_metrics",
                    "deploy/postgres/grants.sql",
                ],
            ),
        };
        ends_for_a_person(&pipeline, &url, &reason, async || {
            pipeline.execute(&revoke).await;
            if kind == Kind::Mariadb {
                // Open sessions keep the rights to a database.
                pipeline.end_sessions().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_for_a_person_and_not_shown() {
    for kind in SERVERS {
        let Some(cluster) = Cluster::of(kind) else {
            return;
        };
        let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 2, "").await else {
            return;
        };
        let url = pipeline.make_owner().await;
        let owner = pipeline.database();
        let (change, reason) = match kind {
            Kind::Mariadb => (
                format!("ALTER USER {owner} IDENTIFIED BY 'changed'"),
                ["Access denied for user", "MYSQL_PWD"],
            ),
            _ => {
                let rules = cluster.folder().join("data/pg_hba.conf");
                let trusting = std::fs::read_to_string(&rules).unwrap();
                std::fs::write(
                    &rules,
                    format!("host all {owner} 127.0.0.1/32 scram-sha-256\n{trusting}"),
                )
                .unwrap();
                pipeline.administer("SELECT pg_reload_conf()").await;
                (
                    format!("ALTER ROLE {owner} PASSWORD 'changed'"),
                    ["password authentication failed", ""],
                )
            }
        };
        ends_for_a_person(&pipeline, &url, &reason, async || {
            pipeline.administer(&change).await;
            pipeline.end_sessions().await;
        })
        .await;
        for name in ["running", "started"] {
            let log =
                std::fs::read_to_string(pipeline.folder().join(format!("{name}.log"))).unwrap();
            assert!(
                !log.contains(":right@") && !log.contains("changed"),
                "{log}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_exist_is_for_a_person() {
    for kind in SERVERS {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        let reason = match kind {
            Kind::Mariadb => "CREATE DATABASE",
            _ => "does not exist",
        };
        let absent = format!("{}_absent", pipeline.database_url);
        let log = pipeline
            .program_on(&absent, "consumer", &[])
            .needs_attention()
            .await;
        assert!(log.contains("_absent") && log.contains(reason), "{log}");
    }
}
