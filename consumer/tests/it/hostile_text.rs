//! Records with control, bidirectional and invisible characters, through the real programs: no output or log contains
//! such a character, and JSON output has the exact text.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::strategies;
use crate::support::{Kind, Pipeline, Program};
use schemas::{MetricValue, TaskRunningInfo};
use serde_json::Value;
use service::testing::{ANY_PORT, Process, program};
use service::text::is_hidden;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// A forged log line, a terminal command, reordered text, invisible characters, and HTML.
const HOSTILE: &str = "x\n2026-11-29T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}2J\u{202e}\u{2067}\u{200b}\u{2028}\u{feff}\u{ad}\u{e0041}\u{e007f}<b a='1' c=\"2\">&amp;任务👩\u{200d}🚀";

fn hostile() -> TaskRunningInfo {
    let mut info = strategies::sample_event().info;
    let text = || HOSTILE.to_owned();
    info.exec_id = text();
    info.job_id = text();
    info.engine.instance = text();
    info.engine.engine_type = text();
    info.engine.user = text();
    info.engine.ticket_id = text();
    for job in &mut info.progress.as_mut().unwrap().progress_info {
        job.id = text();
    }
    let applications = &mut info.resource.as_mut().unwrap().applications;
    let mut held = applications.pop_first().unwrap().1;
    (held.job_status, held.queue) = (text(), text());
    applications.insert(text(), held);
    let metrics = info.metrics.as_mut().unwrap();
    metrics.insert(text(), MetricValue::String(text()));
    info
}

/// Asserts that a text has no hidden characters except its own line breaks.
fn assert_safe(what: &str, text: &str) {
    // Joiners within an emoji are part of a visible character.
    let text = text.replace("👩\u{200d}🚀", "");
    let hidden = text.chars().find(|c| is_hidden(*c) && *c != '\n');
    assert_eq!(hidden, None, "{what}:\n{}", text.escape_debug());
    let forged = text
        .lines()
        .any(|line| line.starts_with("2026-11-29T00:00:00Z"));
    assert!(!forged, "{what}:\n{text}");
}

struct Ran {
    code: Option<i32>,
    printed: String,
    log: String,
}

impl Ran {
    fn expect(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.printed, self.log);
        self.printed
    }

    fn json(self, code: i32) -> Value {
        let printed = self.expect(code);
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
    }
}

fn run(name: &str, arguments: &[&str], input: &str) -> Ran {
    let path = match name {
        "consumer" => Path::new(CONSUMER).to_owned(),
        name => program(CONSUMER, name),
    };
    let mut child = Command::new(path)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may exit before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let ran = Ran {
        code: output.status.code(),
        printed: String::from_utf8(output.stdout).unwrap(),
        log: String::from_utf8(output.stderr).unwrap(),
    };
    let what = format!("{name} {}", arguments[0]);
    assert_safe(&what, &ran.printed);
    assert_safe(&what, &ran.log);
    ran
}

