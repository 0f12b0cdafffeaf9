//! Ports of this machine.

use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::environment::ASK;

/// An address where nobody listens: a privileged port without a service.
pub const NOBODY: &str = "127.0.0.1:1";

/// A free port of this machine, outside the kernel's ephemeral range.
pub fn free_port() -> u16 {
    let seed = RandomState::new().hash_one(std::process::id());
    (0..)
        .map(|i| 20_000 + (seed.wrapping_add(i) % 12_000) as u16)
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap()
}

/// Status and body of an endpoint of this machine; `None` while nobody listens.
pub fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(ASK)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}
