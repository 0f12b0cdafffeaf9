//! The list of tasks.

use askama::Template;
use jiff::{SignedDuration, Timestamp};

use super::chip::{Chip, Count};
use super::format::{count, moment};
use super::frame::Frame;
use super::links::{Query, TASKS};
use super::pages::Pages;
use super::row::Row;
use super::status::Status;
use crate::query::{TaskFilter, TaskOrder, TaskPage, TaskQuery, Thresholds};
use crate::serve::live::{Levels, TaskCounts};

/// Parameters that chips set.
const CHIP: &[&str] = &["status", "running", "silent", "stalled", "ended_after"];
/// The form's fields.
const FORM: &[&str] = &[
    "exec_id_prefix",
    "job_id",
    "user",
    "engine_type",
    "engine_instance",
    "status",
    "started_after",
    "started_before",
    "order",
    "descending",
];
/// Parameters that the form keeps in hidden fields.
const HIDDEN: &[&str] = &[
    "running",
    "silent",
    "stalled",
    "reported_after",
    "reported_before",
    "ended_after",
    "ended_before",
    "limit",
    "silent_after",
    "stalled_after",
];
const ORDER: &[&str] = &["order", "descending"];
const WAITING: &[&str] = &["Inited", "Scheduled", "WaitForRetry"];
const ENDED_WITHIN: SignedDuration = SignedDuration::from_hours(1);

/// Sort orders: values of the parameter and labels.
const ORDERS: &[(&str, &str)] = &[
    ("started", "started"),
    ("reported", "last report"),
    ("duration", "running time"),
    ("progress", "progress"),
    ("memory", "memory"),
    ("cores", "cores"),
];

/// Number of tasks for each chip, if known. `task_counts`: counts of all tasks, if the caller may see all.
fn counts(asked: &TaskQuery, task_counts: Option<TaskCounts>) -> [Option<Count>; 4] {
    // A chip replaces the filters of other chips.
    let others = TaskFilter {
        status: Vec::new(),
        running: false,
        silent: false,
        stalled: false,
        ended_after: None,
        ..asked.filter.clone()
    };
    let is_of_all =
        others.is_empty() && asked.at.is_none() && asked.thresholds == Thresholds::default();
    let task_counts = task_counts.filter(|_| is_of_all).unwrap_or_default();
    let counted = |tasks: u64, at| Count {
        text: count(tasks),
        title: format!("Counted at {}", moment(at)),
    };
    let level = |tasks: fn(&Levels) -> u64| {
        let levels = task_counts.levels?;
        Some(counted(tasks(&levels.value), levels.at))
    };
    [
        level(|levels| levels.running),
        level(|levels| levels.waiting),
        level(|levels| levels.silent),
        task_counts
            .stalled
            .map(|stalled| counted(stalled.value, stalled.at)),
    ]
}

#[derive(Template)]
#[template(path = "page/tasks.html")]
pub(super) struct TasksView {
    pub(super) frame: Frame,
    chips: Vec<Chip>,
    filters_open: bool,
    filters_set: usize,
    /// Whether a filter is set.
    is_filtered: bool,
    hidden: Vec<(String, String)>,
    form: Form,
    statuses: Vec<&'static str>,
    orders: &'static [(&'static str, &'static str)],
    clear_href: String,
    caption: String,
    columns: Vec<Column>,
    rows: Vec<Row>,
    pages: Pages,
}

struct Form {
    exec_id_prefix: String,
    job_id: String,
    user: String,
    engine_type: String,
    engine_instance: String,
    status: String,
    started_after: String,
    started_before: String,
    order: &'static str,
    ascending: bool,
}

/// A sortable column.
struct Column {
    word: &'static str,
    class: &'static str,
    href: String,
    sort: Option<&'static str>,
}

/// The parameter's value for an order.
fn named(order: TaskOrder) -> &'static str {
    match order {
        TaskOrder::Started => "started",
        TaskOrder::Reported => "reported",
        TaskOrder::Duration => "duration",
        TaskOrder::Progress => "progress",
        TaskOrder::Memory => "memory",
        TaskOrder::Cores => "cores",
    }
}

