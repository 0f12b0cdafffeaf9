//! A bounded pool of database connections, each answering one request at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::BoxFuture;
use service::health::Health;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::problem::Problem;
use crate::query::{QueryError, Reader};
use crate::store::{Database, StoreError};

/// Maximum number of connections, and so of concurrent requests.
const CONNECTIONS: usize = 8;
/// Maximum number of requests that wait for a connection. Further ones get 429.
const QUEUE: usize = 64;
/// Time limit of a query, enforced by the database.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of a request, which may run several queries, including its wait for a connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// `Retry-After` when the queue is full.
const CROWDED: Duration = Duration::from_secs(1);

/// Read-only connections.
pub(crate) struct Readers(Arc<Shared>);

struct Shared {
    database: Database,
    health: Arc<Health>,
    is_unavailable: AtomicBool,
    idle: Mutex<Vec<Reader>>,
    /// Permits of running and waiting requests.
    queue: Arc<Semaphore>,
    /// Permits of running requests.
    connections: Arc<Semaphore>,
}

impl Readers {
    /// Connects on the first request.
    pub(crate) fn of(database: Database, health: Arc<Health>) -> Self {
        Self(Arc::new(Shared {
            database,
            health,
            is_unavailable: AtomicBool::new(false),
            idle: Mutex::default(),
            queue: Arc::new(Semaphore::new(CONNECTIONS + QUEUE)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }))
    }

    /// Runs `question` on one snapshot of the database.
    ///
    /// # Errors
    /// 400 if the query is invalid, 429 if the queue is full, 503 if the database is unavailable.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl for<'r> FnOnce(&'r mut Reader) -> BoxFuture<'r, Result<T, QueryError>>
        + Send
        + 'static,
    ) -> Result<T, Problem> {
        let Ok(queued) = self.0.queue.clone().try_acquire_owned() else {
            let detail = "too many requests are waiting for the database; retry";
            let crowded = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail);
            return Err(crowded.retry_after(CROWDED));
        };
        let shared = self.0.clone();
        // In its own task: if the caller disconnects, the query still holds its permit until it ends.
        let answered = tokio::spawn(async move {
            let _queued = queued;
            let Ok(_connection) = shared.connections.clone().acquire_owned().await else {
                return Err(Problem::unavailable());
            };
            shared.answer(question).await
        });
        match timeout(ANSWER_LIMIT, answered).await {
            Ok(Ok(answer)) => answer,
            // Propagates a panic to the handler.
            Ok(Err(ended)) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Problem::unavailable()),
            },
            Err(_) => Err(Problem::unavailable()),
        }
    }
}

impl Shared {
    async fn answer<T>(
        &self,
        question: impl for<'r> FnOnce(&'r mut Reader) -> BoxFuture<'r, Result<T, QueryError>>,
    ) -> Result<T, Problem> {
        let asked = async {
            let mut reader = self.reader().await?;
            let answer = question(&mut reader).await;
            // After a failure the connection is dropped: its transaction or the connection itself may be broken.
            if answer.is_ok() && reader.end_snapshot().await.is_ok() {
                self.idle().push(reader);
            }
            answer
        };
        // On a timeout the connection is dropped.
        let Ok(answer) = timeout(ANSWER_LIMIT, asked).await else {
            let waited = ANSWER_LIMIT.as_secs();
            self.note_unavailable(&format!("no answer within {waited} s"));
            return Err(Problem::unavailable());
        };
        match &answer {
            Ok(_) => {
                if self.is_unavailable.swap(false, Ordering::Relaxed) {
                    tracing::info!("{} answers again", self.database.place());
                }
                self.health.answered();
            }
            // Caused by the request.
            Err(QueryError::Store {
                doing,
                source: fault @ (StoreError::TooLong(_) | StoreError::Refused(_)),
            }) => tracing::warn!("{doing}: {fault}"),
            // The database answers; an operator has to repair a row.
            Err(error @ QueryError::Unreadable { .. }) => report_invalid(&error.to_string()),
            Err(QueryError::Store {
                doing,
                source: source @ StoreError::Unreadable(_),
            }) => report_invalid(&format!("{doing}: {source}")),
            Err(QueryError::Store { doing, source }) => {
                self.note_unavailable(&format!("{doing}: {source}"));
            }
            Err(_) => {}
        }
        answer.map_err(|error| Problem::from(&error))
    }

    /// Logs the first failure, and reports it in the readiness check.
    fn note_unavailable(&self, why: &str) {
        if !self.is_unavailable.swap(true, Ordering::Relaxed) {
            tracing::warn!("{why}; requests are answered with 503 until it is back");
        }
        self.health.waiting_for(why.to_owned());
    }

    /// A connection with a new snapshot; reuses an idle one if it still works.
    async fn reader(&self) -> Result<Reader, QueryError> {
        loop {
            let Some(mut reader) = self.idle().pop() else {
                return Reader::open_limited(&self.database, Some(QUERY_LIMIT)).await;
            };
            if reader.renew_snapshot().await.is_ok() {
                return Ok(reader);
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs an invalid stored value, once while requests find it.
fn report_invalid(line: &str) {
    match service::repeats::is_new(module_path!(), line) {
        true => tracing::error!("{line}"),
        false => tracing::debug!("{line}"),
    }
}
