//! Parses a report in JSON, or finds everything that is wrong with it. Pure.

mod object;
mod reported_at;
mod sequences;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemas::{
    EngineInstance, JobProgressInfo, MetricValue, Problem, ResourceWithStatus, TaskProgressInfo,
    TaskResourceInfo, TaskRunningInfo,
};
use serde_json::value::RawValue;

pub(crate) use self::object::{Fault, Faulty};
use self::object::{Faults, Object, Path, map};
use self::reported_at::reported_at;
use self::sequences::COUNTED_TASKS_MAX;
pub(crate) use self::sequences::Sequences;

/// Largest report. A topic takes 1 MiB by default, and JSON is longer than Avro.
pub(crate) const REPORT_MAX_BYTES: usize = 1 << 20;

/// Parses a report. Without `reportedAt` it is now. Without `sequence` it is counted by `sequences`; if they are `None`,
/// it is required. Values that the router repairs are passed on as they are.
///
/// # Errors
/// The faults that make the record unusable.
pub(crate) fn read(
    json: &[u8],
    sequences: Option<&mut Sequences>,
) -> Result<TaskRunningInfo, Faulty> {
    let text = std::str::from_utf8(json)
        .map_err(|error| Faulty::whole(format!("not UTF-8 at byte {}", error.valid_up_to() + 1)))?;
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| {
        let reason = error
            .to_string()
            .replace(" at line 1 column ", " at column ");
        let hint = match error.line() {
            1 => not_finite_hint(text, error.column()).unwrap_or_default(),
            _ => String::new(),
        };
        Faulty::whole(format!("not JSON: {reason}{hint}"))
    })?;
    let faults = Faults::of(text);
    let counted = sequences.as_deref();
    let read = Object::open(&faults, Path::Root, raw).map(|report| info(report, counted));
    let mut found = faults.into_faulty();
    let (info, left_out) = match read {
        Some(read) if found.more == 0 => read,
        _ => return Err(found),
    };
    let unusable = info.problems().into_iter();
    let unusable = unusable.filter(|problem| problem.fault.adjustment().is_none());
    // A missing or wrong field has its default here, and its fault is already known.
    let unread = Vec::from_iter(found.faults.iter().map(|fault| fault.field.clone()));
    let unusable = unusable.filter(|problem| {
        let within = |field: &String| problem.field.strip_prefix(field.as_str());
        !unread
            .iter()
            .filter_map(within)
            .any(|rest| rest.is_empty() || rest.starts_with('.'))
    });
    found.faults.extend(unusable.map(fault));
    if found.count() > 0 {
        return Err(found);
    }
    if let Some(sequences) = sequences {
        sequences.note(&info, left_out);
    }
    Ok(info)
}

/// How to write numbers that JSON does not have, which Python's `json.dumps` and others write without quotes.
fn not_finite_hint(line: &str, column: usize) -> Option<String> {
    let (before, rest) = line.split_at_checked(column.checked_sub(1)?)?;
    let name = ["NaN", "Infinity"]
        .into_iter()
        .find(|name| rest.starts_with(name))?;
    let sign = if before.ends_with('-') { "-" } else { "" };
    Some(format!("; write \"{sign}{name}\", in quotes"))
}

fn fault(problem: Problem) -> Fault {
    let text = problem.to_string();
    let field = problem.field.into_owned();
    let reason = text.strip_prefix(&field).unwrap_or(&text).trim().to_owned();
    Fault { field, reason }
}

/// The record, and whether its sequence was left out.
fn info(mut of: Object<'_, '_>, sequences: Option<&Sequences>) -> (TaskRunningInfo, bool) {
    let mut info = TaskRunningInfo {
        exec_id: of.required("execId", Faults::value),
        job_id: of.required("jobId", Faults::value),
        engine: of.required("engine", engine),
        status: of.required("status", Faults::value),
        reported_at: of
            .optional("reportedAt", |faults, path, raw| {
                let time = reported_at(raw.get());
                Some(time.map_err(|reason| faults.add(path, reason)).ok())
            })
            .unwrap_or_else(|| Timestamp::now().as_microsecond()),
        sequence: 0,
        progress: of.optional("progress", |faults, path, raw| {
            part(faults, path, raw, progress)
        }),
        resource: of.optional("resource", |faults, path, raw| {
            part(faults, path, raw, resource)
        }),
        metrics: of.optional("metrics", |faults, path, raw| {
            part(faults, path, raw, metrics)
        }),
    };
    let given = of.optional("sequence", |faults, path, raw| {
        Some(Some(faults.value(path, raw).unwrap_or_default()))
    });
    let counted = || sequences?.next(&info.exec_id);
    match (given.or_else(counted), sequences) {
        (Some(sequence), _) => info.sequence = sequence,
        (None, None) => of.fault(
            "sequence",
            "is missing: number the reports of each execId 0, 1, 2 …",
        ),
        (None, Some(_)) => of.fault(
            "sequence",
            &format!(
                "is missing, and cannot be counted for more than {COUNTED_TASKS_MAX} tasks at a time: write it yourself"
            ),
        ),
    }
    of.end();
    (info, given.is_none())
}

