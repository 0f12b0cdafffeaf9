//! `consumer expire`: removes old history while consumers keep running.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use service::backoff::Backoff;
use service::exit::WrongUsage;
use service::output;
use service::text::to_json_pretty;
use service::time::age;
use service::warn_of_change;
use service::words::agreed;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::failure::Failure;
use crate::store::{Database, DatabaseOptions, Expiring, Step, StoreError};
use crate::tables::Table;

/// Maximum number of attempts per piece: about half a minute.
const MAX_TRIES: u32 = 12;

/// Options of `consumer expire`.
#[derive(Clone, Debug, clap::Args)]
pub struct ExpireOptions {
    /// Remove what was reported longer ago than this, by the engines' clocks: 30d, 12h, 8w
    #[arg(long, value_name = "AGE", value_parser = age)]
    pub older_than: SignedDuration,

    /// Only count the rows that would be removed
    #[arg(long)]
    pub dry_run: bool,

    /// Allow removing history of the last day
    #[arg(long)]
    pub yes: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

impl ExpireOptions {
    /// Rejects an age that reaches before the year 1. Rejects an age below one day unless it is confirmed: `1m` is a
    /// minute, not a month.
    ///
    /// # Errors
    /// States the reason and what to type.
    pub fn check(&self) -> Result<(), WrongUsage> {
        self.before()?;
        if self.older_than >= SignedDuration::from_hours(24) || self.dry_run || self.yes {
            return Ok(());
        }
        Err(WrongUsage(format!(
            "--older-than {:#} removes all but the last {:#}, which is less than a day (m is minutes; write months in \
             days, as in 30d); add --yes to remove it, or --dry-run to count it",
            self.older_than, self.older_than,
        )))
    }

    /// Reports before this time are removed.
    fn before(&self) -> Result<Timestamp, WrongUsage> {
        Timestamp::now()
            .checked_sub(self.older_than)
            .and_then(|before| Timestamp::from_microsecond(before.as_microsecond()))
            .ok()
            .filter(|before| before.as_microsecond() > FIRST_MICROS)
            .ok_or_else(|| {
                WrongUsage(
                    "--older-than: reaches back before the year 1; give a smaller age".into(),
                )
            })
    }
}

/// The result that is printed.
#[derive(Debug, Serialize)]
struct Report {
    database: String,
    reported_before: Timestamp,
    dry_run: bool,
    /// Whether the tables were walked to the end.
    finished: bool,
    /// Rows removed (or counted, in a dry run), by table.
    rows: BTreeMap<&'static str, u64>,
    seconds: f64,
    longest_transaction_ms: u64,
}

/// Removes what was reported before a time: rows of the histories, and tasks whose newest state is older and that have
/// no history left. Ends early when `stop` is cancelled; what was removed by then stays removed. Prints the result.
///
/// # Errors
/// If the database does not exist, has no tables, or stays unavailable.
pub async fn expire(
    asked: ExpireOptions,
    database: &DatabaseOptions,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let before = asked.before()?;
    let database = Database::parse(database)?;
    let place = database.place();
    let mut removing = Removing {
        database: &database,
        before,
        dry_run: asked.dry_run,
        expiring: None,
        stop: &stop,
        bar: bar(),
        longest: Duration::ZERO,
        divisor: 1,
        rows: BTreeMap::new(),
    };
    let begun = Instant::now();
    let walked = match asked.dry_run {
        true => removing.count().await,
        false => removing.walk().await,
    };
    removing.bar.finish_and_clear();
    let report = Report {
        database: place.clone(),
        reported_before: before,
        dry_run: asked.dry_run,
        finished: matches!(walked, Ok(true)),
        rows: removing.rows,
        seconds: begun.elapsed().as_secs_f64(),
        longest_transaction_ms: removing.longest.as_millis() as u64,
    };
    // A failure before the first row leaves nothing to report.
    if asked.json || walked.is_ok() || report.rows.values().any(|rows| *rows > 0) {
        report.print(asked.json)?;
    }
    let finished = walked
        .map_err(|error| Failure::of(error, &place).into_error())
        .with_context(|| format!("removing history from {place}"))?;
    if !finished {
        tracing::info!("stopped before the end; run the same command again to remove the rest");
    }
    Ok(())
}

/// The year 1: before it, PostgreSQL's literals and RFC 3339 differ.
const FIRST_MICROS: i64 = -62_135_596_800_000_000;

struct Removing<'a> {
    database: &'a Database,
    before: Timestamp,
    dry_run: bool,
    /// `None` until the first attempt, and after a failure.
    expiring: Option<Expiring>,
    stop: &'a CancellationToken,
    bar: ProgressBar,
    longest: Duration,
    /// Divides the size of every piece.
    divisor: i64,
    rows: BTreeMap<&'static str, u64>,
}

