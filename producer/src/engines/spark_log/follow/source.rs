//! Folders and files that are followed together, on a thread of their own: a filesystem that does not answer delays no
//! other one.
//!
//! Long because one state machine: each state of a followed log leads to the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant, SystemTime};

use schemas::{IDENTIFIER_MAX_BYTES, identifier_bytes};
use service::warn_of_change;

use super::FOLLOWED;
use super::index::Index;
use super::reading::{Reading, Step, Turn};
use crate::engines::spark_log::files::{self, Log};
use crate::engines::spark_log::replay::Pace;
use crate::engines::spark_log::{Stopped, identify, reader};

/// Text of a log that is read before it is another log's turn.
const TURN_BYTES: usize = 4 << 20;
/// Logs whose state is in memory, over all sources: their estimated bytes, and their number, which is that of open files.
/// The others are read from their start again if they grow.
const AWAKE_BYTES_MAX: usize = 64 << 20;
const AWAKE_MAX: usize = 512;
/// A log is read again from its start when this many times the time has passed that it took before.
const READ_AGAIN_FACTOR: u32 = 10;
/// How long a log with the application's end must not have grown.
const ENDED_QUIET: Duration = Duration::from_secs(2);
/// The same for a log whose application has a newer attempt, and for one without the application's start.
const QUIET: Duration = Duration::from_secs(30);
/// Files that are left out are named one by one up to this number.
const LEFT_OUT_NAMED: usize = 1_000;

/// How to follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    pub(super) pace: Pace,
    pub(super) poll_interval: Duration,
    pub(super) give_up_after: Duration,
    pub(super) until_ended: bool,
    /// Number of sources, which share the memory.
    pub(super) sources: usize,
}

pub(super) struct Source {
    /// Of this run's sources.
    number: usize,
    paths: Vec<PathBuf>,
    manner: Manner,
    index: Arc<Index>,
    /// By the path of the complete log.
    logs: BTreeMap<PathBuf, Followed>,
    /// Those that may have something to read.
    queue: VecDeque<PathBuf>,
    /// Their estimated memory, by path.
    awake: BTreeMap<PathBuf, usize>,
    left_out: BTreeSet<String>,
    buffer: Vec<u8>,
    /// In the metric.
    counted: usize,
}

struct Followed {
    /// The path that it was found at: a number.
    root: usize,
    log: Log,
    seen: Seen,
    /// When it changed last, as far as seen.
    changed: Instant,
    is_missing: bool,
    is_queued: bool,
    /// Its faults are logged.
    is_named: bool,
    /// It was given up, as it was then.
    given_up: Option<Seen>,
    /// When its application was last looked for.
    identified: Instant,
    /// When it may be looked for again: each time, the log is read from its start.
    identify_at: Instant,
    identity: Option<Identity>,
    state: State,
}

/// The attempt of an application that a log belongs to.
#[derive(Clone)]
struct Identity {
    key: String,
    application: String,
    start_ms: i64,
}

enum State {
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
struct Seen {
    path: PathBuf,
    /// Number of its first and its last file.
    numbers: (u64, u64),
    bytes: u64,
    inode: u64,
    modified: Option<SystemTime>,
}

impl Seen {
    fn of(log: &Log) -> Option<Self> {
        let (first, last) = (log.files.first()?, log.files.last()?);
        let metadata = std::fs::metadata(&last.path).ok()?;
        Some(Self {
            path: last.path.clone(),
            numbers: (first.number, last.number),
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: metadata.modified().ok(),
        })
    }

    fn is_quiet(&self, quiet: Duration) -> bool {
        let age = self.modified.and_then(|modified| modified.elapsed().ok());
        age.is_some_and(|age| age >= quiet)
    }
}

type Give<'g> = dyn FnMut(Step) -> Result<(), Stopped> + 'g;

impl Source {
    pub(super) fn new(
        number: usize,
        paths: Vec<PathBuf>,
        manner: Manner,
        index: Arc<Index>,
    ) -> Self {
        index.note_searching(number);
        Self {
            number,
            paths,
            manner,
            index,
            logs: BTreeMap::new(),
            queue: VecDeque::new(),
            awake: BTreeMap::new(),
            left_out: BTreeSet::new(),
            buffer: reader::buffer(),
            counted: 0,
        }
    }

