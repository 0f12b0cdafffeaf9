//! `/api/v1`: the results of [`query`](crate::query) as JSON.

mod changes;
mod engines;
mod jobs;
mod series;
mod status;
mod tasks;
mod usage;

use utoipa::ToSchema;

pub(super) use self::engines::engines_query;
pub(super) use self::jobs::jobs_query;
pub(super) use self::tasks::task_query;
pub(super) use self::usage::usage_query;
use super::routes::Routes;

/// The statuses of a task, for the OpenAPI document.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described")]
enum StatusName {
    Unknown,
    Inited,
    WaitForRetry,
    Scheduled,
    Running,
    Succeed,
    Failed,
    Cancelled,
    Timeout,
}

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

#[cfg(test)]
mod tests {
    use utoipa::PartialSchema;

    use super::StatusName;
    use crate::query::STATUSES;

    #[test]
    fn the_statuses_described_are_those_of_the_contract() {
        let schema = serde_json::to_value(StatusName::schema()).unwrap();
        let statuses = STATUSES.map(|status| status.as_str());
        assert_eq!(schema["enum"], serde_json::json!(statuses));
    }
}
