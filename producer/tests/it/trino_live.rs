//! `producer trino` against a real Trino, and a real Presto.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::Value;
use service::address::Address;
use service::http::{HttpClient, HttpOptions, Method};
use service::output;
use service::testing::{Process, service, until};

use crate::support::polled::{Adapter, metric};
use crate::support::{Reports, text};

const WAIT: Duration = Duration::from_secs(180);

struct Trino {
    process: Process,
    http: String,
    /// Empty: it serves none.
    https: String,
    client: HttpClient,
    /// The headers with the user and the source of a request.
    headers: [&'static str; 2],
}

impl Trino {
    async fn start(folder: &Path, tool: &str) -> Self {
        let arguments = ["run", folder.to_str().unwrap()];
        let mut process = Process::start(folder, "trino", Path::new(tool), &arguments);
        let (http, https) = until("Trino has started", WAIT, async || {
            process.assert_running();
            let log = process.log();
            let address = |scheme| log.lines().find_map(|line| line.strip_prefix(scheme));
            let addresses = (address("http ")?.to_owned(), address("https ")?.to_owned());
            log.contains("SERVER STARTED").then_some(addresses)
        })
        .await;
        Self::at(process, http, https, ["X-Trino-User", "X-Trino-Source"])
    }

    async fn start_presto(folder: &Path, tool: &str) -> Self {
        let arguments = ["presto", folder.to_str().unwrap()];
        let mut process = Process::start(folder, "presto", Path::new(tool), &arguments);
        let http = until("Presto has started", WAIT, async || {
            process.assert_running();
            let log = process.log();
            let http = log.lines().find_map(|line| line.strip_prefix("http "))?;
            log.contains("SERVER STARTED").then(|| http.to_owned())
        })
        .await;
        let headers = ["X-Presto-User", "X-Presto-Source"];
        Self::at(process, http, String::new(), headers)
    }

