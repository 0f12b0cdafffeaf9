//! HTTP servers with limits on connections, requests and time. Bearer tokens and certificates are files that may change
//! while a server runs.

mod connections;
mod host_names;
mod measure;
mod tls;
mod tokens;

pub use self::connections::{Peer, serve};
pub use self::host_names::HostNames;
pub use self::measure::{DURATION, measure};
pub use self::tls::tls_acceptor;
pub use self::tokens::{TokenLines, Tokens};
