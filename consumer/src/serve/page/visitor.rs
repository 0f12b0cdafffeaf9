//! The visitor of a page.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::serve::caller::Caller;
use crate::serve::login::LoggedIn;

/// The caller's properties that pages depend on.
#[derive(Clone, Debug, Default)]
pub(super) struct Visitor {
    /// The only user whose tasks are shown; `None`: all users.
    pub(super) viewer: Option<String>,
    /// Whether the caller logged in with the form, and can log out.
    pub(super) is_logged_in: bool,
}

impl<S: Sync> FromRequestParts<S> for Visitor {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let caller = parts.extensions.get::<Caller>();
        Ok(Self {
            viewer: caller.and_then(Caller::scope).map(str::to_owned),
            is_logged_in: parts.extensions.get::<LoggedIn>().is_some(),
        })
    }
}
