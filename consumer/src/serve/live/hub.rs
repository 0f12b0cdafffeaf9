//! Distributes the changes that a poll finds to all clients.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, broadcast, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::counts::TaskCounts;
use super::event;
use super::ring::{Resume, Ring};
use super::scope::Scope;
use crate::query::{Change, Watermark};

/// Maximum number of clients.
pub(super) const STREAMS: usize = 2_000;
/// Polls whose changes are buffered for a slow client; with one more it is disconnected.
const POLLS_BEHIND: usize = 8;
/// Interval of heartbeats. Proxies close idle streams after half a minute or more (the HTML standard advises 15 s).
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client whose watermark is ahead waits for the poll that catches up. A poll is due by then.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Connects the poll with the clients.
pub(crate) struct Hub {
    state: Mutex<State>,
    streams: Arc<Semaphore>,
    heartbeat: Duration,
    /// A client wants the next poll.
    pub(super) wanted: Notify,
    /// Start time of the last successful poll.
    polled: watch::Sender<Option<Instant>>,
    counts: Mutex<TaskCounts>,
}

struct State {
    /// `None` until the first successful poll.
    ring: Option<Ring>,
    /// The last poll failed.
    is_unavailable: bool,
    /// `None` after shutdown has begun.
    sender: Option<broadcast::Sender<Broadcast>>,
}

/// A message to all clients.
#[derive(Clone)]
enum Broadcast {
    Changes(Arc<Batch>),
    /// Clients must reload: changes before this watermark are unknown.
    Reset(Arc<Watermark>),
}

/// The changes of one poll.
struct Batch {
    changes: Vec<Arc<Change>>,
    upto: Watermark,
    /// The encoded events of each scope.
    events: Mutex<HashMap<Scope, Arc<[Bytes]>>>,
}

impl Batch {
    /// Encodes the changes once per scope.
    fn events(&self, scope: &Scope) -> Arc<[Bytes]> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoded) = events.get(scope) {
            return encoded.clone();
        }
        let encoded: Arc<[Bytes]> = event::tasks(&self.changes, scope, &self.upto).into();
        events.insert(scope.clone(), encoded.clone());
        encoded
    }
}

/// Why a client gets no stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The maximum number of clients is reached.
    TooManyStreams,
    /// No poll has succeeded yet, the last one failed, or the program is shutting down.
    Unavailable,
}

impl Default for Hub {
    fn default() -> Self {
        Self::with(STREAMS, HEARTBEAT)
    }
}

impl Hub {
    /// The latest counts of tasks.
    pub(crate) fn counts(&self) -> TaskCounts {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Updates the counts.
    pub(super) fn note(&self, change: impl FnOnce(&mut TaskCounts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn with(streams: usize, heartbeat: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                ring: None,
                is_unavailable: false,
                sender: Some(broadcast::channel(POLLS_BEHIND).0),
            }),
            streams: Arc::new(Semaphore::new(streams)),
            heartbeat,
            wanted: Notify::new(),
            polled: watch::Sender::new(None),
            counts: Mutex::default(),
        }
    }

    /// Whether there are clients.
    pub(super) fn has_clients(&self) -> bool {
        let state = self.state();
        let sender = state.sender.as_ref();
        sender.is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// The end of the ring.
    #[cfg(test)]
    pub(super) fn upto(&self) -> Option<Watermark> {
        self.state().ring.as_ref().map(|ring| ring.upto().clone())
    }

    /// Publishes all changes up to this watermark, found by a poll that started at `begun`.
    pub(super) fn publish(&self, changes: Vec<Arc<Change>>, upto: Watermark, begun: Instant) {
        {
            let mut state = self.state();
            state.is_unavailable = false;
            let ring = state
                .ring
                .get_or_insert_with(|| Ring::new(super::ring::TASKS, upto.clone()));
            if !changes.is_empty() || *ring.upto() != upto {
                ring.push(&changes, &upto);
                let batch = Batch {
                    changes,
                    upto,
                    events: Mutex::default(),
                };
                state.send(Broadcast::Changes(Arc::new(batch)));
            }
        }
        self.polled.send_replace(Some(begun));
    }

    /// Restarts at this watermark: earlier changes are unknown.
    pub(super) fn begin(&self, at: Watermark, begun: Instant) {
        {
            let mut state = self.state();
            state.is_unavailable = false;
            let is_first = state.ring.is_none();
            state.ring = Some(Ring::new(super::ring::TASKS, at.clone()));
            if !is_first {
                state.send(Broadcast::Reset(Arc::new(at)));
            }
        }
        self.polled.send_replace(Some(begun));
    }

    /// Ends all streams, and starts none until a poll succeeds, because the database is unavailable. Clients resume
    /// from their last event id.
    pub(super) fn set_unavailable(&self) {
        let mut state = self.state();
        state.is_unavailable = true;
        if let Some(sender) = &mut state.sender {
            *sender = broadcast::channel(POLLS_BEHIND).0;
        }
    }

    /// Ends all streams.
    pub(super) fn close(&self) {
        self.state().sender = None;
    }

    /// A stream of the changes after this watermark; `None`: from now on.
    pub(crate) async fn join(
        &self,
        since: Option<Watermark>,
        scope: Scope,
    ) -> Result<Client, Refused> {
        let permit = self.streams.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Refused::TooManyStreams)?;
        let now = Instant::now();
        let first = self.listen(since.as_ref()).ok_or(Refused::Unavailable)?;
        self.wanted.notify_one();
        let listening = match first {
            (Resume::Ahead, _, _) => {
                // The client's list is newer than the last poll. If it is also newer than the next one, it came from
                // other tables.
                let mut polled = self.polled.subscribe();
                let caught_up = polled.wait_for(|begun| begun.is_some_and(|begun| begun >= now));
                let _ = timeout(CATCH_UP, caught_up).await;
                self.listen(since.as_ref()).ok_or(Refused::Unavailable)?
            }
            known => known,
        };
        let (resume, at, news) = listening;
        let mut first = VecDeque::from([event::hello()]);
        match resume {
            Resume::Changes(missed) => {
                first.extend(event::tasks(&missed, &scope, &at));
                first.push_back(event::heartbeat(&at));
            }
            Resume::Ahead | Resume::Lost => first.push_back(event::reset(&at)),
        }
        Ok(Client {
            scope,
            at,
            next: first,
            news,
            pause: self.heartbeat,
            heartbeat: Instant::now() + self.heartbeat,
            _permit: permit,
        })
    }

