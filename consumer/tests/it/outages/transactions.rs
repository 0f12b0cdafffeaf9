//! Transactions and sessions that PostgreSQL ends are retried.

use std::collections::BTreeSet;
use std::time::Duration;

use super::storing;
use crate::strategies;
use crate::support::{Kind, Pipeline, connect};
use service::testing::until;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn repeatedly_ended_sessions_neither_lose_nor_duplicate_rows() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 4).await else {
        return;
    };
    let program = pipeline.program("consumer", &["--max-events", "200"]);
    let program = storing(&pipeline, program, 500).await;
    let members = pipeline.until_stable(1).await;
    for _ in 0..20 {
        pipeline.fill_numbered(&strategies::sample_event(), 300, 0);
        pipeline.end_sessions().await;
    }
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

/// Waits until the consumer waits for a lock.
async fn until_blocked(pipeline: &Pipeline) {
    let blocked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = '{}' AND application_name = 'consumer' \
         AND wait_event_type = 'Lock'",
        pipeline.database()
    );
    pipeline.until_count(&blocked, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_a_deadlock_ends_is_written_again_each_row_once() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    for _ in 0..3 {
        // The consumer updates offsets, then waits for a task; this session holds the task, then waits for the offsets.
        // Only the consumer's session checks for deadlocks, so it is the victim.
        let mut other = connect(&pipeline.database_url).await;
        let mut run = async |statement: &str| {
            other.run(statement).await.unwrap();
        };
        run("SET deadlock_timeout = '1h'").await;
        run("BEGIN; UPDATE task SET job_id = job_id WHERE exec_id = 'exec-05'").await;
        pipeline.fill_numbered(&sample, 500, 0);
        until_blocked(&pipeline).await;
        run("UPDATE consumed_offset SET group_id = group_id").await;
        run("COMMIT").await;
        pipeline.until_all_stored(Duration::from_secs(120)).await;
    }
    let deadlocks = format!(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = '{}'",
        pipeline.database()
    );
    // Its statistics are delayed.
    pipeline.until_count(&deadlocks, 3).await;
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_cannot_be_serialized_is_written_again_each_row_once() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    pipeline
        .administer(&format!(
            "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'",
            pipeline.database()
        ))
        .await;
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    for round in 1..=3 {
        let mut other = connect(&pipeline.database_url).await;
        let locks = "BEGIN; UPDATE consumed_offset SET group_id = group_id";
        other.run(locks).await.unwrap();
        pipeline.fill_numbered(&sample, 500, 0);
        until_blocked(&pipeline).await;
        other.run("COMMIT").await.unwrap();
        pipeline.until_all_stored(Duration::from_secs(120)).await;
        let failures = program.log().matches("could not serialize access").count();
        assert!(failures >= round, "the fault happened: {failures} times");
    }
    assert_eq!(pipeline.members(), ("Stable".to_owned(), members));
    pipeline.assert_each_once(&BTreeSet::new()).await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn where_one_of_two_transactions_fails_the_other_ones_events_are_stored_and_counted_once() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 4).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 100).await;
    // Three times, while a second transaction is open. (Sequences are not rolled back.)
    pipeline
        .execute(
            "CREATE SEQUENCE failures; \
             CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'consumer' \
                   AND xact_start IS NOT NULL) > 1 AND nextval('failures') <= 3 THEN \
                 RAISE 'not now' USING ERRCODE = 'serialization_failure'; \
               END IF; RETURN NEW; END $$; \
             CREATE TRIGGER fail BEFORE INSERT ON task_metrics FOR EACH ROW \
               WHEN (NEW.event_partition = 0 AND NEW.event_offset % 100 = 0) EXECUTE FUNCTION fail()",
        )
        .await;
    // The cause is logged once, each restart every time.
    let failures = || program.log().matches("resuming from").count();
    let mut events = 100;
    // Only large batches are stored in two transactions, and batch sizes are not under the test's control.
    while failures() < 3 && events < 200_000 {
        pipeline.fill_numbered(&sample, 8_000, 0);
        events += 8_000;
        pipeline.until_all_stored(Duration::from_secs(120)).await;
    }
    let log = program.log();
    assert_eq!(failures(), 3, "the fault happened: {log}");
    assert_eq!(
        log.matches("the others will be read again").count(),
        1,
        "{log}"
    );
    pipeline.assert_each_once(&BTreeSet::new()).await;
    let counted = [
        "messaging_client_consumed_messages_total{",
        "taskrunning_rows_total{db_collection_name=\"task_progress\"}",
        "taskrunning_rows_total{db_collection_name=\"task_metrics\"}",
    ];
    // It counts just after the commit that completes the rows.
    until(
        "each is counted once",
        Duration::from_secs(60),
        async || {
            let (_, metrics) = program.process.get("/metrics")?;
            let of = |name: &&str| metrics.lines().find(|line| line.starts_with(*name));
            let all = counted
                .iter()
                .all(|name| of(name).is_some_and(|line| line.ends_with(&format!(" {events}"))));
            all.then_some(())
        },
    )
    .await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn where_statements_time_out_smaller_pieces_are_written() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    pipeline.fill_numbered(&strategies::sample_event(), 100, 0);
    let program = pipeline.program_on(&url, "consumer", &[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;
    // A millisecond per row, so that a batch of the backlog takes seconds.
    pipeline
        .execute(
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$; \
             CREATE TRIGGER slowly BEFORE INSERT ON task_metrics FOR EACH ROW EXECUTE FUNCTION slowly()",
        )
        .await;
    let role = pipeline.database();
    pipeline
        .administer(&format!(
            "ALTER ROLE {role} SET statement_timeout = '200ms'"
        ))
        .await;
    pipeline.fill_numbered(&strategies::sample_event(), 4000, 0);
    let program = pipeline.program_on(&url, "consumer", &[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    assert!(
        program.log().contains("statement timeout"),
        "the fault happened"
    );
    program.stop().await;
}
