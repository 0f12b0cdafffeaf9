//! A made-up Spark UI or History Server, and the adapter that polls it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use schemas::{TaskRunningInfo, TaskStatus};
use serde_json::{Value, json};
use service::testing::{Process, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::{Reports, text};

/// How long anything may take that a test waits for.
pub(crate) const WAIT: Duration = Duration::from_secs(120);

/// How it answers.
#[derive(Clone)]
pub(crate) enum Behaviour {
    /// As Spark does.
    Normal,
    /// These bytes, to everything.
    Fixed(String),
}

pub(crate) fn says(status: &str, headers: &str, body: &str) -> Behaviour {
    let length = body.len();
    Behaviour::Fixed(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    ))
}

pub(crate) struct Spark {
    pub(crate) url: String,
    serving: JoinHandle<()>,
    state: Arc<Mutex<State>>,
}

pub(crate) struct State {
    pub(crate) apps: Vec<App>,
    pub(crate) behaviour: Behaviour,
    /// Its behaviour from the next poll of an application on: all responses of a poll are of one behaviour.
    pub(crate) next_behaviour: Option<Behaviour>,
    /// The list of applications, and nothing else, answers 503.
    pub(crate) list_fails: bool,
    /// How long it takes to answer anything; an application may take longer.
    pub(crate) delay: Duration,
    lists: usize,
    /// Requests so far for jobs, stages and executors.
    parts: [usize; 3],
    /// Of each application, its polls so far, and those that are being answered.
    polls: BTreeMap<String, (usize, usize)>,
    /// The most polls that were answered at a time: of all, of one application.
    pub(crate) most_polls: (usize, usize),
}

#[derive(Clone)]
pub(crate) struct App {
    pub(crate) id: String,
    /// Newest first: the attempt's id and whether it has completed.
    pub(crate) attempts: Vec<(Option<&'static str>, bool)>,
    /// `None`: it answers 503.
    pub(crate) jobs: Option<Value>,
    /// How long each response about it takes.
    pub(crate) delay: Duration,
    /// Asked for it alone, it answers 503.
    pub(crate) troubled: bool,
    /// The list of its stages, as JSON.
    pub(crate) stages: String,
}

impl App {
    pub(crate) fn new(id: &str, jobs: Value) -> Self {
        Self {
            id: id.to_owned(),
            attempts: vec![(None, false)],
            jobs: Some(jobs),
            delay: Duration::ZERO,
            troubled: false,
            stages: "[]".to_owned(),
        }
    }

    pub(crate) fn completed(mut self) -> Self {
        self.attempts[0].1 = true;
        self
    }

    pub(crate) fn answering_in(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn listed(&self) -> Value {
        let attempts = self.attempts.iter().map(|(id, completed)| {
            let mut attempt = json!({"completed": completed, "sparkUser": "ada",
                "startTime": "2015-02-03T16:43:00.906GMT", "lastUpdated": "", "lastUpdatedEpoch": 0});
            if let Some(id) = id {
                attempt["attemptId"] = json!(id);
            }
            attempt
        });
        json!({"id": self.id, "name": "test", "attempts": attempts.collect::<Value>()})
    }
}

impl Spark {
    pub(crate) async fn start(apps: impl IntoIterator<Item = App>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let state = State {
            apps: apps.into_iter().collect(),
            behaviour: Behaviour::Normal,
            next_behaviour: None,
            list_fails: false,
            delay: Duration::ZERO,
            lists: 0,
            parts: [0; 3],
            polls: BTreeMap::new(),
            most_polls: (0, 0),
        };
        Self::serve(listener, Arc::new(Mutex::new(state)))
    }

