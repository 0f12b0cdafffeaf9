//! Error pages.

use askama::Template;
use axum::http::StatusCode;
use service::text::shown;

use super::frame::Frame;
use super::links::{Query, TASKS};
use crate::serve::problem::Problem;

#[derive(Template)]
#[template(path = "page/error.html")]
pub(super) struct ErrorView {
    pub(super) frame: Frame,
    title: &'static str,
    detail: String,
    is_retried: bool,
}

impl ErrorView {
    /// An error of a view.
    pub(super) fn of(path: &str, query: &Query, status: StatusCode, detail: String) -> Self {
        let title = match status {
            StatusCode::NOT_FOUND => "Task not found",
            status => title(status),
        };
        Self::at(path, query, status, title, detail)
    }

    /// An error of any other path. The path is untrusted, so no link or form leads to it.
    pub(super) fn elsewhere(path: &str, problem: &Problem) -> Self {
        let (title, detail) = match problem.status() {
            StatusCode::NOT_FOUND => (
                "Page not found",
                format!("There is no page at {}.", shown(path)),
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
        StatusCode::BAD_REQUEST => "Invalid request",
        StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => "Access denied",
        StatusCode::METHOD_NOT_ALLOWED => "This page is read-only",
        StatusCode::TOO_MANY_REQUESTS => "Too many requests",
        StatusCode::SERVICE_UNAVAILABLE => "The database is unavailable",
        _ => "Something went wrong",
    }
}