impl TasksView {
    /// `given` is the address's query, `asked` the parsed one. `task_counts`: counts of all tasks, if the caller may see
    /// all.
    pub(super) fn of(
        given: &Query,
        asked: &TaskQuery,
        task_counts: Option<TaskCounts>,
        page: TaskPage,
    ) -> Self {
        let mut frame = Frame::of("tasks", "Tasks".to_owned(), TASKS, given, asked.at);
        frame.since = Some(page.watermark.to_string());
        let present = frame.present();
        // A cursor is valid only for its filters and order.
        let first = given.clone().without(&["cursor"]);
        let time = given.clone().only(&["at"]);
        let rows: Vec<Row> = page
            .items
            .into_iter()
            .map(|item| Row::of(item, &time, present))
            .collect();
        let order = named(asked.order);
        let set = |names: &[&str]| {
            names
                .iter()
                .filter(|name| !given.first(name).is_empty())
                .count()
        };
        let filters = set(FORM) - set(ORDER);
        // The form supports one status.
        let statuses = given.0.iter().filter(|(name, _)| name == "status").count();
        let mut hidden = first.clone().only(HIDDEN);
        if statuses > 1 {
            hidden.0.extend(first.clone().only(&["status"]).0);
        }
        let next = page.next.map(|cursor| first.clone().and("cursor", cursor));
        let pages =
            Pages::of(TASKS, given, "task", rows.len(), next.as_ref()).expired(page.expired_before);
        let word = ORDERS
            .iter()
            .find(|(name, _)| *name == order)
            .map_or("", |(_, word)| word);
        Self {
            chips: chips(&first, present, counts(asked, task_counts)),
            filters_open: filters > 0,
            filters_set: filters,
            is_filtered: filters + set(CHIP) + set(HIDDEN) > 0,
            hidden: hidden.0,
            form: Form {
                exec_id_prefix: given.first("exec_id_prefix").to_owned(),
                job_id: given.first("job_id").to_owned(),
                user: given.first("user").to_owned(),
                engine_type: given.first("engine_type").to_owned(),
                engine_instance: given.first("engine_instance").to_owned(),
                status: if statuses == 1 {
                    given.first("status")
                } else {
                    ""
                }
                .to_owned(),
                started_after: field(given.first("started_after")),
                started_before: field(given.first("started_before")),
                order,
                ascending: !asked.descending,
            },
            statuses: Status::words(),
            orders: ORDERS,
            clear_href: time.at(TASKS),
            caption: format!(
                "Tasks by {word}, {} first",
                if asked.descending {
                    "highest"
                } else {
                    "lowest"
                }
            ),
            columns: columns(&first, order, asked.descending),
            rows,
            pages,
            frame,
        }
    }
}

/// A time in the format of a datetime-local input.
pub(super) fn field(time: &str) -> String {
    let time = time.parse::<Timestamp>();
    time.map_or_else(
        |_| String::new(),
        |time| time.strftime("%Y-%m-%dT%H:%M:%S").to_string(),
    )
}

fn chips(first: &Query, present: Timestamp, counts: [Option<Count>; 4]) -> Vec<Chip> {
    let others = first.clone().without(CHIP);
    let ended_after = present.checked_sub(ENDED_WITHIN).unwrap_or(present);
    let ended_after = ended_after.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let waiting = WAITING
        .iter()
        .fold(others.clone(), |query, status| query.and("status", *status));
    let within = |status: &str| {
        others
            .clone()
            .and("status", status)
            .and("ended_after", ended_after.as_str())
    };
    let [running, waits, silent, stalled] = counts;
    let all = [
        (None, "All", None, others.clone(), None),
        (
            None,
            "Running",
            Some("Running"),
            others.clone().and("running", "true"),
            running,
        ),
        (None, "Waiting", Some("Scheduled"), waiting, waits),
        (
            None,
            "Silent",
            Some("warn"),
            others.clone().and("silent", "true"),
            silent,
        ),
        (
            None,
            "Stalled",
            Some("warn"),
            others.clone().and("stalled", "true"),
            stalled,
        ),
        (
            Some("ended in the last hour:"),
            "Succeeded",
            Some("Succeed"),
            within("Succeed"),
            None,
        ),
        (None, "Failed", Some("Failed"), within("Failed"), None),
        (
            None,
            "Cancelled",
            Some("Cancelled"),
            within("Cancelled"),
            None,
        ),
        (None, "Timed out", Some("Timeout"), within("Timeout"), None),
    ];
    // Ignores the chip's time, which was relative to the time of the click.
    let chosen = |query: &Query| {
        let mut chosen = query.clone().only(CHIP).0;
        for (name, value) in &mut chosen {
            if name == "ended_after" {
                value.clear();
            }
        }
        chosen.sort();
        chosen
    };
    let now = chosen(first);
    all.into_iter()
        .map(|(lead, label, shape, query, count)| Chip {
            lead,
            label,
            count,
            shape,
            is_on: chosen(&query) == now,
            href: query.at(TASKS),
        })
        .collect()
}

fn columns(first: &Query, order: &'static str, descending: bool) -> Vec<Column> {
    [
        ("progress", "Progress", "c-progress"),
        ("duration", "Running", "c-running num"),
        ("reported", "Last report", "c-reported num"),
        ("memory", "Memory", "c-memory num"),
        ("cores", "Cores", "c-cores num"),
    ]
    .into_iter()
    .map(|(name, word, class)| {
        let is_by = name == order;
        let next = if is_by && descending { "false" } else { "true" };
        let query = first
            .clone()
            .without(ORDER)
            .and("order", name)
            .and("descending", next);
        Column {
            word,
            class,
            href: query.at(TASKS),
            sort: is_by.then_some(if descending {
                "descending"
            } else {
                "ascending"
            }),
        }
    })
    .collect()
}
