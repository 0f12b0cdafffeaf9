//! The real `consumer serve` as a child process, observed as by its clients.

use std::path::Path;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::Value;
use service::testing::{ANY_PORT, Process, until};

use super::Pipeline;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");
/// Its log message when it listens, up to the address.
const SERVES: &str = "serving on ";

/// A server; killed when dropped.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) client: reqwest::Client,
    /// As in `http://127.0.0.1:8080`.
    pub(crate) origin: String,
}

/// A server's answer.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answered {
    pub(crate) async fn of(response: reqwest::Response) -> Self {
        Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.text().await.unwrap(),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// `detail` of the problem, which must be a complete one.
    pub(crate) fn problem(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], "about:blank");
        assert!(problem["title"].is_string(), "{problem}");
        problem["detail"].as_str().unwrap().to_owned()
    }
}

impl Pipeline {
    /// Starts `consumer serve` on this pipeline's database, and waits until it listens.
    pub(crate) async fn serve(&self, name: &str, more: &[&str]) -> Server {
        self.serve_on(&self.database_url, name, more).await
    }

    /// The same with another database.
    pub(crate) async fn serve_on(&self, database_url: &str, name: &str, more: &[&str]) -> Server {
        let mut arguments = vec!["serve", "--metrics-listen", ANY_PORT];
        if !more.contains(&"--listen") {
            arguments.extend(["--listen", ANY_PORT]);
        }
        arguments.extend(more);
        let database = [("DATABASE_URL", database_url)]; // it may hold a password
        let program = Path::new(CONSUMER);
        let mut process = Process::start_with(self.folder(), name, program, &arguments, &database);
        let listens = until("it listens", Duration::from_secs(60), async || {
            process.assert_running();
            let log = process.log();
            let (_, rest) = log.split_once(SERVES)?;
            Some(rest.split_once('\n')?.0.trim().to_owned())
        });
        let origin = listens.await;
        Server {
            process,
            // Compressed answers are shown as they are.
            client: reqwest::Client::builder().no_gzip().build().unwrap(),
            origin,
        }
    }
}

impl Server {
    pub(crate) fn request(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.origin))
    }

    pub(crate) async fn get(&self, path: &str) -> Answered {
        Answered::of(self.request(path).send().await.unwrap()).await
    }

    /// A successful JSON answer.
    pub(crate) async fn json(&self, path: &str) -> Value {
        let answered = self.get(path).await;
        assert_eq!(answered.status, 200, "{answered:?}");
        answered.json()
    }

    /// Stops it; it must exit in order.
    pub(crate) async fn stop(mut self) {
        self.process.assert_running();
        let status = self.process.stop().await;
        assert_eq!(status.code(), Some(0), "{status}");
    }
}
