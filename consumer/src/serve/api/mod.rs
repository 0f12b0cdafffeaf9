//! `/api/v1`: what [`query`](crate::query) says, as JSON.

mod changes;
mod engines;
mod jobs;
mod series;
mod status;
mod tasks;
mod usage;

pub(super) use self::engines::engines_query;
pub(super) use self::jobs::jobs_query;
pub(super) use self::tasks::task_query;
pub(super) use self::usage::usage_query;
use super::routes::Routes;

/// All routes of the API.
pub(crate) fn routes() -> Routes {
    tasks::routes()
        .merge(changes::routes())
        .merge(series::routes())
        .merge(jobs::routes())
        .merge(engines::routes())
        .merge(status::routes())
        .merge(usage::routes())
}
