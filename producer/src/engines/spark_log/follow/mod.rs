//! `producer spark-log --follow`: logs that are being written.
//!
//! ```text
//! PATH… ─▶ Source (a thread: looks, reads in turns) ─▶ Reading (lines → new reports) ─▶ Step ─▶ Checkpointed
//!           one for each folder                        behind the checkpoint             a Kafka transaction
//! ```
//!
//! A report's sequence follows from the log's lines alone, never from the time or from how much was there at once. So a
//! log that is read again from its start, after a restart or to free memory, gives the same reports; those up to its
//! checkpoint are left out. Reports and checkpoints are committed together: none is lost, none comes twice.
//!
//! | Seen | Done |
//! | --- | --- |
//! | a file grows | what was written whole is read; the rest is waited for |
//! | a log is renamed, as `.inprogress`, or moved | it goes on |
//! | a file is shorter than before, or another one under the same name | the path is identified anew; the same log is read again from its start, up to the checkpoint |
//! | that is another application's log | it has its own checkpoint; the log that was there has gone |
//! | files are compacted into one | the same; numbers go on behind the highest that was used |
//! | the application's end, and nothing more for 2 s | the final status, once |
//! | a newer attempt has a log, and nothing more for 30 s | `Failed` if a job failed, else `Unknown`, once |
//! | nothing more for `--give-up-after` | `Unknown`, once; goes on if the log does |
//! | a log has gone | as one that does not grow; its attempt can be reported from another log |
//! | a folder cannot be searched, a file cannot be read now | nothing; tried again |

mod checkpoint;
mod followed;
mod index;
mod reading;
mod source;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use service::words::counted;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval, timeout, timeout_at};

use self::checkpoint::Checkpoint;
use self::index::Index;
use self::reading::Step;
use self::source::{Manner, Source};
use super::{Options, Stopped, pace};
use crate::checkpointed::{Batch, foreign};
use crate::session::{CheckpointedReports, Session, Setup};

/// Metric: logs whose application has not ended, as far as known.
pub(crate) const FOLLOWED: &str = "taskrunning_followed_event_logs";

/// Steps that wait between the threads that read and the connection to Kafka. Each may hold a MiB.
const STEPS_WAITING: usize = 16;
/// How long reports wait for others of the same transaction.
const LINGER: Duration = Duration::from_millis(200);
/// Threads that read.
const SOURCES_MAX: usize = 16;
/// How often to look for checkpoints that are old.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How long to wait for the threads after a signal. One may hang in a filesystem that does not answer.
const LAST_STEPS: Duration = Duration::from_secs(1);

/// Follows logs until a signal comes, with `--until-ended` until every application has ended. Prints
/// `sent 98 reports of 4 tasks from 3 logs`. Returns whether all logs could be read and no line was bad.
///
/// # Errors
/// If a topic or a right is missing, or another process uses the same checkpoints.
pub(super) async fn run(options: Options, setup: Setup) -> anyhow::Result<bool> {
    let checkpoints = options.checkpoints_topic.clone();
    let checkpoints =
        checkpoints.unwrap_or_else(|| format!("{}-spark-log-checkpoints", setup.topic));
    let Some(session) = Session::open(&setup).await? else {
        return Ok(true);
    };
    let Some(mut reports) = session.checkpointed(&checkpoints).await? else {
        return Ok(true);
    };
    let Some(stored) = reports.stored().await? else {
        return Ok(true);
    };
    let index = Arc::new(Index::default());
    for stored in stored {
        let checkpoint = Checkpoint::from_bytes(&stored.value);
        let checkpoint = checkpoint
            .map_err(|error| foreign(&checkpoints, &format!("{}: {error}", stored.key)))?;
        index.insert(stored.key, checkpoint, stored.written_ms);
    }

    let (give, mut given) = mpsc::channel::<Step>(STEPS_WAITING);
    let groups = groups(&options.path);
    let manner = Manner {
        pace: pace(&options),
        poll_interval: options.poll_interval,
        give_up_after: options.give_up_after,
        until_ended: options.until_ended,
        sources: groups.len(),
    };
    let mut stops = Vec::new();
    let mut threads = Vec::new();
    for (number, paths) in groups.into_iter().enumerate() {
        let source = Source::new(number, paths, manner, index.clone());
        let (stop, stopped) = std::sync::mpsc::channel();
        let give = give.clone();
        stops.push(stop);
        threads.push(spawn_blocking(move || {
            source.follow(&stopped, &mut |step| {
                give.blocking_send(step).map_err(|_| Stopped)
            });
        }));
    }
    drop(give);

    let mut account = Account::default();
    let sent = send(&mut reports, &mut given, &index, &setup, &mut account).await;
    drop(stops);
    drop(given);
    for thread in threads {
        if let Ok(ended) = timeout(LAST_STEPS, thread).await {
            ended?;
        }
    }
    let rest = format!(
        " of {} from {}",
        counted(account.tasks, "task"),
        counted(account.logs.len(), "log")
    );
    let concluded = reports.conclude(&rest);
    sent?;
    concluded?;
    Ok(!options.until_ended || !index.is_at_fault())
}

