//! One log that is being read: its lines → reports that are not in the topic yet.

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
    /// `None` forgets the log.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) reports: Vec<TaskRunningInfo>,
}

/// Where a turn ended.
#[derive(Debug, PartialEq)]
pub(super) enum Turn {
    /// There is more to read.
    More,
    /// At the log's end so far.
    AtEnd,
    /// The files are not those that were read, or cannot be read now: read the log again from its start.
    Again(Option<String>),
    /// What the log holds from here on cannot be read.
    Stuck,
}

/// A log from which new reports come.
pub(super) struct Reading {
    key: String,
    replay: Replay,
    /// The file that is being read.
    file: Option<(u64, Reader)>,
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
    /// `sent` is the checkpoint of an earlier reading; `is_new` if the log's faults are not logged yet.
    pub(super) fn new(
        key: &str,
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
            replay: Replay::new(&log.name(), pace),
            file: None,
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

    /// Whether a part of the log could not be read.
    pub(super) fn is_at_fault(&self) -> bool {
        self.replay.broken_lines > 0 || self.stuck.is_some()
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let file = self.file.as_ref();
        self.replay.memory_bytes() + file.map_or(0, |(_, reader)| reader.memory_bytes())
    }

    /// Reads on, about as many bytes of text as `bytes`.
    ///
    /// # Errors
    /// If reports are not wanted any more.
    pub(super) fn turn(
        &mut self,
        log: &Log,
        bytes: usize,
        buffer: &mut [u8],
        give: &mut impl FnMut(Step) -> Result<(), Stopped>,
    ) -> Result<Turn, Stopped> {
        let mut left = bytes;
        if let Some((number, reader)) = &self.file
            && let Some(file) = file_of(log, *number)
            // A file that was renamed after it was listed is found at the next look.
            && let Ok(metadata) = std::fs::metadata(&file.path)
            && !reader.reads(&metadata)
        {
            return Ok(Turn::Again(None));
        }
        loop {
            let Some((number, mut reader)) = self.file.take() else {
                match self.open_next(log) {
                    Ok(true) => continue,
                    Ok(false) => return Ok(self.at_end()),
                    Err(why) => return Ok(Turn::Again(why)),
                }
            };
            let Some(file) = file_of(log, number) else {
                // Compacted away before it was read to its end.
                return Ok(Turn::Again(None));
            };
            let mut each = |line_number: u64, line: Line<'_>| {
                self.line(file, line_number, &line, log.compacted, give)
            };
            let read = reader.read_piece(buffer, &mut each);
            let fault = match read {
                Ok(0) if log.files.iter().any(|later| later.number > number) => {
                    match reader.end(&mut each) {
                        Ok(cut) => {
                            if cut {
                                self.mark_cut(&file.path, "ends in the middle");
                            }
                            self.finish(file);
                            continue;
                        }
                        Err(halt) => Fault::Stopped(halt),
                    }
                }
                Ok(0) => {
                    reader.shrink();
                    self.file = Some((number, reader));
                    return Ok(self.at_end());
                }
                Ok(read) => {
                    self.file = Some((number, reader));
                    left = left.saturating_sub(read);
                    if left == 0 {
                        return Ok(Turn::More);
                    }
                    continue;
                }
                Err(fault) => fault,
            };
            match fault {
                Fault::Stopped(Halt::Stopped) => return Err(Stopped),
                Fault::Io(error) => {
                    let why = format!("{} cannot be read: {error}", file.path.display());
                    return Ok(Turn::Again(Some(why)));
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
            self.stuck = Some(number);
            self.finish(file);
        }
    }

    /// Opens the file after the last one. Returns whether there is one.
    fn open_next(&mut self, log: &Log) -> Result<bool, Option<String>> {
        let next = |file: &&LogFile| self.finished.is_none_or(|before| file.number > before);
        let Some(file) = log.files.iter().find(next) else {
            return Ok(false);
        };
        let follows = self
            .finished
            .is_none_or(|before| before.checked_add(1) == Some(file.number));
        if !follows {
            if file.compacted {
                return Err(None);
            }
            self.mark_cut(&file.path, "does not follow the file before it");
        }
        let reader = Reader::open(&file.path)
            .map_err(|error| Some(format!("{} cannot be read: {error}", file.path.display())))?;
        self.file = Some((file.number, reader));
        self.meet_checkpoint();
        self.position = Position {
            file: file.number,
            line: 0,
        };
        Ok(true)
    }

    fn finish(&mut self, file: &LogFile) {
        self.finished = Some(file.number);
        self.file = None;
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
                    "the log of {} is not the one that was read before, for example because a History Server has \
                     compacted it: its reports are numbered from {} on",
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
            checkpoint: Some(Checkpoint {
                position: self.position,
                checksum: self.checksum.clone().finalize(),
                counted: self.counted,
                base: self.base,
                next: self.next,
                given_up: self.given_up.clone(),
                concluded,
            }),
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
        // The log is shorter than before: reports behind its end were sent.
        if !self.pass_checkpoint() || self.given_up.len() >= GIVEN_UP_MAX {
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

fn file_of(log: &Log, number: u64) -> Option<&LogFile> {
    log.files.iter().find(|file| file.number == number)
}
