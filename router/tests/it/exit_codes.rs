//! Exit codes are the documented ones for every error and every destination of the output.

use std::path::Path;

use crate::support::{Settings, Topics, info};
use service::testing::invocation::{Invocation, Sink, helps};
use service::testing::kafka;

fn router() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_router"))
}

fn ends(arguments: &[&str], code: i32, words: &str) {
    Invocation::of(arguments).ends(router(), code, words);
}

#[test]
fn each_help_lists_the_exit_codes_and_ignores_closed_pipes_and_full_disks() {
    let commands: [&[&str]; 6] = [
        &[],
        &["audit"],
        &["dead-letters"],
        &["dead-letters", "list"],
        &["dead-letters", "show"],
        &["dead-letters", "redrive"],
    ];
    helps(router(), &commands);
}

/// A topic with events and a letter, and the arguments of the commands that read them.
async fn routed() -> Option<Topics> {
    let topics = Topics::make(kafka()?, 1, Settings::default()).await;
    let good: Vec<Vec<u8>> = (0..10)
        .filter_map(|i| schemas::encode_info(&info("exec-1", i)).ok())
        .collect();
    let good = good
        .iter()
        .map(|value| (Some("exec-1"), Some(&value[..]), None));
    topics.send(good);
    topics.send([(Some("exec-2"), Some(&b"no report"[..]), None)]);
    let router = topics.start("router-1");
    topics.outputs(11).await;
    router.stop().await;
    Some(topics)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn wrong_usage_ends_with_2_and_what_an_operator_has_to_change_with_78() {
    let wrong: [(&[&str], &str); 10] = [
        (&["--commit-interval-ms", "soon"], "--commit-interval-ms"),
        (&["--log-level", "router=loud"], "--log-level"),
        (&["-X", "fetch.min.bytes"], "KEY=VALUE"),
        (&["route"], "route"),
        (&["dead-letters"], "Usage"),
        (&["dead-letters", "show"], "P:OFFSET"),
        (&["dead-letters", "show", "first"], "first"),
        (&["dead-letters", "redrive"], "name the letters"),
        (&["dead-letters", "list", "--since", "yesterday"], "--since"),
        (&["audit", "--from", "yesterday"], "--from"),
    ];
    for (wrong, words) in wrong {
        ends(wrong, 2, words);
    }
    ends(&["--schemas", "/nonexistent"], 78, "--schemas");
    ends(&["audit", "--schemas", "/nonexistent"], 2, "could not tell");

    let Some(topics) = routed().await else { return };
    let absent = format!("{}-absent", topics.source);
    let own = topics.arguments();
    let without = |option: &str| {
        let mut arguments = own.clone();
        let at = arguments.iter().position(|argument| *argument == option);
        if let Some(at) = at {
            arguments[at + 1] = &absent;
        }
        arguments
    };
    for option in ["--source-topic", "--events-topic", "--dead-letters-topic"] {
        ends(&without(option), 78, &absent);
        ends(&[&["audit"], &without(option)[..]].concat(), 2, &absent);
    }
    let letters = [
        "--bootstrap-servers",
        &topics.bootstrap,
        "--dead-letters-topic",
    ];
    let commands: [(&[&str], i32, &str); 4] = [
        (&["list"], 0, "1 letter in"),
        (&["show", "0:0"], 0, "no report"),
        (&["show", "0:9999"], 2, "0:9999"),
        (&["redrive", "0:9999"], 2, "0:9999"),
    ];
    for (command, code, words) in commands {
        let of = |topic| [&["dead-letters"], command, &letters, &[topic]].concat();
        ends(&of(&topics.letters), code, words);
        ends(&of(&absent), 78, &absent);
    }
    let unknown = ["-X", "no.such.setting=1"];
    ends(&[&own[..], &unknown].concat(), 78, "no.such.setting");
    ends(
        &[&["audit"], &own[..], &unknown].concat(),
        2,
        "no.such.setting",
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_closed_pipe_or_full_disk_changes_no_verdict_and_loses_no_summary() {
    let Some(topics) = routed().await else { return };
    let to = |arguments: &[&str], stdout: Sink, stderr: Sink, code: i32, words: &str| {
        Invocation {
            stdout,
            stderr,
            ..Invocation::of(arguments)
        }
        .ends(router(), code, words);
    };
    let letters = [
        "--bootstrap-servers",
        &topics.bootstrap,
        "--dead-letters-topic",
        &topics.letters,
    ];
    let listings: [&[&str]; 4] = [
        &["list"],
        &["list", "--json"],
        &["show", "0:0"],
        &["redrive", "0:0", "--dry-run"],
    ];
    for listing in listings {
        let listing = [&["dead-letters"], listing, &letters].concat();
        to(&listing, Sink::ClosedPipe, Sink::Kept, 0, "");
        to(&listing, Sink::ClosedPipe, Sink::ClosedPipe, 0, "");
        to(
            &listing,
            Sink::Full,
            Sink::Kept,
            1,
            "cannot write to standard output",
        );
        to(&listing, Sink::Full, Sink::Full, 1, "");
    }

    let own = topics.arguments();
    for json in [&[][..], &["--json"]] {
        let audit = [&["audit"], &own[..], json].concat();
        to(&audit, Sink::Kept, Sink::Kept, 0, "equal");
        to(&audit, Sink::ClosedPipe, Sink::Kept, 0, "");
        to(&audit, Sink::ClosedPipe, Sink::ClosedPipe, 0, "");
        to(&audit, Sink::Full, Sink::Kept, 2, "could not tell");
        to(&audit, Sink::Full, Sink::Full, 2, "");
    }

    // Sent back to its source topic; the summary is in the log.
    let redrive =
        |more: &[&'static str]| [&["dead-letters", "redrive", "0:0"], &letters[..], more].concat();
    to(
        &redrive(&[]),
        Sink::Full,
        Sink::Kept,
        0,
        "1 letter redriven",
    );
    to(
        &redrive(&["--force"]),
        Sink::ClosedPipe,
        Sink::Kept,
        0,
        "1 letter redriven",
    );
    to(&redrive(&["--force"]), Sink::Full, Sink::Full, 0, "");
    // It was redriven before.
    to(&redrive(&[]), Sink::ClosedPipe, Sink::ClosedPipe, 2, "");
}
