//! Waits for answers that may take long, as in an audit, but not for one that never arrives: every 30 s, a second
//! connection checks whether the server is working on it.

use std::pin::pin;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::codes::number;
use super::server::{CONNECT, Server};
use crate::store::StoreError;

/// Numbers of errors: too many connections, of all users or of this one.
const TOO_MANY: [u16; 3] = [1040, 1203, 1226];
/// Time to wait for an answer, or a part of one, before checking.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time before the second check if the first one found the server not working: the answer may have been in transit.
const ONCE_MORE: Duration = Duration::from_secs(5);
/// A session may look busy but be frozen. No part of an answer takes this long.
const LONGEST: Duration = Duration::from_secs(2 * 3600);

/// Watches a session.
pub(super) struct Watch {
    pub(super) server: Server,
    /// The number of the session.
    pub(super) id: u64,
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
        let (mut patience, mut was_idle) = (PATIENCE, false);
        loop {
            if let Ok(answer) = timeout(patience, &mut asked).await {
                return Ok(answer?);
            }
            let waited = begun.elapsed();
            let dead = |why: &str| {
                StoreError::Retry(format!("no answer within {} s: {why}", waited.as_secs()))
            };
            let command = match timeout(CONNECT, self.look()).await {
                Err(_) => return Err(dead("the server does not answer")),
                // The server answers, but has no connection to spare for the check.
                Ok(Err(error)) if number(&error).is_some_and(|one| TOO_MANY.contains(&one)) => None,
                Ok(Err(error)) => return Err(dead(&error.to_string())),
                Ok(Ok(None)) => return Err(dead("the server has ended this session")),
                Ok(Ok(command)) => command,
            };
            if waited > LONGEST {
                return Err(dead("given up"));
            }
            // Between two statements.
            let is_idle = command.is_some_and(|command| command == "Sleep");
            if is_idle && was_idle {
                let why = "the server is not working on it: the request or the answer was lost";
                return Err(dead(why));
            }
            (was_idle, patience) = (is_idle, if is_idle { ONCE_MORE } else { PATIENCE });
        }
    }

    /// What the session does; `None`: it no longer exists. Every user sees the sessions of its own.
    async fn look(&self) -> Result<Option<String>, sqlx::Error> {
        let mut connection = self.server.connect_alone().await?;
        let select =
            "SELECT CAST(command AS char) FROM information_schema.processlist WHERE id = ?";
        let command = sqlx::query_scalar(select).bind(self.id).persistent(false);
        command.fetch_optional(&mut connection).await
    }
}
