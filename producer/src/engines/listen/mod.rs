//! `producer listen`: reports over HTTP, from engines that push. A request is answered once Kafka has acknowledged its
//! reports.
//!
//! ```text
//! TCP or TLS ──▶ name, token ──▶ body ──▶ items ─┬▶ json::read ─┬▶ AwaitedReports ──▶ results
//!                               (bounded, gzip)  └▶ Runs::take ─┘  (acknowledged)
//! ```
//!
//! A report without `sequence` is refused. Only the sender knows how many it has made: numbers that were counted here
//! would begin again after a restart, would differ between two servers, and would hide the reports that were lost on
//! their way here, which is what they are for.

mod body;
mod endpoint;
mod items;
mod options;
mod problem;
mod receive;
mod results;

use std::future::pending;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::Context;
use service::http_server::{self, HostNames, TokenLines, Tokens};
use service::reloaded::Reloaded;
use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

pub use self::options::Options;
use self::receive::Server;
pub(crate) use self::receive::{RECEIVED, RECEIVED_BYTES};
use crate::engines::openlineage::Runs;
use crate::session::{Session, Setup};

/// How long to wait for acknowledgements after a signal; less than the server waits for its connections.
const LAST_ACKS: Duration = Duration::from_secs(4);

const TOKEN_LINES: TokenLines<Arc<str>> = TokenLines {
    // A file of `consumer serve` would let those report who may only read.
    holder: |name| match name {
        "" | "operator" => None,
        _ if name.starts_with("viewer=") => None,
        _ => Some(name.into()),
    },
    expected: "not `sha256:HEX NAME` (`operator` and `viewer=USER` are roles of `consumer serve`, not names)",
};

/// Receives reports until `setup.shutdown` is cancelled, then answers the requests under way and prints
/// `sent 98 reports, 2 refused`. While Kafka is unavailable, even at the start, requests are answered with 503.
///
/// # Errors
/// If a file or a setting is wrong, the address cannot be listened on, or the topic does not exist.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
    options.check()?;
    let tokens = options.tokens.clone().map(|file| {
        let files = vec![file.clone()];
        Reloaded::of(files, move || Tokens::read(&file, &TOKEN_LINES))
    });
    let tokens = tokens.transpose()?;
    let tls = http_server::tls_acceptor(options.tls_cert.as_deref(), options.tls_key.as_deref())?;
    let listener = TcpListener::bind(options.address).await;
    let listener = listener.with_context(|| format!("listening on {}", options.address))?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!("receiving reports on {scheme}://{}", listener.local_addr()?);
    let is_plain = tls.is_none() && !options.address.ip().is_loopback();
    if is_plain && tokens.is_some() {
        tracing::warn!(
            "bearer tokens are sent unencrypted: add --tls-cert and --tls-key, or terminate TLS at a proxy"
        );
    }
    let server = Arc::new(Server {
        tokens,
        reports: OnceLock::new(),
        room: body::Room::default(),
        delivering: TaskTracker::new(),
        refused: AtomicU64::new(0),
        runs: Mutex::new(Runs::with_acknowledgements(options.runs as usize)),
    });
    let names = HostNames::of(options.address, &options.allow_host);
    let router = receive::router(server.clone(), names);
    let shutdown = setup.shutdown.clone();

    let serving = async {
        http_server::serve(listener, tls, router, shutdown.clone()).await;
        // Those of clients that have gone.
        server.delivering.close();
        server.delivering.wait().await;
    };
    let sending = async {
        if let Some(session) = Session::open(&setup).await? {
            let reports = session.awaited().await?;
            let _ = server.reports.set(reports);
        }
        shutdown.cancelled().await;
        sleep(LAST_ACKS).await;
        if let Some(reports) = server.reports.get() {
            reports.give_up();
        }
        pending().await
    };
    tokio::select! {
        () = serving => {}
        failed = sending => return failed,
    }
    match server.reports.get() {
        Some(reports) => {
            let refused = server.refused.load(Ordering::Relaxed);
            reports.account(&format!(", {refused} refused"))
        }
        None => Ok(()),
    }
}
