//! The period of a view.

use jiff::Timestamp;

use super::chip::Chip;
use super::links::{PERIOD, Query};
use super::tasks::field;

/// Choices: values of `from` and labels; the first is the default.
const CHOICES: &[(&str, &str)] = &[
    ("", "Last 24 hours"),
    ("-1h", "Last hour"),
    ("-6h", "Last 6 hours"),
    ("-168h", "Last 7 days"),
];

/// The chosen period of a view.
pub(super) struct Period {
    pub(super) choices: Vec<Chip>,
    /// In the format of datetime-local inputs; empty for the view's own default.
    pub(super) from_field: String,
    pub(super) to_field: String,
    /// Whether the address contains a period.
    pub(super) is_chosen: bool,
}

impl Period {
    /// `from` is the resolved start.
    pub(super) fn of(path: &str, given: &Query, from: Option<Timestamp>) -> Self {
        let others = given.clone().without(PERIOD).without(&["cursor"]);
        let (first, last) = (given.first("from"), given.first("to"));
        let choice = |&(from, label): &(&'static str, &'static str)| {
            let href = match from {
                "" => others.at(path),
                from => others.clone().and("from", from).at(path),
            };
            Chip::of(label, href, last.is_empty() && first == from)
        };
        Self {
            choices: CHOICES.iter().map(choice).collect(),
            // Resolves relative times.
            from_field: from.map_or_else(String::new, |from| field(&from.to_string())),
            to_field: field(last),
            is_chosen: !(first.is_empty() && last.is_empty()),
        }
    }
}
