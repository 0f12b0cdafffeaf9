//! `producer spark` against UIs and History Servers that misbehave as real ones do.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod support;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use schemas::{TaskRunningInfo, TaskStatus};
use serde_json::{Value, json};
use service::testing::{NOBODY, Process, until};
use support::Reports;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const APP: &str = "app-1";
const WAIT: Duration = Duration::from_secs(120);

/// What a made-up Spark answers.
#[derive(Clone)]
enum Mood {
    /// As Spark does.
    Well,
    /// These bytes, to everything.
    Says(String),
}

fn says(status: &str, headers: &str, body: &str) -> Mood {
    let length = body.len();
    Mood::Says(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    ))
}

/// A made-up Spark UI or History Server with one application, or none.
struct Spark {
    url: String,
    serving: JoinHandle<()>,
    state: Arc<Mutex<State>>,
}

struct State {
    app: Option<&'static str>,
    mood: Mood,
    /// Its mood from the next poll on.
    next_mood: Option<Mood>,
    completed: bool,
    jobs: Value,
    polls: usize,
}

impl Spark {
    async fn start(app: &'static str, jobs: Value) -> Self {
        let state = Arc::new(Mutex::new(State {
            app: Some(app),
            mood: Mood::Well,
            next_mood: None,
            completed: false,
            jobs,
            polls: 0,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
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

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    /// Waits until it was asked for its jobs once more, from now on.
    async fn polled(&self) {
        let before = self.state.lock().unwrap().polls;
        until("the UI is polled", WAIT, async || {
            (self.state.lock().unwrap().polls > before + 1).then_some(())
        })
        .await;
    }

    /// Nobody listens any more.
    async fn stop(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }
}

async fn answer(mut stream: TcpStream, state: Arc<Mutex<State>>) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.ok()?);
    }
    let request = support::text(&request);
    let path = request
        .split(' ')
        .nth(1)?
        .strip_prefix("/api/v1/applications")?;
    let said = said(path, &mut *state.lock().ok()?);
    stream.write_all(said.as_bytes()).await.ok()
}

fn said(path: &str, state: &mut State) -> String {
    // A poll begins with the list of applications: all of its answers are of one mood.
    if path.is_empty()
        && let Some(mood) = state.next_mood.take()
    {
        state.mood = mood;
    }
    if path.ends_with("/jobs") {
        state.polls += 1;
    }
    if let Mood::Says(said) = &state.mood {
        return said.clone();
    }
    let app = state.app.map(|id| {
        json!({"id": id, "name": "test", "attempts": [{"completed": state.completed, "sparkUser": "ada",
            "startTime": "2015-02-03T16:43:00.906GMT", "lastUpdated": "", "lastUpdatedEpoch": 0}]})
    });
    let known = state.app.unwrap_or_default();
    let body = match path.trim_start_matches('/').split('/').collect::<Vec<_>>()[..] {
        [""] => app.into_iter().collect::<Value>(),
        [id, ..] if id != known => {
            let Mood::Says(said) = says("404 Not Found", "", &format!("no such app: {id}")) else {
                return String::new();
            };
            return said;
        }
        [_] => app.unwrap_or_default(),
        [_, "jobs"] => state.jobs.clone(),
        [_, "allexecutors"] => {
            json!([{"id": "1", "isActive": true, "totalCores": 2, "activeTasks": 1}])
        }
        [_, "environment"] => json!({"sparkProperties": [["spark.executor.memory", "1g"]]}),
        _ => json!([]),
    };
    let Mood::Says(said) = says(
        "200 OK",
        "content-type: application/json\r\n",
        &body.to_string(),
    ) else {
        return String::new();
    };
    said
}

fn job(status: &str, completed: i64) -> Value {
    json!([{"jobId": 0, "status": status, "numTasks": 4, "numCompletedTasks": completed}])
}

/// The adapter, polling quickly.
struct Adapter {
    process: Process,
    _folder: tempfile::TempDir,
}

impl Adapter {
    fn start(reports: &Reports, more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut arguments = vec!["spark", "--interval", "50ms"];
        arguments.extend(more);
        let arguments = reports.arguments(&arguments);
        let program = Path::new(env!("CARGO_BIN_EXE_producer"));
        let process = Process::start(folder.path(), "producer", program, &arguments);
        Self {
            process,
            _folder: folder,
        }
    }

