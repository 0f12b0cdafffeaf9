//! `consumer serve`: the results of [`query`](crate::query) over HTTP.
//!
//! ```text
//! TCP or TLS ──▶ server ──▶ guard, auth ──▶ routes (api, …) ──▶ readers ──▶ one snapshot of the database ──▶ answer
//!             (connections)                                    (bounded)                                 or problem
//! ```
//!
//! Each module of routes (`api`, …) provides its [`Routes`]: handlers that take the [`Caller`](caller::Caller) and
//! [`Parameters`](parameters::Parameters), query the [`Readers`], and return an [`Answer`](answer::Answer) or a
//! [`Problem`](problem::Problem). Routes access the database only through the readers.

mod answer;
mod api;
mod app;
mod auth;
mod caller;
mod guard;
mod linkis;
mod live;
mod login;
mod openapi;
mod options;
mod page;
mod parameters;
mod problem;
mod readers;
mod routes;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use futures_util::FutureExt;
use service::health::Health;
pub(crate) use service::http_server::DURATION;
use service::http_server::{self, HostNames};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use self::app::{App, Shared};
use self::auth::Authentication;
pub(crate) use self::live::HELP;
use self::live::Hub;
use self::login::{Next, Sent};
pub use self::options::ServeOptions;
use self::problem::Problem;
use self::readers::Readers;
use self::routes::Routes;
use crate::store::{Database, DatabaseOptions};

/// Maximum size of a request's body, in bytes. No route needs a large one.
const BODY_BYTES: usize = 64 << 10;
/// Time limit until an answer begins; longer than the limit of [`Readers`].
const REQUEST_LIMIT: Duration = Duration::from_secs(25);
/// Interval of health checks of the database while there are no requests.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Serves until `stop`. The database may be unavailable, even at the start: requests are answered with 503 until it is
/// back.
///
/// # Errors
/// If the options are invalid, or the address cannot be bound.
pub async fn serve(
    options: ServeOptions,
    database: &DatabaseOptions,
    health: Arc<Health>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    options.check()?;
    let authentication = Arc::new(Authentication::of(&options)?);
    let tls = http_server::tls_acceptor(options.tls_cert.as_deref(), options.tls_key.as_deref())?;
    let live = Arc::new(Hub::default());
    let polling = live::poll(live.clone(), Database::parse(database)?, stop.clone());
    let app = Arc::new(Shared {
        readers: Readers::of(Database::parse(database)?, health.clone()),
        live,
    });
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("--listen {}", options.listen))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!("serving on {scheme}://{}", listener.local_addr()?);
    let is_plain = tls.is_none() && !options.listen.ip().is_loopback();
    if is_plain && options.tokens.is_some() {
        tracing::warn!(
            "bearer tokens are sent unencrypted: add --tls-cert and --tls-key, or terminate TLS at a proxy"
        );
    }
    let router = router(&options, authentication, app.clone());
    tokio::select! {
        () = http_server::serve(listener, tls, router, stop) => {}
        () = look_after(&app, &health) => {}
        // Polling ends at `stop`; then the server finishes its requests.
        () = polling.then(|()| pending()) => {}
    }
    Ok(())
}

/// All served routes.
fn routes(options: &ServeOptions) -> Routes {
    match options.linkis {
        true => api::routes().merge(linkis::routes(options)),
        false => api::routes(),
    }
}

fn router(options: &ServeOptions, authentication: Arc<Authentication>, app: App) -> Router {
    let Routes {
        router, document, ..
    } = routes(options);
    let names = HostNames::of(options.listen, &options.allow_host);
    let login = match authentication.has_tokens() {
        true => login_routes(authentication.clone(), options.tls_cert.is_some()),
        false => Router::new(),
    };
    // Layers run in reverse order: the last one added sees a request first.
    let router = router
        .merge(openapi::route(&document, authentication.has_tokens()))
        .merge(page::routes())
        .with_state(app)
        .merge(login)
        .layer(from_fn(answer::not_modified))
        .layer(from_fn_with_state(authentication, auth::authenticate))
        .layer(RequestBodyLimitLayer::new(BODY_BYTES))
        .layer(TimeoutLayer::with_status_code(
            StatusCode::SERVICE_UNAVAILABLE,
            REQUEST_LIMIT,
        ))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(from_fn_with_state(names, guard::only_by_name));
    let router = match cors(&options.allow_origin) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    let router = router.layer(from_fn(problem::problems));
    let router = match options.linkis {
        true => router.layer(from_fn(linkis::in_envelope)),
        false => router,
    };
    router
        .layer(from_fn(page::errors))
        .layer(CompressionLayer::new())
        .layer(from_fn(guard::headers))
}

/// The login and logout routes.
fn login_routes(authentication: Arc<Authentication>, is_https: bool) -> Router {
    let form = async |uri: Uri| login::form(Next::of_form(&uri).as_ref(), false);
    let logged_in = async move |headers: HeaderMap, body: Bytes| {
        let Sent { token, next } = login::sent(&headers, &body)?;
        Ok::<_, Problem>(match authentication.knows(&token) {
            true => login::logged_in(&token, next.as_ref(), is_https),
            false => login::form(next.as_ref(), true),
        })
    };
    let logged_out = async move |headers: HeaderMap| login::logged_out(&headers, is_https);
    Router::new()
        .route(login::PATH, get(form).post(logged_in))
        .route(login::LOGOUT, post(logged_out))
}

/// Allows pages of these origins to read answers, without credentials.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let origins = origins
        .iter()
        .filter_map(|origin| HeaderValue::from_str(origin).ok());
    let origins: Vec<HeaderValue> = origins.collect();
    let cors = CorsLayer::new()
        .allow_origin(origins.clone())
        .allow_methods([Method::GET, Method::HEAD])
        .allow_headers([
            header::AUTHORIZATION,
            header::IF_NONE_MATCH,
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([header::ETAG, header::LINK, header::RETRY_AFTER]);
    (!origins.is_empty()).then_some(cors)
}

/// Checks regularly whether the database answers. Never returns.
async fn look_after(app: &App, health: &Health) {
    loop {
        let looked = app
            .readers
            .ask(|reader| async move { reader.watermark().await.map(drop) }.boxed());
        // The readers record a failure themselves.
        let _ = looked.await;
        health.observed(true, true, BTreeMap::new());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
