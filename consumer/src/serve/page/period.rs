//! The period of a view.

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
    pub(super) from: End,
    pub(super) to: End,
    /// Whether the address contains a period.
    pub(super) is_chosen: bool,
}

/// An end of a period, as the form shows it.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// The view's own default.
    Default,
    /// In the format of datetime-local inputs.
    At(String),
    /// Relative to now, as in `-1h`. The form keeps it relative: an absolute time would stop moving.
    Back(String),
}

impl End {
    fn of(given: &str) -> Self {
        match given {
            "" => Self::Default,
            back if back.starts_with('-') => Self::Back(back.to_owned()),
            time => Self::At(field(time)),
        }
    }

    /// The value of the form's input.
    pub(super) fn field(&self) -> &str {
        match self {
            Self::At(field) => field,
            Self::Default | Self::Back(_) => "",
        }
    }

    /// The value of the form's hidden input, which a time in the visible input replaces: see [`Query::tidied`].
    pub(super) fn back(&self) -> Option<&str> {
        match self {
            Self::Back(back) => Some(back),
            Self::Default | Self::At(_) => None,
        }
    }
}

impl Period {
    pub(super) fn of(path: &str, given: &Query) -> Self {
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
            from: End::of(first),
            to: End::of(last),
            is_chosen: !(first.is_empty() && last.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::page::links::USAGE;

    #[test]
    fn a_relative_end_stays_relative() {
        let given = Query::default().and("from", "-1h");
        let period = Period::of(USAGE, &given);
        assert_eq!((period.from.field(), period.from.back()), ("", Some("-1h")));
        assert_eq!(period.to, End::Default);
        let given = given.and("to", "2026-11-25T14:05:00Z");
        let period = Period::of(USAGE, &given);
        assert_eq!(period.from.back(), Some("-1h"));
        assert_eq!(period.to.field(), "2026-11-25T14:05:00");
        assert_eq!(period.to.back(), None);
    }
}
