//! The screen's state, and how keys and answers change it. No drawing, no I/O.

use jiff::Timestamp;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::answer::{Answer, Details, Question, Sort};
use super::theme::Theme;
use crate::query::{TaskItem, TaskOrder, TaskPage};

/// Key, order and column heading.
pub(super) const ORDERS: &[(char, TaskOrder, &str)] = &[
    ('s', TaskOrder::Started, "started"),
    ('r', TaskOrder::Reported, "reported"),
    ('d', TaskOrder::Duration, "running"),
    ('p', TaskOrder::Progress, "progress"),
    ('m', TaskOrder::Memory, "memory"),
    ('c', TaskOrder::Cores, "cores"),
];

/// Maximum length of a search, in characters.
const SEARCH_CHARS: usize = 100;

/// What the program does after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// The state changed: redraw.
    Draw,
    /// Redraw the whole terminal.
    Clear,
    Suspend,
    Quit,
}

/// The main part of the screen.
#[derive(Debug)]
pub(super) enum View {
    List,
    Details {
        exec_id: String,
        found: Found,
        /// Number of text lines scrolled away.
        scroll: usize,
    },
}

/// The task whose details are shown.
#[derive(Debug)]
pub(super) enum Found {
    Asking,
    /// It does not exist.
    Nothing,
    Details(Box<Details>, Timestamp),
}

/// The source is unavailable.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) since: Timestamp,
    pub(super) why: String,
}

/// The last answer.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) page: TaskPage,
    /// Order of its tasks.
    pub(super) sort: Sort,
    pub(super) at: Timestamp,
}

#[derive(Debug)]
pub(super) struct State {
    /// The source, for messages.
    pub(super) place: String,
    /// The command line's filters, for people; empty: none.
    pub(super) filters: String,
    /// The past time that is shown.
    pub(super) as_of: Option<Timestamp>,
    pub(super) theme: Theme,
    pub(super) fetched: Option<Fetched>,
    pub(super) away: Option<Away>,
    /// Requested order.
    pub(super) sort: Sort,
    pub(super) frozen_since: Option<Timestamp>,
    pub(super) search: String,
    pub(super) is_typing: bool,
    /// The selected task. The selection follows it when its row moves.
    selected: Option<String>,
    /// Its index among the matching rows; if it is gone, the index to select.
    pub(super) index: usize,
    /// First row on the screen.
    pub(super) first: usize,
    /// Number of rows or text lines that the last frame had.
    pub(super) rows: usize,
    pub(super) view: View,
    pub(super) is_help: bool,
}

impl State {
    pub(super) fn new(
        place: String,
        filters: String,
        as_of: Option<Timestamp>,
        sort: Sort,
    ) -> Self {
        Self {
            place,
            filters,
            as_of,
            theme: Theme::of_environment(),
            fetched: None,
            away: None,
            sort,
            frozen_since: None,
            search: String::new(),
            is_typing: false,
            selected: None,
            index: 0,
            first: 0,
            rows: 1,
            view: View::List,
            is_help: false,
        }
    }

    /// The next question for the source.
    pub(super) fn question(&self) -> Question {
        Question {
            sort: self.frozen_since.is_none().then_some(self.sort),
            exec_id: match &self.view {
                View::List => None,
                View::Details { exec_id, .. } => Some(exec_id.clone()),
            },
        }
    }

    /// Whether the screen shows running times, so that it must be redrawn regularly.
    pub(super) fn ticks(&self) -> bool {
        self.away.is_some() || self.frozen_since.is_some()
    }

    /// The tasks that match the search, in the source's order.
    pub(super) fn matching(&self) -> Vec<&TaskItem> {
        let wanted = self.search.to_lowercase();
        let page = self.fetched.iter().flat_map(|fetched| &fetched.page.items);
        page.filter(|task| {
            let texts = [
                &task.exec_id,
                &task.job_id,
                &task.status,
                &task.engine_type,
                &task.engine_instance,
                &task.engine_user,
            ];
            wanted.is_empty()
                || texts
                    .iter()
                    .any(|text| text.to_lowercase().contains(&wanted))
        })
        .collect()
    }

