//! Health of a service: whether it makes progress.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::words::counted;

/// A service that commits nothing for this long although records wait is not ready.
const STALLED_AFTER: Duration = Duration::from_secs(30);
/// A service is not ready if it reads nothing for this long from a partition where records wait, even if
/// other partitions progress.
const PARTITION_STALLED_AFTER: Duration = Duration::from_secs(60);

/// State of a service. It is ready while it is a member of its group, brokers are connected, it has committed
/// or had nothing to do within the last 30 s, and no partition with records to read has been without progress
/// for 60 s.
#[derive(Debug)]
pub struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    progressed: Instant,
    connected: bool,
    joined: bool,
    /// Read position of each partition, and since when it has not changed although records wait.
    partitions: BTreeMap<i32, (Reading, Instant)>,
    /// The dependency that the service waits for, if any.
    waiting_for: Option<String>,
}

/// Read position of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The next offset to deliver to the service; negative before the first record.
    pub position: i64,
    /// Offsets from there to the last stable offset; `None` if unknown.
    pub lag: Option<i64>,
}

impl Default for Health {
    fn default() -> Self {
        Self(Mutex::new(State {
            progressed: Instant::now(),
            connected: false,
            joined: false,
            partitions: BTreeMap::new(),
            waiting_for: None,
        }))
    }
}

impl Health {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that work was committed.
    pub fn progressed(&self) {
        let mut state = self.state();
        state.progressed = Instant::now();
        state.waiting_for = None;
    }

    /// Records that a dependency is unavailable, e.g. "the database: connection refused", until
    /// [`answered`](Self::answered) or [`progressed`](Self::progressed).
    pub fn waiting_for(&self, what: String) {
        self.state().waiting_for = Some(what);
    }

    /// Records that all dependencies answer (again).
    pub fn answered(&self) {
        self.state().waiting_for = None;
    }

    /// Takes the state of the Kafka client, about once a second. A program outside any group passes `joined`
    /// = true and no partitions.
    pub fn observed(&self, connected: bool, joined: bool, partitions: BTreeMap<i32, Reading>) {
        self.observed_at(Instant::now(), connected, joined, partitions);
    }

    fn observed_at(
        &self,
        now: Instant,
        connected: bool,
        joined: bool,
        partitions: BTreeMap<i32, Reading>,
    ) {
        let mut state = self.state();
        let idle = partitions.values().all(|reading| reading.lag == Some(0));
        if connected && idle && state.waiting_for.is_none() {
            state.progressed = now;
        }
        let waits = state.waiting_for.is_some();
        let known = std::mem::take(&mut state.partitions);
        state.partitions = partitions
            .into_iter()
            .map(|(partition, reading)| {
                let since = match known.get(&partition) {
                    // While the service waits for a dependency, no partition is the cause.
                    Some((last, since))
                        if reading.lag != Some(0)
                            && last.position == reading.position
                            && !waits =>
                    {
                        *since
                    }
                    _ => now,
                };
                (partition, (reading, since))
            })
            .collect();
        (state.connected, state.joined) = (connected, joined);
    }

    /// Whether the service is ready.
    ///
    /// # Errors
    /// The reason why not, for people.
    pub fn ready(&self) -> Result<(), String> {
        self.ready_at(Instant::now())
    }

    fn ready_at(&self, now: Instant) -> Result<(), String> {
        let state = self.state();
        if let Some(what) = &state.waiting_for {
            return Err(format!("waiting for {what}"));
        }
        if !state.connected {
            return Err("no broker is connected".to_owned());
        }
        if !state.joined {
            return Err("not a member of the consumer group (yet)".to_owned());
        }
        let idle = now.saturating_duration_since(state.progressed);
        if idle > STALLED_AFTER {
            let lags = state.partitions.values().map(|(reading, _)| reading.lag);
            let lag: Option<i64> = lags.sum();
            return Err(format!(
                "{} {} and nothing was committed for {} s",
                shown(lag),
                if lag == Some(1) { "waits" } else { "wait" },
                idle.as_secs()
            ));
        }
        for (partition, (reading, since)) in &state.partitions {
            let still = now.saturating_duration_since(*since);
            if still > PARTITION_STALLED_AFTER {
                return Err(format!(
                    "partition {partition} has made no progress at offset {} for {} s, with {} to read",
                    reading.position,
                    still.as_secs(),
                    shown(reading.lag)
                ));
            }
        }
        Ok(())
    }
}

/// A lag, for people.
fn shown(lag: Option<i64>) -> String {
    lag.map_or("an unknown number of records".to_owned(), |lag| {
        counted(lag, "record")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_without_progress_is_named_even_if_the_others_progress() {
        let health = Health::default();
        let begun = Instant::now();
        let mut ready = Ok(());
        for second in 0..=70 {
            let now = begun + Duration::from_secs(second);
            health.progressed();
            let moving = Reading {
                position: second as i64,
                lag: Some(5),
            };
            let stuck = Reading {
                position: 7,
                lag: Some(1 + second as i64),
            };
            let caught_up = Reading {
                position: 9,
                lag: Some(0),
            };
            let partitions = [(0, moving), (1, stuck), (2, caught_up)].into();
            health.observed_at(now, true, true, partitions);
            // Commits continue, so only the partition is at fault.
            health.state().progressed = now;
            ready = health.ready_at(now);
            assert_eq!(ready.is_ok(), second <= 60, "{ready:?} after {second} s");
        }
        let why = ready.unwrap_err();
        assert!(
            why.contains("partition 1 has made no progress at offset 7 for 70 s"),
            "{why}"
        );
        let moved = Reading {
            position: 8,
            lag: Some(70),
        };
        let now = begun + Duration::from_secs(71);
        health.observed_at(now, true, true, [(1, moved)].into());
        assert_eq!(health.ready_at(now), Ok(()));
    }

    #[test]
    fn a_wait_is_named_and_stalls_no_partition() {
        let health = Health::default();
        let begun = Instant::now();
        let stuck = Reading {
            position: 7,
            lag: Some(1),
        };
        health.observed_at(begun, true, true, [(0, stuck)].into());
        health.waiting_for("the database".to_owned());
        let later = begun + Duration::from_secs(600);
        health.observed_at(later, true, true, [(0, stuck)].into());
        assert_eq!(
            health.ready_at(later),
            Err("waiting for the database".to_owned())
        );
        health.progressed();
        health.state().progressed = later;
        assert_eq!(health.ready_at(later), Ok(()));
    }
}
