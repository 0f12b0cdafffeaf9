//! The terminal: taken over, given back however the program ends, and what is typed in it.

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

/// How many events of the terminal wait at most: what is typed faster than that waits in the terminal.
const EVENTS: usize = 16;
/// How long a program that a signal ends may take to give the terminal back, before that is done over its head: a
/// terminal that takes no output (Ctrl-S) blocks it.
const GRACE: Duration = Duration::from_secs(2);

/// Whether the terminal is taken over now.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, taken over until this is dropped: raw mode and the alternate screen. Logs are held meanwhile.
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
    /// If the terminal does not take it.
    pub(super) fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(drop)
    }

    /// The next frame is drawn whole: something else may have written to the terminal.
    ///
    /// # Errors
    /// If the terminal does not take it.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        // Terminal::clear would ask where the cursor is, and the answer comes to the thread that reads keys.
        execute!(stdout(), Clear(ClearType::All))?;
        self.terminal = Terminal::new(CrosstermBackend::new(stdout()))?;
        Ok(())
    }

    /// Stops the program until the shell continues it, with the terminal given back meanwhile.
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

/// Only once: to leave the alternate screen again would move the cursor over what was printed since.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Raw mode first: it needs no room in the terminal's buffer. A terminal that has gone needs nothing.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

/// What happens in the terminal; ends with the terminal.
///
/// # Errors
/// If there is no thread for it.
pub(super) fn events() -> io::Result<mpsc::Receiver<Event>> {
    let (sender, events) = mpsc::channel(EVENTS);
    let read = move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    };
    // Reading blocks: the thread ends with the process.
    std::thread::Builder::new()
        .name("keys".to_owned())
        .spawn(read)?;
    Ok(events)
}

/// Answers when SIGTERM, SIGINT or SIGHUP comes. A program that has not ended soon after is ended then, with the terminal
/// given back as far as it can be.
///
/// # Errors
/// If the process may not listen for signals.
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
