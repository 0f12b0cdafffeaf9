//! `consumer jobs`: prints jobs, as text or as JSON.

use std::fmt::Write as _;

use jiff::Timestamp;
use service::grid::{right_aligned, table};
use service::output;
use service::text::shown;
use service::time::timestamp;
use service::words::counted;

use crate::page_options::{PageOptions, next_page};
use crate::query::{JobPage, JobsQuery, Reader};
use crate::store::{Database, DatabaseOptions};
use crate::tasks::{age, as_of, gib, percent, wrong_usage};

/// Options of `consumer jobs`.
#[derive(Clone, Debug, clap::Args)]
pub struct JobsOptions {
    /// Only this job
    #[arg(long, value_name = "ID")]
    job: Option<String>,
    /// Count only exec tasks of this engine user; jobs without any are omitted
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Only jobs with an exec task that has not ended: its status is neither final nor Unknown
    #[arg(long)]
    running: bool,
    /// Show jobs as of this time, by the engine's clock: RFC 3339, or relative to now as in -2h
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    at: Option<Timestamp>,
    #[command(flatten)]
    page: PageOptions,
}

/// Prints a page of jobs.
///
/// # Errors
/// If the database does not exist or has no tables, its history no longer reaches back to the requested time, or an
/// option has an invalid value.
pub async fn jobs(asked: JobsOptions, options: &DatabaseOptions) -> anyhow::Result<()> {
    let mut reader = Reader::open(&Database::parse(options)?).await?;
    let query = JobsQuery {
        job_id: asked.job,
        user: asked.user,
        running: asked.running,
        at: asked.at,
        limit: asked.page.limit,
        cursor: asked.page.cursor,
    };
    let page = reader.jobs(&query).await.map_err(wrong_usage)?;
    if asked.page.json {
        return output::print_json(&page);
    }
    output::print(&text(&page, asked.at, reader.place())?)?;
    Ok(())
}

fn text(page: &JobPage, at: Option<Timestamp>, place: &str) -> anyhow::Result<String> {
    let mut grid = table(&[
        "job", "tasks", "running", "statuses", "progress", "least", "started", "reported",
        "memory", "cores",
    ]);
    let now = at.unwrap_or_else(Timestamp::now);
    for job in &page.items {
        let statuses = job.statuses.iter();
        let statuses: Vec<String> = statuses
            .map(|(status, count)| format!("{count} {status}"))
            .collect();
        grid.add_row([
            shown(&job.job_id),
            job.tasks.to_string(),
            job.running_tasks.to_string(),
            statuses.join(", "),
            percent(job.progress_mean),
            percent(job.progress_least),
            age(&job.started_at, now),
            age(&job.reported_at, now),
            job.memory_bytes.map_or_else(String::new, gib),
            job.cores
                .map_or_else(String::new, |cores| cores.to_string()),
        ]);
    }
    let mut text = right_aligned(&mut grid, [1, 2, 4, 5, 6, 7, 8, 9]);
    let count = counted(page.items.len(), "job");
    writeln!(text, "{count} in {place}{}", as_of(at))?;
    text += &next_page(page.next.as_deref());
    Ok(text)
}