/// What was sent, for the account.
#[derive(Default)]
struct Account {
    tasks: u64,
    /// Of their keys, hashes.
    logs: HashSet<u64>,
}

/// Commits steps until there are no more, or a signal comes.
async fn send(
    reports: &mut CheckpointedReports,
    given: &mut mpsc::Receiver<Step>,
    index: &Index,
    setup: &Setup,
    account: &mut Account,
) -> anyhow::Result<()> {
    let mut ticks = interval(Duration::from_secs(1));
    let mut keep_up_at = Instant::now() + UPKEEP_INTERVAL;
    loop {
        let step = tokio::select! {
            biased;
            () = setup.shutdown.cancelled() => return Ok(()),
            step = given.recv() => step,
            _ = ticks.tick() => {
                reports.settled();
                if Instant::now() < keep_up_at {
                    continue;
                }
                keep_up_at = Instant::now() + UPKEEP_INTERVAL;
                if !keep_up(reports, index).await? {
                    return Ok(());
                }
                continue;
            }
        };
        let Some(step) = step else {
            return Ok(());
        };
        let mut batch = Batch::default();
        let mut next = Some(step);
        let until = Instant::now() + LINGER;
        while let Some(step) = next {
            for report in &step.reports {
                account.tasks += u64::from(report.sequence == 0);
                reports.add(&mut batch, report).await?;
            }
            account.note(&step.key);
            batch.checkpoint(step.key, Some(step.checkpoint.to_bytes()));
            next = match batch.is_full() {
                true => None,
                false => timeout_at(until, given.recv()).await.ok().flatten(),
            };
        }
        if !reports.commit(&mut batch).await? {
            return Ok(());
        }
    }
}

/// Writes checkpoints again whose logs are still there, and removes those that are not needed any more. Returns whether
/// it is done; a signal may come before.
async fn keep_up(reports: &mut CheckpointedReports, index: &Index) -> anyhow::Result<bool> {
    let mut batch = Batch::default();
    let mut due = index.upkeep().into_iter().peekable();
    while let Some((key, checkpoint)) = due.next() {
        batch.checkpoint(key, checkpoint.as_ref().map(Checkpoint::to_bytes));
        if batch.is_full() || due.peek().is_none() {
            if !reports.commit(&mut batch).await? {
                return Ok(false);
            }
            batch = Batch::default();
        }
    }
    Ok(true)
}

impl Account {
    fn note(&mut self, key: &str) {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        self.logs.insert(hash);
    }
}

/// Paths that are followed together: each folder by itself, files with those of the same folder.
fn groups(paths: &[PathBuf]) -> Vec<Vec<PathBuf>> {
    let mut by_folder: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for path in paths {
        let folder = match (path.is_dir(), path.parent()) {
            (false, Some(parent)) => parent.to_owned(),
            _ => path.clone(),
        };
        by_folder.entry(folder).or_default().push(path.clone());
    }
    let mut groups: Vec<Vec<PathBuf>> = Vec::new();
    for (number, paths) in by_folder.into_values().enumerate() {
        match number < SOURCES_MAX {
            true => groups.push(paths),
            false => groups[number % SOURCES_MAX].extend(paths),
        }
    }
    groups
}
