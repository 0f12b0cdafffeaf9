//! Counts and rows of an answer are from one moment, whatever is stored meanwhile.

use std::path::Path;
use std::time::Duration;

use crate::support::{Kind, Pipeline, SERVERS, connect};
use service::testing::{Process, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const WITHIN: Duration = Duration::from_secs(120);

/// Tasks with one report each.
fn insert(kind: Kind, from: i64, count: i64) -> String {
    let old = match kind {
        Kind::Mariadb => "CAST(unix_timestamp() - 60 * 86400 AS signed) * 1000000",
        _ => "now() - interval '60 days'",
    };
    let rows = |row: fn(i64, &str) -> String| {
        let rows = (from..from + count).map(|i| row(i, old));
        rows.collect::<Vec<_>>().join(", ")
    };
    format!(
        "INSERT INTO task (task_id, exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, \
         is_final, reported_at, sequence, event_partition, event_offset) VALUES {}; \
         INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status) VALUES {}",
        rows(|i, old| format!(
            "({i}, 'exec-{i}', 'j', 'e', 't', 'u', '', 'Succeed', true, {old}, 1, 0, {i})"
        )),
        rows(|i, old| format!("({i}, 0, {i}, {old}, 1, 'Succeed')")),
    )
}

/// The output of a command that waits for these locks halfway, while more is stored.
async fn asked_meanwhile(pipeline: &Pipeline, locks: &str, arguments: &[&str]) -> String {
    let kind = pipeline.kind;
    let mut locker = connect(&pipeline.database_url).await;
    locker.run(locks).await.unwrap();
    let url = ["--database-url", pipeline.database_url.as_str()];
    let arguments = [arguments, &url].concat();
    let mut asked = Process::start(pipeline.folder(), "asked", Path::new(CONSUMER), &arguments);
    let waits = match kind {
        Kind::Mariadb => {
            "SELECT count(*) FROM information_schema.processlist WHERE db = database() \
             AND state = 'Waiting for table metadata lock'"
        }
        _ => {
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE \
             datname = current_database())"
        }
    };
    until("it waits for the lock", WITHIN, async || {
        (pipeline.count(waits).await > 0).then_some(())
    })
    .await;
    // MariaDB: the session of the locks can use only what it has locked.
    match kind == Kind::Mariadb && !locks.contains("task_progress") {
        true => pipeline.execute(&insert(kind, 100, 993)).await,
        false => locker.run(&insert(kind, 100, 993)).await.unwrap(),
    }
    let unlock = match kind {
        Kind::Mariadb => "UNLOCK TABLES",
        _ => "COMMIT",
    };
    locker.run(unlock).await.unwrap();
    assert_eq!(asked.ended().await.code(), Some(0), "{}", asked.log());
    asked.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_while_an_answer_is_put_together_is_in_none_of_its_parts() {
    for kind in SERVERS {
        let Some(pipeline) = Pipeline::make(kind, 1).await else {
            return;
        };
        pipeline.ask(&["migrate"]);
        pipeline.execute(&insert(kind, 1, 3)).await;

        // The first query reads the table of expiries.
        let lock = match kind {
            Kind::Mariadb => "LOCK TABLES task WRITE, task_progress WRITE",
            _ => "BEGIN; LOCK TABLE task IN ACCESS EXCLUSIVE MODE",
        };
        let tasks = asked_meanwhile(&pipeline, lock, &["tasks", "--limit", "2"]).await;
        assert!(tasks.contains("\n2 of 3 tasks in "), "{tasks}");
        assert!(tasks.contains("; 1 more with --limit 0"), "{tasks}");
        pipeline
            .execute("DELETE FROM task WHERE event_offset >= 100; DELETE FROM task_progress WHERE event_offset >= 100")
            .await;

        // Tables are read one after the other: in MariaDB this one second, in PostgreSQL this one last.
        let lock = match kind {
            Kind::Mariadb => "LOCK TABLES task_resource WRITE",
            _ => "BEGIN; LOCK TABLE task_progress IN ACCESS EXCLUSIVE MODE",
        };
        let expire = ["expire", "--older-than", "30d", "--dry-run", "--json"];
        let counted = asked_meanwhile(&pipeline, lock, &expire).await;
        assert!(counted.contains("\"task_progress\": 3"), "{counted}");
        assert!(counted.contains("\"task\": 3"), "{counted}");
    }
}