/// A part that may be null.
fn part<'a, T>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
    read: impl FnOnce(&Faults<'a>, Path<'_>, &'a RawValue) -> Option<T>,
) -> Option<Option<T>> {
    match raw.get() {
        "null" => Some(None),
        _ => read(faults, path, raw).map(Some),
    }
}

fn engine<'a>(faults: &Faults<'a>, path: Path<'_>, raw: &'a RawValue) -> Option<EngineInstance> {
    let mut of = Object::open(faults, path, raw)?;
    let engine = EngineInstance {
        instance: of.required("instance", Faults::value),
        engine_type: of.required("engineType", Faults::value),
        user: of.optional("user", Faults::value),
        ticket_id: of.optional("ticketId", Faults::value),
        running_tasks: of.optional("runningTasks", Faults::value),
    };
    of.end();
    Some(engine)
}

fn progress<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<TaskProgressInfo> {
    let mut of = Object::open(faults, path, raw)?;
    let progress = TaskProgressInfo {
        progress: of.required("progress", |faults, path, raw| {
            match serde_json::from_str::<String>(raw.get()) {
                Ok(text) => schemas::not_finite(&text).or_else(|| {
                    let expected =
                        "expected a number, or one of \"NaN\", \"Infinity\", \"-Infinity\"";
                    faults.add(path, format!("{expected}; found {text:?}"));
                    None
                }),
                Err(_) => faults.value(path, raw),
            }
        }),
        progress_info: of.optional("progressInfo", |faults, path, raw| {
            let jobs: Vec<&RawValue> = serde_json::from_str(raw.get())
                .map_err(|error| faults.add(path, faults.reason(raw.get(), &error)))
                .ok()?;
            let jobs = jobs.into_iter().enumerate();
            let jobs = jobs.map(|(at, raw)| job(faults, Path::Item(&path, at), raw));
            Some(jobs.map(Option::unwrap_or_default).collect())
        }),
    };
    of.end();
    Some(progress)
}

fn job<'a>(faults: &Faults<'a>, path: Path<'_>, raw: &'a RawValue) -> Option<JobProgressInfo> {
    let mut of = Object::open(faults, path, raw)?;
    let job = JobProgressInfo {
        id: of.required("id", Faults::value),
        total_tasks: of.required("totalTasks", Faults::value),
        running_tasks: of.required("runningTasks", Faults::value),
        failed_tasks: of.required("failedTasks", Faults::value),
        succeed_tasks: of.required("succeedTasks", Faults::value),
    };
    of.end();
    Some(job)
}

fn resource<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<TaskResourceInfo> {
    let mut of = Object::open(faults, path, raw)?;
    let applications = of.optional("applications", |faults, path, raw| {
        map(faults, path, raw, application)
    });
    of.end();
    Some(TaskResourceInfo { applications })
}

fn application<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<ResourceWithStatus> {
    let mut of = Object::open(faults, path, raw)?;
    let application = ResourceWithStatus {
        queue_memory: of.required("queueMemory", Faults::value),
        queue_cores: of.required("queueCores", Faults::value),
        queue_instances: of.required("queueInstances", Faults::value),
        job_status: of.required("jobStatus", Faults::value),
        queue: of.required("queue", Faults::value),
    };
    of.end();
    Some(application)
}

fn metrics<'a>(
    faults: &Faults<'a>,
    path: Path<'_>,
    raw: &'a RawValue,
) -> Option<BTreeMap<String, MetricValue>> {
    map(faults, path, raw, Faults::value)
}

#[cfg(test)]
mod tests;
