//! One log that is being read: its lines → reports that are not in the topic yet.
//!
//! Long because one state machine: where a turn ended decides how the next one begins.

use std::path::Path;

use schemas::TaskRunningInfo;

use super::checkpoint::{Checkpoint, Position};
use crate::engines::spark_log::Stopped;
use crate::engines::spark_log::files::{Log, LogFile};
use crate::engines::spark_log::intake::{Halt, take_line, why_no_report};
use crate::engines::spark_log::lines::Line;
use crate::engines::spark_log::reader::{Fault, Reader};
use crate::engines::spark_log::replay::{Ending, Pace, Replay};

/// How often an application is given up whose log goes on again and again.
const GIVEN_UP_MAX: usize = 32;

/// Reports, and the checkpoint behind them.
pub(super) struct Step {
    /// The checkpoint's key.
    pub(super) key: String,
    pub(super) checkpoint: Checkpoint,
    pub(super) reports: Vec<TaskRunningInfo>,
}

/// Where a turn ended.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    /// There is more to read.
    More,
    /// At the log's end so far.
    AtEnd,
    /// What was read is not what the log's path leads to any more.
    Moved,
    /// What was read is the log of another application.
    Mistaken,
    /// The log cannot be read on now: why.
    Unreadable(String),
    /// What the log holds from here on cannot be read.
    Stuck,
}

/// A log from which new reports come.
pub(super) struct Reading {
    key: String,
    /// The application's start, by which the log was identified, was not read so far.
    expects_start: bool,
    replay: Replay,
    /// The file that is being read.
    file: Option<(LogFile, Reader)>,
    /// It could not be read.
    is_unreadable: bool,
    /// It was written anew: what was read is nowhere any more.
    is_rewritten: bool,
    /// The file before that is finished.
    finished: Option<u64>,
    position: Position,
    checksum: crc32fast::Hasher,
    /// Up to where reports were sent before; `None` once that is passed.
    sent: Option<Checkpoint>,
    /// As in the checkpoint.
    counted: i64,
    base: i64,
    next: i64,
    given_up: Vec<Position>,
    /// A part of the log is missing or cannot be read.
    cut: bool,
    /// The rest of this file cannot be read.
    stuck: Option<u64>,
    /// Faults of the log are logged.
    named: bool,
}

impl Reading {
    /// Of the log of an attempt, which `has_start` if it held the application's start when it was identified. `sent` is the
    /// checkpoint of an earlier reading; `is_new` if the log's faults are not logged yet.
    pub(super) fn new(
        key: &str,
        has_start: bool,
        log: &Log,
        pace: Pace,
        sent: Option<Checkpoint>,
        is_new: bool,
    ) -> Self {
        let mut checksum = crc32fast::Hasher::new();
        // Other options give other reports.
        checksum.update(format!("{pace:?}").as_bytes());
        Self {
            key: key.to_owned(),
            expects_start: has_start,
            replay: Replay::new(&log.name(), pace),
            file: None,
            is_unreadable: false,
            is_rewritten: false,
            finished: None,
            position: Position::default(),
            checksum,
            sent,
            counted: 0,
            base: 0,
            next: 0,
            given_up: Vec::new(),
            cut: log.gaps,
            stuck: None,
            named: !is_new,
        }
    }

    /// Whether the application's end was read.
    pub(super) fn has_ended(&self) -> bool {
        self.replay.ended
    }

    /// Whether its reports go on from those that were sent: all that was read before is read, and it is that of the
    /// attempt.
    pub(super) fn is_caught_up(&self) -> bool {
        let is_passed = |sent: &Checkpoint| self.position >= sent.position;
        !self.expects_start
            && self.replay.counts.events > 0
            && self.sent.as_ref().is_none_or(is_passed)
    }

    pub(super) fn is_unreadable(&self) -> bool {
        self.is_unreadable
    }

