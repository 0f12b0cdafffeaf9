//! Transactions and sessions that a server ends are retried.

use std::collections::BTreeSet;
use std::time::Duration;

use super::storing;
use crate::strategies;
use crate::support::{Kind, Pipeline, connect, on_servers};
use service::testing::until;

on_servers!(
    #[ignore = "heavy"]
    repeatedly_ended_sessions_neither_lose_nor_duplicate_rows,
    a_transaction_that_a_deadlock_ends_is_written_again_each_row_once,
    #[ignore = "heavy"]
    where_statements_time_out_smaller_pieces_are_written,
);

async fn repeatedly_ended_sessions_neither_lose_nor_duplicate_rows(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 4).await else {
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

/// The consumer moves the offsets, then waits for a task; this session holds the task, then waits for the offsets.
async fn a_transaction_that_a_deadlock_ends_is_written_again_each_row_once(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = storing(&pipeline, pipeline.program("consumer", &[]), 500).await;
    let members = pipeline.until_stable(1).await;
    const DEADLOCKS: usize = 3;
    for _ in 0..DEADLOCKS {
        let mut other = connect(&pipeline.database_url).await;
        let mut run = async |statement: &str| {
            other.run(statement).await.unwrap();
        };
        match kind {
            // It ends the transaction that has changed fewer rows.
            Kind::Mariadb => {
                run("BEGIN; UPDATE task SET ticket_id = 'other'; UPDATE task SET ticket_id = 'another'").await;
            }
            // Only the consumer's session checks for deadlocks, so it is the victim.
            _ => {
                run("SET deadlock_timeout = '1h'").await;
                run("BEGIN; UPDATE task SET job_id = job_id WHERE exec_id = 'exec-05'").await;
            }
        }
        pipeline.fill_numbered(&sample, 500, 0);
        pipeline.until_count(&pipeline.blocked(), 1).await;
        run("UPDATE consumed_offset SET group_id = group_id").await;
        run(kind.unlock()).await;
        pipeline.until_all_stored(Duration::from_secs(120)).await;
    }
    match kind {
        Kind::Mariadb => {
            let log = program.log();
            let deadlocks = log.matches("Deadlock found").count();
            assert!(deadlocks >= DEADLOCKS, "{log}");
        }
        _ => {
            let deadlocks = format!(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = '{}'",
                pipeline.database()
            );
            // Its statistics are delayed.
            pipeline.until_count(&deadlocks, DEADLOCKS as i64).await;
        }
    }
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
        pipeline.until_count(&pipeline.blocked(), 1).await;
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

async fn where_statements_time_out_smaller_pieces_are_written(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let url = pipeline.make_owner().await;
    pipeline.fill_numbered(&strategies::sample_event(), 100, 0);
    let program = pipeline.program_on(&url, "consumer", &[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;
    // A millisecond per row, so that a batch of the backlog takes seconds.
    let owner = pipeline.database();
    let (slow, limit, message) = match kind {
        Kind::Mariadb => (
            "CREATE TRIGGER slowly BEFORE INSERT ON task_metrics FOR EACH ROW DO SLEEP(0.001)",
            format!("ALTER USER {owner} WITH MAX_STATEMENT_TIME 0.1"),
            "max_statement_time exceeded",
        ),
        _ => (
            "CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$; \
             CREATE TRIGGER slowly BEFORE INSERT ON task_metrics FOR EACH ROW EXECUTE FUNCTION slowly()",
            format!("ALTER ROLE {owner} SET statement_timeout = '200ms'"),
            "statement timeout",
        ),
    };
    pipeline.execute(slow).await;
    pipeline.administer(&limit).await;
    pipeline.fill_numbered(&strategies::sample_event(), 4000, 0);
    let program = pipeline.program_on(&url, "consumer", &[]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    let log = program.log();
    assert!(log.contains(message), "the fault happened: {log}");
    program.stop().await;
}
