//! Program exit: on a signal, within a time limit, and with an exit code for supervisors.
#![expect(
    unsafe_code,
    reason = "std's exit runs the handlers of C libraries whose threads still work; std sends no signals"
)]

mod codes;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::text::shown;
use crate::{output, settings};

pub use crate::error::{NeedsAttention, StartOver, WrongUsage};
pub use codes::{CONFIG, FAILED, Kind, OK, USAGE, help};

/// Time limit for stopping after the first signal: less than the 10 s after which `docker stop` kills.
pub const GRACE: Duration = Duration::from_secs(8);

/// A program exits if its clock is set back by more than this. Equals a member's session timeout.
const SET_BACK: Duration = Duration::from_secs(10);

/// [Parses](settings::parse) the command line and the environment, runs the program to its end, and returns
/// its exit code. `kind` returns the kind of program. Does not wait for threads that are still blocked, for
/// example on standard input or a broker.
pub fn main<Cli, Program>(
    kind: impl FnOnce(&Cli) -> Kind,
    program: impl FnOnce(Cli) -> Program,
) -> ExitCode
where
    Cli: clap::Parser,
    Program: Future<Output = anyhow::Result<u8>>,
{
    let cli = match settings::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(answer) => {
            return ExitCode::from(match output::print_answer(&answer) {
                Ok(()) if answer.use_stderr() => USAGE,
                Ok(()) => OK,
                Err(error) => code(Kind::Command, &error.into()),
            });
        }
    };
    let kind = kind(&cli);
    let ended = run(|| program(cli));
    ExitCode::from(ended.unwrap_or_else(|error| code(kind, &error)))
}

/// Runs a program on its own runtime. A panic becomes an error, so that the exit code is one of the
/// documented ones.
fn run<Program>(program: impl FnOnce() -> Program) -> anyhow::Result<u8>
where
    Program: Future<Output = anyhow::Result<u8>>,
{
    let runtime = tokio::runtime::Runtime::new()?;
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(program())));
    runtime.shutdown_background();
    ended.unwrap_or_else(|_| bail!("a bug in this program (see the panic above); please report it"))
}

/// Logs the error that ended a program, and returns the exit code for it.
fn code(kind: Kind, error: &anyhow::Error) -> u8 {
    let says = match kind {
        Kind::Audit => "could not tell: ",
        Kind::Service | Kind::Command => "",
    };
    if tracing::dispatcher::has_been_set() {
        tracing::error!("{says}{error:#}");
    } else {
        output::note(format_args!(
            "error: {says}{}",
            shown(&format!("{error:#}"))
        ));
    }
    let is_due_to = |is: fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(is);
    match kind {
        // 1 would be a verdict.
        Kind::Audit => USAGE,
        _ if is_due_to(|cause| cause.is::<NeedsAttention>()) => CONFIG,
        _ if is_due_to(|cause| cause.is::<WrongUsage>()) => USAGE,
        _ => FAILED,
    }
}

/// A token that SIGTERM, SIGINT or SIGHUP cancels, for a program that uses Kafka. A program that has not
/// ended [`GRACE`] later logs what its threads wait for and exits with the code `unfinished`. A second signal
/// ends it at once, with 129, 130 or 143 as in shells. If the clock is set back, the program exits with
/// [`FAILED`], or with [`USAGE`] if `unfinished` is that (an audit: 1 would be a verdict).
///
/// # Errors
/// If the process may not listen for signals.
pub fn on_signal(unfinished: u8) -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    listen(async move |mut signals| {
        let (name, _) = tokio::select! {
            signal = signals.next() => signal,
            by = clock_set_back() => {
                let (code, first, again) = match unfinished {
                    USAGE => (USAGE, "could not tell: ", "run it again"),
                    _ => (FAILED, "", "exiting; the next start repeats uncommitted work"),
                };
                // No orderly shutdown: closing a client waits for its threads.
                tracing::error!(
                    "{first}the system's clock was set back by {} s, and librdkafka's timers depend on it: {again}",
                    by.as_secs()
                );
                end(code)
            }
        };
        cancelled.cancel();
        // Logging below may block if nobody reads the log.
        std::thread::spawn(move || {
            std::thread::sleep(GRACE + Duration::from_secs(1));
            end(unfinished);
        });
        tracing::info!(
            "{name}: finishing work in progress, then stopping, within {} s",
            GRACE.as_secs()
        );
        tokio::select! {
            (name, code) = signals.next() => {
                tracing::warn!("{name} again: exiting at once");
                end(code)
            }
            () = tokio::time::sleep(GRACE) => {
                tracing::warn!(
                    "not finished {} s after {name}, exiting: still waiting for {}. The next start repeats uncommitted work",
                    GRACE.as_secs(),
                    waited_for()
                );
                end(unfinished)
            }
        }
    })?;
    Ok(stop)
}

