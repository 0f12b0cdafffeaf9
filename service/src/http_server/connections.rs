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
        .max_buf_size(HEADER_BYTES)
        // A client may close its sending half after its last request, as `nc -N` does, and still read the answer.
        .half_close(true);
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

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_client_that_has_closed_its_sending_half_gets_every_answer() {
        let (asked, answers) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
        let (asks, answer) = (asked.clone(), answers.clone());
        let slow = async move || {
            asks.add_permits(1);
            answer.notified().await;
            "slow"
        };
        let router = Router::new()
            .route("/slow", get(slow))
            .route("/fast", get(async || "fast"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, None, router, stop.clone()));
        let begin = async |request: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            stream
        };
        let end = async |mut stream: TcpStream| {
            let mut answer = String::new();
            let read = timeout(WAIT, stream.read_to_string(&mut answer)).await;
            read.unwrap().unwrap();
            answer
        };
        let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let waiting = begin(&request("/slow")).await;
        drop(timeout(WAIT, asked.acquire()).await.unwrap().unwrap());
        // By the time that others have their answers, the server has seen that this client sends nothing more.
        let three = begin(&request("/fast").repeat(3)).await;
        assert_eq!(end(three).await.matches("fast").count(), 3);
        answers.notify_one();
        assert!(end(waiting).await.ends_with("slow"));
        // Half a request has no answer but an error.
        let half = begin("GET /fast HTTP/1.1\r\nHost: loc").await;
        assert!(!end(half).await.contains("fast"));
        stop.cancel();
        timeout(WAIT, serving).await.unwrap().unwrap();
    }
}
