//! `consumer top` in its own terminal, and without one.

use std::path::Path;
use std::process::Command;

use crate::strategies;
use crate::support::{Kind, Pipeline, numbered};
use service::testing::service;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/top/terminal.py");

/// A pipeline with three stored tasks, one of them with a hostile name.
async fn stored() -> Option<Pipeline> {
    let pipeline = Pipeline::make(Kind::Sqlite, 1).await?;
    let sample = strategies::sample_event();
    let mut events: Vec<_> = (0..3).map(|i| numbered(&sample, i)).collect();
    for (i, event) in events.iter_mut().enumerate() {
        event.info.exec_id = format!("exec-{}", i + 1);
    }
    events[0].info.exec_id = "\u{1b}]0;owned\u{7}\u{202e}\u{2066}".to_owned();
    pipeline.send_events(&events);
    pipeline.store_all().await;
    Some(pipeline)
}

/// Runs a part of the script with `consumer top` and these arguments.
fn play(python: &str, part: &[&str], arguments: &[&str]) {
    let played = Command::new(python)
        .arg(SCRIPT)
        .args(part)
        .arg(CONSUMER)
        .args(["top", "--interval", "200ms"])
        .args(arguments)
        .env("TERM", "xterm-256color")
        .env_remove("DATABASE_URL")
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&played.stderr);
    assert!(played.status.success(), "{part:?}: {message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_and_signals_leave_the_terminal_as_it_was() {
    let Some(python) = service("TEST_PYTHON") else {
        return;
    };
    let Some(pipeline) = stored().await else {
        return;
    };
    let database = ["--database-url", &pipeline.database_url];
    play(&python, &["keys"], &database);
    play(&python, &["signals"], &database);
    let file = pipeline.database_url.strip_prefix("sqlite:").unwrap();
    assert!(Path::new(file).exists());
    play(&python, &["away", file], &database);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_shows_what_the_database_shows() {
    let Some(pipeline) = stored().await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    let printed = |arguments: &[&str]| {
        let output = Command::new(CONSUMER)
            .args(arguments)
            .env_remove("DATABASE_URL")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let database = ["--database-url", &pipeline.database_url];
    for filter in [
        &[][..],
        &["--running", "--order", "progress"],
        &["--exec-id-prefix", "exec-", "--order", "memory"],
    ] {
        let of_database = printed(&[&["tasks"], filter, &database].concat());
        let top = printed(&[&["top"], filter, &database].concat());
        assert_eq!(top, of_database);
        let api = printed(&[&["top", "--url", &server.origin], filter].concat());
        // Without the last line, which differs: it names the source, and only a database knows the total.
        let (of_database, _) = of_database.trim_end().rsplit_once('\n').unwrap();
        let (of_api, place) = api.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(of_api, of_database);
        assert!(
            place.ends_with(&format!(" in {}", server.origin)),
            "{place}"
        );
    }
    if let Some(python) = service("TEST_PYTHON") {
        play(&python, &["keys"], &["--url", &server.origin]);
    }
    server.stop().await;
}