    async fn logs(&self, text: &str) {
        until(&format!("it logs {text:?}"), WAIT, async || {
            self.process.log().contains(text).then_some(())
        })
        .await;
    }
}

fn ended(told: &[TaskRunningInfo]) -> Vec<TaskStatus> {
    told.iter()
        .map(|report| report.status)
        .filter(|status| *status != TaskStatus::Running)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_are_none_make_parts_null_warn_once_and_the_next_poll_goes_on() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let spark = Spark::start(APP, job("RUNNING", 0)).await;
    let login = Spark::start("none", json!([])).await;
    login.set(|state| {
        state.mood = says(
            "200 OK",
            "content-type: text/html\r\n",
            "<html>Log in</html>",
        )
    });
    // Its path begins as the API's does, so that the made-up server answers.
    let to_login = format!("location: {}/api/v1/applications/login\r\n", login.url);
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 900\r\nconnection: close\r\n\r\n[{\"jobId\": 0,";
    let faults = [
        (
            says(
                "200 OK",
                "content-type: text/html\r\n",
                "<html>loading</html>",
            ),
            "it answers with a page, not with JSON",
        ),
        (
            says("302 Found", &to_login, ""),
            "it answers with a page after a redirect to",
        ),
        (
            says("404 Not Found", "", "no such app: app-1"),
            "it answers 404: no such app: app-1",
        ),
        (
            says("503 Service Unavailable", "", "busy"),
            "it answers 503 Service Unavailable",
        ),
        (Mood::Says(cut.to_owned()), "its answer is cut short"),
    ];
    let mut adapter = Adapter::start(&reports, &["--url", &spark.url]);
    spark.polled().await;
    for (mood, warning) in &faults {
        spark.set(|state| state.next_mood = Some(mood.clone()));
        adapter.logs(warning).await;
        for _ in 0..3 {
            spark.polled().await;
        }
        spark.set(|state| state.next_mood = Some(Mood::Well));
        spark.polled().await;
        spark.polled().await;
    }
    spark.set(|state| state.jobs = job("SUCCEEDED", 4));
    spark.polled().await;
    spark.stop().await;
    assert!(adapter.process.ended().await.success());

    let log = adapter.process.log();
    for (_, warning) in &faults {
        // One for the list of applications, one for the application's parts.
        let warned = log.lines().filter(|line| line.contains(warning)).count();
        assert!(
            (1..=2).contains(&warned),
            "{warned} of {warning:?} in:\n{log}"
        );
    }
    let told = &reports.by_task()[APP];
    let null = told
        .iter()
        .filter(|report| report.progress.is_none())
        .count();
    assert!(null >= faults.len(), "{null} null parts of {}", told.len());
    assert_eq!(ended(told), [TaskStatus::Succeed]);
    let last = told.last().unwrap();
    assert_eq!(last.progress.as_ref().unwrap().progress, 1.0);
    assert!(
        log.contains(&format!("sent {} reports of 1 tasks", told.len())),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_refuses_connections_does_not_keep_others_from_being_reported() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let first = Spark::start("app-1", job("SUCCEEDED", 4)).await;
    let second = Spark::start("app-2", job("FAILED", 3)).await;
    let refused = format!("http://{NOBODY}");
    let urls = [
        "--url",
        &first.url,
        "--url",
        &refused,
        "--url",
        &second.url,
        "--give-up-after",
        "2s",
    ];
    let mut adapter = Adapter::start(&reports, &urls);
    adapter.logs(&format!("{refused} was never reached")).await;
    adapter.process.assert_running();
    first.polled().await;
    second.polled().await;
    first.stop().await;
    second.stop().await;
    // It says that something that was asked for was not done.
    assert_eq!(adapter.process.ended().await.code(), Some(1));
    let told = reports.by_task();
    assert_eq!(told.len(), 2);
    assert_eq!(ended(&told["app-1"]), [TaskStatus::Succeed]);
    assert_eq!(ended(&told["app-2"]), [TaskStatus::Failed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_followed_to_the_history_server_and_its_end_is_reported_once() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let live = Spark::start(APP, job("RUNNING", 1)).await;
    let history = Spark::start(APP, job("RUNNING", 1)).await;
    history.set(|state| state.app = None);
    let urls = ["--url", &live.url, "--history-url", &history.url];
    let mut adapter = Adapter::start(&reports, &urls);
    live.polled().await;
    let instance = live.url.trim_start_matches("http://").to_owned();
    live.stop().await;
    adapter.logs("its UI is gone").await;
    // It learns of the application, first of its log in progress, then of its end.
    history.set(|state| state.app = Some(APP));
    history.set(|state| {
        state.jobs = job("SUCCEEDED", 4);
        state.mood = says("200 OK", "", "<html>loading</html>");
    });
    adapter.logs("it answers with a page").await;
    adapter.process.assert_running();
    history.set(|state| {
        state.completed = true;
        state.mood = Mood::Well;
    });
    assert!(
        adapter.process.ended().await.success(),
        "{}",
        adapter.process.log()
    );

    let told = &reports.by_task()[APP];
    assert_eq!(ended(told), [TaskStatus::Succeed]);
    let last = told.last().unwrap();
    assert!(told.is_sorted_by(|a, b| a.sequence < b.sequence));
    assert_eq!(
        last.engine.instance, instance,
        "the engine is the one that ran it"
    );
    let part = last.progress.as_ref().unwrap();
    assert_eq!(
        (part.progress, part.progress_info[0].succeed_tasks),
        (1.0, 4)
    );
    let held = &last.resource.as_ref().unwrap().applications[APP];
    assert_eq!(
        (held.job_status.as_str(), held.queue_memory),
        ("COMPLETED", 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_servers_completed_applications_are_reported_once_each_and_that_is_all() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let history = Spark::start(APP, job("FAILED", 3)).await;
    history.set(|state| state.completed = true);
    let mut adapter = Adapter::start(&reports, &["--url", &history.url]);
    assert!(adapter.process.ended().await.success());
    let told = &reports.by_task()[APP];
    assert_eq!((told.len(), ended(told)), (1, vec![TaskStatus::Failed]));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_application_on_the_same_port_ends_the_one_before_it() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let spark = Spark::start("app-1", job("RUNNING", 1)).await;
    let mut adapter = Adapter::start(&reports, &["--url", &spark.url]);
    spark.polled().await;
    spark.set(|state| state.app = Some("app-2"));
    adapter.logs("its address no longer lists it").await;
    spark.polled().await;
    spark.set(|state| state.jobs = job("SUCCEEDED", 4));
    spark.polled().await;
    spark.stop().await;
    assert!(adapter.process.ended().await.success());
    let told = reports.by_task();
    assert_eq!(
        ended(&told["app-1"]),
        [TaskStatus::Unknown],
        "its job was seen running"
    );
    assert_eq!(ended(&told["app-2"]), [TaskStatus::Succeed]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_by_a_signal_it_says_nothing_of_how_the_application_ended() {
    let Some(reports) = Reports::make("spark-faults").await else {
        return;
    };
    let spark = Spark::start(APP, job("RUNNING", 1)).await;
    let adapter = Adapter::start(&reports, &["--url", &spark.url]);
    spark.polled().await;
    spark.polled().await;
    let Adapter { process, _folder } = adapter;
    assert!(process.stop().await.success());
    let told = &reports.by_task()[APP];
    assert!(!told.is_empty());
    assert_eq!(ended(told), []);
}
