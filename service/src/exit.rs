//! How a program ends: on a signal, and with a code that a supervisor can use.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

/// Ended as asked.
pub const OK: u8 = 0;
/// An error that a restart may cure; a supervisor should start the program again.
pub const FAILED: u8 = 1;
/// Wrong usage, as clap has it, or wrong input to a command that ends by itself.
pub const USAGE: u8 = 2;
/// `EX_CONFIG` of sysexits.h: a person has to change something first; a supervisor should not
/// start the program again (systemd: `RestartPreventExitStatus=78`).
pub const CONFIG: u8 = 78;

/// An error that no restart cures; see [`CONFIG`]. Anywhere in the chain of causes it counts.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NeedsAttention(pub String);

/// An error that starting over inside the program cures: with new clients everything that is open is
/// settled and read on from. Anywhere in the chain of causes it counts.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartOver(pub String);

/// The exit code of a program's `run`, after logging the error that ended it.
pub fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(OK),
        Err(error) => {
            if tracing::dispatcher::has_been_set() {
                tracing::error!("{error:#}");
            } else {
                eprintln!("error: {error:#}");
            }
            let needs_attention = error.chain().any(|cause| cause.is::<NeedsAttention>());
            ExitCode::from(if needs_attention { CONFIG } else { FAILED })
        }
    }
}

/// A token that SIGTERM or SIGINT cancels. A second signal ends the process at once, with 130 or
/// 143 as shells have it.
///
/// # Errors
/// If the process may not listen for signals.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        for count in 1.. {
            let (name, code) = tokio::select! {
                _ = interrupt.recv() => ("SIGINT", 130),
                _ = terminate.recv() => ("SIGTERM", 143),
            };
            if count > 1 {
                tracing::warn!("{name} again: ending at once");
                std::process::exit(code);
            }
            tracing::info!("{name}: finishing what is under way, then stopping");
            stop.cancel();
        }
    });
    Ok(shutdown)
}