    fn serve(listener: TcpListener, state: Arc<Mutex<State>>) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = state.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer(stream, served.clone()));
            }
        });
        Self {
            url,
            serving,
            state,
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
    }

    pub(crate) fn complete(&self, app: usize, jobs: Value) {
        self.set(|state| {
            let app = &mut state.apps[app];
            *app = App::new(&app.id, jobs).completed();
        });
    }

    /// Waits until it was asked for jobs once more, from now on.
    pub(crate) async fn polled(&self) {
        let before = self.state().parts[0];
        until("the UI is polled", WAIT, async || {
            (self.state().parts[0] > before + 1).then_some(())
        })
        .await;
    }

    /// Waits until each of its applications that are wanted was polled this many times, from now on.
    pub(crate) async fn polled_each(&self, times: usize, wanted: impl Fn(&str) -> bool) {
        let before = self.state().polls.clone();
        until("each application is polled", WAIT, async || {
            let state = self.state();
            let polls = |polls: &BTreeMap<String, (usize, usize)>, id: &String| {
                polls.get(id).map_or(0, |(polls, _)| *polls)
            };
            let mut ids = state.apps.iter().map(|app| &app.id).filter(|id| wanted(id));
            ids.all(|id| polls(&state.polls, id) >= polls(&before, id) + times)
                .then_some(())
        })
        .await;
    }

    /// Waits until it was asked this many times for the list, or for one application, from now on.
    pub(crate) async fn polled_list(&self, times: usize) {
        let before = self.state().lists;
        until("the list is asked for", WAIT, async || {
            (self.state().lists >= before + times).then_some(())
        })
        .await;
    }

    /// Nobody listens any more.
    pub(crate) async fn stop(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }

    /// Nobody listens until `meanwhile` is done.
    pub(crate) async fn restart(self, meanwhile: impl Future<Output = ()>) -> Self {
        let address = self.url.trim_start_matches("http://").to_owned();
        let state = self.state.clone();
        self.stop().await;
        meanwhile.await;
        Self::serve(TcpListener::bind(address).await.unwrap(), state)
    }
}

/// Waits until an address is asked again after this time. It answers nothing.
pub(crate) async fn asked_for(address: &str, time: Duration) {
    let listener = TcpListener::bind(address).await.unwrap();
    let asked = async {
        let since = Instant::now();
        while since.elapsed() < time {
            // Closed at once.
            drop(listener.accept().await.unwrap());
        }
    };
    timeout(WAIT, asked).await.expect("it is asked");
}

async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let arrived = Instant::now();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.ok()?);
    }
    let request = text(&request);
    let path = request
        .split(' ')
        .nth(1)?
        .strip_prefix("/api/v1/applications")?;
    let id = path.split('/').nth(1).unwrap_or_default();
    let is_poll = path.ends_with("/jobs");
    let behaviour = state.lock().ok()?.arrived(path, id);
    loop {
        let delay = state.lock().ok()?.delay(id);
        let Some(left) = delay.checked_sub(arrived.elapsed()) else {
            break;
        };
        sleep(left.min(Duration::from_millis(50))).await;
    }
    let said = {
        let mut state = state.lock().ok()?;
        if is_poll && let Some((_, running)) = state.polls.get_mut(id) {
            *running -= 1;
        }
        match behaviour {
            Behaviour::Fixed(said) => said,
            Behaviour::Normal => state.said(path),
        }
    };
    stream.write_all(said.as_bytes()).await.ok()
}

impl State {
    /// Counts a request, and gives the behaviour that it is answered in.
    fn arrived(&mut self, path: &str, id: &str) -> Behaviour {
        let part = ["jobs", "stages", "allexecutors"]
            .iter()
            .position(|part| path.ends_with(&format!("/{part}")));
        if let Some(part) = part {
            // Each poll asks for each of them once.
            let is_first = self.parts.iter().all(|requests| *requests == self.parts[0]);
            if is_first && let Some(behaviour) = self.next_behaviour.take() {
                self.behaviour = behaviour;
            }
            self.parts[part] += 1;
        }
        if part == Some(0) {
            let (polls, running) = self.polls.entry(id.to_owned()).or_default();
            *polls += 1;
            *running += 1;
            self.most_polls.1 = self.most_polls.1.max(*running);
            let running: usize = self.polls.values().map(|(_, running)| running).sum();
            self.most_polls.0 = self.most_polls.0.max(running);
        }
        if path.starts_with('?') || path.rfind('/').unwrap_or(0) == 0 {
            self.lists += 1;
        }
        self.behaviour.clone()
    }

