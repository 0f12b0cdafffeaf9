//! SQL shared by the queries.

use jiff::Timestamp;

use crate::store::{Dialect, FINAL, Value};

/// A statement under construction. Values are bound as parameters, never interpolated.
#[derive(Default)]
pub(super) struct Statement {
    pub(super) values: Vec<Value>,
}

impl Statement {
    /// Adds a value and returns its parameter's name.
    pub(super) fn bind(&mut self, value: impl Into<Value>) -> String {
        self.values.push(value.into());
        format!("${}", self.values.len())
    }
}

/// A clause of these conditions; empty if there are none.
pub(super) fn clause(word: &str, conditions: &[String]) -> String {
    match conditions {
        [] => String::new(),
        conditions => format!("{word} {}", conditions.join(" AND ")),
    }
}

/// Number of report times from which a task's usual interval is computed.
const INTERVAL_REPORTS: u32 = 10;
/// Columns of `task` that its reports do not have.
const IDENTITY: &str = "exec_id, job_id, engine_instance, engine_type, engine_user, ticket_id";
/// Columns of `task` that come from its newest report.
const STATE: [&str; 6] = [
    "status",
    "progress",
    "reported_at",
    "sequence",
    "event_partition",
    "event_offset",
];

/// Newest first. Partition and offset break ties, so that the same report is chosen each time. The indexes provide the
/// order of times, so only reports with equal times are sorted.
pub(super) const NEWEST: &str =
    "reported_at DESC, sequence DESC, event_partition DESC, event_offset DESC";

/// The column `reported_at` as RFC 3339 text.
pub(super) fn reported_at(dialect: &dyn Dialect) -> String {
    format!("{} AS reported_at", dialect.rfc3339("reported_at"))
}

/// The condition that a row was reported at this time or earlier, by the engine's clock; always true for `None`.
pub(super) fn known(dialect: &dyn Dialect, table: &str, at: Option<Timestamp>) -> String {
    at.map_or("true".to_owned(), |at| {
        format!("{table}.reported_at <= {}", dialect.time(at))
    })
}

/// The relation to select tasks from: `task`, or a subquery with its columns as known at that time. It omits tasks that
/// had not reported by then.
///
/// A row of `task` is the task's greatest report. If that report was known by then, no history is read; nor is it for a
/// task that began later. Otherwise an index finds one report: the newest final one if the task had ended by then, else
/// the newest. No history is read in full.
pub(super) fn tasks(dialect: &dyn Dialect, at: Option<Timestamp>) -> String {
    tasks_of(dialect, at, "true")
}

/// As [`tasks`]; of the past, only those whose row of `task` satisfies a condition, which no database has to push down.
pub(super) fn tasks_of(dialect: &dyn Dialect, at: Option<Timestamp>, condition: &str) -> String {
    let Some(moment) = at else {
        return "task".to_owned();
    };
    let moment = dialect.time(moment);
    let known = known(dialect, "task_progress", at);
    let newest_known = self::known(dialect, "task", at);
    let newest_where = |more: &str| {
        let address = dialect.address();
        format!(
            "(SELECT {address} FROM task_progress WHERE task_id = task.task_id AND {known} {more} ORDER BY {NEWEST} LIMIT 1)"
        )
    };
    // Null: stored by a version without these columns.
    let had_begun = format!("coalesce(task.first_reported_at <= {moment}, true)");
    let had_ended = format!("coalesce(task.ended_at <= {moment}, task.is_final)");
    let chosen = format!(
        "coalesce({}, {})",
        newest_where(&format!("AND {had_ended} AND status IN {FINAL}")),
        newest_where("")
    );
    let join = dialect.join_row_at("task_progress", "report", &chosen);
    // The first report, and the first final one, do not depend on the moment.
    let first = "task.first_reported_at";
    let ended = format!(
        "CASE WHEN report.status IN {FINAL} AND task.ended_at <= {moment} THEN task.ended_at END"
    );
    let (newest, reported) = (STATE.join(", "), STATE.join(", report."));
    format!(
        "(SELECT {IDENTITY}, {newest}, task_id, is_final, first_reported_at, ended_at FROM task \
         WHERE {newest_known} AND {condition} \
         UNION ALL SELECT {IDENTITY}, report.{reported}, task.task_id, report.status IN {FINAL}, {first}, {ended} \
         FROM task {join} WHERE NOT {newest_known} AND {had_begun} AND {condition}) AS task"
    )
}

