//! Programs as child processes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use super::environment::until;
use super::ports::get;

/// For `--metrics-listen`: a port that the kernel chooses, without a race.
pub const ANY_PORT: &str = "127.0.0.1:0";
/// The log line of a listening program, up to the port.
const LISTENS: &str = "metrics and health on http://127.0.0.1:";

/// How long a program may take to end: systemd's default.
const END: Duration = Duration::from_secs(90);
/// Bytes of a log that are shown after a failure.
const LOG_END_BYTES: usize = 64 << 10;

/// A child process; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Start of this process's part of the log: a restarted program appends to the same file.
    log_start: u64,
    /// Port of its endpoints, after it has logged it.
    port: OnceLock<u16>,
}

impl Process {
    /// Starts a program that logs into `folder`.
    pub fn start(folder: &Path, name: &str, program: &Path, arguments: &[&str]) -> Self {
        Self::start_with(folder, name, program, arguments, &[])
    }

    /// The same with additional environment variables.
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

    /// Its log so far.
    pub fn log(&self) -> String {
        let mut log = Vec::new();
        let mut file = File::open(&self.log).unwrap();
        file.seek(SeekFrom::Start(self.log_start)).unwrap();
        file.read_to_end(&mut log).unwrap();
        // The end may be in the middle of a character.
        String::from_utf8_lossy(&log).into_owned()
    }

    /// The end of the log, for people.
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

    /// Its command line, which every user of the machine can see.
    pub fn command_line(&self) -> String {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.child.id())).unwrap();
        String::from_utf8_lossy(&line).into_owned()
    }

    /// Its exit status, if it has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its peak memory, in MiB (VmHWM, Linux).
    pub fn peak_memory_mib(&self) -> u64 {
        self.peak_memory_mib_if_running().unwrap()
    }

    /// The same; `None` if it has ended.
    pub fn peak_memory_mib_if_running(&self) -> Option<u64> {
        self.memory_kib("VmHWM:").map(|kib| kib / 1024)
    }

    /// Its current memory, in KiB (VmRSS, Linux); `None` if it has ended.
    pub fn memory_now_kib(&self) -> Option<u64> {
        self.memory_kib("VmRSS:")
    }

    fn memory_kib(&self, name: &str) -> Option<u64> {
        memory_kib(self.child.id(), name)
    }

    /// Kills it (SIGKILL).
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM and waits until it has ended; prints status and log after a failure.
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

/// The memory of a process, in KiB: `VmHWM:`, its peak, or `VmRSS:` (Linux). `None` if it has ended.
pub fn memory_kib(id: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.trim().trim_end_matches(" kB").parse().ok()
}
