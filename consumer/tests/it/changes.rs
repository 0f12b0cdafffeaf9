//! `GET /api/v1/changes`: who follows it misses no change of a task, and sees none twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use schemas::TaskRunningInfoEvent;
use schemas::TaskStatus::{self, Failed, Running, Succeed};
use serde_json::Value;
use service::testing::until;
use tokio::time::timeout;

use crate::strategies;
use crate::support::{Kind, Pipeline, Server, on_both_databases};

const WAIT: Duration = Duration::from_secs(60);

/// A stream of server-sent events, as a client reads it.
struct Stream {
    response: reqwest::Response,
    read: Vec<u8>,
    /// The last id.
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

    /// The next event that has data; `None`: the stream has ended.
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

    /// Reads until the watermark is this one. Gives the states of the tasks that were told, each once, and those that
    /// left.
    async fn until(&mut self, watermark: &str) -> (BTreeMap<String, String>, BTreeSet<String>) {
        let (mut tasks, mut left) = (BTreeMap::new(), BTreeSet::new());
        while self.id.as_deref() != Some(watermark) {
            let Event { name, data } = self.next().await.unwrap();
            assert_eq!(name, "tasks", "{data}");
            for item in data["items"].as_array().unwrap() {
                let state = format!("{} {}", text(&item["status"]), item["sequence"]);
                let told = tasks.insert(text(&item["exec_id"]), state);
                assert_eq!(told, None, "{item} was told before");
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

on_both_databases!(
    who_follows_misses_no_change,
    #[ignore = "heavy"]
    a_task_that_ends_once_more_is_told_late,
);

async fn who_follows_misses_no_change(kind: Kind) {
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
        // A late one changes nothing.
        report("a", -1, Running),
        report("a", 2, Running),
    ]);
    // Several polls may see them, and then a task is told as each has found it: here the last one counts.
    let (mut told, mut items) = (BTreeMap::new(), Vec::new());
    while all.id.as_deref() != Some("0:10") {
        let event = all.next().await.unwrap();
        for item in event.data["items"].as_array().unwrap() {
            let state = format!("{} {}", text(&item["status"]), item["sequence"]);
            told.insert(text(&item["exec_id"]), state);
            items.push(item.clone());
        }
    }
    let expected = [
        ("a", "Running 2"),
        ("b", "Succeed 1"),
        ("new", "Running 0"),
        ("short", "Failed 1"),
    ];
    assert_eq!(told, states(&expected));
    let mut left = BTreeSet::new();
    while running.id.as_deref() != Some("0:10") {
        let event = running.next().await.unwrap();
        left.extend(event.data["left"].as_array().unwrap().iter().map(text));
    }
    assert!(left.contains("b") && !left.contains("a"), "{left:?}");

    // What is told is what the list says.
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

    // Away for a while, it gets what it missed, and nothing else.
    drop(all);
    pipeline.send_events(&[report("new", 1, Running), report("new", 2, Succeed)]);
    pipeline.until_count(&Pipeline::stored("metrics"), 12).await;
    let mut again = Stream::open(&server, "?since=0:0", Some("0:10")).await;
    let (tasks, _) = again.until("0:12").await;
    assert_eq!(tasks, states(&[("new", "Succeed 2")]));

    // Of what nobody remembers, and of other tables.
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
        ("status=Runing", "status: \"Runing\" is no status"),
        ("silent=true", "silent: no such parameter"),
    ] {
        let refused = server
            .get(&format!("/api/v1/changes?{query}"))
            .await
            .problem(400);
        assert!(refused.contains(named), "{refused}");
    }

    // The end of the server is the end of its streams.
    consumer.stop().await;
    server.stop().await;
    assert!(again.next().await.is_none());
    let of_another = of_another.next().await;
    assert!(of_another.is_none(), "{of_another:?}");
}

async fn a_task_that_ends_once_more_is_told_late(kind: Kind) {
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
    // Of tasks that have ended no poll reads any but the newest.
    pipeline.send_events(&[report("a", 1, Succeed), report("b", 1, Running)]);
    pipeline.store_all().await;
    let mut told = BTreeMap::new();
    while told.len() < 2 {
        let event = stream.next().await.unwrap();
        for item in event.data["items"].as_array().unwrap() {
            told.insert(text(&item["exec_id"]), text(&item["status"]));
        }
    }
    assert_eq!(told, states(&[("a", "Succeed"), ("b", "Running")]));
    server.stop().await;
}
