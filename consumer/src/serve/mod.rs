//! `consumer serve`: what [`query`](crate::query) says, over HTTP.
//!
//! ```text
//! TCP or TLS ──▶ server ──▶ guard ──▶ routes (api, …) ──▶ readers ──▶ one snapshot of the database ──▶ answer
//!             (connections) (who may)                    (bounded)                                 or problem
//! ```
//!
//! A room of routes (`api`) gives its [`Routes`]: handlers that take who asks ([`Caller`](caller::Caller)) and
//! [`Parameters`](parameters::Parameters), ask the [`Readers`], and return an [`Answer`](answer::Answer) or a
//! [`Problem`](problem::Problem). No route asks the database in another way.

mod answer;
mod api;
mod app;
mod caller;
mod guard;
mod openapi;
mod parameters;
mod problem;
mod readers;
mod routes;
mod server;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::{Extension, Router};
use futures_util::FutureExt;
use service::exit::WrongUsage;
use service::health::Health;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use self::app::{App, Shared};
use self::caller::Caller;
use self::guard::Names;
use self::readers::Readers;
use self::routes::Routes;
use crate::store::{Database, DatabaseOptions};

/// Bytes of a request's body. Nothing that is served takes one of size.
const BODY_BYTES: usize = 64 << 10;
/// An answer has to begin in this time: more than [`Readers`] take.
const REQUEST_LIMIT: Duration = Duration::from_secs(25);
/// How often the database is looked after while nobody asks anything.
const LOOK: Duration = Duration::from_secs(2);

/// Options of `consumer serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeOptions {
    /// Listen on this address: one of loopback, which other machines do not reach
    #[arg(
        long,
        env = "SERVE_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,
    /// Answer to this host name too, beside localhost and its addresses (repeatable)
    #[arg(
        long,
        env = "SERVE_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allow_host: Vec<String>,
}

impl ServeOptions {
    /// # Errors
    /// If these options would let anybody see what is not theirs.
    pub fn check(&self) -> Result<(), WrongUsage> {
        if !self.listen.ip().is_loopback() {
            return Err(WrongUsage(format!(
                "--listen {}: other machines reach this address, and nobody has to say who they are; listen on a loopback \
                 address, as in 127.0.0.1:8080",
                self.listen
            )));
        }
        Ok(())
    }
}

/// Serves until `stop`. The database may be away, at the start too: requests are answered with 503 until it is back.
///
/// # Errors
/// If the options are no good, or the address cannot be listened on.
pub async fn serve(
    options: ServeOptions,
    database: &DatabaseOptions,
    health: Arc<Health>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    options.check()?;
    let database = Database::parse(database)?;
    let app = Arc::new(Shared {
        readers: Readers::of(database, health.clone()),
        stop: stop.clone(),
    });
    let listener = TcpListener::bind(options.listen).await;
    let listener = listener.with_context(|| format!("--listen {}", options.listen))?;
    tracing::info!("serving on http://{}", listener.local_addr()?);
    let router = router(&options, app.clone());
    tokio::select! {
        () = server::serve(listener, None, router, stop) => {}
        () = look_after(&app, &health) => {}
    }
    Ok(())
}

/// Every route that is served.
fn routes() -> Routes {
    api::routes()
}

fn router(options: &ServeOptions, app: App) -> Router {
    let Routes {
        router, document, ..
    } = routes();
    let names = Names {
        more: options
            .allow_host
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .collect(),
    };
    // The last one is the first that a request comes to.
    router
        .merge(openapi::route(&document))
        .with_state(app)
        .layer(from_fn(answer::spare))
        .layer(Extension(Caller::Operator))
        .layer(RequestBodyLimitLayer::new(BODY_BYTES))
        .layer(TimeoutLayer::with_status_code(
            axum::http::StatusCode::SERVICE_UNAVAILABLE,
            REQUEST_LIMIT,
        ))
        .layer(CatchPanicLayer::custom(problem::panicked))
        .layer(from_fn_with_state(names, guard::only_by_name))
        .layer(from_fn(problem::problems))
        .layer(CompressionLayer::new())
        .layer(from_fn(guard::headers))
}

/// Keeps knowing whether the database answers. Does not end.
async fn look_after(app: &App, health: &Health) {
    loop {
        let looked = app
            .readers
            .ask(|reader| async move { reader.watermark().await.map(drop) }.boxed());
        // What fails is noted there.
        let _ = looked.await;
        health.observed(true, true, BTreeMap::new());
        tokio::time::sleep(LOOK).await;
    }
}
