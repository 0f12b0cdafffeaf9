//! A real Spark that runs `deploy/spark/job.py`, and a History Server beside it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Process, until};

/// How long Spark and its History Server may take to start.
const WAIT: Duration = Duration::from_secs(180);

/// A Spark and its History Server.
pub struct Spark {
    /// URL of the UI.
    pub url: String,
    /// URL of the History Server.
    pub history_url: String,
    job: Process,
    history: Process,
    rest: PathBuf,
    release: PathBuf,
}

impl Spark {
    /// Starts both with this Python, which has PySpark, and waits until they answer. The job groups are
    /// `PREFIX-load` and so on.
    pub async fn start(folder: &Path, python: &str, group_prefix: &str) -> Self {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let [rest, release, logs] =
            ["rest.json", "release", "event-logs"].map(|it| folder.join(it));
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/spark");

        let (server, arguments) = (deploy.join("history-server"), [python, &text(&logs)]);
        let mut history = Process::start(folder, "history-server", &server, &arguments);
        let history_url = until("the History Server is up", WAIT, async || {
            history.assert_running();
            let log = history.log();
            let line = log.lines().find(|line| line.contains(" started at http"))?;
            Some(line.rsplit_once(' ')?.1.to_owned())
        })
        .await;

        let program = text(&deploy.join("job.py"));
        let (rest_out, until_there, event_log) = (text(&rest), text(&release), text(&logs));
        let arguments = [
            &program,
            "--group-prefix",
            group_prefix,
            "--pace",
            "0.3",
            "--rest-out",
            &rest_out,
            "--release",
            &until_there,
            "--event-log",
            &event_log,
            "--linger",
            "120",
        ];
        let mut job = Process::start(folder, "spark", Path::new(python), &arguments);
        let url = until("Spark's UI is up", WAIT, async || {
            job.assert_running();
            let log = job.log();
            let line = log.lines().find(|line| line.starts_with("application "))?;
            Some(line.split_once(" ui ")?.1.to_owned())
        })
        .await;
        Self {
            url,
            history_url,
            job,
            history,
            rest,
            release,
        }
    }

    /// The REST API's answer about the application, once all jobs have ended. The application runs until
    /// [`let_go`](Self::let_go).
    pub fn rest_answers(&mut self) -> Option<Value> {
        self.job.assert_running();
        let answers = std::fs::read(&self.rest).ok()?;
        Some(serde_json::from_slice(&answers).unwrap())
    }

    /// Lets the application end, and waits until it has.
    pub async fn let_go(&mut self) {
        std::fs::write(&self.release, "").unwrap();
        assert!(self.job.ended().await.success(), "{}", self.job.log());
    }

    /// Stops the History Server too.
    pub async fn stop(self) {
        self.history.stop().await;
    }
}