impl Removing<'_> {
    /// Counts what a walk would remove, in one snapshot. A snapshot ends with its connection, so an error restarts the
    /// count.
    async fn count(&mut self) -> Result<bool, StoreError> {
        let (mut backoff, mut tries) = (Backoff::default(), 1);
        loop {
            let error = match self.walk().await {
                Err(error @ (StoreError::Retry(_) | StoreError::TooLong(_)))
                    if tries < MAX_TRIES =>
                {
                    error
                }
                walked => return walked,
            };
            if matches!(error, StoreError::TooLong(_)) {
                self.divisor *= 4;
            }
            warn_of_change!("{}: {error}; restarting the count", self.database.place());
            tries += 1;
            (self.expiring, self.rows) = (None, BTreeMap::new());
            self.bar.reset();
            self.bar.set_length(0);
            self.pause(backoff.pause()).await;
        }
    }

    /// Removes (or counts) piece by piece. Returns whether it reached the end.
    async fn walk(&mut self) -> Result<bool, StoreError> {
        let begun = async {
            let mut expiring = Expiring::open(self.database, self.before, self.dry_run).await?;
            let mut extents = Vec::new();
            // Tasks last: a task is removed once its history is gone.
            for table in Table::ALL {
                extents.push((table, expiring.extent(table).await?));
            }
            Ok::<_, StoreError>((expiring, extents))
        };
        let (expiring, walks) = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Ok(false),
            begun = begun => begun?,
        };
        for (table, extent) in &walks {
            self.bar.inc_length((extent.end - extent.start) as u64);
            self.rows.insert(table.name(), 0);
        }
        self.expiring = Some(expiring);
        for (table, extent) in walks {
            self.bar.set_message(table.name());
            let mut next = (!extent.is_empty()).then_some(extent.start);
            while let Some(from) = next {
                let Some(step) = self.step(table, from, extent.end).await? else {
                    return Ok(false);
                };
                *self.rows.entry(table.name()).or_default() += step.rows;
                let upto = step.next.unwrap_or(extent.end);
                self.bar.inc((upto - from) as u64);
                next = step.next;
            }
        }
        Ok(true)
    }

    /// Removes one piece; retries while the database is unavailable or busy. `None`: stopped.
    async fn step(
        &mut self,
        table: Table,
        from: i64,
        end: i64,
    ) -> Result<Option<Step>, StoreError> {
        let (mut backoff, mut divisor, mut tries) = (Backoff::default(), self.divisor, 0);
        while !self.stop.is_cancelled() {
            tries += 1;
            let error = match self.try_step(table, from, end, divisor).await {
                Ok(None) => break,
                Ok(Some(step)) => {
                    self.longest = self.longest.max(step.held);
                    // Leaves half of the time to writers. A dry run does not pause: its snapshot blocks nobody, but
                    // keeps vacuum from cleaning up, so it should end soon.
                    if !self.dry_run {
                        self.pause(step.held).await;
                    }
                    return Ok(Some(step));
                }
                Err(error) => error,
            };
            match &error {
                _ if self.dry_run => return Err(error),
                StoreError::TooLong(_) => divisor *= 4,
                StoreError::Retry(_) => {}
                _ => return Err(error),
            }
            if tries == MAX_TRIES {
                return Err(error);
            }
            warn_of_change!("{}: {error}; retrying", self.database.place());
            self.pause(backoff.pause()).await;
        }
        Ok(None)
    }

    /// `None`: stopped while connecting.
    async fn try_step(
        &mut self,
        table: Table,
        from: i64,
        end: i64,
        divisor: i64,
    ) -> Result<Option<Step>, StoreError> {
        let mut expiring = match self.expiring.take() {
            Some(expiring) => expiring,
            None => tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(None),
                opened = Expiring::open(self.database, self.before, self.dry_run) => opened?,
            },
        };
        expiring.divisor = divisor;
        let step = expiring.step(table, from, end, self.dry_run).await?;
        // Kept only on success: a failed connection may be in the middle of a transaction.
        self.expiring = Some(expiring);
        Ok(Some(step))
    }

    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = sleep(pause) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

impl Report {
    fn print(&self, json: bool) -> anyhow::Result<()> {
        let text = match json {
            true => format!("{}\n", to_json_pretty(self)?),
            false => self.text(),
        };
        match self.dry_run {
            true => output::print(&text)?,
            false => output::account(&text),
        }
        Ok(())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (table, rows) in &self.rows {
            text.push_str(&format!(
                "{rows:>12} {} of {table}\n",
                agreed(*rows, "row", "rows")
            ));
        }
        let (database, before) = (&self.database, self.reported_before);
        let done = match (self.dry_run, self.finished) {
            (true, true) => "would be removed",
            (true, false) => "would be removed (count incomplete)",
            (false, true) => "removed",
            (false, false) => "removed so far",
        };
        text.push_str(&match self.rows.values().all(|rows| *rows == 0) {
            true => format!("nothing {done} from {database} (reports before {before:.6})\n"),
            false => format!("{done} from {database}: reports before {before:.6}\n"),
        });
        text
    }
}

/// Hidden if standard error is not a terminal.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>13} {wide_bar} {percent} %, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_below_a_day_takes_a_yes() {
        let asked = |age: &str, dry_run, yes| ExpireOptions {
            older_than: self::age(age).unwrap(),
            dry_run,
            yes,
            json: false,
        };
        for age in ["1m", "0s", "23h 59m 59s"] {
            let refused = asked(age, false, false).check().unwrap_err().to_string();
            assert!(refused.contains("add --yes"), "{age}: {refused}");
            asked(age, true, false).check().unwrap();
            asked(age, false, true).check().unwrap();
        }
        let refused = asked("1m", false, false).check().unwrap_err().to_string();
        assert!(
            refused.starts_with("--older-than 1m removes all but the last 1m"),
            "{refused}"
        );
        asked("24h", false, false).check().unwrap();
    }
}
