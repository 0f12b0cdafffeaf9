//! Counts and rows of an answer are from one moment, whatever is stored meanwhile.

use std::path::Path;
use std::time::Duration;

use crate::support::{Kind, Pipeline, connect};
use service::testing::{Process, until};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const WITHIN: Duration = Duration::from_secs(120);

/// Tasks with one report each, inserted by one statement.
fn insert(from: i64, count: i64) -> String {
    let last = from + count - 1;
    format!(
        "WITH made AS (INSERT INTO task (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, \
         is_final, reported_at, sequence, event_partition, event_offset) \
         SELECT 'exec-' || i, 'j', 'e', 't', 'u', '', 'Succeed', true, now() - interval '60 days', 1, 0, i \
         FROM generate_series({from}, {last}) i RETURNING task_id, event_offset) \
         INSERT INTO task_progress (task_id, event_partition, event_offset, reported_at, sequence, status) \
         SELECT task_id, 0, event_offset, now() - interval '60 days', 1, 'Succeed' FROM made"
    )
}

/// The output of a command that waits for this lock halfway, while more is stored.
async fn asked_meanwhile(pipeline: &Pipeline, lock: &str, arguments: &[&str]) -> String {
    let mut other = connect(&pipeline.database_url).await;
    let locked = format!("BEGIN; LOCK TABLE {lock} IN ACCESS EXCLUSIVE MODE");
    other.run(&locked).await.unwrap();
    let url = ["--database-url", pipeline.database_url.as_str()];
    let arguments = [arguments, &url].concat();
    let mut asked = Process::start(pipeline.folder(), "asked", Path::new(CONSUMER), &arguments);
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE \
         datname = current_database())";
    until("it waits for the lock", WITHIN, async || {
        (pipeline.count(waits).await > 0).then_some(())
    })
    .await;
    other.run(&insert(100, 993)).await.unwrap();
    other.run("COMMIT").await.unwrap();
    assert_eq!(asked.ended().await.code(), Some(0), "{}", asked.log());
    asked.log()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_while_an_answer_is_put_together_is_in_none_of_its_parts() {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 1).await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    pipeline.execute(&insert(1, 3)).await;

    // The first query reads the table of expiries.
    let tasks = asked_meanwhile(&pipeline, "task", &["tasks", "--limit", "2"]).await;
    assert!(tasks.contains("\n2 of 3 tasks in "), "{tasks}");
    assert!(tasks.contains("; 1 more with --limit 0"), "{tasks}");
    pipeline
        .execute("DELETE FROM task WHERE event_offset >= 100; DELETE FROM task_progress WHERE event_offset >= 100")
        .await;

    // Tables are read one after the other, this one last.
    let expire = ["expire", "--older-than", "30d", "--dry-run", "--json"];
    let counted = asked_meanwhile(&pipeline, "task_progress", &expire).await;
    assert!(counted.contains("\"task_progress\": 3"), "{counted}");
    assert!(counted.contains("\"task\": 3"), "{counted}");
}
