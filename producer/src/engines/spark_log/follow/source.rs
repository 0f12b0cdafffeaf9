//! Folders and files that are followed together, on a thread of their own: a filesystem that does not answer delays no
//! other one.
//!
//! Long because one state machine: each state of a followed log leads to the others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use schemas::{IDENTIFIER_MAX_BYTES, identifier_bytes};
use service::warn_of_change;

use super::FOLLOWED;
use super::followed::{Before, Followed, Identity, Seen, State};
use super::index::{Claim, Index, LogId};
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
    roots: Vec<Root>,
    manner: Manner,
    index: Arc<Index>,
    logs: BTreeMap<LogId, Followed>,
    /// Those that may have something to read.
    queue: VecDeque<LogId>,
    /// The estimated memory of those that are in memory.
    awake: BTreeMap<LogId, usize>,
    /// Searches so far.
    looks: u64,
    /// Logs so far that were followed, and are no longer at their paths.
    former: u64,
    /// A log of an application was found.
    has_followed: bool,
    left_out: BTreeSet<String>,
    buffer: Vec<u8>,
    /// In the metric.
    counted: usize,
}

/// A path that was given.
struct Root {
    path: PathBuf,
    /// It is a log itself, as far as known.
    is_log: bool,
    /// Since when it cannot be searched.
    unsearched: Option<Instant>,
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
        let root = |path| Root {
            path,
            is_log: false,
            unsearched: Some(Instant::now()),
        };
        Self {
            number,
            roots: paths.into_iter().map(root).collect(),
            manner,
            index,
            logs: BTreeMap::new(),
            queue: VecDeque::new(),
            awake: BTreeMap::new(),
            looks: 0,
            former: 0,
            has_followed: false,
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
            self.look(&is_stopped);
            let took = began.elapsed();
            if self.read(began, &is_stopped, &mut give).is_err() || is_stopped() {
                break;
            }
            self.count();
            let is_searched = self.roots.iter().all(|root| root.unsearched.is_none());
            if is_searched && self.queue.is_empty() {
                self.index.note_searched(self.number);
            }
            if self.manner.until_ended && self.all_have_ended() {
                self.name_unsearched();
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

    /// Finds the logs, and queues those that have changed.
    fn look(&mut self, is_stopped: &dyn Fn() -> bool) {
        self.looks += 1;
        for root in 0..self.roots.len() {
            let path = files::present(&self.roots[root].path);
            let found = files::logs(&path, is_stopped);
            if is_stopped() {
                return;
            }
            let searched = &mut self.roots[root];
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    warn_of_change!("{}: {error}; looking again", path.display());
                    // Nothing else can be there than the log that has gone.
                    if !searched.is_log {
                        searched.unsearched.get_or_insert_with(Instant::now);
                    }
                    continue;
                }
            };
            searched.unsearched = None;
            searched.is_log = found.logs.first().is_some_and(|log| log.path == path);
            for left_out in found.left_out {
                self.leave_out(left_out);
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
        self.note_missing();
        self.forget_missing();
        let due: Vec<LogId> = self
            .logs
            .iter()
            .filter(|(_, followed)| !followed.is_queued && self.is_due(followed))
            .map(|(id, _)| id.clone())
            .collect();
        for id in due {
            self.enqueue(&id);
        }
    }

    /// Notes the logs that were not found where all was searched.
    fn note_missing(&mut self) {
        for (id, followed) in &mut self.logs {
            let is_searched = self.roots[followed.root].unsearched.is_none();
            if is_searched && !followed.is_missing && followed.found != self.looks {
                followed.is_missing = true;
                release(&self.index, self.number, id, followed);
            }
        }
    }

    fn name_unsearched(&self) {
        for root in &self.roots {
            if root.unsearched.is_some() {
                tracing::error!(
                    "{} could not be searched for {:?}: what it holds is not reported",
                    root.path.display(),
                    self.manner.give_up_after
                );
                self.index.note_fault();
            }
        }
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
        let id = LogId {
            path: files::complete(&log.path),
            former: 0,
        };
        let Some(followed) = self.logs.get_mut(&id) else {
            let mut followed = Followed::new(root, log, seen);
            followed.found = self.looks;
            self.logs.insert(id.clone(), followed);
            self.enqueue(&id);
            return;
        };
        // Both the complete log and one in progress: the complete one counts.
        if followed.found == self.looks && followed.log.path == id.path {
            return;
        }
        followed.found = self.looks;
        followed.log = log;
        if std::mem::take(&mut followed.is_missing)
            && !keeps_claim(&self.index, self.number, &id, followed)
        {
            self.awake.remove(&id);
        }
        if followed.seen == seen {
            return;
        }
        let follows = seen.follows(&followed.seen);
        followed.seen = seen;
        followed.changed = Instant::now();
        match followed.state {
            State::Refused => followed.state = State::New,
            State::Asleep { .. } if follows => {}
            State::Asleep { .. } | State::Done => {
                release(&self.index, self.number, &id, followed);
                *followed = followed.next(false);
            }
            // While its file is open, another one shows.
            State::New | State::Awake { .. } => {}
        }
    }

    /// Whether there may be something to do for a log.
    fn is_due(&self, followed: &Followed) -> bool {
        let quiet = followed.changed.elapsed();
        match &followed.state {
            State::New => {
                let has_changed = followed
                    .identified
                    .is_none_or(|identified| followed.changed > identified);
                let is_due =
                    has_changed || followed.is_unreadable || (!followed.is_named && quiet >= QUIET);
                is_due && Instant::now() >= followed.identify_at
            }
            // The other log of the same attempt may have gone.
            State::Refused => {
                let identity = followed.identity.as_ref();
                identity.is_some_and(|identity| self.index.is_free(&identity.key))
                    || (!followed.is_named && quiet >= QUIET)
            }
            State::Done => false,
            // Some filesystems do not show the length of a file that is open.
            State::Awake { .. } => true,
            State::Asleep {
                since,
                cost,
                has_ended,
                again,
            } => {
                let has_changed = followed.changed > *since;
                let give_up = quiet >= self.manner.give_up_after && !self.is_given_up(followed);
                let is_over =
                    *has_ended && (quiet >= ENDED_QUIET || followed.seen.is_quiet(ENDED_QUIET));
                let conclude = is_over || (quiet >= QUIET && self.is_replaced(followed));
                give_up || (!rests(*since, *cost) && (*again || has_changed || conclude))
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
            }
            keep
        });
    }

    fn enqueue(&mut self, id: &LogId) {
        if let Some(followed) = self.logs.get_mut(id)
            && !followed.is_queued
        {
            followed.is_queued = true;
            self.queue.push_back(id.clone());
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
            if followed.is_missing {
                release(&self.index, self.number, &id, &followed);
            }
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
        id: &LogId,
        followed: &mut Followed,
        is_stopped: &dyn Fn() -> bool,
        give: &mut Give<'_>,
    ) -> Result<bool, Stopped> {
        match followed.state {
            State::New | State::Refused => {
                followed.state = State::New;
                if !self.identify(id, followed, is_stopped)? {
                    return Ok(false);
                }
                // It was read not long ago.
                if matches!(followed.state, State::Asleep { since, cost, .. } if rests(since, cost))
                {
                    return Ok(false);
                }
            }
            State::Asleep { .. } | State::Awake { .. } | State::Done => {
                if !keeps_claim(&self.index, self.number, id, followed) {
                    self.awake.remove(id);
                    return Ok(false);
                }
            }
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
        let before = reading.position();
        let turn = reading.turn(
            &followed.log,
            followed.is_missing,
            TURN_BYTES,
            &mut self.buffer,
            &mut |step| give(step),
        )?;
        *cost += begun.elapsed();
        *at_end = turn != Turn::More;
        self.awake.insert(id.clone(), reading.memory_bytes());
        if reading.is_at_fault() {
            self.index.note_fault();
            followed.is_named = true;
        }
        // A file that is written on is no longer seen to grow.
        if followed.is_missing && reading.position() != before {
            followed.changed = Instant::now();
        }
        match turn {
            Turn::More => Ok(true),
            Turn::Moved | Turn::Mistaken => {
                self.begin_anew(id, followed, turn == Turn::Moved);
                Ok(false)
            }
            // It may be readable now.
            Turn::Stuck if !followed.is_missing && followed.changed > self.began(followed) => {
                self.begin_anew(id, followed, true);
                Ok(false)
            }
            Turn::Unreadable(why) => {
                warn_of_change!("{why}; trying again");
                self.settle(id, followed, give)?;
                Ok(false)
            }
            Turn::AtEnd | Turn::Stuck => {
                self.settle(id, followed, give)?;
                Ok(false)
            }
        }
    }

    /// A path may lead to another log by now: identifies that. The log that it led to becomes one that has gone; if what
    /// was read of it counts (`is_valid`), it is reported from that.
    fn begin_anew(&mut self, id: &LogId, followed: &mut Followed, is_valid: bool) {
        let memory = self.awake.remove(id);
        let is_kept = is_valid
            && matches!(&followed.state, State::Awake { reading, .. } if reading.is_caught_up());
        release(&self.index, self.number, id, followed);
        let next = followed.next(is_kept);
        let mut before = std::mem::replace(followed, next);
        if !is_kept {
            return;
        }
        self.former += 1;
        let former = LogId {
            path: id.path.clone(),
            former: self.former,
        };
        before.is_missing = true;
        before.is_queued = false;
        self.awake
            .extend(memory.map(|bytes| (former.clone(), bytes)));
        self.logs.insert(former, before);
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
        id: &LogId,
        followed: &mut Followed,
        is_stopped: &dyn Fn() -> bool,
    ) -> Result<bool, Stopped> {
        let begun = Instant::now();
        let known = identify(followed.log.clone(), &is_stopped)?;
        followed.identified = Some(begun);
        followed.identify_at = Instant::now() + begun.elapsed() * READ_AGAIN_FACTOR;
        followed.is_unreadable = known.unreadable.is_some();
        let shown = followed.log.path.display();
        if !known.is_certain {
            let is_quiet = followed.changed.elapsed() >= QUIET || followed.seen.is_quiet(QUIET);
            match (known.fault, known.unreadable) {
                (Some(fault), _) => self.refuse(followed, &fault),
                (None, Some(why)) => {
                    warn_of_change!("{shown} cannot be read: {why}; trying again");
                    if is_quiet && !followed.is_named {
                        self.index.note_fault();
                        followed.is_named = true;
                    }
                }
                (None, None) if is_quiet => {
                    if !followed.is_named {
                        tracing::warn!(
                            "{shown} holds no start of an application so far; it is reported once it does. If it is not an \
                             event log, move it out of the folder"
                        );
                    }
                    followed.is_named = true;
                }
                (None, None) => {}
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
            has_start: known.has_start,
        };
        self.has_followed = true;
        let claimed = claim(&self.index, self.number, id, &identity);
        let key = identity.key.clone();
        followed.identity = Some(identity);
        if let Some(other) = claimed {
            // It may have been moved here, which the other source is about to see.
            let is_quiet = followed.changed.elapsed() >= QUIET || followed.seen.is_quiet(QUIET);
            // The same file may be found below two paths.
            let is_same = other == id.path;
            if !is_same && is_quiet {
                if !followed.is_named {
                    tracing::error!("{shown} is left out: {} is also of {key}", other.display());
                }
                self.index.note_fault();
            }
            followed.is_named |= is_same || is_quiet;
            followed.state = State::Refused;
            return Ok(false);
        }
        let before = followed.before.take();
        let same = before.as_ref().filter(|before| before.key == key);
        followed.is_named = same.is_some_and(|before| before.is_named);
        followed.state = State::Asleep {
            since: Instant::now(),
            cost: same.map_or(Duration::ZERO, |before| before.cost),
            has_ended: false,
            again: true,
        };
        match before.filter(|before| before.key != key) {
            Some(Before {
                key: old,
                is_kept: true,
                ..
            }) => {
                tracing::info!("{shown} is the log of {key} now, no longer that of {old}");
            }
            Some(Before { key: old, .. }) => tracing::warn!(
                "{shown} is the log of {key} now, no longer that of {old}, whose last reports stand: what was read of it is \
                 not in memory"
            ),
            None => {}
        }
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
    fn wake(&mut self, id: &LogId, followed: &mut Followed) -> bool {
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
            identity.has_start,
            &followed.log,
            self.manner.pace,
            checkpoint,
            !followed.is_named,
        );
        self.awake.insert(id.clone(), reading.memory_bytes());
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

    fn send_to_sleep(&mut self, id: &LogId, followed: &mut Followed) {
        self.awake.remove(id);
        let State::Awake { reading, cost, .. } = &followed.state else {
            return;
        };
        let (cost, has_ended, again) = (*cost, reading.has_ended(), reading.is_unreadable());
        if id.former > 0 {
            self.warn_of_loss(followed);
            followed.state = State::Done;
            return;
        }
        followed.is_named = true;
        followed.state = State::Asleep {
            since: Instant::now(),
            cost: cost.max(Duration::from_millis(1)),
            has_ended,
            again,
        };
    }

    /// The end of an application cannot be reported: its log has gone or cannot be read, and what was read of it is not in
    /// memory.
    fn warn_of_loss(&self, followed: &Followed) {
        let key = followed
            .identity
            .as_ref()
            .map_or("", |identity| &identity.key);
        tracing::warn!(
            "the last reports of {key} stand: its log {} has gone or cannot be read, and what was read of it is not in memory",
            followed.log.path.display()
        );
    }

    /// Reports an application whose log holds its end, or has not grown for long.
    fn settle(
        &mut self,
        id: &LogId,
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
        // What could not be read may hold its end.
        let is_read = reading.is_caught_up() && !reading.is_unreadable();
        let compacted = followed.log.compacted;
        let give_up = quiet >= self.manner.give_up_after;
        if give_up && !has_ended && followed.given_up.as_ref() != Some(&followed.seen) {
            let is_lost =
                (followed.is_missing || reading.is_unreadable()) && !reading.is_caught_up();
            let is_unreadable = reading.is_unreadable();
            reading.give_up(compacted, &mut |step| give(step))?;
            followed.given_up = Some(followed.seen.clone());
            if is_unreadable {
                self.index.note_fault();
            }
            if is_lost {
                self.warn_of_loss(followed);
            }
        }
        let is_replaced = quiet >= QUIET && !has_ended && is_read && self.is_replaced(followed);
        if (has_ended && is_quiet(followed, ENDED_QUIET)) || is_replaced {
            let state = std::mem::replace(&mut followed.state, State::Done);
            self.awake.remove(id);
            if let State::Awake { reading, .. } = state {
                reading.conclude(is_replaced, compacted, &mut |step| give(step))?;
            }
        }
        Ok(())
    }

    /// Whether every application of a log has ended or was given up, and there was one. A path that cannot be searched for
    /// long is given up, too.
    fn all_have_ended(&self) -> bool {
        let ended = |followed: &Followed| match followed.state {
            State::Done => true,
            State::New | State::Refused => followed.is_named,
            State::Asleep { .. } | State::Awake { .. } => self.is_given_up(followed),
        };
        let is_lost = |since: &Instant| since.elapsed() >= self.manner.give_up_after;
        let is_over = |root: &Root| root.unsearched.as_ref().is_none_or(is_lost);
        let are_lost = self
            .roots
            .iter()
            .all(|root| root.unsearched.as_ref().is_some_and(is_lost));
        (self.has_followed || are_lost)
            && self.queue.is_empty()
            && self.roots.iter().all(is_over)
            && self.logs.values().all(ended)
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

/// [Claims](Index::claim) an attempt for a log.
fn claim(index: &Index, source: usize, id: &LogId, identity: &Identity) -> Option<PathBuf> {
    let Identity {
        key,
        application,
        start_ms,
        ..
    } = identity;
    let log = id.clone();
    index.claim(key, application, *start_ms, Claim { source, log })
}

/// Claims the attempt of a log again, which may have gone meanwhile. Returns whether it is still reported from this log: if
/// not, this one is not read any further.
fn keeps_claim(index: &Index, source: usize, id: &LogId, followed: &mut Followed) -> bool {
    let (State::Asleep { .. } | State::Awake { .. }, Some(identity)) =
        (&followed.state, &followed.identity)
    else {
        return true;
    };
    if claim(index, source, id, identity).is_none() {
        return true;
    }
    followed.identified = None;
    followed.state = match followed.is_missing {
        true => State::Done,
        false => State::New,
    };
    false
}

/// [Releases](Index::release) the attempt of a log.
fn release(index: &Index, source: usize, id: &LogId, followed: &Followed) {
    if let Some(identity) = &followed.identity {
        let log = id.clone();
        index.release(&identity.key, &Claim { source, log });
    }
}

/// Whether a log that was read from its start, which took `cost`, is not to be read again yet.
fn rests(since: Instant, cost: Duration) -> bool {
    since.elapsed() < cost * READ_AGAIN_FACTOR
}
