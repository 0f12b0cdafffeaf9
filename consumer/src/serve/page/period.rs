//! The time that a view looks at: from when to when.

use jiff::Timestamp;

use super::chip::Chip;
use super::links::{PERIOD, Query};
use super::tasks::field;

/// As `from`, and as words; the first is the default.
const CHOICES: &[(&str, &str)] = &[
    ("", "Last 24 hours"),
    ("-1h", "Last hour"),
    ("-6h", "Last 6 hours"),
    ("-168h", "Last 7 days"),
];

/// The period of a view, as it is chosen.
pub(super) struct Period {
    pub(super) choices: Vec<Chip>,
    /// As inputs of type datetime-local have them; empty where the view's own end is meant.
    pub(super) from_field: String,
    pub(super) to_field: String,
    /// Whether both are given by the address.
    pub(super) is_chosen: bool,
}

impl Period {
    /// `from` is the beginning that the address asks for.
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
            // Of one that counts back the time that it comes to now.
            from_field: from.map_or_else(String::new, |from| field(&from.to_string())),
            to_field: field(last),
            is_chosen: !(first.is_empty() && last.is_empty()),
        }
    }
}
