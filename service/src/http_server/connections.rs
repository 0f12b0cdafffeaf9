//! Accepts connections, limits them, and ends them in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_native_tls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::reloaded::Reloaded;

/// Maximum number of connections; more wait in the kernel's backlog. A browser keeps up to six.
const CONNECTIONS: usize = 4096;
/// Time limit for a request's headers, the first request of a connection included. Idle connections are closed after
/// it.
const HEADERS: Duration = Duration::from_secs(30);
/// Maximum size of a request's headers, in bytes.
const HEADER_BYTES: usize = 64 << 10;
/// A client that reads nothing for this long is disconnected; otherwise its stream would block for ever.
const UNREAD: Duration = Duration::from_secs(30);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a failed accept, usually because of too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Time for running requests on shutdown; shorter than the program's [`GRACE`](crate::exit::GRACE).
const FINISH: Duration = Duration::from_secs(6);

/// The peer's address, an extension of each request.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves until `stop`, then finishes the running requests.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Reloaded<TlsAcceptor>>,
    router: Router,
    stop: CancellationToken,
) {
    let (limit, connections) = (Arc::new(Semaphore::new(CONNECTIONS)), TaskTracker::new());
    loop {
        let accepted = async {
            let permit = limit.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("a connection could not be accepted: {error}");
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let tls = tls.as_ref().map(Reloaded::current);
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            let _permit = permit;
            converse(stream, peer, tls, router, stop).await;
        });
    }
    connections.close();
    if timeout(FINISH, connections.wait()).await.is_err() {
        tracing::warn!("{} connections did not end in time", connections.len());
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<TlsAcceptor>>,
    router: Router,
    stop: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
    match tls {
        None => answer(stream, peer, router, stop).await,
        Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
            Ok(Ok(stream)) => answer(stream, peer, router, stop).await,
            Ok(Err(error)) => tracing::debug!("TLS with {peer}: {error}"),
            Err(_) => tracing::debug!("TLS with {peer}: no handshake in time"),
        },
    }
}

async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    stop: CancellationToken,
) {
    let router = router.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.map(Body::new)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEADER_BYTES);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("the connection of {peer}: {error}");
    }
}
