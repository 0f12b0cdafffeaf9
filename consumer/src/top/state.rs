//! What the screen shows, and how keys and answers change it. Draws nothing, asks nothing.

use jiff::Timestamp;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::answer::{Answer, Details, Question, Sort};
use super::look::Look;
use crate::query::{TaskItem, TaskOrder, TaskPage};

/// The key of each order, and its column's heading.
pub(super) const ORDERS: &[(char, TaskOrder, &str)] = &[
    ('s', TaskOrder::Started, "started"),
    ('r', TaskOrder::Reported, "reported"),
    ('d', TaskOrder::Duration, "running"),
    ('p', TaskOrder::Progress, "progress"),
    ('m', TaskOrder::Memory, "memory"),
    ('c', TaskOrder::Cores, "cores"),
];

/// Longer texts are not searched for.
const SEARCH_CHARS: usize = 100;

/// What a key asks of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Something is shown otherwise.
    Draw,
    /// Draw everything again.
    Clear,
    Suspend,
    Quit,
}

/// What the main part of the screen shows.
#[derive(Debug)]
pub(super) enum View {
    List,
    Details {
        exec_id: String,
        found: Found,
        /// Lines of the text that are scrolled away.
        scroll: usize,
    },
}

/// What is known of the task whose details are shown.
#[derive(Debug)]
pub(super) enum Found {
    Asking,
    /// There is no such task.
    Nothing,
    Details(Box<Details>, Timestamp),
}

/// The source does not answer.
#[derive(Debug)]
pub(super) struct Away {
    pub(super) since: Timestamp,
    pub(super) why: String,
}

/// What was fetched last.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) page: TaskPage,
    /// How its tasks are sorted.
    pub(super) sort: Sort,
    pub(super) at: Timestamp,
}

#[derive(Debug)]
pub(super) struct State {
    /// The source, for people.
    pub(super) place: String,
    /// What the filters of the command line leave, for people; empty: everything.
    pub(super) filters: String,
    /// Tasks are shown as they were then.
    pub(super) as_of: Option<Timestamp>,
    pub(super) look: Look,
    pub(super) fetched: Option<Fetched>,
    pub(super) away: Option<Away>,
    /// How the tasks that are asked for are sorted.
    pub(super) sort: Sort,
    pub(super) frozen_since: Option<Timestamp>,
    pub(super) search: String,
    pub(super) is_typing: bool,
    /// The task that is selected, which stays so wherever its row goes.
    selected: Option<String>,
    /// Its index among the rows that match; that of the one to select if it has gone.
    pub(super) index: usize,
    /// The first row on the screen.
    pub(super) first: usize,
    /// How many rows, or lines of details, the screen had last.
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
            look: Look::of_environment(),
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

    /// What to ask the source.
    pub(super) fn question(&self) -> Question {
        Question {
            sort: self.frozen_since.is_none().then_some(self.sort),
            exec_id: match &self.view {
                View::List => None,
                View::Details { exec_id, .. } => Some(exec_id.clone()),
            },
        }
    }

    /// Whether the screen shows times that pass: those of something that does not go on.
    pub(super) fn ticks(&self) -> bool {
        self.away.is_some() || self.frozen_since.is_some()
    }

    /// The tasks that match what is searched for, in the source's order.
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

    /// Takes in what the source said, or why it said nothing at this time.
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

    /// What a key does.
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
                    // There is nothing to freeze yet.
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

    /// Leaves what is in front: the help, the details, the search.
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

    /// Sorts by the order that this key stands for; the other way round if that is the order already.
    fn sorted(&mut self, key: char) -> Action {
        let Some((_, order, _)) = ORDERS.iter().find(|(its_key, ..)| *its_key == key) else {
            return Action::Nothing;
        };
        self.sort = Sort {
            order: *order,
            descending: self.sort.order != *order || !self.sort.descending,
        };
        // Its rows would stay in the order that they are in.
        self.frozen_since = None;
        Action::Draw
    }

    fn page_of_rows(&self) -> isize {
        isize::try_from(self.rows.saturating_sub(1).max(1)).unwrap_or(isize::MAX)
    }

    fn moved(&mut self, by: isize) -> Action {
        match &mut self.view {
            // Drawing sets the limit: it knows how many lines there are.
            View::Details { scroll, .. } => *scroll = scroll.saturating_add_signed(by),
            View::List => self.select(self.index.saturating_add_signed(by)),
        }
        Action::Draw
    }

    /// Selects the row of the task that was selected, or the one in its place.
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
        // One that is filtered away for a moment may come back.
        if selected.is_some() {
            self.selected = selected;
        }
        self.index = index;
    }
}
