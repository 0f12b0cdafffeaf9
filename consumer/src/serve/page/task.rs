//! One task.

use askama::Template;
use jiff::Timestamp;
use serde_json::{Map, Value as Json};
use service::text::shown;
use service::words::counted;

use super::drawing::{PlotData, sparkline};
use super::format::{ABSENT, count, gib, or_absent, percent};
use super::frame::Frame;
use super::links::{self, Query, TASKS};
use super::plot::{Plot, plot};
use super::row::Row;
use super::status::Status;
use crate::query::{Report, Sequences, Series, TaskDetails, TaskItem, TaskSeries};

/// Prefix of metrics among the names of series.
const METRIC: &str = "metrics.";
/// Maximum number of metrics drawn.
const DRAWN: usize = 20;

/// A task's data, from one snapshot.
pub(super) struct TaskData {
    pub(super) item: TaskItem,
    pub(super) details: TaskDetails,
    pub(super) series: TaskSeries,
}

#[derive(Template)]
#[template(path = "page/task.html")]
pub(super) struct TaskView {
    pub(super) frame: Frame,
    row: Row,
    ticket: String,
    engine_href: String,
    user_href: String,
    job_href: String,
    reports_text: String,
    expired_before: Option<Timestamp>,
    plot: Option<Plot>,
    sub_jobs: Vec<SubJob>,
    resource: Vec<Held>,
    metrics: Vec<Metric>,
    reports: Vec<ReportRow>,
    reports_listed: String,
    event: String,
    sequences_text: String,
}

struct SubJob {
    id: String,
    max: i32,
    succeeded: i32,
    text: String,
}

/// An application and its resources.
struct Held {
    application: String,
    status: String,
    queue: String,
    memory: String,
    cores: String,
    instances: String,
}

struct Metric {
    name: String,
    value: String,
    /// A sparkline, as SVG.
    line: Option<String>,
}

struct ReportRow {
    sequence: i64,
    reported_at: String,
    status: Status,
    progress: String,
    repaired: String,
    event: String,
}

impl TaskView {
    /// `at` is the past time shown.
    pub(super) fn of(given: &Query, at: Option<Timestamp>, found: TaskData) -> Self {
        let TaskData {
            item,
            details,
            series,
        } = found;
        let TaskDetails {
            task,
            resource,
            metrics,
            sequences,
            reports,
            expired_before,
        } = details;
        let path = links::task_path(&task.exec_id);
        let name = shown(&task.exec_id);
        let mut frame = Frame::of(
            "task",
            format!("{} {name}", Status::of(&task.status).word),
            &path,
            given,
            at,
        );
        frame.since = Some(series.watermark.to_string());
        let time = given.clone().only(&["at"]);
        let of = |query: Query| query.at(TASKS);
        let engine_href = of(time
            .clone()
            .and("engine_instance", task.engine_instance.as_str()));
        let user_href = of(time.clone().and("user", task.engine_user.as_str()));
        let job_href = of(time.clone().and("job_id", task.job_id.as_str()));
        let event = format!("{}@{}", task.event_partition, task.event_offset);
        let ticket = or_empty(&task.ticket_id);
        let row = Row::of(item, &time, frame.present());
        let listed = reports.len() as u64;
        let total = sequences.reports.unsigned_abs();
        Self {
            row,
            ticket,
            engine_href,
            user_href,
            job_href,
            reports_text: reports_text(&sequences),
            sequences_text: sequences_text(&sequences),
            expired_before,
            plot: plot(&plot_data(&series)),
            sub_jobs: sub_jobs(&reports),
            resource: resource
                .into_iter()
                .map(|held| Held {
                    application: shown(&held.application_id),
                    status: or_empty(&held.status),
                    queue: or_empty(&held.queue),
                    memory: gib(held.memory_bytes),
                    cores: held.cores.to_string(),
                    instances: held.instances.to_string(),
                })
                .collect(),
            metrics: metrics.map_or_else(Vec::new, |metrics| {
                let own = metrics
                    .metrics
                    .as_deref()
                    .map(values_of)
                    .unwrap_or_default();
                let engine = Metric {
                    name: "engine's running tasks".to_owned(),
                    value: metrics.engine_running_tasks.to_string(),
                    line: None,
                };
                let own = own
                    .into_iter()
                    .map(|(name, value)| Metric::of(&name, &value, &series));
                std::iter::once(engine).chain(own).collect()
            }),
            reports: reports.iter().map(report_row).collect(),
            reports_listed: match listed < total {
                true => format!("the newest {} of {}", count(listed), count(total)),
                false => String::new(),
            },
            event,
            frame,
        }
    }
}

