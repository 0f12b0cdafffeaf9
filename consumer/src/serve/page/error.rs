//! Errors, as pages.

use askama::Template;
use axum::http::StatusCode;
use service::text::shown;

use super::frame::Frame;
use super::links::{Query, TASKS};
use crate::serve::problem::Problem;

#[derive(Template)]
#[template(path = "page/error.html")]
pub(super) struct ErrorView {
    frame: Frame,
    title: &'static str,
    detail: String,
    is_retried: bool,
}

impl ErrorView {
    /// Of a view at an address.
    pub(super) fn of(path: &str, query: &Query, status: StatusCode, detail: String) -> Self {
        let title = match status {
            StatusCode::NOT_FOUND => "There is no such task",
            status => title(status),
        };
        Self::at(path, query, status, title, detail)
    }

    /// Of any other path. Somebody else may have chosen it: no link and no form leads there.
    pub(super) fn elsewhere(path: &str, problem: &Problem) -> Self {
        let (title, detail) = match problem.status() {
            StatusCode::NOT_FOUND => (
                "There is no such page",
                format!("Nothing is served at {}.", shown(path)),
            ),
            status => (title(status), shown(problem.detail())),
        };
        Self::at(TASKS, &Query::default(), problem.status(), title, detail)
    }

    fn at(
        path: &str,
        query: &Query,
        status: StatusCode,
        title: &'static str,
        detail: String,
    ) -> Self {
        let is_retried = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
        );
        let view = if is_retried { "retry" } else { "error" };
        Self {
            frame: Frame::of(view, title.to_owned(), path, query, None),
            title,
            detail,
            is_retried,
        }
    }
}

fn title(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "This cannot be asked",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "This is not yours to see",
        StatusCode::METHOD_NOT_ALLOWED => "This page is only read",
        StatusCode::TOO_MANY_REQUESTS => "Too many ask at once",
        StatusCode::SERVICE_UNAVAILABLE => "The database does not answer",
        _ => "This did not work",
    }
}