/// The columns of `task`, under their own names and types.
pub(super) fn task_names() -> String {
    let names = IDENTITY
        .split(", ")
        .chain(STATE)
        .chain(["task_id", "is_final", "first_reported_at", "ended_at"])
        .map(|name| format!("task.{name}"));
    let names: Vec<String> = names.collect();
    names.join(", ")
}

/// The columns of [`task_names`], with times as text.
pub(super) fn task_columns(dialect: &dyn Dialect) -> String {
    let state = STATE.map(|column| match column {
        "reported_at" => reported_at(dialect),
        other => other.to_owned(),
    });
    format!("{IDENTITY}, {}, task_id", state.join(", "))
}

/// A task's parts, newest first.
pub(super) const NEWEST_PART: &str = "reported_at DESC, event_partition DESC, event_offset DESC";

/// The tasks that have not ended and satisfy more conditions, as a relation for [`held`], [`usual_interval`] and
/// [`unchanged_since`].
pub(super) fn open_tasks(dialect: &dyn Dialect, at: Option<Timestamp>, more: &str) -> String {
    format!(
        "(SELECT task.task_id, task.is_final, task.event_partition, task.event_offset FROM {} \
         WHERE NOT task.is_final {more})",
        tasks(dialect, at)
    )
}

/// The sum of a column over the applications of the task's newest resource part; null if it has none or the task has
/// ended.
pub(super) fn held(dialect: &dyn Dialect, column: &str, at: Option<Timestamp>) -> String {
    if !dialect.correlates_in_from() {
        let held = held_of(dialect, &open_tasks(dialect, at, ""), at);
        return format!(
            "(SELECT held.{column} FROM {held} AS held WHERE held.of_task = task.task_id)"
        );
    }
    let (known, newest) = (known(dialect, "newest", at), of("newest", NEWEST_PART));
    let sum = dialect.bounded_sum(&format!("held.{column}"));
    format!(
        "CASE WHEN NOT task.is_final THEN (SELECT {sum} FROM (SELECT newest.event_partition, newest.event_offset \
         FROM task_resource AS newest WHERE newest.task_id = task.task_id AND {known} ORDER BY {newest} LIMIT 1) AS newest \
         JOIN task_resource AS held ON held.task_id = task.task_id AND held.event_partition = newest.event_partition \
         AND held.event_offset = newest.event_offset) END"
    )
}

/// The sums `memory_bytes` and `cores` for all tasks of a relation, as in [`held`], reading each task's history once.
/// `CROSS JOIN` fixes SQLite's join order; otherwise it may scan all histories.
pub(super) fn held_of(dialect: &dyn Dialect, relation: &str, at: Option<Timestamp>) -> String {
    let (known, newest) = (known(dialect, "held", at), of("held", NEWEST_PART));
    format!(
        "(SELECT ranked.task_id AS of_task, {} AS memory_bytes, {} AS cores FROM (SELECT held.task_id, held.memory_bytes, held.cores, \
         rank() OVER (PARTITION BY held.task_id ORDER BY {newest}) AS place \
         FROM {relation} AS holder CROSS JOIN task_resource AS held WHERE held.task_id = holder.task_id AND NOT holder.is_final \
         AND {known}) AS ranked \
         WHERE ranked.place = 1 GROUP BY ranked.task_id)",
        dialect.bounded_sum("ranked.memory_bytes"),
        dialect.bounded_sum("ranked.cores"),
    )
}

/// The task's usual interval in microseconds: the median of its last intervals between distinct report times; null if
/// it reported once. The task is one of the relation's.
pub(super) fn usual_interval(
    dialect: &dyn Dialect,
    relation: &str,
    at: Option<Timestamp>,
) -> String {
    let known = known(dialect, "report", at);
    let micros = dialect.epoch_micros("times.reported_at");
    if !dialect.correlates_in_from() {
        return format!(
            "(SELECT usual.gap FROM (SELECT ranked.task_id, ranked.gap FROM (SELECT gaps.task_id, gaps.gap, \
             row_number() OVER (PARTITION BY gaps.task_id ORDER BY gaps.gap) AS nth, \
             count(*) OVER (PARTITION BY gaps.task_id) AS held \
             FROM (SELECT times.task_id, {micros} - lead({micros}) OVER (PARTITION BY times.task_id \
             ORDER BY times.reported_at DESC) AS gap \
             FROM (SELECT recent.task_id, recent.reported_at, row_number() OVER (PARTITION BY recent.task_id \
             ORDER BY recent.reported_at DESC) AS place \
             FROM (SELECT DISTINCT report.task_id, report.reported_at FROM {relation} AS reporter \
             CROSS JOIN task_progress AS report WHERE report.task_id = reporter.task_id AND {known}) AS recent) AS times \
             WHERE times.place <= {INTERVAL_REPORTS}) AS gaps WHERE gaps.gap IS NOT NULL) AS ranked \
             WHERE ranked.nth * 2 IN (ranked.held, ranked.held + 1)) AS usual WHERE usual.task_id = task.task_id)"
        );
    }
    format!(
        "(SELECT ranked.gap FROM (SELECT gaps.gap, row_number() OVER (ORDER BY gaps.gap) AS nth, count(*) OVER () AS held \
         FROM (SELECT {micros} - lead({micros}) OVER (ORDER BY times.reported_at DESC) AS gap \
         FROM (SELECT DISTINCT report.reported_at FROM task_progress AS report WHERE report.task_id = task.task_id \
         AND {known} ORDER BY report.reported_at DESC LIMIT {INTERVAL_REPORTS}) AS times) AS gaps \
         WHERE gaps.gap IS NOT NULL) AS ranked WHERE ranked.nth * 2 IN (ranked.held, ranked.held + 1))"
    )
}

