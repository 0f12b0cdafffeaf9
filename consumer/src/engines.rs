//! `consumer engines`: prints engine instances, as text or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;
use service::grid::{right_aligned, table};
use service::output;
use service::text::shown;
use service::time::{duration, timestamp};
use service::words::counted;

use crate::page_options::{PageOptions, next_page};
use crate::query::{EnginePage, EnginesQuery, Reader};
use crate::store::{Database, DatabaseOptions};
use crate::tasks::{age, percent, wrong_usage};

/// Maximum number of an engine's users shown.
const USERS_SHOWN: usize = 3;

/// Options of `consumer engines`.
#[derive(Clone, Debug, clap::Args)]
pub struct EnginesOptions {
    /// Only this engine
    #[arg(long, value_name = "HOST:PORT")]
    engine_instance: Option<String>,
    /// Only engines of this type, for example spark
    #[arg(long, value_name = "TYPE")]
    engine_type: Option<String>,
    /// Count only exec tasks of this engine user; engines without any are omitted
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Start time: RFC 3339, or relative to now as in -2h [default: 24 hours before --to]
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    from: Option<Timestamp>,
    /// End time [default: now]
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    to: Option<Timestamp>,
    /// Maximum time that an exec task without an end counts after its last report; at most 1h
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    longest_gap: Duration,
    #[command(flatten)]
    page: PageOptions,
}

/// Prints a page of engines.
///
/// # Errors
/// If the database does not exist or has no tables, or an option has an invalid value.
pub async fn engines(asked: EnginesOptions, options: &DatabaseOptions) -> anyhow::Result<()> {
    let mut reader = Reader::open(&Database::parse(options)?).await?;
    let query = EnginesQuery {
        engine_instance: asked.engine_instance,
        engine_type: asked.engine_type,
        user: asked.user,
        from: asked.from,
        to: asked.to,
        longest_gap: asked.longest_gap,
        limit: asked.page.limit,
        cursor: asked.page.cursor,
    };
    let page = reader.engines(&query).await.map_err(wrong_usage)?;
    if asked.page.json {
        return output::print_json(&page);
    }
    output::print(&text(&page, reader.place())?)?;
    Ok(())
}

fn text(page: &EnginePage, place: &str) -> anyhow::Result<String> {
    let mut grid = table(&[
        "engine",
        "type",
        "users",
        "tasks",
        "running",
        "it says",
        "reported",
        "busy",
        "idle",
        "busy share",
    ]);
    let now = Timestamp::now();
    let minutes = |seconds: f64| format!("{:.1} min", seconds / 60.0);
    for engine in &page.items {
        let users = engine.users.iter().take(USERS_SHOWN);
        let mut users: Vec<String> = users.map(|user| shown(user)).collect();
        let more = engine.user_count - users.len() as i64;
        if more > 0 {
            users.push(format!("{more} more"));
        }
        let own_count = engine.engine_running_tasks;
        grid.add_row([
            shown(&engine.engine_instance),
            shown(&engine.engine_type),
            users.join(", "),
            engine.tasks.to_string(),
            engine.running_tasks.to_string(),
            own_count.map_or_else(|| "?".to_owned(), |count| count.to_string()),
            age(&engine.reported_at, now),
            minutes(engine.busy_seconds),
            minutes(engine.idle_seconds),
            percent(engine.busy_share),
        ]);
    }
    let mut text = right_aligned(&mut grid, 3..10);
    writeln!(
        text,
        "{} in {place}, heard of from {} to {}",
        counted(page.items.len(), "engine"),
        page.from,
        page.to
    )?;
    text += &next_page(page.next.as_deref());
    Ok(text)
}
