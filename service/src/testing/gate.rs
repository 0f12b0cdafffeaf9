//! A proxy that can be closed.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::ports::free_port;

/// A proxy in front of a service of this machine. While it is closed, nobody listens on its port. It may
/// require a password.
pub struct Gate {
    port: u16,
    /// Address of the service: `host:port`.
    service: String,
    /// Required value of the Authorization header.
    password: Option<String>,
    closed: Option<Arc<AtomicBool>>,
}

impl Gate {
    /// Creates a closed gate.
    pub fn to(service: &str, password: Option<&str>) -> Self {
        Self {
            port: free_port(),
            service: service.to_owned(),
            password: password.map(str::to_owned),
            closed: None,
        }
    }

    /// Its address: `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Opens it.
    pub fn open(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let closed = self.closed.insert(Arc::default()).clone();
        let (service, password) = (self.service.clone(), self.password.clone());
        std::thread::spawn(move || {
            while !closed.load(Ordering::Acquire) {
                match listener.accept() {
                    Ok((visitor, _)) => {
                        let (service, password) = (service.clone(), password.clone());
                        // A client that disconnects does not matter to the test.
                        std::thread::spawn(move || {
                            let _ = let_in(visitor, &service, password.as_deref());
                        });
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(closed) = &self.closed {
            closed.store(true, Ordering::Release);
        }
    }
}

/// Forwards bytes in both directions, after the first request has sent the password.
fn let_in(visitor: TcpStream, service: &str, password: Option<&str>) -> std::io::Result<()> {
    visitor.set_nonblocking(false)?;
    let (mut reader, mut writer) = (visitor.try_clone()?, visitor);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        reader.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if let Some(password) = password {
        let shown = String::from_utf8_lossy(&head).to_lowercase();
        if !shown.contains(&format!("authorization: {password}\r\n").to_lowercase()) {
            return writer.write_all(
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            );
        }
    }
    let mut there = TcpStream::connect(service)?;
    there.write_all(&head)?;
    let mut back = there.try_clone()?;
    std::thread::spawn(move || std::io::copy(&mut back, &mut writer));
    std::io::copy(&mut reader, &mut there)?;
    there.shutdown(std::net::Shutdown::Both)
}
