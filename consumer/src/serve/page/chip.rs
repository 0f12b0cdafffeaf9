//! A filter or another choice, as one link.

/// A number of tasks.
#[derive(Clone)]
pub(super) struct Count {
    pub(super) text: String,
    /// The time of the count.
    pub(super) title: String,
}

/// A link, and whether it leads to the current view.
pub(super) struct Chip {
    /// Text before it.
    pub(super) lead: Option<&'static str>,
    pub(super) label: &'static str,
    /// The number of tasks it leads to, if known.
    pub(super) count: Option<Count>,
    /// The symbol in `templates/page/base.html`.
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
