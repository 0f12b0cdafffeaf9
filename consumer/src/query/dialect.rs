//! What the two databases write in different ways.

use jiff::Timestamp;

/// An SQL list of the final statuses.
pub(super) const FINAL: &str = "('Succeed', 'Failed', 'Cancelled', 'Timeout')";

/// The newest first. Reports that are equal in what a task's state is chosen by are told apart by
/// their events, so that the same one is chosen each time. The indexes give the order of the times, so
/// that only reports of one microsecond are sorted.
pub(super) const NEWEST: &str =
    "reported_at DESC, sequence DESC, event_partition DESC, event_offset DESC";

/// What the two databases write in unlike ways.
pub(super) struct Dialect {
    pub(super) postgres: bool,
}

impl Dialect {
    /// RFC 3339 text of a time column, as `reported_at`.
    pub(super) fn reported_at(&self) -> &'static str {
        if self.postgres {
            r#"to_char(reported_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS reported_at"#
        } else {
            "strftime('%Y-%m-%dT%H:%M:%S', (reported_at - (reported_at % 1000000 + 1000000) % 1000000) / 1000000, 'unixepoch') \
             || printf('.%06dZ', (reported_at % 1000000 + 1000000) % 1000000) AS reported_at"
        }
    }

    /// JSON text of an array column, under its own name.
    pub(super) fn json_array(&self, column: &str) -> String {
        if self.postgres {
            format!("array_to_json({column})::text AS {column}")
        } else {
            column.to_owned()
        }
    }

    /// An SQL condition on a table: reported at that time or before, by the engine's clock; of any time for
    /// `None`.
    pub(super) fn known(&self, table: &str, at: Option<Timestamp>) -> String {
        let Some(at) = at else {
            return "true".to_owned();
        };
        let micros = at.as_microsecond();
        if self.postgres {
            // In two steps: an interval multiplied by a double loses microseconds.
            format!(
                "{table}.reported_at <= timestamptz 'epoch' + {} * interval '1 second' + {} * interval '1 microsecond'",
                micros / 1_000_000,
                micros % 1_000_000
            )
        } else {
            format!("{table}.reported_at <= {micros}")
        }
    }

    /// What to select tasks from: `task`, or an SQL query with its columns that says of each task what
    /// was known at that time. Tasks without a report by then are left out.
    ///
    /// A task's row is its greatest report of all: where that was known by then, it is the answer, and no
    /// history is needed. Else one report is looked for in the index: a final one, if the task ever had
    /// one, else the newest. No history is read as a whole, but for what a task that ended later had said
    /// before.
    pub(super) fn tasks(&self, at: Option<Timestamp>) -> String {
        if at.is_none() {
            return "task".to_owned();
        }
        let (known, newest_known) = (self.known("task_progress", at), self.known("task", at));
        let row = if self.postgres { "ctid" } else { "rowid" };
        let newest_where = |more: &str| {
            format!(
                "(SELECT {row} FROM task_progress WHERE task_id = task.task_id AND {known} {more} ORDER BY {NEWEST} LIMIT 1)"
            )
        };
        let chosen = format!(
            "{row} = coalesce({}, {})",
            newest_where(&format!("AND task.is_final AND status IN {FINAL}")),
            newest_where("")
        );
        let said = if self.postgres {
            // OFFSET 0 keeps the planner from reading the whole history to hash it.
            format!("LATERAL (SELECT * FROM task_progress WHERE {chosen} OFFSET 0) AS said ON true")
        } else {
            format!("task_progress AS said ON said.{chosen}")
        };
        format!(
            "(SELECT exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, progress, \
             reported_at, sequence, event_partition, event_offset, task_id FROM task WHERE {newest_known} UNION ALL \
             SELECT exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, said.status, said.progress, \
             said.reported_at, said.sequence, said.event_partition, said.event_offset, task.task_id \
             FROM task JOIN {said} WHERE NOT {newest_known}) AS task"
        )
    }

    pub(super) fn task_columns(&self) -> String {
        format!(
            "exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id, status, progress, {}, sequence, \
             event_partition, event_offset, task_id",
            self.reported_at()
        )
    }

    /// An SQL integer literal for "no limit" given as 0.
    pub(super) fn limit(limit: u32) -> i64 {
        if limit == 0 { i64::MAX } else { limit.into() }
    }
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
