//! `consumer usage`: prints resource usage between two times, as text or as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use service::grid::{right_aligned, table};
use service::output;
use service::text::shown;
use service::time::{duration, timestamp};

use crate::query::{
    DEFAULT_USAGE_LIMIT, MAX_USAGE_LIMIT, Reader, Usage, UsageBy, UsageEvery, UsageQuery,
};
use crate::store::{Database, DatabaseOptions};
use crate::tasks::wrong_usage;

const HOUR: f64 = 3600.0;
const GIB: f64 = (1 << 30) as f64;

/// Options of `consumer usage`.
#[derive(Clone, Debug, clap::Args)]
pub struct UsageOptions {
    /// Start time: RFC 3339, or relative to now as in -2h [default: 24 hours before --to]
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    from: Option<Timestamp>,
    /// End time [default: now]
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    to: Option<Timestamp>,
    /// Grouping
    #[arg(long, value_name = "WHAT", default_value = "user")]
    by: UsageBy,
    /// Sum each hour or day separately
    #[arg(long, value_name = "PERIOD", default_value = "whole")]
    every: UsageEvery,
    /// Count only exec tasks of this user
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Maximum time that a report counts if no other follows; at most 1h
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5m")]
    longest_gap: Duration,
    /// Maximum number of rows per period; the others are summed in one more row
    #[arg(long, value_name = "N", default_value_t = DEFAULT_USAGE_LIMIT, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_USAGE_LIMIT)))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints resource usage.
///
/// # Errors
/// If the database does not exist or has no tables, or the request is too large.
pub async fn usage(asked: UsageOptions, options: &DatabaseOptions) -> anyhow::Result<()> {
    let mut reader = Reader::open(&Database::parse(options)?).await?;
    let query = UsageQuery {
        from: asked.from,
        to: asked.to,
        by: asked.by,
        every: asked.every,
        user: asked.user,
        longest_gap: asked.longest_gap,
        limit: asked.limit,
    };
    let usage = reader.usage(&query).await.map_err(wrong_usage)?;
    if let Some(before) = usage.expired_before {
        tracing::warn!(
            "history before {before} was removed from {} by consumer expire: earlier usage is not counted",
            reader.place()
        );
    }
    if asked.json {
        return output::print_json(&usage);
    }
    output::print(&text(&usage)?)?;
    Ok(())
}

fn text(usage: &Usage) -> anyhow::Result<String> {
    let by = usage.by.to_possible_value();
    let by = by.map_or_else(String::new, |by| by.get_name().replace('-', " "));
    let mut grid = table(&[
        "from",
        "to",
        &by,
        "core hours",
        "memory GiB hours",
        "instance hours",
        "known hours",
    ]);
    for item in &usage.items {
        let key = item.key.as_deref();
        grid.add_row([
            item.from.to_string(),
            item.to.to_string(),
            key.map_or_else(|| "(all others)".to_owned(), shown),
            format!("{:.3}", item.core_seconds / HOUR),
            format!("{:.3}", item.memory_byte_seconds / GIB / HOUR),
            format!("{:.3}", item.instance_seconds / HOUR),
            format!("{:.3}", item.application_seconds / HOUR),
        ]);
    }
    let mut text = right_aligned(&mut grid, 3..7);
    writeln!(
        text,
        "from {} to {}; a report counts for at most {} s",
        usage.from, usage.to, usage.longest_gap_seconds
    )?;
    Ok(text)
}
