//! A made-up engine that answers by path, and the adapter that polls it. The reports are those of a dry run.

use std::collections::HashMap;
use std::fs::File;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use schemas::{MetricValue, TaskRunningInfo};
use serde_json::Value;
use service::testing::{memory_kib, until};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

pub(crate) const WAIT: Duration = Duration::from_secs(60);
/// Longer than any test.
const HANGS: Duration = Duration::from_secs(3_600);

#[derive(Clone)]
pub(crate) enum Answer {
    Json(Value),
    /// Of an engine no more than of a log-in page.
    Page,
    /// This status, with a body.
    Status(StatusCode),
    Hangs,
}

/// Answers by path, without a version.
#[derive(Clone, Default)]
pub(crate) struct Answers {
    by_path: Arc<Mutex<HashMap<String, Answer>>>,
    /// Paths and headers in the order they were asked for.
    asked: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

impl Answers {
    pub(crate) fn set(&self, path: &str, answer: Answer) {
        self.by_path.lock().unwrap().insert(path.to_owned(), answer);
    }

    pub(crate) fn json(&self, path: &str, answer: Value) {
        self.set(path, Answer::Json(answer));
    }

    /// 503 from now on.
    pub(crate) fn fail(&self, path: &str) {
        self.set(path, Answer::Status(StatusCode::SERVICE_UNAVAILABLE));
    }

    /// 404 from now on.
    pub(crate) fn remove(&self, path: &str) {
        self.by_path.lock().unwrap().remove(path);
    }

    pub(crate) fn times_asked(&self, path: &str) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(asked, _)| asked == path).count()
    }

    /// The headers of the last request for a path.
    pub(crate) fn headers(&self, path: &str) -> Option<HeaderMap> {
        let asked = self.asked.lock().unwrap();
        let mut asked = asked.iter().rev();
        let found = asked.find(|(asked, _)| asked == path)?;
        Some(found.1.clone())
    }
}

/// The made-up engine.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) answers: Answers,
    serving: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let answers = Answers::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = serve(listener, &answers);
        Self {
            url,
            answers,
            serving,
        }
    }

    /// Refuses connections from now on.
    pub(crate) async fn stop(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
    }

    /// Serves again at its address, after [`Server::stop`].
    pub(crate) async fn restart(&mut self) {
        let address = self.url.trim_start_matches("http://");
        let listener = TcpListener::bind(address).await.unwrap();
        self.serving = serve(listener, &self.answers);
    }
}

fn serve(listener: TcpListener, answers: &Answers) -> JoinHandle<()> {
    let app = axum::Router::new()
        .fallback(answer)
        .with_state(answers.clone());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
}

async fn answer(State(answers): State<Answers>, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_start_matches("/v1");
    let asked = (path.to_owned(), headers);
    answers.asked.lock().unwrap().push(asked);
    let found = answers.by_path.lock().unwrap().get(path).cloned();
    match found {
        Some(Answer::Json(json)) => axum::Json(json).into_response(),
        Some(Answer::Page) => axum::response::Html("<html>Log in</html>").into_response(),
        Some(Answer::Status(status)) => (status, "busy").into_response(),
        Some(Answer::Hangs) => {
            sleep(HANGS).await;
            StatusCode::OK.into_response()
        }
        None => (StatusCode::NOT_FOUND, r#"{"errors":["Not found."]}"#).into_response(),
    }
}

/// The adapter, polling quickly, and what it prints.
pub(crate) struct Adapter {
    child: Child,
    folder: TempDir,
}

impl Adapter {
    /// `engine` is the subcommand.
    pub(crate) fn start(engine: &str, arguments: &[&str]) -> Self {
        Self::start_with(engine, arguments, &[])
    }

    pub(crate) fn start_with(engine: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name| File::create(folder.path().join(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_producer"))
            .args([engine, "--dry-run", "--interval", "50ms"])
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(file("reports"))
            .stderr(file("log"))
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) async fn logs(&self, text: &str) {
        until(&format!("it logs {text:?}"), WAIT, async || {
            self.log().contains(text).then_some(())
        })
        .await;
    }

    /// The whole lines so far.
    pub(crate) fn reports(&self) -> Vec<TaskRunningInfo> {
        let lines = std::fs::read_to_string(self.folder.path().join("reports")).unwrap();
        let whole = lines.rfind('\n').map_or("", |end| &lines[..end]);
        let reports = whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        reports.collect()
    }

    /// The last report about an exec task so far.
    pub(crate) fn last(&self, exec_id: &str) -> TaskRunningInfo {
        let mut reports = self.reports().into_iter();
        reports.rfind(|report| report.exec_id == exec_id).unwrap()
    }

    pub(crate) async fn reports_one(
        &self,
        what: &str,
        is: impl Fn(&TaskRunningInfo) -> bool,
    ) -> TaskRunningInfo {
        until(what, WAIT, async || {
            self.reports().into_iter().find(|report| is(report))
        })
        .await
    }

    /// `None` if it has ended.
    pub(crate) fn peak_memory_kib(&self) -> Option<u64> {
        memory_kib(self.child.id(), "VmHWM:")
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        until("it ends", WAIT, async || self.child.try_wait().unwrap()).await
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn metric(report: &TaskRunningInfo, name: &str) -> Option<MetricValue> {
    report.metrics.as_ref()?.get(name).cloned()
}
