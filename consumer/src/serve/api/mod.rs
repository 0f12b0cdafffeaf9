//! `/api/v1`: what [`query`](crate::query) says, as JSON.

mod status;
mod tasks;

use super::routes::Routes;

/// All routes of the API.
pub(crate) fn routes() -> Routes {
    tasks::routes().merge(status::routes())
}
