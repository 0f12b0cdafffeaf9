//! A bounded number of connections to the database, which answer questions one at a time each.

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

/// So many questions are asked of the database at once, each on a connection of its own.
const CONNECTIONS: usize = 8;
/// So many more wait for one of them. Others are told to come back.
const QUEUE: usize = 64;
/// A query may take so long. Then the database itself ends it.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
/// A question, which is several queries, may take so long with its wait for a connection.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// When to come back where too many wait.
const CROWDED: Duration = Duration::from_secs(1);

/// Connections that only read.
pub(crate) struct Readers(Arc<Shared>);

struct Shared {
    database: Database,
    health: Arc<Health>,
    is_away: AtomicBool,
    idle: Mutex<Vec<Reader>>,
    /// Permits of those who ask or wait.
    queue: Arc<Semaphore>,
    /// Permits of those who ask.
    connections: Arc<Semaphore>,
}

impl Readers {
    /// Connects when something is asked.
    pub(crate) fn of(database: Database, health: Arc<Health>) -> Self {
        Self(Arc::new(Shared {
            database,
            health,
            is_away: AtomicBool::new(false),
            idle: Mutex::default(),
            queue: Arc::new(Semaphore::new(CONNECTIONS + QUEUE)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }))
    }

    /// Asks something of one snapshot of the database.
    ///
    /// # Errors
    /// 400 for what the question has no answer to, 429 if too many wait, 503 if the database does not answer.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        question: impl for<'r> FnOnce(&'r mut Reader) -> BoxFuture<'r, Result<T, QueryError>>
        + Send
        + 'static,
    ) -> Result<T, Problem> {
        let Ok(queued) = self.0.queue.clone().try_acquire_owned() else {
            let detail = "too many requests wait for the database; ask again";
            let crowded = Problem::new(StatusCode::TOO_MANY_REQUESTS, detail);
            return Err(crowded.retry_after(CROWDED));
        };
        let shared = self.0.clone();
        // A task of its own: a caller that goes away does not leave a query behind that nobody counts.
        let answered = tokio::spawn(async move {
            let _queued = queued;
            let Ok(_connection) = shared.connections.clone().acquire_owned().await else {
                return Err(Problem::away());
            };
            shared.answer(question).await
        });
        match timeout(ANSWER_LIMIT, answered).await {
            Ok(Ok(answer)) => answer,
            // The panic of a question is that of its handler.
            Ok(Err(ended)) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Problem::away()),
            },
            Err(_) => Err(Problem::away()),
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
            // Nothing that failed is asked again: a transaction that failed, or a connection that broke.
            if answer.is_ok() && reader.rest().await.is_ok() {
                self.idle().push(reader);
            }
            answer
        };
        // A connection that does not answer is dropped.
        let Ok(answer) = timeout(ANSWER_LIMIT, asked).await else {
            let waited = ANSWER_LIMIT.as_secs();
            self.is_away(&format!("no answer within {waited} s"));
            return Err(Problem::away());
        };
        match &answer {
            Ok(_) => {
                if self.is_away.swap(false, Ordering::Relaxed) {
                    tracing::info!("{} answers again", self.database.place());
                }
                self.health.answered();
            }
            // The fault of what was asked.
            Err(QueryError::Store {
                doing,
                source: fault @ (StoreError::TooLong(_) | StoreError::Refused(_)),
            }) => tracing::warn!("{doing}: {fault}"),
            Err(QueryError::Store { doing, source }) => {
                self.is_away(&format!("{doing}: {source}"));
            }
            Err(_) => {}
        }
        answer.map_err(|error| Problem::from(&error))
    }

    /// Logs it the first time, and says it to whom asks whether this is ready.
    fn is_away(&self, why: &str) {
        if !self.is_away.swap(true, Ordering::Relaxed) {
            tracing::warn!("{why}; requests are answered with 503 until it is back");
        }
        self.health.waiting_for(why.to_owned());
    }

    /// A connection with a new snapshot: an idle one, if it still works.
    async fn reader(&self) -> Result<Reader, QueryError> {
        loop {
            let Some(mut reader) = self.idle().pop() else {
                return Reader::open_limited(&self.database, Some(QUERY_LIMIT)).await;
            };
            if reader.renew().await.is_ok() {
                return Ok(reader);
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
