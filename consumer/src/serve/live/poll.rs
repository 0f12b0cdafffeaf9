//! Polls the database for all clients and for the gauges.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::counts::{Counted, Levels, TaskCounts};
use super::gauges::Gauges;
use super::hub::Hub;
use super::ring;
use crate::query::{Changes, QueryError, Reader, Thresholds, Tracker};
use crate::store::Database;

/// Interval between polls while there are clients.
const PAUSE: Duration = Duration::from_secs(1);
/// Interval between polls without clients.
const PAUSE_UNHEARD: Duration = Duration::from_secs(15);
/// The pause after a poll is at least this multiple of its duration, to limit the load on the database.
const PAUSE_SHARE: u32 = 9;
/// Minimum interval between updates of the gauges.
const GAUGES: Duration = Duration::from_secs(15);
/// Minimum interval between counts of stalled tasks, which read histories; at least this multiple of their duration.
const STALLED: Duration = Duration::from_secs(60);
const STALLED_SHARE: u32 = 50;
/// The database cancels a query that takes longer.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
const STALLED_LIMIT: Duration = Duration::from_secs(60);
/// Limit for a poll, which runs several queries.
const POLL_LIMIT: Duration = Duration::from_secs(30);

/// Polls until `stop`, then ends all streams.
pub(crate) async fn poll(hub: Arc<Hub>, database: Database, stop: CancellationToken) {
    let gauges = Mutex::default();
    let polling = join(
        follow(&hub, &database, &gauges),
        count_stalled(&hub, &database, &gauges),
    );
    stop.run_until_cancelled(polling).await;
    hub.close();
}

/// Never returns.
async fn follow(hub: &Hub, database: &Database, gauges: &Mutex<Gauges>) {
    let mut poll = Poll {
        hub,
        database,
        reader: None,
        tracker: None,
        gauges,
        gauges_at: Instant::now(),
    };
    let mut is_away = false;
    loop {
        let begun = Instant::now();
        let answered = timeout(POLL_LIMIT, poll.once(begun)).await;
        match answered
            .map_err(|_| too_long(POLL_LIMIT))
            .and_then(|done| done.map_err(|e| with_source(&e)))
        {
            Ok(()) => {
                if std::mem::take(&mut is_away) {
                    tracing::info!("the changes of tasks can be read again");
                }
                let rest = Instant::now() + begun.elapsed() * PAUSE_SHARE;
                sleep_until(rest.max(begun + PAUSE)).await;
            }
            Err(why) => {
                hub.set_unavailable();
                lock(gauges).forget();
                hub.note(|counts| *counts = TaskCounts::default());
                poll.gauges_at = Instant::now();
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!("the changes of tasks cannot be read, retrying: {why}");
                }
                // A failed poll's duration says nothing about the load.
                sleep_until(Instant::now() + PAUSE).await;
            }
        }
        if !hub.has_clients() {
            // The first client triggers a poll at once.
            let _ = timeout_at(begun + PAUSE_UNHEARD, hub.wanted.notified()).await;
        }
    }
}

struct Poll<'a> {
    hub: &'a Hub,
    database: &'a Database,
    /// `None` after a failed poll.
    reader: Option<Reader>,
    tracker: Option<Tracker>,
    gauges: &'a Mutex<Gauges>,
    gauges_at: Instant,
}

impl Poll<'_> {
    async fn once(&mut self, begun: Instant) -> Result<(), QueryError> {
        // The reader is put back only after success.
        let mut reader = match self.reader.take() {
            Some(mut reader) => {
                reader.renew_snapshot().await?;
                reader
            }
            None => Reader::open_limited(self.database, Some(QUERY_LIMIT)).await?,
        };
        let changes = match self.tracker.take() {
            Some(mut tracker) => {
                let changes = reader.changes(&mut tracker, ring::TASKS).await?;
                self.tracker = Some(tracker);
                changes
            }
            None => Changes::Unknown,
        };
        match changes {
            Changes::All(changes, upto) => {
                self.hub
                    .publish(changes.into_iter().map(Arc::new).collect(), upto, begun);
            }
            Changes::Unknown => {
                let tracker = reader.track().await?;
                self.hub.begin(tracker.upto().clone(), begun);
                self.tracker = Some(tracker);
            }
        }
        if begun >= self.gauges_at {
            let levels = reader.levels(Thresholds::default()).await?;
            lock(self.gauges).set(&levels);
            let counted = Counted::now(Levels::of(&levels));
            self.hub.note(|counts| counts.levels = Some(counted));
            self.gauges_at = begun + GAUGES;
        }
        reader.end_snapshot().await?;
        self.reader = Some(reader);
        Ok(())
    }
}

/// Uses its own connection, so as not to delay changes. Never returns.
async fn count_stalled(hub: &Hub, database: &Database, gauges: &Mutex<Gauges>) {
    let mut is_away = false;
    loop {
        let begun = Instant::now();
        let counted = async {
            let mut reader = Reader::open_limited(database, Some(STALLED_LIMIT)).await?;
            reader.stalled(Thresholds::default()).await
        };
        let counted = timeout(STALLED_LIMIT + QUERY_LIMIT, counted).await;
        let counted = counted.map_err(|_| too_long(STALLED_LIMIT));
        match counted.and_then(|counted| counted.map_err(|error| with_source(&error))) {
            Ok(counts) => {
                let each = counts.iter().map(|(.., count)| count.unsigned_abs());
                let stalled = Counted::now(each.sum());
                hub.note(|counts| counts.stalled = Some(stalled));
                lock(gauges).set_stalled(counts);
                if std::mem::take(&mut is_away) {
                    tracing::info!("stalled tasks are counted again");
                }
                let rest = Instant::now() + begun.elapsed() * STALLED_SHARE;
                sleep_until(rest.max(begun + STALLED)).await;
            }
            Err(why) => {
                lock(gauges).forget_stalled();
                hub.note(|counts| counts.stalled = None);
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!("stalled tasks cannot be counted, retrying: {why}");
                }
                sleep_until(Instant::now() + STALLED).await;
            }
        }
    }
}

fn lock(gauges: &Mutex<Gauges>) -> MutexGuard<'_, Gauges> {
    gauges.lock().unwrap_or_else(PoisonError::into_inner)
}

fn too_long(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

fn with_source(error: &QueryError) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
