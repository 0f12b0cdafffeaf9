//! Since when something that is polled has been silent.

use std::time::Duration;

use tokio::time::Instant;

/// Begins with the first poll that learns nothing, and ends with the first that learns something.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Silence(Option<Instant>);

impl Silence {
    /// Silent from now on, until it is heard.
    pub(crate) fn begun() -> Self {
        Self(Some(Instant::now()))
    }

    /// A poll has learnt something.
    pub(crate) fn end(&mut self) {
        self.0 = None;
    }

    /// A poll has learnt nothing.
    pub(crate) fn go_on(&mut self) {
        self.0.get_or_insert_with(Instant::now);
    }

    /// Whether it has lasted this long.
    pub(crate) fn has_lasted(&self, duration: Duration) -> bool {
        self.0.is_some_and(|since| since.elapsed() >= duration)
    }
}
