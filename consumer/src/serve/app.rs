//! What every route works with.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::readers::Readers;

/// The state of the routes.
pub(crate) type App = Arc<Shared>;

/// What the routes share.
pub(crate) struct Shared {
    /// The only way to the database.
    pub(crate) readers: Readers,
    /// Cancelled when the program is to stop: answers that would never end do then.
    pub(crate) stop: CancellationToken,
}
