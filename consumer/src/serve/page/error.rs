//! Errors, as pages.

use askama::Template;
use axum::http::StatusCode;

use super::frame::Frame;
use super::links::{Query, TASKS};

#[derive(Template)]
#[template(path = "page/error.html")]
pub(super) struct ErrorView {
    frame: Frame,
    title: &'static str,
    detail: String,
    is_retried: bool,
}

impl ErrorView {
    pub(super) fn of(path: &str, query: &Query, status: StatusCode, detail: String) -> Self {
        let title = match status {
            StatusCode::BAD_REQUEST => "This cannot be asked",
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "This is not yours to see",
            StatusCode::NOT_FOUND => "There is no such task",
            StatusCode::TOO_MANY_REQUESTS => "Too many ask at once",
            StatusCode::SERVICE_UNAVAILABLE => "The database does not answer",
            _ => "This did not work",
        };
        let is_retried = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        Self {
            frame: Frame::of(
                if is_retried { "retry" } else { "error" },
                title.to_owned(),
                path,
                query,
                None,
            ),
            title,
            detail,
            is_retried,
        }
    }

    /// Nothing is served at this path. Somebody else may have chosen it: no link and no form leads there.
    pub(super) fn absent(path: &str) -> Self {
        let title = "There is no such page";
        Self {
            frame: Frame::of("error", title.to_owned(), TASKS, &Query::default(), None),
            title,
            detail: format!("Nothing is served at {path}."),
            is_retried: false,
        }
    }
}