#[tokio::test(flavor = "multi_thread")]
async fn no_program_prints_or_logs_a_hidden_character_of_a_record() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let path = |name: &str| pipeline.folder().join(name).display().to_string();

    // Hostile input for the producer: one good line, the others invalid in ways that errors quote.
    let good = serde_json::to_value(hostile()).unwrap();
    let mut unknown_field = good.clone();
    unknown_field[HOSTILE] = 1.into();
    let mut wrong_status = good.clone();
    wrong_status["status"] = HOSTILE.into();
    let mut invisible = good.clone();
    invisible["execId"] = "\u{202e}\u{200b}\u{2028}\u{e0041}".into();
    let lines: Vec<String> = [&good, &unknown_field, &wrong_status, &invisible]
        .map(|line| line.to_string() + "\n")
        .into();
    let producing = ["--bootstrap-servers", &pipeline.bootstrap];
    let producing = [&producing[..], &["--topic", &pipeline.source]].concat();
    for format in ["text", "json"] {
        let publish = ["publish", "--on-error", "skip", "--log-format", format];
        let published = run(
            "producer",
            &[&publish[..], &producing].concat(),
            &lines.concat(),
        );
        assert!(
            published.log.contains("has no visible character"),
            "{}",
            published.log
        );
        assert_eq!(published.expect(2), "sent 1 report, 3 bad lines\n");
    }

    // Kafka may contain unchecked records.
    let mut unusable = hostile();
    unusable.engine.user = HOSTILE.repeat(9);
    let mut blank = hostile();
    blank.exec_id = "\u{202e}\u{200b}\u{2028}\u{e0041}".to_owned();
    pipeline.send_infos(&[unusable, blank.clone()]);
    let json = format!("{{{HOSTILE:?}: \u{202e}\u{1b}");
    pipeline.send(&pipeline.source, &[(HOSTILE, json.into_bytes(), None)]);
    let mut arguments = pipeline.router_arguments();
    arguments.extend(["--instance-id", "router-1", "--metrics-listen", ANY_PORT]);
    let router = program(CONSUMER, "router");
    let process = Process::start(pipeline.folder(), "router", &router, &arguments);
    let router = Program { process };
    router.until_logged("UnknownFraming").await;

    // An event from an older router.
    let mut event = strategies::sample_event();
    event.info.exec_id = blank.exec_id.clone();
    pipeline.send_events(&[event]);
    let mut unreadable = hostile();
    unreadable.engine.running_tasks = -1;
    let mut event = strategies::sample_event();
    event.source.topic = pipeline.source.clone();
    event.source.topic_id = None;
    (event.source.partition, event.source.offset) = (0, 0);
    event.info = unreadable;
    pipeline.send_events(&[event]);
    let consumer = pipeline.program("consumer", &[]);
    consumer.until_logged("NotRouted").await;
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    let stored = pipeline.rows("SELECT exec_id FROM task ORDER BY 1").await;
    assert_eq!(stored, [[Some(HOSTILE.to_owned())], [Some(blank.exec_id)]]);
    for (name, program) in [("router", &router), ("consumer", &consumer)] {
        assert_safe(name, &program.log());
        let (_, metrics) = program.process.get("/metrics").unwrap();
        assert_safe(name, &metrics);
    }
    let log = router.log();
    assert!(
        log.contains("BlankIdentifier") && log.contains(r"\u{202e}"),
        "{log}"
    );
    router.stop().await;
    consumer.stop().await;

    // The tables, as text and as JSON.
    let url = ["--database-url", &pipeline.database_url];
    let ask = |arguments: &[&str]| run("consumer", &[arguments, &url].concat(), "");
    let table = ask(&["tasks"]).expect(0);
    assert!(
        table.contains(r"\u{202e}") && table.contains("任务"),
        "{table}"
    );
    ask(&["task", HOSTILE]).expect(0);
    assert_ne!(ask(&["task", &HOSTILE.repeat(2)]).code, Some(0));
    let tasks = ask(&["tasks", "--json"]).json(0);
    let ids: Vec<&str> = tasks
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["exec_id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&HOSTILE), "{ids:?}");
    let task = ask(&["task", HOSTILE, "--json"]).json(0);
    assert_eq!(task["resource"][0]["application_id"], HOSTILE, "{task}");

    // Dead letters of router and consumer.
    let dead_letters = |arguments: &[&str]| {
        let more = ["--bootstrap-servers", &pipeline.bootstrap];
        let more = [&more[..], &["--dead-letters-topic", &pipeline.letters]].concat();
        run(
            "router",
            &[&["dead-letters"], arguments, &more].concat(),
            "",
        )
    };
    dead_letters(&["list"]).expect(0);
    let letters = dead_letters(&["list", "--json"]).json(0);
    let letters = letters.as_array().unwrap();
    assert!(letters.iter().any(|letter| letter["key"] == HOSTILE));
    let of_kind = |kind| {
        letters
            .iter()
            .filter(move |letter| letter["reason"] == kind)
    };
    assert_eq!(of_kind("BlankIdentifier").count(), 1);
    for letter in letters {
        let place = format!("{}:{}", letter["partition"], letter["offset"]);
        dead_letters(&["show", &place]).expect(0);
        dead_letters(&["redrive", &place, "--dry-run"]);
    }

    // Audits, including one of altered tables, and a comparison.
    let audit = [&["audit"], &pipeline.router_arguments()[..]].concat();
    run("router", &audit, "").expect(1);
    run("router", &[&audit[..], &["--json"]].concat(), "").json(1);
    let copy = format!("sqlite:{}", path("copy.db"));
    let events = ["--bootstrap-servers", &pipeline.bootstrap, "--events-topic"];
    let events = [&events[..], &[&pipeline.events]].concat();
    let replay = [&["replay", "--into", &copy], &events[..]].concat();
    assert!(ask(&replay).expect(0).contains("skipped"));
    pipeline
        .execute("UPDATE task_resource SET queue = queue || queue; DELETE FROM task_metrics")
        .await;
    let (page, data) = (path("report.html"), path("report.json"));
    let letters = ["--dead-letters-topic", &pipeline.letters];
    let audit = [
        &["audit", "--report", &page, "--report", &data],
        &events[..],
        &letters,
    ]
    .concat();
    let audited = ask(&audit).expect(1);
    assert!(audited.contains("differing: task_resource"), "{audited}");
    ask(&[&audit[..], &["--json"]].concat()).json(1);
    let page = std::fs::read_to_string(page).unwrap();
    assert_safe("the page", &page);
    assert!(page.contains("任务") && !page.contains("<b a=") && !page.contains("&amp;任务"));
    let data = std::fs::read_to_string(data).unwrap();
    assert_safe("the file", &data);
    assert!(serde_json::from_str::<Value>(&data).is_ok());
    let diff = [
        "diff",
        &pipeline.database_url,
        &copy,
        "--events-topic",
        &pipeline.events,
    ];
    assert!(run("consumer", &diff, "").expect(1).contains("differing"));
    run("consumer", &[&diff[..], &["--json"]].concat(), "").json(1);
}

#[test]
fn an_identifier_is_blank_when_all_of_it_is_spaces_or_printed_as_escapes() {
    let mut info = strategies::sample_event().info;
    info.progress = None;
    (info.resource, info.metrics) = (None, None);
    for c in '\u{1}'..=char::MAX {
        info.exec_id = c.to_string();
        let is_blank = !info.problems().is_empty();
        assert_eq!(is_blank, c.is_whitespace() || is_hidden(c), "{c:?}");
    }
}
