//! Environment of a test: services, unique names, time limits, the programs of the workspace.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Timeout of a broker's answer; long, because a busy small machine is slow.
pub const ASK: Duration = Duration::from_secs(60);

/// The value of an environment variable that names a service, as `deploy/test` sets it. If it is `None`, the
/// test must return, which skips it. Fails if `TEST_REQUIRE_SERVICES` is set.
pub fn service(variable: &str) -> Option<String> {
    WATCHED.with(|_| {}); // from the first use on
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
    static WATCHED: Watched = Watched::begin();
}

/// Watches a test on its thread. Appends its duration to the file in `TEST_TIMES`. If the test has not ended
/// after `TEST_HANGS_AFTER` seconds, prints its name and the stacks of its threads, and ends all tests.
struct Watched {
    since: Instant,
    _ended: Option<Sender<()>>,
}

impl Watched {
    fn begin() -> Self {
        let limit = std::env::var("TEST_HANGS_AFTER");
        let limit = limit.ok().and_then(|limit| limit.parse().ok());
        let watcher = limit.map(|limit| {
            let (ended, end) = std::sync::mpsc::channel();
            let test = std::thread::current().name().unwrap_or("?").to_owned();
            std::thread::spawn(move || {
                if end.recv_timeout(Duration::from_secs(limit)) == Err(RecvTimeoutError::Timeout) {
                    end_hung(&test, limit);
                }
            });
            ended
        });
        Self {
            since: Instant::now(),
            _ended: watcher,
        }
    }
}

/// Bypasses the test runner, which captures output until a test ends.
fn end_hung(test: &str, limit: u64) -> ! {
    let mut log = std::io::stderr();
    let _ = writeln!(
        log,
        "{test} has not ended in {limit} s; all tests are given up"
    );
    let id = std::process::id().to_string();
    let children = ["-o", "pid,etime,args", "--ppid", &id];
    let stacks = ["-p", &id, "-batch", "-ex", "thread apply all bt 30"];
    for (tool, arguments) in [("ps", &children[..]), ("gdb", &stacks[..])] {
        // Either tool may be absent; their output goes to the same place.
        if let Ok(shown) = Command::new(tool).args(arguments).output() {
            let _ = log.write_all(&shown.stdout);
        }
    }
    std::process::abort()
}

impl Drop for Watched {
    fn drop(&mut self) {
        let (thread, package) = (std::thread::current(), std::env::var("CARGO_PKG_NAME"));
        let (Ok(file), Some(test), Ok(package)) =
            (std::env::var("TEST_TIMES"), thread.name(), package)
        else {
            return;
        };
        let line = format!(
            "{:6.1} s  {package} {test}\n",
            self.since.elapsed().as_secs_f64()
        );
        let file = File::options().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

/// A machine-wide lock, held until it is dropped, for tests that use all resources of a small machine.
pub fn alone() -> File {
    let lock = File::create(std::env::temp_dir().join("test-alone.lock")).unwrap();
    lock.lock().unwrap();
    lock
}

/// The address of a real Kafka; see [`service`].
pub fn kafka() -> Option<String> {
    service("KAFKA_BOOTSTRAP_SERVERS")
}

/// A name that is unique across tests and runs.
pub fn unique(prefix: &str) -> String {
    let nanos = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos();
    format!("{prefix}-{}-{nanos}", std::process::id())
}

/// Waits until `condition` returns a value, polling every 50 ms.
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

/// Path of a program of this workspace, in the folder of the test's own program.
pub fn program(beside: &str, name: &str) -> PathBuf {
    let path = Path::new(beside).with_file_name(name);
    assert!(
        path.exists(),
        "{} is not built; run: cargo build --workspace",
        path.display()
    );
    path
}
