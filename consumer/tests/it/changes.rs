//! `GET /api/v1/changes`: a client misses no change and sees none twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use schemas::TaskRunningInfoEvent;
use schemas::TaskStatus::{self, Failed, Running, Succeed};
use serde_json::Value;
use service::testing::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::strategies;
use crate::support::{Kind, Pipeline, Server, on_every_database};

const WAIT: Duration = Duration::from_secs(60);

/// A stream of server-sent events, as read by a client.
struct Stream {
    response: reqwest::Response,
    read: Vec<u8>,
    /// The last event id.
    id: Option<String>,
}

#[derive(Debug, Default)]
struct Event {
    name: String,
    data: Value,
}

impl Stream {
    async fn open(server: &Server, query: &str, last: Option<&str>) -> Self {
        let mut request = server.request(&format!("/api/v1/changes{query}"));
        if let Some(last) = last {
            request = request.header("Last-Event-ID", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{query}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert!(!response.headers().contains_key("content-encoding"));
        Self {
            response,
            read: Vec::new(),
            id: None,
        }
    }

    /// The next event with data; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(end) = self.read.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.read.drain(..end + 2).collect();
                let mut event = Event::default();
                for line in std::str::from_utf8(&block).unwrap().lines() {
                    match line.split_once(": ") {
                        Some(("event", name)) => name.clone_into(&mut event.name),
                        Some(("id", id)) => self.id = Some(id.to_owned()),
                        Some(("data", data)) => event.data = serde_json::from_str(data).unwrap(),
                        _ => {}
                    }
                }
                if !event.data.is_null() {
                    return Some(event);
                }
            }
            let chunk = timeout(WAIT, self.response.chunk())
                .await
                .expect("no heartbeat");
            self.read.extend_from_slice(&chunk.ok()??);
        }
    }

    /// Reads up to this watermark. Returns the states of the changed tasks, each once, and the tasks that left.
    async fn until(&mut self, watermark: &str) -> (BTreeMap<String, String>, BTreeSet<String>) {
        let (mut tasks, mut left) = (BTreeMap::new(), BTreeSet::new());
        while self.id.as_deref() != Some(watermark) {
            let Event { name, data } = self.next().await.unwrap();
            assert_eq!(name, "tasks", "{data}");
            for item in data["items"].as_array().unwrap() {
                let state = format!("{} {}", text(&item["status"]), item["sequence"]);
                let actual = tasks.insert(text(&item["exec_id"]), state);
                assert_eq!(actual, None, "{item} was sent before");
            }
            left.extend(data["left"].as_array().unwrap().iter().map(text));
        }
        (tasks, left)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

fn report(exec_id: &str, sequence: i64, status: TaskStatus) -> TaskRunningInfoEvent {
    let mut event = strategies::sample_event();
    event.info.exec_id = exec_id.to_owned();
    event.info.sequence = sequence;
    event.info.reported_at += sequence;
    event.info.status = status;
    event
}

fn states(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |(id, state): &(&str, &str)| ((*id).to_owned(), (*state).to_owned());
    of.iter().map(owned).collect()
}

on_every_database!(
    a_client_misses_no_change,
    #[ignore = "heavy"]
    a_task_that_ends_again_is_reported_late,
);

/// MariaDB's columns hold no identifiers that are longer than reports may have.
mod long_identifiers {
    use super::a_thousand_follow_and_one_does_not_read;
    use crate::support::on_sqlite_and_postgres;

    on_sqlite_and_postgres!(
        #[ignore = "heavy"]
        a_thousand_follow_and_one_does_not_read,
    );
}

async fn a_client_misses_no_change(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.send_events(&[
        report("a", 0, Running),
        report("b", 0, Running),
        report("c", 0, Succeed),
    ]);
    let consumer = pipeline.consumer(&[]);
    pipeline.until_count(&Pipeline::stored("progress"), 3).await;
    pipeline.until_count(&Pipeline::stored("resource"), 3).await;
    pipeline.until_count(&Pipeline::stored("metrics"), 3).await;
    let server = pipeline.serve("serve", &[]).await;
    until("the first poll", WAIT, async || {
        (server.get("/api/v1/changes?since=x").await.status == 400).then_some(())?;
        let status = server
            .request("/api/v1/changes")
            .send()
            .await
            .unwrap()
            .status();
        (status == 200).then_some(())
    })
    .await;
    let mut all = Stream::open(&server, "?since=0:3", None).await;
    let mut running = Stream::open(&server, "?since=0:3&running=true", None).await;
    let mut of_another = Stream::open(&server, "?since=0:3&user=nobody", None).await;

    pipeline.send_events(&[
        report("a", 1, Running),
        report("b", 1, Succeed),
        report("new", 0, Running),
        report("short", 0, Running),
        report("short", 1, Failed),
        // A late report changes nothing.
        report("a", -1, Running),
        report("a", 2, Running),
    ]);
    // Several polls may find a task; the last state counts.
    let (mut actual, mut items) = (BTreeMap::new(), Vec::new());
    while all.id.as_deref() != Some("0:10") {
        let event = all.next().await.unwrap();
        for item in event.data["items"].as_array().unwrap() {
            let state = format!("{} {}", text(&item["status"]), item["sequence"]);
            actual.insert(text(&item["exec_id"]), state);
            items.push(item.clone());
        }
    }
    let expected = [
        ("a", "Running 2"),
        ("b", "Succeed 1"),
        ("new", "Running 0"),
        ("short", "Failed 1"),
    ];
    assert_eq!(actual, states(&expected));
    let mut left = BTreeSet::new();
    while running.id.as_deref() != Some("0:10") {
        let event = running.next().await.unwrap();
        left.extend(event.data["left"].as_array().unwrap().iter().map(text));
    }
    assert!(left.contains("b") && !left.contains("a"), "{left:?}");

    // The changes agree with the list.
    let list = server.json("/api/v1/tasks?limit=1000").await;
    assert_eq!(list["watermark"], serde_json::json!({"0": 10}));
    let of_list = |id: &Value| {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|item| item["exec_id"] == *id)
    };
    for item in &items {
        let listed = of_list(&item["exec_id"]).unwrap();
        let newest = item["sequence"] == listed["sequence"];
        for (field, value) in item.as_object().unwrap().iter().filter(|_| newest) {
            assert_eq!(*value, listed[field], "{field} of {item}");
        }
    }

    // A client that reconnects receives exactly what it missed.
    drop(all);
    pipeline.send_events(&[report("new", 1, Running), report("new", 2, Succeed)]);
    pipeline.until_count(&Pipeline::stored("metrics"), 12).await;
    let mut again = Stream::open(&server, "?since=0:0", Some("0:10")).await;
    let (tasks, _) = again.until("0:12").await;
    assert_eq!(tasks, states(&[("new", "Succeed 2")]));

    // Watermarks that are too old, or from other tables.
    for unknown in ["0:0", "0:2", "0:1000", "7:1"] {
        let mut lost = Stream::open(&server, &format!("?since={unknown}"), None).await;
        let event = lost.next().await.unwrap();
        assert_eq!(
            (event.name.as_str(), lost.id.as_deref()),
            ("reset", Some("0:12")),
            "{unknown}"
        );
        assert_eq!(event.data["watermark"], serde_json::json!({"0": 12}));
    }
    for (query, named) in [
        ("since=12", "since: expected PARTITION:OFFSET"),
        ("status=Runing", "status: unknown status \"Runing\""),
        ("silent=true", "silent: unknown parameter"),
    ] {
        let refused = server
            .get(&format!("/api/v1/changes?{query}"))
            .await
            .problem(400);
        assert!(refused.contains(named), "{refused}");
    }

    // Stopping the server ends its streams.
    consumer.stop().await;
    server.stop().await;
    assert!(again.next().await.is_none());
    let of_another = of_another.next().await;
    assert!(of_another.is_none(), "{of_another:?}");
}

