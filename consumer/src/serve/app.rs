//! The state shared by all routes.

use std::sync::Arc;

use super::live::Hub;
use super::readers::Readers;

/// The routes' state.
pub(crate) type App = Arc<Shared>;

/// Shared by the routes.
pub(crate) struct Shared {
    /// The only access to the database.
    pub(crate) readers: Readers,
    /// Publishes changes.
    pub(crate) live: Arc<Hub>,
}
