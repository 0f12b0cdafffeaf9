//! The web page: the results of [`query`](crate::query) for people.
//!
//! ```text
//! address ──▶ Query ──▶ Parameters, as of the API ──▶ Readers ──▶ a view ──▶ templates/page/*.html
//!                                                                           static/*.js make it live
//! ```
//!
//! Each view is complete HTML and works without scripts. Templates escape text from reports, and hidden characters are
//! replaced.

mod assets;
mod bars;
mod chip;
mod drawing;
mod engines;
mod error;
mod format;
mod frame;
mod jobs;
mod links;
mod pages;
mod period;
mod plot;
mod row;
mod status;
mod task;
mod tasks;
#[cfg(test)]
mod tests;
mod usage;
mod visitor;

use askama::Template;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use futures_util::FutureExt;
use jiff::Timestamp;

use self::engines::EnginesView;
use self::error::ErrorView;
use self::frame::Frame;
use self::jobs::JobsView;
use self::links::{ENGINES, JOBS, PERIOD, Query, TASK, TASKS, USAGE};
use self::task::{TaskData, TaskView};
use self::tasks::TasksView;
use self::usage::UsageView;
use self::visitor::Visitor;
use super::api::{engines_query, jobs_query, task_query, usage_query};
use super::app::App;
use super::caller::Caller;
use super::login::is_browser;
use super::parameters::Parameters;
use super::problem::Problem;
use crate::query::{QueryError, Reader, SeriesQuery, TaskItem};

/// Paths below this have no pages.
const API: &str = "/api/";
/// Number of newest reports listed for a task.
const REPORTS: u32 = 50;
/// Points of each drawn series: one for every few pixels.
const POINTS: u32 = 200;

/// The views, and their static files.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(home))
        .route(TASKS, get(list))
        .route("/tasks/{exec_id}", get(one))
        .route(TASK, get(one_by_parameter))
        .route(JOBS, get(jobs))
        .route(ENGINES, get(engines))
        .route(USAGE, get(used))
        .route("/static/{version}/{name}", get(assets::asset))
}

/// Shows running tasks.
async fn home() -> Redirect {
    Redirect::to(
        &Query::default()
            .and("running", "true")
            .and("order", "started")
            .at(TASKS),
    )
}

async fn list(
    State(app): State<App>,
    uri: Uri,
    visitor: Visitor,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    let given = Query::of(&uri);
    if let Some(tidy) = given.tidied() {
        return Redirect::to(&tidy.at(TASKS)).into_response();
    }
    let view = async {
        let caller = caller?;
        let query = task_query(parameters?, &caller)?;
        let asked = query.clone();
        let task_counts = caller.scope().is_none().then(|| app.live.counts());
        let page = app
            .readers
            .ask(move |reader| async move { reader.page(&query).await }.boxed())
            .await?;
        Ok(TasksView::of(&given, &asked, task_counts, page))
    };
    answer(view.await, &uri, &given, visitor)
}

async fn one(
    State(app): State<App>,
    uri: Uri,
    Path(exec_id): Path<String>,
    visitor: Visitor,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    task_page(app, uri, exec_id, visitor, caller, parameters).await
}

/// A task whose id no path can contain. Leads to the page of others.
async fn one_by_parameter(
    State(app): State<App>,
    uri: Uri,
    visitor: Visitor,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    let given = Query::of(&uri);
    let exec_id = given.first("exec_id").to_owned();
    if !exec_id.is_empty() && !links::is_dots(&exec_id) {
        return Redirect::to(&links::task(&exec_id, &given)).into_response();
    }
    let parameters = parameters.map(|mut parameters| {
        parameters.required("exec_id");
        parameters
    });
    task_page(app, uri, exec_id, visitor, caller, parameters).await
}

async fn task_page(
    app: App,
    uri: Uri,
    exec_id: String,
    visitor: Visitor,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    let given = Query::of(&uri);
    if let Some(tidy) = given.tidied() {
        return Redirect::to(&links::task(&exec_id, &tidy)).into_response();
    }
    let view = async {
        let (caller, mut parameters) = (caller?, parameters?);
        let at = parameters.time("at");
        parameters.end()?;
        let absent = match at {
            None => format!("Task {exec_id:?} has not reported, or you may not see it."),
            Some(at) => format!(
                "Task {exec_id:?} had not reported by {}, or you may not see it.",
                format::moment(at)
            ),
        };
        let user = caller.scope().map(str::to_owned);
        let asked = app
            .readers
            .ask(move |reader| async move { found(reader, exec_id, user, at).await }.boxed());
        let found = asked
            .await?
            .ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, absent))?;
        Ok(TaskView::of(&given, at, found))
    };
    answer(view.await, &uri, &given, visitor)
}

async fn jobs(
    State(app): State<App>,
    uri: Uri,
    visitor: Visitor,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    let given = Query::of(&uri);
    if let Some(tidy) = given.tidied() {
        return Redirect::to(&tidy.at(JOBS)).into_response();
    }
    let view = async {
        let query = jobs_query(parameters?, &caller?)?;
        let asked = query.clone();
        let page = app
            .readers
            .ask(move |reader| async move { reader.jobs(&query).await }.boxed())
            .await?;
        Ok(JobsView::of(&given, &asked, page))
    };
    answer(view.await, &uri, &given, visitor)
}

