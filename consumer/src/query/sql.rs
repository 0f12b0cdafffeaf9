//! The SQL that queries have in common.

use jiff::Timestamp;

use crate::store::{Dialect, FINAL};

/// The columns of `task` that its reports do not have.
const IDENTITY: &str = "exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id";
/// The columns that `task` has from its newest report.
const STATE: [&str; 6] = [
    "status",
    "progress",
    "reported_at",
    "sequence",
    "event_partition",
    "event_offset",
];

/// The newest first. Reports that are equal in what a task's state is chosen by are told apart by
/// their events, so that the same one is chosen each time. The indexes give the order of the times, so
/// that only reports of one microsecond are sorted.
pub(super) const NEWEST: &str =
    "reported_at DESC, sequence DESC, event_partition DESC, event_offset DESC";

/// The RFC 3339 text of the column `reported_at`, under its own name.
pub(super) fn reported_at(dialect: &dyn Dialect) -> String {
    format!("{} AS reported_at", dialect.rfc3339("reported_at"))
}

/// The condition that a row of a table was reported at that time or before, by the engine's clock; of any time for
/// `None`.
pub(super) fn known(dialect: &dyn Dialect, table: &str, at: Option<Timestamp>) -> String {
    at.map_or("true".to_owned(), |at| {
        format!("{table}.reported_at <= {}", dialect.time(at))
    })
}

/// What to select tasks from: `task`, or an SQL query with its columns that says of each task what
/// was known at that time. Tasks without a report by then are left out.
///
/// A task's row is its greatest report of all: where that was known by then, it is the answer, and no
/// history is needed. Else one report is looked for in the index: a final one, if the task ever had
/// one, else the newest. No history is read as a whole, but for what a task that ended later had said
/// before.
pub(super) fn tasks(dialect: &dyn Dialect, at: Option<Timestamp>) -> String {
    if at.is_none() {
        return "task".to_owned();
    }
    let known = known(dialect, "task_progress", at);
    let newest_known = self::known(dialect, "task", at);
    let newest_where = |more: &str| {
        let address = dialect.address();
        format!(
            "(SELECT {address} FROM task_progress WHERE task_id = task.task_id AND {known} {more} ORDER BY {NEWEST} LIMIT 1)"
        )
    };
    let chosen = format!(
        "coalesce({}, {})",
        newest_where(&format!("AND task.is_final AND status IN {FINAL}")),
        newest_where("")
    );
    let join = dialect.join_row_at("task_progress", "report", &chosen);
    let (newest, reported) = (STATE.join(", "), STATE.join(", report."));
    format!(
        "(SELECT {IDENTITY}, {newest}, task_id FROM task WHERE {newest_known} UNION ALL \
         SELECT {IDENTITY}, report.{reported}, task.task_id FROM task {join} WHERE NOT {newest_known}) AS task"
    )
}

pub(super) fn task_columns(dialect: &dyn Dialect) -> String {
    let state = STATE.map(|column| match column {
        "reported_at" => reported_at(dialect),
        other => other.to_owned(),
    });
    format!("{IDENTITY}, {}, task_id", state.join(", "))
}

/// An SQL integer for "no limit" given as 0.
pub(super) fn limit(limit: u32) -> i64 {
    if limit == 0 { i64::MAX } else { limit.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_statuses_of_a_query_are_those_of_the_contract() {
        use schemas::TaskStatus::{
            Cancelled, Failed, Inited, Running, Scheduled, Succeed, Timeout, Unknown, WaitForRetry,
        };
        for status in [
            Unknown,
            Inited,
            WaitForRetry,
            Scheduled,
            Running,
            Succeed,
            Failed,
            Cancelled,
            Timeout,
        ] {
            let named = FINAL.contains(&format!("'{status}'"));
            assert_eq!(named, status.is_final(), "{status}");
        }
    }
}
