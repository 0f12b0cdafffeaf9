//! Draws the state: the heading, the list of tasks or one task's details, and the keys. All text from reports passes
//! through [`shown`], so that no control character reaches the terminal.

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use service::text::shown;
use service::words::counted;

use super::columns::{cells, headings};
use super::details;
use super::state::{Found, ORDERS, State, View};
use super::theme::{fit, width};
use crate::tasks::lasting;

const KEYS: &str = "q quit  ? help  / search  f freeze  Enter details  sort: s r d p m c";
const KEYS_OF_DETAILS: &str = "q quit  ? help  Esc back  f freeze  j k scroll";
const HELP: &[&str] = &[
    "j k ↓ ↑ PgDn PgUp g G   move",
    "Enter details   Esc back   / search",
    "f     freeze, continue",
    "sort by: s started  r reported",
    "         d running time  p progress",
    "         m memory  c cores; again: reverse",
    "^L redraw  ^Z suspend  q ^C quit",
    "",
    "! silent: no report for a long time",
    "= stalled: reports, but no change",
];

/// Draws everything, as of `now`.
pub(super) fn draw(state: &mut State, frame: &mut Frame<'_>, now: Timestamp) {
    let screen = frame.area();
    let situation = situation(state, now);
    let situation_lines = match width(&situation.content) > screen.width.into() {
        true => 2,
        false => 1,
    };
    let [title, status, summary, main, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(situation_lines),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(screen);
    frame.render_widget(line(&heading(state), state.theme.heading(), title), title);
    frame.render_widget(Paragraph::new(situation).wrap(Wrap { trim: true }), status);
    frame.render_widget(line(&summary_text(state), Style::new(), summary), summary);
    if state.is_help {
        let help = HELP.iter().map(|text| Line::raw(*text));
        frame.render_widget(Paragraph::new(help.collect::<Vec<_>>()), main);
    } else if let View::List = state.view {
        list(state, frame, main);
    } else {
        task(state, frame, main);
    }
    let text = match (state.is_typing, &state.view) {
        (true, _) => format!("/{}▏ Enter keeps it, Esc clears it", shown(&state.search)),
        (_, View::List) => KEYS.to_owned(),
        _ => KEYS_OF_DETAILS.to_owned(),
    };
    frame.render_widget(line(&text, state.theme.dim(), keys), keys);
}

fn line(text: &str, style: Style, area: Rect) -> Line<'static> {
    Line::styled(fit(text, area.width.into()), style)
}

/// The time of day.
fn clock(at: Timestamp) -> String {
    at.strftime("%H:%M:%S UTC").to_string()
}

fn heading(state: &State) -> String {
    let place = shown(&state.place);
    match &state.fetched {
        Some(fetched) => format!("consumer top  {}  {place}", clock(fetched.at)),
        None => format!("consumer top  {place}"),
    }
}

/// Whether the screen is live, frozen or in the past.
fn situation(state: &State, now: Timestamp) -> Span<'static> {
    let since = |since: Timestamp| {
        let passed = lasting(now.duration_since(since).as_secs_f64());
        format!("for {passed}, since {}", clock(since))
    };
    if let Some(away) = &state.away {
        let old = match &state.fetched {
            Some(fetched) => format!("OLD, of {}", clock(fetched.at)),
            None => "nothing yet".to_owned(),
        };
        let why = shown(&away.why);
        let text = format!("AWAY {}; shown: {old}: {why}", since(away.since));
        return Span::styled(text, state.theme.warning());
    }
    match state.frozen_since {
        Some(frozen) => Span::styled(
            format!("FROZEN {}; f continues", since(frozen)),
            state.theme.warning(),
        ),
        None if state.fetched.is_none() => Span::raw("asking …"),
        None => match state.as_of {
            Some(at) => Span::styled(
                format!("AS OF {at}, as it was known then"),
                state.theme.warning(),
            ),
            None => Span::raw("live"),
        },
    }
}

/// The filters and the order of the list.
fn summary_text(state: &State) -> String {
    let Some(fetched) = &state.fetched else {
        return String::new();
    };
    let listed = fetched.page.items.len();
    let mut text = match (&fetched.page.next, state.search.is_empty()) {
        (None, true) => counted(listed as u64, "task"),
        (Some(_), true) => format!("the first {}", counted(listed as u64, "task")),
        (_, false) => format!(
            "{} of {listed} with {:?}",
            state.matching().len(),
            state.search
        ),
    };
    let order = ORDERS
        .iter()
        .find(|(_, order, _)| *order == fetched.sort.order);
    if let Some((.., name)) = order {
        let way = if fetched.sort.descending {
            "↓"
        } else {
            "↑"
        };
        text.push_str(&format!("  by {name} {way}"));
    }
    if fetched.sort != state.sort {
        text.push_str(" (sorting …)");
    }
    if !state.filters.is_empty() {
        text.push_str(&format!("  only {}", state.filters));
    }
    shown(&text)
}

fn list(state: &mut State, frame: &mut Frame<'_>, area: Rect) {
    let [head, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let columns = usize::from(area.width);
    let rows = usize::from(body.height);
    (state.rows, state.first) = (
        rows,
        // Scrolls to the selected row.
        state
            .first
            .max((state.index + 1).saturating_sub(rows))
            .min(state.index),
    );
    let sort = state.fetched.as_ref().map(|fetched| fetched.sort);
    let headings = Line::styled(headings(columns, sort), state.theme.heading());
    frame.render_widget(headings, head);
    let tasks = state.matching();
    let Some(fetched) = &state.fetched else {
        return;
    };
    if tasks.is_empty() {
        let text = match (fetched.page.items.len(), state.search.is_empty()) {
            (listed @ 1.., false) => {
                format!(
                    "none of the {listed} tasks matches {:?}; Esc shows all",
                    state.search
                )
            }
            _ if state.filters.is_empty() => "there are no tasks yet".to_owned(),
            _ => format!("no task matches: {}", state.filters),
        };
        let text = Paragraph::new(shown(&text)).wrap(Wrap { trim: true });
        frame.render_widget(text, body);
        return;
    }
    let visible = tasks.iter().enumerate().skip(state.first).take(rows);
    let lines = visible.map(|(index, task)| {
        let now = state.as_of.unwrap_or(fetched.at);
        let line = Line::from(cells(task, columns, now, state.theme));
        match index == state.index {
            true => line.style(state.theme.selected()),
            false => line,
        }
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), body);
}

fn task(state: &mut State, frame: &mut Frame<'_>, area: Rect) {
    let theme = state.theme;
    let View::Details {
        exec_id,
        found,
        scroll,
    } = &mut state.view
    else {
        return;
    };
    let exec_id = shown(exec_id);
    match found {
        Found::Asking => frame.render_widget(format!("{exec_id}: asking …"), area),
        Found::Nothing => {
            let text = format!("exec task {exec_id} no longer exists; Esc goes back");
            frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        }
        Found::Details(details, at) => {
            let known = state.as_of.unwrap_or(*at);
            state.rows = details::draw(details, known, scroll, frame, area, theme);
        }
    }
}
