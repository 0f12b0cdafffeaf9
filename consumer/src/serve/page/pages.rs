//! What stands below a list: how much of it is shown, and where it goes on.

use jiff::Timestamp;

use super::format::count;
use super::links::Query;

/// The line below a list.
pub(super) struct Pages {
    pub(super) text: String,
    pub(super) expired_before: Option<Timestamp>,
    pub(super) first_href: String,
    pub(super) next_href: Option<String>,
    pub(super) is_later: bool,
}

impl Pages {
    /// Of a list at an address. `next` is the address of the next page, if there is one.
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
            // A cursor belongs to its filters and its order.
            first_href: given.clone().without(&["cursor"]).at(path),
            next_href: next.map(|next| next.at(path)),
            is_later,
        }
    }

    /// This, with what `consumer expire` removed.
    pub(super) fn expired(mut self, before: Option<Timestamp>) -> Self {
        self.expired_before = before;
        self
    }
}