/// Shows the present. A past time is kept for the links to other views.
async fn engines(
    State(app): State<App>,
    uri: Uri,
    visitor: Visitor,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    let given = Query::of(&uri);
    if let Some(tidy) = given.tidied() {
        return Redirect::to(&tidy.at(ENGINES)).into_response();
    }
    let view = async {
        let mut parameters = parameters?;
        let kept_time = parameters.time("at");
        parameters.count_back(PERIOD, Timestamp::now());
        let query = engines_query(parameters, &caller?)?;
        let asked = query.clone();
        let page = app
            .readers
            .ask(move |reader| async move { reader.engines(&query).await }.boxed())
            .await?;
        Ok(EnginesView::of(&given, &asked, kept_time, page))
    };
    answer(view.await, &uri, &given, visitor)
}

/// With a past time, usage ends then. Later reports do not change usage until then.
async fn used(
    State(app): State<App>,
    uri: Uri,
    visitor: Visitor,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    let given = Query::of(&uri);
    if let Some(tidy) = given.tidied() {
        return Redirect::to(&tidy.at(USAGE)).into_response();
    }
    let view = async {
        let mut parameters = parameters?;
        let at = parameters.time("at");
        parameters.count_back(PERIOD, at.unwrap_or_else(Timestamp::now));
        let mut query = usage_query(parameters, &caller?)?;
        if let Some(at) = at {
            query.to = Some(query.to.map_or(at, |to| to.min(at)));
        }
        let asked = query.clone();
        let usage = app
            .readers
            .ask(move |reader| async move { reader.usage(&query).await }.boxed())
            .await?;
        Ok(UsageView::of(&given, &asked, at, &usage))
    };
    answer(view.await, &uri, &given, visitor)
}

/// Renders every [`Problem`] outside the API as a page if no view did: unknown paths and methods, invalid paths,
/// limits.
pub(super) async fn errors(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let is_page = is_browser(request.headers()) && !path.starts_with(API);
    let mut response = next.run(request).await;
    let problem = response.extensions_mut().remove::<Problem>();
    let Some(problem) = problem.filter(|_| is_page && !is_html(&response)) else {
        return response;
    };
    match ErrorView::elsewhere(&path, &problem).render() {
        Ok(html) => html_of(response, html),
        Err(_) => response,
    }
}

fn is_html(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    content_type.is_some_and(|content_type| content_type.as_bytes().starts_with(b"text/html"))
}

/// Everything about a task; `None` if there is no such task, it belongs to another user, or it had not reported by
/// then.
async fn found(
    reader: &mut Reader,
    exec_id: String,
    user: Option<String>,
    at: Option<Timestamp>,
) -> Result<Option<TaskData>, QueryError> {
    let item = reader.item(&exec_id, at).await?;
    let is_theirs = |item: &TaskItem| user.as_ref().is_none_or(|user| *user == item.engine_user);
    let Some(item) = item.filter(is_theirs) else {
        return Ok(None);
    };
    let Some(details) = reader.task(&exec_id, at, REPORTS).await? else {
        return Ok(None);
    };
    let query = SeriesQuery {
        exec_id,
        user,
        from: None,
        to: at,
        points: POINTS,
        metrics: task::numbers(&details),
    };
    let Some(series) = reader.series(&query).await? else {
        return Ok(None);
    };
    Ok(Some(TaskData {
        item,
        details,
        series,
    }))
}

/// A page in its [`Frame`].
trait View: Template {
    fn frame(&mut self) -> &mut Frame;
}

/// Each of these is a view in its field `frame`.
macro_rules! views {
    ($($view:ty),+ $(,)?) => {
        $(impl View for $view {
            fn frame(&mut self) -> &mut Frame {
                &mut self.frame
            }
        })+
    };
}

views!(
    TasksView,
    TaskView,
    JobsView,
    EnginesView,
    UsageView,
    ErrorView
);

/// A view, or a problem as a page.
fn answer(
    view: Result<impl View, Problem>,
    uri: &Uri,
    given: &Query,
    visitor: Visitor,
) -> Response {
    let problem = match view.map(|view| rendered(view, visitor.clone())) {
        Ok(Ok(html)) => return html_of(StatusCode::OK.into_response(), html),
        Ok(Err(error)) => {
            tracing::error!("cannot render a page: {error}");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal error: a bug, with details in the server's log; please report it",
            )
        }
        Err(problem) => problem,
    };
    let view = ErrorView::of(
        uri.path(),
        given,
        problem.status(),
        problem.detail().to_owned(),
    );
    match rendered(view, visitor) {
        // With the headers of the problem.
        Ok(html) => html_of(problem.into_response(), html),
        Err(_) => problem.into_response(),
    }
}

fn rendered(mut view: impl View, visitor: Visitor) -> Result<String, askama::Error> {
    view.frame().visitor = visitor;
    view.render()
}

fn html_of(mut response: Response, html: String) -> Response {
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    *response.body_mut() = Body::from(html);
    response
}
