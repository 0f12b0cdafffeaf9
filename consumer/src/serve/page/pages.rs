//! The footer of a list: the number of rows, and links to other pages.

use jiff::Timestamp;

use super::format::count;
use super::links::Query;

/// The footer of a list.
pub(super) struct Pages {
    pub(super) text: String,
    pub(super) expired_before: Option<Timestamp>,
    pub(super) first_href: String,
    pub(super) next_href: Option<String>,
    pub(super) is_later: bool,
}

impl Pages {
    /// The footer of a list at `path`. `next` is the query of the next page, if there is one.
    pub(super) fn of(
        path: &str,
        given: &Query,
        noun: &str,
        rows: usize,
        next: Option<&Query>,
    ) -> Self {
        let is_later = !given.first("cursor").is_empty();
        let shown = count(rows as u64);
        let text = match (rows, is_later, next.is_some()) {
            (0, ..) => format!("No {noun}s."),
            (1, false, false) => format!("1 {noun}."),
            (_, false, false) => format!("{shown} {noun}s."),
            (_, false, true) => format!("The first {shown} {noun}s."),
            (_, true, _) => format!("{shown} more {noun}s."),
        };
        Self {
            text,
            expired_before: None,
            // A cursor is valid only for its filters and order.
            first_href: given.clone().without(&["cursor"]).at(path),
            next_href: next.map(|next| next.at(path)),
            is_later,
        }
    }

    /// Adds a note about history removed by `consumer expire`.
    pub(super) fn expired(mut self, before: Option<Timestamp>) -> Self {
        self.expired_before = before;
        self
    }
}
