//! Requests: who sends them, what they hold, and what becomes of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::BodyDataStream;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use service::http_server::{HostNames, Peer, Reloaded, Tokens, measure};
use service::repeats;
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

use super::body::{self, Held, Room};
use super::items::{Format, items};
use super::problem::Problem;
use super::results::Results;
use crate::awaited::Unsent;
use crate::json::{self, REPORT_MAX_BYTES};
use crate::session::AwaitedReports;

/// Counter: reports received. Labels `http_route`, `result`: `acknowledged`, `refused`, `unacknowledged`.
pub(crate) const RECEIVED: &str = "taskrunning_received_reports_total";
/// Counter, bytes: decompressed bodies. Label `http_route`.
pub(crate) const RECEIVED_BYTES: &str = "taskrunning_received_bytes_total";

const REPORTS: &str = "/api/v1/reports";
/// Time limit for the acknowledgements of a request, beyond librdkafka's `message.timeout.ms`: reports that are sent
/// alone come one after the other.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Reports that are read before other requests have their turn.
const TURN: usize = 64;

/// The state of all requests.
pub(super) struct Server {
    /// `None`: anyone may report.
    pub(super) tokens: Option<Reloaded<Tokens<Arc<str>>>>,
    /// Empty until Kafka has answered for the first time.
    pub(super) reports: OnceLock<AwaitedReports>,
    pub(super) room: Room,
    /// Go on when their client has gone, so that the room is held until Kafka has answered.
    pub(super) delivering: TaskTracker,
    pub(super) refused: AtomicU64,
}

pub(super) fn router(server: Arc<Server>, names: HostNames) -> Router {
    let measured = |route: &'static str| {
        from_fn(move |request, next| measure(route.to_owned(), request, next))
    };
    let unknown = async || {
        let detail = format!("nothing is received at this path; send reports to {REPORTS}");
        Problem::new(StatusCode::NOT_FOUND, detail)
    };
    let not_post = async || {
        let post = HeaderValue::from_static("POST");
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "use POST").with(header::ALLOW, post)
    };
    Router::new()
        .route(REPORTS, post(reports).route_layer(measured(REPORTS)))
        .fallback(unknown)
        .method_not_allowed_fallback(not_post)
        .with_state(server)
        .layer(CatchPanicLayer::custom(|_| failed().into_response()))
        .layer(from_fn_with_state(names, only_by_name))
}

/// Rejects requests for other host names (421).
async fn only_by_name(State(names): State<HostNames>, request: Request, next: Next) -> Response {
    match names.check(&request) {
        Ok(()) => next.run(request).await,
        Err(detail) => Problem::new(StatusCode::MISDIRECTED_REQUEST, detail).into_response(),
    }
}

async fn reports(State(server): State<Arc<Server>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    match server.receive(&parts, &mut body).await {
        Ok(response) => response,
        Err(problem) => {
            // A client that expects 100 (Continue) sends no body without it.
            if !parts.headers.contains_key(header::EXPECT) {
                body::drain(&mut body).await;
            }
            problem.into_response()
        }
    }
}

