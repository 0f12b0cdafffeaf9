//! `producer trino` against a made-up coordinator.
//!
//! Long because each fault of a coordinator has a test, and so have passwords, tokens and certificates.

use std::path::Path;
use std::process::Command;

use axum::http::StatusCode;
use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::{Value, json};
use service::testing::until;

use crate::listen::Listening;
use crate::support::polled::{Adapter, Answer, Answers, Server, WAIT, metric};
use crate::support::text;

const GONE: Answer = Answer::Status(StatusCode::GONE);

fn adapter(arguments: &[&str]) -> Adapter {
    Adapter::start("trino", arguments)
}

/// A query as the list has it.
fn listed(id: &str, state: &str) -> Value {
    json!({"queryId": id, "state": state, "scheduled": true, "self": "http://coordinator/secret",
        "session": {"user": "ada", "source": "nightly"}, "query": "SELECT 'secret'",
        "resourceGroupId": ["global"],
        "queryStats": {"totalDrivers": 8, "runningDrivers": 2, "completedDrivers": 2, "progressPercentage": 25.0,
            "totalMemoryReservation": "1024B", "totalCpuTime": "3.00s", "executionTime": "2.00s"}})
}

/// Its own response.
fn whole(id: &str, state: &str) -> Value {
    let mut query = listed(id, state);
    query["outputStage"] = json!({"stageId": format!("{id}.0"), "state": state,
        "stageStats": {"totalDrivers": 8, "runningDrivers": 2, "completedDrivers": 2},
        "tasks": [{"taskStatus": {"state": "RUNNING", "nodeId": "worker-1"}}], "subStages": []});
    query["failureInfo"] = json!({"message": "secret", "stack": ["secret"]});
    query
}

fn list(answers: &Answers, queries: &[(&str, &str)]) {
    let queries = queries.iter().map(|(id, state)| listed(id, state));
    answers.json("/query", queries.collect());
}

fn set(answers: &Answers, id: &str, state: &str) {
    answers.json(&format!("/query/{id}"), whole(id, state));
}