async fn a_task_that_ends_again_is_reported_late(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.send_events(&[report("a", 0, Failed), report("b", 0, Running)]);
    pipeline.store_all().await;
    let server = pipeline.serve("serve", &[]).await;
    until("the first poll", WAIT, async || {
        let status = server
            .request("/api/v1/changes")
            .send()
            .await
            .unwrap()
            .status();
        (status == 200).then_some(())
    })
    .await;
    let mut stream = Stream::open(&server, "?since=0:2", None).await;
    // A poll reads only the newest ended tasks.
    pipeline.send_events(&[report("a", 1, Succeed), report("b", 1, Running)]);
    pipeline.store_all().await;
    let mut actual = BTreeMap::new();
    while actual.len() < 2 {
        let event = stream.next().await.unwrap();
        for item in event.data["items"].as_array().unwrap() {
            actual.insert(text(&item["exec_id"]), text(&item["status"]));
        }
    }
    assert_eq!(actual, states(&[("a", "Succeed"), ("b", "Running")]));
    server.stop().await;
}

const CLIENTS: usize = 1_000;
/// Tasks of ada, which all clients but the slow one follow.
const FOLLOWED: usize = 10;
/// Tasks of bob. They change once; their changes, 7 MB, exceed a connection's buffers.
const LONG: usize = 700;
const TASKS: usize = FOLLOWED + LONG;
/// More rounds than a client may be behind.
const ROUNDS: usize = 11;

