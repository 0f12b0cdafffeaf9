//! The one poll of the database that serves all clients and the gauges.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::fares::{Counted, Fares, Levels};
use super::gauges::Gauges;
use super::hub::Hub;
use super::ring;
use crate::query::{Changes, QueryError, Reader, Thresholds, Tracker};
use crate::store::Database;

/// From one poll to the next while somebody listens, ...
const PAUSE: Duration = Duration::from_secs(1);
/// ... while nobody does, ...
const PAUSE_UNHEARD: Duration = Duration::from_secs(15);
/// ... and from the end of one to the next as many times as it took: a database for which this is much work is asked less
/// often.
const PAUSE_SHARE: u32 = 9;
/// The gauges are at least as old as this ...
const GAUGES: Duration = Duration::from_secs(15);
/// ... but for those of tasks that are stalled, which take the histories of tasks: as old as this, or this many times
/// as old as it takes to read them.
const STALLED: Duration = Duration::from_secs(60);
const STALLED_SHARE: u32 = 50;
/// The database itself ends a query that takes longer.
const QUERY_LIMIT: Duration = Duration::from_secs(10);
const STALLED_LIMIT: Duration = Duration::from_secs(60);
/// A poll, which is several queries, may take so long.
const POLL_LIMIT: Duration = Duration::from_secs(30);

/// Polls until it is told to stop. Then all streams end.
pub(crate) async fn poll(hub: Arc<Hub>, database: Database, stop: CancellationToken) {
    let gauges = Mutex::default();
    let polling = join(
        follow(&hub, &database, &gauges),
        count_stalled(&hub, &database, &gauges),
    );
    stop.run_until_cancelled(polling).await;
    hub.close();
}

/// Does not end.
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
            .and_then(|done| done.map_err(|e| told(&e)))
        {
            Ok(()) => {
                if std::mem::take(&mut is_away) {
                    tracing::info!("the changes of tasks can be read again");
                }
                let rest = Instant::now() + begun.elapsed() * PAUSE_SHARE;
                sleep_until(rest.max(begun + PAUSE)).await;
            }
            Err(why) => {
                hub.away();
                lock(gauges).forget();
                hub.note(|fares| *fares = Fares::default());
                poll.gauges_at = Instant::now();
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!("the changes of tasks cannot be read, trying again: {why}");
                }
                // How long it was waited for says nothing of how much work it is.
                sleep_until(Instant::now() + PAUSE).await;
            }
        }
        if !hub.is_heard() {
            // A first client does not wait for its turn.
            let _ = timeout_at(begun + PAUSE_UNHEARD, hub.wanted.notified()).await;
        }
    }
}

struct Poll<'a> {
    hub: &'a Hub,
    database: &'a Database,
    /// `None` where the last poll failed.
    reader: Option<Reader>,
    tracker: Option<Tracker>,
    gauges: &'a Mutex<Gauges>,
    gauges_at: Instant,
}

impl Poll<'_> {
    async fn once(&mut self, begun: Instant) -> Result<(), QueryError> {
        // What fails half way is not used again.
        let mut reader = match self.reader.take() {
            Some(mut reader) => {
                reader.renew().await?;
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
                    .tell(changes.into_iter().map(Arc::new).collect(), upto, begun);
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
            self.hub.note(|fares| fares.levels = Some(counted));
            self.gauges_at = begun + GAUGES;
        }
        reader.rest().await?;
        self.reader = Some(reader);
        Ok(())
    }
}

/// On a connection of its own, so that no change waits for it. Does not end.
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
        match counted.and_then(|counted| counted.map_err(|error| told(&error))) {
            Ok(counts) => {
                let each = counts.iter().map(|(.., count)| count.unsigned_abs());
                let stalled = Counted::now(each.sum());
                hub.note(|fares| fares.stalled = Some(stalled));
                lock(gauges).set_stalled(counts);
                if std::mem::take(&mut is_away) {
                    tracing::info!("tasks that get no further are counted again");
                }
                let rest = Instant::now() + begun.elapsed() * STALLED_SHARE;
                sleep_until(rest.max(begun + STALLED)).await;
            }
            Err(why) => {
                lock(gauges).forget_stalled();
                hub.note(|fares| fares.stalled = None);
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!(
                        "tasks that get no further cannot be counted, trying again: {why}"
                    );
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

fn told(error: &QueryError) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
