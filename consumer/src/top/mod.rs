//! `consumer top`: a live view of the tasks in a terminal.
//!
//! ```text
//! keys ─────▶ State ──▶ draw, at most ten times a second
//! signals     │   ▲
//!             ▼   │
//!       Question  Answer           one question at a time
//!             │   │
//!             ▼   │
//!           fetch ───▶ Source: the HTTP API, or a database
//! ```

mod answer;
mod columns;
mod details;
mod draw;
mod fetch;
mod source;
mod state;
mod terminal;
#[cfg(test)]
mod tests;
mod theme;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use ratatui::crossterm::event::Event;
use service::address::{Address, AddressParser};
use service::output;
use service::time::duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use self::answer::{Answer, Question, Sort};
use self::fetch::fetch;
use self::source::Source;
use self::state::{Action, State};
use self::terminal::{Screen, ended_by_signal, events};
use crate::query::{DEFAULT_LIMIT, LARGEST_LIMIT, TaskQuery};
use crate::store::DatabaseOptions;
use crate::task_options::TaskOptions;
use crate::tasks::{list_text, tasks};

/// Minimum interval between frames.
const FRAME: Duration = Duration::from_millis(100);
/// Interval of redraws for running times.
const TICK: Duration = Duration::from_secs(1);

/// Options of `consumer top`.
#[derive(Clone, Debug, clap::Args)]
pub struct TopOptions {
    /// Read from this `consumer serve` instead of a database
    #[arg(long, value_name = "URL", value_parser = AddressParser::http("--token-file or TASKRUNNING_TOKEN"))]
    pub url: Option<Address>,

    /// File with the API's bearer token; default: the environment variable TASKRUNNING_TOKEN
    #[arg(long, value_name = "FILE", requires = "url")]
    pub token_file: Option<PathBuf>,

    /// CA certificates for the API (PEM file), in addition to the system's
    #[arg(long, value_name = "FILE", requires = "url")]
    pub ca_file: Option<PathBuf>,

    /// Filters and order of the list.
    #[command(flatten)]
    pub tasks: TaskOptions,

    /// Maximum number of tasks
    #[arg(long, value_name = "N", default_value_t = DEFAULT_LIMIT, value_parser = clap::value_parser!(u32).range(1..=i64::from(LARGEST_LIMIT)))]
    pub limit: u32,

    /// Pause between an answer and the next query
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,

    /// Print the list once, as `consumer tasks` does; default if standard output is not a terminal
    #[arg(long)]
    pub once: bool,
}

impl TopOptions {
    /// Whether to run interactively, in a terminal.
    pub fn is_live(&self) -> bool {
        !self.once && std::io::stdout().is_terminal()
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval < FRAME => Err(format!("at least {} ms", FRAME.as_millis())),
        interval => Ok(interval),
    }
}

/// Shows tasks until a key, SIGTERM, SIGINT or SIGHUP ends it.
///
/// # Errors
/// If the options are invalid, or the terminal cannot be used. An unavailable source is an error only with `--once`.
pub async fn top(options: TopOptions, database: &DatabaseOptions) -> anyhow::Result<()> {
    let query = TaskQuery {
        limit: options.limit,
        ..options.tasks.clone().query()
    };
    let mut source = Source::of(&options, database, query.clone())?;
    if !options.is_live() {
        return once(options, source, &query, database).await;
    }
    // Fails before the terminal is taken over.
    let mut ended = ended_by_signal()?;
    tokio::select! {
        _ = &mut ended => return Ok(()),
        checked = source.check() => checked?,
    }
    let sort = Sort {
        order: query.order,
        descending: query.descending,
    };
    let filters = source::shown(&query.filter);
    let state = State::new(source.place(), filters, query.at, sort);
    run(source, state, options.interval, ended).await
}

/// Prints the list, as `consumer tasks` does.
async fn once(
    options: TopOptions,
    mut source: Source,
    query: &TaskQuery,
    database: &DatabaseOptions,
) -> anyhow::Result<()> {
    if options.url.is_none() {
        return tasks(database, options.tasks, None, options.limit, false).await;
    }
    let page = source.page().await?;
    output::print(&list_text(&page, None, query, &source.place())?)?;
    Ok(())
}

async fn run(
    source: Source,
    mut state: State,
    interval: Duration,
    ended: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let (questions, asked) = watch::channel(state.question());
    let (sender, answers) = mpsc::channel(1);
    let mut screen = Screen::enter().context("cannot draw on the terminal")?;
    let events = events()?;
    let fetching = tokio::spawn(fetch(source, asked, sender, interval));
    let shown = show(&mut screen, &mut state, questions, answers, events, ended).await;
    fetching.abort();
    drop(screen);
    shown
}

async fn show(
    screen: &mut Screen,
    state: &mut State,
    questions: watch::Sender<Question>,
    mut answers: mpsc::Receiver<Result<Answer, String>>,
    mut events: mpsc::Receiver<Event>,
    mut ended: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let mut next_frame = Instant::now();
    let mut is_changed = true;
    loop {
        if is_changed && Instant::now() >= next_frame {
            screen.draw(|frame| draw::draw(state, frame, Timestamp::now()))?;
            is_changed = false;
            next_frame = Instant::now() + FRAME;
        }
        let tick = next_frame + TICK;
        tokio::select! {
            biased;
            _ = &mut ended => return Ok(()),
            event = events.recv() => {
                let action = match event {
                    Some(Event::Key(key)) => state.pressed(key, Timestamp::now()),
                    Some(Event::Resize(..)) => Action::Draw,
                    Some(_) => Action::Nothing,
                    // The terminal was closed.
                    None => return Ok(()),
                };
                match action {
                    Action::Nothing => continue,
                    Action::Draw => {}
                    Action::Clear => screen.clear()?,
                    Action::Suspend => screen.suspend()?,
                    Action::Quit => return Ok(()),
                }
                let question = state.question();
                questions.send_if_modified(|asked| {
                    let is_new = *asked != question;
                    *asked = question;
                    is_new
                });
            }
            answer = answers.recv() => {
                let answer = answer.context("the fetching task has ended")?;
                state.answered(answer, Timestamp::now());
            }
            () = sleep_until(next_frame), if is_changed => continue,
            () = sleep_until(tick), if state.ticks() => {}
        }
        is_changed = true;
    }
}
