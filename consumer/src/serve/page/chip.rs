//! A filter, or another choice, that is one link.

/// How many tasks.
#[derive(Clone)]
pub(super) struct Count {
    pub(super) text: String,
    /// When they were counted.
    pub(super) title: String,
}

/// A link, and whether it leads to what is shown.
pub(super) struct Chip {
    /// What stands before it.
    pub(super) lead: Option<&'static str>,
    pub(super) label: &'static str,
    /// How many it leads to, where that is known.
    pub(super) count: Option<Count>,
    /// The symbol of `templates/page/base.html`.
    pub(super) shape: Option<&'static str>,
    pub(super) href: String,
    pub(super) is_on: bool,
}

impl Chip {
    pub(super) fn of(label: &'static str, href: String, is_on: bool) -> Self {
        Self {
            lead: None,
            label,
            count: None,
            shape: None,
            href,
            is_on,
        }
    }

    pub(super) fn with_shape(self, shape: &'static str) -> Self {
        Self {
            shape: Some(shape),
            ..self
        }
    }
}
