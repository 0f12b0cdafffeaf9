//! What every route works with.

use std::sync::Arc;

use super::live::Hub;
use super::readers::Readers;

/// The state of the routes.
pub(crate) type App = Arc<Shared>;

/// What the routes share.
pub(crate) struct Shared {
    /// The only way to the database.
    pub(crate) readers: Readers,
    /// Tells what changes.
    pub(crate) live: Arc<Hub>,
}
