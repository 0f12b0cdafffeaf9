//! The routers and consumers, and a supervisor like systemd: it restarts a service that has ended, unless no fault
//! explains the exit.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{bail, ensure};
use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use service::testing::Process;
use tokio::time::{Instant, sleep};

use crate::journal::Journal;

/// Time a service may take to stop, as in the systemd units.
const STOP: Duration = Duration::from_secs(90);

pub(crate) struct Fleet {
    services: Vec<Service>,
    /// For delays, separate from the faults' generator: the order of exits does not depend on the seed.
    rng: ChaCha8Rng,
    journal: Arc<Journal>,
    /// Number of restarts, by kind of service and reason.
    restarts: BTreeMap<String, u64>,
    /// Last log lines of some services that ended with 1.
    reasons: BTreeMap<String, u64>,
}

struct Service {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    folder: PathBuf,
    state: State,
}

enum State {
    Runs {
        process: Process,
        /// The signal that was sent, and when.
        sent: Option<(&'static str, Instant)>,
        /// When the service continues.
        paused: Option<Instant>,
    },
    Down {
        until: Instant,
    },
}

impl Service {
    fn start(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.state = State::Runs {
            process: Process::start(&self.folder, &self.name, &self.program, &arguments),
            sent: None,
            paused: None,
        };
    }

    /// `router` or `consumer`.
    fn kind(&self) -> &str {
        self.name.split('-').next().unwrap()
    }
}

impl Fleet {
    pub(crate) fn new(rng: ChaCha8Rng, journal: Arc<Journal>) -> Self {
        Self {
            services: Vec::new(),
            rng,
            journal,
            restarts: BTreeMap::new(),
            reasons: BTreeMap::new(),
        }
    }

    /// Adds a service and starts it.
    pub(crate) fn add(
        &mut self,
        folder: &Path,
        name: &str,
        program: PathBuf,
        arguments: Vec<String>,
    ) {
        let mut service = Service {
            name: name.to_owned(),
            program,
            arguments,
            folder: folder.to_owned(),
            state: State::Down {
                until: Instant::now(),
            },
        };
        service.start();
        self.services.push(service);
    }

    /// A random service that is running and unaffected by faults.
    pub(crate) fn any(&self, rng: &mut ChaCha8Rng) -> Option<usize> {
        let free = |service: &Service| {
            let State::Runs {
                process,
                sent,
                paused,
            } = &service.state
            else {
                return false;
            };
            sent.is_none() && paused.is_none() && hears_signals(process)
        };
        (0..self.services.len())
            .filter(|i| free(&self.services[*i]))
            .choose(rng)
    }

    pub(crate) fn name(&self, i: usize) -> &str {
        &self.services[i].name
    }

    /// Sends a signal that ends the service.
    pub(crate) fn end(&mut self, i: usize, signal: &'static str) {
        if let State::Runs { process, sent, .. } = &mut self.services[i].state {
            process.signal(signal);
            *sent = Some((signal, Instant::now()));
        }
    }

    /// Stops the process for a time (SIGSTOP).
    pub(crate) fn pause(&mut self, i: usize, lasting: Duration) {
        if let State::Runs {
            process, paused, ..
        } = &mut self.services[i].state
        {
            process.signal("STOP");
            *paused = Some(Instant::now() + lasting);
        }
    }

