//! `producer spark-log`: reports on Spark applications from their event logs, with the logs' own times.
//!
//! ```text
//! PATH… ─▶ files (logs of attempts) ─▶ Reader (codec, lines) ─▶ events ─▶ Replay ─▶ PacedReports
//!                                       a thread of its own; the same bytes give the same reports
//! ```
//!
//! A log is not the application. An application whose log does not hold its end is reported as follows.
//!
//! | The log | Reported at its end |
//! | --- | --- |
//! | holds the application's end | the final status, from its jobs, as by the live adapter |
//! | does not, and a newer attempt has a log too | `Failed` if a job failed, else `Unknown` |
//! | does not, and there is no newer attempt | `Unknown`, with what was last known |
//! | lacks lines that may hold a job's failure | `Unknown` where it would be `Succeed` or `Cancelled` |
//!
//! [`follow`] has what differs for logs that are being written.

mod codec;
mod events;
mod files;
mod follow;
mod intake;
mod lines;
mod options;
mod reader;
mod replay;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use schemas::TaskRunningInfo;
use service::exit::WrongUsage;
use service::words::counted;
use tokio::sync::mpsc;

use self::events::Event;
use self::files::{Found, Log};
pub(crate) use self::follow::FOLLOWED;
use self::intake::{Halt, take_line, why_no_report};
use self::lines::{LINE_MAX_BYTES, Line};
pub use self::options::Options;
use self::reader::{Fault, Reader};
use self::replay::{Ending, Pace, Replay};
use crate::session::{Session, Setup};

/// Reports that wait between the thread that reads and the connection to Kafka. One that lists 10,000 jobs takes a MiB.
const REPORTS_WAITING: usize = 16;
/// Lines before the application's start. Spark writes it among the first ten.
const LINES_BEFORE_START: u64 = 1_000;
/// The same in bytes of text: two of the longest lines.
const BYTES_BEFORE_START: usize = 2 * LINE_MAX_BYTES;

/// Reads every log to its end, or until a signal comes, then waits for every acknowledgement and prints
/// `sent 98 reports of 4 tasks from 3 logs, 2 bad lines`. With `--follow`, goes on until a signal comes. Returns whether all logs could be read and no line was bad.
///
/// # Errors
/// If a path cannot be read, the topic does not exist, reports cannot be delivered, or a signal came before the end.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<bool> {
    if options.follow {
        return follow::run(options, setup).await;
    }
    let paths = options.path.clone();
    let shutdown = setup.shutdown.clone();
    let is_stopped = move || shutdown.is_cancelled();
    let Found { logs, left_out } =
        tokio::task::spawn_blocking(move || find(&paths, &is_stopped)).await??;
    let pace = pace(&options);
    let stopped = || anyhow!("stopped by a signal before the end of the logs");
    let session = Session::open(&setup).await?.ok_or_else(stopped)?;
    let mut reports = session.paced().await?;

    let (give, mut given) = mpsc::channel(REPORTS_WAITING);
    let reading = tokio::task::spawn_blocking(move || {
        let is_stopped = || give.is_closed();
        read_all(logs, pace, is_stopped, |reports| {
            // Also where a whole log gives no report, as with --at-end.
            if is_stopped() {
                return Err(Stopped);
            }
            let mut reports = reports.into_iter();
            reports.try_for_each(|report| give.blocking_send(report).map_err(|_| Stopped))
        })
    });
    let mut tasks = 0_u64;
    let mut number = 0;
    let sent = loop {
        let next = tokio::select! {
            biased;
            () = setup.shutdown.cancelled() => break Ok(false),
            next = given.recv() => next,
        };
        let Some(report) = next else {
            break Ok(true);
        };
        // An exec task's first report.
        tasks += u64::from(report.sequence == 0);
        number += 1;
        match reports.send(&report, number).await {
            Ok(true) => {}
            other => break other,
        }
    };
    // The thread that reads ends at its next line.
    drop(given);
    let finished = reports.finish().await;
    let read = reading.await?;
    let too_large = reports.take_too_large();
    for refused in &too_large {
        tracing::error!("a report is refused: {}", refused.reason);
    }
    let mut rest = format!(
        " of {} from {}",
        counted(tasks, "task"),
        counted(read.logs, "log")
    );
    if read.bad_lines > 0 {
        rest += &format!(", {}", counted(read.bad_lines, "bad line"));
    }
    reports.account(&rest);
    let to_end = sent?;
    finished?;
    if !to_end && !reports.reader_has_gone() {
        return Err(stopped());
    }
    if !too_large.is_empty() {
        return Err(anyhow!(
            "{} refused for their size",
            counted(too_large.len(), "report")
        ));
    }
    Ok(read.bad_lines == 0 && read.unread == 0 && left_out.is_empty())
}

