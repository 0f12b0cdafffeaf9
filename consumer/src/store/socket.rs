//! TCP socket options of a connection, which sqlx 0.9.0 neither sets nor exposes.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// A host that disappears without a reset (power, network) is given up after this time. By default, Linux retransmits
/// for 15 minutes, or waits forever if nothing is to be sent.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Keepalive: probes start after this idle time, at this interval.
const IDLE: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The sockets that are open before connecting.
pub(super) struct Sockets(HashSet<PathBuf>);

impl Sockets {
    pub(super) fn open() -> Self {
        Self(descriptors().map(|(_, identity)| identity).collect())
    }

    /// Sets options on the sockets to this port that were opened since, that is on the new connection:
    ///
    /// - TCP_NODELAY (transact-rs/sqlx#4335): otherwise the end of each COPY waits for the acknowledgement of its data,
    ///   which Linux delays by 40 ms.
    /// - Timeouts for a host that disappears.
    pub(super) fn set_new_ones(&self, port: u16) {
        for (descriptor, identity) in descriptors() {
            if self.0.contains(&identity) {
                continue;
            }
            #[expect(unsafe_code, reason = "the library does not expose its socket")]
            // SAFETY: the descriptor is neither read, written nor closed. If it was closed meanwhile, or is not a TCP
            // socket, the calls fail.
            let file = unsafe { BorrowedFd::borrow_raw(descriptor) };
            let socket = SockRef::from(&file);
            let peer = socket.peer_addr().ok().and_then(|peer| peer.as_socket());
            if peer.is_some_and(|peer| peer.port() == port) {
                let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(ASK_AGAIN);
                let _ = socket.set_tcp_nodelay(true);
                let _ = socket.set_tcp_keepalive(&keepalive);
                let _ = socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
            }
        }
    }
}

/// The open sockets of this process: descriptor and unique name (`socket:[inode]`). None without `/proc`, which only
/// makes connections slower.
fn descriptors() -> impl Iterator<Item = (i32, PathBuf)> {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    open.filter_map(|entry| {
        let entry = entry.ok()?;
        let identity = std::fs::read_link(entry.path()).ok()?;
        let is_socket = identity.to_str()?.starts_with("socket:");
        Some((entry.file_name().to_str()?.parse().ok()?, identity)).filter(|_| is_socket)
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn only_the_new_socket_to_the_port_is_set() {
        let database = TcpListener::bind("127.0.0.1:0").unwrap();
        let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = database.local_addr().unwrap();
        let before = TcpStream::connect(address).unwrap();
        let (accepted_before, _) = database.accept().unwrap();
        let sockets = Sockets::open();
        let ours = TcpStream::connect(address).unwrap();
        let (accepted, _) = database.accept().unwrap();
        let other = TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
        sockets.set_new_ones(address.port());
        assert!(ours.nodelay().unwrap());
        let timeout = |socket: &TcpStream| SockRef::from(socket).tcp_user_timeout().unwrap();
        assert_eq!(timeout(&ours), Some(UNACKNOWLEDGED));
        for socket in [&before, &accepted_before, &accepted, &other] {
            assert!(!socket.nodelay().unwrap(), "{socket:?}");
            assert_ne!(timeout(socket), Some(UNACKNOWLEDGED), "{socket:?}");
            assert!(!SockRef::from(socket).keepalive().unwrap(), "{socket:?}");
        }
        assert!(!SockRef::from(&database).keepalive().unwrap());
    }
}
