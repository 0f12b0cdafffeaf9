//! Servers that do not answer, and assertions that programs stop in time regardless.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Process, until};

/// Time limit of `docker stop`.
const BOUND: Duration = Duration::from_secs(10);
/// How long a program may take until it waits.
const WAIT: Duration = Duration::from_secs(120);

/// A server that accepts connections and never answers.
pub struct SilentServer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl SilentServer {
    /// Starts a server on a port that the kernel chooses.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming().flatten() {
                kept.push(stream);
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            address,
            connections,
        }
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Number of connections so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A proxy to a broker of this machine that can be blocked. In the broker's answers, it replaces the broker's
/// address with another address of its own, so that every connection goes through it.
pub struct BlockableProxy {
    address: String,
    connections: Arc<AtomicUsize>,
    blocked: Arc<AtomicU8>,
    commits: Arc<OffsetCommits>,
}

/// The OffsetCommit requests through a [`BlockableProxy`].
#[derive(Default)]
struct OffsetCommits {
    count: AtomicUsize,
    most_in_flight: AtomicUsize,
    takes_ms: AtomicU64,
}

/// OffsetCommit's number in Kafka's protocol.
const OFFSET_COMMIT: [u8; 2] = [0, 8];

const OPEN: u8 = 0;
const NAMED_BLOCKED: u8 = 1;
const BLOCKED: u8 = 2;

impl BlockableProxy {
    /// An open proxy to the broker at `127.0.0.1:port`.
    pub fn to(bootstrap: &str) -> Self {
        let broker: SocketAddr = bootstrap.parse().unwrap();
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = first.local_addr().unwrap().to_string();
        // Has the length of the broker's address, so that it can replace it in an answer.
        let mut hosts = (2..10).map(|i| IpAddr::from([127, 0, 0, i]));
        let named = hosts.find_map(|host| TcpListener::bind((host, broker.port())).ok());
        let named = named.unwrap();
        let names = [broker.ip(), named.local_addr().unwrap().ip()].map(|host| host.to_string());
        let proxy = Self {
            address,
            connections: Arc::default(),
            blocked: Arc::default(),
            commits: Arc::default(),
        };
        for (listener, blocked_from) in [(first, BLOCKED), (named, NAMED_BLOCKED)] {
            let (connections, blocked, names) = (
                proxy.connections.clone(),
                proxy.blocked.clone(),
                names.clone(),
            );
            let commits = proxy.commits.clone();
            std::thread::spawn(move || {
                for connection in listener.incoming().flatten() {
                    if blocked_from == NAMED_BLOCKED {
                        connections.fetch_add(1, Ordering::Relaxed);
                    }
                    let (blocked, names) = (blocked.clone(), names.clone());
                    let commits = commits.clone();
                    std::thread::spawn(move || {
                        carry(connection, broker, &names, commits, || {
                            blocked.load(Ordering::Relaxed) >= blocked_from
                        })
                    });
                }
            });
        }
        proxy
    }

    /// Address for `--bootstrap-servers`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Number of connections so far to the address in the broker's answers.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// From now on, drops answers at the address in the broker's answers, as with a wrong
    /// `advertised.listeners`.
    pub fn block_named(&self) {
        self.blocked.store(NAMED_BLOCKED, Ordering::Relaxed);
    }

    /// From now on, drops all answers, like a broker that is stopped (SIGSTOP) or a network that drops
    /// packets.
    pub fn block(&self) {
        self.blocked.store(BLOCKED, Ordering::Relaxed);
    }

    /// Opens it again, for new connections.
    pub fn open(&self) {
        self.blocked.store(OPEN, Ordering::Relaxed);
    }

    /// From now on, delays each OffsetCommit by this time, one after the other, and later requests behind it,
    /// like a busy coordinator.
    pub fn slow_commits(&self, each: Duration) {
        let each = each.as_millis().try_into().unwrap();
        self.commits.takes_ms.store(each, Ordering::Relaxed);
    }

