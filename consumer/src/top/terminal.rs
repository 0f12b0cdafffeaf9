//! The terminal: taken over, restored however the program ends, and its input.

use std::io::{self, Stdout, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::{Frame, Terminal};
use service::exit::suspend;
use service::telemetry::{HeldLogs, hold_logs};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Maximum number of buffered events; further input waits in the terminal.
const EVENTS: usize = 16;
/// Time for the program to restore the terminal after a signal; then the signal handler does it. A terminal that
/// accepts no output (Ctrl-S) would block the program.
const GRACE: Duration = Duration::from_secs(2);

/// Whether the terminal is taken over.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal in raw mode and on the alternate screen, until this is dropped. Logs are held back meanwhile.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    _logs: Option<HeldLogs>,
}

impl Screen {
    /// # Errors
    /// If there is no terminal.
    pub(super) fn enter() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                hook(panic);
            }));
        });
        let logs = hold_logs();
        take()?;
        let terminal = Terminal::new(CrosstermBackend::new(stdout()));
        let terminal = terminal.inspect_err(|_| give_back())?;
        Ok(Self {
            terminal,
            _logs: logs,
        })
    }

    /// # Errors
    /// If the terminal cannot be written.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// Draws the next frame in full, in case something else has written to the terminal.
    ///
    /// # Errors
    /// If the terminal cannot be written.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        // `Terminal::clear` would query the cursor's position, but the thread that reads keys would receive the answer.
        execute!(stdout(), Clear(ClearType::All))?;
        self.terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(())
    }

    /// Stops the process until the shell continues it, with the terminal restored meanwhile.
    ///
    /// # Errors
    /// If the terminal cannot be taken over again.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        give_back();
        suspend();
        take()?;
        self.clear()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    TAKEN.store(true, Ordering::SeqCst);
    execute!(stdout(), EnterAlternateScreen).inspect_err(|_| give_back())
}

/// Idempotent: leaving the alternate screen twice would move the cursor over later output.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Raw mode first, as that needs no room in the output buffer. Errors are ignored: the terminal may be gone.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

/// Events of the terminal; ends with the terminal.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn events() -> io::Result<mpsc::Receiver<Event>> {
    let (sender, events) = mpsc::channel(EVENTS);
    let read = move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    };
    // Reading blocks, so the thread ends with the process.
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(read)?;
    Ok(events)
}

/// Resolves on SIGTERM, SIGINT or SIGHUP. If the program is still running shortly after, restores the terminal as far
/// as possible and exits.
///
/// # Errors
/// If signal handlers cannot be installed.
pub(super) fn ended_by_signal() -> io::Result<oneshot::Receiver<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let (sender, ended) = oneshot::channel();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        let _ = sender.send(());
        tokio::time::sleep(GRACE).await;
        let _ = disable_raw_mode();
        std::process::exit(i32::from(service::exit::FAILED));
    });
    Ok(ended)
}