fn pace(options: &Options) -> Pace {
    match options.at_end {
        true => Pace::AtEnd,
        false => Pace::Every(i64::try_from(options.interval.as_millis()).unwrap_or(i64::MAX)),
    }
}

/// The logs at `paths`. Files and folders that could not be searched are logged.
fn find(paths: &[PathBuf], is_stopped: &dyn Fn() -> bool) -> Result<Found, WrongUsage> {
    let mut all = Found {
        logs: Vec::new(),
        left_out: Vec::new(),
    };
    for path in paths {
        let found = files::logs(path, is_stopped)
            .map_err(|error| WrongUsage(format!("{}: {error}", path.display())))?;
        if found.logs.is_empty() && !is_stopped() {
            tracing::warn!("{} {NO_LOG}", path.display());
        }
        for left_out in &found.left_out {
            tracing::error!("{left_out}");
        }
        all.logs.extend(found.logs);
        all.left_out.extend(found.left_out);
    }
    Ok(all)
}

const NO_LOG: &str = "holds no event log. Spark writes logs to spark.eventLog.dir if spark.eventLog.enabled is true; a file \
                      that is empty does not count";

/// The reports are not wanted any more.
#[derive(Debug)]
struct Stopped;

/// What became of the logs.
#[derive(Debug, Default, PartialEq)]
struct Read {
    logs: u64,
    bad_lines: u64,
    /// Logs that could not be read in full, or whose attempt has another log.
    unread: u64,
}

/// A log, and of what.
struct Known {
    log: Log,
    key: String,
    application: String,
    start_ms: i64,
    /// It holds the application's start.
    has_start: bool,
    /// It holds that, or more than comes before one.
    is_certain: bool,
    /// Why it is not read any further.
    fault: Option<String>,
    /// Why it cannot be read now.
    unreadable: Option<String>,
}

/// Reads logs, those of the applications that began first before the others, unless `is_stopped` before. `give` gets each
/// line's reports, mostly none.
fn read_all(
    logs: Vec<Log>,
    pace: Pace,
    is_stopped: impl Fn() -> bool,
    mut give: impl FnMut(Vec<TaskRunningInfo>) -> Result<(), Stopped>,
) -> Read {
    let mut known = Vec::with_capacity(logs.len());
    for log in logs {
        match identify(log, &is_stopped) {
            Ok(log) => known.push(log),
            Err(Stopped) => return Read::default(),
        }
    }
    known.sort_by(|a, b| (a.start_ms, &a.log.path).cmp(&(b.start_ms, &b.log.path)));
    let mut newest: HashMap<String, i64> = HashMap::new();
    for log in &known {
        let start_ms = newest.entry(log.application.clone()).or_default();
        *start_ms = log.start_ms.max(*start_ms);
    }
    let mut read = Read::default();
    let mut keys: HashSet<String> = HashSet::new();
    for log in known {
        if !keys.insert(log.key.clone()) {
            tracing::error!(
                "{} is left out: another log is also of {}",
                log.log.path.display(),
                log.key
            );
            read.unread += 1;
            continue;
        }
        let replaced = newest.get(&log.application) > Some(&log.start_ms);
        if read_log(&log.log, pace, replaced, &mut read, &mut give).is_err() {
            break;
        }
    }
    read
}

/// Finds the application and the attempt that a log belongs to.
///
/// # Errors
/// If `is_stopped`, which is asked before each line and each piece of a file.
fn identify(log: Log, is_stopped: &(impl Fn() -> bool + ?Sized)) -> Result<Known, Stopped> {
    let mut start = None;
    let (mut lines, mut bytes) = (0, 0);
    let (mut fault, mut unreadable) = (None, None);
    if is_stopped() {
        return Err(Stopped);
    }
    // Other faults of the log are logged when it is read whole.
    let reader = log.files.first().map(|first| Reader::open(&first.path));
    if let Some(Err(error)) = &reader {
        unreadable = Some(error.to_string());
    }
    if let Some(Ok(mut reader)) = reader {
        let mut buffer = reader::buffer();
        let mut each = |number: u64, line: Line<'_>| {
            lines = number;
            if let Line::Whole(line) = line
                && events::name(line) == Some("SparkListenerApplicationStart")
            {
                // As when the log is read whole.
                let text = String::from_utf8_lossy(line);
                if let Ok(Event::ApplicationStart(event)) = events::read(text.as_bytes()) {
                    start = Some(event);
                }
            }
            match start.is_some() || number > LINES_BEFORE_START || is_stopped() {
                true => Err(Stopped),
                false => Ok(()),
            }
        };
        // A file without line feeds is as long as it likes.
        while bytes <= BYTES_BEFORE_START {
            match reader.read_piece(&mut buffer, &mut each) {
                Ok(read) if read > 0 && !is_stopped() => bytes += read,
                Err(Fault::Damage(damage)) => {
                    fault = Some(damage.to_string());
                    break;
                }
                Err(Fault::Io(error)) => {
                    unreadable = Some(error.to_string());
                    break;
                }
                Ok(_) | Err(_) => break,
            }
        }
    }
    if is_stopped() {
        return Err(Stopped);
    }
    let has_start = start.is_some();
    let is_certain = has_start || lines > LINES_BEFORE_START || bytes > BYTES_BEFORE_START;
    let name = log.name();
    let (application, attempt, start_ms) = match start {
        Some(start) => (start.id.unwrap_or(name), start.attempt, start.time),
        None => (name, None, 0),
    };
    let key = match attempt {
        Some(attempt) => format!("{application}/{attempt}"),
        None => application.clone(),
    };
    Ok(Known {
        log,
        key,
        application,
        start_ms,
        has_start,
        is_certain,
        fault,
        unreadable,
    })
}