impl Metric {
    fn of(name: &str, value: &Json, series: &TaskSeries) -> Self {
        let prefixed = format!("{METRIC}{name}");
        let own = series.series.iter().find(|series| series.name == prefixed);
        Self {
            name: or_empty(name),
            value: match value {
                Json::Null => ABSENT.to_owned(),
                Json::String(text) => shown(text),
                other => other.to_string(),
            },
            line: own.and_then(|series| sparkline(&points(series))),
        }
    }
}

fn points(series: &Series) -> Vec<(Timestamp, f64)> {
    series
        .points
        .iter()
        .map(|point| (point.reported_at, point.value))
        .collect()
}

/// The values of the plots.
fn plot_data(series: &TaskSeries) -> PlotData {
    let named = |name: &str| {
        let own = series.series.iter().find(|series| series.name == name);
        own.map(points).unwrap_or_default()
    };
    let marks = series.marks.iter();
    PlotData {
        progress: named("progress"),
        memory_bytes: named("memory_bytes"),
        cores: named("cores"),
        marks: marks
            .map(|mark| (mark.reported_at, Status::of(&mark.status)))
            .collect(),
    }
}

fn or_empty(text: &str) -> String {
    if text.is_empty() {
        ABSENT.to_owned()
    } else {
        shown(text)
    }
}

fn reports_text(sequences: &Sequences) -> String {
    let reports = counted(sequences.reports.unsigned_abs(), "report");
    let missing = match sequences.missing {
        0 => "none missing".to_owned(),
        missing => format!("{} missing", count(missing.unsigned_abs())),
    };
    match sequences.repeated {
        0 => format!("{reports}, {missing}"),
        repeated => format!("{reports}, {missing}, {repeated} repeated"),
    }
}

fn sequences_text(sequences: &Sequences) -> String {
    match sequences.missing {
        0 => "No sequence numbers are missing.".to_owned(),
        missing => {
            let first: Vec<String> = sequences
                .missing_sequences
                .iter()
                .map(i64::to_string)
                .collect();
            let of = if missing.unsigned_abs() > first.len() as u64 {
                "the first missing ones are"
            } else {
                "these are missing:"
            };
            format!(
                "Of its sequence numbers, {of} {}. These reports were never sent, or were lost before they reached the topic.",
                first.join(", ")
            )
        }
    }
}

/// The sub-jobs of the newest report that has any.
fn sub_jobs(reports: &[Report]) -> Vec<SubJob> {
    let newest = reports
        .iter()
        .find_map(|report| Some((&report.jobs, report.jobs.job_ids.as_ref()?)));
    let Some((jobs, ids)) = newest else {
        return Vec::new();
    };
    let of = |counts: &Option<Vec<i32>>, i: usize| {
        counts
            .as_ref()
            .and_then(|counts| counts.get(i))
            .copied()
            .unwrap_or(0)
    };
    ids.iter()
        .enumerate()
        .map(|(i, id)| {
            let (total, running) = (of(&jobs.total_tasks, i), of(&jobs.running_tasks, i));
            let (failed, succeeded) = (of(&jobs.failed_tasks, i), of(&jobs.succeed_tasks, i));
            let mut text = format!("{succeeded}/{total}");
            for (n, word) in [(running, "running"), (failed, "failed")] {
                if n > 0 {
                    text.push_str(&format!(", {n} {word}"));
                }
            }
            SubJob {
                id: or_empty(id),
                max: total.max(1),
                succeeded,
                text,
            }
        })
        .collect()
}

/// The metrics of a JSON object.
fn values_of(json: &str) -> Map<String, Json> {
    serde_json::from_str(json).unwrap_or_default()
}

/// The names of the numeric metrics, which are drawn.
pub(super) fn numbers(details: &TaskDetails) -> Vec<String> {
    let json = details
        .metrics
        .as_ref()
        .and_then(|metrics| metrics.metrics.as_deref());
    let own = json.map(values_of).unwrap_or_default().into_iter();
    let numbers = own
        .filter(|(_, value)| value.is_number())
        .map(|(name, _)| name);
    numbers.take(DRAWN).collect()
}

fn report_row(report: &Report) -> ReportRow {
    ReportRow {
        sequence: report.sequence,
        reported_at: report.reported_at.clone(),
        status: Status::of(&report.status),
        progress: or_absent(report.progress, percent),
        repaired: report
            .adjustments
            .as_deref()
            .map(repaired)
            .unwrap_or_default(),
        event: format!("{}@{}", report.event_partition, report.event_offset),
    }
}

fn repaired(json: &str) -> String {
    let adjustments: Vec<String> = serde_json::from_str(json).unwrap_or_default();
    crate::tasks::repaired(&adjustments, "")
}
