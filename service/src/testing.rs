//! What integration tests need. A failure in here ends the test, so everything panics.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]

pub mod invocation;
pub mod secrets;
pub mod settings;
pub mod spark;
pub mod stopping;

use std::collections::BTreeMap;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Message, OwnedMessage};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// How long a broker may take for an answer. A small machine that does much else is slow, and is not
/// what these tests are about.
pub const ASK: Duration = Duration::from_secs(60);

/// The value of an environment variable that names a service, as `deploy/test` sets it. Where it is
/// absent the test is to return, which skips it; unless `TEST_REQUIRE_SERVICES` is set, which fails.
pub fn service(variable: &str) -> Option<String> {
    TIMED.with(|_| {}); // from the first use on
    let value = std::env::var(variable).ok();
    if value.is_none() {
        assert!(
            std::env::var_os("TEST_REQUIRE_SERVICES").is_none(),
            "{variable} is not set"
        );
        println!("skipped: {variable} is not set; run this test by deploy/test");
    }
    value
}

thread_local! {
    static TIMED: Timed = Timed(Instant::now());
}

/// Adds the time of a test, which has a thread of its own, to the file that `TEST_TIMES` names.
struct Timed(Instant);

impl Drop for Timed {
    fn drop(&mut self) {
        let (thread, package) = (std::thread::current(), std::env::var("CARGO_PKG_NAME"));
        let (Ok(file), Some(test), Ok(package)) =
            (std::env::var("TEST_TIMES"), thread.name(), package)
        else {
            return;
        };
        let line = format!(
            "{:6.1} s  {package} {test}\n",
            self.0.elapsed().as_secs_f64()
        );
        let file = File::options().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// Waits until no other test of this machine holds the like, and keeps others waiting until it is dropped: for tests
/// that take all that a small machine has.
pub fn alone() -> File {
    let lock = File::create(std::env::temp_dir().join("test-alone.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// The address of a real Kafka; see [`service`].
pub fn kafka() -> Option<String> {
    service("KAFKA_BOOTSTRAP_SERVERS")
}

/// A name that no other test, and no earlier run, has.
pub fn unique(prefix: &str) -> String {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!("{prefix}-{}-{nanos}", std::process::id())
}

/// A topic to make.
pub struct Topic<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its partitions.
    pub partitions: i32,
    /// Its settings, where they are not the broker's.
    pub settings: &'a [(&'a str, &'a str)],
}

fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .unwrap()
}

fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ASK))
}

/// Makes topics, and waits until the broker leads all their partitions: it answers before.
pub async fn create_topics(bootstrap: &str, topics: &[Topic<'_>]) {
    let admin = admin(bootstrap);
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .map(
            |Topic {
                 name,
                 partitions,
                 settings,
             }| {
                let topic = NewTopic::new(name, *partitions, TopicReplication::Fixed(1));
                settings
                    .iter()
                    .fold(topic, |topic, (key, value)| topic.set(key, value))
            },
        )
        .collect();
    for created in admin.create_topics(&new, &admin_options()).await.unwrap() {
        created.unwrap();
    }
    for topic in topics {
        until_led(&admin, topic.name, topic.partitions).await;
    }
}

/// Gives a topic more partitions, `count` in all, and waits until the broker leads them.
pub async fn add_partitions(bootstrap: &str, topic: &str, count: i32) {
    let admin = admin(bootstrap);
    let more = NewPartitions::new(topic, usize::try_from(count).unwrap());
    let added = admin.create_partitions(&[more], &admin_options()).await;
    added.unwrap()[0].as_ref().unwrap();
    until_led(&admin, topic, count).await;
}

/// Alters a setting of a topic, and waits until the broker says so.
pub async fn alter_topic(bootstrap: &str, topic: &str, key: &str, value: &str) {
    let admin = admin(bootstrap);
    let specifier = ResourceSpecifier::Topic(topic);
    let altered = AlterConfig::new(specifier).set(key, value);
    let altered = admin.alter_configs([&altered], &admin_options()).await;
    altered.unwrap()[0].as_ref().unwrap();
    until(&format!("{topic} has {key}={value}"), ASK, async || {
        let told = admin.describe_configs([&specifier], &admin_options()).await;
        let told = told.unwrap().remove(0).unwrap();
        let is_so = told.get(key)?.value.as_deref() == Some(value);
        is_so.then_some(())
    })
    .await;
}

/// Alters how large a batch a topic takes, as [`alter_topic`] does.
pub async fn set_max_bytes(bootstrap: &str, topic: &str, bytes: u32) {
    alter_topic(bootstrap, topic, "max.message.bytes", &bytes.to_string()).await;
}

/// Deletes a topic, and waits until the broker knows nothing of it any more.
pub async fn delete_topic(bootstrap: &str, topic: &str) {
    let admin = admin(bootstrap);
    let deleted = admin.delete_topics(&[topic], &admin_options()).await;
    deleted.unwrap()[0].as_ref().unwrap();
    until(&format!("{topic} is gone"), ASK, async || {
        let metadata = admin.inner().fetch_metadata(None, ASK).unwrap();
        let known = metadata.topics().iter().any(|known| known.name() == topic);
        (!known).then_some(())
    })
    .await;
}

async fn until_led(admin: &AdminClient<DefaultClientContext>, topic: &str, partitions: i32) {
    let client = admin.inner();
    until(&format!("{topic} is led"), ASK, async || {
        let metadata = client.fetch_metadata(Some(topic), ASK).unwrap();
        let known = metadata.topics()[0].partitions().len() == partitions as usize;
        let is_led = |partition| client.fetch_watermarks(topic, partition, ASK).is_ok();
        (known && (0..partitions).all(is_led)).then_some(())
    })
    .await;
}

/// A consumer without a group that sees committed records only.
pub fn reader(bootstrap: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "false")
        .create()
        .unwrap()
}