    /// After the line that was read last.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Whether a part of the log could not be read.
    pub(super) fn is_at_fault(&self) -> bool {
        self.replay.broken_lines > 0 || self.stuck.is_some()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let file = self.file.as_ref();
        self.replay.memory_bytes() + file.map_or(0, |(_, reader)| reader.memory_bytes())
    }

    /// Reads on, about as many bytes of text as `bytes`. If the log is no longer at its path (`is_missing`), only the file
    /// that is open is read.
    ///
    /// # Errors
    /// If reports are not wanted any more.
    pub(super) fn turn(
        &mut self,
        log: &Log,
        is_missing: bool,
        bytes: usize,
        buffer: &mut [u8],
        give: &mut impl FnMut(Step) -> Result<(), Stopped>,
    ) -> Result<Turn, Stopped> {
        let mut left = bytes;
        if self.is_rewritten && !is_missing {
            return Ok(Turn::Moved);
        }
        let has_moved = !is_missing && self.has_moved(log);
        if let Some((file, reader)) = &mut self.file
            && self.is_unreadable
            && !is_missing
            && !has_moved
            && let Err(error) = reader.reopen(&file.path)
        {
            return Ok(unreadable(&file.path, &error));
        }
        self.is_unreadable = false;
        loop {
            let Some((file, mut reader)) = self.file.take() else {
                if is_missing {
                    return Ok(self.at_end());
                }
                match self.open_next(log) {
                    Ok(Next::Open) => continue,
                    Ok(Next::None) => return Ok(self.at_end()),
                    Ok(Next::Gone) => return Ok(Turn::Moved),
                    Err(why) => {
                        self.is_unreadable = true;
                        return Ok(why);
                    }
                }
            };
            let mut each = |line_number: u64, line: Line<'_>| {
                self.line(&file, line_number, &line, log.compacted, give)
            };
            let is_last = is_missing || !log.files.iter().any(|later| later.number > file.number);
            let fault = match reader.read_piece(buffer, &mut each) {
                // The file that is at the path now may be of another application.
                Ok(0) if has_moved => {
                    self.file = Some((file, reader));
                    return Ok(Turn::Moved);
                }
                Ok(0) if is_last => {
                    reader.shrink();
                    self.file = Some((file, reader));
                    return Ok(self.at_end());
                }
                Ok(0) => match reader.end(&mut each) {
                    Ok(cut) => {
                        if cut {
                            self.mark_cut(&file.path, "ends in the middle");
                        }
                        self.finished = Some(file.number);
                        continue;
                    }
                    Err(halt) => Fault::Stopped(halt),
                },
                Ok(read) => {
                    if self.replay.key().is_some() {
                        reader.end_beginning();
                    }
                    self.file = Some((file, reader));
                    left = left.saturating_sub(read);
                    if left == 0 {
                        return Ok(Turn::More);
                    }
                    continue;
                }
                Err(Fault::Io(error)) => {
                    let why = unreadable(&file.path, &error);
                    self.file = Some((file, reader));
                    self.is_unreadable = true;
                    return Ok(match is_missing {
                        true => self.at_end(),
                        false => why,
                    });
                }
                Err(fault) => fault,
            };
            match fault {
                Fault::Stopped(Halt::Stopped) => return Err(Stopped),
                Fault::Stopped(Halt::Mistaken) => return Ok(Turn::Mistaken),
                // The lines so far were those of the attempt.
                Fault::Rewritten => {
                    self.is_rewritten = true;
                    return Ok(match is_missing {
                        true => self.at_end(),
                        false => Turn::Moved,
                    });
                }
                Fault::Stopped(Halt::NotALog) => {
                    if !self.named {
                        tracing::error!("{} {}", file.path.display(), why_no_report(&self.replay));
                    }
                }
                fault => {
                    if !self.named {
                        tracing::error!("{} {fault}", file.path.display());
                    }
                }
            }
            self.named = true;
            // Nothing counts behind the application's end.
            self.cut |= !self.replay.ended;
            self.stuck = Some(file.number);
            self.finished = Some(file.number);
        }
    }

    /// Whether the log's path leads to another file than the one that is open.
    fn has_moved(&mut self, log: &Log) -> bool {
        let Some((file, reader)) = &mut self.file else {
            return false;
        };
        let Some(listed) = log.files.iter().find(|listed| listed.number == file.number) else {
            // Compacted away before it was read to its end, or of another log.
            return true;
        };
        // As when `.inprogress` was taken off.
        file.path.clone_from(&listed.path);
        match std::fs::metadata(&listed.path) {
            Ok(metadata) => !reader.reads(&metadata),
            // A file that was renamed after it was listed is found at the next look.
            Err(_) => false,
        }
    }

    /// Opens the file after the last one.
    ///
    /// # Errors
    /// If it cannot be opened.
    fn open_next(&mut self, log: &Log) -> Result<Next, Turn> {
        let next = |file: &&LogFile| self.finished.is_none_or(|before| file.number > before);
        let Some(file) = log.files.iter().find(next) else {
            return Ok(Next::None);
        };
        let follows = self
            .finished
            .is_none_or(|before| before.checked_add(1) == Some(file.number));
        if !follows && file.compacted {
            return Ok(Next::Gone);
        }
        let reader = Reader::open(&file.path).map_err(|error| unreadable(&file.path, &error))?;
        if !follows {
            self.mark_cut(&file.path, "does not follow the file before it");
        }
        self.file = Some((file.clone(), reader));
        self.meet_checkpoint();
        self.position = Position {
            file: file.number,
            line: 0,
        };
        Ok(Next::Open)
    }

    fn mark_cut(&mut self, path: &Path, why: &str) {
        self.cut = true;
        if self.sent.is_none() {
            tracing::warn!("{} {why}", path.display());
        }
    }

    fn at_end(&self) -> Turn {
        match self.stuck.is_some() && self.stuck == self.finished {
            true => Turn::Stuck,
            false => Turn::AtEnd,
        }
    }

    fn line(
        &mut self,
        file: &LogFile,
        number: u64,
        line: &Line<'_>,
        compacted: bool,
        give: &mut impl FnMut(Step) -> Result<(), Stopped>,
    ) -> Result<(), Halt> {
        let (Line::Whole(text) | Line::Unended(text) | Line::TooLong(text)) = line;
        self.meet_checkpoint();
        self.position.line = number;
        self.checksum.update(text);
        let is_passed = |sent: &Checkpoint| {
            let holds_it = file.compacted && sent.position.file <= file.number;
            self.position > sent.position && !holds_it
        };
        if self.sent.as_ref().is_some_and(is_passed) {
            self.go_on(false);
        }
        let is_new = self.sent.is_none();
        let path = &file.path;
        let Some(reports) = take_line(path, number, line, is_new, &mut self.replay)? else {
            self.mark_cut(path, "ends in the middle");
            return Ok(());
        };
        if self.expects_start
            && let Some(key) = self.replay.key()
        {
            // The path may lead to another log since it was identified.
            if key != self.key {
                return Err(Halt::Mistaken);
            }
            self.expects_start = false;
        }
        self.count(&reports);
        match &self.sent {
            Some(sent) => {
                if sent.given_up.contains(&self.position) {
                    let again = self.replay.end(self.ending(compacted));
                    self.count(&again);
                }
                Ok(())
            }
            None => Ok(self.give(reports, false, give)?),
        }
    }

    /// Whether the lines so far are those up to the checkpoint.
    fn is_at(&self, sent: &Checkpoint) -> bool {
        self.position == sent.position
            && self.counted == sent.counted
            && self.checksum.clone().finalize() == sent.checksum
    }

    /// Goes on if the line before was the last one that was sent.
    fn meet_checkpoint(&mut self) {
        if self.sent.as_ref().is_some_and(|sent| self.is_at(sent)) {
            self.go_on(true);
        }
    }

    /// What comes now was not sent before. `is_same` if the lines so far are those of the checkpoint.
    fn go_on(&mut self, is_same: bool) {
        let Some(sent) = self.sent.take() else {
            return;
        };
        self.next = sent.next;
        self.given_up = sent.given_up;
        self.base = match is_same {
            true => sent.base,
            false => {
                tracing::warn!(
                    "the reports of {} are not those that its log gave before: they are numbered from {} on. The log has \
                     changed, for example because a History Server has compacted it, or --interval or --at-end has",
                    self.key,
                    sent.next
                );
                self.given_up.clear();
                sent.next
            }
        };
    }

    fn count(&mut self, reports: &[TaskRunningInfo]) {
        let highest = reports.iter().map(|report| report.sequence).max();
        let counted = highest.map_or(0, |sequence| sequence.saturating_add(1));
        self.counted = self.counted.max(counted);
    }

    fn give(
        &mut self,
        mut reports: Vec<TaskRunningInfo>,
        concluded: bool,
        give: &mut impl FnMut(Step) -> Result<(), Stopped>,
    ) -> Result<(), Stopped> {
        if reports.is_empty() {
            return Ok(());
        }
        for report in &mut reports {
            report.sequence = report.sequence.saturating_add(self.base);
            self.next = self.next.max(report.sequence.saturating_add(1));
        }
        give(Step {
            key: self.key.clone(),
            checkpoint: Checkpoint {
                position: self.position,
                checksum: self.checksum.clone().finalize(),
                counted: self.counted,
                base: self.base,
                next: self.next,
                given_up: self.given_up.clone(),
                concluded,
            },
            reports,
        })
    }

    fn ending(&self, compacted: bool) -> Ending {
        Ending {
            replaced: false,
            cut: self.cut,
            compacted,
        }
    }

    /// At the end of what there is of the log: whether the reports up to here were sent before.
    fn pass_checkpoint(&mut self) -> bool {
        let Some(sent) = &self.sent else {
            return true;
        };
        if self.position < sent.position {
            return false;
        }
        let is_same = self.is_at(sent);
        self.go_on(is_same);
        true
    }

    /// Reports an application whose log has not grown for long, once.
    ///
    /// # Errors
    /// If reports are not wanted any more.
    pub(super) fn give_up(
        &mut self,
        compacted: bool,
        give: &mut impl FnMut(Step) -> Result<(), Stopped>,
    ) -> Result<(), Stopped> {
        // Of a log that is shorter than before, the reports behind its end were sent.
        if !self.is_caught_up() || !self.pass_checkpoint() || self.given_up.len() >= GIVEN_UP_MAX {
            return Ok(());
        }
        if self.given_up.last() == Some(&self.position) {
            return Ok(());
        }
        let reports = self.replay.end(self.ending(compacted));
        self.count(&reports);
        if !reports.is_empty() {
            self.given_up.push(self.position);
        }
        self.give(reports, false, give)
    }

    /// Sends the last reports of an application that has ended, or whose newer attempt has a log (`replaced`).
    ///
    /// # Errors
    /// If reports are not wanted any more.
    pub(super) fn conclude(
        mut self,
        replaced: bool,
        compacted: bool,
        give: &mut impl FnMut(Step) -> Result<(), Stopped>,
    ) -> Result<(), Stopped> {
        if self.expects_start {
            return Ok(());
        }
        if !self.pass_checkpoint() {
            self.go_on(false);
        }
        let mut ending = self.ending(compacted);
        ending.replaced = replaced;
        let reports = self.replay.end(ending);
        self.count(&reports);
        self.give(reports, true, give)
    }
}

/// What comes after a file of a log.
enum Next {
    /// Another one, which is open now.
    Open,
    None,
    /// One that was compacted away before it was read.
    Gone,
}

fn unreadable(path: &Path, error: &std::io::Error) -> Turn {
    Turn::Unreadable(format!("{} cannot be read: {error}", path.display()))
}
