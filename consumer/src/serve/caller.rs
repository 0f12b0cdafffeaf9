//! The caller of a request, and which tasks it may see.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::problem::Problem;

/// The authenticated caller. Every route that returns tasks extracts this and obeys its [`scope`](Self::scope); a
/// request without one is rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Sees all tasks.
    Operator,
    /// Sees only the tasks of this user.
    Viewer { user: String },
}

impl Caller {
    /// The only user whose tasks may be shown; `None`: all users.
    pub(crate) fn scope(&self) -> Option<&str> {
        match self {
            Self::Operator => None,
            Self::Viewer { user } => Some(user),
        }
    }

    /// Whether the tasks of this user may be shown.
    pub(crate) fn sees(&self, engine_user: &str) -> bool {
        self.scope().is_none_or(|user| user == engine_user)
    }

    /// The user to whom a query is limited; `user` is the one it names, if any.
    ///
    /// # Errors
    /// 403 if it names another user than the caller may see.
    pub(crate) fn narrow(&self, user: Option<String>) -> Result<Option<String>, Problem> {
        match (self, user) {
            (Self::Viewer { user: own }, Some(asked)) if asked != *own => {
                let detail = "user: you may see only your own tasks";
                Err(Problem::new(StatusCode::FORBIDDEN, detail))
            }
            (Self::Viewer { user }, _) => Ok(Some(user.clone())),
            (Self::Operator, user) => Ok(user),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let caller = parts.extensions.get::<Self>().cloned();
        // Reached only if a route is mounted without authentication.
        caller.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "not authenticated"))
    }
}