    /// Restarts and continues the services that are due.
    ///
    /// # Errors
    /// If a service ended and no fault explains it.
    pub(crate) fn tick(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for i in 0..self.services.len() {
            let service = &mut self.services[i];
            match &mut service.state {
                State::Down { until } => {
                    if now >= *until {
                        service.start();
                    }
                }
                State::Runs {
                    process,
                    sent,
                    paused,
                } => {
                    if let Some(status) = process.status() {
                        let sent = sent.map(|(signal, _)| signal);
                        let log = process.log();
                        self.note_end(i, status, sent, &log)?;
                        let delay = Duration::from_millis(self.rng.random_range(0..3_000));
                        self.services[i].state = State::Down { until: now + delay };
                    } else if paused.is_some_and(|until| now >= until) {
                        process.signal("CONT");
                        *paused = None;
                    } else if let Some((signal, at)) = sent {
                        ensure!(
                            at.elapsed() < STOP,
                            "{} does not end though it was sent SIG{signal} {STOP:?} ago",
                            service.name
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts an exit that leads to a restart.
    fn note_end(
        &mut self,
        i: usize,
        status: ExitStatus,
        sent: Option<&str>,
        log: &str,
    ) -> anyhow::Result<()> {
        let service = &self.services[i];
        let (name, kind) = (&service.name, service.kind());
        let last = log.lines().next_back().unwrap_or_default();
        let why = match (status.code(), status.signal(), sent) {
            _ if log.contains("panicked at") => bail!("{name} panicked:\n{}", end_of(log)),
            (None, Some(9), Some("KILL")) => "killed",
            (Some(0), _, Some("TERM")) => "stopped",
            (Some(1), _, Some("TERM")) => "stopped with exit code 1",
            (Some(0), _, None) => bail!("{name} ended without a reason:\n{}", end_of(log)),
            (Some(1), _, _) => "exit code 1",
            _ => bail!("{name} ended with {status}:\n{}", end_of(log)),
        };
        *self.restarts.entry(format!("{kind} {why}")).or_default() += 1;
        if status.code() == Some(1) {
            self.journal.line(&format!("{name} {why}: {last}"));
            *self.reasons.entry(kind_of_reason(kind, last)).or_default() += 1;
        }
        Ok(())
    }

    /// Continues all stopped processes, and starts all services that are down.
    pub(crate) fn resume(&mut self) {
        for service in &mut self.services {
            match &mut service.state {
                State::Runs { paused, .. } => {
                    if let Some(until) = paused {
                        *until = Instant::now();
                    }
                }
                State::Down { until } => *until = Instant::now(),
            }
        }
    }

    /// Stops all services, which must exit in order.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + STOP;
        // A service that ended a moment ago is restarted first, so that all are up at the end.
        let works = |service: &Service| match &service.state {
            State::Runs {
                process,
                sent: None,
                ..
            } => hears_signals(process),
            _ => false,
        };
        while !self.services.iter().all(works) {
            ensure!(Instant::now() < deadline, "services do not stay up");
            self.resume();
            self.tick()?;
            sleep(Duration::from_millis(50)).await;
        }
        for i in 0..self.services.len() {
            self.end(i, "TERM");
        }
        for service in &mut self.services {
            let State::Runs { process, .. } = &mut service.state else {
                continue;
            };
            let deadline = Instant::now() + STOP;
            let status = loop {
                if let Some(status) = process.status() {
                    break status;
                }
                ensure!(
                    Instant::now() < deadline,
                    "{} does not stop within {STOP:?} with nothing broken",
                    service.name
                );
                sleep(Duration::from_millis(50)).await;
            };
            let log = process.log();
            ensure!(
                status.success() && !log.contains("panicked at"),
                "{} ended with {status} when told to stop with nothing broken:\n{}",
                service.name,
                end_of(&log)
            );
        }
        Ok(())
    }

    pub(crate) fn restarts(&self) -> Value {
        json!({ "by_cause": self.restarts, "exit_code_1": self.reasons })
    }
}

/// A program installs its signal handlers before it logs; SIGTERM is no orderly stop before that.
fn hears_signals(process: &Process) -> bool {
    !process.log().is_empty()
}

fn end_of(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// A reason without time and numbers, to group similar ones.
fn kind_of_reason(kind: &str, last: &str) -> String {
    let message = last
        .split_once(" ERROR ")
        .map_or(last, |(_, message)| message);
    let mut reason = format!("{kind}: ");
    for c in message.chars().take(240) {
        match c {
            '0'..='9' if reason.ends_with('#') => {}
            '0'..='9' => reason.push('#'),
            c => reason.push(c),
        }
    }
    reason
}
