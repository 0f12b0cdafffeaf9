//! Requests: authentication, parsing, sending, and the answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::BodyDataStream;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use jiff::Timestamp;
use schemas::TaskRunningInfo;
use service::http_server::{HostNames, Peer, Tokens, measure};
use service::reloaded::Reloaded;
use service::repeats;
use tokio::task::{block_in_place, yield_now};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tower_http::catch_panic::CatchPanicLayer;

use super::body::{self, Held, Room};
use super::endpoint::Endpoint;
use super::items::Format;
use super::problem::Problem;
use super::results::Results;
use crate::awaited::{Sent, Unsent};
use crate::engines::openlineage::{Event, REMEMBERED, Refused, Runs, Taken};
use crate::json::{self, Faulty, REPORT_MAX_BYTES};
use crate::session::AwaitedReports;

/// Counter: reports and events received. Labels `http_route`, `result`: `acknowledged`, `refused`, `unacknowledged`,
/// `no_report`.
pub(crate) const RECEIVED: &str = "taskrunning_received_reports_total";
/// Counter, bytes: decompressed bodies. Label `http_route`.
pub(crate) const RECEIVED_BYTES: &str = "taskrunning_received_bytes_total";

/// Time limit for the acknowledgements of a request, beyond librdkafka's `message.timeout.ms`: reports that are sent
/// alone come one after the other.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a request that are read before other requests have their turn.
const TURN_BYTES: usize = 64 << 10;

/// Bytes of JSON that are parsed by a thread that also serves other requests. That takes some milliseconds at most.
const BESIDE_MAX_BYTES: usize = 256 << 10;

/// The state of all requests.
pub(super) struct Server {
    /// `None`: anyone may report.
    pub(super) tokens: Option<Reloaded<Tokens<Arc<str>>>>,
    /// Empty until Kafka has answered for the first time.
    pub(super) reports: OnceLock<AwaitedReports>,
    pub(super) room: Room,
    /// Requests whose reports are on their way. They outlive their clients, so that the room is held until Kafka has
    /// answered.
    pub(super) delivering: TaskTracker,
    pub(super) refused: AtomicU64,
    /// Of OpenLineage events.
    pub(super) runs: Mutex<Runs>,
}

/// What an item of a request gives.
enum Given {
    OnItsWay(Sent, Box<TaskRunningInfo>),
    /// An event that is not about a run.
    NoReport,
    Bad(Faulty),
    Unsent(Unsent),
}

pub(super) fn router(server: Arc<Server>, names: HostNames) -> Router {
    let unknown = async || {
        let paths = Endpoint::ALL.map(Endpoint::route).join(", ");
        let detail = format!("nothing is received at this path; there are {paths}");
        Problem::new(StatusCode::NOT_FOUND, detail)
    };
    let not_post = async || {
        let post = HeaderValue::from_static("POST");
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, "use POST").with(header::ALLOW, post)
    };
    let mut router = Router::new();
    for endpoint in Endpoint::ALL {
        let route = endpoint.route();
        let measured = from_fn(move |request, next| measure(route.to_owned(), request, next));
        let answer =
            move |State(server): State<Arc<Server>>, request| answer(server, endpoint, request);
        router = router.route(route, post(answer).route_layer(measured));
    }
    router
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