    fn listen(
        &self,
        since: Option<&Watermark>,
    ) -> Option<(Resume, Watermark, broadcast::Receiver<Broadcast>)> {
        let state = self.state();
        if state.is_unavailable {
            return None;
        }
        let (ring, sender) = (state.ring.as_ref()?, state.sender.as_ref()?);
        let resume = since.map_or(Resume::Changes(Vec::new()), |since| ring.after(since));
        Some((resume, ring.upto().clone(), sender.subscribe()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn send(&self, news: Broadcast) {
        if let Some(sender) = &self.sender {
            // There may be no receivers.
            let _ = sender.send(news);
        }
    }
}

/// The stream of one client.
pub(crate) struct Client {
    scope: Scope,
    /// Everything in scope up to here was sent or is queued.
    at: Watermark,
    next: VecDeque<Bytes>,
    news: broadcast::Receiver<Broadcast>,
    /// When the next heartbeat is due.
    heartbeat: Instant,
    pause: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Client {
    /// The next chunk of the stream; `None` ends it: the client is too slow, or the program is shutting down.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.next.pop_front() {
                return Some(bytes);
            }
            match timeout_at(self.heartbeat, self.news.recv()).await {
                Ok(Ok(Broadcast::Changes(batch))) => {
                    self.next.extend(batch.events(&self.scope).iter().cloned());
                    self.at = batch.upto.clone();
                }
                Ok(Ok(Broadcast::Reset(at))) => {
                    self.next.push_back(event::reset(&at));
                    self.at = (*at).clone();
                }
                Ok(Err(_)) => return None,
                Err(_) => self.next.push_back(event::heartbeat(&self.at)),
            }
            if !self.next.is_empty() {
                self.heartbeat = Instant::now() + self.pause;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{change, late};
    use super::*;

    const PAUSE: Duration = Duration::from_millis(20);

    fn at(text: &str) -> Watermark {
        text.parse().unwrap()
    }

    fn all() -> Scope {
        Scope::default()
    }

    fn hub() -> Hub {
        let hub = Hub::with(3, PAUSE);
        hub.begin(at("0:5"), Instant::now());
        hub
    }

    fn publish(hub: &Hub, offset: i64) {
        hub.publish(
            vec![change(offset, 0, offset)],
            at(&format!("0:{}", offset + 1)),
            Instant::now(),
        );
    }

    /// The offsets of the tasks in the next chunk; other chunks return their first line as an error.
    async fn next(client: &mut Client) -> Result<Vec<i64>, String> {
        let Some(bytes) = client.next().await else {
            return Err("end".to_owned());
        };
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let mut lines = text.lines();
        match lines.next() {
            Some("event: tasks") => {
                let data = lines.find_map(|line| line.strip_prefix("data: ")).unwrap();
                let data: serde_json::Value = serde_json::from_str(data).unwrap();
                let items = data["items"].as_array().unwrap().iter();
                Ok(items
                    .map(|item| item["event_offset"].as_i64().unwrap())
                    .collect())
            }
            other => Err(other.unwrap_or_default().to_owned()),
        }
    }

    async fn begun(hub: &Hub, since: Option<&str>) -> Client {
        let mut client = hub.join(since.map(at), all()).await.ok().unwrap();
        assert_eq!(next(&mut client).await, Err("retry: 3000".to_owned()));
        client
    }

    #[tokio::test]
    async fn each_change_reaches_each_client_once_and_in_order() {
        let hub = hub();
        publish(&hub, 5);
        let (mut from_now, mut from_before) =
            (begun(&hub, None).await, begun(&hub, Some("0:5")).await);
        assert_eq!(next(&mut from_now).await, Err(": alive".to_owned()));
        assert_eq!(next(&mut from_before).await, Ok(vec![5]));
        assert_eq!(next(&mut from_before).await, Err(": alive".to_owned()));
        for offset in [6, 7] {
            publish(&hub, offset);
        }
        hub.publish(vec![late(1, 0, 2)], at("0:8"), Instant::now());
        for client in [&mut from_now, &mut from_before] {
            for offset in [6, 7, 2] {
                assert_eq!(next(client).await, Ok(vec![offset]));
            }
            assert_eq!(next(client).await, Err(": alive".to_owned()));
        }
        // Nothing changed, so nothing is sent.
        hub.publish(Vec::new(), at("0:8"), Instant::now());
        hub.close();
        assert_eq!(next(&mut from_now).await, Err("end".to_owned()));
        assert_eq!(
            hub.join(None, all()).await.err(),
            Some(Refused::Unavailable)
        );
    }

    #[tokio::test]
    async fn irrelevant_changes_advance_the_id() {
        let hub = hub();
        let of_bob = Scope {
            user: Some("bob".to_owned()),
            ..Scope::default()
        };
        let mut client = hub.join(None, of_bob).await.ok().unwrap();
        client.next().await;
        client.next().await;
        publish(&hub, 5);
        assert_eq!(client.next().await.unwrap(), ": alive\nid: 0:6\n\n");
    }

    #[tokio::test]
    async fn a_slow_client_is_disconnected_and_resumes_without_losses() {
        let hub = hub();
        let mut slow = begun(&hub, None).await;
        assert_eq!(next(&mut slow).await, Err(": alive".to_owned()));
        let behind = 5 + POLLS_BEHIND as i64;
        for offset in 5..=behind {
            publish(&hub, offset);
        }
        assert_eq!(next(&mut slow).await, Err("end".to_owned()));
        drop(slow);
        let mut again = begun(&hub, Some("0:5")).await;
        assert_eq!(next(&mut again).await, Ok((5..=behind).collect()));
    }

    #[tokio::test]
    async fn whoever_is_ahead_waits_for_the_next_poll_and_is_reset_if_that_is_behind_too() {
        let hub = Arc::new(hub());
        let polling = hub.clone();
        let poll = tokio::spawn(async move {
            for offset in [5, 6] {
                polling.wanted.notified().await;
                publish(&polling, offset);
            }
        });
        let mut ahead = begun(&hub, Some("0:6")).await;
        assert_eq!(
            next(&mut ahead).await,
            Err(": alive".to_owned()),
            "it has seen 5"
        );
        let mut other = begun(&hub, Some("0:70")).await;
        assert_eq!(next(&mut other).await, Err("event: reset".to_owned()));
        poll.await.unwrap();
        assert_eq!(next(&mut ahead).await, Ok(vec![6]));
        drop(ahead);
        let mut lost = begun(&hub, Some("0:3")).await;
        assert_eq!(next(&mut lost).await, Err("event: reset".to_owned()));
        publish(&hub, 7);
        assert_eq!(next(&mut lost).await, Ok(vec![7]));
    }

    #[tokio::test]
    async fn the_number_of_streams_is_limited() {
        let hub = hub();
        let first = begun(&hub, None).await;
        let _others = (begun(&hub, None).await, begun(&hub, None).await);
        assert_eq!(
            hub.join(None, all()).await.err(),
            Some(Refused::TooManyStreams)
        );
        drop(first);
        let _again = begun(&hub, None).await;
    }

    #[tokio::test]
    async fn while_the_database_is_away_nobody_passes_for_informed() {
        let hub = hub();
        let mut client = begun(&hub, None).await;
        assert_eq!(next(&mut client).await, Err(": alive".to_owned()));
        hub.set_unavailable();
        assert_eq!(next(&mut client).await, Err("end".to_owned()));
        drop(client);
        assert_eq!(
            hub.join(None, all()).await.err(),
            Some(Refused::Unavailable)
        );
        publish(&hub, 5);
        let mut again = begun(&hub, Some("0:5")).await;
        assert_eq!(next(&mut again).await, Ok(vec![5]));
    }

    #[tokio::test]
    async fn tables_that_went_back_reset_everybody() {
        let hub = hub();
        let mut client = begun(&hub, None).await;
        assert_eq!(next(&mut client).await, Err(": alive".to_owned()));
        hub.begin(at("0:2"), Instant::now());
        assert_eq!(client.next().await.unwrap(), event::reset(&at("0:2")));
        assert_eq!(hub.upto(), Some(at("0:2")));
    }
}
