//! The list of jobs.

use askama::Template;
use jiff::Timestamp;
use service::text::shown;

use super::chip::Chip;
use super::format::{ABSENT, ago, count, duration, gib, or_absent, percent};
use super::frame::Frame;
use super::links::{self, JOBS, Query, TASKS};
use super::pages::Pages;
use super::row::Running;
use super::status::Status;
use crate::query::{JobItem, JobPage, JobsQuery};

/// The form's fields.
const FORM: &[&str] = &["job_id", "user"];
/// Parameters that the form keeps in hidden fields.
const HIDDEN: &[&str] = &["running", "limit"];
const EVERY_SECONDS: u32 = 5;

#[derive(Template)]
#[template(path = "page/jobs.html")]
pub(super) struct JobsView {
    pub(super) frame: Frame,
    chips: Vec<Chip>,
    hidden: Vec<(String, String)>,
    job_id: String,
    user: String,
    filters_set: usize,
    is_filtered: bool,
    clear_href: String,
    rows: Vec<JobRow>,
    pages: Pages,
}

/// A row of the list.
struct JobRow {
    key: String,
    name: String,
    href: String,
    tasks: String,
    running_tasks: String,
    /// Each status with its number of tasks.
    statuses: Vec<(String, Status)>,
    statuses_text: String,
    progress: Option<(f64, String)>,
    least: String,
    running: Running,
    reported_at: String,
    reported_ago: String,
    memory: String,
    cores: String,
}

impl JobsView {
    /// `given` is the address's query, `asked` the parsed one.
    pub(super) fn of(given: &Query, asked: &JobsQuery, page: JobPage) -> Self {
        let frame = Frame::of("jobs", "Jobs".to_owned(), JOBS, given, asked.at);
        let frame = frame.every(EVERY_SECONDS);
        let time = given.clone().only(&["at"]);
        let first = given.clone().without(&["cursor"]);
        let next = page.next.map(|cursor| first.clone().and("cursor", cursor));
        let present = frame.present();
        let rows: Vec<JobRow> = page
            .items
            .into_iter()
            .map(|job| JobRow::of(job, &time, asked.user.as_deref(), present))
            .collect();
        let filters_set = FORM
            .iter()
            .filter(|name| !given.first(name).is_empty())
            .count();
        let others = first.clone().without(&["running"]);
        let running = others.clone().and("running", "true");
        Self {
            chips: vec![
                Chip::of("All", others.at(JOBS), !asked.running),
                Chip::of("Running", running.at(JOBS), asked.running).with_shape("Running"),
            ],
            hidden: first.only(HIDDEN).0,
            job_id: given.first("job_id").to_owned(),
            user: given.first("user").to_owned(),
            filters_set,
            is_filtered: filters_set > 0 || asked.running,
            clear_href: time.at(JOBS),
            pages: Pages::of(JOBS, given, "job", rows.len(), next.as_ref())
                .expired(page.expired_before),
            rows,
            frame,
        }
    }
}

impl JobRow {
    /// `user` is the only user whose tasks count.
    fn of(job: JobItem, time: &Query, user: Option<&str>, now: Timestamp) -> Self {
        let mut tasks = time.clone().and("job_id", job.job_id.as_str());
        if let Some(user) = user {
            tasks = tasks.and("user", user);
        }
        let statuses: Vec<(String, Status)> = Status::words()
            .into_iter()
            .filter_map(|word| {
                let tasks = job.statuses.get(word)?.unsigned_abs();
                Some((count(tasks), Status::of(word)))
            })
            .collect();
        let text = statuses
            .iter()
            .map(|(tasks, status)| format!("{tasks} {}", status.word));
        Self {
            statuses_text: text.collect::<Vec<_>>().join(", "),
            statuses,
            key: links::key(&job.job_id),
            name: shown(&job.job_id),
            href: tasks.at(TASKS),
            tasks: count(job.tasks.unsigned_abs()),
            running_tasks: count(job.running_tasks.unsigned_abs()),
            progress: job.progress_mean.map(|share| (share, percent(share))),
            least: or_absent(job.progress_least, percent),
            running: running(&job, now),
            reported_ago: ago(&job.reported_at, now),
            reported_at: job.reported_at,
            memory: or_absent(job.memory_bytes, gib),
            cores: or_absent(job.cores, |cores| cores.to_string()),
        }
    }
}

/// From the first task's first report to the last one's end; ticks while the job is running.
fn running(job: &JobItem, now: Timestamp) -> Running {
    let until = match (&job.ended_at, job.running_tasks) {
        (Some(ended), _) => Some(ended),
        (None, 0) => Some(&job.reported_at),
        (None, _) => None,
    };
    let parsed = |time: &String| time.parse::<Timestamp>().ok();
    let started = parsed(&job.started_at);
    match (started, until.map(parsed)) {
        (Some(started), Some(Some(until))) => Running {
            text: duration(until.duration_since(started).as_secs_f64()),
            ticks_from: None,
        },
        (Some(started), None) => Running {
            text: duration(now.duration_since(started).as_secs_f64()),
            ticks_from: Some(job.started_at.clone()),
        },
        _ => Running {
            text: ABSENT.to_owned(),
            ticks_from: None,
        },
    }
}
