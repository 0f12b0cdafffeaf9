//! Who asks, and what of the tables they may see.

use axum::extract::FromRequestParts;
use axum::http::StatusCode;
use axum::http::request::Parts;

use super::problem::Problem;

/// Who made a request. Every route that tells of tasks takes this and obeys its [`scope`](Self::scope); a request comes
/// to no route without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Sees all tasks.
    Operator,
    /// Sees only the tasks of this user.
    Viewer { user: String },
}

impl Caller {
    /// The only user whose tasks are to be told of; `None`: of all.
    pub(crate) fn scope(&self) -> Option<&str> {
        match self {
            Self::Operator => None,
            Self::Viewer { user } => Some(user),
        }
    }

    /// Whether the tasks of this user may be told of.
    pub(crate) fn sees(&self, engine_user: &str) -> bool {
        self.scope().is_none_or(|user| user == engine_user)
    }

    /// The user to whose tasks a question is narrowed down, of which it names one or none.
    ///
    /// # Errors
    /// 403 if another one's tasks are asked for.
    pub(crate) fn narrow(&self, user: Option<String>) -> Result<Option<String>, Problem> {
        match (self, user) {
            (Self::Viewer { user: own }, Some(asked)) if asked != *own => {
                let detail = "user: this caller sees only tasks of its own";
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
        // A route outside the guard tells nothing to anybody.
        caller.ok_or_else(|| Problem::new(StatusCode::UNAUTHORIZED, "not authenticated"))
    }
}