    fn at(process: Process, http: String, https: String, headers: [&'static str; 2]) -> Self {
        let (base, _) = Address::http(&http).to_http().unwrap();
        let options = HttpOptions {
            response_timeout: WAIT,
            connect_timeout: WAIT,
            follow_redirects: false,
            user_agent: None,
            certificates: Vec::new(),
        };
        let client = HttpClient::new(base, None, options).unwrap();
        Self {
            process,
            http,
            https,
            client,
            headers,
        }
    }

    async fn request(&self, method: Method, path: &str, user: &str, body: &str) -> Value {
        let request = self.client.request(method, path.split('/'));
        let [of_user, of_source] = self.headers;
        let request = request
            .header(of_user, user)
            .header(of_source, "test")
            .body(body.to_owned());
        let response = self.client.send(request).await.unwrap();
        assert!(
            response.status().is_success(),
            "{path}: {}",
            response.status()
        );
        let body = response.body(64 << 20).await.unwrap();
        serde_json::from_slice(&body).unwrap_or_default()
    }

    /// Begins a query of bob, and returns its id and the path of its next result.
    async fn submit(&self, sql: &str) -> (String, String) {
        let answer = self.request(Method::POST, "v1/statement", "bob", sql).await;
        (
            answer["id"].as_str().unwrap().to_owned(),
            next(&answer).unwrap(),
        )
    }

    /// Fetches a query's results to the end, which makes it run.
    async fn fetch(&self, mut path: String) {
        loop {
            let answer = self.request(Method::GET, &path, "bob", "").await;
            match next(&answer) {
                Some(next) => path = next,
                None => return,
            }
        }
    }

    /// Runs a query to its end. Trino accepts queries a moment before it knows of its worker, itself: those that failed by
    /// that are the second value.
    async fn run_first(&self) -> (String, Vec<String>) {
        let (mut too_early, mut next) = (Vec::new(), Instant::now());
        let first = until("it knows of its worker", WAIT, async || {
            // Some seconds later. It lists the last 100 queries only.
            if Instant::now() < next {
                return None;
            }
            next = Instant::now() + Duration::from_secs(1);
            let (id, path) = self.submit("SELECT count(*) FROM tpch.tiny.nation").await;
            self.fetch(path).await;
            match self.list().await[&id]["errorCode"]["name"].as_str() {
                Some("NO_NODES_AVAILABLE") => {
                    too_early.push(id);
                    None
                }
                _ => Some(id),
            }
        })
        .await;
        (first, too_early)
    }

    /// All queries by id.
    async fn list(&self) -> BTreeMap<String, Value> {
        let list = self.request(Method::GET, "v1/query", "watcher", "").await;
        let list = list.as_array().unwrap().iter();
        list.map(|query| (query["queryId"].as_str().unwrap().to_owned(), query.clone()))
            .collect()
    }
}

/// Whether there is a Java that can run the server; says why a test is skipped.
fn has_java(tool: &str, arguments: &[&str]) -> bool {
    let java = Command::new(tool).args(arguments).output().unwrap();
    if !java.status.success() {
        output::note(format_args!("skipped: {}", text(&java.stderr).trim()));
    }
    java.status.success()
}

/// Whether a query runs, some of its stages are known, and some of it is done.
fn is_in_the_middle(report: &TaskRunningInfo) -> bool {
    report.progress.as_ref().is_some_and(|progress| {
        let in_between = progress.progress > 0.0 && progress.progress < 1.0;
        in_between && !progress.progress_info.is_empty()
    })
}

/// The reports of a query end once, and its last one holds what the server's list says of it.
fn assert_as_listed(of_query: &[TaskRunningInfo], query: &Value, status: TaskStatus) {
    let last = of_query.last().unwrap();
    assert_eq!(last.status, status, "{query}");
    let ends = of_query.iter().filter(|report| report.status.is_final());
    assert_eq!(ends.count(), 1, "{query}");
    assert_eq!(last.engine.user, "bob");
    let stats = &query["queryStats"];
    let said = |value: &Value| {
        value
            .as_str()
            .map(|text| MetricValue::String(text.to_owned()))
    };
    let error = said(&query["errorCode"]["name"]);
    assert_eq!(metric(last, "errorName"), error, "{query}");
    assert_eq!(metric(last, "state"), said(&query["state"]), "{query}");
    assert_eq!(metric(last, "source"), said(&"test".into()), "{query}");
    for (name, field) in [
        ("driversTotal", "totalDrivers"),
        ("driversCompleted", "completedDrivers"),
        ("inputRows", "rawInputPositions"),
    ] {
        let said = stats[field].as_i64().map(MetricValue::Long);
        assert_eq!(metric(last, name), said, "{query} {name}");
    }
    assert_eq!(metric(last, "query"), None);
}

/// The path of the next result.
fn next(answer: &Value) -> Option<String> {
    let (_, path) = answer["nextUri"].as_str()?.split_once("/v1/")?;
    Some(format!("v1/{path}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn the_last_reports_of_queries_hold_what_trinos_own_list_says() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    let (Some(reports), Some(tool)) = (
        Reports::make("trino-live").await,
        service("TEST_TRINO_TOOL"),
    ) else {
        return;
    };
    if !has_java(&tool, &["java"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let trino = Trino::start(folder.path(), &tool).await;
    let file = |name| folder.path().join(name).to_str().unwrap().to_owned();
    let (token, authority) = (file("token"), file("ca.pem"));
    let arguments = [
        "trino",
        "--url",
        &trino.https,
        "--token-file",
        &token,
        "--ca-file",
        &authority,
        "--interval",
        "300ms",
        "--stay",
    ];
    let arguments = reports.arguments(&arguments);
    let program = Path::new(env!("CARGO_BIN_EXE_producer"));
    let mut producer = Process::start(folder.path(), "producer", program, &arguments);

    let (finished, too_early) = trino.run_first().await;
    let (failed, path) = trino
        .submit("SELECT 1 / (nationkey - nationkey) FROM tpch.tiny.nation")
        .await;
    trino.fetch(path).await;
    let (wrong, path) = trino.submit("SELEC 'secret'").await;
    trino.fetch(path).await;
    let seen = async |what: &str, ids: &[String], is: fn(&TaskRunningInfo) -> bool| {
        until(what, WAIT, async || {
            let mut received = reports.by_task();
            let mut of_ids = ids.iter().filter_map(|id| received.remove(id)).flatten();
            of_ids.find(is)
        })
        .await
    };
    // Until one takes long enough, and is answered about in time, to be seen while it runs.
    let mut long = Vec::new();
    let running = until("a query runs with progress and stages", WAIT, async || {
        let sql = "SELECT count(*), max(comment) FROM tpch.sf1.lineitem";
        let (id, path) = trino.submit(sql).await;
        trino.fetch(path).await;
        let ids = [id.clone()];
        seen("its end is reported", &ids, |report| {
            report.status.is_final()
        })
        .await;
        let reports = reports.by_task().remove(&id)?;
        long.push(id);
        reports.into_iter().find(is_in_the_middle)
    })
    .await;
    // As many as may run, and one more. Nobody fetches their results, so they do not end.
    let mut cancelled = Vec::new();
    for _ in 0..4 {
        let (id, path) = trino.submit("SELECT * FROM tpch.sf1.lineitem").await;
        // The first answer moves it to the queue of its resource group.
        let answer = trino.request(Method::GET, &path, "bob", "").await;
        assert!(next(&answer).is_some(), "{answer}");
        cancelled.push(id);
    }
    let is_queued = |report: &TaskRunningInfo| report.status == TaskStatus::Inited;
    let queued = seen("a query is in the queue", &cancelled, is_queued).await;
    assert_eq!(running.status, TaskStatus::Running);
    let held = &running.resource.unwrap().applications[&running.exec_id];
    assert_eq!((held.queue_instances, held.queue.as_str()), (1, "global"));
    assert!(held.queue_memory > 0);
    assert_eq!(queued.progress, None);
    for id in &cancelled {
        trino
            .request(Method::DELETE, &format!("v1/query/{id}"), "watcher", "")
            .await;
    }

    let mut expected = BTreeMap::from([
        (finished.clone(), TaskStatus::Succeed),
        (failed, TaskStatus::Failed),
        (wrong, TaskStatus::Failed),
    ]);
    expected.extend(long.into_iter().map(|id| (id, TaskStatus::Succeed)));
    expected.extend(cancelled.into_iter().map(|id| (id, TaskStatus::Cancelled)));
    expected.extend(too_early.into_iter().map(|id| (id, TaskStatus::Failed)));
    until("all ends are reported", WAIT, async || {
        producer.assert_running();
        let received = reports.by_task();
        let last = |id: &String| Some(received.get(id)?.last()?.status);
        let ended = expected
            .keys()
            .filter(|id| last(id).is_some_and(|status| status.is_final()));
        (ended.count() == expected.len()).then_some(())
    })
    .await;
    let listed = trino.list().await;
    producer.stop().await;
    let received = reports.by_task();
    assert_eq!(
        received.keys().collect::<Vec<_>>(),
        listed.keys().collect::<Vec<_>>()
    );
    for (id, query) in &listed {
        assert_as_listed(&received[id], query, expected[id]);
    }
    let end = &received[&finished].last().unwrap().progress;
    assert_eq!(end.as_ref().unwrap().progress, 1.0);

    // Eve may not view the queries of others, and gets no error. A password is as good as a token.
    let eve = Adapter::start(
        "trino",
        &[
            "--url",
            &trino.http,
            "--user",
            "eve",
            "--give-up-after",
            "1s",
        ],
    );
    eve.logs("lists no queries; if any run there, eve has no right to view them")
        .await;
    assert_eq!(eve.reports(), []);
    let with_password = trino.https.replace("https://", "https://ada:hunter2@");
    let ada = Adapter::start_with(
        "trino",
        &["--ca-file", &authority, "--give-up-after", "1s"],
        &[("TRINO_URL", &with_password)],
    );
    ada.logs("lists no queries; if any run there, ada").await;
    let stranger = trino.https.replace("https://", "https://ada:hunter3@");
    let stranger = Adapter::start_with(
        "trino",
        &["--ca-file", &authority],
        &[("TRINO_URL", &stranger)],
    );
    stranger.logs("it answers 401 Unauthorized").await;
    drop(trino.process);
}

/// PrestoSQL is Trino under its first name.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn the_last_reports_of_queries_hold_what_prestos_own_list_says() {
    let _alone = service::testing::alone(); // a real engine takes all cores
    let Some(tool) = service("TEST_TRINO_TOOL") else {
        return;
    };
    if !has_java(&tool, &["java", "presto"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let presto = Trino::start_presto(folder.path(), &tool).await;
    let adapter = Adapter::start(
        "trino",
        &["--url", &presto.http, "--presto", "--stay", "--user", "eve"],
    );
    let run = async |sql: &str| {
        let (id, path) = presto.submit(sql).await;
        presto.fetch(path).await;
        id
    };
    let (finished, too_early) = presto.run_first().await;
    let failed = run("SELECT 1 / (nationkey - nationkey) FROM tpch.tiny.nation").await;
    let wrong = run("SELEC 'secret'").await;
    // Until one takes long enough to be seen while it runs.
    let mut long = Vec::new();
    let running = until("a query runs with progress and stages", WAIT, async || {
        let id = run("SELECT count(*), max(comment) FROM tpch.sf1.lineitem").await;
        let is_end = |report: &TaskRunningInfo| report.exec_id == id && report.status.is_final();
        adapter.reports_one("its end is reported", is_end).await;
        let mut reports = adapter.reports().into_iter();
        let running = reports.find(|report| report.exec_id == id && is_in_the_middle(report));
        long.push(id);
        running
    })
    .await;
    assert_eq!(running.status, TaskStatus::Running);
    let held = &running.resource.unwrap().applications[&running.exec_id];
    assert_eq!((held.queue_instances, held.queue.as_str()), (1, "global"));
    // Nobody fetches its results, so it does not end.
    let (cancelled, path) = presto.submit("SELECT * FROM tpch.sf1.lineitem").await;
    presto.request(Method::GET, &path, "bob", "").await;
    adapter
        .reports_one("it is listed", |report| report.exec_id == cancelled)
        .await;
    let path = format!("v1/query/{cancelled}");
    presto.request(Method::DELETE, &path, "bob", "").await;

    let mut expected = BTreeMap::from([
        (finished, TaskStatus::Succeed),
        (failed, TaskStatus::Failed),
        (wrong, TaskStatus::Failed),
        (cancelled, TaskStatus::Cancelled),
    ]);
    expected.extend(long.into_iter().map(|id| (id, TaskStatus::Succeed)));
    expected.extend(too_early.into_iter().map(|id| (id, TaskStatus::Failed)));
    let by_id = || {
        let mut by_id: BTreeMap<String, Vec<TaskRunningInfo>> = BTreeMap::new();
        for report in adapter.reports() {
            by_id
                .entry(report.exec_id.clone())
                .or_default()
                .push(report);
        }
        by_id
    };
    let received = until("all ends are reported", WAIT, async || {
        let received = by_id();
        let has_ended = |id| {
            let last: Option<&TaskRunningInfo> = received.get(id).and_then(|of_id| of_id.last());
            last.is_some_and(|last| last.status.is_final())
        };
        expected.keys().all(has_ended).then_some(received)
    })
    .await;
    let listed = presto.list().await;
    assert!(received.keys().eq(expected.keys()) && listed.keys().eq(expected.keys()));
    for (id, query) in &listed {
        assert_as_listed(&received[id], query, expected[id]);
        assert_eq!(received[id][0].engine.engine_type, "presto");
    }
    assert!(!adapter.log().contains("secret"));
    drop(presto.process);
}
