//! The page: what [`query`](crate::query) says, for people.
//!
//! ```text
//! address ──▶ Query ──▶ Parameters, as of the API ──▶ Readers ──▶ a view ──▶ templates/page/*.html
//!                                                                           static/*.js make it live
//! ```
//!
//! Each view is whole HTML and works without scripts. The templates escape the text of reports, which is shown without
//! hidden characters.

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
use self::jobs::JobsView;
use self::links::{ENGINES, JOBS, PERIOD, Query, TASKS, USAGE};
use self::task::{Found, TaskView};
use self::tasks::TasksView;
use self::usage::UsageView;
use super::api::{engines_query, jobs_query, task_query, usage_query};
use super::app::App;
use super::caller::Caller;
use super::login::is_browser;
use super::parameters::Parameters;
use super::problem::Problem;
use crate::query::{QueryError, Reader, SeriesQuery, TaskItem};

/// Below this are no pages.
const API: &str = "/api/";
/// So many of a task's newest reports are listed.
const REPORTS: u32 = 50;
/// Points of each series that is drawn: one for every few pixels.
const POINTS: u32 = 200;

/// The views, and the files that they use.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(home))
        .route(TASKS, get(list))
        .route("/tasks/{exec_id}", get(one))
        .route(JOBS, get(jobs))
        .route(ENGINES, get(engines))
        .route(USAGE, get(used))
        .route("/static/{version}/{name}", get(assets::asset))
}

/// What runs comes first.
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
        let fares = caller.scope().is_none().then(|| app.live.fares());
        let page = app
            .readers
            .ask(move |reader| async move { reader.page(&query).await }.boxed())
            .await?;
        Ok(TasksView::of(&given, &asked, fares, page))
    };
    answer(view.await, &uri, &given)
}

async fn one(
    State(app): State<App>,
    uri: Uri,
    Path(exec_id): Path<String>,
    caller: Result<Caller, Problem>,
    parameters: Result<Parameters, Problem>,
) -> Response {
    let given = Query::of(&uri);
    if let Some(tidy) = given.tidied() {
        return Redirect::to(&tidy.at(&links::task(&exec_id))).into_response();
    }
    let view = async {
        let (caller, mut parameters) = (caller?, parameters?);
        let at = parameters.time("at");
        parameters.end()?;
        let absent = match at {
            None => format!("No task {exec_id:?} has reported, or it is not yours to see."),
            Some(at) => format!(
                "No task {exec_id:?} had reported by {}, or it is not yours to see.",
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
    answer(view.await, &uri, &given)
}

async fn jobs(
    State(app): State<App>,
    uri: Uri,
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
    answer(view.await, &uri, &given)
}

/// Engines are shown as they are now. A past time is kept for the other views.
async fn engines(
    State(app): State<App>,
    uri: Uri,
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
    answer(view.await, &uri, &given)
}

/// As of a past time: what was used until then, which is what was known of it then.
async fn used(
    State(app): State<App>,
    uri: Uri,
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
    answer(view.await, &uri, &given)
}

/// Shows browsers a page for every [`Problem`] that no view has shown: a path or method that is not served, a path that
/// cannot be read, a limit. What the API says stays as it is.
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

/// Everything about a task; `None`: there is no such task, it is not this user's, or it had not reported by then.
async fn found(
    reader: &mut Reader,
    exec_id: String,
    user: Option<String>,
    at: Option<Timestamp>,
) -> Result<Option<Found>, QueryError> {
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
    Ok(Some(Found {
        item,
        details,
        series,
    }))
}

/// A view, or a problem as a page.
fn answer(view: Result<impl Template, Problem>, uri: &Uri, given: &Query) -> Response {
    let problem = match view.map(|view| view.render()) {
        Ok(Ok(html)) => return html_of(StatusCode::OK.into_response(), html),
        Ok(Err(error)) => {
            tracing::error!("a page was not made: {error}");
            Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a bug in this program, which its log tells of; please report it",
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
    match view.render() {
        // With the headers of the problem.
        Ok(html) => html_of(problem.into_response(), html),
        Err(_) => problem.into_response(),
    }
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
