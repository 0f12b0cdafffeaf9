//! A proxy that fails like a network: it goes silent or accepts no connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// Forwards a port to a server until it is silenced. Then it still accepts connections and data, like a host whose
/// processes are stopped, and answers nothing.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    silent: AtomicBool,
    changed: Notify,
    /// Number of the server's bytes still to be forwarded.
    left: AtomicI64,
}

impl Proxy {
    /// A proxy for the server of a URL.
    pub(crate) async fn to(url: &str) -> Self {
        let (_, rest) = url.split_once("://").unwrap();
        let (authority, _) = rest.split_once('/').unwrap();
        let server = authority.rsplit('@').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            state: Arc::new(State {
                silent: AtomicBool::new(false),
                changed: Notify::new(),
                left: AtomicI64::new(i64::MAX),
            }),
        };
        let state = proxy.state.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, server) = (state.clone(), server.clone());
                tokio::spawn(async move {
                    let server = TcpStream::connect(server).await.unwrap();
                    let (from_client, to_client) = client.into_split();
                    let (from_server, to_server) = server.into_split();
                    let one = forward(from_client, to_server, &state, false);
                    let other = forward(from_server, to_client, &state, true);
                    tokio::join!(one, other);
                });
            }
        });
        proxy
    }

    /// The URL through this proxy.
    pub(crate) fn url(&self, url: &str) -> String {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (authority, name) = rest.split_once('/').unwrap();
        let user = authority
            .rsplit_once('@')
            .map(|(user, _)| format!("{user}@"));
        let user = user.unwrap_or_default();
        format!("{scheme}://{user}{}/{name}", self.address)
    }

    /// Whether to forward nothing from now on, on open and new connections.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.state.silent.store(silent, Ordering::SeqCst);
        self.state.changed.notify_waiters();
    }

    /// Goes silent after this many bytes from the server.
    pub(crate) fn silent_after(&self, bytes: i64) {
        self.state.left.store(bytes, Ordering::SeqCst);
    }
}

/// Connections that were open when it went silent stay dead.
async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    state: &State,
    is_from_server: bool,
) {
    let (mut buffer, mut is_dead) = (vec![0; 64 << 10], false);
    loop {
        let changed = state.changed.notified();
        is_dead |= state.silent.load(Ordering::SeqCst);
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            () = changed => continue,
        };
        match read {
            Ok(0) | Err(_) if !is_dead => return,
            Ok(0) | Err(_) => std::future::pending().await,
            Ok(_) if is_dead || state.silent.load(Ordering::SeqCst) => is_dead = true,
            Ok(count) => {
                if is_from_server
                    && state.left.fetch_sub(count as i64, Ordering::SeqCst) < count as i64
                {
                    state.silent.store(true, Ordering::SeqCst);
                    state.changed.notify_waiters();
                }
                if to.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
