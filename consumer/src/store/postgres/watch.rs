//! Waits for answers of PostgreSQL that may take long, as in an audit, but not for one that never arrives: every 30 s,
//! a second connection checks whether the server is working on it.

use std::pin::pin;
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use tokio::time::timeout;

use super::server::{CONNECT, Server};
use super::sqlstate;
use crate::store::StoreError;

/// Time to wait for an answer, or a part of one, before checking.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time before the second check if the first one found the server not working: the answer may have been in transit.
const ONCE_MORE: Duration = Duration::from_secs(5);
/// A session may look busy but be frozen. No part of an answer takes this long: the first row of an audit follows the
/// sort of a table, some minutes for a hundred million rows.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

/// Watches a session.
pub(super) struct Watch {
    /// The host of the session.
    server: Server,
    process: i32,
}

/// The activity of a session.
#[derive(Debug, PartialEq)]
struct Activity {
    /// `active`, `idle`, `idle in transaction`, …
    state: String,
    /// What it waits for: the type, and type and event.
    wait: Option<(String, String)>,
    /// When this state began.
    since: String,
}

impl Activity {
    /// Whether it is working on the answer: neither finished, nor waiting for this client.
    fn is_work(&self) -> bool {
        let for_us = self.wait.as_ref().is_some_and(|(kind, _)| kind == "Client");
        self.state == "active" && !for_us
    }
}

impl std::fmt::Display for Activity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.wait {
            Some((_, wait)) => write!(f, "{}, waiting for {wait}", self.state),
            None => write!(f, "{}", self.state),
        }
    }
}

impl Watch {
    /// Watches a session on the only host of `server`.
    pub(super) async fn over(
        connection: &mut PgConnection,
        server: Server,
    ) -> Result<Self, StoreError> {
        let process = sqlx::query_scalar("SELECT pg_backend_pid()").persistent(false);
        let process = timeout(CONNECT, process.fetch_one(connection));
        let process = process.await.map_err(|_| no_answer(CONNECT))??;
        Ok(Self { server, process })
    }
}

fn no_answer(within: Duration) -> StoreError {
    StoreError::Retry(format!("no answer within {} s", within.as_secs()))
}

impl Watch {
    /// Awaits the answer to a request on the session.
    ///
    /// # Errors
    /// The request's own errors; and if the server neither answers nor works on it.
    pub(super) async fn answer<T>(
        &self,
        asked: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, StoreError> {
        let (begun, mut asked) = (Instant::now(), pin!(asked));
        let (mut patience, mut idle, mut logged) = (PATIENCE, None, String::new());
        loop {
            if let Ok(answer) = timeout(patience, &mut asked).await {
                return match answer {
                    Err(error) if sqlstate::is_undefined_table(&error) => {
                        Err(self.hidden_tables().await.unwrap_or(error.into()))
                    }
                    answer => Ok(answer?),
                };
            }
            let waited = begun.elapsed();
            let dead = |why: &str| {
                StoreError::Retry(format!("no answer within {} s: {why}", waited.as_secs()))
            };
            let activity = match timeout(CONNECT, self.look()).await {
                Err(_) => return Err(dead("the server does not answer")),
                // The server answers, but does not allow the check.
                Ok(Err(sqlx::Error::Database(_))) => None,
                Ok(Err(error)) => return Err(dead(&error.to_string())),
                Ok(Ok(None)) => return Err(dead("the server has ended this session")),
                Ok(Ok(activity)) => activity,
            };
            if waited > LONGEST {
                return Err(dead("given up"));
            }
            patience = PATIENCE;
            match activity {
                Some(activity) if !activity.is_work() => {
                    if idle.as_ref() == Some(&activity) {
                        return Err(dead(&format!(
                            "the server is not working on it ({activity}): the request or the answer was lost"
                        )));
                    }
                    (idle, patience) = (Some(activity), ONCE_MORE);
                }
                Some(activity) if logged != activity.to_string() => {
                    logged = activity.to_string();
                    tracing::info!(
                        "{} has been working on an answer for {} s ({logged})",
                        self.server.place(),
                        waited.as_secs()
                    );
                }
                _ => {}
            }
        }
    }

    /// The missing right, if the tables exist but are not visible. Uses a connection of its own: that of the session
    /// may be in a failed transaction.
    async fn hidden_tables(&self) -> Option<StoreError> {
        let connection = timeout(CONNECT, self.server.connect_alone()).await;
        let mut connection = connection.ok()?.ok()?;
        timeout(CONNECT, sqlstate::hidden_tables(&mut connection))
            .await
            .ok()?
    }

    /// The session's activity; `None`: it no longer exists.
    async fn look(&self) -> Result<Option<Activity>, sqlx::Error> {
        let mut connection = self.server.connect_alone().await?;
        let select = "SELECT coalesce(state, ''), wait_event_type, wait_event_type || ' ' || wait_event, \
             coalesce(state_change::text, '') FROM pg_stat_activity WHERE pid = $1";
        type Row = (String, Option<String>, Option<String>, String);
        let row: Option<Row> = sqlx::query_as(select)
            .bind(self.process)
            .persistent(false)
            .fetch_optional(&mut connection)
            .await?;
        Ok(row.map(|(state, kind, wait, since)| Activity {
            state,
            wait: kind.zip(wait),
            since,
        }))
    }
}
