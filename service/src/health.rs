//! Whether a service progresses, as its health endpoints tell it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A service that commits nothing for so long although records wait is not ready.
const STALLED_AFTER: Duration = Duration::from_secs(30);

/// Whether a service progresses: it is ready while it is a member of its group, brokers are
/// connected, and it has committed or had nothing to do within the last 30 seconds.
#[derive(Debug)]
pub struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    progressed: Instant,
    connected: bool,
    joined: bool,
    /// Records behind the end that a committed reader sees, by partition.
    lag: BTreeMap<i32, i64>,
    /// What is being waited for, if something is.
    waiting_for: Option<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State {
            progressed: Instant::now(),
            connected: false,
            joined: false,
            lag: BTreeMap::new(),
            waiting_for: None,
        }))
    }
}

impl Health {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work was committed.
    pub fn progressed(&self) {
        let mut state = self.state();
        state.progressed = Instant::now();
        state.waiting_for = None;
    }

    /// Something outside is away, e.g. "the database: connection refused". Cleared by
    /// [`progressed`](Self::progressed).
    pub fn waiting_for(&self, what: String) {
        self.state().waiting_for = Some(what);
    }

    /// What the Kafka client says of itself, about once a second. A program that is no member of a
    /// group says `joined`, and no lag.
    pub fn observed(&self, connected: bool, joined: bool, lag: BTreeMap<i32, i64>) {
        let mut state = self.state();
        if connected && lag.values().all(|behind| *behind == 0) && state.waiting_for.is_none() {
            state.progressed = Instant::now();
        }
        (state.connected, state.joined, state.lag) = (connected, joined, lag);
    }

    /// Ready, or why not.
    ///
    /// # Errors
    /// The reason, for a person.
    pub fn ready(&self) -> Result<(), String> {
        let state = self.state();
        if let Some(what) = &state.waiting_for {
            return Err(format!("waiting for {what}"));
        }
        if !state.connected {
            return Err("no broker is connected".to_owned());
        }
        if !state.joined {
            return Err("not (yet) a member of the consumer group".to_owned());
        }
        let idle = state.progressed.elapsed();
        if idle > STALLED_AFTER {
            let lag: i64 = state.lag.values().sum();
            return Err(format!(
                "{lag} records wait and nothing was committed for {} s",
                idle.as_secs()
            ));
        }
        Ok(())
    }
}