fn failed() -> Problem {
    let detail = "internal error: a bug, with details in the server's log; please report it";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

impl Server {
    async fn receive(
        self: &Arc<Self>,
        parts: &Parts,
        body: &mut BodyDataStream,
    ) -> Result<Response, Problem> {
        let client = self.client(parts)?;
        let format = Format::of(&parts.headers)?;
        if self.reports.get().is_none() {
            return Err(Problem::unavailable(
                "Kafka has not answered yet; send again later",
            ));
        }
        let (text, held) = body::read(parts, body, &self.room).await?;
        metrics::counter!(RECEIVED_BYTES, "http_route" => REPORTS).increment(text.len() as u64);
        let server = self.clone();
        let deliver = async move { server.deliver(&client, format, &text, held).await };
        let delivered = self.delivering.spawn(deliver).await;
        delivered.unwrap_or_else(|_| Err(failed()))
    }

    /// The name of the client, for the log: its token's, or its address.
    fn client(&self, parts: &Parts) -> Result<Arc<str>, Problem> {
        let Some(tokens) = self.tokens.as_ref().map(Reloaded::current) else {
            let peer = parts.extensions.get::<Peer>();
            let peer = peer.map_or_else(String::new, |Peer(peer)| peer.ip().to_string());
            return Ok(peer.into());
        };
        let unauthorized = |detail: &str| {
            let bearer = HeaderValue::from_static("Bearer realm=\"taskrunning\"");
            Problem::new(StatusCode::UNAUTHORIZED, detail).with(header::WWW_AUTHENTICATE, bearer)
        };
        let Some(given) = parts.headers.get(header::AUTHORIZATION) else {
            return Err(unauthorized("send the header Authorization: Bearer TOKEN"));
        };
        tokens.authorized(given).cloned().map_err(unauthorized)
    }

    async fn deliver(
        &self,
        client: &str,
        format: Format,
        text: &[u8],
        mut held: Held,
    ) -> Result<Response, Problem> {
        let Some(reports) = self.reports.get() else {
            return Err(failed());
        };
        let items = items(format, text)?;
        held.grow_for(items.len())?;
        let mut results = Results::of(items.len());
        let mut sent = Vec::with_capacity(items.len());
        // After a report that could not be sent, none is: it would arrive before it.
        let mut stopped: Option<Unsent> = None;
        for (index, item) in items.into_iter().enumerate() {
            if index % TURN == TURN - 1 {
                yield_now().await;
            }
            if item.len() > REPORT_MAX_BYTES {
                let why = format!("it is longer than {REPORT_MAX_BYTES} bytes");
                results.unsent(index, Unsent::TooLarge(why));
                continue;
            }
            let info = match json::read(item, None) {
                Ok(info) => info,
                Err(faults) => {
                    results.bad(index, &faults);
                    continue;
                }
            };
            let handed_over = match &stopped {
                Some(unsent) => Err(unsent.clone()),
                None => reports.send(&info),
            };
            match handed_over {
                Ok(on_its_way) => sent.push((index, on_its_way)),
                Err(unsent) => {
                    if unsent.is_retriable() {
                        stopped = Some(unsent.clone());
                    }
                    results.unsent(index, unsent);
                }
            }
        }
        let mut answered = 0;
        let indices = Vec::from_iter(sent.iter().map(|(index, _)| *index));
        let acknowledged = async {
            for (index, on_its_way) in sent {
                match reports.acknowledged(on_its_way).await {
                    Ok(()) => results.acknowledged += 1,
                    Err(unsent) => results.unsent(index, unsent),
                }
                answered += 1;
            }
        };
        if timeout(ANSWER_LIMIT, acknowledged).await.is_err() {
            for index in &indices[answered..] {
                let why = format!("within {} s", ANSWER_LIMIT.as_secs());
                results.unsent(*index, Unsent::Unavailable(why));
            }
        }
        self.account(client, &results);
        Ok(results.answer())
    }

    fn account(&self, client: &str, results: &Results) {
        let retriable = results.retriable() as u64;
        let refused = results.failed() as u64 - retriable;
        self.refused.fetch_add(refused, Ordering::Relaxed);
        for (result, count) in [
            ("acknowledged", results.acknowledged as u64),
            ("refused", refused),
            ("unacknowledged", retriable),
        ] {
            if count > 0 {
                let labels = [("http_route", REPORTS), ("result", result)];
                metrics::counter!(RECEIVED, &labels).increment(count);
            }
        }
        if let Some(why) = results.first_bad() {
            let line = format!("{client} sends reports that are refused: {why}");
            match repeats::is_new(module_path!(), &line) {
                true => tracing::warn!("{line}"),
                false => tracing::debug!("{line}"),
            }
        }
    }
}
