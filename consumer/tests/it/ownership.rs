//! A database belongs to one events topic: every command refuses another one, names both, and changes nothing.

use std::process::Command;
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};
use service::testing::until;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

on_every_database!(
    a_database_refuses_the_events_of_another_topic_and_keeps_its_rows,
    of_two_topics_that_start_together_on_an_empty_database_one_gets_in,
    a_database_that_holds_two_topics_is_refused_by_every_command,
);

impl Pipeline {
    /// Runs `consumer` with these arguments on this database; returns exit code and output.
    fn command(&self, database_url: &str, arguments: &[&str], topic: &str) -> (i32, String) {
        let output = Command::new(CONSUMER)
            .args(arguments)
            .args(["--bootstrap-servers", &self.bootstrap])
            .args(["--database-url", database_url])
            .env("EVENTS_TOPIC", topic)
            .env("DEAD_LETTERS_TOPIC", &self.letters)
            .output()
            .unwrap();
        let printed = [output.stdout, output.stderr].concat();
        let printed = String::from_utf8(printed).unwrap();
        (output.status.code().unwrap(), printed)
    }

    /// Runs `consumer diff` on two databases.
    fn diff(&self, one: &str, other: &str, topic: &str) -> (i32, String) {
        let output = Command::new(CONSUMER)
            .args(["diff", one, other, "--events-topic", topic])
            .output()
            .unwrap();
        let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), printed)
    }
}

fn assert_names(printed: &str, names: &[&str]) {
    for name in names {
        assert!(printed.contains(name), "{name} is not in: {printed}");
    }
}

async fn a_database_refuses_the_events_of_another_topic_and_keeps_its_rows(kind: Kind) {
    let (Some(ours), Some(theirs)) = (
        Pipeline::make(kind, 2).await,
        Pipeline::make(Kind::Sqlite, 2).await,
    ) else {
        return;
    };
    let sample = strategies::sample_event();
    ours.fill_numbered(&sample, 200, 0);
    theirs.fill_numbered(&sample, 100, 0);
    ours.store_all().await;
    theirs.store_all().await;
    let contents = ours.contents().await;
    let names = [ours.events.as_str(), theirs.events.as_str()];

    let (database, topic) = (ours.database_url.as_str(), theirs.events.as_str());
    for audit in [&["audit"][..], &["audit", "--repair"]] {
        let (code, printed) = ours.command(database, audit, topic);
        assert_eq!(code, 2, "{printed}");
        assert_names(&printed, &names);
    }
    let into = ["replay", "--into", database];
    let (code, printed) = theirs.command(&theirs.database_url, &into, topic);
    assert_eq!(code, 78, "{printed}");
    assert_names(&printed, &names);
    let (code, printed) = ours.diff(database, &theirs.database_url, topic);
    assert_eq!(code, 2, "{printed}");
    assert_names(&printed, &names);
    let log = theirs
        .program_on(database, "other", &[])
        .needs_attention()
        .await;
    assert_names(&log, &names);
    assert_eq!(ours.contents().await, contents);
    let (code, printed) = ours.command(database, &["audit"], &ours.events);
    assert_eq!(code, 0, "{printed}");
}

async fn of_two_topics_that_start_together_on_an_empty_database_one_gets_in(kind: Kind) {
    let (Some(ours), Some(theirs)) = (
        Pipeline::make(kind, 4).await,
        Pipeline::make(Kind::Sqlite, 4).await,
    ) else {
        return;
    };
    let sample = strategies::sample_event();
    ours.fill_numbered(&sample, 400, 0);
    theirs.fill_numbered(&sample, 400, 0);
    let database = &ours.database_url;
    let mut programs = [
        ours.program_on(database, "one", &[]),
        theirs.program_on(database, "other", &[]),
    ];
    until("one has ended", Duration::from_secs(120), async || {
        let ended = programs
            .iter_mut()
            .map(|one| one.process.status().is_some());
        ended.reduce(|one, other| one || other)?.then_some(())
    })
    .await;
    let (mut out, mut inside) = (None, None);
    for (pipeline, mut program) in [&ours, &theirs].into_iter().zip(programs) {
        match program.process.status() {
            Some(_) => out = Some(program.needs_attention().await),
            None => inside = Some((pipeline, program)),
        }
    }
    let (pipeline, program) = inside.expect("both have ended");
    assert_names(&out.unwrap(), &[&ours.events, &theirs.events]);
    let rows = "SELECT count(*) FROM task_progress";
    ours.until_count(rows, 400).await;
    program.stop().await;
    assert_eq!(ours.count(rows).await, 400);
    let topics = ours
        .rows("SELECT DISTINCT topic FROM consumed_offset")
        .await;
    assert_eq!(topics, [[Some(pipeline.events.clone())]]);
}

async fn a_database_that_holds_two_topics_is_refused_by_every_command(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 50, 0);
    pipeline.store_all().await;
    // As older consumers could leave it.
    let columns = "partition, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, anchor_crc32, group_id, \
         updated_at, first_offset";
    let second = format!(
        "INSERT INTO consumed_offset (part, topic, {columns}) SELECT part, 'the-second', {columns} FROM consumed_offset"
    );
    pipeline.execute(&second).await;
    let contents = pipeline.contents().await;
    let names = [pipeline.events.as_str(), "the-second", "2 topics"];
    let database = pipeline.database_url.as_str();
    for audit in [&["audit"][..], &["audit", "--repair"]] {
        let (code, printed) = pipeline.command(database, audit, &pipeline.events);
        assert_eq!(code, 2, "{printed}");
        assert_names(&printed, &names);
    }
    let other = format!("sqlite:{}", pipeline.folder().join("other.db").display());
    let replay = ["replay", "--into", &other];
    let (code, printed) = pipeline.command(database, &replay, &pipeline.events);
    assert_eq!(code, 0, "{printed}");
    let (code, printed) = pipeline.diff(database, &other, &pipeline.events);
    assert_eq!(code, 2, "{printed}");
    assert_names(&printed, &names);
    let log = pipeline.program("refused", &[]).needs_attention().await;
    assert_names(&log, &names);
    assert_eq!(pipeline.contents().await, contents);
}