/// Makes SIGTERM, SIGINT and SIGHUP end the program at once with this code, even as process 1 of a container.
/// For programs that only query, or whose work is one database transaction: they leave nothing half done.
///
/// # Errors
/// If the process may not listen for signals.
pub fn at_once_on_signal(code: u8) -> std::io::Result<CancellationToken> {
    listen(async move |mut signals| {
        let (name, _) = signals.next().await;
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(1));
            end(code);
        });
        tracing::warn!("{name}: ended before it was done");
        end(code)
    })?;
    Ok(CancellationToken::new())
}

/// A blocking wait, named in the log if it outlasts the time limit for [stopping](GRACE).
pub struct Waiting(u64);

static WAITING: Mutex<BTreeMap<u64, Cow<'static, str>>> = Mutex::new(BTreeMap::new());

/// Registers a wait for `what` until the returned value is dropped.
pub fn waiting(what: impl Into<Cow<'static, str>>) -> Waiting {
    let mut waiting = lock();
    let id = waiting.last_key_value().map_or(0, |(id, _)| id + 1);
    waiting.insert(id, what.into());
    Waiting(id)
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock().remove(&self.0);
    }
}

fn lock() -> MutexGuard<'static, BTreeMap<u64, Cow<'static, str>>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn waited_for() -> String {
    let waiting = lock();
    let each: Vec<&str> = waiting.values().map(AsRef::as_ref).collect();
    match each[..] {
        [] => "an answer, or for a client to close".to_owned(),
        _ => each.join(", "),
    }
}

/// Stops the job that this process belongs to, as Ctrl-Z does in a terminal that is not in raw mode. Returns
/// when the shell continues it.
pub fn suspend() {
    // SAFETY: the call takes no pointers; its failure changes nothing.
    unsafe { libc::kill(0, libc::SIGTSTP) };
}

/// Ends the process without waiting for its threads.
fn end(code: u8) -> ! {
    // SAFETY: the call takes no pointers and does not return. `std::process::exit` would run OpenSSL's
    // clean-up while the threads of librdkafka still use it.
    unsafe { libc::_exit(i32::from(code)) }
}

/// Waits until the system's clock is set back by more than a session timeout. The timed waits of librdkafka
/// 2.12 use that clock (`cnd_timedwait_abs`), so its heartbeats and retries are delayed by the same time, and
/// members lose their group.
async fn clock_set_back() -> Duration {
    let (mut wall, mut steady) = (SystemTime::now(), Instant::now());
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (wall_now, steady_now) = (SystemTime::now(), Instant::now());
        let passed = steady_now - steady;
        let back = match wall_now.duration_since(wall) {
            Ok(shown) => passed.saturating_sub(shown),
            Err(earlier) => passed + earlier.duration(),
        };
        if back > SET_BACK {
            return back;
        }
        (wall, steady) = (wall_now, steady_now);
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        // A program under nohup outlives its terminal.
        let hangup = (!hangup_ignored()).then(|| signal(SignalKind::hangup()));
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup.transpose()?,
        })
    }

    /// The name of the next signal, and its exit code as in shells.
    async fn next(&mut self) -> (&'static str, u8) {
        let Self {
            interrupt,
            terminate,
            hangup,
        } = self;
        let hung_up = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => ("SIGINT", 130),
            _ = terminate.recv() => ("SIGTERM", 143),
            _ = hung_up => ("SIGHUP", 129),
        }
    }
}

fn hangup_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 != 0)
}

/// Listens for signals on a separate thread, because all threads of the program may be blocked.
fn listen<F: Future<Output = ()>>(
    act: impl FnOnce(Signals) -> F + Send + 'static,
) -> std::io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let signals = {
        let _entered = runtime.enter();
        Signals::new()?
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || runtime.block_on(act(signals)))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_with_a_code_of_the_table() {
        let ended = run(async || panic!("as a test wants it"));
        let error = ended.unwrap_err();
        assert_eq!(code(Kind::Service, &error), FAILED);
        assert_eq!(code(Kind::Audit, &error), USAGE);
    }

    #[test]
    fn the_code_is_that_of_the_cause() {
        let operator = anyhow::Error::from(NeedsAttention("a".to_owned())).context("b");
        let usage = anyhow::Error::from(WrongUsage("a".to_owned())).context("b");
        for (error, expected) in [
            (operator, CONFIG),
            (usage, USAGE),
            (anyhow::anyhow!("a"), FAILED),
        ] {
            assert_eq!(code(Kind::Command, &error), expected);
            assert_eq!(code(Kind::Audit, &error), USAGE);
        }
    }
}
