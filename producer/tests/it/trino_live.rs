//! `producer trino` against a real Trino.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

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
    https: String,
    client: HttpClient,
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
        }
    }

    async fn request(&self, method: Method, path: &str, user: &str, body: &str) -> Value {
        let request = self.client.request(method, path.split('/'));
        let request = request
            .header("X-Trino-User", user)
            .header("X-Trino-Source", "test")
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

    /// All queries by id.
    async fn list(&self) -> BTreeMap<String, Value> {
        let list = self.request(Method::GET, "v1/query", "watcher", "").await;
        let list = list.as_array().unwrap().iter();
        list.map(|query| (query["queryId"].as_str().unwrap().to_owned(), query.clone()))
            .collect()
    }
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
    let java = Command::new(&tool).arg("java").output().unwrap();
    if !java.status.success() {
        output::note(format_args!("skipped: {}", text(&java.stderr).trim()));
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

    // Trino accepts queries a moment before it knows of its worker, itself.
    let mut too_early = Vec::new();
    let finished = loop {
        let (id, path) = trino.submit("SELECT count(*) FROM tpch.tiny.nation").await;
        trino.fetch(path).await;
        match trino.list().await[&id]["errorCode"]["name"].as_str() {
            Some("NO_NODES_AVAILABLE") => too_early.push(id),
            _ => break id,
        }
        assert!(too_early.len() < 100, "{}", trino.process.log());
    };
    let (failed, path) = trino
        .submit("SELECT 1 / (nationkey - nationkey) FROM tpch.tiny.nation")
        .await;
    trino.fetch(path).await;
    let (wrong, path) = trino.submit("SELEC 'secret'").await;
    trino.fetch(path).await;
    // Its results are fetched, so that it runs.
    let (long, path_of_long) = trino
        .submit("SELECT count(*), max(comment) FROM tpch.sf1.lineitem")
        .await;
    let seen = async |what: &str, ids: &[String], is: fn(&TaskRunningInfo) -> bool| {
        until(what, WAIT, async || {
            let mut received = reports.by_task();
            let mut of_ids = ids.iter().filter_map(|id| received.remove(id)).flatten();
            of_ids.find(is)
        })
        .await
    };
    let is_in_the_middle = |report: &TaskRunningInfo| {
        report.progress.as_ref().is_some_and(|progress| {
            let in_between = progress.progress > 0.0 && progress.progress < 1.0;
            in_between && !progress.progress_info.is_empty()
        })
    };
    let ids = [long.clone()];
    let (running, ()) = tokio::join!(
        seen(
            "a query runs with progress and stages",
            &ids,
            is_in_the_middle
        ),
        trino.fetch(path_of_long)
    );
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
    let held = &running.resource.unwrap().applications[&long];
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
        (long, TaskStatus::Succeed),
    ]);
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
        let of_query = &received[id];
        let last = of_query.last().unwrap();
        assert_eq!(last.status, expected[id], "{query}");
        let ends = of_query.iter().filter(|report| report.status.is_final());
        assert_eq!(ends.count(), 1, "{id}");
        assert_eq!(last.engine.user, "bob");
        let stats = &query["queryStats"];
        let said = |value: &Value| {
            value
                .as_str()
                .map(|text| MetricValue::String(text.to_owned()))
        };
        assert_eq!(
            metric(last, "errorName"),
            said(&query["errorCode"]["name"]),
            "{id}"
        );
        assert_eq!(metric(last, "state"), said(&query["state"]), "{id}");
        assert_eq!(metric(last, "source"), said(&"test".into()), "{id}");
        for (name, field) in [
            ("driversTotal", "totalDrivers"),
            ("driversCompleted", "completedDrivers"),
            ("inputRows", "rawInputPositions"),
        ] {
            let said = stats[field].as_i64().map(MetricValue::Long);
            assert_eq!(metric(last, name), said, "{id} {name}");
        }
        assert_eq!(metric(last, "query"), None);
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