/// Since when, in microseconds since 1970, the task's reports have had the status, progress and counts of its newest
/// one. Scans reports from the newest to the oldest, counting those that differ. The task is one of the relation's.
pub(super) fn unchanged_since(
    dialect: &dyn Dialect,
    relation: &str,
    at: Option<Timestamp>,
) -> String {
    let (known, newest_first) = (known(dialect, "report", at), of("report", NEWEST));
    let micros = dialect.epoch_micros("min(run.reported_at)");
    let is_other = ["progress", "job_ids", "job_tasks"]
        .map(|column| dialect.differ(&format!("report.{column}"), &format!("newest.{column}")))
        .join(" OR ");
    let different =
        format!("sum(CASE WHEN report.status <> newest.status OR {is_other} THEN 1 ELSE 0 END)");
    if !dialect.correlates_in_from() {
        return format!(
            "(SELECT since.micros FROM (SELECT run.task_id, {micros} AS micros FROM (SELECT report.task_id, report.reported_at, \
             {different} OVER (PARTITION BY report.task_id ORDER BY {newest_first} ROWS UNBOUNDED PRECEDING) AS different \
             FROM {relation} AS reporter CROSS JOIN task_progress AS newest CROSS JOIN task_progress AS report \
             WHERE newest.task_id = reporter.task_id AND newest.event_partition = reporter.event_partition \
             AND newest.event_offset = reporter.event_offset AND report.task_id = reporter.task_id AND {known}) AS run \
             WHERE run.different = 0 GROUP BY run.task_id) AS since WHERE since.task_id = task.task_id)"
        );
    }
    format!(
        "(SELECT {micros} FROM (SELECT report.reported_at, {different} \
         OVER (ORDER BY {newest_first} ROWS UNBOUNDED PRECEDING) AS different \
         FROM task_progress AS newest CROSS JOIN task_progress AS report WHERE newest.task_id = task.task_id \
         AND newest.event_partition = task.event_partition AND newest.event_offset = task.event_offset \
         AND report.task_id = task.task_id AND {known}) AS run WHERE run.different = 0)"
    )
}

/// The condition that no report from this time on differs from the task's newest in status or progress. Cheaper than
/// [`unchanged_since`].
pub(super) fn unchanged_from(
    dialect: &dyn Dialect,
    from: Timestamp,
    at: Option<Timestamp>,
) -> String {
    let known = known(dialect, "other", at);
    format!(
        "NOT EXISTS (SELECT 1 FROM task_progress AS other WHERE other.task_id = task.task_id AND other.reported_at >= {} \
         AND {known} AND (other.status <> task.status OR {}))",
        dialect.time(from),
        dialect.differ("other.progress", "task.progress")
    )
}

/// The columns of an order, qualified with this alias.
pub(super) fn of(alias: &str, order: &str) -> String {
    format!("{alias}.{}", order.replace(", ", &format!(", {alias}.")))
}

/// An SQL limit; 0 means unlimited.
pub(super) fn limit(limit: u32) -> i64 {
    if limit == 0 { i64::MAX } else { limit.into() }
}

#[cfg(test)]
mod tests {
    use super::super::filter::STATUSES;
    use super::*;

    #[test]
    fn the_final_statuses_of_a_query_are_those_of_the_contract() {
        for status in STATUSES {
            let named = FINAL.contains(&format!("'{status}'"));
            assert_eq!(named, status.is_final(), "{status}");
        }
    }
}
