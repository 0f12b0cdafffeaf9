//! `consumer tasks` and `consumer task`: prints what [`query`](crate::query) finds, as text or as JSON.

use std::fmt::Write as _;

use jiff::Timestamp;
use service::exit::WrongUsage;
use service::grid::{right_aligned, table};
use service::output;
use service::text::shown;
use service::words::counted;

use crate::query::{QueryError, Reader, TaskDetails, TaskItem, TaskPage, TaskQuery};
use crate::store::{Database, DatabaseOptions};
use crate::task_options::TaskOptions;

/// Maximum number of non-finite fields listed for a report.
const FIELDS_SHOWN: usize = 3;
/// Maximum number of characters shown of such a field.
const FIELD_CHARS: usize = 40;

/// Prints the tasks that the options select, starting after the cursor; at most `limit` (0: all).
///
/// # Errors
/// If the database does not exist or has no tables, its history no longer reaches back to the requested time, or an
/// option has an invalid value.
pub async fn tasks(
    options: &DatabaseOptions,
    asked: TaskOptions,
    cursor: Option<String>,
    limit: u32,
    json: bool,
) -> anyhow::Result<()> {
    let mut query = asked.query();
    query.cursor = cursor;
    let mut reader = Reader::open(&Database::parse(options)?).await?;
    let listed = reader.list(&query, (limit > 0).then_some(limit)).await;
    let page = listed.map_err(wrong_usage)?;
    if let (Some(before), Some(at)) = (page.expired_before, query.at) {
        let place = reader.place();
        tracing::warn!(
            "history before {before} was removed from {place} by consumer expire: tasks that reported before {before} and not \
             again until after {at} are omitted"
        );
    }
    if json {
        output::print_json(&page.items)?;
        if let Some(next) = page.next {
            output::note(format_args!("next page: --cursor {next}"));
        }
        return Ok(());
    }
    let total = match (&query.cursor, &page.next) {
        (None, None) => page.items.len() as u64,
        _ => reader.count(&query).await.map_err(wrong_usage)?,
    };
    output::print(&list_text(&page, Some(total), &query, reader.place())?)?;
    Ok(())
}

/// Prints one task: its newest state, resources, sequences and at most `limit` of its newest reports (0: all). With a
/// time: as known then.
///
/// # Errors
/// If there is no such task, or it had not reported by then, or as for [`tasks`].
pub async fn task(
    options: &DatabaseOptions,
    exec_id: &str,
    at: Option<Timestamp>,
    limit: u32,
    json: bool,
) -> anyhow::Result<()> {
    let mut reader = Reader::open(&Database::parse(options)?).await?;
    let found = reader.task(exec_id, at, limit).await;
    let Some(details) = found.map_err(wrong_usage)? else {
        let first = reader.first_report(exec_id).await?;
        let place = reader.place();
        let removed = reader.expired_before().map_or_else(String::new, |before| {
            format!(" (reports before {before} were removed by consumer expire)")
        });
        let why = match (at, first) {
            (Some(at), Some(first)) => format!(
                "{place} has no report of exec task {exec_id:?} by {at}: its first report is of {first} by the engine's \
                 clock{removed}; ask for that time or a later one"
            ),
            _ => format!(
                "{place} has no exec task {exec_id:?}{removed}; list them with: consumer tasks"
            ),
        };
        return Err(WrongUsage(why).into());
    };
    if json {
        return output::print_json(&details);
    }
    output::print(&details_text(&details, at)?)?;
    Ok(())
}

/// Errors that a different option avoids become usage errors.
pub(crate) fn wrong_usage(error: QueryError) -> anyhow::Error {
    match error {
        QueryError::Expired { .. } | QueryError::Cursor { .. } => {
            WrongUsage(error.to_string()).into()
        }
        QueryError::Parameter { name, why } => {
            let option = name.replace('_', "-");
            WrongUsage(format!("--{option}: {why}")).into()
        }
        QueryError::Unreadable { .. } | QueryError::Store { .. } => error.into(),
    }
}