fn stages(report: &TaskRunningInfo) -> Option<usize> {
    let progress = report.progress.as_ref()?;
    Some(progress.progress_info.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_are_followed_to_their_ends_with_their_stages_and_workers() {
    let trino = Server::start().await;
    let answers = &trino.answers;
    list(
        answers,
        &[("q1", "RUNNING"), ("q2", "QUEUED"), ("q3", "FINISHED")],
    );
    set(answers, "q1", "RUNNING");
    let mut adapter = adapter(&["--url", &trino.url]);
    let running = adapter
        .reports_one("q1 has stages", |report| stages(report) == Some(1))
        .await;
    assert_eq!(
        (running.exec_id.as_str(), running.status),
        ("q1", TaskStatus::Running)
    );
    assert_eq!(running.progress.unwrap().progress, 0.25);
    let held = &running.resource.unwrap().applications["q1"];
    assert_eq!(
        (held.queue_memory, held.queue_cores, held.queue_instances),
        (1_024, 2, 1)
    );
    assert_eq!(held.queue, "global");
    assert_eq!(
        (running.engine.user.as_str(), running.engine.running_tasks),
        ("ada", 1)
    );
    adapter
        .reports_one("q2 is reported", |report| {
            report.exec_id == "q2" && report.status == TaskStatus::Inited
        })
        .await;

    let mut cancelled = listed("q1", "FAILED");
    cancelled["errorCode"] = json!({"code": 3, "name": "USER_CANCELED", "type": "USER_ERROR"});
    cancelled["queryStats"]["progressPercentage"] = json!(100.0);
    let mut own = whole("q1", "FAILED");
    own["errorCode"] = cancelled["errorCode"].clone();
    answers.json("/query/q1", own);
    set(answers, "q2", "FINISHED");
    let ended = [
        cancelled,
        listed("q2", "FINISHED"),
        listed("q3", "FINISHED"),
    ];
    answers.json("/query", ended.into_iter().collect());
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let last = adapter.last("q1");
    assert_eq!(
        (last.status, &last.progress),
        (TaskStatus::Cancelled, &None)
    );
    assert_eq!(last.resource.unwrap().applications["q1"].queue_memory, 0);
    let reports = adapter.reports();
    for id in ["q1", "q2", "q3"] {
        let of_query = reports.iter().filter(|report| report.exec_id == id);
        let of_query: Vec<&TaskRunningInfo> = of_query.collect();
        let sequences: Vec<i64> = of_query.iter().map(|report| report.sequence).collect();
        assert_eq!(sequences, Vec::from_iter(0..of_query.len() as i64), "{id}");
        let ends = of_query.iter().filter(|report| report.status.is_final());
        assert_eq!(ends.count(), 1, "{id}");
    }
    // One that had ended before is reported from the list.
    assert_eq!(answers.times_asked("/query/q3"), 0);
    assert!(!format!("{reports:?}{}", adapter.log()).contains("secret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_query_is_reported_with_its_last_counts() {
    let trino = Server::start().await;
    let answers = &trino.answers;
    let states = |state| ["settles", "vanishes"].map(|id| (id, state));
    list(answers, &states("RUNNING"));
    set(answers, "settles", "RUNNING");
    set(answers, "vanishes", "RUNNING");
    let mut adapter = adapter(&["--url", &trino.url]);
    for id in ["settles", "vanishes"] {
        let is_own = |report: &TaskRunningInfo| report.exec_id == id && stages(report) == Some(1);
        adapter.reports_one("it runs", is_own).await;
    }

    let end = |id, is_final: bool, completed| {
        let mut own = whole(id, "FAILED");
        own["finalQueryInfo"] = is_final.into();
        own["queryStats"]["completedDrivers"] = completed;
        answers.json(&format!("/query/{id}"), own);
    };
    end("settles", false, json!(3));
    end("vanishes", false, json!(3));
    let ended = |id| {
        let mut listed = listed(id, "FAILED");
        listed["queryStats"]["completedDrivers"] = json!(3);
        listed
    };
    answers.json("/query", json!([ended("settles"), ended("vanishes")]));
    for id in ["settles", "vanishes"] {
        let path = format!("/query/{id}");
        let before = answers.times_asked(&path);
        until("its end is read", WAIT, async || {
            (answers.times_asked(&path) >= before + 3).then_some(())
        })
        .await;
    }
    let early = adapter.reports();
    assert!(early.iter().all(|report| !report.status.is_final()));

    end("settles", true, json!(6));
    answers.json("/query", json!([ended("settles")]));
    answers.set("/query/vanishes", GONE);
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let reports = adapter.reports();
    for (id, completed) in [("settles", 6), ("vanishes", 3)] {
        let last = adapter.last(id);
        assert_eq!(last.status, TaskStatus::Failed, "{id}");
        let completed = Some(MetricValue::Long(completed));
        assert_eq!(metric(&last, "driversCompleted"), completed, "{id}");
        let of_query = reports.iter().filter(|report| report.exec_id == id);
        let ends = of_query.filter(|report| report.status.is_final());
        assert_eq!(ends.count(), 1, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_whose_stages_fail_or_hang_are_reported_from_the_list_and_delay_no_other() {
    let trino = Server::start().await;
    let answers = &trino.answers;
    let ids = ["good", "page", "fails", "forbidden", "other", "hangs"];
    list(answers, &ids.map(|id| (id, "RUNNING")));
    set(answers, "good", "RUNNING");
    answers.set("/query/page", Answer::Page);
    answers.fail("/query/fails");
    answers.set("/query/forbidden", Answer::Status(StatusCode::FORBIDDEN));
    answers.json("/query/other", whole("good", "FINISHED"));
    answers.set("/query/hangs", Answer::Hangs);
    let adapter = adapter(&["--url", &trino.url]);
    for id in ids {
        let third = adapter
            .reports_one(&format!("{id} is reported"), |report| {
                report.exec_id == id && report.sequence == 2
            })
            .await;
        assert_eq!(third.status, TaskStatus::Running, "{id}");
        assert_eq!(stages(&third), Some(usize::from(id == "good")), "{id}");
        assert_eq!(third.resource.is_some(), id == "good", "{id}");
        assert_eq!(
            metric(&third, "driversCompleted"),
            Some(MetricValue::Long(2))
        );
        assert_eq!(third.engine.running_tasks, 6);
    }
    let polled = |id: &str| {
        let reports = adapter.reports();
        reports.iter().filter(|report| report.exec_id == id).count()
    };
    assert!(polled("good") > polled("hangs"));
    let log = adapter.log();
    for once in [
        "it answers with a page",
        "it answers 503",
        "it answers 403",
        "about another query",
        "no answer within",
    ] {
        assert_eq!(log.matches(once).count(), 1, "{once}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_list_fails_each_query_is_asked_for_alone_to_its_end() {
    let trino = Server::start().await;
    let answers = &trino.answers;
    list(answers, &[("q1", "RUNNING")]);
    set(answers, "q1", "RUNNING");
    let adapter = adapter(&["--url", &trino.url, "--stay"]);
    adapter.reports_one("q1 is reported", |_| true).await;
    answers.set("/query", Answer::Page);
    adapter.logs("it answers with a page, not with JSON").await;
    set(answers, "q1", "FINISHED");
    adapter
        .reports_one("its end is reported", |report| {
            report.status == TaskStatus::Succeed
        })
        .await;
    answers.set("/query", Answer::Status(StatusCode::UNAUTHORIZED));
    adapter
        .logs("it answers 401 Unauthorized: give user and password in TRINO_URL")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_restarts_makes_its_queries_unknown_but_not_before_the_time_is_over() {
    let mut trino = Server::start().await;
    let answers = trino.answers.clone();
    list(&answers, &[("q1", "RUNNING"), ("q2", "RUNNING")]);
    set(&answers, "q1", "RUNNING");
    set(&answers, "q2", "RUNNING");
    let adapter = adapter(&["--url", &trino.url, "--stay", "--give-up-after", "3s"]);
    for id in ["q1", "q2"] {
        adapter
            .reports_one("it is reported", |report| report.exec_id == id)
            .await;
    }
    trino.stop().await;
    adapter.logs("connection refused").await;
    list(&answers, &[("new", "RUNNING")]);
    for id in ["q1", "q2"] {
        answers.set(&format!("/query/{id}"), GONE);
    }
    trino.restart().await;
    adapter
        .reports_one("the new query is reported", |report| {
            report.exec_id == "new"
        })
        .await;
    let unknown = |report: &TaskRunningInfo| report.status == TaskStatus::Unknown;
    assert!(!adapter.reports().iter().any(unknown), "{}", adapter.log());

    let unknown = adapter
        .reports_one("q1 is unknown", |report| {
            report.exec_id == "q1" && unknown(report)
        })
        .await;
    assert_eq!(
        (&unknown.progress, &unknown.resource, &unknown.metrics),
        (&None, &None, &None)
    );
    assert_eq!(unknown.engine.user, "ada");
    // It comes back: another coordinator had answered.
    set(&answers, "q1", "FINISHED");
    list(&answers, &[("new", "RUNNING"), ("q1", "FINISHED")]);
    let ended = adapter
        .reports_one("q1 has ended", |report| {
            report.status == TaskStatus::Succeed
        })
        .await;
    assert_eq!(
        (ended.exec_id.as_str(), ended.sequence),
        ("q1", unknown.sequence + 1)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_vanishes_is_named_at_the_end() {
    let trino = Server::start().await;
    let answers = &trino.answers;
    list(answers, &[("q1", "RUNNING")]);
    set(answers, "q1", "RUNNING");
    let arguments = [
        "--url",
        &trino.url,
        "--query",
        "q1",
        "--query",
        "never",
        "--give-up-after",
        "200ms",
    ];
    let mut adapter = adapter(&arguments);
    adapter.reports_one("q1 is reported", |_| true).await;
    answers.set("/query/q1", GONE);
    list(answers, &[("q2", "RUNNING")]);
    assert_eq!(adapter.ended().await.code(), Some(1), "{}", adapter.log());
    let log = adapter.log();
    assert!(
        log.contains("no address listed never; how q1 ended is not known"),
        "{log}"
    );
    assert!(!log.contains("410 Gone"), "{log}");
    assert!(
        adapter
            .reports()
            .iter()
            .all(|report| report.exec_id == "q1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_carry_the_user_the_password_or_the_newest_token() {
    let trino = Server::start().await;
    let answers = &trino.answers;
    list(answers, &[("q1", "QUEUED")]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let (file_name, url) = (file.to_str().unwrap(), trino.url.as_str());
    let with_password = url.replace("http://", "http://bob:hunter2@");
    // The text of the last request's header.
    let header = |name: &str| {
        let headers = answers.headers("/query")?;
        let value = headers.get(name)?;
        Some(value.to_str().unwrap().to_owned())
    };
    for (arguments, variables, expected) in [
        (
            vec!["--url", url],
            vec![],
            [("x-trino-user", Some("producer")), ("authorization", None)],
        ),
        (
            vec!["--url", url, "--user", "ada", "--presto"],
            vec![],
            [("x-presto-user", Some("ada")), ("x-trino-user", None)],
        ),
        (
            vec![],
            vec![("TRINO_URL", with_password.as_str())],
            // bob:hunter2
            [
                ("authorization", Some("Basic Ym9iOmh1bnRlcjI=")),
                ("x-trino-user", None),
            ],
        ),
        (
            vec!["--url", url, "--token-file", file_name],
            vec![],
            [
                ("authorization", Some("Bearer first.hunter2")),
                ("x-trino-user", None),
            ],
        ),
    ] {
        std::fs::write(&file, "first.hunter2\n").unwrap();
        let adapter = Adapter::start_with("trino", &arguments, &variables);
        adapter.reports_one("the query is reported", |_| true).await;
        for (name, value) in expected {
            assert_eq!(header(name).as_deref(), value, "{arguments:?} {name}");
        }
        if arguments.contains(&"--token-file") {
            std::fs::write(&file, "second.hunter2").unwrap();
            until("the new token is sent", WAIT, async || {
                (header("authorization")? == "Bearer second.hunter2").then_some(())
            })
            .await;
            std::fs::write(&file, "two words hunter2").unwrap();
            adapter.logs("expected one word of ASCII characters").await;
        }
        assert!(!adapter.log().contains("hunter2"));
    }
}

/// A certificate for localhost that is its own authority, and its key, in `folder`.
fn certificate(folder: &Path) -> [String; 2] {
    let made = Command::new("openssl")
        .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2".split(' '))
        .args("-subj /CN=localhost -addext subjectAltName=DNS:localhost".split(' '))
        .args(["-keyout", "key.pem", "-out", "certificate.pem"])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    ["certificate.pem", "key.pem"].map(|name| folder.join(name).display().to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_tls_is_told_in_words_with_the_next_thing_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = certificate(folder.path());
    let (certificate, key) = (certificate.as_str(), key.as_str());
    // Any HTTPS server will do.
    let server = ["--dry-run", "--tls-cert", certificate, "--tls-key", key];
    let mut server = Listening::start(&server).await;
    server.until_ready().await;
    let by_number = server.origin.as_str();
    let url = by_number.replace("127.0.0.1", "localhost");
    let plain = Server::start().await;
    let not_tls = plain.url.replace("http:", "https:");
    let (url, not_tls) = (url.as_str(), not_tls.as_str());
    let (untrusted, invalid, no_tls, reached) = (
        "its certificate is not trusted (",
        "its certificate is not valid (",
        "it does not speak TLS: is it an http:// address?",
        "it answers 404",
    );
    let ca_file = vec!["--ca-file", certificate];
    let variable = vec![("SSL_CERT_FILE", certificate)];
    for (engine, url, arguments, variables, texts) in [
        ("trino", url, vec![], vec![], [untrusted, "by --ca-file"]),
        ("trino", url, ca_file.clone(), vec![], [reached; 2]),
        ("trino", by_number, ca_file, vec![], [invalid, "mismatch)"]),
        (
            "flink",
            url,
            vec![],
            vec![],
            [untrusted, "variable SSL_CERT_FILE"],
        ),
        ("flink", url, vec![], variable.clone(), [reached; 2]),
        (
            "spark",
            url,
            vec![],
            vec![],
            [untrusted, "variable SSL_CERT_FILE"],
        ),
        ("spark", url, vec![], variable, [reached; 2]),
        ("spark", not_tls, vec![], vec![], [no_tls; 2]),
    ] {
        let arguments = [vec!["--url", url], arguments].concat();
        let adapter = Adapter::start_with(engine, &arguments, &variables);
        for text in texts {
            adapter.logs(text).await;
        }
        let log = adapter.log();
        assert!(!log.contains("SSL routines"), "{engine}: {log}");
    }
}

#[test]
fn a_password_on_the_command_line_and_a_file_without_certificates_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    std::fs::write(&file, "no certificate").unwrap();
    let file = file.to_str().unwrap();
    for (arguments, why) in [
        (
            ["--url", "https://bob:hunter2@h"],
            "every user can read a command line",
        ),
        (["--ca-file", file], "holds no certificate in PEM"),
        (
            ["--ca-file", "/nowhere/ca.pem"],
            "--ca-file /nowhere/ca.pem: ",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_producer"))
            .args(["trino", "--dry-run", "--url", "http://localhost:1"])
            .args(arguments)
            .output()
            .unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(why) && !error.contains("hunter2"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_ones_own_queries_only_is_noted_once_and_the_text_is_published_if_wanted() {
    let trino = Server::start().await;
    let answers = &trino.answers;
    list(answers, &[("q1", "QUEUED")]);
    let adapter = adapter(&["--url", &trino.url, "--user", "ada", "--with-query-text"]);
    let report = adapter
        .reports_one("q1 is reported thrice", |report| report.sequence == 2)
        .await;
    let query = MetricValue::String("SELECT 'secret'".to_owned());
    assert_eq!(metric(&report, "query"), Some(query));
    let note =
        "lists only queries of ada; if others run queries there, ada has no right to view them";
    assert_eq!(adapter.log().matches(note).count(), 1, "{}", adapter.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_many_long_queries_is_reported_once_each_in_bounded_memory() {
    const QUERIES: usize = 3_000;
    let trino = Server::start().await;
    let answers = &trino.answers;
    let long = "x".repeat(10_000);
    let queries = (0..QUERIES).map(|number| {
        let mut query = listed(&format!("q{number:05}"), "FINISHED");
        query["query"] = long.as_str().into();
        query
    });
    answers.json("/query", queries.collect());
    let mut adapter = adapter(&["--url", &trino.url]);
    let peak = until("all are reported", WAIT, async || {
        let peak = adapter.peak_memory_kib()?;
        (adapter.reports().len() >= QUERIES).then_some(peak)
    })
    .await;
    assert!(adapter.ended().await.success(), "{}", adapter.log());
    let reports = adapter.reports();
    assert_eq!(reports.len(), QUERIES);
    assert!(
        reports
            .iter()
            .all(|report| report.status == TaskStatus::Succeed)
    );
    // The list takes 30 MB.
    assert!(peak < 48 << 10, "{peak} KiB");
}