/// Reads one log to its end.
fn read_log(
    log: &Log,
    pace: Pace,
    replaced: bool,
    read: &mut Read,
    give: &mut impl FnMut(Vec<TaskRunningInfo>) -> Result<(), Stopped>,
) -> Result<(), Stopped> {
    let shown = log.path.display();
    let mut replay = Replay::new(&log.name(), pace);
    let mut cut = log.gaps;
    if log.gaps {
        tracing::warn!("{shown} is incomplete: files of the series are missing");
    }
    let mut failed = false;
    for (file, rest) in log.files.iter().zip((0..log.files.len()).rev()) {
        let path = &file.path;
        let whole = match read_file(path, &mut replay, give) {
            Ok(true) => {
                tracing::warn!("{} ends in the middle", path.display());
                false
            }
            Ok(false) => true,
            Err(Fault::Stopped(Halt::Stopped)) => return Err(Stopped),
            Err(Fault::Stopped(Halt::NotALog)) => break,
            Err(fault) => {
                tracing::error!("{} {fault}", path.display());
                failed = true;
                false
            }
        };
        // Behind the application's end, nothing that counts is missing.
        let ends_it = rest == 0 && replay.ended;
        cut |= !whole && !ends_it;
    }
    let ending = Ending {
        replaced,
        cut,
        compacted: log.compacted,
    };
    read.bad_lines += replay.broken_lines;
    if replay.counts.events == 0 || replay.has_no_time() {
        if !failed {
            tracing::error!("{shown} {}", why_no_report(&replay));
        }
        read.unread += 1;
        return Ok(());
    }
    read.logs += 1;
    read.unread += u64::from(failed);
    let mut endings: BTreeMap<String, usize> = BTreeMap::new();
    let reports = replay.end(ending);
    for report in &reports {
        *endings.entry(report.status.to_string()).or_default() += 1;
    }
    give(reports)?;
    log_summary(&log.path, &replay, &endings);
    Ok(())
}

/// Reads a file to its end. Returns whether it ends in the middle of a frame or line.
fn read_file(
    path: &Path,
    replay: &mut Replay,
    give: &mut impl FnMut(Vec<TaskRunningInfo>) -> Result<(), Stopped>,
) -> Result<bool, Fault<Halt>> {
    let mut reader = Reader::open(path)?;
    let mut cut = false;
    let mut each = |number: u64, line: Line<'_>| {
        match take_line(path, number, &line, true, replay)? {
            Some(reports) => give(reports)?,
            None => cut = true,
        }
        Ok::<(), Halt>(())
    };
    reader.read(&mut each)?;
    let cut_frame = reader.end(&mut each).map_err(Fault::Stopped)?;
    Ok(cut | cut_frame)
}

fn log_summary(path: &Path, replay: &Replay, endings: &BTreeMap<String, usize>) {
    let counts = &replay.counts;
    let spark = replay.version.as_deref().unwrap_or("of an unknown version");
    let task_ends = counts.task_ends.iter();
    let task_ends: Vec<String> = task_ends.map(|(why, n)| format!("{why} {n}")).collect();
    let endings: Vec<String> = endings
        .iter()
        .map(|(how, n)| format!("{n} {how}"))
        .collect();
    tracing::info!(
        "{}: Spark {spark}; {}; jobs: {} started, {} succeeded, {} failed; {}; task ends: {}; application {}; its tasks: {}",
        path.display(),
        counted(counts.events, "event"),
        counts.jobs_started,
        counts.jobs_succeeded,
        counts.jobs_failed,
        counted(counts.stages_completed, "completed stage"),
        if task_ends.is_empty() {
            "none".to_owned()
        } else {
            task_ends.join(", ")
        },
        if replay.ended {
            "has ended"
        } else {
            "has not ended in this log"
        },
        endings.join(", ")
    );
}
