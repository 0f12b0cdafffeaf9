//! What all sources know of the logs: their checkpoints, who reads which, and the newest attempt of each application.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use super::checkpoint::Checkpoint;
use super::reading::Step;

/// A checkpoint whose log is not there is kept for this long: 30 days.
const KEPT_MS: i64 = 30 * 24 * 60 * 60 * 1_000;
/// A checkpoint whose log is there is written again after this time, so that its age in the topic shows for how long the
/// log was not there.
const RENEWED_MS: i64 = KEPT_MS / 2;

/// A log that is followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LogId {
    /// Of the complete log.
    pub(super) path: PathBuf,
    /// 0 for the log that is there; other numbers for those that were there before.
    pub(super) former: u64,
}

/// A log of one of the sources.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    pub(super) source: usize,
    pub(super) log: LogId,
}

#[derive(Default)]
pub(super) struct Index {
    state: Mutex<State>,
    at_fault: AtomicBool,
}

#[derive(Default)]
struct State {
    checkpoints: HashMap<String, Known>,
    /// The log from which an attempt is reported, by the attempt's key.
    readers: HashMap<String, Reader>,
    /// The start of the newest attempt, in milliseconds, by application.
    newest_ms: HashMap<String, i64>,
    /// Sources that have not found all their logs yet.
    searching: HashSet<usize>,
}

struct Reader {
    claim: Claim,
    application: String,
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
        self.insert(step.key.clone(), step.checkpoint.clone(), now_ms());
    }

    /// Reports an attempt from a log, and notes when the attempt began. Returns the path of the log if it is reported from
    /// another one, or by another source.
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
            Some(other) if other.claim != claim => Some(other.claim.log.path.clone()),
            _ => {
                let application = application.to_owned();
                let reader = Reader { claim, application };
                state.readers.insert(key.to_owned(), reader);
                None
            }
        }
    }

    /// Whether an attempt is reported from no log now.
    pub(super) fn is_free(&self, key: &str) -> bool {
        !self.state().readers.contains_key(key)
    }

    /// An attempt is no longer reported from a log, which has gone.
    pub(super) fn release(&self, key: &str, claim: &Claim) {
        let mut state = self.state();
        if state
            .readers
            .get(key)
            .is_some_and(|reader| reader.claim == *claim)
        {
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

    /// A source is about to search for its logs.
    pub(super) fn note_searching(&self, source: usize) {
        self.state().searching.insert(source);
    }

    /// A source has found all its logs, and has [claimed](Self::claim) those with checkpoints.
    pub(super) fn note_searched(&self, source: usize) {
        self.state().searching.remove(&source);
    }

    /// What is to be written so that the topic keeps the checkpoints that are needed, and no others: by key, the same
    /// checkpoint again where its log is there, `None` where the log was not there for long; those are forgotten. None of
    /// them before all logs were searched for: a checkpoint whose log is there is needed, however old it is.
    pub(super) fn upkeep(&self) -> Vec<(String, Option<Checkpoint>)> {
        let mut state = self.state();
        let State {
            checkpoints,
            readers,
            newest_ms,
            searching,
        } = &mut *state;
        let now_ms = now_ms();
        let mut due = Vec::new();
        checkpoints.retain(|key, known| {
            let age_ms = now_ms.saturating_sub(known.seen_ms);
            if readers.contains_key(key) {
                // What is still on its way to the topic is not as old.
                if age_ms > RENEWED_MS {
                    known.seen_ms = now_ms;
                    due.push((key.clone(), Some(known.checkpoint.clone())));
                }
                return true;
            }
            let is_needed = age_ms <= KEPT_MS || !searching.is_empty();
            if !is_needed {
                due.push((key.clone(), None));
            }
            is_needed
        });
        let followed: HashSet<&str> = readers
            .values()
            .map(|reader| reader.application.as_str())
            .collect();
        newest_ms.retain(|application, start_ms| {
            now_ms.saturating_sub(*start_ms) <= KEPT_MS || followed.contains(application.as_str())
        });
        due
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

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(next: i64) -> Checkpoint {
        Checkpoint {
            next,
            ..Checkpoint::default()
        }
    }

    fn claim(index: &Index, key: &str, application: &str, start_ms: i64) {
        assert_eq!(index.claim(key, application, start_ms, log(key)), None);
    }

    fn log(key: &str) -> Claim {
        let log = LogId {
            path: PathBuf::from(format!("/logs/{key}")),
            former: 0,
        };
        Claim { source: 0, log }
    }

    #[test]
    fn old_checkpoints_expire_once_all_logs_were_searched_for_and_those_of_found_logs_are_renewed()
    {
        let index = Index::default();
        let old_ms = now_ms() - 2 * KEPT_MS;
        for (key, seen_ms) in [("there", old_ms), ("gone", old_ms), ("recent", now_ms())] {
            index.insert(key.to_owned(), checkpoint(7), seen_ms);
        }
        for source in [0, 1] {
            index.note_searching(source);
        }
        index.note_searched(1);
        assert!(index.upkeep().is_empty());
        claim(&index, "there", "application", 0);
        assert_eq!(
            index.upkeep(),
            [("there".to_owned(), Some(checkpoint(7)))],
            "its log is there, whatever the other source finds"
        );
        index.note_searched(0);
        assert_eq!(index.upkeep(), [("gone".to_owned(), None)]);
        assert!(index.upkeep().is_empty());
        assert_eq!(index.checkpoint("there"), Some(checkpoint(7)));
        assert_eq!(index.checkpoint("recent"), Some(checkpoint(7)));
    }

    #[test]
    fn an_attempt_that_began_long_ago_is_replaced_as_long_as_a_log_of_its_application_is_there() {
        let index = Index::default();
        let old_ms = now_ms() - 2 * KEPT_MS;
        claim(&index, "app/1", "app", old_ms);
        claim(&index, "app/2", "app", old_ms + 1);
        index.upkeep();
        assert!(index.is_replaced("app", old_ms));
        assert!(!index.is_replaced("app", old_ms + 1));
        for key in ["app/1", "app/2"] {
            index.release(key, &log(key));
        }
        index.upkeep();
        assert!(index.state().newest_ms.is_empty());
    }
}