    /// Applies an answer or an error.
    pub(super) fn answered(&mut self, answer: Result<Answer, String>, now: Timestamp) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(why) => {
                let since = self.away.take().map_or(now, |away| away.since);
                self.away = Some(Away { since, why });
                return;
            }
        };
        self.away = None;
        let is_frozen = self.frozen_since.is_some();
        if let View::Details { exec_id, found, .. } = &mut self.view
            && let Some(details) = answer.details
            && answer.question.exec_id.as_ref() == Some(exec_id)
            && (!is_frozen || matches!(found, Found::Asking))
        {
            *found = match details {
                Some(details) => Found::Details(Box::new(details), answer.at),
                None => Found::Nothing,
            };
        }
        if let Some(page) = answer.page
            && let Some(sort) = answer.question.sort
            && sort == self.sort
            && !is_frozen
        {
            self.fetched = Some(Fetched {
                page,
                sort,
                at: answer.at,
            });
            self.follow_selected();
        }
    }

    /// Handles a key.
    pub(super) fn pressed(&mut self, key: KeyEvent, now: Timestamp) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                KeyCode::Char('z') => Action::Suspend,
                KeyCode::Char('l') => Action::Clear,
                KeyCode::Char('d') => self.moved(self.page_of_rows() / 2),
                KeyCode::Char('u') => self.moved(-(self.page_of_rows() / 2)),
                _ => Action::Nothing,
            };
        }
        if self.is_typing {
            return self.typed(key.code);
        }
        match key.code {
            KeyCode::Char('q') => Action::Quit,
            KeyCode::Char('?') => {
                self.is_help = !self.is_help;
                Action::Draw
            }
            KeyCode::Esc => self.back(),
            _ if self.is_help => Action::Nothing,
            KeyCode::Char('f') => {
                self.frozen_since = match self.frozen_since {
                    // Without tasks there is nothing to freeze.
                    None if self.fetched.is_some() => Some(now),
                    _ => None,
                };
                Action::Draw
            }
            KeyCode::Char('j') | KeyCode::Down => self.moved(1),
            KeyCode::Char('k') | KeyCode::Up => self.moved(-1),
            KeyCode::PageDown => self.moved(self.page_of_rows()),
            KeyCode::PageUp => self.moved(-self.page_of_rows()),
            KeyCode::Char('g') | KeyCode::Home => self.moved(isize::MIN),
            KeyCode::Char('G') | KeyCode::End => self.moved(isize::MAX),
            _ if !matches!(self.view, View::List) => Action::Nothing,
            KeyCode::Enter => self.open(),
            KeyCode::Char('/') => {
                self.is_typing = true;
                Action::Draw
            }
            KeyCode::Char(key) => self.sorted(key),
            _ => Action::Nothing,
        }
    }

    /// Closes what is in front: help, details or search.
    fn back(&mut self) -> Action {
        if self.is_help {
            self.is_help = false;
        } else if !matches!(self.view, View::List) {
            self.view = View::List;
        } else {
            self.search.clear();
            self.follow_selected();
        }
        Action::Draw
    }

    fn typed(&mut self, key: KeyCode) -> Action {
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.search.clear();
            }
            KeyCode::Backspace => {
                self.search.pop();
            }
            KeyCode::Char(c) if self.search.chars().count() < SEARCH_CHARS => self.search.push(c),
            _ => return Action::Nothing,
        }
        self.follow_selected();
        Action::Draw
    }

    fn open(&mut self) -> Action {
        let Some(exec_id) = self.matching().get(self.index).map(|task| &task.exec_id) else {
            return Action::Nothing;
        };
        self.view = View::Details {
            exec_id: exec_id.clone(),
            found: Found::Asking,
            scroll: 0,
        };
        Action::Draw
    }

    /// Sorts by the key's order, or reverses it if it is already the order.
    fn sorted(&mut self, key: char) -> Action {
        let Some((_, order, _)) = ORDERS.iter().find(|(its_key, ..)| *its_key == key) else {
            return Action::Nothing;
        };
        self.sort = Sort {
            order: *order,
            descending: self.sort.order != *order || !self.sort.descending,
        };
        // A frozen list could not be sorted.
        self.frozen_since = None;
        Action::Draw
    }

    fn page_of_rows(&self) -> isize {
        isize::try_from(self.rows.saturating_sub(1).max(1)).unwrap_or(isize::MAX)
    }

    fn moved(&mut self, by: isize) -> Action {
        match &mut self.view {
            // Drawing clamps it, as it knows the number of lines.
            View::Details { scroll, .. } => *scroll = scroll.saturating_add_signed(by),
            View::List => self.select(self.index.saturating_add_signed(by)),
        }
        Action::Draw
    }

    /// Selects the row of the selected task, or the one in its place.
    fn follow_selected(&mut self) {
        let tasks = self.matching();
        let followed = self.selected.as_ref();
        let index = followed
            .and_then(|exec_id| tasks.iter().position(|task| task.exec_id == *exec_id))
            .unwrap_or(self.index);
        self.select(index);
    }

    fn select(&mut self, index: usize) {
        let tasks = self.matching();
        let index = index.min(tasks.len().saturating_sub(1));
        let selected = tasks.get(index).map(|task| task.exec_id.clone());
        // A task that is filtered out may come back.
        if selected.is_some() {
            self.selected = selected;
        }
        self.index = index;
    }
}