    /// Follows until `stop` is dropped, or `give` fails; with `--until-ended`, until every application has ended.
    pub(super) fn follow(mut self, stop: &Receiver<()>, give: &mut Give<'_>) {
        let is_stopped = || !matches!(stop.try_recv(), Err(TryRecvError::Empty));
        let index = self.index.clone();
        let mut give = |step: Step| {
            index.note(&step);
            give(step)
        };
        loop {
            let began = Instant::now();
            let looked = self.look(&is_stopped);
            let took = began.elapsed();
            if self.read(began, &is_stopped, &mut give).is_err() || is_stopped() {
                break;
            }
            self.count();
            if looked && self.queue.is_empty() {
                self.index.note_searched(self.number);
            }
            if self.manner.until_ended && looked && self.all_have_ended() {
                break;
            }
            if self.queue.is_empty() {
                // A look that takes long is not repeated all the time.
                let rest = self.manner.poll_interval.saturating_sub(began.elapsed());
                match stop.recv_timeout(rest.max(took)) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
                }
            }
        }
        self.logs.clear();
        self.count();
    }

    /// Finds the logs, and queues those that have changed. Returns whether all paths could be searched.
    fn look(&mut self, is_stopped: &dyn Fn() -> bool) -> bool {
        let mut all = true;
        for root in 0..self.paths.len() {
            let path = files::present(&self.paths[root]);
            let found = match files::logs(&path, is_stopped) {
                Ok(found) => found,
                Err(error) => {
                    warn_of_change!("{}: {error}; looking again", path.display());
                    all = false;
                    continue;
                }
            };
            if is_stopped() {
                return false;
            }
            for left_out in found.left_out {
                self.leave_out(left_out);
            }
            for (_, followed) in self.logs.iter_mut().filter(|(_, log)| log.root == root) {
                followed.is_missing = true;
            }
            for log in found.logs {
                if log.is_databricks {
                    self.leave_out(format!(
                        "{} is left out: Databricks compresses and renames these files. Read it without --follow once the \
                         cluster has ended",
                        log.path.display()
                    ));
                    continue;
                }
                self.found(root, log);
            }
        }
        self.forget_missing();
        let due: Vec<PathBuf> = self
            .logs
            .iter()
            .filter(|(_, followed)| !followed.is_queued && self.is_due(followed))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.enqueue(&id);
        }
        all
    }

    fn leave_out(&mut self, why: String) {
        self.index.note_fault();
        if self.left_out.len() < LEFT_OUT_NAMED && !self.left_out.contains(&why) {
            tracing::error!("{why}");
            self.left_out.insert(why);
        }
    }

    fn found(&mut self, root: usize, log: Log) {
        let Some(seen) = Seen::of(&log) else {
            // Renamed or removed meanwhile.
            return;
        };
        let id = files::complete(&log.path);
        let Some(followed) = self.logs.get_mut(&id) else {
            let followed = Followed {
                root,
                log,
                seen,
                changed: Instant::now(),
                is_missing: false,
                is_queued: false,
                is_named: false,
                given_up: None,
                identified: Instant::now(),
                identify_at: Instant::now(),
                identity: None,
                state: State::New,
            };
            self.logs.insert(id.clone(), followed);
            self.enqueue(&id);
            return;
        };
        // Both the complete log and one in progress: the complete one counts.
        if !followed.is_missing && followed.log.path == id {
            return;
        }
        followed.is_missing = false;
        followed.log = log;
        if followed.seen != seen {
            followed.seen = seen;
            followed.changed = Instant::now();
            let is_stuck = matches!(followed.state, State::Refused);
            if is_stuck {
                followed.state = State::New;
            }
        }
    }

    /// Whether there may be something to do for a log.
    fn is_due(&self, followed: &Followed) -> bool {
        let quiet = followed.changed.elapsed();
        match &followed.state {
            State::New => {
                let has_changed = followed.changed > followed.identified;
                let is_due = has_changed || (!followed.is_named && quiet >= QUIET);
                is_due && Instant::now() >= followed.identify_at
            }
            // The other log of the same attempt may have gone.
            State::Refused => followed
                .identity
                .as_ref()
                .is_some_and(|identity| self.index.is_free(&identity.key)),
            State::Done => false,
            // Some filesystems do not show the length of a file that is open.
            State::Awake { .. } => true,
            State::Asleep {
                since,
                cost,
                has_ended,
            } => {
                let is_new = followed.identity.is_some() && cost.is_zero();
                let has_changed = followed.changed > *since;
                let give_up = quiet >= self.manner.give_up_after && !self.is_given_up(followed);
                let is_over =
                    *has_ended && (quiet >= ENDED_QUIET || followed.seen.is_quiet(ENDED_QUIET));
                let conclude = is_over || (quiet >= QUIET && self.is_replaced(followed));
                let rests = since.elapsed() < *cost * READ_AGAIN_FACTOR;
                is_new || give_up || (!rests && (has_changed || conclude))
            }
        }
    }

    fn is_given_up(&self, followed: &Followed) -> bool {
        followed.given_up.as_ref() == Some(&followed.seen)
    }

    fn is_replaced(&self, followed: &Followed) -> bool {
        followed.identity.as_ref().is_some_and(|identity| {
            self.index
                .is_replaced(&identity.application, identity.start_ms)
        })
    }

    /// Forgets logs that have gone, once nothing is to be reported of them any more.
    fn forget_missing(&mut self) {
        let (number, index) = (self.number, &self.index);
        let give_up_after = self.manner.give_up_after;
        let awake = &mut self.awake;
        self.logs.retain(|id, followed| {
            let is_given_up = followed.given_up.as_ref() == Some(&followed.seen);
            let is_over = match followed.state {
                State::New | State::Refused | State::Done => true,
                State::Asleep { .. } | State::Awake { .. } => {
                    is_given_up || followed.changed.elapsed() >= give_up_after * 2
                }
            };
            let keep = !followed.is_missing || followed.is_queued || !is_over;
            if !keep {
                awake.remove(id);
                if let Some(identity) = &followed.identity {
                    index.release(&identity.key, &(number, id.clone()));
                }
            }
            keep
        });
    }

    fn enqueue(&mut self, id: &Path) {
        if let Some(followed) = self.logs.get_mut(id)
            && !followed.is_queued
        {
            followed.is_queued = true;
            self.queue.push_back(id.to_owned());
        }
    }

    /// Reads the logs in turns until all are read or it is time to look again.
    fn read(
        &mut self,
        began: Instant,
        is_stopped: &dyn Fn() -> bool,
        give: &mut Give<'_>,
    ) -> Result<(), Stopped> {
        while let Some(id) = self.queue.pop_front() {
            if is_stopped() {
                return Err(Stopped);
            }
            let Some(mut followed) = self.logs.remove(&id) else {
                continue;
            };
            followed.is_queued = false;
            let turned = self.turn(&id, &mut followed, is_stopped, give);
            self.logs.insert(id.clone(), followed);
            if turned? {
                self.enqueue(&id);
            }
            if began.elapsed() >= self.manner.poll_interval {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A log's turn. Returns whether it is to have another one.
    fn turn(
        &mut self,
        id: &Path,
        followed: &mut Followed,
        is_stopped: &dyn Fn() -> bool,
        give: &mut Give<'_>,
    ) -> Result<bool, Stopped> {
        if matches!(followed.state, State::Refused) {
            followed.state = State::New;
        }
        if matches!(followed.state, State::New) && !self.identify(id, followed, is_stopped)? {
            return Ok(false);
        }
        if matches!(followed.state, State::Asleep { .. }) && !self.wake(id, followed) {
            return Ok(matches!(followed.state, State::Asleep { .. }));
        }
        let State::Awake {
            reading,
            at_end,
            cost,
            ..
        } = &mut followed.state
        else {
            return Ok(false);
        };
        let begun = Instant::now();
        let turn = reading.turn(&followed.log, TURN_BYTES, &mut self.buffer, &mut |step| {
            give(step)
        })?;
        *cost += begun.elapsed();
        *at_end = turn != Turn::More;
        self.awake.insert(id.to_owned(), reading.memory_bytes());
        if reading.is_at_fault() {
            self.index.note_fault();
            followed.is_named = true;
        }
        match turn {
            Turn::More => Ok(true),
            Turn::Again(why) => {
                if let Some(why) = why {
                    warn_of_change!("{why}; trying again");
                }
                self.send_to_sleep(id, followed);
                // Read again also if nothing changes any more.
                followed.changed = Instant::now();
                Ok(false)
            }
            Turn::Stuck if followed.changed > self.began(followed) => {
                // It may be readable now.
                self.send_to_sleep(id, followed);
                Ok(false)
            }
            Turn::AtEnd | Turn::Stuck => {
                self.settle(id, followed, give)?;
                Ok(false)
            }
        }
    }

    fn began(&self, followed: &Followed) -> Instant {
        match &followed.state {
            State::Awake { began, .. } => *began,
            _ => followed.changed,
        }
    }

    /// Finds the attempt that a log belongs to. Returns whether it is known, and no other log of it is read.
    fn identify(
        &mut self,
        id: &Path,
        followed: &mut Followed,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<bool, Stopped> {
        let begun = Instant::now();
        let known = identify(followed.log.clone(), &is_stopped)?;
        followed.identified = begun;
        followed.identify_at = Instant::now() + begun.elapsed() * READ_AGAIN_FACTOR;
        let shown = followed.log.path.display();
        if !known.is_certain {
            if let Some(fault) = known.fault {
                self.refuse(followed, &fault);
            } else if followed.changed.elapsed() >= QUIET || followed.seen.is_quiet(QUIET) {
                if !followed.is_named {
                    tracing::warn!(
                        "{shown} holds no start of an application so far; it is reported once it does. If it is not an \
                         event log, move it out of the folder"
                    );
                }
                followed.is_named = true;
            }
            return Ok(false);
        }
        // It becomes the key of a record, which a topic takes only up to a length, and stays in memory.
        if identifier_bytes(&known.key) > IDENTIFIER_MAX_BYTES {
            let why = format!(
                "is left out: the id of its application and attempt is longer than {IDENTIFIER_MAX_BYTES} bytes"
            );
            self.refuse(followed, &why);
            return Ok(false);
        }
        let identity = Identity {
            key: known.key,
            application: known.application,
            start_ms: known.start_ms,
        };
        let reader = (self.number, id.to_owned());
        let claimed = self.index.claim(
            &identity.key,
            &identity.application,
            identity.start_ms,
            reader,
        );
        let key = identity.key.clone();
        followed.identity = Some(identity);
        if let Some(other) = claimed {
            // The same file may be found below two paths.
            if other != id {
                if !followed.is_named {
                    tracing::error!(
                        "{shown} is left out: {} tells of {key} too",
                        other.display()
                    );
                }
                self.index.note_fault();
                followed.is_named = true;
            }
            followed.state = State::Refused;
            return Ok(false);
        }
        followed.is_named = false;
        followed.state = State::Asleep {
            since: Instant::now(),
            cost: Duration::ZERO,
            has_ended: false,
        };
        Ok(true)
    }

    /// Leaves a log out until it changes, and says why, once.
    fn refuse(&self, followed: &mut Followed, why: &str) {
        if !followed.is_named {
            tracing::error!("{} {why}", followed.log.path.display());
        }
        self.index.note_fault();
        followed.is_named = true;
        followed.state = State::Refused;
    }

    /// Begins to read a log from its start. Returns whether there was room in memory, and something is to be read.
    fn wake(&mut self, id: &Path, followed: &mut Followed) -> bool {
        let Some(identity) = &followed.identity else {
            return false;
        };
        let checkpoint = self.index.checkpoint(&identity.key);
        if checkpoint.as_ref().is_some_and(|sent| sent.concluded) {
            followed.state = State::Done;
            return false;
        }
        if !self.make_room() {
            return false;
        }
        let reading = Reading::new(
            &identity.key,
            &followed.log,
            self.manner.pace,
            checkpoint,
            !followed.is_named,
        );
        self.awake.insert(id.to_owned(), reading.memory_bytes());
        followed.state = State::Awake {
            reading: Box::new(reading),
            at_end: false,
            began: Instant::now(),
            cost: Duration::ZERO,
        };
        true
    }

    /// Sends logs to sleep that are read to their ends, those first that have not changed for longest. Returns whether
    /// another log may be read.
    fn make_room(&mut self) -> bool {
        let sources = self.manner.sources.max(1);
        let (bytes_max, max) = (AWAKE_BYTES_MAX / sources, (AWAKE_MAX / sources).max(1));
        loop {
            let bytes: usize = self.awake.values().sum();
            if self.awake.is_empty() || (bytes < bytes_max && self.awake.len() < max) {
                return true;
            }
            let idle = self.awake.keys().filter_map(|id| {
                let followed = self.logs.get(id)?;
                let is_idle = matches!(&followed.state, State::Awake { at_end: true, .. });
                (is_idle && !followed.is_queued).then_some((followed.changed, id))
            });
            let Some(id) = idle.min().map(|(_, id)| id.clone()) else {
                return false;
            };
            if let Some(mut followed) = self.logs.remove(&id) {
                self.send_to_sleep(&id, &mut followed);
                self.logs.insert(id, followed);
            }
        }
    }

    fn send_to_sleep(&mut self, id: &Path, followed: &mut Followed) {
        self.awake.remove(id);
        if let State::Awake { reading, cost, .. } = &followed.state {
            let (cost, has_ended) = (*cost, reading.has_ended());
            followed.is_named = true;
            followed.state = State::Asleep {
                since: Instant::now(),
                cost: cost.max(Duration::from_millis(1)),
                has_ended,
            };
        }
    }

    /// Reports what the end of a log, or that it does not grow, tells.
    fn settle(
        &mut self,
        id: &Path,
        followed: &mut Followed,
        give: &mut Give<'_>,
    ) -> Result<(), Stopped> {
        let quiet = followed.changed.elapsed();
        let is_quiet =
            |followed: &Followed, enough| quiet >= enough || followed.seen.is_quiet(enough);
        let State::Awake { reading, .. } = &mut followed.state else {
            return Ok(());
        };
        let has_ended = reading.has_ended();
        let compacted = followed.log.compacted;
        let give_up = quiet >= self.manner.give_up_after;
        if give_up && !has_ended && followed.given_up.as_ref() != Some(&followed.seen) {
            reading.give_up(compacted, &mut |step| give(step))?;
            followed.given_up = Some(followed.seen.clone());
        }
        let is_replaced = quiet >= QUIET && !has_ended && self.is_replaced(followed);
        if (has_ended && is_quiet(followed, ENDED_QUIET)) || is_replaced {
            let state = std::mem::replace(&mut followed.state, State::Done);
            self.awake.remove(id);
            if let State::Awake { reading, .. } = state {
                reading.conclude(is_replaced, compacted, &mut |step| give(step))?;
            }
        }
        Ok(())
    }

    /// Whether every application of a log has ended or was given up; there is one.
    fn all_have_ended(&self) -> bool {
        let ended = |followed: &Followed| match followed.state {
            State::Done | State::Refused => true,
            State::New => followed.is_named,
            State::Asleep { .. } | State::Awake { .. } => self.is_given_up(followed),
        };
        self.queue.is_empty()
            && self.logs.values().all(ended)
            && self
                .logs
                .values()
                .any(|followed| !matches!(followed.state, State::New | State::Refused))
    }

    /// Updates the metric.
    fn count(&mut self) {
        let is_followed =
            |followed: &&Followed| !matches!(followed.state, State::Refused | State::Done);
        let now = self.logs.values().filter(is_followed).count();
        metrics::gauge!(FOLLOWED).increment(now as f64 - self.counted as f64);
        self.counted = now;
    }
}