async fn answer(server: Arc<Server>, endpoint: Endpoint, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut body = body.into_data_stream();
    match server.receive(endpoint, &parts, &mut body).await {
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
        endpoint: Endpoint,
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
        let (text, held) = body::read(parts, body, endpoint.body_max_bytes(), &self.room).await?;
        metrics::counter!(RECEIVED_BYTES, "http_route" => endpoint.route())
            .increment(text.len() as u64);
        let server = self.clone();
        let deliver = async move {
            let reports = server.reports.get().ok_or_else(failed)?;
            let items = parse(text.len(), || endpoint.items(format, &text))?;
            let delivered = server.deliver(endpoint, reports, &items, held).await?;
            server.account(endpoint, &client, &delivered);
            Ok(delivered.answer(endpoint == Endpoint::LineageBatch))
        };
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
        endpoint: Endpoint,
        reports: &AwaitedReports,
        items: &[&[u8]],
        mut held: Held,
    ) -> Result<Results, Problem> {
        held.grow_for(items.len())?;
        let mut results = Results::of(items.len());
        let (mut sent, mut given) = (Vec::new(), Vec::new());
        // After a report that could not be sent, none is: it would arrive before it.
        let mut stopped: Option<Unsent> = None;
        let mut turn = 0;
        for (index, item) in items.iter().enumerate() {
            // An item costs something besides its bytes.
            turn += item.len() + 512;
            if turn > TURN_BYTES {
                turn = 0;
                yield_now().await;
            }
            let send = |info: &TaskRunningInfo| match &stopped {
                Some(unsent) => Err(unsent.clone()),
                None => reports.send(info),
            };
            match self.give(endpoint, item, send) {
                Given::OnItsWay(on_its_way, info) => {
                    sent.push(on_its_way);
                    given.push((index, info));
                }
                Given::NoReport => results.no_report(),
                Given::Bad(faults) => results.bad(index, &faults),
                Given::Unsent(unsent) => {
                    if unsent.is_retriable() {
                        stopped = Some(unsent.clone());
                    }
                    results.unsent(index, unsent);
                }
            }
        }
        let mut outcomes = Vec::with_capacity(sent.len());
        let acknowledged = async {
            for on_its_way in sent {
                outcomes.push(reports.acknowledged(on_its_way).await);
            }
        };
        let _ = timeout(ANSWER_LIMIT, acknowledged).await;
        let late = || {
            Err(Unsent::Unavailable(format!(
                "within {} s",
                ANSWER_LIMIT.as_secs()
            )))
        };
        outcomes.resize_with(given.len(), late);
        let mut undelivered = Vec::new();
        for ((index, info), outcome) in given.into_iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    if endpoint != Endpoint::Reports {
                        self.runs().delivered(&info);
                    }
                    results.acknowledged();
                }
                Err(unsent) => {
                    if endpoint != Endpoint::Reports {
                        undelivered.push(info);
                    }
                    results.unsent(index, unsent);
                }
            }
        }
        // The last first, so that each frees its sequence.
        for info in undelivered.iter().rev() {
            self.runs().undelivered(info);
        }
        Ok(results)
    }

    fn give(
        &self,
        endpoint: Endpoint,
        item: &[u8],
        send: impl FnOnce(&TaskRunningInfo) -> Result<Sent, Unsent>,
    ) -> Given {
        if endpoint == Endpoint::Reports {
            if item.len() > REPORT_MAX_BYTES {
                let why = format!("it is longer than {REPORT_MAX_BYTES} bytes");
                return Given::Unsent(Unsent::TooLarge(why));
            }
            return match parse(item.len(), || json::read(item, None)) {
                Err(faults) => Given::Bad(faults),
                Ok(info) => match send(&info) {
                    Ok(on_its_way) => Given::OnItsWay(on_its_way, Box::new(info)),
                    Err(unsent) => Given::Unsent(unsent),
                },
            };
        }
        let bad = |refused: Refused| Given::Bad(Faulty::whole(refused.reason));
        // Not locked while an event of many megabytes is parsed.
        let event = match parse(item.len(), || Event::parse(item)) {
            Ok(event) => event,
            Err(refused) => return bad(refused),
        };
        // Locked until the report is sent, so that the reports of a run are sent in the order of their sequences.
        let mut runs = self.runs();
        let taken = runs.take(event, Timestamp::now());
        metrics::gauge!(REMEMBERED).set(runs.len() as f64);
        match taken {
            Ok(Taken::NoRun) => Given::NoReport,
            Ok(Taken::Report(info)) => match send(&info) {
                Ok(on_its_way) => Given::OnItsWay(on_its_way, info),
                Err(unsent) => {
                    runs.undelivered(&info);
                    Given::Unsent(unsent)
                }
            },
            Err(refused) => bad(refused),
        }
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn account(&self, endpoint: Endpoint, client: &str, results: &Results) {
        let retriable = results.retriable() as u64;
        let refused = results.failed() as u64 - retriable;
        self.refused.fetch_add(refused, Ordering::Relaxed);
        for (result, count) in [
            ("acknowledged", results.acknowledged_count() as u64),
            ("refused", refused),
            ("unacknowledged", retriable),
            ("no_report", results.no_reports() as u64),
        ] {
            if count > 0 {
                let labels = [("http_route", endpoint.route()), ("result", result)];
                metrics::counter!(RECEIVED, &labels).increment(count);
            }
        }
        if let Some((field, why)) = results.first_bad() {
            // The reason can quote any text of the client.
            let line = format!(
                "{client} sends reports that are refused, because of {field}; the answers say why, and this log at level \
                 debug"
            );
            if repeats::is_new(module_path!(), &line) {
                tracing::warn!("{line}");
            }
            tracing::debug!("{client} sends reports that are refused: {why}");
        }
    }
}

/// Parses this many bytes. Other requests do not wait for many of them: tokio gives the thread's other tasks to another
/// thread. (The [`Room`] bounds how many threads that takes.)
fn parse<T>(bytes: usize, parse: impl FnOnce() -> T) -> T {
    match bytes > BESIDE_MAX_BYTES {
        true => block_in_place(parse),
        false => parse(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn while_a_large_event_is_parsed_other_requests_go_on() {
        let (goes_on, other) = mpsc::channel();
        let parsing = tokio::spawn(async move {
            parse(BESIDE_MAX_BYTES + 1, || {
                // Another task of the only worker.
                tokio::spawn(async move { goes_on.send(()) });
                other.recv_timeout(Duration::from_secs(60))
            })
        });
        assert_eq!(parsing.await.unwrap(), Ok(()));
    }
}