/// A page of tasks as text. `total`: their number on all pages, if known.
pub(crate) fn list_text(
    page: &TaskPage,
    total: Option<u64>,
    query: &TaskQuery,
    place: &str,
) -> anyhow::Result<String> {
    let mut table = table(&[
        "exec task",
        "status",
        "progress",
        "running for",
        "reported",
        "memory",
        "cores",
        "mark",
        "seq",
        "engine",
        "user",
        "job",
    ]);
    let now = query.at.unwrap_or_else(Timestamp::now);
    let or_nothing = |text: Option<String>| text.unwrap_or_default();
    for task in &page.items {
        table.add_row([
            shown(&task.exec_id),
            shown(&task.status),
            percent(task.progress),
            or_nothing(task.running_seconds.map(lasting)),
            age(&task.reported_at, now),
            or_nothing(task.memory_bytes.map(gib)),
            or_nothing(task.cores.map(|cores| cores.to_string())),
            mark(task),
            task.sequence.to_string(),
            format!(
                "{} {}",
                shown(&task.engine_type),
                shown(&task.engine_instance)
            ),
            shown(&task.engine_user),
            shown(&task.job_id),
        ]);
    }
    let mut text = right_aligned(&mut table, [2, 3, 4, 5, 6, 8]);
    let kind = match (query.filter.is_only_running(), query.filter.is_empty()) {
        (true, _) => "running task",
        (_, true) => "task",
        _ => "matching task",
    };
    let listed = page.items.len() as u64;
    let place = format!("{place}{}", as_of(query.at));
    let Some(total) = total else {
        let first = page.next.as_ref().map_or("", |_| "the first ");
        writeln!(text, "{first}{} in {place}", counted(listed, kind))?;
        return Ok(text);
    };
    let whence = format!("{} in {place}", counted(total, kind));
    match (&page.next, &query.cursor) {
        (None, None) => writeln!(text, "{whence}")?,
        (None, Some(_)) => writeln!(text, "the last {listed} of {whence}")?,
        (Some(next), None) => writeln!(
            text,
            "{listed} of {whence}; {} more with --limit 0, or page by page with --cursor {next}",
            total.saturating_sub(listed)
        )?,
        (Some(next), Some(_)) => {
            writeln!(
                text,
                "{listed} of {whence}; the next page with --cursor {next}"
            )?;
        }
    }
    Ok(text)
}

/// What is wrong with a task, and for how long.
fn mark(task: &TaskItem) -> String {
    match (task.silent_seconds, task.stalled_seconds) {
        (Some(seconds), _) => format!("silent {}", lasting(seconds)),
        (None, Some(seconds)) => format!("stalled {}", lasting(seconds)),
        (None, None) => String::new(),
    }
}

pub(crate) fn details_text(details: &TaskDetails, at: Option<Timestamp>) -> anyhow::Result<String> {
    let TaskDetails {
        task,
        resource,
        metrics,
        sequences,
        reports,
        expired_before,
    } = details;
    let now = at.unwrap_or_else(Timestamp::now);
    let mut text = String::new();
    writeln!(text, "exec task   {}{}", shown(&task.exec_id), as_of(at))?;
    writeln!(
        text,
        "status      {} {}, reported {} ({})",
        shown(&task.status),
        percent(task.progress),
        age(&task.reported_at, now),
        shown(&task.reported_at)
    )?;
    writeln!(
        text,
        "engine      {} {}, user {}, ticket {}",
        shown(&task.engine_type),
        shown(&task.engine_instance),
        shown(&task.engine_user),
        shown(&task.ticket_id)
    )?;
    writeln!(text, "job         {}", shown(&task.job_id))?;
    let gaps = match sequences.missing {
        0 => "none missing".to_owned(),
        missing => format!(
            "{missing} missing (first {:?})",
            sequences.missing_sequences
        ),
    };
    writeln!(
        text,
        "reports     {}; sequences: {gaps}, {} repeated",
        sequences.reports, sequences.repeated
    )?;
    if let Some(before) = expired_before {
        writeln!(
            text,
            "            reports before {before} were removed by consumer expire"
        )?;
    }

    // The newest report with sub-jobs.
    let mut with_sub_jobs = reports
        .iter()
        .filter_map(|report| Some((report, report.jobs.job_ids.as_ref()?)));
    if let Some((report, ids)) = with_sub_jobs.next() {
        let jobs = &report.jobs;
        let counts = [
            &jobs.total_tasks,
            &jobs.running_tasks,
            &jobs.failed_tasks,
            &jobs.succeed_tasks,
        ];
        if !ids.is_empty() {
            writeln!(
                text,
                "\nsub-jobs, reported {}",
                age(&report.reported_at, now)
            )?;
            let mut table = table(&["id", "total", "running", "failed", "succeeded"]);
            for (i, id) in ids.iter().enumerate() {
                let counts = counts.map(|counts| {
                    let count = counts.as_ref().and_then(|counts| counts.get(i));
                    count.map_or_else(String::new, i32::to_string)
                });
                table.add_row(std::iter::once(shown(id)).chain(counts));
            }
            text.push_str(&right_aligned(&mut table, [1, 2, 3, 4]));
        }
    }
    if let Some(held) = resource.first() {
        writeln!(
            text,
            "\nresources, reported {}",
            age(&held.reported_at, now)
        )?;
        let mut table = table(&[
            "application",
            "status",
            "queue",
            "memory",
            "cores",
            "instances",
        ]);
        for held in resource {
            table.add_row([
                shown(&held.application_id),
                shown(&held.status),
                shown(&held.queue),
                gib(held.memory_bytes),
                held.cores.to_string(),
                held.instances.to_string(),
            ]);
        }
        text.push_str(&right_aligned(&mut table, [3, 4, 5]));
    }
    if let Some(metrics) = metrics {
        writeln!(
            text,
            "\nmetrics, reported {}",
            age(&metrics.reported_at, now)
        )?;
        let mut table = table(&["name", "value"]);
        table.add_row([
            "engine's running tasks".to_owned(),
            metrics.engine_running_tasks.to_string(),
        ]);
        if let Some(text) = &metrics.metrics {
            let metrics: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text)?;
            for (name, value) in metrics {
                table.add_row([
                    shown(&name),
                    value.as_str().map_or_else(|| value.to_string(), shown),
                ]);
            }
        }
        text.push_str(&right_aligned(&mut table, [1]));
    }
    writeln!(
        text,
        "\n{} newest of {}",
        reports.len(),
        counted(sequences.reports, "report")
    )?;
    let mut table = table(&[
        "seq",
        "reported at",
        "status",
        "progress",
        "repaired",
        "partition@offset",
    ]);
    for report in reports {
        let adjustments = report.adjustments.as_deref().unwrap_or("[]");
        let adjustments: Vec<String> = serde_json::from_str(adjustments)?;
        table.add_row([
            report.sequence.to_string(),
            shown(&report.reported_at),
            shown(&report.status),
            percent(report.progress),
            repaired(&adjustments, ", see --json"),
            format!("{}@{}", report.event_partition, report.event_offset),
        ]);
    }
    text.push_str(&right_aligned(&mut table, [0, 3, 5]));
    Ok(text)
}