    /// Number of OffsetCommits so far, and maximum number in flight on one connection.
    pub fn commits(&self) -> (usize, usize) {
        let Self { commits, .. } = self;
        (
            commits.count.load(Ordering::Relaxed),
            commits.most_in_flight.load(Ordering::Relaxed),
        )
    }
}

/// Forwards requests and answers until either side closes; replaces the first name by the second in answers.
fn carry(
    connection: TcpStream,
    broker: SocketAddr,
    [old, new]: &[String; 2],
    commits: Arc<OffsetCommits>,
    blocked: impl Fn() -> bool,
) -> std::io::Result<()> {
    let there = TcpStream::connect(broker)?;
    let (mut questions, mut to_broker) = (connection.try_clone()?, there.try_clone()?);
    // Correlation ids of unanswered OffsetCommits.
    let in_flight = Arc::new(Mutex::new(BTreeSet::new()));
    let (noted, counted) = (in_flight.clone(), commits.clone());
    std::thread::spawn(move || {
        while let Ok(question) = frame(&mut questions) {
            if question[4..6] == OFFSET_COMMIT {
                let mut noted = noted.lock().unwrap();
                noted.insert(question[8..12].to_vec());
                counted.count.fetch_add(1, Ordering::Relaxed);
                let most = &counted.most_in_flight;
                most.fetch_max(noted.len(), Ordering::Relaxed);
            }
            if to_broker.write_all(&question).is_err() {
                break;
            }
        }
        to_broker.shutdown(Shutdown::Both)
    });
    let (mut answers, mut back) = (there, connection);
    loop {
        let mut answer = frame(&mut answers)?;
        if in_flight.lock().unwrap().contains(&answer[4..8]) {
            let takes_ms = commits.takes_ms.load(Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(takes_ms));
            in_flight.lock().unwrap().remove(&answer[4..8]);
        }
        for at in 0..answer.len().saturating_sub(old.len()) {
            if answer[at..].starts_with(old.as_bytes()) {
                answer[at..at + new.len()].copy_from_slice(new.as_bytes());
            }
        }
        if !blocked() {
            back.write_all(&answer)?;
        }
    }
}

/// Reads a request or answer, which begins with its size.
fn frame(from: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame)?;
    let size = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
    frame.resize(4 + size as usize, 0);
    from.read_exact(&mut frame[4..])?;
    Ok(frame)
}

/// A program, its arguments, and its exit code if a signal stops it before it is done.
pub struct Waiting<'a> {
    /// Name for messages.
    pub name: &'a str,
    /// The program's arguments.
    pub arguments: Vec<&'a str>,
    /// Expected exit code.
    pub code: i32,
}

/// The signals that end a program.
pub const SIGNALS: [&str; 2] = ["TERM", "HUP"];

/// For each of the [`SIGNALS`]: starts the programs one after the other, waits until each has connected to a
/// server, and [stops](end_in_time) them all.
pub async fn start_and_end_in_time(
    folder: &Path,
    program: &str,
    waiting: &[Waiting<'_>],
    connections: impl Fn() -> usize,
) {
    for signal in SIGNALS {
        let mut started = Vec::new();
        for one in waiting {
            let before = connections();
            let name = format!("{}-{signal}", one.name.replace(' ', "-"));
            let mut process = Process::start(folder, &name, Path::new(program), &one.arguments);
            until(&format!("{} waits", one.name), WAIT, async || {
                process.assert_running();
                (connections() > before).then_some(())
            })
            .await;
            started.push((one.name, process, one.code));
        }
        end_in_time(signal, started).await;
    }
}

/// Stops all processes by one signal, and asserts that each ends within 10 s with its code.
pub async fn end_in_time(signal: &str, processes: Vec<(&str, Process, i32)>) {
    let begun = Instant::now();
    for (_, process, _) in &processes {
        process.signal(signal);
    }
    let mut wrong = Vec::new();
    for (name, mut process, expected) in processes {
        let code = process.ended().await.code();
        let took = begun.elapsed();
        println!("{name} on SIG{signal}: {code:?} after {took:?}");
        if took > BOUND || code != Some(expected) {
            let log = process.log();
            wrong.push(format!(
                "{name} ended with {code:?}, not {expected}, after {took:?}:\n{log}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
