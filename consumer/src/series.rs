//! `consumer series`: prints a task's values over time, as text or as JSON.

use std::fmt::Write as _;

use jiff::Timestamp;
use service::exit::WrongUsage;
use service::grid::{right_aligned, table};
use service::output;
use service::text::shown;
use service::time::timestamp;
use service::words::counted;

use crate::query::{DEFAULT_POINTS, MAX_POINTS, Reader, Series, SeriesQuery, TaskSeries};
use crate::store::{Database, DatabaseOptions};
use crate::tasks::{gib, percent, wrong_usage};

/// Columns of a sparkline.
const COLUMNS: usize = 40;
/// Heights of a column, the lowest first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Maximum number of status changes listed.
const MARKS_SHOWN: usize = 20;

/// Options of `consumer series`.
#[derive(Clone, Debug, clap::Args)]
pub struct SeriesOptions {
    /// The exec task's id
    pub exec_id: String,
    /// Only reports at this time or later: RFC 3339, or relative to now as in -2h
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    pub from: Option<Timestamp>,
    /// Only reports at this time or before: RFC 3339, or relative to now as in -2h
    #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
    pub to: Option<Timestamp>,
    /// Maximum number of points in each series
    #[arg(long, value_name = "N", default_value_t = DEFAULT_POINTS, value_parser = clap::value_parser!(u32).range(4..=i64::from(MAX_POINTS)))]
    pub points: u32,
    /// Also show this metric (repeatable)
    #[arg(long, value_name = "NAME")]
    pub metric: Vec<String>,
    /// Print JSON, with all points
    #[arg(long)]
    pub json: bool,
}

/// Prints the series of a task.
///
/// # Errors
/// If there is no such task, or the database does not exist or has no tables.
pub async fn series(asked: SeriesOptions, options: &DatabaseOptions) -> anyhow::Result<()> {
    let mut reader = Reader::open(&Database::parse(options)?).await?;
    let query = SeriesQuery {
        exec_id: asked.exec_id,
        user: None,
        from: asked.from,
        to: asked.to,
        points: asked.points,
        metrics: asked.metric,
    };
    let found = reader.series(&query).await.map_err(wrong_usage)?;
    let Some(found) = found else {
        let why = format!(
            "{} has no exec task {:?}; list them with: consumer tasks",
            reader.place(),
            query.exec_id
        );
        return Err(WrongUsage(why).into());
    };
    if asked.json {
        return output::print_json(&found);
    }
    output::print(&text(&found)?)?;
    Ok(())
}

fn text(found: &TaskSeries) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "exec task {}", shown(&found.exec_id))?;
    if let Some(before) = found.expired_before {
        writeln!(
            text,
            "reports before {before} were removed by consumer expire"
        )?;
    }
    let mut grid = table(&["series", "reports", "least", "greatest", "last", ""]);
    for series in &found.series {
        let value = |value: Option<f64>| value.map_or_else(String::new, |it| unit(series, it));
        let values = || series.points.iter().map(|point| point.value);
        grid.add_row([
            shown(&series.name),
            series.reports.to_string(),
            value(values().min_by(f64::total_cmp)),
            value(values().max_by(f64::total_cmp)),
            value(values().next_back()),
            line(series),
        ]);
    }
    text.push_str(&right_aligned(&mut grid, 1..5));
    let times = || {
        let points = found.series.iter().flat_map(|series| &series.points);
        points.map(|point| point.reported_at)
    };
    if let (Some(first), Some(last)) = (times().min(), times().max()) {
        writeln!(text, "from {first:.6} to {last:.6}; all points with --json")?;
    }

    let changes = found.marks.len() as u64 + found.marks_left_out;
    writeln!(text, "\n{}", counted(changes, "status mark"))?;
    let mut grid = table(&["reported at", "status"]);
    for mark in found.marks.iter().rev().take(MARKS_SHOWN).rev() {
        grid.add_row([format!("{:.6}", mark.reported_at), shown(&mark.status)]);
    }
    text.push_str(&right_aligned(&mut grid, []));
    Ok(text)
}

fn unit(series: &Series, value: f64) -> String {
    match series.name.as_str() {
        "progress" => percent(Some(value)),
        "memory_bytes" => gib(value as i64),
        _ => value.to_string(),
    }
}

/// A sparkline of the largest value of each time interval, with bars from 0, or from the smallest value if that is
/// negative.
fn line(series: &Series) -> String {
    let ([first, .., last], points) = (&series.points[..], &series.points) else {
        return String::new();
    };
    let from = first.reported_at.as_microsecond();
    let span = i128::from(last.reported_at.as_microsecond() - from) + 1;
    let mut columns = [None::<f64>; COLUMNS];
    for point in points {
        let since = i128::from(point.reported_at.as_microsecond() - from);
        let column = (since * COLUMNS as i128 / span) as usize;
        if let Some(column) = columns.get_mut(column) {
            *column = Some(column.map_or(point.value, |value| value.max(point.value)));
        }
    }
    let values = || columns.iter().flatten().copied();
    let least = values().fold(0.0, f64::min);
    let greatest = values().fold(f64::NEG_INFINITY, f64::max);
    let bar = |value: f64| {
        let share = (value - least) / (greatest - least);
        // Not a number if all values are 0; the height is then 0.
        let height = (share * (BARS.len() - 1) as f64).round() as usize;
        BARS[height.min(BARS.len() - 1)]
    };
    columns.iter().map(|value| value.map_or(' ', bar)).collect()
}
