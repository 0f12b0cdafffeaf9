//! Exit codes are those of the table, whatever is wrong and wherever the output goes.

use std::path::Path;

use crate::support::Reports;
use service::testing::NOBODY;
use service::testing::invocation::{Invocation, Sink, helps};

const GOOD: &str = r#"{"execId":"exec-1","jobId":"job-1","engine":{"instance":"node-1:1","engineType":"shell"},"status":"Running"}
"#;
const BAD: &str = "no JSON\n";

fn producer() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_producer"))
}

fn ends(arguments: &[&str], code: i32, words: &str) {
    Invocation::of(arguments).ends(producer(), code, words);
}

#[test]
fn each_help_lists_the_exit_codes_and_ignores_closed_pipes_and_full_disks() {
    let commands: [&[&str]; 4] = [&[], &["spark"], &["publish"], &["simulate"]];
    helps(producer(), &commands);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_ends_with_2_and_what_an_operator_has_to_change_with_78() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let missing = format!("{folder}/missing.jsonl");
    let wrong: [(&[&str], &str); 10] = [
        (&[], "Usage"),
        (&["send"], "send"),
        (&["publish", "--on-error", "ignore"], "--on-error"),
        (&["publish", "--log-level", "producer=loud"], "--log-level"),
        (&["publish", &missing], "missing.jsonl"),
        (&["publish", folder], folder),
        (&["simulate", "--rate", "fast"], "--rate"),
        (&["simulate", "--count", "1", "--for", "1s"], "--count"),
        (&["spark"], "--url"),
        (&["spark", "--url", "localhost 4040"], "localhost 4040"),
    ];
    for (wrong, words) in wrong {
        ends(wrong, 2, words);
    }

    let Some(mut reports) = Reports::make("exit-codes").await else {
        return;
    };
    let publish = reports.arguments(&["publish"]);
    let input = [GOOD, BAD].concat();
    Invocation {
        input: input.as_bytes(),
        ..Invocation::of(&publish)
    }
    .ends(producer(), 2, "line 2");
    ends(
        &reports.arguments(&["simulate", "--start-at=-009000-01-01T00:00:00Z"]),
        2,
        "--start-at",
    );
    ends(
        &reports.arguments(&["publish", "-X", "no.such.setting=1"]),
        78,
        "no.such.setting",
    );
    reports.topic += "-absent";
    let spark = ["spark", "--url", "http://localhost:4040"];
    for command in [&["publish"][..], &["simulate"], &spark] {
        ends(&reports.arguments(command), 78, &reports.topic);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn a_closed_pipe_and_a_full_disk_lose_no_word_on_what_was_sent() {
    let Some(reports) = Reports::make("exit-codes").await else {
        return;
    };
    let nobody = format!("http://{NOBODY}");
    let spark = ["spark", "--url", &nobody, "--give-up-after", "1s"];
    let bad = [GOOD, BAD].concat();
    let commands: [(&[&str], &str, i32, &str); 4] = [
        (&["publish"], GOOD, 0, "sent 1 report"),
        (&["publish"], &bad, 2, "sent 1 report"),
        (&["simulate", "--count", "10"], "", 0, "sent 10 reports"),
        (&spark, "", 1, "sent 0 reports"),
    ];
    for (command, input, code, words) in commands {
        let arguments = reports.arguments(command);
        for (stdout, stderr) in [
            (Sink::Kept, Sink::ClosedPipe),
            (Sink::Kept, Sink::Full),
            (Sink::ClosedPipe, Sink::Kept),
            (Sink::Full, Sink::Kept),
            (Sink::ClosedPipe, Sink::ClosedPipe),
            (Sink::Full, Sink::Full),
        ] {
            let is_read = stdout == Sink::Kept || stderr == Sink::Kept;
            Invocation {
                arguments: &arguments,
                input: input.as_bytes(),
                stdout,
                stderr,
            }
            .ends(producer(), code, if is_read { words } else { "" });
        }
    }
}
