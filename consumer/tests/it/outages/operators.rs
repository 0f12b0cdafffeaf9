//! Permanent failures stop the consumer and need an operator.

use super::storing;
use crate::strategies;
use crate::support::{Cluster, KINDS, Kind, Pipeline};

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
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let reason = ["permission denied for table task_metrics"];
    ends_for_a_person(&pipeline, &url, &reason, async || {
        let role = pipeline.database();
        pipeline
            .execute(&format!("REVOKE INSERT ON task_metrics FROM {role}"))
            .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_for_a_person_and_not_shown() {
    let Some(cluster) = Cluster::start(&[]) else {
        return;
    };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 2, "").await else {
        return;
    };
    let url = pipeline.make_owner().await;
    let role = pipeline.database();
    let rules = cluster.folder().join("data/pg_hba.conf");
    let trusting = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(
        &rules,
        format!("host all {role} 127.0.0.1/32 scram-sha-256\n{trusting}"),
    )
    .unwrap();
    pipeline.administer("SELECT pg_reload_conf()").await;
    ends_for_a_person(
        &pipeline,
        &url,
        &["password authentication failed"],
        async || {
            pipeline
                .administer(&format!("ALTER ROLE {role} PASSWORD 'changed'"))
                .await;
            pipeline.end_sessions().await;
        },
    )
    .await;
    for name in ["running", "started"] {
        let log = std::fs::read_to_string(pipeline.folder().join(format!("{name}.log"))).unwrap();
        assert!(
            !log.contains(":right@") && !log.contains("changed"),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_exist_is_for_a_person() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    let absent = format!("{}_absent", pipeline.database_url);
    let log = pipeline
        .program_on(&absent, "consumer", &[])
        .needs_attention()
        .await;
    assert!(
        log.contains("_absent") && log.contains("does not exist"),
        "{log}"
    );
}
