//! Options of the TCP socket of a connection, which sqlx 0.9.0 neither sets nor lets its user set.

use std::collections::HashSet;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// A host that is gone without a word (power, network) is given up after so long: Linux alone would send
/// again for 15 minutes, or wait for ever where nothing is to be sent.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// After so long without a word from the server its host is asked whether it is still there, so often.
const IDLE: Duration = Duration::from_secs(10);
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// The sockets that are open before a connection is made.
pub(super) struct Sockets(HashSet<PathBuf>);

impl Sockets {
    pub(super) fn open() -> Self {
        Self(descriptors().map(|(_, identity)| identity).collect())
    }

    /// Sets, on the sockets to this port that were opened since, so on that of the new connection:
    ///
    /// - Nagle's algorithm off (transact-rs/sqlx#4335): the end of each COPY would wait for the
    ///   acknowledgement of its data, which Linux delays by 40 ms.
    /// - A limit to waiting for a host that is gone.
    pub(super) fn set_new_ones(&self, port: u16) {
        for (descriptor, identity) in descriptors() {
            if self.0.contains(&identity) {
                continue;
            }
            #[expect(
                unsafe_code,
                reason = "the only way to a socket that a library keeps to itself"
            )]
            // SAFETY: nothing is read, written or closed by it. Where the file was closed meanwhile, or is no
            // TCP socket, the calls fail.
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

/// The open sockets of this process: descriptor, and what tells a socket from every other (`socket:[inode]`). None
/// where the system has no `/proc`, which only makes connections slower.
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
