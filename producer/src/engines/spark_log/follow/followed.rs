//! A log that is followed: what it is, and what is done about it.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::reading::Reading;
use crate::engines::spark_log::files::Log;

pub(super) struct Followed {
    /// The path that it was found at: a number.
    pub(super) root: usize,
    pub(super) log: Log,
    pub(super) seen: Seen,
    /// The search that found it last.
    pub(super) found: u64,
    /// When it changed last, as far as seen.
    pub(super) changed: Instant,
    /// It is no longer at its path. Its attempt can be reported from another log, so this one is [claimed](Index::claim)
    /// only during its turns.
    pub(super) is_missing: bool,
    pub(super) is_queued: bool,
    /// Its faults are logged.
    pub(super) is_named: bool,
    /// It was given up, as it was then.
    pub(super) given_up: Option<Seen>,
    /// When its application was last looked for; `None` if that is due.
    pub(super) identified: Option<Instant>,
    /// When it may be looked for again: each time, the log is read from its start.
    pub(super) identify_at: Instant,
    /// It could not be read then.
    pub(super) is_unreadable: bool,
    pub(super) identity: Option<Identity>,
    /// What it was before it changed so much that it may be another log.
    pub(super) before: Option<Before>,
    pub(super) state: State,
}

/// The attempt of an application that a log belongs to.
#[derive(Clone)]
pub(super) struct Identity {
    pub(super) key: String,
    pub(super) application: String,
    pub(super) start_ms: i64,
    /// The log holds the application's start.
    pub(super) has_start: bool,
}

/// What a path led to.
pub(super) struct Before {
    pub(super) key: String,
    pub(super) is_named: bool,
    pub(super) cost: Duration,
    /// What follows from what was read can still be reported, or everything was.
    pub(super) is_kept: bool,
}

pub(super) enum State {
    /// Its application is not known.
    New,
    /// It is not a log that can be followed.
    Refused,
    /// It was read up to its checkpoint, which took this long, or not at all.
    Asleep {
        since: Instant,
        cost: Duration,
        /// The application's end was read, and the last reports are still to be sent.
        has_ended: bool,
        /// It is to be read also if it does not change.
        again: bool,
    },
    Awake {
        reading: Box<Reading>,
        at_end: bool,
        began: Instant,
        cost: Duration,
    },
    /// Its last reports were sent.
    Done,
}

/// What shows that a log has changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    path: PathBuf,
    /// Number of its first and its last file.
    numbers: (u64, u64),
    bytes: u64,
    /// Device and inode.
    file: (u64, u64),
    modified: Option<SystemTime>,
}

impl Seen {
    pub(super) fn of(log: &Log) -> Option<Self> {
        let (first, last) = (log.files.first()?, log.files.last()?);
        let metadata = std::fs::metadata(&last.path).ok()?;
        Some(Self {
            path: last.path.clone(),
            numbers: (first.number, last.number),
            bytes: metadata.len(),
            file: (metadata.dev(), metadata.ino()),
            modified: metadata.modified().ok(),
        })
    }

    /// Whether a log that was seen so before can have become this one by growing.
    pub(super) fn follows(&self, before: &Self) -> bool {
        match self.file == before.file {
            true => self.bytes >= before.bytes,
            false => self.numbers.1 > before.numbers.1,
        }
    }

    pub(super) fn is_quiet(&self, quiet: Duration) -> bool {
        let age = self.modified.and_then(|modified| modified.elapsed().ok());
        age.is_some_and(|age| age >= quiet)
    }
}

impl Followed {
    pub(super) fn new(root: usize, log: Log, seen: Seen) -> Self {
        let now = Instant::now();
        Self {
            root,
            log,
            seen,
            found: 0,
            changed: now,
            is_missing: false,
            is_queued: false,
            is_named: false,
            given_up: None,
            identified: None,
            identify_at: now,
            is_unreadable: false,
            identity: None,
            before: None,
            state: State::New,
        }
    }

    /// The log at its path, which may be another one.
    pub(super) fn next(&self, is_kept: bool) -> Self {
        let cost = match self.state {
            State::Asleep { cost, .. } | State::Awake { cost, .. } => cost,
            State::New | State::Refused | State::Done => Duration::ZERO,
        };
        let is_kept = is_kept || matches!(self.state, State::Done);
        let before = match (&self.identity, &self.state) {
            (Some(identity), State::Asleep { .. } | State::Awake { .. } | State::Done) => {
                Some(Before {
                    key: identity.key.clone(),
                    is_named: self.is_named,
                    cost,
                    is_kept,
                })
            }
            _ => None,
        };
        Self {
            found: self.found,
            changed: self.changed,
            is_missing: self.is_missing,
            is_queued: self.is_queued,
            identify_at: self.identify_at,
            before,
            ..Self::new(self.root, self.log.clone(), self.seen.clone())
        }
    }
}
