//! What all sources know of the logs: their checkpoints, who reads which, and the newest attempt of each application.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::checkpoint::Checkpoint;
use super::reading::Step;

/// A checkpoint whose log is not there is kept for this long: 30 days.
const KEPT_MS: i64 = 30 * 24 * 60 * 60 * 1_000;

/// A source's number, and the path of a log.
type Claim = (usize, PathBuf);

#[derive(Default)]
pub(super) struct Index {
    state: Mutex<State>,
    at_fault: AtomicBool,
}

#[derive(Default)]
struct State {
    checkpoints: HashMap<String, Known>,
    /// Who reads the log that tells of an attempt, by the attempt's key.
    readers: HashMap<String, Claim>,
    /// The start of the newest attempt, in milliseconds, by application.
    newest_ms: HashMap<String, i64>,
}

struct Known {
    checkpoint: Checkpoint,
    /// When its log was last there, in milliseconds since 1970.
    seen_ms: i64,
}

impl Index {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, key: String, checkpoint: Checkpoint, seen_ms: i64) {
        let known = Known {
            checkpoint,
            seen_ms,
        };
        self.state().checkpoints.insert(key, known);
    }

    pub(super) fn checkpoint(&self, key: &str) -> Option<Checkpoint> {
        let state = self.state();
        let known = state.checkpoints.get(key)?;
        Some(known.checkpoint.clone())
    }

    /// Remembers what is on its way to the topic.
    pub(super) fn note(&self, step: &Step) {
        if let Some(checkpoint) = &step.checkpoint {
            self.insert(step.key.clone(), checkpoint.clone(), now_ms());
        }
    }

    /// Lets a log tell of an attempt, and notes when the attempt began. Returns the path of the log if another one, or
    /// another source, tells of it.
    pub(super) fn claim(
        &self,
        key: &str,
        application: &str,
        start_ms: i64,
        claim: Claim,
    ) -> Option<PathBuf> {
        let mut state = self.state();
        let newest_ms = state.newest_ms.entry(application.to_owned()).or_default();
        *newest_ms = start_ms.max(*newest_ms);
        match state.readers.get(key) {
            Some(other) if *other != claim => Some(other.1.clone()),
            _ => {
                state.readers.insert(key.to_owned(), claim);
                None
            }
        }
    }

    /// Whether no log tells of an attempt now.
    pub(super) fn is_free(&self, key: &str) -> bool {
        !self.state().readers.contains_key(key)
    }

    /// A log has gone.
    pub(super) fn release(&self, key: &str, claim: &Claim) {
        let mut state = self.state();
        if state.readers.get(key) == Some(claim) {
            state.readers.remove(key);
        }
        if let Some(known) = state.checkpoints.get_mut(key) {
            known.seen_ms = now_ms();
        }
    }

    /// Whether an attempt that began later has a log.
    pub(super) fn is_replaced(&self, application: &str, start_ms: i64) -> bool {
        self.state().newest_ms.get(application) > Some(&start_ms)
    }

    /// The keys of checkpoints that are not needed any more; they are forgotten.
    pub(super) fn expire(&self) -> Vec<String> {
        let mut state = self.state();
        let State {
            checkpoints,
            readers,
            newest_ms,
        } = &mut *state;
        let before_ms = now_ms() - KEPT_MS;
        let expired: Vec<String> = checkpoints
            .iter()
            .filter(|(key, known)| known.seen_ms < before_ms && !readers.contains_key(*key))
            .map(|(key, _)| key.clone())
            .collect();
        checkpoints.retain(|key, _| !expired.contains(key));
        newest_ms.retain(|_, start_ms| *start_ms >= before_ms);
        expired
    }

    /// Notes that a log, or a line of one, could not be read.
    pub(super) fn note_fault(&self) {
        self.at_fault.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_at_fault(&self) -> bool {
        self.at_fault.load(Ordering::Relaxed)
    }
}

fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}