/// What the router repaired in a report: each kind, then the first non-finite fields, shortened, since there may be a
/// thousand. `more` says where the rest can be seen.
pub(crate) fn repaired(adjustments: &[String], more: &str) -> String {
    let (fields, kinds): (Vec<&String>, Vec<&String>) =
        adjustments.iter().partition(|one| one.contains('='));
    let first = fields.iter().take(FIELDS_SHOWN);
    let first = first.map(|field| match field.char_indices().nth(FIELD_CHARS) {
        Some((end, _)) => format!("{}…", &field[..end]),
        None => (*field).clone(),
    });
    let mut texts: Vec<String> = kinds.into_iter().cloned().chain(first).collect();
    if fields.len() > FIELDS_SHOWN {
        texts.push(format!("and {} more{more}", fields.len() - FIELDS_SHOWN));
    }
    shown(&texts.join(" "))
}

pub(crate) fn as_of(at: Option<Timestamp>) -> String {
    at.map_or_else(String::new, |at| format!(" as of {at}"))
}

pub(crate) fn percent(progress: Option<f64>) -> String {
    progress.map_or_else(
        || "?".to_owned(),
        |progress| format!("{:.2} %", progress * 100.0),
    )
}

pub(crate) fn gib(bytes: i64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

/// How long ago an RFC 3339 time was: `12 s ago`, `3 min ago`, `2 h ago`, `5 d ago`.
pub(crate) fn age(reported_at: &str, now: Timestamp) -> String {
    let Ok(reported_at) = reported_at.parse::<Timestamp>() else {
        return shown(reported_at);
    };
    let seconds = now.duration_since(reported_at).as_secs();
    match seconds {
        ..0 => format!("in {} s", -seconds),
        0.. => format!("{} ago", lasting(seconds as f64)),
    }
}

/// A duration as `12 s`, `3 min`, `2 h` or `5 d`. NaN and negative numbers are 0 s; infinity is `?`.
pub(crate) fn lasting(seconds: f64) -> String {
    if seconds.is_infinite() {
        return "?".to_owned();
    }
    let seconds = seconds.max(0.0) as i64;
    match seconds {
        ..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_anything() {
        assert_eq!(lasting(119.9), "119 s");
        assert_eq!(lasting(7_199.0), "119 min");
        assert_eq!(lasting(-1.0), "0 s");
        assert_eq!(lasting(f64::NAN), "0 s");
        assert_eq!(lasting(f64::INFINITY), "?");
        assert_eq!(lasting(86_400.0 * 9.0), "9 d");
    }

    #[test]
    fn ages_are_read_at_a_glance() {
        let now: Timestamp = "2026-11-25T14:05:00Z".parse().unwrap();
        assert_eq!(age("2026-11-25T14:04:48.123456Z", now), "11 s ago");
        assert_eq!(age("2026-11-25T13:05:00Z", now), "60 min ago");
        assert_eq!(age("2026-11-23T13:05:00Z", now), "2 d ago");
        assert_eq!(age("2026-11-25T14:05:09Z", now), "in 9 s");
    }
}
