//! Connecting: a database URL means the same to every command, and a network fault is distinguished from a slow
//! database.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::sql::Sql;
use crate::strategies;
use crate::support::{Cluster, Kind, Pipeline, Pooler, Proxy, connect, execute, on_servers};
use futures_util::future::join_all;
use service::testing::{Process, until};

const WITHIN: Duration = Duration::from_secs(120);

/// Stores events with `consumer run` under a URL of the pipeline's database, and queries them with every other command.
async fn every_command_answers(pipeline: &mut Pipeline, url: &str) {
    pipeline.fill_numbered(&strategies::sample_event(), 300, 0);
    let mut program = pipeline.program_on(url, "consumer", &[]);
    program.until_ready().await;
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    commands_answer(pipeline, url);
}

fn commands_answer(pipeline: &mut Pipeline, url: &str) {
    let own = std::mem::replace(&mut pipeline.database_url, url.to_owned());
    let tasks = pipeline.ask(&["tasks", "--json", "--limit", "0"]);
    assert_eq!(tasks.matches("\"exec_id\"").count(), 97, "{tasks}");
    let task = pipeline.ask(&["task", "exec-05", "--json"]);
    assert!(task.contains("\"reports\": 4"), "{task}");
    assert!(pipeline.ask(&["migrate"]).contains("is up to date"));
    let expired = pipeline.ask(&["expire", "--older-than", "0s", "--dry-run", "--json"]);
    assert!(expired.contains("\"task\": 97"), "{expired}");
    let copy = format!("sqlite:{}", pipeline.folder().join("copy.db").display());
    let kafka = [
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
    ];
    pipeline.ask(&[&["replay", "--into", &copy], &kafka[..]].concat());
    let diff = pipeline.ask(&[&["diff", url, &copy], &kafka[2..]].concat());
    assert!(diff.contains("equal"), "{diff}");
    let audit = pipeline.ask(&[&["audit"], &kafka[..]].concat());
    assert!(audit.contains("equal"), "{audit}");
    pipeline.database_url = own;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_answers_from_the_schema_that_the_url_names() {
    let Some(mut pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    pipeline.execute("CREATE SCHEMA ours").await;
    let name = pipeline.database().to_owned();
    pipeline
        .administer(&format!("ALTER DATABASE {name} SET search_path = ours"))
        .await;
    let url = format!("{}?options=-csearch_path%3Dours", pipeline.database_url);
    every_command_answers(&mut pipeline, &url).await;
    let elsewhere = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(pipeline.count(elsewhere).await, 0);
    // The URL takes precedence over the database's setting.
    let url = url.replace("ours", "public");
    pipeline.database_url = url;
    let failed = pipeline.fails(&["tasks"], 78);
    assert!(failed.contains("\"expiry\" does not exist"), "{failed}");
}

/// The first host does not answer, the second is read-only: each command finds the third.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_reachable_writable_host_of_several_is_used() {
    let Some(read_only) = Cluster::start(&["default_transaction_read_only=on"]) else {
        return;
    };
    let Some(mut pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let name = pipeline.database().to_owned();
    let writable = format!(
        "{}?options=-cdefault_transaction_read_only%3Doff",
        read_only.url
    );
    execute(&writable, &format!("CREATE DATABASE {name}")).await;
    let host = |url: &str| {
        let (authority, _) = url.rsplit_once('/').unwrap();
        authority.rsplit_once('@').unwrap().1.to_owned()
    };
    let own = pipeline.database_url.clone();
    let hosts = format!("127.0.0.1:1,{},{}", host(&read_only.url), host(&own));
    let url = format!("postgres://postgres@{hosts}/{name}");
    pipeline.fill_numbered(&strategies::sample_event(), 300, 0);
    let mut program = pipeline.program_on(&url, "consumer", &[]);
    program.until_ready().await;
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    commands_answer(
        &mut pipeline,
        &format!("{url}?target_session_attrs=read-write"),
    );
    // As in psql, the first host that accepts a connection.
    pipeline.database_url = format!("{url}?target_session_attrs=read-only");
    let failed = pipeline.fails(&["tasks"], 78);
    assert!(failed.contains("\"expiry\" does not exist"), "{failed}");
    pipeline.database_url = format!("{url}?target_session_attrs=standby");
    let failed = pipeline.fails(&["tasks"], 1);
    assert_eq!(failed.matches("is not a standby").count(), 2, "{failed}");
    pipeline.database_url = format!("{url}?target_session_attrs=best");
    let failed = pipeline.fails(&["tasks"], 2);
    assert!(failed.contains("prefer-standby"), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_that_gives_each_session_a_connection_every_command_works() {
    let Some(mut pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let Some(pooler) = Pooler::start(&pipeline.database_url, "session").await else {
        return;
    };
    let url = pooler.url(&pipeline.database_url);
    every_command_answers(&mut pipeline, &url).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_transaction_pooler_the_consumer_says_what_to_do() {
    let Some(mut pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let Some(pooler) = Pooler::start(&pipeline.database_url, "transaction").await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    pipeline.database_url = pooler.url(&pipeline.database_url);
    // An answer is one transaction.
    pipeline.ask(&["tasks"]);
    pipeline.ask(&["tasks"]);
    // Both prepare statements in the pooler's one session, under the same names.
    pipeline.ask(&["migrate"]);
    let failed = pipeline.fails(&["migrate"], 78);
    assert!(
        failed.contains("already exists") && failed.contains("session mode"),
        "{failed}"
    );
    let log = pipeline.program("consumer", &[]).needs_attention().await;
    assert!(log.contains("session mode"), "{log}");
    // A parameter that the pooler rejects.
    pipeline.database_url += "?options=-csearch_path%3Dours";
    let failed = pipeline.fails(&["tasks"], 78);
    assert!(
        failed.contains("unsupported startup parameter") && failed.contains("connect directly"),
        "{failed}"
    );
}

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// Starts a command with this name.
fn start(pipeline: &Pipeline, name: &str, url: &str, arguments: &[&str]) -> Process {
    let program = std::path::Path::new(CONSUMER);
    let database = [("DATABASE_URL", url)];
    Process::start_with(pipeline.folder(), name, program, arguments, &database)
}

on_servers!(
    a_server_that_never_answers_is_given_up_by_each_command_and_named_by_those_that_wait,
    #[ignore = "heavy"]
    a_stream_that_goes_dead_in_the_middle_ends_an_audit,
    #[ignore = "heavy"]
    a_server_that_is_at_work_or_waits_for_a_lock_is_waited_for,
);

/// A server that accepts connections and data, but never answers.
async fn a_server_that_never_answers_is_given_up_by_each_command_and_named_by_those_that_wait(
    kind: Kind,
) {
    let (Some(pipeline), Some(other)) =
        (Pipeline::make(kind, 1).await, Pipeline::make(kind, 1).await)
    else {
        return;
    };
    let proxy = Proxy::to(&pipeline.database_url).await;
    proxy.set_silent(true);
    let url = proxy.url(&pipeline.database_url);
    let into = proxy.url(&other.database_url);
    let kafka = [
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
    ];
    let message = "no connection within 10 s";
    let begun = Instant::now();
    let mut running = pipeline.program_on(&url, "run", &[]);
    let mut replay = start(
        &pipeline,
        "replay",
        &pipeline.database_url,
        &[&["replay", "--into", &into], &kafka[..]].concat(),
    );
    let ending = [
        (1, vec!["migrate"]),
        (1, vec!["tasks"]),
        (1, vec!["task", "exec-1"]),
        (1, vec!["expire", "--older-than", "1d"]),
        (2, vec!["diff", &url, &pipeline.database_url]),
        (2, [&["audit"], &kafka[..]].concat()),
    ];
    join_all(ending.iter().map(async |(code, arguments)| {
        let mut command = start(&pipeline, arguments[0], &url, arguments);
        let status = command.ended().await;
        let log = command.log();
        assert_eq!(status.code(), Some(*code), "{arguments:?}: {log}");
        assert!(log.contains(message), "{arguments:?}: {log}");
    }))
    .await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
    running.until_waiting(&[kind.product(), message]).await;
    let waits = async || replay.log().contains(message).then_some(());
    until("the replay says what it waits for", WITHIN, waits).await;
    replay.assert_running();
    // The server is back.
    proxy.set_silent(false);
    running.until_ready().await;
    running.stop().await;
    assert_eq!(replay.ended().await.code(), Some(0), "{}", replay.log());
}

/// The other end of a connection goes silent, and new connections too. (In MariaDB, the locks of a dead connection outlast
/// this test.)
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_dead_connection_under_load_is_not_mistaken_for_a_slow_database() {
    one_that_dies_under_load(2_000, &[]).await;
}

/// Halves of 900 events are written on two connections; then, at most 900 on one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn of_two_connections_that_died_neither_keeps_its_locks() {
    one_that_dies_under_load(6_000, &["--max-events", "1800"]).await;
}

/// Dies after so many bytes of the server.
async fn one_that_dies_under_load(bytes: i64, more: &[&str]) {
    let Some(pipeline) = Pipeline::make(Kind::Postgres, 2).await else {
        return;
    };
    let proxy = Proxy::to(&pipeline.database_url).await;
    let url = proxy.url(&pipeline.database_url);
    let sample = strategies::sample_event();
    let mut program = pipeline.program_on(&url, "consumer", more);
    pipeline.fill_numbered(&sample, 500, 0);
    pipeline.until_all_stored(WITHIN).await;
    program.until_ready().await;
    proxy.silent_after(bytes);
    pipeline.fill_numbered(&sample, 20_000, 0);
    program.until_waiting(&["PostgreSQL", "no "]).await;
    proxy.silent_after(i64::MAX);
    proxy.set_silent(false);
    pipeline.until_all_stored(WITHIN).await;
    program.until_ready().await;
    pipeline.assert_each_once(&BTreeSet::new()).await;
    let log = program.log();
    let halved = log.matches("storing at most").count();
    assert!(halved <= 1, "halved {halved} times:\n{log}");
    program.stop().await;
}

async fn a_stream_that_goes_dead_in_the_middle_ends_an_audit(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    let program = pipeline.program("consumer", &[]);
    pipeline.fill_numbered(&sample, 20_000, 0);
    pipeline.until_all_stored(WITHIN).await;
    program.stop().await;
    let proxy = Proxy::to(&pipeline.database_url).await;
    let url = proxy.url(&pipeline.database_url);
    proxy.silent_after(500_000);
    let audit = [
        "audit",
        "--bootstrap-servers",
        &pipeline.bootstrap,
        "--events-topic",
        &pipeline.events,
    ];
    let mut audit = start(&pipeline, "audit", &url, &audit);
    let status = audit.ended().await;
    let log = audit.log();
    assert_eq!(status.code(), Some(2), "{log}");
    // Detected on the connection itself, or by the connection that checks the server.
    let waits = ["no answer within", "no connection within"];
    assert!(waits.iter().any(|wait| log.contains(wait)), "{log}");
}

/// Longer than the time after which the server is checked. MariaDB has no connection to spare for the check.
async fn a_server_that_is_at_work_or_waits_for_a_lock_is_waited_for(kind: Kind) {
    let cluster = match kind {
        Kind::Mariadb => Cluster::mariadb(|_| vec!["max_connections=10".to_owned()]),
        _ => Cluster::of(kind),
    };
    let Some(cluster) = cluster else { return };
    let Some(pipeline) = Pipeline::make_on(Some(&cluster.url), 1, "").await else {
        return;
    };
    pipeline.ask(&["migrate"]);
    let mut other = connect(&pipeline.database_url).await;
    if kind == Kind::Mariadb {
        let owner = pipeline.make_owner().await;
        other.run("LOCK TABLES task WRITE").await.unwrap();
        let mut waits = start(&pipeline, "tasks", &owner, &["tasks"]);
        let is_blocked = "SELECT count(*) FROM information_schema.processlist WHERE state = 'Waiting for table metadata lock'";
        pipeline.until_count(is_blocked, 1).await;
        // Users without all rights get no other connection.
        let mut others = Vec::new();
        while others.len() < 20
            && let Ok(another) = Sql::connect(&owner).await
        {
            others.push(another);
        }
        let refused = Sql::connect(&owner).await.err().unwrap().to_string();
        assert!(refused.contains("Too many connections"), "{refused}");
        let refusals = "SELECT CAST(variable_value AS signed) FROM information_schema.global_status \
             WHERE variable_name = 'CONNECTION_ERRORS_MAX_CONNECTIONS'";
        let mut administrator = connect(&cluster.url).await;
        let before = administrator.number(refusals).await.unwrap();
        until("it is checked", WITHIN, async || {
            (administrator.number(refusals).await.unwrap() > before).then_some(())
        })
        .await;
        waits.assert_running();
        other.run("UNLOCK TABLES").await.unwrap();
        assert_eq!(waits.ended().await.code(), Some(0), "{}", waits.log());
        return;
    }
    let lock = "BEGIN; LOCK TABLE _sqlx_migrations IN ACCESS EXCLUSIVE MODE";
    other.run(lock).await.unwrap();
    let mut migrate = start(&pipeline, "migrate", &pipeline.database_url, &["migrate"]);
    let is_waiting = async || {
        migrate
            .log()
            .contains("waiting for Lock relation")
            .then_some(())
    };
    until("it says what it waits for", WITHIN, is_waiting).await;
    migrate.assert_running();
    other.run("ROLLBACK").await.unwrap();
    assert_eq!(migrate.ended().await.code(), Some(0), "{}", migrate.log());
}