    fn delay(&self, id: &str) -> Duration {
        let app = self.apps.iter().find(|app| app.id == id);
        app.map_or(Duration::ZERO, |app| app.delay).max(self.delay)
    }

    fn said(&self, path: &str) -> String {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let path: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let app = self.apps.iter().find(|app| app.id == path[0]);
        let busy = || says("503 Service Unavailable", "", "busy");
        let json = "content-type: application/json\r\n";
        let body = match (path[0], app) {
            ("", _) if self.list_fails => return busy().bytes(),
            ("", _) => {
                let runs = |app: &&App| !query.contains("status=running") || !app.attempts[0].1;
                self.apps.iter().filter(runs).map(App::listed).collect()
            }
            (id, None) => {
                return says("404 Not Found", "", &format!("no such app: {id}")).bytes();
            }
            (_, Some(app)) => match *path.last().unwrap_or(&"") {
                id if id == app.id && app.troubled => return busy().bytes(),
                id if id == app.id => app.listed(),
                "stages" => return says("200 OK", json, &app.stages).bytes(),
                "jobs" => match &app.jobs {
                    Some(jobs) => jobs.clone(),
                    None => return busy().bytes(),
                },
                "allexecutors" => {
                    json!([{"id": "1", "isActive": true, "totalCores": 2, "activeTasks": 1}])
                }
                "environment" => json!({"sparkProperties": [["spark.executor.memory", "1g"]]}),
                _ => json!([]),
            },
        };
        says("200 OK", json, &body.to_string()).bytes()
    }
}

impl Behaviour {
    fn bytes(self) -> String {
        match self {
            Self::Normal => String::new(),
            Self::Fixed(said) => said,
        }
    }
}

pub(crate) fn job(status: &str, completed: i64) -> Value {
    json!([{"jobId": 0, "status": status, "numTasks": 4, "numCompletedTasks": completed}])
}

/// The adapter.
pub(crate) struct Adapter {
    pub(crate) process: Process,
    _folder: tempfile::TempDir,
}

impl Adapter {
    /// Polling quickly.
    pub(crate) fn start(reports: &Reports, more: &[&str]) -> Self {
        Self::polling_every("50ms", reports, more)
    }

    pub(crate) fn polling_every(interval: &str, reports: &Reports, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = vec!["spark", "--interval", interval];
        arguments.extend(more);
        let arguments = reports.arguments(&arguments);
        let program = Path::new(env!("CARGO_BIN_EXE_producer"));
        let process = Process::start(folder.path(), "producer", program, &arguments);
        Self {
            process,
            _folder: folder,
        }
    }

    pub(crate) async fn logs(&self, text: &str) {
        until(&format!("it logs {text:?}"), WAIT, async || {
            self.process.log().contains(text).then_some(())
        })
        .await;
    }

    /// Waits until its metrics have this text.
    pub(crate) async fn measures(&self, text: &str) {
        until(&format!("its metrics have {text:?}"), WAIT, async || {
            let (_, metrics) = self.process.get("/metrics")?;
            metrics.contains(text).then_some(())
        })
        .await;
    }

    /// Sends SIGTERM and waits for its end, which is to be a good one; gives its log.
    pub(crate) async fn stop(mut self) -> String {
        self.process.signal("TERM");
        let status = self.process.ended().await;
        let log = self.process.log();
        assert!(status.success(), "{status}: {log}");
        log
    }
}

pub(crate) fn ended(received: &[TaskRunningInfo]) -> Vec<TaskStatus> {
    received
        .iter()
        .map(|report| report.status)
        .filter(|status| *status != TaskStatus::Running)
        .collect()
}