/// Fills the tables with tasks without histories.
async fn fill(pipeline: &Pipeline, kind: Kind) {
    pipeline.ask(&["migrate"]);
    let now = match kind {
        Kind::Postgres => "now()",
        Kind::Sqlite => "CAST(unixepoch('subsec') * 1000000 AS integer)",
        Kind::Mariadb => "CAST(unix_timestamp(now(6)) * 1000000 AS signed)",
    };
    let long = "j".repeat(10_000);
    pipeline
        .execute(&format!(
            "INSERT INTO task (exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, is_final, \
             reported_at, sequence, event_partition, event_offset) \
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {TASKS} - 1) \
             SELECT 'exec-' || i, CASE WHEN i < {FOLLOWED} THEN 'job' ELSE '{long}' END, 'node:1', 'spark', \
             CASE WHEN i < {FOLLOWED} THEN 'ada' ELSE 'bob' END, '', 'Running', false, {now}, 0, 0, i FROM n; \
             INSERT INTO consumed_offset (part, topic, partition, next_offset, cluster_id, anchor_offset, anchor_timestamp_ms, \
             anchor_crc32, group_id, updated_at) VALUES ('progress', 'e', 0, {TASKS}, 'c', -1, -1, 0, 'g', {now})"
        ))
        .await;
}

/// The watermark after this round.
fn upto(round: usize) -> usize {
    TASKS * (1 + round.min(1)) + FOLLOWED * round.saturating_sub(1)
}

/// All tasks report; after the first round only the followed ones.
async fn report_round(pipeline: &Pipeline, round: usize) {
    let (from, changed) = (upto(round - 1), upto(round) - upto(round - 1));
    let task = "CAST(substr(exec_id, 6) AS integer)";
    pipeline
        .execute(&format!(
            "BEGIN; UPDATE task SET sequence = {round}, event_offset = {from} + {task} WHERE {task} < {changed}; \
             UPDATE consumed_offset SET next_offset = {}; COMMIT",
            upto(round)
        ))
        .await;
}

/// Number of transactions in the pipeline's PostgreSQL database.
async fn transactions(pipeline: &Pipeline) -> i64 {
    let of_database = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    pipeline.count(of_database).await
}

async fn a_thousand_follow_and_one_does_not_read(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    fill(&pipeline, kind).await;
    let server = Arc::new(pipeline.serve("serve", &[]).await);
    until("the first poll", WAIT, async || {
        let answer = server.request("/api/v1/changes").send().await.unwrap();
        (answer.status() == 200).then_some(())
    })
    .await;
    // It sends the request and reads nothing.
    let address = server.origin.strip_prefix("http://").unwrap().to_owned();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let mut slow = socket.connect(address.parse().unwrap()).await.unwrap();
    let request =
        format!("GET /api/v1/changes?since=0:{TASKS} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    slow.write_all(request.as_bytes()).await.unwrap();

    // A message from each client that has reached the next round; the channel closes if a client fails.
    let (sender, mut receiver) = mpsc::channel(CLIENTS);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let (server, sender) = (server.clone(), sender.clone());
        clients.push(tokio::spawn(async move {
            let query = format!("?since=0:{TASKS}&user=ada");
            let mut stream = Stream::open(&server, &query, None).await;
            sender.send(()).await.unwrap();
            let everyone = 0..FOLLOWED;
            for round in 1..=ROUNDS {
                let (tasks, left) = stream.until(&format!("0:{}", upto(round))).await;
                let expected = everyone.clone().map(|task| format!("exec-{task}"));
                let expected = expected.map(|task| (task, format!("Running {round}")));
                assert_eq!((tasks, left), (expected.collect(), BTreeSet::new()));
                sender.send(()).await.unwrap();
            }
        }));
    }
    drop(sender);
    let mut all_are_there = async || {
        for _ in 0..CLIENTS {
            let one = timeout(2 * WAIT, receiver.recv())
                .await
                .expect("all got it");
            one.expect("no client has failed");
        }
    };
    all_are_there().await;
    let (begun, before) = match kind {
        Kind::Postgres => (Instant::now(), transactions(&pipeline).await),
        Kind::Sqlite | Kind::Mariadb => (Instant::now(), 0),
    };
    for round in 1..=ROUNDS {
        report_round(&pipeline, round).await;
        all_are_there().await;
    }
    if kind == Kind::Postgres {
        let (seconds, polls) = (begun.elapsed().as_secs_f64(), ROUNDS as f64);
        let ended = transactions(&pipeline).await - before;
        // Includes the test's own transactions, one per round and some to connect, and those of the gauges.
        let most = seconds + 3.0 * polls + 10.0;
        assert!(
            (ended as f64) <= most,
            "{ended} transactions in {seconds:.1} s, of {CLIENTS} clients"
        );
    }
    for client in clients {
        client.await.unwrap();
    }

    // It was disconnected: the buffered changes arrive, then the stream ends.
    let mut read = Vec::new();
    let ended = timeout(WAIT, slow.read_to_end(&mut read)).await;
    ended.expect("it still waits").unwrap();
    let has = |round| {
        let id = format!("\nid: 0:{}\n", upto(round));
        read.windows(id.len()).any(|part| part == id.as_bytes())
    };
    assert!(!has(ROUNDS), "everything was kept for it");
    Arc::into_inner(server).unwrap().stop().await;
}