/// Every committed record of a topic, from its beginning to the end that a committed reader sees
/// now; in offset order within a partition.
pub fn read_all(bootstrap: &str, topic: &str) -> Vec<OwnedMessage> {
    let mut records = Vec::new();
    read_each(bootstrap, topic, |record| records.push(record.detach()));
    records
}

/// [`read_all`] one by one, for topics that are more than memory holds.
pub fn read_each(bootstrap: &str, topic: &str, mut take: impl FnMut(BorrowedMessage<'_>)) {
    let consumer = reader(bootstrap);
    let metadata = consumer.fetch_metadata(Some(topic), ASK).unwrap();
    let mut ends = BTreeMap::new();
    let mut assignment = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let (_, end) = consumer
            .fetch_watermarks(topic, partition.id(), ASK)
            .unwrap();
        ends.insert(partition.id(), end);
        assignment
            .add_partition_offset(topic, partition.id(), Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let mut deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(record) = consumer.poll(Duration::from_millis(100)) {
            let record = record.unwrap();
            let more = record.offset() + 1 < ends[&record.partition()];
            take(record);
            deadline = Instant::now() + Duration::from_secs(60);
            if more {
                continue;
            }
        }
        let position = consumer.position().unwrap();
        // Markers take offsets too, so the end is where the position stands, not a last record.
        let done = ends.iter().all(|(partition, end)| {
            *end == 0
                || position
                    .find_partition(topic, *partition)
                    .and_then(|p| p.offset().to_raw())
                    .is_some_and(|p| p >= *end)
        });
        if done {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the end of {topic} was not reached: {position:?} of {ends:?}"
        );
    }
}

/// Waits until `condition` gives a value, asking again every 50 ms.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {within:?} in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs the command by which a program says that a missing topic is made, as an operator would. `false`: there is no
/// tool to run it by; see [`service`].
pub fn make_topic_as_hinted(log: &str) -> bool {
    let Some(tool) = service("TEST_KAFKA_TOOL") else {
        return false;
    };
    let (_, command) = log.split_once("make it with: kafka-topics.sh ").expect(log);
    let arguments = command.lines().next().unwrap().split_whitespace();
    let made = Command::new(tool)
        .args(["tool", "kafka-topics"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(made.status.success(), "{command}: {made:?}");
    true
}

/// What the broker says of a setting of a topic.
pub async fn topic_setting(bootstrap: &str, topic: &str, key: &str) -> String {
    let admin = admin(bootstrap);
    let asked = [ResourceSpecifier::Topic(topic)];
    let answers = admin.describe_configs(&asked, &admin_options()).await;
    let answer = answers.unwrap().remove(0).unwrap();
    answer.get(key).unwrap().value.clone().unwrap()
}

/// An address where nobody listens: a port that takes root's rights, and that nothing has used for long.
pub const NOBODY: &str = "127.0.0.1:1";

/// A port of this machine that nobody listens on, and that is none of those that the kernel hands out.
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

/// A schema registry of a test's own, by `TEST_REGISTRY_TOOL`; stopped when dropped.
pub struct OwnRegistry {
    tool: String,
    folder: String,
    /// The address for `--schema-registry`.
    pub url: String,
}

impl OwnRegistry {
    /// Starts one that keeps its files in a folder, with these further options of the tool; `None`:
    /// see [`service`].
    pub fn start(folder: &Path, options: &[&str]) -> Option<Self> {
        let mut registry = Self {
            tool: service("TEST_REGISTRY_TOOL")?,
            folder: folder.to_str().unwrap().to_owned(),
            url: String::new(),
        };
        registry.url = registry.tool(&[&["start"], options].concat());
        Some(registry)
    }

    /// Stops it; its schemas are kept.
    pub fn stop(&self) {
        self.tool(&["stop"]);
    }

    /// Starts it again where it was.
    pub fn start_again(&self) {
        assert_eq!(self.tool(&["start"]), self.url);
    }

    fn tool(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.tool)
            .args(["--dir", &self.folder])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{} {arguments:?}", self.tool);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for OwnRegistry {
    fn drop(&mut self) {
        let _ = Command::new(&self.tool)
            .args(["--dir", &self.folder, "stop"])
            .status();
    }
}

/// A gate in front of a service of this machine: while it is closed nobody listens at its port, and it
/// may let in only who knows a password.
pub struct Gate {
    port: u16,
    /// Of the service: `host:port`.
    service: String,
    /// The value that the Authorization header must have.
    password: Option<String>,
    closed: Option<Arc<AtomicBool>>,
}

impl Gate {
    /// A closed one.
    pub fn to(service: &str, password: Option<&str>) -> Self {
        Self {
            port: free_port(),
            service: service.to_owned(),
            password: password.map(str::to_owned),
            closed: None,
        }
    }

    /// Where it is: `127.0.0.1:port`.
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
                        // A visitor that goes away is no affair of the test.
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

/// Carries bytes to and fro, after the first request has shown the password.
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

/// A program of this workspace, beside the test's own.
pub fn program(beside: &str, name: &str) -> PathBuf {
    let path = Path::new(beside).with_file_name(name);
    assert!(
        path.exists(),
        "{} is not built; run: cargo build --workspace",
        path.display()
    );
    path
}

/// For `--metrics-listen`: a port that the kernel chooses, which nobody can take meanwhile.
pub const ANY_PORT: &str = "127.0.0.1:0";
/// What a program says when it listens, up to the port.
const LISTENS: &str = "metrics and health on http://127.0.0.1:";

/// How long a program may take to end: as long as systemd waits by default.
const END: Duration = Duration::from_secs(90);
/// How much of a log is shown after a failure.
const LOG_END_BYTES: usize = 64 << 10;

/// A child process; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Where in the log its own begins: one that is started again goes on in the same file.
    log_start: u64,
    /// Where its endpoints are, once it has said so.
    port: OnceLock<u16>,
}

impl Process {
    /// Starts a program that logs into `folder`.
    pub fn start(folder: &Path, name: &str, program: &Path, arguments: &[&str]) -> Self {
        Self::start_with(folder, name, program, arguments, &[])
    }

    /// The same with this environment beside the test's own.
    pub fn start_with(
        folder: &Path,
        name: &str,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let log_start = file.metadata().unwrap().len();
        let child = Command::new(program)
            .args(arguments)
            .env("LOG_LEVEL", "info")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self {
            name: name.to_owned(),
            child,
            log,
            log_start,
            port: OnceLock::new(),
        }
    }

    /// Status and body of an endpoint of a program that was started with [`ANY_PORT`]; `None` while
    /// it does not listen.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        if self.port.get().is_none() {
            let log = self.log();
            let (_, address) = log.split_once(LISTENS)?;
            let (port, _) = address.split_once(|c: char| !c.is_ascii_digit())?;
            let _ = self.port.set(port.parse().unwrap());
        }
        get(*self.port.get()?, path)
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        let mut log = Vec::new();
        let mut file = File::open(&self.log).unwrap();
        file.seek(SeekFrom::Start(self.log_start)).unwrap();
        file.read_to_end(&mut log).unwrap();
        // Its end may be in the middle of a character that is being written.
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The end of that, for a person.
    fn log_end(&self) -> String {
        let log = self.log();
        let cut = log.len().saturating_sub(LOG_END_BYTES);
        log[log.ceil_char_boundary(cut)..].to_owned()
    }

    /// Sends a signal by name, e.g. `TERM`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    /// What every user of the machine sees of it: its command line.
    pub fn command_line(&self) -> String {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.child.id())).unwrap();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The most memory that it ever held, in MiB (VmHWM, Linux).
    pub fn peak_memory_mib(&self) -> u64 {
        self.peak_memory_mib_if_running().unwrap()
    }

    /// The same, of one that may have ended: `None`.
    pub fn peak_memory_mib_if_running(&self) -> Option<u64> {
        self.memory_kib("VmHWM:").map(|kib| kib / 1024)
    }

    /// The memory that it holds now, in KiB (VmRSS, Linux); `None` when it has ended.
    pub fn memory_now_kib(&self) -> Option<u64> {
        self.memory_kib("VmRSS:")
    }

    fn memory_kib(&self, name: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.trim().trim_end_matches(" kB").parse().ok()
    }

    /// Kills it, as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits until it has ended; shows how, and its log, if it did not end well.
    pub async fn stop(mut self) -> ExitStatus {
        self.signal("TERM");
        let status = self.ended().await;
        if !status.success() {
            eprintln!("--- {} ended with {status}:\n{}", self.name, self.log_end());
        }
        status
    }

    /// Waits until it has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let Self {
            name, child, log, ..
        } = self;
        until(
            &format!("{name} ends; its log is {}", log.display()),
            END,
            async || child.try_wait().unwrap(),
        )
        .await
    }

    /// Panics with its log if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended with {status}:\n{}", self.name, self.log());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log_end());
        }
    }
}
