//! `producer simulate`: sends made-up reports at a rate.

use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::bail;
use jiff::Timestamp;
use service::exit::WrongUsage;
use service::time::duration;
use service::words::counted;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::simulation::{Clock, Simulation};
use crate::session::{PacedReports, Session, Setup};

/// At rate 0, the clock of `--start-at` advances by this much with each report.
const UNPACED_STEP: Duration = Duration::from_millis(1);
/// Reports a second; at the slowest, one in 11 days.
const RATES: RangeInclusive<f64> = 1e-6..=1e9;
/// Reports between two checks of the clock and of signals.
const BURST: u64 = 1_000;
/// Time between two bursts of a paced stream.
const TICK: Duration = Duration::from_millis(5);

/// What is simulated, and how fast.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Tasks alive at a time; each one that ends is followed by another
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tasks: u32,

    /// Reports a second over all tasks, 0.000001 or more; 0: as fast as Kafka accepts them
    #[arg(long, value_name = "R", default_value_t = 10.0, value_parser = rate)]
    pub rate: f64,

    /// Stop after this time, e.g. 30s or 5m; without this and --count, only a signal stops it
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub lasting: Option<Duration>,

    /// Stop after this many reports
    #[arg(long, value_name = "N", conflicts_with = "lasting")]
    pub count: Option<u64>,

    /// The same seed gives the same reports except for their time; without it, a seed is chosen and logged
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,

    /// Part of each exec id besides the seed, to run a seed again as other tasks
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = run_name)]
    pub run: String,

    /// Date reports from this time on, at the pace of --rate, instead of by the clock: then reportedAt is the same each time, too
    #[arg(long, value_name = "TIME")]
    pub start_at: Option<Timestamp>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate == 0.0 || RATES.contains(&rate) => Ok(rate),
        _ => Err(format!(
            "expected reports a second, 0 or {} to {}, e.g. 200 or 0.5",
            RATES.start(),
            RATES.end()
        )),
    }
}

fn run_name(text: &str) -> Result<String, String> {
    if text.len() > 100 {
        return Err("expected at most 100 bytes: it becomes part of each exec id".to_owned());
    }
    Ok(text.to_owned())
}

/// Simulates until the time or the count is reached or `setup.shutdown` is cancelled; then waits for every acknowledgement
/// and prints `sent 4000 reports of 57 tasks`. Tasks that have not ended get no final status.
///
/// # Errors
/// If the topic does not exist, or reports cannot be delivered.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<()> {
    let Some(session) = Session::open(&setup).await? else {
        return Ok(());
    };
    let mut reports = session.paced().await?;

    let seed = options.seed.unwrap_or_else(rand::random);
    let clock = clock(&options)?;
    let mut simulation = Simulation::new(options.tasks as usize, seed, &options.run, clock);
    tracing::info!(
        seed,
        "simulating {}, {}, to {}",
        counted(options.tasks, "task"),
        if options.rate == 0.0 {
            "as fast as Kafka takes them".to_owned()
        } else {
            format!("{} a second", counted(options.rate, "report"))
        },
        setup.topic,
    );
    let sent = simulate(&options, &mut simulation, &mut reports, &setup.shutdown).await;
    // Also after an error, wait for what was sent before.
    let finished = reports.finish().await;
    if finished.is_ok() {
        reports.account(&format!(" of {}", counted(simulation.tasks(), "task")));
    }
    sent?;
    all_fit(&reports)?;
    finished?;
    Ok(())
}

/// The topic takes every report.
fn all_fit(reports: &PacedReports) -> anyhow::Result<()> {
    match reports.take_too_large().first() {
        Some(refused) => bail!("report {}: {}", refused.number, refused.reason),
        None => Ok(()),
    }
}

fn clock(options: &Options) -> anyhow::Result<Clock> {
    let Some(start) = options.start_at else {
        return Ok(Clock::Now);
    };
    let start = start.as_microsecond();
    if !schemas::REPORTED_AT_MICROS.contains(&start) {
        return Err(WrongUsage("--start-at is outside the years 1 to 9999".to_owned()).into());
    }
    let step = match options.rate {
        0.0 => UNPACED_STEP,
        rate => Duration::from_secs_f64(1.0 / rate),
    };
    let step = step.as_micros() as i64;
    let reports = match (options.count, options.lasting) {
        (Some(count), _) => i64::try_from(count.saturating_sub(1)).unwrap_or(i64::MAX),
        (None, Some(lasting)) => (lasting.as_secs_f64() * options.rate) as i64,
        (None, None) => 0,
    };
    let last = start.saturating_add(step.saturating_mul(reports));
    if !schemas::REPORTED_AT_MICROS.contains(&last) {
        return Err(WrongUsage(
            "--start-at is so late that the last report would be behind the year 9999".to_owned(),
        )
        .into());
    }
    Ok(Clock::From { start, step })
}

async fn simulate(
    options: &Options,
    simulation: &mut Simulation,
    reports: &mut PacedReports,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let count = options.count.unwrap_or(u64::MAX);
    let begun = Instant::now();
    let mut sent = 0;
    while sent < count && !shutdown.is_cancelled() {
        let mut elapsed = begun.elapsed();
        // At the end, send everything that was due, however late this loop is.
        let over = options.lasting.filter(|lasting| elapsed >= *lasting);
        elapsed = over.unwrap_or(elapsed);
        let due = match options.rate {
            0.0 if over.is_some() => sent,
            0.0 => u64::MAX,
            // The first one immediately.
            rate => ((elapsed.as_secs_f64() * rate).ceil() as u64).max(1),
        };
        let until = due.min(count).min(sent + BURST);
        for number in sent..until {
            let report = simulation.next_report();
            if !reports.send(report, number as usize).await? {
                return Ok(());
            }
        }
        all_fit(reports)?;
        sent = sent.max(until);
        if sent < due {
            tokio::task::yield_now().await;
        } else if over.is_some() {
            break;
        } else {
            let mut next = begun + elapsed + TICK;
            if options.rate < 100.0 {
                let wait = Duration::try_from_secs_f64(due as f64 / options.rate);
                next = wait.map_or(next, |wait| begun + wait);
            }
            if let Some(lasting) = options.lasting {
                next = next.min(begun + lasting);
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = sleep_until(next) => {}
            }
        }
    }
    Ok(())
}
